"""How much one replica carries: trials at a rate, and the search for the highest that keeps an SLA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.deployment import Plan
from simulator.errors import BadInputError
from simulator.fleet import Fleet, FleetRun, simulate_fleet
from simulator.serving import WAITS, EngineLimits
from simulator.simulation import simulate
from simulator.sla import Assessment, Sla
from simulator.traffic import (
    ClosedLoop,
    DiurnalArrivals,
    PoissonArrivals,
    ReplayTraffic,
    SyntheticTraffic,
    Traffic,
)
from simulator.workload import Workload

LIGHTEST = 0.02
"""Share of the closed-loop capacity below which no rate is tried: requests are then served alone."""

CAPACITY_STEPS = 400
"""Engine steps of the closed-loop run that gives the search its scale; it decides nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """One replica of a policy under an SLA. plans: one per traffic class, of one policy."""

    plans: tuple[Plan, ...]
    limits: EngineLimits
    sla: Sla
    traffic: Traffic
    requests: int
    seed: int
    prefix_cache_tokens: int | None = None

    @property
    def policy(self) -> str:
        """Name of the policy."""
        return self.plans[0].policy.name


@dataclass(frozen=True, slots=True)
class Trial:
    """A server at one rate: a cell of a sweep."""

    server: Server
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class Search:
    """Look for the highest sustainable rate to a relative precision: a cell of a sweep.

    guess_per_s: a rate near the answer, where one is known.
    """

    server: Server
    precision: float
    variant: str = "base"
    guess_per_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.001 <= self.precision <= 0.5:
            raise BadInputError("must be between 0.1% and 50%", field="precision", value=self.precision)


def try_rate(trial: Trial) -> dict[str, Any]:
    """Serve one replica's share of the traffic at a rate, and judge it: one row.

    Columns: rate_per_s, met, saturated, attainment and its interval, goodput, a mapping of every term's
    estimate, share and interval, the run's metrics, and what waiting requests waited for.
    """
    server = trial.server
    workload = share_at_rate(server.traffic, trial.rate_per_s, server.requests, server.seed)
    fleet = Fleet(1, server.limits, prefix_cache_tokens=server.prefix_cache_tokens)
    run = simulate_fleet(workload, server.plans, fleet, server.sla, seed=server.seed)
    return {"policy": server.policy, "rate_per_s": trial.rate_per_s} | _row(run)


def find_rate(search: Search) -> dict[str, Any]:
    """The highest rate at which every term holds, by bisection on simulated attainment.

    The same requests arrive at every rate, faster or slower, so that attainment hardly wanders. Returns
    the highest rate that held and the lowest above it that did not, at most ``precision`` apart, with
    their trials, and all trials made. ``rate_per_s`` is 0 when not even the lightest load holds.
    """
    server, trials = search.server, []

    def holds(rate: float) -> bool:
        trials.append(try_rate(Trial(server, rate)))
        return bool(trials[-1]["met"])

    capacity = closed_loop_capacity(server)
    low, high = _bracket(holds, search.guess_per_s or 0.7 * capacity, LIGHTEST * capacity)
    while low > 0 and (high - low) > search.precision * high:
        middle = math.sqrt(low * high) if high > 2 * low else (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    by_rate = {trial["rate_per_s"]: trial for trial in trials}
    return {
        "policy": server.policy,
        "variant": search.variant,
        "rate_per_s": low,
        "failing_rate_per_s": high,
        "closed_loop_per_s": capacity,
        "at_rate": by_rate.get(low),
        "beyond": by_rate[high],
        "trials": trials,
    }


def closed_loop_capacity(server: Server) -> float:
    """Requests per second of one replica whose slots are always full: a scale for rates, not a promise."""
    sample = share_at_rate(server.traffic, 1.0, min(server.requests, 1000), server.seed)
    plan = server.plans[0]
    run = simulate(
        replace(sample, arrival_s=None),
        [each.replay(server.seed) for each in server.plans],
        plan.scheduler,
        plan.cost,
        replace(server.limits, prefill_tokens_per_s=None),
        believed=plan.believed,
        seed=server.seed,
        steps=CAPACITY_STEPS,
    )
    tokens_per_s, limits = run.metrics.throughput_tok_per_s, server.limits
    decode = tokens_per_s / max(float(sample.output_tokens.mean()) - 1, 1.0)
    return min(decode, limits.pool_tokens_per_s / float(sample.prompt_tokens.mean()))


def share_at_rate(traffic: Traffic, rate_per_s: float, requests: int, seed: int) -> Workload:
    """What one replica sees when its share of the traffic comes at ``rate_per_s``: so many requests.

    A process keeps its burstiness at the lower rate; one that swings over the day is taken as Poisson at
    a fixed rate, a trial being short against the day. A recording is resampled as a whole, at the rate of
    its peak (``replay.resampled``).
    """
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise BadInputError("must be positive", field="rate", value=rate_per_s)
    if isinstance(traffic, SyntheticTraffic):
        if isinstance(traffic.arrivals, ClosedLoop):
            raise BadInputError("has no rate to plan for", field="traffic", value="closed")
        if isinstance(traffic.arrivals, DiurnalArrivals):
            return replace(traffic, arrivals=PoissonArrivals(rate_per_s)).workload(seed, requests=requests)
        return traffic.scaled(rate_per_s / traffic.arrivals.rate_per_s).workload(seed, requests=requests)
    if isinstance(traffic, ReplayTraffic):
        return traffic.trial(rate_per_s, requests, seed)
    raise BadInputError("cannot be planned for", field="traffic", value=type(traffic).__name__)


def binding(found: dict[str, Any], limits: EngineLimits) -> str:
    """What stops a replica from carrying more: the first term to give, and what requests waited for."""
    beyond = found["beyond"]
    if beyond["saturated"]:
        broken = "saturation (the queue grows without bound)"
    else:
        broken = ", ".join(name for name, term in beyond["terms"].items() if not term["met"])
    reasons = {
        "waited_slot_s": f"concurrency limit of {limits.concurrency}",
        "waited_kv_s": f"KV capacity of {limits.kv_tokens or 0:,} tokens",
        "waited_pool_s": "the prefill pool",
        "waited_prefill_s": "prefill",
        "waited_step_s": "",
    }
    # Whoever arrives waits for the step under way; what keeps requests longer than that is worth naming.
    longest = max(reasons, key=lambda name: float(beyond[name]))
    return f"{broken}; requests wait for {reasons[longest]}" if reasons[longest] else f"{broken}; step time"


def _bracket(holds: Any, guess: float, lightest: float) -> tuple[float, float]:
    """A rate that holds and a higher one that does not; (0, lightest) when none above it holds."""
    rate, factor = guess, 1.25
    if holds(rate):
        while True:
            low, rate = rate, rate * factor
            if not holds(rate):
                return low, rate
            factor *= 1.25
    while True:
        high, rate = rate, rate / factor
        if rate < lightest:
            return (lightest, high) if high > lightest and holds(lightest) else (0.0, high)
        if holds(rate):
            return rate, high
        factor *= 1.25


def _row(run: FleetRun) -> dict[str, Any]:
    judged: Assessment = run.assessment
    return {
        "met": judged.met,
        "saturated": judged.saturated,
        "attainment": judged.attainment,
        "attainment_ci95": judged.attainment_ci95,
        "goodput_per_s": judged.goodput_per_s,
        "requests": judged.requests,
        "terms": {
            each.term.text: {
                "met": each.met, "estimate": each.estimate, "share": each.share, "ci95": each.ci95
            }
            for each in judged.terms
        },
        "metrics": run.metrics.as_row() if run.metrics else None,
        "steps_outside_fraction": float(run.replicas["steps_outside_fraction"].mean()),
        **{name: float(run.replicas[name].mean()) for name in WAITS},
    }  # fmt: skip


def interpolated_rate(trials: Sequence[dict[str, Any]], sla: Sla) -> float:
    """Highest rate at which every quantile and mean of an SLA holds, read off trials made already.

    Estimates are interpolated linearly in rate between trials, a saturated trial fails. NaN when the
    lightest trial fails; the highest trial's rate when all hold. Terms are matched by what they bound.
    """
    ordered = sorted(trials, key=lambda trial: float(trial["rate_per_s"]))
    best = float("nan")
    for before, trial in zip([None, *ordered], ordered, strict=False):
        margins = _margins(trial, sla)
        if margins.min() >= 0:
            best = float(trial["rate_per_s"])
            continue
        if before is None:
            return best
        if trial["saturated"]:
            return best
        past = _margins(before, sla)
        share = float(np.min(np.where(margins < 0, past / np.maximum(past - margins, 1e-300), 1.0)))
        return best + share * (float(trial["rate_per_s"]) - best)
    return best


def _margins(trial: dict[str, Any], sla: Sla) -> np.ndarray:
    """How far inside its bound each term's estimate lies; -inf when saturated."""
    if trial["saturated"]:
        return np.full(len(sla.terms), -np.inf)
    by_key = {name.replace(">=", "<=").split("<=")[0]: term for name, term in trial["terms"].items()}
    signs = [1.0 if term.comparison == ">=" else -1.0 for term in sla.terms]
    return np.array(
        [s * (by_key[t.key]["estimate"] - t.bound) for s, t in zip(signs, sla.terms, strict=True)]
    )
