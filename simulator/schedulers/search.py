"""The two halves of confidence scheduling: how many draft tokens to admit, and which.

Everything is written once against the array-API namespace of its input, and every sum is over
integers (survival on a grid of 2**-30), so that NumPy, torch on a CPU and torch on a GPU return the
same lengths bit for bit: integer addition has no order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

GRID = 2**30
"""Survival 1.0 in grid units; the finest power of two that fits int32 and keeps float32 above 2**-7 exact."""

Array = Any  # an array of any array-API namespace: NumPy or torch


def on_grid(survival: Array) -> Array:
    """Survival [R, gamma] in [0, 1] as int32 in 0..GRID."""
    xp = array_namespace(survival)
    return xp.astype(survival * GRID, xp.int32)


def throughput_of_budget(grid: Array, base_tokens: int, step_time_s: NDArray[np.float64]) -> Array:
    """Theta(K) = tau(K) / T(B0 + K) for every draft budget K = 0..R*gamma (paper section 3.2.2).

    grid: int32 [R, gamma]. step_time_s: [R*gamma + 1], from the batch without drafts upwards.
    ``base_tokens`` is R: each request commits its bonus token whatever is verified.
    Returns float64 [R*gamma + 1], in tokens per second and grid units.
    """
    xp = array_namespace(grid)
    admitted = xp.sort(-xp.reshape(grid, (-1,)))
    tau = xp.empty(admitted.shape[0] + 1, dtype=xp.int64, device=device(grid))
    tau[0] = base_tokens * GRID
    tau[1:] = base_tokens * GRID - xp.cumulative_sum(admitted, dtype=xp.int64)
    return xp.astype(tau, xp.float64) / xp.asarray(step_time_s, device=device(grid))


def first_descent(theta: Array) -> int:
    """Budget of Algorithm 1: admit while Theta strictly improves, stop at the first that does not."""
    xp = array_namespace(theta)
    improves = xp.astype(theta[1:] > theta[:-1], xp.int8)
    stop = int(xp.argmin(improves)) if improves.shape[0] else 0
    return int(improves.shape[0]) if improves.shape[0] and int(improves[stop]) else stop


def global_maximum(theta: Array) -> int:
    """The budget with the largest Theta anywhere, the smallest such budget on ties."""
    return int(array_namespace(theta).argmax(theta))


def admit(grid: Array, budget: int) -> Array:
    """Verification lengths [R] of the ``budget`` candidates with the highest survival.

    Ties go to the smaller position, then to the smaller request. Survival never rises along a
    block, so what is admitted is a prefix of every block.
    """
    xp = array_namespace(grid)
    requests, gamma = grid.shape
    if budget <= 0:
        return xp.zeros(requests, dtype=xp.int64, device=device(grid))
    if budget >= requests * gamma:
        return xp.full(requests, gamma, dtype=xp.int64, device=device(grid))
    ordered = xp.sort(-xp.reshape(grid, (-1,)))
    threshold = -ordered[budget - 1]
    if isinstance(grid, np.ndarray) and ordered[budget] != ordered[budget - 1]:
        return np.add.reduce(grid >= threshold, axis=1, dtype=np.int64)  # no tie to break
    above = grid > threshold
    tied = grid == threshold
    # Tied candidates in order of position, then request: number them down the columns.
    order = xp.cumulative_sum(xp.astype(xp.reshape(xp.permute_dims(tied, (1, 0)), (-1,)), xp.int64))
    rank = xp.permute_dims(xp.reshape(order, (gamma, requests)), (1, 0))
    room = budget - xp.sum(xp.astype(above, xp.int64))
    return xp.sum(xp.astype(above | (tied & (rank <= room)), xp.int64), axis=1)
