"""A draft layer with latent attention (DeepSeek-V2, section 2.1), over a cache of latents.

As ``families.latent`` has it: all heads share one key, [normed latent, rotated key], whose first part are the
values too; a head's own matrices meet the queries before the softmax and the mixture after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from simulator.live.families.latent import absorbed_queries, expanded
from simulator.live.models.layers import (
    BackboneConfig,
    DraftCache,
    KeysValues,
    Mask,
    OwnContext,
    Reach,
    rotate,
)

_INNER_EPS = 1e-6
"""Of the norms inside the attention: transformers leaves it at this, whatever config.json says."""


@dataclass(frozen=True, slots=True)
class LatentSizes:
    """Widths of a layer, in the field names of config.json. q_lora_rank: None for one query projection.

    interleaved: the numbers of a rotated pair stand side by side. scale: of the logits.
    """

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool
    interleaved: bool
    scale: float


class LatentAttention(nn.Module):
    """Attention of DeepSeek-V3, with its parameters' names."""

    def __init__(self, sizes: LatentSizes) -> None:
        super().__init__()
        d, heads, bias = sizes.hidden_size, sizes.num_attention_heads, sizes.attention_bias
        self.sizes, self.qk_nope_head_dim, self.v_head_dim = sizes, sizes.qk_nope_head_dim, sizes.v_head_dim
        asked = heads * (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim)
        if sizes.q_lora_rank is None:
            self.q_proj = nn.Linear(d, asked, bias=False)
        else:
            self.q_a_proj = nn.Linear(d, sizes.q_lora_rank, bias=bias)
            self.q_a_layernorm = nn.RMSNorm(sizes.q_lora_rank, eps=_INNER_EPS)
            self.q_b_proj = nn.Linear(sizes.q_lora_rank, asked, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d, sizes.kv_lora_rank + sizes.qk_rope_head_dim, bias=bias)
        self.kv_a_layernorm = nn.RMSNorm(sizes.kv_lora_rank, eps=_INNER_EPS)
        self.kv_b_proj = nn.Linear(
            sizes.kv_lora_rank, heads * (sizes.qk_nope_head_dim + sizes.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(heads * sizes.v_head_dim, d, bias=bias)

    def keys_values(self, hidden: Tensor, rope: KeysValues) -> KeysValues:
        """[..., d] -> the one key [..., 1, rank + rope] and value [..., 1, rank] of each position."""
        sizes = self.sizes
        latent, turning = torch.split(
            self.kv_a_proj_with_mqa(hidden), [sizes.kv_lora_rank, sizes.qk_rope_head_dim], dim=-1
        )
        normed = self.kv_a_layernorm(latent)[..., None, :]
        keys = torch.cat((normed, self._turned(turning[..., None, :], rope)), dim=-1)
        return keys, keys[..., : sizes.kv_lora_rank]

    def forward(self, hidden: Tensor, rope: KeysValues, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """Attend from ``hidden`` [R, Q, d] to keys [R, 1, K, rank + rope] and values [R, 1, K, rank].

        A mask is [R, Q or 1, K]. Heads become query rows, as in ``layers.Attention``.
        """
        if isinstance(mask, OwnContext):
            raise TypeError("the split kernel takes keys and values of one width, and latents have two")
        heads = self.sizes.num_attention_heads
        queries = self._queries(hidden, rope).transpose(1, 2).flatten(1, 2)[:, None]
        if mask is not None:
            mask = mask[:, None] if mask.shape[1] == 1 else mask[:, None].repeat(1, 1, heads, 1)
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self.sizes.scale)
        by_head = torch.unflatten(mixed[:, 0], 1, (heads, -1)).transpose(1, 2)
        projected: Tensor = self.o_proj(expanded(self, by_head).flatten(2))
        return projected

    def _queries(self, hidden: Tensor, rope: KeysValues) -> Tensor:
        """[R, Q, d] -> queries of the one key, [R, Q, heads, rank + rope]."""
        sizes = self.sizes
        if sizes.q_lora_rank is None:
            asked = self.q_proj(hidden)
        else:
            asked = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        asked = torch.unflatten(asked, -1, (sizes.num_attention_heads, -1))
        still, turning = torch.split(asked, [sizes.qk_nope_head_dim, sizes.qk_rope_head_dim], dim=-1)
        return absorbed_queries(self, torch.cat((still, self._turned(turning, rope)), dim=-1))

    def _turned(self, x: Tensor, rope: KeysValues) -> Tensor:
        """Rotate [..., heads, rope]; interleaved pairs are put apart first, in queries and keys alike."""
        return rotate(torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1) if self.sizes.interleaved else x, rope)


class LatentBlock(nn.Module):
    """One pre-norm block: latent attention, and whatever feed-forward layer it is given."""

    def __init__(self, shape: BackboneConfig, sizes: LatentSizes, feed_forward: nn.Module) -> None:
        super().__init__()
        self.self_attn = LatentAttention(sizes)
        self.mlp = feed_forward
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def run(self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask) -> Tensor:
        """See ``layers.Block.run``."""
        keys, values = reach(*self.self_attn.keys_values(inputs, rope))
        hidden = residual + self.self_attn(inputs, rope, keys, values, mask)
        updated: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return updated


class LatentCache(DraftCache):
    """A draft's cache whose values are the first ``rank`` numbers of its keys."""

    def __init__(
        self,
        config: BackboneConfig,
        rank: int,
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, rows, capacity, dtype=dtype, device=device)
        self.values = self.keys[..., :rank]

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """See ``DraftCache.write``; values are written with their keys."""
        self.keys[layer][rows, :, positions] = keys
