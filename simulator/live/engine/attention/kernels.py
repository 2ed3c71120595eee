"""Attention kernels over ragged rows.

Kernels, all with the same arguments:

- ``sdpa``: rows of a request are gathered into a block [R, L], attention runs over the block with the
  keys read in place. Padding exists in the queries of attention alone, where it costs next to nothing as
  long as reading the keys dominates. Runs anywhere.
- ``varlen``: PyTorch's variable-length flash attention over paged keys, which splits long contexts over
  the whole device. CUDA, 16-bit weights, recent PyTorch (2.11 lacks what it needs).
- ``split``: Triton kernels of our own (``attention.split``) that let each request read its own context and no
  more, for targets and drafts. CUDA with Triton, any PyTorch that we support; sinks and caps too.
- ``explicit``: as ``sdpa`` with the softmax spelled out, for targets that cap attention logits or have
  attention sinks, which no fused kernel here computes.
- ``plain``: one softmax per row in float32, for tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.models.kv_cache import PAGE

Kernel = Callable[[Tensor, Tensor, Tensor, "RaggedRows", float, int | None], Tensor]
"""(query [N, heads, head_dim], keys and values [rows, capacity, kv_heads, head_dim], rows, scale, window)
-> [N, heads, head_dim]."""


def sdpa(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. Query heads that share a key head become extra query rows of it."""
    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    grouped, mask = _grouped(query, keys.shape[2], rows), _mask(query, keys.shape[2], rows, window)
    mixed = scaled_dot_product_attention(
        grouped,
        keys[mine, : rows.context].transpose(1, 2),
        values[mine, : rows.context].transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return _ungrouped(mixed, rows)


def explicit(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: RaggedRows,
    scale: float,
    window: int | None,
    *,
    cap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``sdpa`` with the softmax spelled out.

    cap: attention logits x become cap * tanh(x / cap), as in Gemma 2. sinks [heads]: one more logit per query
    head that takes part in the softmax and has no value, as in gpt-oss.
    """
    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    kv_heads = keys.shape[2]
    grouped, mask = _grouped(query, kv_heads, rows), _mask(query, kv_heads, rows, window)
    logits = grouped @ keys[mine, : rows.context].permute(0, 2, 3, 1) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logits = (logits + mask).float()
    if sinks is not None:
        # Row g * block + i of a group is query head g of that key head.
        sink = sinks.float().view(1, kv_heads, -1, 1).repeat_interleave(rows.block, dim=2)
        logits = torch.cat((logits, sink.expand(len(logits), -1, -1, -1)), dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : rows.context].to(query.dtype)
    return _ungrouped(weights @ values[mine, : rows.context].transpose(1, 2), rows)


def _grouped(query: Tensor, kv_heads: int, rows: RaggedRows) -> Tensor:
    """Group queries [N, heads, head_dim] by request and key head: [R, kv_heads, group * block, head_dim]."""
    block = query[rows.once("blocks", rows.blocks)]  # [R, block, heads, head_dim]
    return torch.unflatten(block, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _mask(query: Tensor, kv_heads: int, rows: RaggedRows, window: int | None) -> Tensor:
    """Return the mask of grouped queries, [R, 1, group * block, context]."""
    groups = query.shape[1] // kv_heads
    return rows.once(
        ("mask", window, query.dtype, groups),
        lambda: rows.mask(window, query.dtype)[:, None].repeat(1, 1, groups, 1),
    )


def _ungrouped(mixed: Tensor, rows: RaggedRows) -> Tensor:
    """Back from ``_grouped`` to one row each, [N, heads, head_dim]."""
    mixed = torch.unflatten(mixed, 2, (-1, rows.block)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return mixed[rows.request, rows.offset]


def varlen(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. A cache row is a run of pages; flash attention's causal mask ends at the last key."""
    from torch.nn.attention.varlen import varlen_attn  # not in every PyTorch that we support

    requests, pages = len(rows.counts), keys.shape[1] // PAGE
    device, first = query.device, rows.first_cache_row * pages
    paged = keys.shape[0] * pages, PAGE, *keys.shape[2:]
    table = rows.once(
        ("pages", pages),
        lambda: (
            first + torch.arange(requests * pages, dtype=torch.int32, device=device).view(requests, pages)
        ),
    )
    ends = rows.once("ends", lambda: torch.nn.functional.pad(rows.counts.cumsum(0), (1, 0)).to(torch.int32))
    used = rows.once("used", lambda: (rows.starts + rows.counts).to(torch.int32))
    attend: Any = varlen_attn
    mixed: Tensor = attend(
        query.contiguous(), keys.view(paged), values.view(paged), ends, None, rows.block, rows.context,
        scale=scale, window_size=(-1 if window is None else window - 1, 0), enable_gqa=True,
        seqused_k=used, block_table=table,
    )  # fmt: skip
    return mixed


def split(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: RaggedRows,
    scale: float,
    window: int | None,
    *,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``Kernel`` and ``engine.attention.split``; cap, sinks: as of ``explicit``."""
    from simulator.live.engine.attention.split import attend  # needs Triton

    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    return attend(
        query, keys[mine], values[mine], rows.once("first", lambda: rows.first_rows), rows.counts,
        rows.starts, rows.valid, block=rows.block, scale=scale, causal=True, window=window, cap=cap,
        sinks=sinks,
    )  # fmt: skip


def plain(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. The definition, row by row."""
    mixed = query.new_zeros((*query.shape[:2], values.shape[-1]))
    group = query.shape[1] // keys.shape[2]
    for row in torch.nonzero(rows.valid)[:, 0].tolist():
        request, end = int(rows.request[row]), int(rows.positions[row]) + 1
        first = 0 if window is None else max(0, end - window)
        mine = rows.first_cache_row + request
        key = keys[mine, first:end].repeat_interleave(group, dim=1).float()  # [seen, heads, head_dim]
        value = values[mine, first:end].repeat_interleave(group, dim=1).float()
        weights = torch.softmax(torch.einsum("hd,khd->hk", query[row].float(), key) * scale, dim=-1)
        mixed[row] = torch.einsum("hk,khd->hd", weights, value).to(query.dtype)
    return mixed


SELECTABLE: dict[str, Kernel] = {"sdpa": sdpa, "varlen": varlen, "split": split, "plain": plain}

KERNELS: dict[str, Kernel] = SELECTABLE | {"explicit": partial(explicit, cap=None)}


def has_paged_varlen() -> bool:
    """Tell whether this PyTorch's variable-length attention takes pages and grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"seqused_k", "block_table", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
