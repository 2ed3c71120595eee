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

PARTITION = 2048
"""Candidates from which NumPy finds a threshold sooner by partition than by a full sort (measured)."""

LARGE = 32768
"""Candidates from which NumPy finds a budget sooner without sorting all of them (measured)."""

EXACT = 2**22
"""Candidates up to which sums of survivals on the grid are exact in float64: 2 * 2**22 * 2**30 is 2**53."""

SAMPLED = 31
"""One candidate in so many guesses where the maximum lies: a choice that costs only time, and a prime, so
that no smaller block makes it always meet the same position."""

_WIDENING = np.unique(np.geomspace(8, EXACT, 60).astype(np.int64))
"""Ends of the stretches of budgets beyond a head that are bounded at once: finer where the bound is close."""

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


def throughput_of_budget(
    grid: Array, base_tokens: int, step_time_s: NDArray[np.float64], ordered: Array | None = None
) -> Array:
    """Theta(K) = tau(K) / T(B0 + K) for every draft budget K = 0..R*gamma (paper, Algorithm 1).

    grid: int32 [R, gamma]. step_time_s: [R*gamma + 1], from the batch without drafts upwards.
    ``base_tokens`` is R: each request commits its bonus token whatever is verified.
    ordered: ``descending(grid)``, where the caller has it already.
    Returns float64 [R*gamma + 1], in tokens per second and grid units.
    """
    xp = namespace(grid)
    ordered = descending(grid) if ordered is None else ordered
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


def best_budget(grid: Array, base_tokens: int, step_time_s: NDArray[np.float64]) -> int:
    """Find ``global_maximum(throughput_of_budget(...))``, without sorting every candidate where that is slow.

    Arguments as in ``throughput_of_budget``. In a large NumPy batch only the likely candidates are sorted;
    the others count only if they could still hold the maximum, or a tie with it. The result is exact. Step
    times that fall as the batch grows give no bound, so all candidates are sorted then.
    """
    large = type(grid) is np.ndarray and LARGE <= grid.size <= EXACT
    if large and not (step_time_s[1:] < step_time_s[:-1]).any():
        candidates = grid.reshape(-1)
        least = _guess(candidates, base_tokens, step_time_s)
        head = candidates[candidates >= least]
        if 2 * head.size < candidates.size:  # else little is left out
            theta = throughput_of_budget(head, base_tokens, step_time_s[: head.size + 1])
            held = base_tokens * GRID + int(head.sum(dtype=np.int64))
            if _most_beyond(head.size, held, least - 1, step_time_s) < theta.max() * (1 - TIE):
                return global_maximum(theta)
    return global_maximum(throughput_of_budget(grid, base_tokens, step_time_s))


def _guess(candidates: NDArray[np.int32], base_tokens: int, step_time_s: NDArray[np.float64]) -> int:
    """Survival in grid units that the best budget's last candidate probably exceeds: 3/4 of a sample's."""
    ordered = np.sort(candidates[::SAMPLED])[::-1]
    gained = base_tokens * GRID + SAMPLED * ordered.cumsum(dtype=np.int64)
    return int(ordered[np.argmax(gained / step_time_s[::SAMPLED][: ordered.size])]) * 3 // 4


def _most_beyond(head: int, held: int, survival: int, step_time_s: NDArray[np.float64]) -> float:
    """Bound Theta(K) for every K beyond ``head``, where each further candidate has at most ``survival``.

    held: tokens of the budget ``head``, in grid units. A stretch of budgets has at most the tokens of its
    last in the time of its first; integers are exact and rounding keeps order, so the bound holds in float64.
    """
    beyond = len(step_time_s) - 1 - head
    ends = np.append(_WIDENING[beyond > _WIDENING], beyond)
    starts = np.append(0, ends[:-1])
    return float(((held + ends * survival) / step_time_s[head + 1 + starts]).max())


def admit(grid: Array, budget: int, ordered: Array | None = None) -> Array:
    """Verification lengths [R] of the ``budget`` candidates with the highest survival.

    Ties go to the smaller position, then to the smaller request. Survival never rises along a
    block, so what is admitted is a prefix of every block. ordered: ``descending(grid)``, where the caller
    has it already.
    """
    xp = namespace(grid)
    requests, gamma = grid.shape
    if budget <= 0 or budget >= requests * gamma:
        return xp.zeros_like(grid[:, 0], dtype=xp.int64) + (gamma if budget > 0 else 0)
    threshold, following = _around(grid, budget, ordered)
    if xp is np and following != threshold:
        # No tie to break: count along the block, as a product because that is the fastest sum NumPy has. Of
        # bytes, which hold a block's count (accepted lengths are bytes): of floats it may warn of nothing.
        return ((grid >= threshold).view(np.uint8) @ _ones(gamma)).astype(np.int64)
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
def _ones(gamma: int) -> NDArray[np.uint8]:
    return np.ones(gamma, dtype=np.uint8)


def _around(grid: Array, budget: int, ordered: Array | None) -> tuple[Any, Any]:
    """Survival of the last candidate within a budget, and of the first beyond it."""
    if ordered is None and type(grid) is np.ndarray and grid.size >= PARTITION:
        split = (-grid).reshape(-1)
        split.partition(budget)
        return -split[:budget].max(), -split[budget]
    ordered = descending(grid) if ordered is None else ordered
    return -ordered[budget - 1], -ordered[budget]


def descending(grid: Array) -> Array:
    """All candidates, the most likely first, negated so that an ascending sort serves."""
    ordered = (-grid).reshape(-1)
    if type(grid) is not np.ndarray:
        return namespace(grid).sort(ordered)
    ordered.sort()  # in place: the negation is a copy already
    return ordered
