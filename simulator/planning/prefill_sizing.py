"""How many workers a prefill pool needs: its own queue, without the decode replicas behind it.

The pool emits the first token, so time to first token is the wait for a worker plus the prompt's prefill,
whatever the replicas do afterwards. That makes the pool a queue by itself: first come first served, one
prompt on a worker at a time, each worker at one speed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.capacity.server import share_at_rate
from simulator.core.arrays import Floats
from simulator.core.errors import InfeasibleError
from simulator.fleet.fleet import measured_span
from simulator.sla.terms import Term
from simulator.traffic.sources import Traffic

FEWEST_REQUESTS, MOST_REQUESTS = 5_000, 125_000
"""Requests with which a pool is judged, at least and at most."""

CORRELATED = 50
"""Requests are CORRELATED / (1 - utilisation)**2 where that lies between the two: a queue forgets its past
after about 4 / (1 - utilisation)**2 arrivals (relaxation time of M/M/1), so this is a dozen times as many."""

TIME_TO_FIRST_TOKEN = "ttft"


@dataclass(frozen=True, eq=False)
class PoolSizing:
    """A prefill pool to be sized for a share of ``traffic``.

    tokens_per_s: prompt tokens per second of one worker. gpus: GPUs of a worker. terms: those of an SLA;
    the ones on time to first token size the pool. With none of them nothing is promised about waiting,
    and the least workers that are busy less than all the time are taken.
    Prefixes found in a cache are not deducted: the pool is sized for whole prompts.
    """

    traffic: Traffic
    tokens_per_s: float
    gpus: int
    terms: tuple[Term, ...]
    seed: int = 0
    _mean_tokens: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", _first_token(self.terms))
        sample = share_at_rate(self.traffic, 1.0, 4 * FEWEST_REQUESTS, self.seed)
        object.__setattr__(self, "_mean_tokens", float(sample.prompt_tokens.mean()))

    def utilisation(self, rate_per_s: float, workers: int) -> float:
        """Share of the time for which a worker is busy."""
        return rate_per_s * self._mean_tokens / self.tokens_per_s / workers

    def workers(self, rate_per_s: float, terms: Sequence[Term] | None = None) -> int | None:
        """Least workers that keep every term on time to first token when requests arrive at this rate.

        terms: of another SLA. None where no number of workers is enough: a prompt alone takes too long.
        """
        return _workers(self, rate_per_s, self.terms if terms is None else _first_token(terms))

    def check(self) -> None:
        """``InfeasibleError`` with the nearest feasible terms where no pool can keep the SLA's."""
        ttft_s, classes = _alone(self)
        failing = [term for term in self.terms if not _keeps(term, ttft_s, classes)]
        if not failing:
            return
        alone_s = [_statistic(term, ttft_s, classes) for term in failing]
        nearest = [term.at(_rounded_up(each)).text for term, each in zip(failing, alone_s, strict=True)]
        # Prefill alone takes tokens / speed: the time and the speed change by the same factor.
        enough = max(each / term.bound for term, each in zip(failing, alone_s, strict=True))
        speed = math.ceil(self.tokens_per_s * enough)
        raise InfeasibleError(
            f"no prefill pool keeps {', '.join(term.text for term in failing)}: at {self.tokens_per_s:,.0f} "
            f"tokens/s (replica.prefill_tokens_per_s) prefill alone takes longer; the nearest feasible is "
            f"{', '.join(nearest)}",
            binds=[term.text for term in failing],
            nearest=nearest,
            changes=[f"replica.prefill_tokens_per_s: at least {speed} instead of {self.tokens_per_s:.0f}"],
        )


@dataclass(frozen=True, slots=True)
class PoolAsked:
    """A prefill pool to be sized for requests that arrive at a rate: a cell of a sweep."""

    sizing: PoolSizing
    rate_per_s: float


def pool_workers_row(asked: PoolAsked) -> dict[str, float]:
    """Run ``PoolSizing.workers`` as a cell of a sweep; NaN where no number of workers is enough."""
    found = asked.sizing.workers(asked.rate_per_s)
    return {"workers": math.nan if found is None else float(found)}


def pool_waits_s(arrival_s: Floats, service_s: Floats, workers: int) -> Floats:
    """Seconds that each request waits for a worker, [n]; first come first served."""
    free = [-math.inf] * workers
    starts = []
    for arrival, service in zip(arrival_s.tolist(), service_s.tolist(), strict=True):
        start = arrival if arrival > free[0] else free[0]  # ``max`` would take a third of the time
        starts.append(start)
        heapq.heapreplace(free, start + service)
    return np.array(starts, dtype=np.float64) - arrival_s


@lru_cache(maxsize=1024)
def _workers(sizing: PoolSizing, rate_per_s: float, terms: tuple[Term, ...]) -> int | None:
    fewest = math.floor(sizing.utilisation(rate_per_s, 1)) + 1
    if not terms:
        return fewest
    ttft_s, classes = _alone(sizing)
    if not all(_keeps(term, ttft_s, classes) for term in terms):
        return None

    def enough(workers: int) -> bool:
        served = _ttft(sizing, rate_per_s, workers)
        return served is not None and all(_keeps(term, *served) for term in terms)

    short, most = fewest - 1, max(fewest, math.ceil(sizing.utilisation(rate_per_s, 1) / 0.9))
    while not enough(most):
        if most > FEWEST_REQUESTS + 2 * fewest:  # nobody waits any more: the prompts drawn take too long
            return None
        short, most = most, math.ceil(1.25 * most) + 1
    while most - short > 1:
        middle = (short + most) // 2
        short, most = (short, middle) if enough(middle) else (middle, most)
    return most


@lru_cache(maxsize=64)
def _ttft(sizing: PoolSizing, rate_per_s: float, workers: int) -> tuple[Floats, NDArray[np.str_]] | None:
    """Time to first token and class of every judged request; None where it is too close to saturation."""
    utilisation = sizing.utilisation(rate_per_s, workers)
    needed = CORRELATED / (1 - utilisation) ** 2 if utilisation < 1 else math.inf
    if needed > MOST_REQUESTS:
        return None
    requests = max(FEWEST_REQUESTS, math.ceil(needed))
    workload = share_at_rate(sizing.traffic, rate_per_s, requests, sizing.seed)
    assert workload.arrival_s is not None
    service_s = workload.prompt_tokens / sizing.tokens_per_s
    waits_s = pool_waits_s(workload.arrival_s, service_s, workers)
    from_s, to_s = measured_span(workload)
    judged = (workload.arrival_s >= from_s) & (workload.arrival_s < to_s)
    return (waits_s + service_s)[judged], np.array(workload.classes)[workload.class_index[judged]]


@lru_cache(maxsize=16)
def _alone(sizing: PoolSizing) -> tuple[Floats, NDArray[np.str_]]:
    """Time to first token without any wait, and traffic classes."""
    workload = share_at_rate(sizing.traffic, 1.0, 4 * FEWEST_REQUESTS, sizing.seed)
    return workload.prompt_tokens / sizing.tokens_per_s, np.array(workload.classes)[workload.class_index]


def _first_token(terms: Sequence[Term]) -> tuple[Term, ...]:
    return tuple(term for term in terms if term.metric == TIME_TO_FIRST_TOKEN)


def _mine(term: Term, ttft_s: Floats, classes: NDArray[np.str_]) -> Floats:
    return ttft_s if term.traffic_class is None else ttft_s[classes == term.traffic_class]


def _keeps(term: Term, ttft_s: Floats, classes: NDArray[np.str_]) -> bool:
    mine = _mine(term, ttft_s, classes)
    if not mine.size:
        return True
    if term.quantile is None:
        return bool(term.holds(mine.mean()))
    return bool(term.holds(mine).mean() >= term.required_share - 1e-12)


def _statistic(term: Term, ttft_s: Floats, classes: NDArray[np.str_]) -> float:
    mine = _mine(term, ttft_s, classes)
    return float(mine.mean() if term.quantile is None else np.quantile(mine, term.quantile, method="higher"))


def _rounded_up(seconds: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return math.ceil(seconds / unit) * unit
