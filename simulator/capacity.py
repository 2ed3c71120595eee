"""How much one replica carries: trials at a rate, and the search for the highest that keeps an SLA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from simulator.deployment import Plan
from simulator.errors import BadInputError
from simulator.executors import SimulatedExecutor
from simulator.fleet import Fleet, FleetRun, simulate_fleet
from simulator.metrics import steps_frame
from simulator.serving import WAITS, EngineLimits
from simulator.simulation import run_engine
from simulator.sla import MATERIAL_GROWTH, Assessment, Sla, Term, saturated_assessment, unseen
from simulator.statistics import BATCHES, mean_interval, rate_interval
from simulator.sweep import content_hash
from simulator.traffic import (
    ClosedLoop,
    DiurnalArrivals,
    PoissonArrivals,
    ReplayTraffic,
    SyntheticTraffic,
    Traffic,
)
from simulator.workload import Workload

MUCH_WAITING = 0.1
"""Share of a request's time of decoding above which its waiting is worth naming."""

LIGHTEST = 0.02
"""Share of the capacity below which no rate is tried: requests are then served alone."""

ALONE = 200
"""Requests of the first trial at the lightest load. It only has to say that an SLA is out of reach."""

REPLICATIONS = 5
"""Independent trials behind a rate that is reported: the fewest for which a t interval is not mostly t."""

MOST_STEPS_DOWN = 20
"""Steps of the precision from the mean of the replications down to a rate that all of them keep together."""

STEP, GUESSED_STEP = 1.25, 1.06
"""First step of the search away from its first rate, without and with a rate known to be near the answer."""


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

    def replication(self, index: int) -> Server:
        """The same with other random numbers; number 0 is the server itself."""
        return replace(self, seed=replication_seed(self.seed, index))


def replication_seed(seed: int, index: int) -> int:
    """Seed of a replication, unrelated to any other; number 0 has the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclass(frozen=True, slots=True)
class Trial:
    """A server at one rate, in so many independent replications: a cell of a sweep.

    requests: of each replication, by default the server's.
    """

    server: Server
    rate_per_s: float
    replications: int = 1
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Look for the highest sustainable rate to a relative precision: a cell of a sweep.

    guess_per_s: a rate near the answer, where one is known. replications: independent searches, from which
    the rate and its interval come.
    """

    server: Server
    precision: float
    variant: str = "base"
    guess_per_s: float | None = None
    replications: int = 1

    def __post_init__(self) -> None:
        if not 0.001 <= self.precision <= 0.5:
            raise BadInputError("must be between 0.1% and 50%", field="precision", value=self.precision)


def try_rate(trial: Trial) -> dict[str, Any]:
    """Serve one replica's share of the traffic at a rate, and judge it: one row.

    Columns: rate_per_s, met, saturated, attainment and its interval, goodput, a mapping of every term's
    estimate, share and interval, the run's metrics, what waiting requests waited for, and the trend of the
    queue with its interval. Of several replications: the means, and t intervals over the replications.
    """
    servers = [trial.server.replication(index) for index in range(trial.replications)]
    if len(servers) == 1:
        return _one_trial(trial.server, trial.rate_per_s, capacity(trial.server), trial.requests)
    # Each replication draws its own lengths; what all of them carry on average is the bound.
    most = float(np.mean([capacity(each).ceiling_per_s for each in servers]))
    rows = [_one_trial(each, trial.rate_per_s, UNBOUNDED, trial.requests) for each in servers]
    return together(rows, trial.server.sla, most)


def _one_trial(
    server: Server, rate_per_s: float, most: Capacity, requests: int | None = None
) -> dict[str, Any]:
    """One replication. What lies above physical capacity is saturated, however calm a short trial looks."""
    workload = share_at_rate(server.traffic, rate_per_s, requests or server.requests, server.seed)
    fleet = Fleet(1, server.limits, prefix_cache_tokens=server.prefix_cache_tokens)
    run = simulate_fleet(workload, server.plans, fleet, server.sla, seed=server.seed)
    if rate_per_s > most.ceiling_per_s and not run.assessment.saturated:
        run = replace(run, assessment=saturated_assessment(server.sla, run.assessment.requests), metrics=None)
    return {"policy": server.policy, "rate_per_s": rate_per_s} | _row(run)


def find_rate(search: Search) -> dict[str, Any]:
    """The highest rate at which every term holds, by bisection on simulated attainment.

    Within a replication the same requests arrive at every rate, faster or slower, so that attainment hardly
    wanders. Each replication is searched by itself; ``seed_rates`` are their answers, the middle of the last
    bracket each. The rate reported is the highest, in steps of the precision from their mean, at which all
    replications together keep the SLA: a queue's tail is skewed, so most single trials see less of it than
    there is. ``rate_low_per_s`` to ``rate_high_per_s`` is the 95% t interval of the seeds' rates, about the
    mean and about the rate reported. With one replication the rate is the highest that held, and there is no
    interval.

    Returns also the first replication's bracket with its trials. ``rate_per_s`` is 0 when not even the
    lightest load holds.
    """
    first = _search(search.server, search.precision, search.guess_per_s)
    row = {"policy": search.server.policy, "variant": search.variant} | first
    low = float(first["rate_per_s"])
    if low == 0 and search.replications > 1:
        row["beyond"] = _worst_alone(search, float(first["failing_rate_per_s"]))
    if low == 0 or search.replications == 1:
        middle = math.sqrt(low * float(first["failing_rate_per_s"]))
        return row | {"seed_rates": [middle], "rate_low_per_s": math.nan, "rate_high_per_s": math.nan}
    servers = [search.server.replication(index) for index in range(search.replications)]
    others = [_search(each, 1.5 * search.precision, low) for each in servers[1:]]
    middles = [math.sqrt(each["rate_per_s"] * each["failing_rate_per_s"]) for each in (first, *others)]
    ceilings = np.array([capacity(each).ceiling_per_s for each in servers])
    rates = np.minimum(middles, ceilings)
    mean, half = mean_interval(rates)
    at_rate, beyond = _all_together(search, mean)
    rate = at_rate["rate_per_s"] if at_rate["met"] else 0.0
    most, most_half = mean_interval(ceilings) if np.isfinite(ceilings).all() else (math.inf, 0.0)
    return row | {
        "rate_per_s": rate,
        "failing_rate_per_s": beyond["rate_per_s"],
        "rate_low_per_s": max(min(mean, rate) - half, 0.0),
        "rate_high_per_s": min(max(mean, rate) + half, max(most + most_half, rate)),
        "seed_rates": rates.tolist(),
        "at_rate": at_rate,
        "beyond": beyond,
    }


def _worst_alone(search: Search, rate: float) -> dict[str, Any]:
    """What requests get at a rate in the worst of the replications: that much may be promised."""
    servers = [search.server.replication(index) for index in range(search.replications)]
    requests = min(ALONE, search.server.requests)
    rows = [_one_trial(each, rate, capacity(each), requests) for each in servers]
    row = together(rows, search.server.sla, math.inf)
    for term in search.server.sla.terms:
        estimates = [each["terms"][term.text]["estimate"] for each in rows]
        row["terms"][term.text]["estimate"] = (min if term.comparison == ">=" else max)(estimates)
    return row


def _all_together(search: Search, rate: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The highest rate at which all replications together hold, and the one a precision above that fails."""

    def trial(rate: float) -> dict[str, Any]:
        return try_rate(Trial(search.server, rate, search.replications))

    row = trial(rate)
    if row["met"]:
        while True:
            # Beyond capacity there is nothing to try, but what fails there is worth knowing.
            higher = trial(row["rate_per_s"] * (1 + search.precision))
            if not higher["met"]:
                return row, higher
            row = higher
    for _ in range(MOST_STEPS_DOWN):
        lower = trial(row["rate_per_s"] * (1 - search.precision))
        if lower["met"]:
            return lower, row
        row = lower
    return row, row


def _search(server: Server, precision: float, guess_per_s: float | None) -> dict[str, Any]:
    """One replication's bracket: the highest rate that held, and the lowest above it that did not."""
    trials: list[dict[str, Any]] = []
    most = capacity(server)

    def holds(rate: float) -> bool:
        trials.append(_one_trial(server, rate, most))
        return bool(trials[-1]["met"])

    guess, lightest = guess_per_s or 0.7 * most.rate_per_s, LIGHTEST * most.rate_per_s
    if guess_per_s is None and not holds(guess):
        alone = _one_trial(server, lightest, most, min(ALONE, server.requests))
        if _out_of_reach(alone, server.sla):
            trials.append(alone)
            return _bracketed(trials, 0.0, lightest, most)
    low, high = _bracket(holds, guess, lightest, STEP if guess_per_s is None else GUESSED_STEP)
    while low > 0 and (high - low) > precision * high:
        middle = math.sqrt(low * high) if high > 2 * low else (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return _bracketed(trials, low, high, most)


def _bracketed(trials: list[dict[str, Any]], low: float, high: float, most: Capacity) -> dict[str, Any]:
    by_rate = {trial["rate_per_s"]: trial for trial in trials}
    return {
        "rate_per_s": low,
        "failing_rate_per_s": high,
        "capacity_per_s": most.rate_per_s,
        "at_rate": by_rate.get(low),
        "beyond": by_rate[high],
        "trials": trials,
    }


def _out_of_reach(alone: dict[str, Any], sla: Sla) -> bool:
    """Whether requests served alone miss a term by more than chance."""
    if alone["saturated"]:
        return False  # something else than load: let the search find out
    for term in sla.terms:
        found = alone["terms"][term.text]
        promised, got = (
            (term.required_share, found["share"]) if term.per_request else (term.bound, found["estimate"])
        )
        half = 0.0 if math.isnan(found["ci95"]) else found["ci95"]
        missed = (
            got + half < promised if term.per_request or term.comparison == ">=" else got - half > promised
        )
        if missed:
            return True
    return False


# --- physical capacity --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests per second that one replica can serve at most, by stage.

    decode_per_s: the engine with its line never empty, so with every slot, all KV cache or every chunk of
    prompts in use, whichever ends first; ``decode_ci95`` is its half-width. pool_per_s: the prefill pool.
    """

    decode_per_s: float
    decode_ci95: float
    pool_per_s: float

    @property
    def rate_per_s(self) -> float:
        """The narrowest stage."""
        return min(self.decode_per_s, self.pool_per_s)

    @property
    def ceiling_per_s(self) -> float:
        """A rate that is beyond capacity for sure."""
        return min(self.decode_per_s + self.decode_ci95, self.pool_per_s)


UNBOUNDED = Capacity(math.inf, 0.0, math.inf)

_KNOWN: dict[str, Capacity] = {}


def capacity(server: Server) -> Capacity:
    """Mean service rate of every stage, for the very requests that the server's trials have.

    All requests are there at once, and the engine is measured while some of them wait: from the first fifth
    of that time, when the batch has mixed, to its end. The pool's rate is its prompt tokens per second over
    the mean prompt; where a prefix cache saves an unknown part of the prompts, prefill bounds nothing.
    """
    key = content_hash(capacity, server)
    if key not in _KNOWN:
        _KNOWN[key] = _measured_capacity(server)
    return _KNOWN[key]


def _measured_capacity(server: Server) -> Capacity:
    sample = share_at_rate(server.traffic, 1.0, server.requests, server.seed)
    limits, pool_per_s = server.limits, math.inf
    if server.prefix_cache_tokens is None:
        pool_per_s = limits.pool_tokens_per_s / float(sample.prompt_tokens.mean())
        limits = replace(limits, prefill_tokens_per_s=None)
    else:
        limits = replace(limits, prefill="elsewhere", prefill_tokens_per_s=None)
    steps = _overloaded_steps(server, replace(sample, arrival_s=np.zeros(len(sample))), limits)
    tokens = max(float(sample.output_tokens.mean()) - 1, 1.0)
    waiting = steps.iloc[: int((steps["waiting"] > 0).sum())]
    full = waiting.iloc[len(waiting) // 5 :]
    if len(full) < 2 * BATCHES:  # too few requests to fill the engine: how long they took is all there is
        return Capacity(len(sample) / float(steps["end_s"].iloc[-1]), math.inf, pool_per_s)
    committed, elapsed = full["committed_tokens"].to_numpy()[1:], np.diff(full["end_s"].to_numpy())
    rate, half = rate_interval(committed, elapsed)
    return Capacity(rate / tokens, half / tokens, pool_per_s)


def _overloaded_steps(server: Server, workload: Workload, limits: EngineLimits) -> pd.DataFrame:
    plan, replays = server.plans[0], [each.replay(server.seed) for each in server.plans]
    executor = SimulatedExecutor(replays, workload, plan.cost, capacity=limits.concurrency, seed=server.seed)
    engine = run_engine(workload, executor, plan.scheduler, plan.believed, limits, seed=server.seed)
    return steps_frame(engine)


def closed_loop_capacity(server: Server) -> float:
    """Requests per second of one replica that always has more to do: a scale for rates, not a promise."""
    return capacity(server).rate_per_s


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
    """What stops a replica from carrying more: the terms that give first, and what requests wait for most.

    Waiting is named where the terms that fail measure it (time to first token, end-to-end time, saturation),
    or where it makes up more than ``MUCH_WAITING`` of a request's decoding. Otherwise steps take too long.
    """
    beyond = found["beyond"]
    failing = [name for name, term in beyond["terms"].items() if not term["met"]]
    broken = "saturation (the queue grows without bound)" if beyond["saturated"] else ", ".join(failing)
    reasons = {
        "waited_slot_s": f"the concurrency limit of {limits.concurrency}",
        "waited_kv_s": f"the KV capacity of {limits.kv_tokens or 0:,} tokens",
        "waited_pool_s": "the prefill pool",
        "waited_prefill_s": "the prefill of prompts before theirs",
        "waited_step_s": "",  # whoever arrives waits for the step under way
    }
    longest = max(reasons, key=lambda name: float(beyond[name]))
    measured = beyond["saturated"] or any("ttft" in name or "e2e" in name for name in failing)
    metrics = beyond["metrics"]
    decoding_s = metrics["concurrency_mean"] / beyond["rate_per_s"] if metrics else 0.0  # Little's law
    if not reasons[longest] or not (measured or beyond[longest] > MUCH_WAITING * decoding_s):
        return f"{broken}; step time"
    return f"{broken}; requests wait {beyond[longest]:.2g} s on average for {reasons[longest]}"


def _bracket(
    holds: Callable[[float], bool], guess: float, lightest: float, step: float
) -> tuple[float, float]:
    """A rate that holds and a higher one that does not; (0, lightest) when none above it holds."""
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
        "queue_trend_per_s": float(run.replicas["queue_trend_per_s"].mean()),
        "queue_trend_ci95": float(np.sqrt((run.replicas["queue_trend_ci95"] ** 2).sum()) / len(run.replicas)),
        "replications": 1,
        "seed_tps": [run.metrics.tps_mean if run.metrics else math.nan],
        **{name: float(run.replicas[name].mean()) for name in WAITS},
    }  # fmt: skip


def together(rows: Sequence[dict[str, Any]], sla: Sla, most_per_s: float) -> dict[str, Any]:
    """Replications of one trial as one row: means, t intervals over replications, judged together.

    Saturated above the rate that they can serve at most, when most of them are, or when their queues grow by
    more than chance: a queue that grows slowly shows only in all of them. A single replication whose queue
    grew kept no promise on waiting, and says nothing of speeds. seed_tps: each replication's mean speed.
    """
    rate = rows[0]["rate_per_s"]
    trend, trend_half = mean_interval(np.array([row["queue_trend_per_s"] for row in rows]))
    saturated = (
        rate > most_per_s
        or 2 * sum(row["saturated"] for row in rows) > len(rows)
        or bool(trend - trend_half > 0 and trend > MATERIAL_GROWTH * rate)
    )
    terms = {term.text: _term_together(term, [row["terms"][term.text] for row in rows]) for term in sla.terms}
    waiting = any(_measures_waiting(term) for term in sla.terms)
    kept, half = _known_interval([row["attainment"] for row in rows], 0.0 if waiting else math.nan)
    means = ("goodput_per_s", "steps_outside_fraction", *WAITS)
    known = [row["metrics"] for row in rows if row["metrics"]]
    requests = sum(row["requests"] for row in rows)
    return rows[0] | {
        "met": not saturated and all(each["met"] for each in terms.values()),
        "saturated": saturated,
        "attainment": math.nan if saturated else kept,
        "attainment_ci95": math.nan if saturated else max(half, unseen(kept, requests)),
        "requests": requests,
        "terms": terms,
        "metrics": {name: _mean([each[name] for each in known]) for name in known[0]} if known else None,
        "queue_trend_per_s": trend,
        "queue_trend_ci95": trend_half,
        "replications": len(rows),
        "seed_tps": [row["metrics"]["tps_mean"] if row["metrics"] else math.nan for row in rows],
        **{name: _mean([row[name] for row in rows]) for name in means},
    }


def _measures_waiting(term: Term) -> bool:
    """Whether a growing queue breaks a term, sooner or later."""
    return any(name in term.key for name in ("ttft", "e2e", "queue"))


def _term_together(term: Term, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A term over replications: judged by its mean share, or by its mean estimate where it has no share."""
    worst = math.inf if term.comparison == "<=" else 0.0
    waits = _measures_waiting(term)
    estimate, half = _known_interval([part["estimate"] for part in parts], worst if waits else math.nan)
    if not term.per_request:
        return {"met": bool(term.holds(estimate)), "estimate": estimate, "share": math.nan, "ci95": half}
    share, half = _known_interval([part["share"] for part in parts], 0.0 if waits else math.nan)
    met = bool(share >= term.required_share - 1e-12) or all(part["met"] for part in parts)
    return {"met": met, "estimate": estimate, "share": share, "ci95": half}


def _known_interval(values: Sequence[float], instead: float) -> tuple[float, float]:
    """Mean and 95% half-width over replications; those without a value count as ``instead``, NaN: not."""
    filled = np.array([instead if math.isnan(value) else value for value in values])
    filled = filled[~np.isnan(filled)]
    if not filled.size:
        return math.nan, math.nan
    return mean_interval(filled) if np.isfinite(filled).all() else (float(filled.max()), math.nan)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


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
