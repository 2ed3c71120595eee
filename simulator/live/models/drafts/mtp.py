"""MTP-K: one extra layer that predicts the token after the next (DeepSeek-V3 technical report, section 2.2).

The module joins the embedding of token i+1 with the target's final-normed state at i, runs one causal
transformer block and predicts token i+2 through the target's own head. As a draft it proposes K tokens by
running K times: behind the anchor the module's own normed output stands for the target's normed state. That
it is the normed output is a choice; SGLang runs DeepSeek's module so. It is trained for K = 1.

It has no confidence head. Production baselines verify its tokens always; what a scheduler sees is a survival
of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.models.checkpoints import Fields
from simulator.live.models.draft import DraftConfig
from simulator.live.models.drafts.blocks.latent import LatentBlock
from simulator.live.models.drafts.chain import ChainedDraft
from simulator.live.models.layers import BackboneConfig, Block, KeysValues, Mask, Reach, Rotary

ARCHITECTURE = "MTPDraftModel"


@dataclass(frozen=True, slots=True)
class MTPConfig:
    """An MTP module, in the field names of its config.json. block_size: how often it runs, K."""

    shape: BackboneConfig
    num_target_layers: int
    block_size: int = 1

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """The target's final norm, which comes after its last layer."""
        return (self.num_target_layers,)

    @classmethod
    def from_fields(cls, fields: Fields) -> MTPConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        shape = BackboneConfig.from_fields(fields)
        if shape.num_hidden_layers != 1:
            raise fields.error("num_hidden_layers", "an MTP module has exactly one layer")
        layers = fields.integer("num_target_layers", minimum=1)
        return cls(shape, layers, fields.integer("block_size", 1, minimum=1))

    def to_dict(self) -> dict[str, Any]:
        """config.json as ``load_draft`` reads it."""
        repeated = {} if self.block_size == 1 else {"block_size": self.block_size}
        return self.shape.to_dict() | repeated | {
            "architectures": [ARCHITECTURE],
            "num_target_layers": self.num_target_layers,
        }  # fmt: skip


class MTPModule(ChainedDraft):
    """The module around its one layer: how state and token are joined, and how predictions leave."""

    def __init__(self, config: DraftConfig, layer: Block | LatentBlock, rotary: Rotary, steps: int) -> None:
        super().__init__()
        shape, d = config.shape, config.shape.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        self.enorm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.hnorm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.layer = layer
        self.norm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.lm_head = nn.Linear(d, shape.vocab_size, bias=False)
        self.rotary = rotary
        self.gamma = steps

    def enter(self, features: Tensor) -> Tensor:
        """See ``ChainedDraft.enter``: the target's normed state as it is."""
        return features

    def join(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the state at i and token i+1 into the layer's input [..., d], and that normed."""
        pair = torch.cat((self.enorm(self.embed_tokens(tokens)), self.hnorm(states)), dim=-1)
        joined: Tensor = self.eh_proj(pair)
        normed: Tensor = self.layer.input_layernorm(joined)
        return joined, normed

    def keys_values(self, inputs: Tensor, rope: KeysValues) -> KeysValues:
        """See ``ChainedDraft.keys_values``."""
        return self.layer.self_attn.keys_values(inputs, rope)

    def run_layer(
        self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask
    ) -> Tensor:
        """See ``ChainedDraft.run_layer``."""
        return self.layer.run(residual, inputs, rope, reach, mask)

    def leave(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """See ``ChainedDraft.leave``: both are of the module's own norm."""
        normed = self.norm(hidden)
        return normed, self.lm_head(normed)

    def sequence_hidden(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Run the module over whole sequences (training): [S, T, d] and tokens i+1 [S, T] -> [S, T, d].

        ``lm_head`` of output i are the logits of token i+2.
        """
        hidden: Tensor = self.norm(self.sequence_outputs(features, tokens)[0])
        return hidden


class MTPDraft(MTPModule):
    """An MTP module of this project, its layer Qwen3's block, as a draft of block size K."""

    config: MTPConfig

    def __init__(self, config: MTPConfig) -> None:
        super().__init__(config, Block(config.shape), Rotary(config.shape), config.block_size)
