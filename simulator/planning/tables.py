"""The tables of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.search import interpolated_rate
from simulator.capacity.trials import binding
from simulator.core.arrays import Floats
from simulator.core.errors import InfeasibleError
from simulator.planning.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.sla.terms import Sla
from simulator.sweeps.leads import Candidate, Lead, Recommendation, lead, recommend, tied_with, winner


def plan_table(
    scenario: Scenario,
    sizing: Sizing,
    found: Sequence[RateSearch],
    peaks: Mapping[str, TrialResult],
) -> pd.DataFrame:
    """Tabulate each policy: its fleet, its cost, how it fares at the peak and at a replica's limit."""
    limits, rows = scenario.limits(), []
    for each in found:
        rate, limit = each.rate_per_s, each.at_rate
        row: dict[str, Any] = {
            "policy": each.policy,
            "feasible": each.feasible,
            "rate_per_replica_per_s": rate,
            "fails_at_per_s": each.failing_rate_per_s,
        }
        if limit is not None and each.feasible:
            peak = peaks[each.policy]
            row |= sizing.fleet(rate) | sizing.costs(rate) | _ranges(sizing, each)
            row |= {"rate_at_peak_per_s": peak.rate_per_s}
            row |= {f"{name}_at_peak": value for name, value in _fared(peak).items()}
            row |= {f"{name}_at_limit": value for name, value in _fared(limit).items()}
            row |= {name: getattr(limit, name) for name in ("steps_outside_fraction", "early_stop_loss")}
        rows.append(row | {"binding": binding(each, limits)})
    return pd.DataFrame(rows)


def _ranges(sizing: Sizing, found: RateSearch) -> dict[str, float]:
    """Say what the rate's 95% interval means for replicas and money: fewest with the highest."""
    low, high = found.rate_low_per_s, found.rate_high_per_s
    return {
        "rate_low_per_s": low,
        "rate_high_per_s": high,
        "replicas_low": sizing.fleet(high)["replicas"],
        "replicas_high": sizing.fleet(low)["replicas"],
        "cost_per_million_output_tokens_low": sizing.cost(high),
        "cost_per_million_output_tokens_high": sizing.cost(low),
    }


def term_table(found: Sequence[RateSearch], peaks: Mapping[str, TrialResult]) -> pd.DataFrame:
    """Tabulate what users get of each term, at the load of a replica that will be run and at its limit.

    load: ``run`` (a planned replica's share of the peak) or ``limit``. Then the columns of
    ``sla.verdict.TermResult.verdict``, and the same in words (``shown``).
    """
    rows = [
        {"policy": each.policy, "load": load, "rate_per_s": trial.rate_per_s}
        | result.verdict()
        | {"shown": result.shown()}
        for each in found
        if each.feasible
        for load, trial in (("run", peaks[each.policy]), ("limit", each.at_rate))
        if trial is not None
        for result in trial.terms
    ]
    return pd.DataFrame(rows)


def _fared(trial: TrialResult) -> dict[str, Any]:
    """Say what users get in a trial.

    attained: every term holds, means included. kept_share: of the requests,
    those that kept every term that promises something to each, NaN where none does.
    """
    per_request = any(not math.isnan(each.share) for each in trial.terms)
    row: dict[str, Any] = {
        "attained": trial.met,
        "kept_share": trial.attainment if per_request else math.nan,
        "kept_share_ci95": trial.attainment_ci95 if per_request else math.nan,
        "goodput_per_s": trial.goodput_per_s,
    }
    names = ("tps_mean", "tps_p10", "concurrency_mean", "verification_budget_mean")
    known = {} if trial.saturated or trial.metrics is None else trial.metrics.as_row()
    return row | {name: known.get(name, math.nan) for name in names}


def recommended_policy(
    plans: pd.DataFrame, found: Sequence[RateSearch], peaks: Sequence[TrialResult]
) -> Recommendation:
    """By ``leads.recommend``. The oracle cannot be deployed."""
    candidates = plans[plans["feasible"] & (plans["policy"] != "oracle")]
    if candidates.empty:
        raise InfeasibleError("only the oracle keeps this SLA, and it cannot be deployed")
    rates = {each.policy: each.seed_rates for each in found}
    speeds = {each.policy: each.seed_tps for each in peaks}
    # Without a prefill speed the prefill GPUs are not known; they are the same for every policy.
    return recommend(
        [
            Candidate(each["policy"], each["decode_gpus"], rates[each["policy"]], speeds[each["policy"]])
            for each in candidates.to_dict(orient="records")
        ]
    )


_TRIAL_COLUMNS = (
    "policy", "rate_per_s", "met", "saturated", "attainment", "attainment_ci95", "goodput_per_s", "requests",
    "steps_outside_fraction", "early_stop_loss", "queue_trend_per_s", "queue_trend_ci95", "replications",
)  # fmt: skip


def trial_table(trials: Sequence[TrialResult]) -> pd.DataFrame:
    """Tabulate trials: a row each, terms as columns."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {name: getattr(trial, name) for name in _TRIAL_COLUMNS} | dict(trial.waits)
        row |= {f"term {each.term.text}": each.estimate for each in trial.terms}
        metrics = {} if trial.metrics is None else trial.metrics.as_row()
        row |= {
            key: math.nan if trial.saturated and key != "throughput_tok_per_s" else metrics.get(key, math.nan)
            for key in ("throughput_tok_per_s", "tps_mean", "verification_budget_mean", "concurrency_mean")
        }
        rows.append(row)
    table = pd.DataFrame(rows).drop_duplicates(["policy", "rate_per_s"])
    return table.sort_values(["policy", "rate_per_s"], ignore_index=True)


def sensitivity_table(
    sizing: Sizing, found: Sequence[RateSearch], variants: Sequence[RateSearch]
) -> pd.DataFrame:
    """Tabulate how the fleet changes where an input is off by the variants' factors.

    gain: of the rate over the first policy's with the same input off. tps_p10: at the rate.
    """
    base = {each.policy: each.rate_per_s for each in found}
    first = {each.policy: each.seed_rates[0] for each in found}
    # A variant is searched on the first replication alone, so its change is against that one.
    cases = [
        _Case(each.policy, each.variant, base[each.policy] * each.seed_rates[0] / first[each.policy],
              sizing, _p10(each))
        for each in variants
    ]  # fmt: skip
    if sizing.pool is not None:  # prefill is a queue of its own: decoding does not change with its speed
        faster = {f"prefill speed {change:+.0%}": 1 + change for change in (-0.1, 0.1)}
        for name, factor in faster.items():
            varied = sizing.with_prefill_speed(factor)
            speeds = {each.policy: _p10(each) for each in found}
            cases += [
                _Case(policy, name, rate, varied, speeds[policy]) for policy, rate in base.items() if rate > 0
            ]
    first_policy = found[0].policy
    baseline = {case.variant: case.rate_per_s for case in cases if case.policy == first_policy}
    order = {policy: position for position, policy in enumerate(base)}
    cases.sort(key=lambda case: order[case.policy])
    usual = base[first_policy]  # where an input does not touch the baseline, as difficulty MTP-1's rate
    return pd.DataFrame([case.row(base[case.policy], baseline.get(case.variant, usual)) for case in cases])


@dataclass(frozen=True, slots=True)
class _Case:
    """A policy with an input off: its rate per replica, and what sizes and prices it."""

    policy: str
    variant: str
    rate_per_s: float
    sizing: Sizing
    tps_p10: float

    def row(self, usual_per_s: float, baseline_per_s: float) -> dict[str, Any]:
        """As a row of ``sensitivity.csv``; usual_per_s: its rate as planned."""
        row = {"policy": self.policy, "variant": self.variant, "rate_per_replica_per_s": self.rate_per_s}
        row["change"] = self.rate_per_s / usual_per_s - 1
        row["gain"] = self.rate_per_s / baseline_per_s - 1 if baseline_per_s else math.nan
        row["tps_p10"] = self.tps_p10
        row |= self.sizing.fleet(self.rate_per_s)
        return row | {"cost_per_million_output_tokens": self.sizing.cost(self.rate_per_s)}


def _p10(search: RateSearch) -> float:
    """Speed that 90% of the users exceed at the rate that was found; NaN where none was."""
    known = None if search.at_rate is None else search.at_rate.metrics
    return math.nan if known is None else known.tps_p10


def growth_table(scenario: Scenario, sizing: Sizing, plans: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the fleet when traffic grows: the rate per replica does not change, their number does."""
    rows: list[dict[str, Any]] = []
    for each in plans[plans["feasible"]].to_dict(orient="records"):
        for growth in scenario.growth():
            fleet = sizing.fleet(each["rate_per_replica_per_s"], sizing.peak_per_s * (1 + growth))
            rows.append({"policy": each["policy"], "growth": growth, **fleet})
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class RateBand:
    """A range of rates per replica in which one policy is run.

    tied: policies that are not slower for sure. margin: its smallest lead over the next policy.
    """

    from_per_s: float
    to_per_s: float
    policy: str
    tied: tuple[str, ...]
    margin: float

    def follows(self, other: RateBand) -> bool:
        """Whether another band, at lower rates, says the same."""
        return (self.policy, self.tied) == (other.policy, other.tied)

    def extended(self, other: RateBand) -> RateBand:
        """Return this band up to the end of another, with the smaller margin of the two."""
        margin = float(np.fmin(self.margin, other.margin))
        return replace(self, to_per_s=other.to_per_s, margin=margin)

    def as_row(self) -> dict[str, Any]:
        """As a row of ``switches.csv``."""
        return asdict(self) | {"tied": " and ".join(self.tied)}


def switch_table(trials: Sequence[TrialResult], policies: Sequence[str], recommended: str) -> pd.DataFrame:
    """Which policy to run at which rate per replica, among those that keep the SLA there.

    The recommended one, unless another serves users faster for sure; that one then keeps its place until it
    is overtaken in the same way (``leads.winner``). Speeds (mean TPS) are interpolated linearly between
    trials, replication by replication. tied: policies that are not slower for sure. margin: the smallest
    lead over the next policy in the band, negative where that one is ahead by chance; NaN where no other
    keeps the SLA.
    """
    top = max((t.rate_per_s for t in trials if t.met), default=0.0)
    rates = np.linspace(min(t.rate_per_s for t in trials), top, 400)
    speed = {policy: _speeds_at(rates, trials, policy) for policy in policies}
    bands: list[RateBand] = []
    for column, rate in enumerate(rates):
        here = {
            policy: values[column] for policy, values in speed.items() if not np.isnan(values[column]).all()
        }
        if not here:
            continue
        candidates = [bands[-1].policy, recommended] if bands else [recommended]
        running = next((policy for policy in candidates if policy in here), None)
        band = _band_at(float(rate), here, running)
        if bands and band.follows(bands[-1]):
            bands[-1] = bands[-1].extended(band)
        else:
            bands.append(band)
    return pd.DataFrame([band.as_row() for band in bands], columns=[each.name for each in fields(RateBand)])


def _band_at(rate: float, speeds: Mapping[str, Floats], running: str | None) -> RateBand:
    """Tell which policy runs at one rate, and by how much it leads the next."""

    def lead_over(one: str, other: str) -> Lead:
        return lead(speeds[one], speeds[other])

    mean = {policy: float(np.nanmean(values)) for policy, values in speeds.items()}
    policy = winner(speeds, running or max(mean, key=lambda each: mean[each]), lead_over)
    others = [value for name, value in mean.items() if name != policy]
    margin = mean[policy] / max(others) - 1 if others else math.nan
    return RateBand(rate, rate, policy, tied_with(policy, speeds, lead_over), margin)


def _speeds_at(rates: Floats, trials: Sequence[TrialResult], policy: str) -> Floats:
    """Mean speed of every replication at each rate, [rates, replications]; NaN above the last that held."""
    mine = [t for t in trials if t.policy == policy and t.met]
    if not mine:
        return np.full((rates.size, 1), np.nan)
    mine.sort(key=lambda t: t.rate_per_s)
    at, speeds = np.array([t.rate_per_s for t in mine]), np.array([t.seed_tps for t in mine])
    return np.stack(
        [np.interp(rates, at, column, left=column[0], right=np.nan) for column in speeds.T], axis=1
    )


def day_table(
    demand: pd.DataFrame, sizing: Sizing, plans: pd.DataFrame, switches: pd.DataFrame, replicas: int
) -> pd.DataFrame:
    """Tabulate the day.

    The rate on each replica of the planned fleet, the policy to run then with those that it is tied with,
    prefill GPUs, and each policy's decode replicas and GPUs of both kinds.
    """
    table = demand.assign(rate_per_replica_per_s=demand["rate_per_s"] / replicas)
    bands = [_band_of(switches, rate) for rate in table["rate_per_replica_per_s"]]
    table["policy"] = [policy for policy, _ in bands]
    table["tied"] = [tied for _, tied in bands]
    table["run"] = [Recommendation(policy, (tied,) if tied else ()).label for policy, tied in bands]
    for each in plans[plans["feasible"]].to_dict(orient="records"):
        fleets = [sizing.fleet(each["rate_per_replica_per_s"], rate) for rate in demand["rate_per_s"]]
        table["prefill_gpus"] = [fleet["prefill_gpus"] for fleet in fleets]
        table[f"replicas {each['policy']}"] = [fleet["replicas"] for fleet in fleets]
        table[f"gpus {each['policy']}"] = [fleet["gpus"] for fleet in fleets]
    return table


def _band_of(switches: pd.DataFrame, rate: float) -> tuple[str, str]:
    """Find the policy to run at a rate and those tied with it; empty where no policy keeps the SLA."""
    bands = switches[switches["to_per_s"] >= rate]
    if not len(switches):
        return "", ""
    band = (bands if len(bands) else switches.tail(1)).iloc[0]
    return str(band["policy"]), str(band["tied"])


def cost_table(
    sizing: Sizing, sla: Sla, trials: Sequence[TrialResult], found: Sequence[RateSearch]
) -> pd.DataFrame:
    """Replicas and cost when the first term is tightened or relaxed.

    The trials made say by which factor the rate changes from the scenario's own bound to another, and the
    rate of the plan is multiplied by that: at the scenario's own bound the cost is the plan's.
    """
    rows: list[dict[str, Any]] = []
    first = sla.terms[0]
    mine = {each.policy: [t for t in trials if t.policy == each.policy] for each in found}
    own = {policy: interpolated_rate(tried, sla) for policy, tried in mine.items()}
    for bound in first.bound * np.linspace(0.5, 1.6, 45):
        varied = Sla((first.at(float(bound)), *sla.terms[1:]))
        for each in found:
            factor = interpolated_rate(mine[each.policy], varied) / own[each.policy]
            rate = each.rate_per_s * factor if each.feasible else math.nan
            row = {"term": first.key, "bound": float(bound), "policy": each.policy}
            row |= {"rate_per_replica_per_s": rate, **sizing.fleet(rate, None, varied.terms)}
            rows.append(row | {"cost_per_million_output_tokens": sizing.cost(rate, varied.terms)})
    return pd.DataFrame(rows)


def money_columns(sizing: Sizing) -> dict[str, float]:
    """Return what the report needs to price a throughput exactly as ``Sizing.cost_at_throughput`` does."""
    fleet = sizing.fleet(1.0)
    return {
        "demanded_per_s": sizing.peak_per_s * (1 + sizing.headroom),
        "decoded_per_request": max(sizing.tokens_per_request - 1, 1.0),
        "gpus_per_replica": sizing.gpus,
        "prefill_gpus": fleet["prefill_gpus"],
        "gpu_hour": sizing.gpu_hour,
        "hours": sizing.hours,
        "hours_per_million_output_tokens": sizing.hours / (sizing.output_tokens / 1e6),
    }
