"""Means, quantiles and their confidence intervals; roots and fits.

SciPy's optimisers are imported when a fit is first made: most results need none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from simulator.core.arrays import Floats, Rows

BATCHES = 20
"""Batch means: enough batches for a t interval (a choice); fewer are taken where they are correlated."""


_LOW_BITS = 44
"""Bits of a number by which values of one bucket differ: a bucket is 0.3% wide. A choice."""

MOST_STEPS = 100
"""Steps of ``root``: SciPy's choice; what is solved here takes ten."""

Point = tuple[float, float]

Weighted = tuple[Floats, NDArray[Any]]
"""Values and the weight of each, [n]."""


def t_quantile(share: float, freedom: float) -> float:
    """Return a quantile of Student's t distribution; importing ``scipy.stats`` for it would take 0.3 s."""
    return float(stdtrit(freedom, share))


def mean_interval(samples: NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of independent replications and the half-width of its t interval (NaN for one)."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(spread * t_quantile(0.5 + confidence / 2, values.size - 1))


def weighted_quantile(values: Floats, weights: NDArray[Any], at: list[float]) -> Floats:
    """Return the smallest value with at least that share of the weight at or below it; NaN when empty."""
    if values.size == 0:
        return np.full(len(at), np.nan)
    order, whole = np.argsort(values, kind="stable"), np.sum(weights)
    below = weights[order]
    np.cumsum(below, out=below)
    return np.asarray(values[order[[_reaches(below, whole, share) for share in at]]])


def _reaches(below: NDArray[Any], whole: float, share: float) -> int:
    """Return where a running sum first is at least that share of the whole; the last place otherwise."""
    # Halving takes 20 divisions where one of all shares would take another array.
    return bisect_left(range(below.size - 1), share, key=lambda place: below[place] / whole)


def quantile_of_parts(parts: Callable[[], Iterable[Weighted]], at: list[float]) -> Floats:
    """Return the ``weighted_quantile`` of all parts together, exactly, though they are never put together.

    Values are counted by their high bits; only those of the buckets in which a quantile lies are sorted, and
    any other bucket counts as one value. The fuller those buckets, the more memory is taken.

    parts: goes through values of at least 0, and their weights, which are whole, [n] each. It is called
        twice. A negative weight takes back what another one of the same value adds. at: above 0.
    """
    lowest, weight = _histogram(parts())
    if not weight.any():
        return np.full(len(at), np.nan)
    below = np.cumsum(weight)
    chosen = np.array([_reaches(below, below[-1], share) for share in at])
    found, counts = _within(parts(), lowest + chosen)
    weight[chosen] = 0
    others = np.flatnonzero(weight)
    least = np.asarray((lowest + others) << _LOW_BITS).view(np.float64)
    return weighted_quantile(np.concatenate([found, least]), np.concatenate([counts, weight[others]]), at)


def _histogram(parts: Iterable[Weighted]) -> tuple[int, Floats]:
    """Return the lowest bucket in which values lie, and the weight of it and of each one above."""
    lowest, weight = 0, np.empty(0)
    for values, weights in parts:
        if values.size:
            buckets = values.view(np.int64) >> _LOW_BITS
            first = int(buckets.min())
            counted = np.bincount(buckets - first, weights)
            least = min(lowest, first) if weight.size else first
            total = np.zeros(max(lowest + weight.size, first + counted.size) - least)
            total[first - least : first - least + counted.size] = counted
            total[lowest - least : lowest - least + weight.size] += weight
            lowest, weight = least, total
    return lowest, weight


def _within(parts: Iterable[Weighted], chosen: Rows) -> Weighted:
    """Return the distinct values of these buckets, and the weight of each."""
    found, counts = [], []
    for values, weights in parts:
        here = np.isin(values.view(np.int64) >> _LOW_BITS, chosen)
        found.append(values[here])
        counts.append(weights[here])
    distinct, which = np.unique(np.concatenate(found), return_inverse=True)
    return distinct, np.bincount(which, np.concatenate(counts))


def rate_interval(
    tokens: NDArray[Any],
    elapsed: Floats,
    *,
    by_request: Floats | None = None,
    reuse: float = 1.0,
) -> tuple[float, float]:
    """Return the tokens per second of one run and the 95% half-width.

    tokens, elapsed: [steps], what each step committed, and how long the step took in s. Without
        ``by_request`` the interval is one of batch means (``_batch_variance``).
    by_request: [n], tokens of each request minus the tokens that the mean rate commits in its share of the
        time. The values add up to about 0. A closed loop is as many renewal-reward processes as it has slots,
        with a request as the cycle, and the sum of squares estimates the variance of the ratio (Crane and
        Lemoine, An Introduction to the Regenerative Method, 1977, section 2). The estimate needs many
        requests. It holds for runs too short for batches, which must outlast a request.
    reuse: how much more the mean scatters because outcomes were read more than once (``TraceCursors.reuse``).
        Rereading adds ``reuse - 1`` times the variance within a text, which short batches measure. The
        variance between requests does not grow, because requests are drawn evenly from the pool.

    The larger of the two estimates counts. Requests do not show what all of them share in a step (jitter of
    step times), and short batches do not show what stays the same throughout a request.
    """
    rate = tokens.sum() / elapsed.sum()

    def residual(batches: int) -> Floats:
        """Sum tokens beyond the mean rate, zero on average, over each batch of steps."""
        parts = zip(np.array_split(tokens, batches), np.array_split(elapsed, batches), strict=True)
        return np.array([(committed - rate * took).sum() for committed, took in parts])

    within, freedom = _batch_variance(residual)
    if by_request is not None and by_request.size > 1:
        # A batch that reads the whole pool scatters too little; more reading therefore needs shorter batches.
        batches = int(np.clip(BATCHES * reuse, BATCHES, max(BATCHES, len(elapsed) // 2)))
        within, freedom = _variance_of_sum(residual(batches)), float(batches - 1)
        between, degrees = _cluster_variance(by_request)
        if between > within:
            freedom = degrees
        variance = max(between, within) + (max(reuse, 1.0) - 1) * within
    else:
        variance = within
    half = np.sqrt(variance) / elapsed.sum() * t_quantile(0.975, freedom)
    return float(rate), float(half)


def quantile(values: NDArray[Any], at: float) -> float:
    """Return the interpolated quantile of equally weighted values; NaN when there are none."""
    return float(np.quantile(values, at)) if values.size else float("nan")


def divide(top: float, bottom: float) -> float:
    """Return one number over another; NaN over zero."""
    return float(top / bottom) if bottom else float("nan")


def divide_each(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    """Return element over element; NaN where the lower one is not positive."""
    ratio: Floats = np.full(len(top), np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio


def ratio_interval(top: NDArray[Any], bottom: NDArray[Any]) -> tuple[float, float]:
    """Return the sum of ``top`` over the sum of ``bottom`` and the 95% half-width of the ratio.

    Requests that are neighbours in a queue are correlated, so the interval is one of batch means in order of
    arrival (``_batch_variance``). A queue that stays long for a good part of the run needs replications
    instead (``mean_interval``). The half-width is NaN below two requests a batch; both are NaN where
    ``bottom`` is 0.
    """
    total = float(np.sum(bottom))
    if total <= 0:
        return float("nan"), float("nan")
    ratio = float(np.sum(top) / total)
    if len(top) < 2 * BATCHES:
        return ratio, float("nan")
    residual = np.asarray(top, dtype=np.float64) - ratio * np.asarray(bottom, dtype=np.float64)
    variance, freedom = _batch_variance(
        lambda batches: np.array([part.sum() for part in np.array_split(residual, batches)])
    )
    return ratio, float(np.sqrt(variance) / total * t_quantile(0.975, freedom))


def replicated_ratio(
    top: NDArray[Any], bottom: NDArray[Any], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the ratio of the means of paired replications and its half-width (NaN for one pair).

    top, bottom: [replications], from independent runs. The interval follows from the delta method: the
    residuals top - ratio * bottom are independent with mean 0, except for their share in the ratio (Cochran,
    Sampling Techniques, 1977, section 6.3). The ratio of means is less biased than the mean of ratios.
    """
    upper, lower = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    ratio = float(upper.sum() / lower.sum())
    _, half = mean_interval(upper - ratio * lower, confidence)
    return ratio, half / abs(float(lower.mean()))


def units_needed(demand: float, rate: float, half: float) -> tuple[int, int, int]:
    """Return how many whole units carry ``demand`` at a rate of ``rate`` +- ``half``: fewest, likely, most.

    The count never rises with the rate, so the ends of the interval map onto each other. For an interval that
    reaches 0, the most is counted at a tenth of the rate (a choice). For a NaN ``half`` all three are equal.
    """
    width = 0.0 if np.isnan(half) else half
    rates = (rate + width, rate, max(rate - width, rate / 10))
    # A demand that is a multiple of the rate except for rounding needs no further unit.
    fewest, likely, most = (max(1, int(np.ceil(demand / each * (1 - 1e-12)))) for each in rates)
    return fewest, likely, most


def _batch_variance(sums_of: Callable[[int], Floats]) -> tuple[float, float]:
    """Return the variance of the sum of a stationary sequence of mean 0 and its degrees of freedom.

    sums_of: splits the sequence into so many batches and returns the sum of each. Batches must outlast the
    correlation. The function takes 20 batches where their sums look uncorrelated (lag-1 autocorrelation
    within a standard error of 0), else 10, else 5. A correlation that 5 batches still show inflates the
    variance as in a first-order autoregression, by (1 + r) / (1 - r) (Steiger and others, ASAP3, ACM TOMACS
    15, 2005).
    """
    sums, correlation = np.empty(0), 0.0
    for batches in (BATCHES, BATCHES // 2, BATCHES // 4):
        sums = sums_of(batches)
        centred = sums - sums.mean()
        scale = float(centred @ centred)
        correlation = float(centred[1:] @ centred[:-1]) / scale if scale > 0 else 0.0
        if correlation <= 1 / np.sqrt(batches):
            return _variance_of_sum(sums), float(batches - 1)
    inflation = (1 + correlation) / (1 - correlation)
    return _variance_of_sum(sums) * inflation, float(sums.size - 1)


def _variance_of_sum(sums: Floats) -> float:
    """Return the variance of the sum of independent batches, given the sum of each."""
    return float(sums.var(ddof=1) * sums.size)


def _cluster_variance(clusters: Floats) -> tuple[float, float]:
    """Return the variance of the sum of independent clusters of mean 0, and its degrees of freedom.

    Degrees of freedom match the variance of the sum of squares (Satterthwaite, 1946): where a few long
    requests dominate, they count as few.
    """
    squares = clusters**2
    total = float(squares.sum())
    if total == 0:
        return 0.0, float(clusters.size - 1)
    freedom = max(1.0, 2 * total**2 / float((squares**2).sum()))
    return total * clusters.size / (clusters.size - 1), min(freedom, clusters.size - 1.0)


def root(
    function: Callable[[float], float], low: float, high: float, *, xtol: float = 2e-12, rtol: float = 2**-50
) -> float:
    """Return where a function crosses 0 between ``low`` and ``high``, at which its signs differ.

    The method is Brent's (Algorithms for Minimization without Derivatives, 1973, chapter 4), in the
    arithmetic of SciPy's ``brentq`` and so with the same bits: lengths of requests solve one equation, and
    importing SciPy's optimisers for it would take a tenth of a second. xtol, rtol: largest error, and as a
    share of the answer.

    Raises ``ValueError`` where the signs agree, ``ArithmeticError`` where no root is found.
    """
    behind, best = (low, float(function(low))), (high, float(function(high)))
    for at, value in (behind, best):
        if value == 0:
            return at
    if (behind[1] < 0) == (best[1] < 0):
        raise ValueError(f"no change of sign between {low} and {high}")
    across, before, move = behind, 0.0, 0.0
    for _ in range(MOST_STEPS):
        if (behind[1] < 0) != (best[1] < 0):
            across, before, move = behind, best[0] - behind[0], best[0] - behind[0]
        if abs(across[1]) < abs(best[1]):
            behind, best, across = best, across, best
        least, half = (xtol + rtol * abs(best[0])) / 2, (across[0] - best[0]) / 2
        if best[1] == 0 or abs(half) < least:
            return best[0]
        next_move = half
        if abs(before) > least and abs(best[1]) < abs(behind[1]):
            tried = _interpolated(behind, best, across)
            if 2 * abs(tried) < min(abs(before), 3 * abs(half) - least):
                next_move = tried
        before, move = half if next_move == half else move, next_move
        step = move if abs(move) > least else (least if half > 0 else -least)
        behind, best = best, (best[0] + step, float(function(best[0] + step)))
    raise ArithmeticError(f"no root between {low} and {high} in {MOST_STEPS} steps")


def _interpolated(behind: Point, best: Point, across: Point) -> float:
    """Return the step from the best point to where a line, or an inverse parabola through three, is 0."""
    if behind[0] == across[0]:
        return -best[1] * (best[0] - behind[0]) / (best[1] - behind[1])
    near = (behind[1] - best[1]) / (behind[0] - best[0])
    far = (across[1] - best[1]) / (across[0] - best[0])
    return -best[1] * (across[1] * far - behind[1] * near) / (far * near * (across[1] - behind[1]))


def isotonic(values: Floats, *, increasing: bool = True) -> Floats:
    """Return the values that never fall, or never rise, with the least squared distance to these."""
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(values, increasing=increasing).x)


def non_negative(matrix: Floats, wanted: Floats) -> Floats:
    """Return unknowns of at least 0 by least squares: ``matrix`` times them comes closest to ``wanted``."""
    from scipy.optimize import nnls

    return np.asarray(nnls(matrix, wanted)[0])
