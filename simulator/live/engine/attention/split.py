"""Attention in which each request reads its own context and no more: two Triton kernels.

A program of the first kernel takes a tile of one request's query rows, all heads that share a key head, and
one stretch of that request's context; the second kernel combines the stretches (split-KV, as in flash
decoding). How many stretches there are follows from sizes that the host knows, so that a pass can be recorded
as a graph; where each ends follows from lengths on the device. A request with a short context therefore ends
early, whatever the longest of the batch is.

Importing this module needs Triton, which comes with CUDA builds of PyTorch. ``TRITON_INTERPRET=1``, set
before, runs the kernels on a CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_KEYS = 64
"""Positions that a program reads at a time. A choice; no GPU has been asked."""

_ROWS = 64
"""Query rows of a program at most, heads of a group counted singly. A choice."""

_STRETCHES = 32
"""Stretches of a context at most. A choice: beyond it, combining costs more than waiting saves."""

_INTERPRETED = 8
"""Programs that count as filling a device without multiprocessors, as in the interpreter."""


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    first_rows: Tensor,
    counts: Tensor,
    starts: Tensor,
    valid: Tensor | None,
    *,
    block: int,
    scale: float,
    causal: bool,
    window: int | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of query rows [N, heads, head_dim] over keys and values [R, capacity, kv_heads, head_dim].

    Request r has rows first_rows[r] .. first_rows[r] + counts[r] - 1, at positions from starts[r] on: int64
    [R] each. causal: a row sees positions up to its own, the last ``window`` of them; otherwise each sees all
    starts[r] + counts[r]. valid: bool [N]; rows without are zero. block: at least the largest count. cap,
    sinks: as of ``ragged.explicit``. Returns [N, heads, head_dim].
    """
    rows, heads, head_dim = query.shape
    requests, _, kv_heads, _ = keys.shape
    group = heads // kv_heads
    tile = min(_ROWS, max(16, triton.next_power_of_2(block * group)))  # tl.dot takes 16 rows and more
    tiles = triton.cdiv(block * group, tile)
    stretches = _stretches(requests * tiles * kv_heads, query.device)
    parts = torch.empty((stretches, rows, heads, head_dim), dtype=torch.float32, device=query.device)
    sums = torch.empty((stretches, rows, heads), dtype=torch.float32, device=query.device)
    width = triton.next_power_of_2(head_dim)
    _stretch[(requests * tiles, kv_heads, stretches)](
        query, keys, values, first_rows, counts, starts, parts, sums,
        float(scale), window or 0, cap or 1.0, tiles,
        *query.stride()[:2], *keys.stride()[:3], *values.stride()[:3], *parts.stride()[:3],
        *sums.stride()[:2], GROUP=group, HEAD_DIM=head_dim, WIDTH=width, TILE=tile, KEYS=_KEYS,
        CAUSAL=causal, WINDOWED=window is not None, CAPPED=cap is not None,
    )  # fmt: skip
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    _combine[(rows, heads)](
        parts, sums, mixed, valid if valid is not None else counts, sinks if sinks is not None else sums,
        *parts.stride()[:3], *sums.stride()[:2], *mixed.stride()[:2],
        STRETCHES=stretches, PADDED=triton.next_power_of_2(stretches), HEAD_DIM=head_dim, WIDTH=width,
        MASKED=valid is not None, SINKS=sinks is not None,
    )  # fmt: skip
    return mixed


def _stretches(programs: int, device: torch.device) -> int:
    """Return into how many stretches contexts are split so that the device is filled about twice."""
    filled = _INTERPRETED
    if device.type == "cuda":
        filled = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return min(_STRETCHES, int(triton.next_power_of_2(triton.cdiv(filled, programs))))


@triton.jit
def _stretch(
    query, keys, values, first_rows, counts, starts, parts, sums, scale, window, cap, tiles,
    q_row, q_head, k_request, k_position, k_head, v_request, v_position, v_head, p_stretch, p_row, p_head,
    s_stretch, s_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One tile of a request's rows over one stretch of its context: what is mixed, and its log-sum."""
    request = (tl.program_id(0) // tiles).to(tl.int64)
    tile, kv_head, stretch = tl.program_id(0) % tiles, tl.program_id(1), tl.program_id(2)
    count, start = tl.load(counts + request), tl.load(starts + request)
    if tile * TILE < count * GROUP:
        # A tile's rows are (row of the request, head of the group), the head running fastest.
        flat = tile * TILE + tl.arange(0, TILE)
        rank = flat // GROUP
        mine = rank < count
        own = start + rank
        row = tl.load(first_rows + request) + rank
        head = kv_head * GROUP + flat % GROUP
        column = tl.arange(0, WIDTH)
        inside = column < HEAD_DIM
        asked = tl.load(
            query + row[:, None] * q_row + head[:, None] * q_head + column[None, :],
            mask=mine[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        end = start + count
        begin = end * 0
        if CAUSAL:
            end = tl.minimum(end, start + (tile * TILE + TILE - 1) // GROUP + 1)
        if WINDOWED:
            begin = tl.maximum(start + tile * TILE // GROUP - window + 1, 0) // KEYS * KEYS
        each = tl.cdiv(tl.cdiv(end - begin, KEYS), tl.num_programs(2)) * KEYS
        begin = begin + stretch * each
        end = tl.minimum(end, begin + each)
        largest = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        mixed = tl.zeros([TILE, WIDTH], tl.float32)
        for at in range(begin, end, KEYS):
            position = at + tl.arange(0, KEYS)
            there = position < end
            loaded = there[:, None] & inside[None, :]
            key = tl.load(
                keys + request * k_request + kv_head * k_head + position[:, None] * k_position
                + column[None, :],
                mask=loaded, other=0.0,
            )  # fmt: skip
            logits = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
            if CAPPED:
                logits = cap * (2.0 * tl.sigmoid(2.0 * logits / cap) - 1.0)  # tanh
            seen = there[None, :] & mine[:, None]
            if CAUSAL:
                seen = seen & (position[None, :] <= own[:, None])
            if WINDOWED:
                seen = seen & (position[None, :] > own[:, None] - window)
            logits = tl.where(seen, logits, float("-inf"))
            larger = tl.maximum(largest, tl.max(logits, 1))
            # A row that has seen nothing yet keeps -inf, of which no difference may be taken.
            base = tl.where(larger == float("-inf"), 0.0, larger)
            weights = tl.exp(logits - base[:, None])
            fading = tl.exp(largest - base)
            value = tl.load(
                values + request * v_request + kv_head * v_head + position[:, None] * v_position
                + column[None, :],
                mask=loaded, other=0.0,
            )  # fmt: skip
            mixed = mixed * fading[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            total = total * fading + tl.sum(weights, 1)
            largest = larger
        some = total > 0
        shared = mixed / tl.where(some, total, 1.0)[:, None]
        tl.store(
            parts + stretch * p_stretch + row[:, None] * p_row + head[:, None] * p_head + column[None, :],
            shared, mask=mine[:, None] & inside[None, :],
        )  # fmt: skip
        logsum = tl.where(some, largest + tl.log(tl.where(some, total, 1.0)), float("-inf"))
        tl.store(sums + stretch * s_stretch + row * s_row + head, logsum, mask=mine)


@triton.jit
def _combine(
    parts, sums, mixed, valid, sinks, p_stretch, p_row, p_head, s_stretch, s_row, m_row, m_head,
    STRETCHES: tl.constexpr, PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Weigh the stretches of one row and head by their log-sums; rows that are not valid are zero."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    stretch, column = tl.arange(0, PADDED), tl.arange(0, WIDTH)
    inside = column < HEAD_DIM
    filled = STRETCHES
    if MASKED:
        filled = tl.where(tl.load(valid + row) != 0, STRETCHES, 0)
    there = stretch < filled
    logsum = tl.load(sums + stretch * s_stretch + row * s_row + head, mask=there, other=float("-inf"))
    largest = tl.max(logsum, 0)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        largest = tl.maximum(largest, sink)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    weights = tl.exp(logsum - base)
    total = tl.sum(weights, 0)
    if SINKS:
        total += tl.exp(sink - base)
    part = tl.load(
        parts + stretch[:, None] * p_stretch + row * p_row + head * p_head + column[None, :],
        mask=there[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    shared = tl.sum(part * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(mixed + row * m_row + head * m_head + column, shared.to(mixed.dtype.element_ty), mask=inside)
