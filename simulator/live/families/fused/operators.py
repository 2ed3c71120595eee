"""Norm, sum with norm, rotation and gate as one operation of PyTorch each.

On CUDA that is Triton's kernel, elsewhere the formula. As operations they are counted as launches
(``profiling.counted``) and seen by whatever watches a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

_custom_op: Any = torch.library.custom_op


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def _sum_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _rms_norm(total, weight, eps), total


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return silu(gate) * up


rms_norm: Any = _custom_op(
    "dspark::rms_norm", _rms_norm, mutates_args=(), schema="(Tensor x, Tensor weight, float eps) -> Tensor"
)
"""``weight`` times x over its root mean square, along the last dimension."""

sum_norm: Any = _custom_op(
    "dspark::sum_norm", _sum_norm, mutates_args=(),
    schema="(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
)  # fmt: skip
"""``rms_norm`` of x + residual, and the sum."""

rotate: Any = _custom_op(
    "dspark::rotate", _rotate, mutates_args=(), schema="(Tensor x, Tensor cos, Tensor sin) -> Tensor"
)
"""Heads [1, heads, N, head_dim] turned by cos and sin [1, N, head_dim], in the rotate-half convention."""

gated: Any = _custom_op("dspark::gated", _gated, mutates_args=(), schema="(Tensor gate, Tensor up) -> Tensor")
"""SiLU of ``gate`` times ``up``."""


@rms_norm.register_kernel("cuda")  # type: ignore[untyped-decorator]
def _rms_norm_cuda(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from simulator.live.families.fused import kernels  # needs Triton

    return kernels.rms_norm(x, weight, eps)


@sum_norm.register_kernel("cuda")  # type: ignore[untyped-decorator]
def _sum_norm_cuda(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from simulator.live.families.fused import kernels  # needs Triton

    return kernels.sum_norm(x, residual, weight, eps)


@rotate.register_kernel("cuda")  # type: ignore[untyped-decorator]
def _rotate_cuda(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from simulator.live.families.fused import kernels  # needs Triton

    return kernels.rotate(x, cos, sin)


@gated.register_kernel("cuda")  # type: ignore[untyped-decorator]
def _gated_cuda(gate: Tensor, up: Tensor) -> Tensor:
    from simulator.live.families.fused import kernels  # needs Triton

    return kernels.gated(gate, up)


for _operation, _formula in (
    (rms_norm, _rms_norm), (sum_norm, _sum_norm), (rotate, _rotate), (gated, _gated),
):  # fmt: skip
    _operation.register_fake(_formula)
