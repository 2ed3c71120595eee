"""Triton kernels for what lies between the products of a layer: sum, norm, rotation and gate.

Each rounds where transformers' own code rounds, in the type of its input. Importing this module needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 1024
"""Numbers that a program of the gate takes. A choice; no GPU has been asked."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of the last dimension, times ``weight``."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    normed = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _norm[(len(rows),)](
        rows, weight, normed, rows.stride(0), rows.stride(1), float(eps), WIDTH=width,
        PADDED=triton.next_power_of_2(width),
    )  # fmt: skip
    return normed.view(x.shape)


def sum_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Norm of x + residual along the last dimension, times ``weight``; and the sum itself."""
    width = x.shape[-1]
    rows, others = x.reshape(-1, width), residual.reshape(-1, width)
    normed, total = (torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(2))
    _sum_norm[(len(rows),)](
        rows, others, weight, normed, total, rows.stride(0), rows.stride(1), others.stride(0),
        others.stride(1), float(eps), WIDTH=width, PADDED=triton.next_power_of_2(width),
    )  # fmt: skip
    return normed.view(x.shape), total.view(x.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads [1, heads, N, head_dim] by the halves of cos and sin [1, N, head_dim]."""
    _, heads, rows, head_dim = x.shape
    turned = torch.empty((1, rows, heads, head_dim), dtype=x.dtype, device=x.device).transpose(1, 2)
    half = head_dim // 2
    _turn[(rows, heads)](
        x, cos, sin, turned, *x.stride()[1:], *cos.stride()[1:], *sin.stride()[1:], *turned.stride()[1:],
        HALF=half, PADDED=triton.next_power_of_2(half),
    )  # fmt: skip
    return turned


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of ``gate`` times ``up``, element by element."""
    gate, up = gate.contiguous(), up.contiguous()
    product = torch.empty_like(gate)
    _gate[(triton.cdiv(gate.numel(), _ELEMENTS),)](gate, up, product, gate.numel(), BLOCK=_ELEMENTS)
    return product


@triton.jit
def _norm(
    x, weight, normed, x_row, x_column, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One row: x / rms(x) in float32, rounded, times the weight."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < WIDTH
    narrow = tl.load(x + row * x_row + column * x_column, mask=inside, other=0.0)
    wide = narrow.to(tl.float32)
    scaled = wide * (1.0 / tl.sqrt(tl.sum(wide * wide, 0) / WIDTH + eps))
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    rounded = scaled.to(narrow.dtype).to(tl.float32)
    tl.store(normed + row * WIDTH + column, (rounded * scale).to(narrow.dtype), mask=inside)


@triton.jit
def _sum_norm(
    x, residual, weight, normed, total, x_row, x_column, r_row, r_column, eps, WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """One row: x + residual rounded, and its norm as in ``_norm``."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < WIDTH
    one = tl.load(x + row * x_row + column * x_column, mask=inside, other=0.0)
    other = tl.load(residual + row * r_row + column * r_column, mask=inside, other=0.0)
    narrow = (one.to(tl.float32) + other.to(tl.float32)).to(one.dtype)
    tl.store(total + row * WIDTH + column, narrow, mask=inside)
    wide = narrow.to(tl.float32)
    scaled = wide * (1.0 / tl.sqrt(tl.sum(wide * wide, 0) / WIDTH + eps))
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    rounded = scaled.to(narrow.dtype).to(tl.float32)
    tl.store(normed + row * WIDTH + column, (rounded * scale).to(narrow.dtype), mask=inside)


@triton.jit
def _turn(
    x, cos, sin, turned, x_head, x_row, x_column, c_row, c_column, s_row, s_column, t_head, t_row, t_column,
    HALF: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """One head of one row: (a, b) -> (a cos - b sin, b cos + a sin), products rounded before their sum."""
    row, head, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, PADDED)
    inside = column < HALF
    here = x + head * x_head + row * x_row
    first = tl.load(here + column * x_column, mask=inside, other=0.0)
    second = tl.load(here + (column + HALF) * x_column, mask=inside, other=0.0)
    there = turned + head * t_head + row * t_row
    for part in tl.static_range(2):
        at = column + part * HALF
        c = tl.load(cos + row * c_row + at * c_column, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + row * s_row + at * s_column, mask=inside, other=0.0).to(tl.float32)
        if part == 0:
            own, other = first.to(tl.float32), -second.to(tl.float32)
        else:
            own, other = second.to(tl.float32), first.to(tl.float32)
        total = (own * c).to(first.dtype).to(tl.float32) + (other * s).to(first.dtype).to(tl.float32)
        tl.store(there + at * t_column, total.to(first.dtype), mask=inside)


@triton.jit
def _gate(gate, up, product, count, BLOCK: tl.constexpr):
    """SiLU in float32, rounded, times the other."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    narrow = tl.load(gate + at, mask=inside, other=0.0)
    wide = narrow.to(tl.float32)
    opened = (wide * tl.sigmoid(wide)).to(narrow.dtype).to(tl.float32)
    other = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(product + at, (opened * other).to(narrow.dtype), mask=inside)
