"""Eagle3 as DeepSpec trains it (config/eagle3): one layer that reads a fused state beside each token.

States of five target layers are projected to one (``fc``); attention reads [norm(embedding), norm(state)],
twice as wide as the residual, which is the state. The layer's raw output is the state of the next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.models.checkpoints import Fields
from simulator.live.models.drafts.blocks.gemma4 import GemmaBlock, GemmaTraits, read_gemma
from simulator.live.models.drafts.chain import ChainedDraft
from simulator.live.models.layers import Attention, BackboneConfig, Block, KeysValues, Mask, Reach, Rotary

QWEN3, GEMMA4 = "Qwen3Eagle3Model", "Gemma4Eagle3Model"

ARCHITECTURES = (QWEN3, "Eagle3DraftModel", GEMMA4)
"""As DeepSpec names them in config.json; its evaluation runs the second as the first."""


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """An Eagle3 drafter, in the field names of its config.json. gemma: of one for Gemma 4."""

    shape: BackboneConfig
    ttt_length: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    gemma: GemmaTraits | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> Eagle3Config:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        is_gemma = GEMMA4 in (fields.raw.get("architectures") or ())
        shape, gemma = read_gemma(fields) if is_gemma else (BackboneConfig.from_fields(fields), None)
        if shape.num_hidden_layers != 1:
            raise fields.error("num_hidden_layers", "only Eagle3 drafters of one layer are read, as released")
        config = cls(
            shape=shape,
            ttt_length=fields.integer("ttt_length", minimum=1),
            num_target_layers=fields.integer("num_target_layers", minimum=1),
            target_layer_ids=fields.integers("target_layer_ids"),
            gemma=gemma,
        )
        ids, last = config.target_layer_ids, config.num_target_layers - 2
        if not ids or sorted(set(ids)) != list(ids) or ids[0] < 0 or ids[-1] > last:
            raise fields.error("target_layer_ids", f"must be strictly increasing layers from 0 to {last}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the config.json that DeepSpec would write for this drafter."""
        layer = self.shape.to_dict() if self.gemma is None else self.gemma.to_dict(self.shape)
        return layer | {
            "architectures": [QWEN3 if self.gemma is None else GEMMA4],
            "draft_num_hidden_layers": 1,
            "num_target_layers": self.num_target_layers,
            "target_layer_ids": list(self.target_layer_ids),
            "ttt_length": self.ttt_length,
        }


class Eagle3Draft(ChainedDraft):
    """The Eagle3 drafter; ``ttt_length`` draft tokens a block."""

    config: Eagle3Config

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        shape, d = config.shape, config.shape.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        self.fc = nn.Linear(d * len(config.target_layer_ids), d, bias=False)
        layer = Eagle3Layer(shape) if config.gemma is None else GemmaEagle3Layer(shape, config.gemma)
        self.layers = nn.ModuleList([layer])
        self.norm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.lm_head = nn.Linear(d, shape.vocab_size, bias=False)
        self.rotary = Rotary(shape)
        self.gamma = config.ttt_length

    @property
    def _layer(self) -> Eagle3Layer | GemmaEagle3Layer:
        layer = self.layers[0]
        assert isinstance(layer, (Eagle3Layer, GemmaEagle3Layer))
        return layer

    def enter(self, features: Tensor) -> Tensor:
        """Fuse the target's states: [..., width] -> [..., d]."""
        states: Tensor = self.fc(features)
        return states

    def join(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainedDraft.join``: what attention reads is [..., 2d]."""
        embedded = self.embed_tokens(tokens)
        if self.config.gemma is not None:
            embedded = embedded * self.config.gemma.embed_scale(self.shape, embedded.dtype)
        layer = self._layer
        return states, torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(states)), dim=-1)

    def keys_values(self, inputs: Tensor, rope: KeysValues) -> KeysValues:
        """See ``ChainedDraft.keys_values``."""
        return self._layer.self_attn.keys_values(inputs, rope)

    def run_layer(
        self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask
    ) -> Tensor:
        """See ``ChainedDraft.run_layer``."""
        return self._layer.run(residual, inputs, rope, reach, mask)

    def leave(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainedDraft.leave``: the state stays as it is, the logits are of its norm."""
        logits: Tensor = self.lm_head(self.norm(hidden))
        return hidden, logits if self.config.gemma is None else self.config.gemma.capped(logits)


class Eagle3Layer(Block):
    """Qwen3's block with attention that reads twice the width."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        self.self_attn = Attention(config, width=2 * config.hidden_size)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class GemmaEagle3Layer(GemmaBlock):
    """Gemma 4's block with attention that reads twice the width."""

    def __init__(self, config: BackboneConfig, traits: GemmaTraits) -> None:
        super().__init__(config, traits, width=2 * config.hidden_size)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
