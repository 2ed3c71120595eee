"""The search for the highest rate at which one replica keeps an SLA."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.capacity.bounds import UNBOUNDED, Capacity, capacity
from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.server import Server
from simulator.capacity.trials import Trial, one_trial, together
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


RunCells = Callable[[Any, Sequence[Any], str], list[dict[str, Any]]]
"""Runs a function on cells under a label, as ``parallel.cells.Sweeping.run`` does."""


@dataclass(frozen=True, slots=True)
class Replication:
    """The search of one replication: a cell of a sweep."""

    server: Server
    precision: float
    guess_per_s: float | None


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
    return find_rates([search], lambda function, cells, _: [function(cell) for cell in cells])[0]


def find_rates(searches: Sequence[Search], run: RunCells) -> list[RateSearch]:
    """Find the rates of several searches, all replications side by side; see ``find_rate``."""
    firsts = run(replication_row, first_replications(searches), "Sustainable rates")
    return finish_rates(searches, firsts, run)


def first_replications(searches: Sequence[Search]) -> list[Replication]:
    """Return the first replication of each search, a cell of ``replication_row``."""
    return [Replication(each.server, each.precision, each.guess_per_s) for each in searches]


def finish_rates(
    searches: Sequence[Search], rows: Sequence[dict[str, Any]], run: RunCells
) -> list[RateSearch]:
    """Find the rates of several searches whose first replications are there: ``rows``.

    Further replications start where the first one ends, which is near their answers.
    """
    firsts = [_Found.of(row) for row in rows]
    several = [(each, first) for each, first in zip(searches, firsts, strict=True) if each.replications > 1]
    further = [
        Replication(each.server.replication(index), 1.5 * each.precision, first.search.rate_per_s)
        for each, first in several
        for index in range(1, each.replications)
        if first.search.feasible
    ]
    others = (_Found.of(row) for row in run(replication_row, further, "Their replications"))
    feasible = [
        _Together(each, (first, *(next(others) for _ in range(1, each.replications))))
        for each, first in several
        if first.search.feasible
    ]
    alone = [
        Trial(each.server, first.search.failing_rate_per_s, each.replications)
        for each, first in several
        if not first.search.feasible
    ]
    failed = run(worst_alone_row, alone, "Lightest load") if alone else []
    worst = (TrialResult.from_row(row) for row in failed)
    settled = iter(_settled(feasible, run))
    found = []
    for each, first in zip(searches, firsts, strict=True):
        result = first.search
        if each.replications > 1:
            result = next(settled) if result.feasible else replace(result, beyond=next(worst))
        found.append(replace(result, variant=each.variant))
    return found


@dataclass(frozen=True, slots=True)
class _Found:
    """What one replication found, and the highest rate that its capacity leaves possible."""

    search: RateSearch
    ceiling_per_s: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> _Found:
        return cls(RateSearch.from_row(row["search"]), row["ceiling_per_s"])


def replication_row(cell: Replication) -> dict[str, Any]:
    """Search one replication as a cell of a sweep; returns the values of ``_Found``."""
    found = _search(cell.server, cell.precision, cell.guess_per_s)
    return {"search": found.as_row(), "ceiling_per_s": capacity(cell.server).ceiling_per_s}


def worst_alone_row(trial: Trial) -> dict[str, Any]:
    """Return the results of the worst replication at a rate: a promise must hold there too."""
    servers = [trial.server.replication(index) for index in range(trial.replications)]
    requests = min(ALONE, trial.server.requests)
    parts = [one_trial(each, trial.rate_per_s, capacity(each), requests) for each in servers]
    whole = together(parts, math.inf)
    terms = []
    for index, each in enumerate(whole.terms):
        worst = min if each.term.comparison == ">=" else max
        terms.append(replace(each, estimate=worst(part.terms[index].estimate for part in parts)))
    return replace(whole, terms=tuple(terms)).as_row()


@dataclass(frozen=True, slots=True)
class _Together:
    """Replications of one search, to be tried at the same rates."""

    search: Search
    found: tuple[_Found, ...]

    @property
    def ceilings(self) -> Floats:
        return np.array([each.ceiling_per_s for each in self.found])

    @property
    def rates(self) -> Floats:
        """The answer of each replication, [replications]."""
        return np.minimum([each.search.seed_rates[0] for each in self.found], self.ceilings)

    def trials(self, rate: float) -> list[Trial]:
        """Return the trial of each replication at a rate."""
        server = self.search.server
        return [Trial(server.replication(index), rate) for index in range(len(self.found))]

    def result(self, at_rate: TrialResult, beyond: TrialResult) -> RateSearch:
        """Return the answer; see ``find_rate``."""
        mean, half = mean_interval(self.rates)
        rate = at_rate.rate_per_s if at_rate.met else 0.0
        finite = np.isfinite(self.ceilings).all()
        most, most_half = mean_interval(self.ceilings) if finite else (math.inf, 0.0)
        return replace(
            self.found[0].search,
            rate_per_s=rate,
            failing_rate_per_s=beyond.rate_per_s,
            rate_low_per_s=max(min(mean, rate) - half, 0.0),
            rate_high_per_s=min(max(mean, rate) + half, max(most + most_half, rate)),
            seed_rates=tuple(self.rates.tolist()),
            at_rate=at_rate,
            beyond=beyond,
        )


def _settled(searches: Sequence[_Together], run: RunCells) -> list[RateSearch]:
    """Try the replications of each search together, all searches side by side, rate after rate."""
    walks = [_common_rate(float(each.rates.mean()), each.search.precision) for each in searches]
    asked = {index: next(walk) for index, walk in enumerate(walks)}
    found: dict[int, RateSearch] = {}
    while asked:
        cells = [trial for index, rate in asked.items() for trial in searches[index].trials(rate)]
        rows = iter(run(unbounded_trial_row, cells, "Replications together"))
        tried = {}
        for index in asked:
            parts = [TrialResult.from_row(next(rows)) for _ in searches[index].found]
            tried[index] = together(parts, float(searches[index].ceilings.mean()))
        asked = {}
        for index, trial in tried.items():
            try:
                asked[index] = walks[index].send(trial)
            except StopIteration as done:
                found[index] = searches[index].result(*done.value)
    return [found[index] for index in range(len(searches))]


def unbounded_trial_row(trial: Trial) -> dict[str, Any]:
    """Try a rate as a cell of a sweep, whatever the capacity: that is for all replications to say."""
    return one_trial(trial.server, trial.rate_per_s, UNBOUNDED).as_row()


def _common_rate(
    rate: float, precision: float
) -> Generator[float, TrialResult, tuple[TrialResult, TrialResult]]:
    """Ask for trials at rates; returns the highest rate at which all holds, and the next one, which fails."""
    found = yield rate
    if found.met:
        while True:
            # A rate beyond capacity fails, and the result names the terms that fail there.
            higher = yield found.rate_per_s * (1 + precision)
            if not higher.met:
                return found, higher
            found = higher
    for _ in range(MOST_STEPS_DOWN):
        lower = yield found.rate_per_s * (1 - precision)
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
