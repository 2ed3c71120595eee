"""One replica served at one rate, and judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.capacity.bounds import UNBOUNDED, Capacity, capacity
from simulator.capacity.server import Server, share_at_rate
from simulator.core.statistics import mean_interval
from simulator.engine.batch import WAITS
from simulator.engine.limits import EngineLimits
from simulator.engine.saturation import MATERIAL_GROWTH
from simulator.fleet.fleet import FleetRun, simulate_fleet
from simulator.fleet.layout import Fleet
from simulator.sla.terms import Sla, Term
from simulator.sla.verdict import Assessment, saturated_assessment, unseen

MUCH_WAITING = 0.1
"""Share of a request's time of decoding above which its waiting is worth naming."""

REPLICATIONS = 5
"""Independent trials behind a rate that is reported: the fewest for which a t interval is not mostly t."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A server at one rate, in so many independent replications: a cell of a sweep.

    requests: of each replication, by default the server's.
    """

    server: Server
    rate_per_s: float
    replications: int = 1
    requests: int | None = None


def try_rate(trial: Trial) -> dict[str, Any]:
    """Serve one replica's share of the traffic at a rate, and judge it: one row.

    Columns: rate_per_s, met, saturated, attainment and its interval, goodput, a mapping of every term's
    estimate, share and interval, the run's metrics, what waiting requests waited for, and the trend of the
    queue with its interval. Of several replications: the means, and t intervals over the replications.
    """
    servers = [trial.server.replication(index) for index in range(trial.replications)]
    if len(servers) == 1:
        return one_trial(trial.server, trial.rate_per_s, capacity(trial.server), trial.requests)
    # Each replication draws its own lengths; what all of them carry on average is the bound.
    most = float(np.mean([capacity(each).ceiling_per_s for each in servers]))
    rows = [one_trial(each, trial.rate_per_s, UNBOUNDED, trial.requests) for each in servers]
    return together(rows, trial.server.sla, most)


def one_trial(
    server: Server, rate_per_s: float, most: Capacity, requests: int | None = None
) -> dict[str, Any]:
    """One replication. What lies above physical capacity is saturated, however calm a short trial looks."""
    workload = share_at_rate(server.traffic, rate_per_s, requests or server.requests, server.seed)
    fleet = Fleet(1, server.limits, prefix_cache_tokens=server.prefix_cache_tokens)
    run = simulate_fleet(workload, server.plans, fleet, server.sla, seed=server.seed)
    if rate_per_s > most.ceiling_per_s and not run.assessment.saturated:
        run = replace(run, assessment=saturated_assessment(server.sla, run.assessment.requests), metrics=None)
    return {"policy": server.policy, "rate_per_s": rate_per_s} | trial_row(run)


def binding(found: dict[str, Any], limits: EngineLimits) -> str:
    """Name what stops a replica from carrying more: the terms that give first, and the largest wait.

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


def trial_row(run: FleetRun) -> dict[str, Any]:
    """Turn a run into the row of a trial."""
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
        "early_stop_loss": float(run.replicas["early_stop_loss"].mean()),
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
    means = ("goodput_per_s", "steps_outside_fraction", "early_stop_loss", *WAITS)
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
    """Judge a term over replications: by its mean share, or by its mean estimate where it has no share."""
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
