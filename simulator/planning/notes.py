"""What a reader of a plan must know: assumptions and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from simulator.capacity.server import Server, share_at_rate
from simulator.core.units import counted, ranged, share_within
from simulator.deployment.profile import beyond_contexts
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import NO_SPEED, Sizing
from simulator.schedulers.early_stop import early_stop_note
from simulator.sla.verdict import Assessment
from simulator.sweeps.leads import Recommendation
from simulator.traffic.replay import replay_notes
from simulator.traffic.sources import DRAWN, ReplayTraffic, Traffic


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The recommended fleet, or ``replicas_simulated`` of it, simulated behind its router at the peak.

    rate_per_s: of the requests that those replicas serve together. prefix_hit_share: of the prompt tokens.
    """

    policy: str
    replicas_simulated: int
    replicas_planned: int
    prefill_workers_simulated: int
    router: str
    rate_per_s: float
    assessment: Assessment
    prefix_hit_share: float

    @property
    def sentence(self) -> str:
        """What was simulated, and how it fared."""
        judged, pool = self.assessment, ""
        if self.prefill_workers_simulated:
            pool = f" with {counted(self.prefill_workers_simulated, 'prefill worker')}"
        what = (
            f"{self.replicas_simulated:,} of {self.replicas_planned:,} replicas behind a {self.router} router"
            f"{pool} at the peak, {self.rate_per_s:.4g} requests/s"
        )
        if judged.saturated:
            return f"{what}: saturated"
        met = "attained" if judged.met else f"missed ({', '.join(term.text for term in judged.failing)})"
        if not judged.promises_each:
            return f"{what}: the SLA is {met}"
        return (
            f"{what}: the SLA is {met}; {share_within(judged.attainment, judged.attainment_ci95)} of "
            f"{judged.requests:,} requests kept every term that promises something to each"
        )

    def as_row(self) -> dict[str, Any]:
        """As nested plain values, for ``plan.json``."""
        return {
            "policy": self.policy,
            "replicas_simulated": self.replicas_simulated,
            "replicas_planned": self.replicas_planned,
            "prefill_workers_simulated": self.prefill_workers_simulated,
            "router": self.router,
            "rate_per_s": self.rate_per_s,
            "prefix_hit_share": self.prefix_hit_share,
            **self.assessment.verdict(),
        }


def answer_line(recommendation: Recommendation, row: Mapping[Any, Any], currency: str) -> str:
    """Say what to run on what and at which price: the words of the terminal, the report and ``plan.json``.

    row: of the recommended policy, in ``tables.plan_table``.
    """
    replicas = ranged(*ends_of(row, "replicas"))
    fleet = f"{recommendation}: {replicas} replicas on {row['decode_gpus']:,.0f} decode GPUs"
    if math.isnan(row["prefill_gpus"]):
        return f"{fleet}; prefill GPUs are not known, so no cost is stated"
    cost = ranged(*ends_of(row, "cost_per_million_output_tokens"))
    return f"{fleet} and {row['prefill_gpus']:,.0f} prefill GPUs, {cost} {currency} per million output tokens"


def ends_of(row: Mapping[Any, Any], name: str) -> tuple[float, float, float]:
    """Return a value of a row and the ends of its 95% interval; NaN where there is none."""
    return row[name], row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)


def list_assumptions(
    scenario: Scenario, servers: Sequence[Server], traffic: Traffic, sizing: Sizing
) -> list[tuple[str, str]]:
    """List what a plan takes for granted: topic and text."""
    profile, limits = scenario.loaded_profile(), scenario.limits()
    facts = [("Cost of a step", f"{profile.title}: {profile.provenance.line()}")]
    if profile.step_time_band is not None:
        kind = f"{profile.provenance.kind}: step times may be off by {profile.step_time_band:.0%} either way"
        facts.append(("Error of that cost", f"{kind}; the sensitivity shows what it means"))
    facts += _acceptance(scenario, servers)
    if isinstance(traffic, ReplayTraffic) and traffic.report is not None:
        facts.append(("Traffic", traffic.report.summary()))
    else:
        facts.append(("Traffic", f"synthetic: {scenario.traffic.arrivals}"))
    for name, each in scenario.traffic.classes.items():
        facts.append((f"Lengths of class {name}", each.lengths))
    capacity = "not limited" if limits.kv_tokens is None else f"{limits.kv_tokens:,} tokens"
    facts += [
        ("Replica", f"{sizing.gpus} GPU, at most {limits.concurrency} requests, KV cache {capacity}"),
        ("Prefill", _prefill_line(scenario, sizing)),
        ("Peak demand", f"{sizing.peak_per_s:.4g} requests/s, headroom {sizing.headroom:.0%}"),
        ("Search", f"precision {scenario.search.precision}, {servers[0].requests:,} requests a trial, "
         f"seed {scenario.search.seed}"),
        ("Price", f"{sizing.gpu_hour:g} {scenario.price.currency} per GPU hour"),
    ]  # fmt: skip
    return facts


def _acceptance(scenario: Scenario, servers: Sequence[Server]) -> list[tuple[str, str]]:
    """Say for each drafter where its acceptance comes from, and which model that is."""
    profile, own = scenario.loaded_profile(), {}
    if not scenario.acceptance:  # the profile says more of its own models than their parts do
        own = {spec.build().name: spec.provenance.line() for spec in profile.acceptance.values()}
    models: dict[str, dict[str, str]] = {}
    for model, drafter in ((plan.acceptance, plan.drafter) for server in servers for plan in server.plans):
        if model is not None:
            models.setdefault(drafter, {})[model.name] = own.get(model.name, model.provenance.line())
    facts = []
    for drafter, lines in models.items():
        for place, (name, line) in enumerate(lines.items(), 1):
            which = f"{drafter} drafts" + (f", model {place}" if len(lines) > 1 else "")
            facts += [(f"Acceptance of {which}", line), (f"Model of {which}", name)]
    return facts


def _prefill_line(scenario: Scenario, sizing: Sizing) -> str:
    """Where prompts are prefilled, by how many workers of which speed, and who says so."""
    if sizing.pool is None:
        places = {"chunked": "in decode steps", "whole": "between decode steps"}
        return places.get(scenario.limits().prefill, "elsewhere, at no stated speed")
    pool, origin = sizing.pool, "the scenario" if scenario.replica.prefill_tokens_per_s else "the profile"
    workers = int(sizing.prefill_workers())
    busy = pool.utilisation(sizing.peak_per_s * (1 + sizing.headroom), workers)
    return (
        f"elsewhere: {counted(workers, 'worker')} of {counted(pool.gpus, 'GPU')}, "
        f"{pool.tokens_per_s:,.0f} tokens/s each as "
        f"{origin} says; busy {busy:.0%} of the time at the peak with its headroom"
    )


def list_warnings(
    scenario: Scenario,
    servers: Sequence[Server],
    traffic: Traffic,
    plans: pd.DataFrame,
    confirmed: Confirmation,
) -> list[str]:
    """List what a reader of a plan must know before trusting it."""
    notes = [plan.note for server in servers for plan in server.plans if plan.note]
    warnings = [each.weakness for each in servers[0].sla.terms if each.weakness]
    warnings += dict.fromkeys(notes)
    known = scenario.deployment().notes
    warnings += [note.removeprefix("warning: ") for note in known if note.startswith("warning: ")]
    judged = confirmed.assessment
    if not judged.met:
        why = "is saturated" if judged.saturated else f"misses {', '.join(t.text for t in judged.failing)}"
        warnings.insert(
            0, f"the recommended fleet {why} when it is simulated whole at the peak: add headroom"
        )
    for each in plans.to_dict(orient="records"):
        if not each["feasible"]:
            warnings.append(f"{each['policy']} cannot keep the SLA at any rate ({each['binding']})")
            continue
        if note := early_stop_note(each["policy"], each["early_stop_loss"], "at a replica's limit"):
            warnings.append(note)
    warnings += _extrapolated(plans)
    drawn = share_at_rate(traffic, 1.0, DRAWN, scenario.search.seed)
    if note := beyond_contexts(scenario.loaded_profile(), drawn.prompt_tokens, drawn.output_tokens):
        warnings.append(note)
    limits = scenario.limits()
    if limits.prefill == "elsewhere" and limits.prefill_tokens_per_s is None:
        warnings.insert(0, NO_SPEED)
    if isinstance(traffic, ReplayTraffic):
        if traffic.report is not None and (traffic.report.malformed or traffic.report.assumed):
            warnings.append(traffic.report.summary())
        warnings += replay_notes(traffic.recorded, servers[0].requests)
    quantiles = [t for t in servers[0].sla.terms if t.quantile is not None and t.metric != "itl"]
    tails = [
        t.text
        for t in quantiles
        if (1 - max(t.quantile or 0, 1 - (t.quantile or 0))) * servers[0].requests < 20
    ]
    if tails:
        warnings.append(f"{', '.join(tails)} rests on fewer than 20 requests a trial: raise search.requests")
    return warnings


def _extrapolated(plans: pd.DataFrame) -> list[str]:
    """Say once for all policies how many steps the cost table did not measure, and what to do."""
    outside = plans[plans["feasible"].astype(bool) & (plans["steps_outside_fraction"] > 0)]
    if outside.empty:
        return []
    shares = ", ".join(
        f"{policy} {share:.1%}"
        for policy, share in outside[["policy", "steps_outside_fraction"]].itertuples(index=False)
    )
    return [
        f"steps beyond the measured cost table at each policy's rate: {shares}; times are extrapolated: "
        "measure larger batches, or lower replica.concurrency"
    ]
