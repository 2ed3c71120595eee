"""Means, quantiles and their confidence intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from simulator.core.arrays import Floats

BATCHES = 20
"""Batch means: enough batches for a t interval; fewer are taken where these are still correlated."""


def t_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t distribution; ``scipy.stats`` has it too, and takes 0.3 s to import."""
    return float(stdtrit(freedom, share))


def mean_interval(samples: NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent replications and the half-width of its t interval (NaN for one sample)."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(spread * t_quantile(0.5 + confidence / 2, values.size - 1))


def weighted_quantile(values: Floats, weights: NDArray[Any], at: list[float]) -> Floats:
    """Smallest value with at least that share of the weight at or below it; NaN when empty."""
    if values.size == 0:
        return np.full(len(at), np.nan)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / np.sum(weights)
    return np.asarray(values[order][np.clip(np.searchsorted(share, at), 0, values.size - 1)])


def rate_interval(
    tokens: NDArray[Any],
    elapsed: Floats,
    *,
    by_request: Floats | None = None,
    reuse: float = 1.0,
) -> tuple[float, float]:
    """Tokens per second of one run and its 95% half-width.

    tokens, elapsed: [steps], what each step committed and how long it took, s. Alone they give batch means
    (``_batch_variance``).
    by_request: [n], each request's tokens less what the mean rate would have committed in its share of the
        time, adding up to 0 as nearly as the run's ends allow: a closed loop is as many renewal-reward
        processes as it has slots, with a request as cycle, and the sum of squares estimates the variance
        of the ratio (Crane and Lemoine, An Introduction to the Regenerative Method, 1977, section 2). It
        needs many requests rather than many lives of a request, and holds where batches, which must outlast
        a request, would be too few.
    reuse: how much more the mean over what was read scatters than over as many outcomes each read once
        (``TraceCursors.reuse``). Rereading adds ``reuse - 1`` times the variance within a text, which short
        batches measure; the part between requests is drawn evenly from the pool and does not grow.

    The larger of the two estimates counts: requests do not see what all share in a step (a jitter of step
    times), short batches do not see what stays the same throughout a request.
    """
    rate = tokens.sum() / elapsed.sum()
    residual = tokens - rate * elapsed  # zero on average
    within, freedom = _batch_variance(residual)
    if by_request is not None and by_request.size > 1:
        # A batch that read the whole pool would scatter too little: the more often it is read, the shorter.
        batches = int(np.clip(BATCHES * reuse, BATCHES, max(BATCHES, len(residual) // 2)))
        within, freedom = _variance_of_sum(np.array_split(residual, batches)), float(batches - 1)
        between, degrees = _cluster_variance(by_request)
        if between > within:
            freedom = degrees
        variance = max(between, within) + (max(reuse, 1.0) - 1) * within
    else:
        variance = within
    half = np.sqrt(variance) / elapsed.sum() * t_quantile(0.975, freedom)
    return float(rate), float(half)


def quantile(values: NDArray[Any], at: float) -> float:
    """Quantile of equally weighted values, interpolated; NaN when there are none."""
    return float(np.quantile(values, at)) if values.size else float("nan")


def divide(top: float, bottom: float) -> float:
    """One number over another; NaN over zero."""
    return float(top / bottom) if bottom else float("nan")


def divide_each(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    """Element over element; NaN where the lower one is not positive."""
    ratio: Floats = np.full(len(top), np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio


def ratio_interval(top: NDArray[Any], bottom: NDArray[Any]) -> tuple[float, float]:
    """Sum of ``top`` over sum of ``bottom`` and its 95% half-width, by batch means in order of arrival.

    Neighbours in a queue share their fate, so single requests are not independent; long batches nearly
    are (``_batch_variance``). A queue that stays long for a good part of the run is beyond any estimate from
    that run: replicate it (``mean_interval``). NaN half-width below two requests a batch, NaN altogether
    with nothing below the line.
    """
    total = float(np.sum(bottom))
    if total <= 0:
        return float("nan"), float("nan")
    ratio = float(np.sum(top) / total)
    if len(top) < 2 * BATCHES:
        return ratio, float("nan")
    residual = np.asarray(top, dtype=np.float64) - ratio * np.asarray(bottom, dtype=np.float64)
    variance, freedom = _batch_variance(residual)
    return ratio, float(np.sqrt(variance) / total * t_quantile(0.975, freedom))


def replicated_ratio(
    top: NDArray[Any], bottom: NDArray[Any], confidence: float = 0.95
) -> tuple[float, float]:
    """Ratio of the means of paired replications and its half-width (NaN for one pair).

    top, bottom: [replications], from independent runs. By the delta method: the residuals
    top - ratio * bottom are independent with mean 0 but for their share in the ratio (Cochran, Sampling
    Techniques, 1977, section 6.3). The ratio of the means is less biased than the mean of the ratios.
    """
    upper, lower = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    ratio = float(upper.sum() / lower.sum())
    _, half = mean_interval(upper - ratio * lower, confidence)
    return ratio, half / abs(float(lower.mean()))


def units_needed(demand: float, rate: float, half: float) -> tuple[int, int, int]:
    """Whole units that carry ``demand``, each ``rate`` give or take ``half``: fewest, likely and most.

    Interval ends map onto interval ends because the count never rises with the rate. An interval that
    reaches 0 carries nothing for certain; the most is then counted at a tenth of the rate. NaN ``half``: not
    known, so all three agree.
    """
    width = 0.0 if np.isnan(half) else half
    rates = (rate + width, rate, max(rate - width, rate / 10))
    # A demand that is a multiple of the rate but for rounding needs no unit more.
    fewest, likely, most = (max(1, int(np.ceil(demand / each * (1 - 1e-12)))) for each in rates)
    return fewest, likely, most


def _batch_variance(residual: Floats) -> tuple[float, float]:
    """Variance of the sum of a stationary sequence with mean 0, and its degrees of freedom, by batch means.

    Batches must outlast the correlation. 20 are taken where their sums look uncorrelated (lag-1
    autocorrelation within a standard error of 0), else 10, else 5; what correlation 5 still show is added as
    that of a first-order autoregression, (1 + r) / (1 - r) (Steiger and others, ASAP3, ACM TOMACS 15, 2005).
    """
    parts: list[Floats] = []
    correlation = 0.0
    for batches in (BATCHES, BATCHES // 2, BATCHES // 4):
        parts = np.array_split(residual, batches)
        sums = np.array([part.sum() for part in parts])
        sums = sums - sums.mean()
        scale = float(sums @ sums)
        correlation = float(sums[1:] @ sums[:-1]) / scale if scale > 0 else 0.0
        if correlation <= 1 / np.sqrt(batches):
            return _variance_of_sum(parts), float(batches - 1)
    inflation = (1 + correlation) / (1 - correlation)
    return _variance_of_sum(parts) * inflation, float(len(parts) - 1)


def _variance_of_sum(parts: list[Floats]) -> float:
    sums = np.array([part.sum() for part in parts])
    return float(sums.var(ddof=1) * len(parts))


def _cluster_variance(clusters: Floats) -> tuple[float, float]:
    """Variance of the sum of independent clusters of mean 0, and its degrees of freedom.

    Degrees of freedom by matching the variance of the sum of squares (Satterthwaite, 1946): a few long
    requests that dominate count as few.
    """
    squares = clusters**2
    total = float(squares.sum())
    if total == 0:
        return 0.0, float(clusters.size - 1)
    freedom = max(1.0, 2 * total**2 / float((squares**2).sum()))
    return total * clusters.size / (clusters.size - 1), min(freedom, clusters.size - 1.0)
