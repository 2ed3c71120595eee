"""The layer of DeepSeek-V4's draft: several residual streams, and attention with one key for all heads.

A layer reads one mixture of its streams and adds its output to all of them, by weights computed from the
streams themselves (manifold-constrained hyper-connections, DeepSeek-V4 technical report, section 2.2).
Attention is that of V4's layers which compress nothing: the one key of a position is its value too, the
trailing part of a head is rotated in pairs of neighbours and rotated back in the mixture, each head has a
sink, and the output matrix is low-rank in groups of heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from simulator.live.models.layers import KeysValues, Mask, OwnContext, Reach


@dataclass(frozen=True, slots=True)
class StreamSizes:
    """Widths of a layer, in the field names of DeepSeek-V4's config.json."""

    hidden_size: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float


class Collapse(nn.Module):
    """What makes one state of the streams: weights from the streams, flat, normed and projected."""

    def __init__(self, sizes: StreamSizes, weights: int | None = None, scales: int = 1) -> None:
        super().__init__()
        streams = sizes.hc_mult
        self.sizes = sizes
        self.fn = nn.Parameter(torch.empty(weights or streams, streams * sizes.hidden_size))
        self.base = nn.Parameter(torch.empty(weights or streams))
        self.scale = nn.Parameter(torch.empty(scales))

    def projected(self, streams: Tensor) -> Tensor:
        """Streams [..., n, d] -> [..., weights] in float32."""
        flat = streams.flatten(-2).float()
        return linear(rms_norm(flat, flat.shape[-1:], eps=self.sizes.rms_norm_eps), self.fn.float())

    def forward(self, streams: Tensor) -> Tensor:
        """Streams [..., n, d] -> [..., d]."""
        return self.mixed(streams, self.projected(streams) * self.scale.float() + self.base.float())

    def mixed(self, streams: Tensor, logits: Tensor) -> Tensor:
        """Sum of the streams [..., n, d], each times the sigmoid of its logit [..., n]."""
        weights = torch.sigmoid(logits) + self.sizes.hc_eps
        return (weights[..., None] * streams).sum(dim=-2).to(streams.dtype)


class HyperConnection(Collapse):
    """What stands in place of a residual sum: a sublayer's input, and how its output joins the streams."""

    def __init__(self, sizes: StreamSizes) -> None:
        super().__init__(sizes, (2 + sizes.hc_mult) * sizes.hc_mult, scales=3)

    def enter(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [..., n, d] -> the sublayer's input [..., d], and what ``leave`` needs."""
        n = self.sizes.hc_mult
        logits = [
            part * scale + base
            for part, scale, base in zip(
                torch.split(self.projected(streams), [n, n, n * n], dim=-1),
                self.scale.float(),
                torch.split(self.base.float(), [n, n, n * n]),
                strict=True,
            )
        ]
        shares = self._doubly_stochastic(torch.unflatten(logits[2], -1, (n, n)))
        return self.mixed(streams, logits[0]), 2 * torch.sigmoid(logits[1]), shares

    def leave(self, streams: Tensor, output: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
        """Stream j becomes weights[j] * output + sum over i of shares[i, j] * streams[i]."""
        kept = shares.to(streams.dtype).transpose(-1, -2) @ streams
        return weights.to(streams.dtype)[..., None] * output[..., None, :] + kept

    def _doubly_stochastic(self, logits: Tensor) -> Tensor:
        """Positive matrices [..., n, n] whose rows and columns sum to 1 (Sinkhorn and Knopp)."""
        eps = self.sizes.hc_eps
        shares = torch.softmax(logits, dim=-1) + eps
        shares = shares / (shares.sum(dim=-2, keepdim=True) + eps)
        for _ in range(self.sizes.hc_sinkhorn_iters - 1):
            shares = shares / (shares.sum(dim=-1, keepdim=True) + eps)
            shares = shares / (shares.sum(dim=-2, keepdim=True) + eps)
        return shares


def rotate_neighbours(x: Tensor, rope: KeysValues, *, back: bool = False) -> Tensor:
    """Turn the trailing numbers of [..., heads, head_dim], neighbours as pairs, by ``Rotary``'s angles."""
    cos, sin = rope
    width, half = cos.shape[-1], cos.shape[-1] // 2
    still, first, second = x[..., :-width], x[..., -width::2], x[..., 1 - width :: 2]
    cos, sin = cos[..., :half], -sin[..., :half] if back else sin[..., :half]
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return torch.cat((still, turned.flatten(-2)), dim=-1)


class SharedKeyAttention(nn.Module):
    """Attention of a V4 layer that compresses nothing, with the names that transformers gives its parts."""

    def __init__(self, sizes: StreamSizes) -> None:
        super().__init__()
        d, heads, eps = sizes.hidden_size, sizes.num_attention_heads, sizes.rms_norm_eps
        self.sizes, self.asked = sizes, heads * sizes.head_dim
        self.q_a_proj = nn.Linear(d, sizes.q_lora_rank, bias=False)
        self.q_a_norm = nn.RMSNorm(sizes.q_lora_rank, eps=eps)
        self.q_b_proj = nn.Linear(sizes.q_lora_rank, self.asked, bias=False)
        self.kv_proj = nn.Linear(d, sizes.head_dim, bias=False)
        self.kv_norm = nn.RMSNorm(sizes.head_dim, eps=eps)
        self.o_a_proj = nn.Linear(
            self.asked // sizes.o_groups, sizes.o_groups * sizes.o_lora_rank, bias=False
        )
        self.o_b_proj = nn.Linear(sizes.o_groups * sizes.o_lora_rank, d, bias=False)
        self.sinks = nn.Parameter(torch.empty(heads))

    def keys_values(self, hidden: Tensor, rope: KeysValues) -> KeysValues:
        """[..., d] -> the one key of each position [..., 1, head_dim], which is its value too."""
        keys = rotate_neighbours(self.kv_norm(self.kv_proj(hidden))[..., None, :], rope)
        return keys, keys

    def forward(self, hidden: Tensor, rope: KeysValues, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """Attend from ``hidden`` [R, Q, d] to keys and values [R, 1, K, head_dim]; mask: [R, Q or 1, K]."""
        if isinstance(mask, OwnContext):
            raise TypeError("a block of this draft sees a window, which is read by itself")
        width = self.sizes.head_dim
        asked = torch.unflatten(self.q_b_proj(self.q_a_norm(self.q_a_proj(hidden))), -1, (-1, width))
        asked = rotate_neighbours(rms_norm(asked, (width,), eps=self.sizes.rms_norm_eps), rope)
        logits = torch.einsum("rqhd,rkd->rhqk", asked, keys[:, 0]).float() * width**-0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], -torch.inf)
        sinks = self.sinks.float()[:, None, None].expand(*logits.shape[:-1], 1)
        weights = torch.softmax(torch.cat((logits, sinks), dim=-1), dim=-1)[..., :-1].to(values.dtype)
        mixed = rotate_neighbours(torch.einsum("rhqk,rkd->rqhd", weights, values[:, 0]), rope, back=True)
        return self._projected(mixed.flatten(2))

    def _projected(self, mixed: Tensor) -> Tensor:
        """All heads' mixtures [R, Q, heads * head_dim] -> [R, Q, d], first each group of heads by itself."""
        groups = self.sizes.o_groups
        by_group = torch.unflatten(mixed, -1, (groups, -1))
        narrow = torch.einsum(
            "rqgi,goi->rqgo", by_group, torch.unflatten(self.o_a_proj.weight, 0, (groups, -1))
        )
        projected: Tensor = self.o_b_proj(narrow.flatten(2))
        return projected


class StreamBlock(nn.Module):
    """One layer over streams [R, Q, n, d]: attention, and whatever feed-forward layer it is given."""

    def __init__(self, sizes: StreamSizes, feed_forward: nn.Module) -> None:
        super().__init__()
        self.self_attn = SharedKeyAttention(sizes)
        self.mlp = feed_forward
        self.input_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.attn_hc, self.ffn_hc = HyperConnection(sizes), HyperConnection(sizes)

    def forward(self, streams: Tensor, rope: KeysValues, reach: Reach, mask: Mask) -> Tensor:
        """See ``layers.Block.forward``."""
        entered, *joining = self.attn_hc.enter(streams)
        inputs = self.input_layernorm(entered)
        keys, values = reach(*self.self_attn.keys_values(inputs, rope))
        streams = self.attn_hc.leave(streams, self.self_attn(inputs, rope, keys, values, mask), *joining)
        entered, *joining = self.ffn_hc.enter(streams)
        return self.ffn_hc.leave(streams, self.mlp(self.post_attention_layernorm(entered)), *joining)
