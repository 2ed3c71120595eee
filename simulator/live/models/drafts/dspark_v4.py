"""DSpark's production draft: the layers behind those of DeepSeek-V4's checkpoints, without their weights.

What is known, and from where. DeepSeek-V4-Flash-DSpark and -Pro-DSpark name the draft in their config.json
(``dspark_block_size``, ``dspark_target_layer_ids``, ``dspark_noise_token_id``, ``dspark_markov_rank``). The
code beside them and SGLang's ``deepseek_v4_dspark`` say how it runs, Flash's index lists its tensors. Its
layers are V4's own without compression: experts, hyper-connections, and a window of 128 positions of the
context before a block, whose slots all see one another. ``fc`` and ``hidden_norm`` here are
``mtp.0.main_proj`` and ``main_norm`` there; the heads stand in the last layer, ``mtp.2``.

What is a choice: weights of 8 and of 4 bits are not read, so that ``load_draft`` gives the shape alone, with
random weights. The experts are those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simulator.core.errors import BadInputError
from simulator.live.models.checkpoints import Fields
from simulator.live.models.drafts.blocks.latent import LatentCache
from simulator.live.models.drafts.blocks.streams import Collapse, StreamBlock, StreamSizes
from simulator.live.models.drafts.dspark import DSparkConfig, DSparkDraft
from simulator.live.models.drafts.heads import ConfidenceHead
from simulator.live.models.layers import BackboneConfig, Rotary

ARCHITECTURE = "DeepseekV4ForCausalLM"

_SCALED = 128
"""Rows and columns that share one scale of the weights in 8 bits: quantization_config.weight_block_size."""

_SCALED_4_BITS = 32
"""Weights of an expert's row that share one scale of 8 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class V4Config(DSparkConfig):
    """The draft of a config.json of DeepSeek-V4; ``raw`` are all its fields.

    shape: of one layer's key, which all heads share; as many layers as target layers are read.
    """

    sizes: StreamSizes
    sliding_window: int
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_fields(cls, fields: Fields) -> V4Config:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        if fields.raw.get("dspark_block_size") is None:
            raise fields.error(
                "dspark_block_size", "is missing: this checkpoint of DeepSeek-V4 has no DSpark draft",
                "take one with a draft, such as DeepSeek-V4-Flash-DSpark",
            )  # fmt: skip
        for name, supported in (
            ("model_type", "deepseek_v4"), ("hidden_act", "silu"), ("scoring_func", "sqrtsoftplus"),
            ("topk_method", "noaux_tc"), ("num_key_value_heads", 1), ("n_shared_experts", 1),
        ):  # fmt: skip
            fields.expect(name, supported)
        sizes, read = _sizes(fields), fields.integers("dspark_target_layer_ids")
        target_layers = fields.integer("num_hidden_layers", minimum=1)
        if not read or sorted(set(read)) != list(read) or read[0] < 0 or read[-1] >= target_layers:
            raise fields.error(
                "dspark_target_layer_ids", f"must be strictly increasing, from 0 to {target_layers - 1}"
            )
        shape = _shape(fields, sizes, len(read))
        noise = fields.integer("dspark_noise_token_id")
        if noise >= shape.vocab_size:
            raise fields.error("dspark_noise_token_id", f"must be below the vocabulary of {shape.vocab_size}")
        return cls(
            shape=shape, block_size=fields.integer("dspark_block_size", minimum=1), mask_token_id=noise,
            num_target_layers=target_layers, target_layer_ids=read,
            markov_rank=fields.integer("dspark_markov_rank", minimum=1), markov_head_type="vanilla",
            enable_confidence_head=True, confidence_head_with_markov=True, num_anchors=1,
            sizes=sizes, sliding_window=fields.integer("sliding_window", minimum=1), raw=fields.raw,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the config.json."""
        return dict(self.raw)


def _sizes(fields: Fields) -> StreamSizes:
    sizes = StreamSizes(
        hidden_size=fields.integer("hidden_size", minimum=1),
        num_attention_heads=fields.integer("num_attention_heads", minimum=1),
        head_dim=fields.integer("head_dim", minimum=2),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim", minimum=2),
        q_lora_rank=fields.integer("q_lora_rank", minimum=1),
        o_lora_rank=fields.integer("o_lora_rank", minimum=1),
        o_groups=fields.integer("o_groups", minimum=1),
        hc_mult=fields.integer("hc_mult", minimum=1),
        hc_sinkhorn_iters=fields.integer("hc_sinkhorn_iters", minimum=1),
        hc_eps=fields.number("hc_eps"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
    )
    if sizes.qk_rope_head_dim > sizes.head_dim or sizes.qk_rope_head_dim % 2:
        raise fields.error("qk_rope_head_dim", f"must be even and at most the head's {sizes.head_dim}")
    if sizes.num_attention_heads % sizes.o_groups:
        raise fields.error("o_groups", f"must divide the {sizes.num_attention_heads} heads")
    return sizes


def _shape(fields: Fields, sizes: StreamSizes, layers: int) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=fields.integer("vocab_size", minimum=1),
        hidden_size=sizes.hidden_size,
        intermediate_size=fields.integer("moe_intermediate_size", minimum=1),
        num_hidden_layers=layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=1,
        head_dim=sizes.head_dim,
        max_position_embeddings=fields.integer("max_position_embeddings", minimum=1),
        rms_norm_eps=sizes.rms_norm_eps,
        # Layers that compress nothing are not stretched either, whatever rope_scaling says of the others.
        rope={"rope_type": "default", "rope_theta": fields.number("rope_theta", 10_000.0)},
    )


class V4Draft(DSparkDraft):
    """The draft, with DSpark's heads. Its features are the means of the target's streams, layer by layer."""

    config: V4Config
    in_float32 = ("e_score_correction_bias", "sinks", "_hc.fn", "_hc.base", "_hc.scale")

    def __init__(self, config: V4Config) -> None:
        self.sizes = config.sizes
        super().__init__(config)
        rank = config.markov_rank
        self.window = config.sliding_window
        self.confidence_head = ConfidenceHead(config.sizes.hidden_size, rank, bias=False)
        self.rotary = Rotary(replace(config.shape, head_dim=config.sizes.qk_rope_head_dim))
        self.last_hc = Collapse(config.sizes)

    def _new_block(self) -> StreamBlock:
        return StreamBlock(self.config.sizes, _experts(self.config))

    def new_cache(self, rows: int, capacity: int) -> LatentCache:
        """See ``Draft.new_cache``: a position's key is its value."""
        weight = self.lm_head.weight
        width = self.config.sizes.head_dim
        return LatentCache(self.shape, width, rows, capacity, dtype=weight.dtype, device=weight.device)

    def read(self, folder: Path, device: torch.device) -> dict[str, Tensor]:
        """Refuse: the tensors ``mtp.*`` hold weights of 8 and of 4 bits."""
        raise BadInputError(
            "is DeepSeek-V4's draft, whose weights are not read here: its tensors mtp.* are in FP8 and in "
            "pairs of 4 bits with scales of 8 (E8M0)", source=str(folder), field="architectures",
            value=ARCHITECTURE, remedy="load_draft(..., config_only=True) gives random weights of its shape",
        )  # fmt: skip

    def base_logits(self, hidden: Tensor) -> Tensor:
        """See ``DSparkDraft.base_logits``; the norm stands here: confidences are of states before it."""
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits

    def _left(self, hidden: Tensor) -> Tensor:
        state: Tensor = self.last_hc(hidden)
        return state

    def _embed_blocks(self, anchor_tokens: Tensor) -> Tensor:
        embedded = super()._embed_blocks(anchor_tokens)
        return embedded[..., None, :].repeat_interleave(self.config.sizes.hc_mult, dim=-2)

    def own_parameters(self) -> dict[str, Tensor]:
        """Return the weights that the checkpoint holds for the draft: without the target's two tables."""
        shared = ("embed_tokens.", "lm_head.")
        return {name: each for name, each in self.state_dict().items() if not name.startswith(shared)}

    def published_bytes(self) -> int:
        """Bytes of its weights as the checkpoints have them: experts in 4 bits, other matrices in 8.

        Norms, router and heads are in 16 bits, what steers the streams, sinks and the router's bias in 32.
        """
        return sum(
            _published_bytes(name, each, self.in_float32) for name, each in self.own_parameters().items()
        )


def _published_bytes(name: str, weight: Tensor, in_float32: tuple[str, ...]) -> int:
    if name.endswith(in_float32):
        return 4 * weight.numel()
    if ".mlp.experts." in name:
        return weight.numel() // 2 + weight.numel() // _SCALED_4_BITS
    if weight.dim() < 2 or ".mlp.gate." in name or "_head." in name:
        return 2 * weight.numel()
    rows, columns = weight.shape
    return weight.numel() + -(-rows // _SCALED) * -(-columns // _SCALED)


def _experts(config: V4Config) -> nn.Module:
    """Return transformers' experts of a layer that routes by learned scores."""
    import transformers

    auto: Any = transformers
    if "deepseek_v4" not in auto.CONFIG_MAPPING:
        raise BadInputError(
            f"needs the experts of DeepSeek-V4, which transformers {transformers.__version__} lacks",
            field="model_type", value="deepseek_v4", remedy="pip install 'transformers>=5.17'",
        )  # fmt: skip
    apart = ("model_type", "auto_map", "quantization_config", "architectures", "compress_ratios")
    fields = {name: value for name, value in config.raw.items() if name not in apart}
    fields |= {"num_hidden_layers": 1, "num_hash_layers": 0, "layer_types": ["sliding_attention"]}
    fields |= {"rope_scaling": None}
    with torch.device("meta"):  # of the whole model only this layer is kept
        model = auto.AutoModelForCausalLM.from_config(auto.AutoConfig.for_model("deepseek_v4", **fields))
    layer: nn.Module = model.model.layers[0].mlp
    return layer
