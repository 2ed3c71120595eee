"""MTP-1: one extra layer that predicts the token after the next (DeepSeek-V3 technical report, section 2.2).

The module joins the embedding of token i+1 with the target's final-normed state at i, runs one causal
transformer block and predicts token i+2 through the target's own head. As a draft it has gamma 1: the
anchor is token i+1, whose state the target does not have yet, and one token is proposed behind it.

It has no confidence head. Production baselines verify its one token always; what a scheduler sees is
a survival of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.models import sampling
from simulator.live.models.checkpoints import Fields, content_digest
from simulator.live.models.draft import PackedBlocks, Proposal
from simulator.live.models.kv_cache import DraftContext
from simulator.live.models.layers import BackboneConfig, Block, DraftCache, KeysValues, Rotary

ARCHITECTURE = "MTPDraftModel"


@dataclass(frozen=True, slots=True)
class MTPConfig:
    """An MTP-1 module, in the field names of its config.json."""

    shape: BackboneConfig
    num_target_layers: int

    @classmethod
    def from_fields(cls, fields: Fields) -> MTPConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        shape = BackboneConfig.from_fields(fields)
        if shape.num_hidden_layers != 1:
            raise fields.error("num_hidden_layers", "an MTP-1 module has exactly one layer")
        return cls(shape, fields.integer("num_target_layers", minimum=1))

    def to_dict(self) -> dict[str, Any]:
        """config.json as ``load_draft`` reads it."""
        return self.shape.to_dict() | {
            "architectures": [ARCHITECTURE],
            "num_target_layers": self.num_target_layers,
        }


class MTPDraft(nn.Module):
    """The MTP-1 module as a draft of block size 1."""

    gamma = 1
    has_confidence = False

    def __init__(self, config: MTPConfig) -> None:
        super().__init__()
        shape, d = config.shape, config.shape.hidden_size
        self.config = config
        self.source: str | None = None
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        self.enorm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.hnorm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.layer = Block(shape)
        self.norm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.lm_head = nn.Linear(d, shape.vocab_size, bias=False)
        self.rotary = Rotary(shape)

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the one layer."""
        return self.config.shape

    @property
    def digest(self) -> str:
        """See ``Draft.digest``."""
        return content_digest(self.config.to_dict(), self.state_dict())

    @property
    def num_target_layers(self) -> int:
        """Decoder layers of the target it was trained with."""
        return self.config.num_target_layers

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """The target's final norm, which comes after its last layer."""
        return (self.num_target_layers,)

    def new_cache(self, rows: int, capacity: int) -> DraftCache:
        """See ``Draft.new_cache``."""
        weight = self.eh_proj.weight
        return DraftCache(self.shape, rows, capacity, dtype=weight.dtype, device=weight.device)

    def propose(
        self,
        features: Tensor,
        tokens: Tensor,
        counts: Tensor,
        cache: DraftContext,
        *,
        temperature: float = 0.0,
        uniforms: Tensor | None = None,
    ) -> Proposal:
        """See ``Draft.propose``.

        Every new position leaves its keys and values behind, but only the anchor's is asked for a
        prediction, so there is one query row per request however many positions are new.
        """
        joined = self.join(features, tokens)
        rows, positions = cache.claim(counts)
        rope = self.rotary(positions, joined.dtype)
        keys_values = self.layer.self_attn.keys_values(self.layer.input_layernorm(joined), rope)
        cache.write(0, rows, positions, *keys_values)
        last = counts.cumsum(0).to(joined.device) - 1
        anchor_rope = (rope[0][last][:, None], rope[1][last][:, None])
        # The anchor's own keys and values are in the cache already.
        hidden = self.norm(
            self.layer(joined[last][:, None], anchor_rope, lambda *_: cache.read(0), cache.mask())
        )
        logits = self.lm_head(hidden)
        drafted = sampling.choose(logits, temperature, uniforms)
        q_draft = None if sampling.is_greedy(temperature) else sampling.distribution(logits, temperature)
        return Proposal(drafted, logits, None, q_draft, hidden, joined)

    def join(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Combine the state at i and token i+1 into the layer's input: [..., d], [...] -> [..., d]."""
        pair = torch.cat((self.enorm(self.embed_tokens(tokens)), self.hnorm(features)), dim=-1)
        joined: Tensor = self.eh_proj(pair)
        return joined

    def sequence_hidden(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Run the module over whole sequences (training): [S, T, d] and tokens i+1 [S, T] -> [S, T, d].

        ``lm_head`` of output i are the logits of token i+2.
        """
        joined = self.join(features, tokens)
        steps = torch.arange(joined.shape[1], device=joined.device)
        causal = (steps <= steps[:, None])[None]

        def reach(keys: Tensor, values: Tensor) -> KeysValues:
            return keys.transpose(1, 2), values.transpose(1, 2)

        hidden: Tensor = self.norm(self.layer(joined, self.rotary(steps, joined.dtype), reach, causal))
        return hidden

    def packed_blocks(
        self, features: Tensor, tokens: Tensor, anchors: Tensor, *, follow: bool
    ) -> PackedBlocks:
        """See ``Draft.packed_blocks``; a block of one token follows the anchor alone."""
        known = features.shape[1]
        # Output i joins the state at i with token i + 1, which is the anchor.
        hidden = self.sequence_hidden(features, tokens[:, 1 : known + 1])
        sequences = torch.arange(len(tokens), device=tokens.device)[:, None]
        logits = self.lm_head(hidden[sequences, anchors - 1][:, :, None])
        return PackedBlocks(logits.argmax(dim=-1), logits, None)
