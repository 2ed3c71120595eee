"""The two halves of confidence scheduling: how many draft tokens to admit, and which.

Everything is written once against the array-API namespace of its input, and every sum is over
integers (survival on a grid of 2**-30), so that NumPy, torch on a CPU and torch on a GPU return the
same lengths bit for bit: integer addition has no order. A few NumPy branches spell the same operation
in its own words, because the generic wrappers would be a third of a simulated step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

GRID = 2**30
"""Survival 1.0 in grid units; the finest power of two that fits int32 and keeps float32 above 2**-7 exact."""

TIE = 2.0**-42
"""Throughputs this close, relatively, are a tie: float64 division rounds at 2**-53, a survival at 2**-30."""

UNDECIDED = 2.0**-22
"""Relative error of a confidence told from two survivals: four roundings of float32, 2**-24 each (the
confidence itself, the two products, and the threshold's own). Closer to a threshold float32 cannot tell."""

FAINT = 2.0**-126
"""Smallest survival that float32 holds to 24 bits, and that no device flushes to 0."""

Array = Any  # an array of any array-API namespace: NumPy or torch


def namespace(array: Array) -> Any:
    """Return an array's array-API namespace; NumPy's own is complete and spares the look-up in every step."""
    return np if type(array) is np.ndarray else array_namespace(array)


def on_grid(survival: Array) -> Array:
    """Survival [R, gamma] in [0, 1] as int32 in 0..GRID."""
    xp, scaled = namespace(survival), survival * GRID
    return scaled.astype(np.int32) if xp is np else xp.astype(scaled, xp.int32)


def confident(survival: Array, threshold: float) -> Array:
    """Whether each token's own confidence reaches a threshold, from survival [R, gamma]; bool [R, gamma].

    The confidence c[k] = a[k] / a[k-1] is known to ``UNDECIDED`` only, and a confidence that is written as
    0.7 must reach a threshold written as 0.7: what cannot be told from the threshold reaches it. So does
    what follows a survival below ``FAINT``, of which nothing is known. The products are of two float32 and
    exact in float64 but for one rounding, the same on every device.
    """
    xp = namespace(survival)
    survival = xp.astype(survival, xp.float64)
    before = xp.concat([xp.ones_like(survival[:, :1]), survival[:, :-1]], axis=1)
    reached: Array = survival >= before * (threshold * (1 - UNDECIDED)) - FAINT
    return reached


def throughput_of_budget(grid: Array, base_tokens: int, step_time_s: NDArray[np.float64]) -> Array:
    """Theta(K) = tau(K) / T(B0 + K) for every draft budget K = 0..R*gamma (paper, Algorithm 1).

    grid: int32 [R, gamma]. step_time_s: [R*gamma + 1], from the batch without drafts upwards.
    ``base_tokens`` is R: each request commits its bonus token whatever is verified.
    Returns float64 [R*gamma + 1], in tokens per second and grid units.
    """
    xp, ordered = namespace(grid), _descending(grid)
    if xp is np:
        gained = np.zeros(ordered.size + 1, dtype=np.int64)
        np.add.accumulate(ordered, dtype=np.int64, out=gained[1:])
        return (base_tokens * GRID - gained) / step_time_s
    gained = xp.cumulative_sum(ordered, dtype=xp.int64, include_initial=True)
    return (base_tokens * GRID - gained) / xp.asarray(step_time_s.copy(), device=device(grid))


def first_descent(theta: Array) -> int:
    """Budget of Algorithm 1: admit while Theta strictly improves, stop at the first that does not.

    An improvement within ``TIE`` is none: where every draft is certain and a row costs what a bonus costs,
    rounding would decide otherwise.
    """
    xp = namespace(theta)
    stops = xp.astype(theta[1:] <= theta[:-1] * (1 + TIE), xp.int8)
    if not stops.shape[0]:
        return 0
    first = int(xp.argmax(stops))
    return first if int(stops[first]) else int(stops.shape[0])


def global_maximum(theta: Array) -> int:
    """Find the budget with the largest Theta anywhere, the smallest on ties (within ``TIE``)."""
    best = theta >= theta.max() * (1 - TIE)
    return int(best.argmax()) if type(best) is np.ndarray else int(namespace(best).argmax(_as_numbers(best)))


def admit(grid: Array, budget: int) -> Array:
    """Verification lengths [R] of the ``budget`` candidates with the highest survival.

    Ties go to the smaller position, then to the smaller request. Survival never rises along a
    block, so what is admitted is a prefix of every block.
    """
    xp = namespace(grid)
    requests, gamma = grid.shape
    if budget <= 0 or budget >= requests * gamma:
        return xp.zeros_like(grid[:, 0], dtype=xp.int64) + (gamma if budget > 0 else 0)
    ordered = _descending(grid)
    threshold = -ordered[budget - 1]
    if xp is np and ordered[budget] != ordered[budget - 1]:
        # No tie to break: count along the block, as a product because that is the fastest sum NumPy has.
        return ((grid >= threshold) @ _ones(gamma)).astype(np.int64)
    above = grid > threshold
    tied = grid == threshold
    # Tied candidates in order of position, then request: number them down the columns.
    order = xp.cumulative_sum(xp.astype(xp.reshape(xp.permute_dims(tied, (1, 0)), (-1,)), xp.int64))
    rank = xp.permute_dims(xp.reshape(order, (gamma, requests)), (1, 0))
    room = budget - xp.sum(xp.astype(above, xp.int64))
    return xp.sum(xp.astype(above | (tied & (rank <= room)), xp.int64), axis=1)


def _as_numbers(flags: Array) -> Array:
    xp = namespace(flags)
    return xp.astype(flags, xp.int8)  # torch has no argmax of booleans


@cache
def _ones(gamma: int) -> NDArray[np.float32]:
    return np.ones(gamma, dtype=np.float32)


def _descending(grid: Array) -> Array:
    """All candidates, the most likely first, negated so that an ascending sort serves."""
    ordered = (-grid).reshape(-1)
    if type(grid) is not np.ndarray:
        return namespace(grid).sort(ordered)
    ordered.sort()  # in place: the negation is a copy already
    return ordered
