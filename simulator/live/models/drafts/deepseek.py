"""The MTP module that DeepSeek-V3's checkpoint keeps behind its layers, as a draft run K times.

Of a target of L layers it is the tensors ``model.layers.L.*``: ``enorm``, ``hnorm`` and ``eh_proj`` join a
token's embedding with the state before it, a decoder layer of the target's own kind follows, and
``shared_head`` predicts. Embedding and head are the target's; a checkpoint may hold copies of them or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simulator.core.errors import BadInputError
from simulator.live.models import checkpoints
from simulator.live.models.checkpoints import Fields
from simulator.live.models.drafts.blocks.latent import LatentBlock, LatentCache, LatentSizes
from simulator.live.models.drafts.mtp import MTPModule
from simulator.live.models.layers import BackboneConfig, Rotary, read_rope

ARCHITECTURE = "DeepseekV3ForCausalLM"

_SHARED = {"embed_tokens.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
"""Where the target keeps what the module shares with it."""

_OUTSIDE = {
    "embed_tokens": "embed_tokens", "enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj",
    "shared_head.norm": "norm", "shared_head.head": "lm_head",
}  # fmt: skip
"""The module's parts beside its decoder layer: the checkpoint's names and ours."""


@dataclass(frozen=True, slots=True)
class DeepSeekMTPConfig:
    """The module of a config.json of DeepSeek-V3. block_size: how often it runs, K. raw: all its fields.

    shape: of the layer's one key, which all heads share. scale: of the logits.
    """

    shape: BackboneConfig
    sizes: LatentSizes
    num_target_layers: int
    raw: Mapping[str, Any]
    scale_block: tuple[int, ...] = ()
    block_size: int = 1

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """The target's final norm, which comes after its last layer."""
        return (self.num_target_layers,)

    @classmethod
    def from_fields(cls, fields: Fields) -> DeepSeekMTPConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        for name, supported in (
            ("model_type", "deepseek_v3"), ("hidden_act", "silu"), ("scoring_func", "sigmoid"),
            ("topk_method", "noaux_tc"),
        ):  # fmt: skip
            fields.expect(name, supported)
        if fields.integer("num_nextn_predict_layers", 0) != 1:
            raise fields.error(
                "num_nextn_predict_layers", "must be 1: the module that is run as often as asked",
                "choose a checkpoint with one MTP module",
            )  # fmt: skip
        sizes, shape = _sizes(fields), _shape(fields)
        layers = fields.integer("num_hidden_layers", minimum=1)
        return cls(shape, sizes, layers, fields.raw, _scale_block(fields))

    def to_dict(self) -> dict[str, Any]:
        """Return the target's config.json, and how often the module runs."""
        return {**self.raw, "block_size": self.block_size}


def _sizes(fields: Fields) -> LatentSizes:
    nope = fields.integer("qk_nope_head_dim", minimum=1)
    turning = fields.integer("qk_rope_head_dim", minimum=2)
    has_rank = fields.raw.get("q_lora_rank") is not None
    return LatentSizes(
        hidden_size=fields.integer("hidden_size", minimum=1),
        num_attention_heads=fields.integer("num_attention_heads", minimum=1),
        q_lora_rank=fields.integer("q_lora_rank", minimum=1) if has_rank else None,
        kv_lora_rank=fields.integer("kv_lora_rank", minimum=1),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=turning,
        v_head_dim=fields.integer("v_head_dim", minimum=1),
        attention_bias=fields.flag("attention_bias", False),
        interleaved=fields.flag("rope_interleave", True),
        scale=(nope + turning) ** -0.5 * _stretched(read_rope(fields)) ** 2,
    )


def _stretched(rope: Mapping[str, Any]) -> float:
    """Factor of queries and of keys where YaRN stretches contexts (YaRN, section 3.4, as DeepSeek has it)."""
    weight, factor = float(rope.get("mscale_all_dim") or 0), float(rope.get("factor") or 1)
    return 1.0 if rope["rope_type"] == "default" or factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _shape(fields: Fields) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=fields.integer("vocab_size", minimum=1),
        hidden_size=fields.integer("hidden_size", minimum=1),
        intermediate_size=fields.integer("intermediate_size", minimum=1),
        num_hidden_layers=1,
        num_attention_heads=fields.integer("num_attention_heads", minimum=1),
        num_key_value_heads=1,
        head_dim=fields.integer("kv_lora_rank") + fields.integer("qk_rope_head_dim"),
        max_position_embeddings=fields.integer("max_position_embeddings", 4096, minimum=1),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields),
    )


def _scale_block(fields: Fields) -> tuple[int, ...]:
    """Rows and columns that share one scale of weights in 8 bits; () for weights as they are."""
    quantised = fields.raw.get("quantization_config")
    if quantised is None:
        return ()
    block = quantised.get("weight_block_size") if isinstance(quantised, dict) else None
    if not isinstance(block, list) or len(block) != 2 or quantised.get("quant_method") != "fp8":
        raise fields.error(
            "quantization_config", "only fp8 with weight_block_size, as DeepSeek wrote it, is read",
            "take the checkpoint in bfloat16",
        )  # fmt: skip
    return tuple(int(each) for each in block)


class DeepSeekMTPDraft(MTPModule):
    """The module as a draft of block size K."""

    config: DeepSeekMTPConfig
    in_float32 = ("e_score_correction_bias",)

    def __init__(self, config: DeepSeekMTPConfig) -> None:
        shape, sizes = config.shape, config.sizes
        layer = LatentBlock(shape, sizes, _feed_forward(config))
        rotary = Rotary(replace(shape, head_dim=sizes.qk_rope_head_dim))
        super().__init__(config, layer, rotary, config.block_size)

    def new_cache(self, rows: int, capacity: int) -> LatentCache:
        """See ``Draft.new_cache``."""
        weight = self.lm_head.weight
        rank = self.config.sizes.kv_lora_rank
        return LatentCache(self.shape, rank, rows, capacity, dtype=weight.dtype, device=weight.device)

    def read(self, folder: Path, device: torch.device) -> dict[str, Tensor]:
        """See ``DraftModule.read``: of the target's checkpoint only the module, and what both share."""
        prefix = f"model.layers.{self.config.num_target_layers}."
        found = checkpoints.read_named(
            folder, device, lambda name: name.startswith(prefix) or name in _SHARED.values()
        )
        inside = {name.removeprefix(prefix): each for name, each in found.items() if name.startswith(prefix)}
        if not inside:
            raise BadInputError(
                f"holds no tensors {prefix}*, where the MTP module would be", source=str(folder),
                field="num_nextn_predict_layers", value=1, remedy="take the checkpoint with its MTP module",
            )  # fmt: skip
        tensors = {_ours(name): each for name, each in _in_float(inside, self.config.scale_block).items()}
        for name, theirs in _SHARED.items():
            if name not in tensors and theirs in found:
                tensors[name] = found[theirs]
        return _packed(tensors, set(self.state_dict()))


def _feed_forward(config: DeepSeekMTPConfig) -> nn.Module:
    """Return what transformers puts behind attention at the module's place: experts, or a dense layer."""
    import transformers

    auto_model: Any = transformers.AutoModelForCausalLM
    apart = ("model_type", "auto_map", "quantization_config", "architectures")
    fields = {name: value for name, value in config.raw.items() if name not in apart}
    dense_until = int(fields.get("first_k_dense_replace") or 0)
    fields |= {"num_hidden_layers": 1, "first_k_dense_replace": int(config.num_target_layers < dense_until)}
    with torch.device("meta"):  # of the whole model only this layer is kept
        model = auto_model.from_config(transformers.AutoConfig.for_model("deepseek_v3", **fields))
    layer: nn.Module = model.model.layers[0].mlp
    return layer


def _ours(name: str) -> str:
    """Our name of a tensor of the module."""
    part, _, last = name.rpartition(".")
    return f"{_OUTSIDE[part]}.{last}" if part in _OUTSIDE else f"layer.{name}"


def _in_float(tensors: Mapping[str, Tensor], block: tuple[int, ...]) -> dict[str, Tensor]:
    """Multiply weights of 8 bits by the scale of their block: W[i, j] * s[i // rows, j // columns]."""
    mark = "_scale_inv"
    whole = {name: tensor for name, tensor in tensors.items() if not name.endswith(mark)}
    for name in tensors:
        of_weight = name.removesuffix(mark)
        if block and of_weight != name and of_weight in whole:
            rows, columns = whole[of_weight].shape
            scale = tensors[name].repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            whole[of_weight] = whole[of_weight].float() * scale[:rows, :columns]
    return whole


def _packed(tensors: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Stack the experts' matrices where this transformers keeps them as one tensor."""
    into, parts = "layer.mlp.experts.", ("gate", "up", "down")
    experts = {name: each for name, each in tensors.items() if name.startswith(into)}
    count = len({name.removeprefix(into).partition(".")[0] for name in experts})
    names = [[f"{into}{each}.{part}_proj.weight" for part in parts] for each in range(count)]
    if f"{into}gate_up_proj" not in wanted or set(experts) != {name for three in names for name in three}:
        return tensors
    gates_up = [torch.cat((experts[gate], experts[up])) for gate, up, _ in names]
    downs = [experts[down] for _, _, down in names]
    others = {name: each for name, each in tensors.items() if name not in experts}
    return others | {f"{into}gate_up_proj": torch.stack(gates_up), f"{into}down_proj": torch.stack(downs)}
