"""Latent attention: the one latent head gives what the heads of the definition give."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from simulator.live.families.latent import absorbed, expanded

HEADS, NOPE, ROPE, RANK, VALUE, ROWS = 3, 5, 2, 4, 6, 7


def test_absorbed_queries_and_expanded_mixtures_are_attention_over_all_heads() -> None:
    """Softmax of q_h . [K_h c, r] over rows, mixing V_h c: written out head by head and row by row."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(HEADS * (NOPE + VALUE), RANK, generator=draw)
    projection = nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False)
    projection.weight.data = weight
    module = SimpleNamespace(qk_nope_head_dim=NOPE, v_head_dim=VALUE, kv_b_proj=projection)
    latent, rotated = torch.randn(ROWS, RANK, generator=draw), torch.randn(ROWS, ROPE, generator=draw)
    query = torch.randn(ROWS, HEADS, NOPE + ROPE, generator=draw)
    of_head = weight.view(HEADS, NOPE + VALUE, RANK)
    key = torch.stack(
        [torch.cat((latent @ of_head[h, :NOPE].T, rotated), dim=1) for h in range(HEADS)], dim=1
    )
    wanted = torch.empty(ROWS, HEADS, VALUE)
    for h in range(HEADS):
        weights = torch.softmax(query[:, h] @ key[:, h].T, dim=-1)
        wanted[:, h] = weights @ (latent @ of_head[h, NOPE:].T)
    one_query, one_key = absorbed(module, query, key, latent)
    assert one_key.shape == (ROWS, 1, RANK + ROPE)
    weights = torch.softmax(torch.einsum("nhd,kd->nhk", one_query, one_key[:, 0]), dim=-1)
    mixed = torch.einsum("nhk,kr->nhr", weights, one_key[:, 0, :RANK])
    torch.testing.assert_close(expanded(module, mixed), wanted, atol=1e-5, rtol=1e-5)
