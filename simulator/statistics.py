"""Statistics that every part shares: quantiles, ratios, and confidence intervals of simulated means."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from simulator.cost import Floats

BATCHES = 20
"""Batch means: enough batches for a t interval, few enough that each outlasts the correlation."""


def mean_interval(samples: NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent replications and the half-width of its t interval (NaN for one sample)."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(spread * stats.t.ppf(0.5 + confidence / 2, values.size - 1))


def weighted_quantile(values: Floats, weights: NDArray[Any], at: list[float]) -> Floats:
    """Smallest value with at least that share of the weight at or below it; NaN when empty."""
    if values.size == 0:
        return np.full(len(at), np.nan)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / np.sum(weights)
    return np.asarray(values[order][np.clip(np.searchsorted(share, at), 0, values.size - 1)])


def rate_interval(tokens: NDArray[Any], elapsed: Floats) -> tuple[float, float]:
    """Tokens per second and its 95% half-width, by batch means of the ratio's residuals."""
    rate = tokens.sum() / elapsed.sum()
    residual = tokens - rate * elapsed  # zero on average; its batch sums are nearly independent
    sums = np.array([part.sum() for part in np.array_split(residual, BATCHES)])
    spread = sums.std(ddof=1) * np.sqrt(BATCHES) / elapsed.sum()
    return float(rate), float(spread * stats.t.ppf(0.975, BATCHES - 1))


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

    Neighbours in a queue share their fate, so single requests are not independent; 20 long batches
    nearly are. NaN half-width below two requests a batch, NaN altogether with nothing below the line.
    """
    total = float(np.sum(bottom))
    if total <= 0:
        return float("nan"), float("nan")
    ratio = float(np.sum(top) / total)
    if len(top) < 2 * BATCHES:
        return ratio, float("nan")
    residual = np.asarray(top, dtype=np.float64) - ratio * np.asarray(bottom, dtype=np.float64)
    sums = np.array([part.sum() for part in np.array_split(residual, BATCHES)])
    half = sums.std(ddof=1) * np.sqrt(BATCHES) / total * stats.t.ppf(0.975, BATCHES - 1)
    return ratio, float(half)
