"""Arrival processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e

from simulator.core.errors import BadInputError
from simulator.core.statistics import root
from simulator.traffic.workload import MAX_REQUESTS

Times = NDArray[np.float64]

RATES_PER_S = (1e-9, 1e9)
"""Mean arrival rates of a process: one in 30 years to a billion a second. A choice."""

GAMMA_CVS = (1e-3, 100.0)
"""Coefficients of variation of gamma gaps. Beyond them, doubles do not resolve the gaps."""

PERIODS_S = (1.0, 1e9)
"""Periods of a diurnal process: one second to 30 years. A choice."""

SHARES = (1e-12, 1e12)
"""Shares of a traffic class, relative to the other classes. A choice."""


class Arrivals(Protocol):
    """A point process on [0, infinity)."""

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second."""
        ...

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        """Return non-decreasing arrival times up to either limit; at least one limit is given."""
        ...

    def scaled(self, factor: float) -> Self:
        """Return the same process at ``factor`` times the rate."""
        ...


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Independent users: exponential gaps."""

    rate_per_s: float

    def __post_init__(self) -> None:
        require_within(self.rate_per_s, RATES_PER_S, "arrival rate")

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        """Draw arrival times in seconds, ascending, up to either limit."""
        horizon = None if duration_s is None else duration_s * self.rate_per_s
        return _accumulate(rng.standard_exponential, requests, horizon) / self.rate_per_s

    def scaled(self, factor: float) -> PoissonArrivals:
        """Return the same process at ``factor`` times the rate."""
        return replace(self, rate_per_s=self.rate_per_s * factor)


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Bursty (cv > 1) or regular (cv < 1) traffic: gamma gaps with the given coefficient of variation.

    The process is stationary: time 0 falls at a random moment between arrivals, so that the expected
    number of requests in any window is exactly rate times length.
    """

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        require_within(self.rate_per_s, RATES_PER_S, "arrival rate")
        require_within(self.cv, GAMMA_CVS, "gamma cv")

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        """Draw arrival times in seconds, ascending, up to either limit."""
        shape = self.cv**-2
        # The wait from a random moment: a uniform share of a gap drawn in proportion to its length.
        first = rng.random() * rng.standard_gamma(shape + 1) / shape

        def gaps(count: int) -> Times:
            return rng.standard_gamma(shape, count) / shape

        horizon = None if duration_s is None else duration_s * self.rate_per_s
        return _accumulate(gaps, requests, horizon, first) / self.rate_per_s

    def scaled(self, factor: float) -> GammaArrivals:
        """Return the same process at ``factor`` times the rate."""
        return replace(self, rate_per_s=self.rate_per_s * factor)


@dataclass(frozen=True, slots=True)
class DiurnalArrivals:
    """Poisson traffic whose rate varies over a period, mean x exp(k cos(phase)) / I0(k).

    This shape (von Mises) allows any peak-to-mean ratio and is never zero; the maximum is at ``peak_at_s``,
    by default half a period after time 0. The rate is constant over 1/4096 of a period. Arrivals come from
    inverting the integral of the rate, which clamps no gap and keeps the order of requests when the rate
    changes.
    """

    rate_per_s: float
    peak_to_mean: float
    period_s: float = 86400.0
    peak_at_s: float | None = None

    def __post_init__(self) -> None:
        require_within(self.rate_per_s, RATES_PER_S, "arrival rate")
        require_within(self.period_s, PERIODS_S, "diurnal period")
        if not 1 <= self.peak_to_mean <= 100:
            raise BadInputError("must lie in 1..100", field="diurnal peak to mean", value=self.peak_to_mean)
        if self.peak_at_s is not None and not abs(self.peak_at_s) <= PERIODS_S[1]:
            raise BadInputError(
                f"must lie within {PERIODS_S[1]:g} s of time 0",
                field="diurnal peak time",
                value=self.peak_at_s,
            )

    def rate_at(self, time_s: Times) -> Times:
        """Arrivals per second at the given times."""
        peak_at_s = self.period_s / 2 if self.peak_at_s is None else self.peak_at_s
        concentration = self._concentration()
        swing = np.cos(2 * np.pi * (time_s - peak_at_s) / self.period_s) - 1
        return np.asarray(self.rate_per_s * self.peak_to_mean * np.exp(concentration * swing))

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        """Draw arrival times in seconds, ascending, up to either limit."""
        edges_s = np.linspace(0, self.period_s, 4097)
        expected = np.concatenate(([0.0], np.cumsum(self.rate_at((edges_s[1:] + edges_s[:-1]) / 2))))
        per_period = self.rate_per_s * self.period_s
        expected *= per_period / expected[-1]
        horizon = None
        if duration_s is not None:
            whole, rest_s = divmod(duration_s, self.period_s)
            horizon = whole * per_period + float(np.interp(rest_s, edges_s, expected))
        whole_periods, rest = np.divmod(_accumulate(rng.standard_exponential, requests, horizon), per_period)
        return whole_periods * self.period_s + np.interp(rest, expected, edges_s)

    def scaled(self, factor: float) -> DiurnalArrivals:
        """Return the same process at ``factor`` times the rate."""
        return replace(self, rate_per_s=self.rate_per_s * factor)

    def _concentration(self) -> float:
        if self.peak_to_mean == 1:
            return 0.0
        # Peak over mean is e^k / I0(k), which grows like sqrt(2 pi k).
        return root(lambda k: 1 / i0e(k) - self.peak_to_mean, 0, 1 + self.peak_to_mean**2)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of users; each sends the next request when the last one ends."""


def _accumulate(
    draw_gaps: Callable[[int], Times], requests: int | None, horizon: float | None, first: float | None = None
) -> Times:
    """Event times of a unit-rate renewal process, up to a number of events or to before a horizon.

    Gaps are drawn in blocks of one size, so that a longer run begins with the events of a shorter one.
    """
    expected = min(math.inf if requests is None else requests, math.inf if horizon is None else horizon)
    if expected > MAX_REQUESTS:
        raise BadInputError(
            f"asks for {expected:.3g} requests, {MAX_REQUESTS:g} are possible",
            field="traffic",
            remedy="shorten it or lower its rate",
        )
    block = 4096
    head = [] if first is None else [np.array([first])]
    drawn, reached = len(head), first or 0.0
    while (requests is None or drawn < requests) and (horizon is None or reached < horizon):
        gaps = draw_gaps(block)
        head.append(gaps)
        drawn, reached = drawn + block, reached + float(gaps.sum())
    times = np.cumsum(np.concatenate(head)) if head else np.empty(0)
    if horizon is not None:
        times = times[: np.searchsorted(times, horizon, side="left")]
    return times[:requests]


def check_limits(requests: int | None, duration_s: float | None) -> None:
    """Refuse limits of a workload that are out of range."""
    if requests is not None and not 1 <= requests <= MAX_REQUESTS:
        raise BadInputError(f"must lie in 1..{MAX_REQUESTS:,}", field="requests", value=requests)
    if duration_s is not None:
        require_positive(duration_s, "duration_s")


def require_within(value: float, bounds: tuple[float, float], name: str) -> None:
    """Refuse a value outside the bounds, by name."""
    if not bounds[0] <= value <= bounds[1]:
        raise BadInputError(f"must lie in {bounds[0]:g}..{bounds[1]:g}", field=name, value=value)


def require_positive(value: float, name: str) -> None:
    """Refuse a value that is not positive and finite, by name."""
    if not (math.isfinite(value) and value > 0):
        raise BadInputError("must be positive and finite", field=name, value=value)
