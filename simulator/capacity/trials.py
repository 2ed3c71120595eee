"""Trials of one replica at one rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.capacity.bounds import UNBOUNDED, Capacity, capacity
from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.server import Server, share_at_rate
from simulator.core.statistics import mean_interval
from simulator.engine.batch import WAITS
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import Metrics
from simulator.engine.measures.saturation import MATERIAL_GROWTH
from simulator.fleet.fleet import FleetRun, simulate_fleet
from simulator.fleet.layout import Fleet
from simulator.sla.verdict import TermResult, by_rule_of_three, saturated_assessment

MUCH_WAITING = 0.1
"""Least waiting that is named, as a share of a request's time of decoding. A choice."""

REPLICATIONS = 5
"""Independent trials behind a reported rate. A choice: the interval's factor t is 2.8, and 4.3 for three."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A server at one rate, in independent replications: a cell of a sweep.

    requests: of each replication; None: as many as the server's.
    """

    server: Server
    rate_per_s: float
    replications: int = 1
    requests: int | None = None


def try_rate_row(trial: Trial) -> dict[str, Any]:
    """Run ``try_rate`` as a cell of a sweep."""
    return try_rate(trial).as_row()


def try_rate(trial: Trial) -> TrialResult:
    """Serve one replica's share of the traffic at a rate, and judge the run.

    Several replications give means and t intervals over the replications.
    """
    servers = [trial.server.replication(index) for index in range(trial.replications)]
    if len(servers) == 1:
        return one_trial(trial.server, trial.rate_per_s, capacity(trial.server), trial.requests)
    # Each replication draws its own lengths; the bound is the mean of their capacities.
    most = float(np.mean([capacity(each).ceiling_per_s for each in servers]))
    parts = [one_trial(each, trial.rate_per_s, UNBOUNDED, trial.requests) for each in servers]
    return together(parts, most)


def one_trial(server: Server, rate_per_s: float, most: Capacity, requests: int | None = None) -> TrialResult:
    """Run one replication. A rate above the physical capacity is saturated, even if a short run is calm."""
    workload = share_at_rate(server.traffic, rate_per_s, requests or server.requests, server.seed)
    fleet = Fleet(1, server.limits, prefix_cache_tokens=server.prefix_cache_tokens)
    run = simulate_fleet(workload, server.plans, fleet, server.sla, seed=server.seed)
    if rate_per_s > most.ceiling_per_s and not run.assessment.saturated:
        run = replace(run, assessment=saturated_assessment(server.sla, run.assessment.requests), metrics=None)
    return trial_result(server.policy, rate_per_s, run)


def binding(found: RateSearch, limits: EngineLimits) -> str:
    """Name the limit of a replica's rate: the terms that fail first, and the longest wait.

    The text names waiting where the failing terms measure waiting (time to first token, end-to-end time,
    saturation), or where waiting exceeds ``MUCH_WAITING`` of a request's decoding. Otherwise steps take too
    long.
    """
    beyond = found.beyond
    failing = ", ".join(term.text for term in beyond.failing)
    broken = "saturation (the queue grows without bound)" if beyond.saturated else failing
    reasons = {
        "waited_slot_s": f"the concurrency limit of {limits.concurrency}",
        "waited_kv_s": f"the KV capacity of {limits.kv_tokens or 0:,} tokens",
        "waited_pool_s": "the prefill pool",
        "waited_prefill_s": "the prefill of prompts before theirs",
        "waited_step_s": "",  # every request waits for the step under way
    }
    longest = max(reasons, key=lambda name: beyond.waits[name])
    waited_s = beyond.waits[longest]
    measured = beyond.saturated or any(term.measures_waiting for term in beyond.failing)
    metrics = beyond.metrics
    decoding_s = metrics.concurrency_mean / beyond.rate_per_s if metrics else 0.0  # Little's law
    if not reasons[longest] or not (measured or waited_s > MUCH_WAITING * decoding_s):
        return f"{broken}; step time"
    return f"{broken}; requests wait {waited_s:.2g} s on average for {reasons[longest]}"


def trial_result(policy: str, rate_per_s: float, run: FleetRun) -> TrialResult:
    """Summarise the run of a single trial: a fleet of one replica."""
    judged, (replica,) = run.assessment, run.parts
    return TrialResult(
        policy=policy,
        rate_per_s=rate_per_s,
        met=judged.met,
        saturated=judged.saturated,
        attainment=judged.attainment,
        attainment_ci95=judged.attainment_ci95,
        goodput_per_s=judged.goodput_per_s,
        requests=judged.requests,
        terms=judged.terms,
        metrics=run.metrics,
        rows_mean=replica.rows_mean,
        steps_outside_fraction=replica.steps_outside_fraction,
        early_stop_loss=replica.early_stop_loss,
        queue_trend_per_s=replica.queue_trend_per_s,
        queue_trend_ci95=replica.queue_trend_ci95,
        replications=1,
        seed_tps=(run.metrics.tps_mean if run.metrics else math.nan,),
        waits=dict(replica.waits),
    )


def together(parts: Sequence[TrialResult], most_per_s: float) -> TrialResult:
    """Combine replications of one trial: means, t intervals over replications, and one judgement.

    The trial is saturated above the rate that the replications can serve, when most of them are saturated, or
    when their queues grow by more than chance: only all replications together show a queue that grows slowly.
    A replication whose queue grew breaks every term on waiting, and has no speed.
    """
    rate = parts[0].rate_per_s
    trend, trend_half = mean_interval(np.array([part.queue_trend_per_s for part in parts]))
    saturated = (
        rate > most_per_s
        or 2 * sum(part.saturated for part in parts) > len(parts)
        or bool(trend - trend_half > 0 and trend > MATERIAL_GROWTH * rate)
    )
    terms = tuple(_term_together(each) for each in zip(*(part.terms for part in parts), strict=True))
    waiting = any(each.term.measures_waiting for each in terms)
    kept, half = _known_interval([part.attainment for part in parts], 0.0 if waiting else math.nan)
    requests = sum(part.requests for part in parts)
    return replace(
        parts[0],
        met=not saturated and all(each.met for each in terms),
        saturated=saturated,
        attainment=math.nan if saturated else kept,
        attainment_ci95=math.nan if saturated else by_rule_of_three(kept, half, requests),
        goodput_per_s=_mean([part.goodput_per_s for part in parts]),
        requests=requests,
        terms=terms,
        metrics=_mean_metrics([part.metrics for part in parts if part.metrics is not None]),
        rows_mean=_mean([part.rows_mean for part in parts]),
        steps_outside_fraction=_mean([part.steps_outside_fraction for part in parts]),
        early_stop_loss=_mean([part.early_stop_loss for part in parts]),
        queue_trend_per_s=trend,
        queue_trend_ci95=trend_half,
        replications=len(parts),
        seed_tps=tuple(part.metrics.tps_mean if part.metrics else math.nan for part in parts),
        waits={name: _mean([part.waits[name] for part in parts]) for name in WAITS},
    )


def _term_together(parts: Sequence[TermResult]) -> TermResult:
    """Judge a term over replications by its mean share, or by its mean estimate without a share."""
    term, requests = parts[0].term, sum(part.requests for part in parts)
    worst = math.inf if term.comparison == "<=" else 0.0
    waits = term.measures_waiting
    estimate, half = _known_interval([part.estimate for part in parts], worst if waits else math.nan)
    if not term.per_request:
        return TermResult(term, bool(term.holds(estimate)), estimate, math.nan, half, requests)
    share, half = _known_interval([part.share for part in parts], 0.0 if waits else math.nan)
    met = bool(share >= term.required_share - 1e-12) or all(part.met for part in parts)
    return TermResult(term, met, estimate, share, by_rule_of_three(share, half, requests), requests)


def _mean_metrics(known: Sequence[Metrics]) -> Metrics | None:
    """Average metrics over replications; counts are rounded down, undefined ones left out."""
    if not known:
        return None
    rows = [one.as_row() for one in known]
    means = {name: _mean([row[name] for row in rows]) for name in rows[0]}
    for count in ("steps", "requests_finished"):
        means[count] = int(means[count])
    return Metrics(**means)  # type: ignore[arg-type]


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
