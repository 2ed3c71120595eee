"""The block of DeepSpec's drafts for Gemma 4: a full-attention layer of that model.

What differs from Qwen3's block: keys may be the values too, values are normed without weights, attention
logits are not scaled, a share of the head is rotated, four norms and a scalar a layer, a feed-forward gated
by GELU, embeddings scaled by the root of their width, and capped output logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from simulator.live.models.checkpoints import Fields
from simulator.live.models.layers import (
    MLP,
    Attention,
    BackboneConfig,
    Block,
    KeysValues,
    Mask,
    Reach,
    read_rope,
    rotate,
)


@dataclass(frozen=True, slots=True)
class GemmaTraits:
    """What a draft for Gemma 4 has beyond the shape of its layers."""

    attention_k_eq_v: bool
    final_logit_softcapping: float | None

    def embed_scale(self, shape: BackboneConfig, dtype: torch.dtype) -> float:
        """Return the root of the width, which embeddings are multiplied with, as ``dtype`` holds it."""
        return torch.tensor(shape.hidden_size**0.5, dtype=dtype, device="cpu").item()

    def capped(self, logits: Tensor) -> Tensor:
        """Bound logits by cap * tanh(logits / cap), where there is a cap."""
        cap = self.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def to_dict(self, shape: BackboneConfig) -> dict[str, Any]:
        """Return the layers' fields as DeepSpec writes them."""
        heads = "num_global_key_value_heads" if self.attention_k_eq_v else "num_key_value_heads"
        return {
            "attention_bias": shape.attention_bias,
            "attention_k_eq_v": self.attention_k_eq_v,
            "enable_moe_block": False,
            "final_logit_softcapping": self.final_logit_softcapping,
            "global_head_dim": shape.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": shape.hidden_size,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": shape.intermediate_size,
            "layer_types": ["full_attention"] * shape.num_hidden_layers,
            "max_position_embeddings": shape.max_position_embeddings,
            "model_type": "gemma4_text",
            "num_attention_heads": shape.num_attention_heads,
            "num_hidden_layers": shape.num_hidden_layers,
            heads: shape.num_key_value_heads,
            "rms_norm_eps": shape.rms_norm_eps,
            "rope_parameters": {"full_attention": dict(shape.rope)},
            "tie_word_embeddings": False,
            "vocab_size": shape.vocab_size,
        }


def read_gemma(fields: Fields) -> tuple[BackboneConfig, GemmaTraits]:
    """Read the layers of a draft for Gemma 4; raises ``BadInputError`` that names the field."""
    if fields.raw.get("model_type") not in ("gemma4_text", "gemma4_unified_text"):
        raise fields.error("model_type", "must be gemma4_text or gemma4_unified_text")
    for name, supported in (
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("enable_moe_block", False),
        ("hidden_size_per_layer_input", 0),
    ):
        fields.expect(name, supported)
    heads, shared = fields.integer("num_attention_heads", minimum=1), fields.flag("attention_k_eq_v", False)
    kv_heads = fields.integer("num_global_key_value_heads" if shared else "num_key_value_heads", minimum=1)
    if heads % kv_heads:
        raise fields.error("num_attention_heads", f"must be a multiple of the {kv_heads} key heads")
    shape = BackboneConfig(
        vocab_size=fields.integer("vocab_size", minimum=1),
        hidden_size=fields.integer("hidden_size", minimum=1),
        intermediate_size=fields.integer("intermediate_size", minimum=1),
        num_hidden_layers=fields.integer("num_hidden_layers", minimum=1),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=fields.integer("global_head_dim", minimum=2),
        max_position_embeddings=fields.integer("max_position_embeddings", 131_072, minimum=1),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_bias=fields.flag("attention_bias", False),
        rope=read_rope(fields, also=("proportional",)),
    )
    cap = fields.raw.get("final_logit_softcapping")
    return shape, GemmaTraits(shared, None if cap is None else fields.number("final_logit_softcapping"))


class _UnscaledQueries(nn.RMSNorm):
    """Norm of queries that undoes what attention scales them by: Gemma 4 does not scale."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., head_dim] -> the same, times the root of head_dim."""
        normed: Tensor = super().forward(x)
        return normed * math.sqrt(x.shape[-1])


class GemmaAttention(Attention):
    """Grouped-query attention with norms on queries, keys and values."""

    def __init__(self, config: BackboneConfig, traits: GemmaTraits, width: int | None = None) -> None:
        super().__init__(config, width)
        self.eps = config.rms_norm_eps
        self.q_norm = _UnscaledQueries(config.head_dim, eps=config.rms_norm_eps)
        self.keys_are_values = traits.attention_k_eq_v
        if traits.attention_k_eq_v:
            del self.v_proj

    def keys_values(self, hidden: Tensor, rope: KeysValues) -> KeysValues:
        """See ``Attention.keys_values``; keys that are values are normed twice, each in its way."""
        heads = (*hidden.shape[:-1], -1, self.head_dim)
        projected = self.k_proj(hidden).view(heads)
        values = projected if self.keys_are_values else self.v_proj(hidden).view(heads)
        return rotate(self.k_norm(projected), rope), rms_norm(values, (self.head_dim,), eps=self.eps)


class GemmaMLP(MLP):
    """GELU-gated feed-forward layer."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        gated = gelu(self.gate_proj(hidden), approximate="tanh") * self.up_proj(hidden)
        projected: Tensor = self.down_proj(gated)
        return projected


class GemmaBlock(Block):
    """Gemma 4's block: norms before and behind attention and feed-forward, and a scalar at the end."""

    layer_scalar: Tensor

    def __init__(self, config: BackboneConfig, traits: GemmaTraits, width: int | None = None) -> None:
        super().__init__(config)
        self.self_attn = GemmaAttention(config, traits, width)
        self.mlp = GemmaMLP(config)
        self.pre_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.register_buffer("layer_scalar", torch.ones(1))

    def run(self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask) -> Tensor:
        """See ``Block.run``."""
        keys, values = reach(*self.self_attn.keys_values(inputs, rope))
        attended = self.self_attn(inputs, rope, keys, values, mask)
        hidden = residual + self.post_attention_layernorm(attended)
        fed = self.mlp(self.pre_feedforward_layernorm(hidden))
        updated: Tensor = (hidden + self.post_feedforward_layernorm(fed)) * self.layer_scalar
        return updated
