"""The search for the highest rate at which one replica keeps an SLA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.capacity.bounds import Capacity, capacity
from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.server import Server
from simulator.capacity.trials import Trial, one_trial, together, try_rate
from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.statistics import mean_interval
from simulator.sla.terms import Sla
from simulator.sla.verdict import TermResult

LIGHTEST = 0.02
"""Least share of the capacity that is tried; requests are then served alone. A choice."""

ALONE = 200
"""Requests of the first trial at the lightest load, which only shows an SLA out of reach. A choice."""

MOST_STEPS_DOWN = 20
"""Most steps of the precision from the mean of the replications to their common rate. A choice."""

STEP, GUESSED_STEP = 1.25, 1.06
"""First step of the search away from its first rate, without and with a rate known to be near the answer."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search for the highest sustainable rate to a relative precision: a cell of a sweep.

    guess_per_s: a rate near the answer, where one is known. replications: independent searches, whose rates
    give the answer and its interval.
    """

    server: Server
    precision: float
    variant: str = "base"
    guess_per_s: float | None = None
    replications: int = 1

    def __post_init__(self) -> None:
        if not 0.001 <= self.precision <= 0.5:
            raise BadInputError("must be between 0.1% and 50%", field="precision", value=self.precision)


def find_rate_row(search: Search) -> dict[str, Any]:
    """Run ``find_rate`` as a cell of a sweep."""
    return find_rate(search).as_row()


def find_rate(search: Search) -> RateSearch:
    """Find the highest rate at which every term holds, by bisection on simulated attainment.

    Within a replication the same requests arrive at every rate, faster or slower, so attainment changes
    smoothly with the rate. Each replication is searched alone; ``seed_rates`` holds the answers, each the
    middle of the last bracket. The reported rate is the highest at which all replications together keep the
    SLA, in steps of
    the precision from the mean of the answers: the tail of a queue is skewed, and a single trial mostly shows
    too little of it. ``rate_low_per_s`` to ``rate_high_per_s`` is the 95% t interval of the answers, widened
    to hold the reported rate. With one replication the rate is the highest that held, without an interval.

    The result also holds the first replication's bracket and trials. ``rate_per_s`` is 0 when the lightest
    load fails.
    """
    first = replace(_search(search.server, search.precision, search.guess_per_s), variant=search.variant)
    low = first.rate_per_s
    if low == 0 and search.replications > 1:
        return replace(first, beyond=_worst_alone(search, first.failing_rate_per_s))
    if low == 0 or search.replications == 1:
        return first
    servers = [search.server.replication(index) for index in range(search.replications)]
    others = [_search(each, 1.5 * search.precision, low) for each in servers[1:]]
    ceilings = np.array([capacity(each).ceiling_per_s for each in servers])
    rates = np.minimum([each.seed_rates[0] for each in (first, *others)], ceilings)
    mean, half = mean_interval(rates)
    at_rate, beyond = _all_together(search, mean)
    rate = at_rate.rate_per_s if at_rate.met else 0.0
    most, most_half = mean_interval(ceilings) if np.isfinite(ceilings).all() else (math.inf, 0.0)
    return replace(
        first,
        rate_per_s=rate,
        failing_rate_per_s=beyond.rate_per_s,
        rate_low_per_s=max(min(mean, rate) - half, 0.0),
        rate_high_per_s=min(max(mean, rate) + half, max(most + most_half, rate)),
        seed_rates=tuple(rates.tolist()),
        at_rate=at_rate,
        beyond=beyond,
    )


def _worst_alone(search: Search, rate: float) -> TrialResult:
    """Return the results of the worst replication at a rate: a promise must hold there too."""
    servers = [search.server.replication(index) for index in range(search.replications)]
    requests = min(ALONE, search.server.requests)
    parts = [one_trial(each, rate, capacity(each), requests) for each in servers]
    whole = together(parts, math.inf)
    terms = []
    for index, each in enumerate(whole.terms):
        worst = min if each.term.comparison == ">=" else max
        terms.append(replace(each, estimate=worst(part.terms[index].estimate for part in parts)))
    return replace(whole, terms=tuple(terms))


def _all_together(search: Search, rate: float) -> tuple[TrialResult, TrialResult]:
    """Find the highest rate at which all replications together hold, and the next one, which fails."""

    def trial(rate: float) -> TrialResult:
        return try_rate(Trial(search.server, rate, search.replications))

    found = trial(rate)
    if found.met:
        while True:
            # A rate beyond capacity fails, and the result names the terms that fail there.
            higher = trial(found.rate_per_s * (1 + search.precision))
            if not higher.met:
                return found, higher
            found = higher
    for _ in range(MOST_STEPS_DOWN):
        lower = trial(found.rate_per_s * (1 - search.precision))
        if lower.met:
            return lower, found
        found = lower
    return found, found


def _search(server: Server, precision: float, guess_per_s: float | None) -> RateSearch:
    """Search one replication: the highest rate that held, and the lowest rate above it that failed."""
    trials: list[TrialResult] = []
    most = capacity(server)

    def holds(rate: float) -> bool:
        trials.append(one_trial(server, rate, most))
        return trials[-1].met

    guess, lightest = guess_per_s or 0.7 * most.rate_per_s, LIGHTEST * most.rate_per_s
    if guess_per_s is None and not holds(guess):
        alone = one_trial(server, lightest, most, min(ALONE, server.requests))
        if _out_of_reach(alone):
            trials.append(alone)
            return _bracketed(server, trials, 0.0, lightest, most)
    low, high = _bracket(holds, guess, lightest, STEP if guess_per_s is None else GUESSED_STEP)
    while low > 0 and (high - low) > precision * high:
        middle = math.sqrt(low * high) if high > 2 * low else (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return _bracketed(server, trials, low, high, most)


def _bracketed(
    server: Server, trials: Sequence[TrialResult], low: float, high: float, most: Capacity
) -> RateSearch:
    by_rate = {trial.rate_per_s: trial for trial in trials}
    return RateSearch(
        policy=server.policy,
        variant="base",
        rate_per_s=low,
        failing_rate_per_s=high,
        capacity_per_s=most.rate_per_s,
        at_rate=by_rate.get(low),
        beyond=by_rate[high],
        trials=tuple(trials),
        seed_rates=(math.sqrt(low * high),),
        rate_low_per_s=math.nan,
        rate_high_per_s=math.nan,
    )


def _out_of_reach(alone: TrialResult) -> bool:
    """Whether requests served alone miss a term by more than chance."""
    if alone.saturated:
        return False  # another cause than load; the search decides
    return any(_missed(each) for each in alone.terms)


def _missed(found: TermResult) -> bool:
    """Whether a term is missed by more than the half-width of what was attained."""
    term, half = found.term, 0.0 if math.isnan(found.ci95) else found.ci95
    if term.per_request:
        return found.share + half < term.required_share
    if term.comparison == ">=":
        return found.estimate + half < term.bound
    return found.estimate - half > term.bound


def _bracket(
    holds: Callable[[float], bool], guess: float, lightest: float, step: float
) -> tuple[float, float]:
    """Return a rate that holds and a higher one that fails; (0, lightest) when none holds."""
    rate, factor = guess, step
    if holds(rate):
        while True:
            low, rate = rate, rate * factor
            if not holds(rate):
                return low, rate
            factor *= step
    while True:
        high, rate = rate, rate / factor
        if rate < lightest:
            return (lightest, high) if high > lightest and holds(lightest) else (0.0, high)
        if holds(rate):
            return rate, high
        factor *= step


def interpolated_rate(trials: Sequence[TrialResult], sla: Sla) -> float:
    """Return the highest rate at which every term of an SLA holds, from trials already made.

    Estimates are linear in rate between trials, and a saturated trial fails. NaN when the lightest trial
    fails; the highest trial's rate when all hold. Terms are matched by the quantity that they bound.
    """
    ordered = sorted(trials, key=lambda trial: trial.rate_per_s)
    best = float("nan")
    for before, trial in zip([None, *ordered], ordered, strict=False):
        margins = _margins(trial, sla)
        if margins.min() >= 0:
            best = trial.rate_per_s
            continue
        if before is None:
            return best
        if trial.saturated:
            return best
        past = _margins(before, sla)
        share = float(np.min(np.where(margins < 0, past / np.maximum(past - margins, 1e-300), 1.0)))
        return best + share * (trial.rate_per_s - best)
    return best


def _margins(trial: TrialResult, sla: Sla) -> Floats:
    """Return the distance of each estimate from its bound, [terms], positive inside; -inf when saturated."""
    if trial.saturated:
        return np.full(len(sla.terms), -np.inf)
    signs = [1.0 if term.comparison == ">=" else -1.0 for term in sla.terms]
    return np.array(
        [s * (trial.outcome(t).estimate - t.bound) for s, t in zip(signs, sla.terms, strict=True)]
    )
