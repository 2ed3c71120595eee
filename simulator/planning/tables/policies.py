"""Tables with a row per policy, term or trial: the plan itself, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.trials import binding
from simulator.core.errors import InfeasibleError
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.sweeps.leads import Candidate, Recommendation, recommend


@dataclass(frozen=True, slots=True)
class Fared:
    """What users get in a trial.

    attained: every term holds, means included. kept_share: of the requests, those that kept every term that
    promises something to each, NaN where none does. Speeds and loads are NaN where the trial is saturated.
    """

    attained: bool
    kept_share: float
    kept_share_ci95: float
    goodput_per_s: float
    tps_mean: float
    tps_p10: float
    concurrency_mean: float
    verification_budget_mean: float

    @classmethod
    def of(cls, trial: TrialResult) -> Fared:
        """Read a trial's terms and metrics."""
        per_request = any(not math.isnan(each.share) for each in trial.terms)
        metrics = None if trial.saturated else trial.metrics
        return cls(
            attained=trial.met,
            kept_share=trial.attainment if per_request else math.nan,
            kept_share_ci95=trial.attainment_ci95 if per_request else math.nan,
            goodput_per_s=trial.goodput_per_s,
            tps_mean=math.nan if metrics is None else metrics.tps_mean,
            tps_p10=math.nan if metrics is None else metrics.tps_p10,
            concurrency_mean=math.nan if metrics is None else metrics.concurrency_mean,
            verification_budget_mean=math.nan if metrics is None else metrics.verification_budget_mean,
        )

    def columns(self, load: str) -> dict[str, object]:
        """As columns whose names say at which load."""
        return {f"{name}_at_{load}": value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class RateRange:
    """What the 95% interval of a rate means for replicas and money: fewest with the highest."""

    rate_low_per_s: float
    rate_high_per_s: float
    replicas_low: float
    replicas_high: float
    cost_per_million_output_tokens_low: float
    cost_per_million_output_tokens_high: float

    @classmethod
    def of(cls, sizing: Sizing, found: RateSearch) -> RateRange:
        """Size and price both ends."""
        low, high = found.rate_low_per_s, found.rate_high_per_s
        return cls(
            rate_low_per_s=low,
            rate_high_per_s=high,
            replicas_low=sizing.fleet(high).replicas,
            replicas_high=sizing.fleet(low).replicas,
            cost_per_million_output_tokens_low=sizing.cost(high),
            cost_per_million_output_tokens_high=sizing.cost(low),
        )


def plan_table(
    scenario: Scenario,
    sizing: Sizing,
    found: Sequence[RateSearch],
    peaks: Mapping[str, TrialResult],
) -> pd.DataFrame:
    """Tabulate each policy: its fleet, its cost, how it fares at the peak and at a replica's limit."""
    limits = scenario.limits()
    return pd.DataFrame(
        [
            {
                "policy": each.policy,
                "feasible": each.feasible,
                "rate_per_replica_per_s": each.rate_per_s,
                "fails_at_per_s": each.failing_rate_per_s,
            }
            | _deployed(sizing, each, peaks)
            | {"binding": binding(each, limits)}
            for each in found
        ]
    )


def _deployed(sizing: Sizing, found: RateSearch, peaks: Mapping[str, TrialResult]) -> dict[str, object]:
    """Columns of a policy that keeps the SLA at some rate; none of one that does not."""
    rate, limit = found.rate_per_s, found.at_rate
    if limit is None or not found.feasible:
        return {}
    peak = peaks[found.policy]
    return {
        **asdict(sizing.fleet(rate)),
        **asdict(sizing.costs(rate)),
        **asdict(RateRange.of(sizing, found)),
        "rate_at_peak_per_s": peak.rate_per_s,
        **Fared.of(peak).columns("peak"),
        **Fared.of(limit).columns("limit"),
        "steps_outside_fraction": limit.steps_outside_fraction,
        "early_stop_loss": limit.early_stop_loss,
    }


def feasible_rates(plans: pd.DataFrame) -> dict[str, float]:
    """Rate that a replica sustains, requests/s, of each policy of ``plan_table`` that keeps the SLA."""
    feasible = plans[plans["feasible"]]
    return dict(zip(feasible["policy"], feasible["rate_per_replica_per_s"], strict=True))


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
        row: dict[str, object] = {name: getattr(trial, name) for name in _TRIAL_COLUMNS} | dict(trial.waits)
        row |= {f"term {each.term.text}": each.estimate for each in trial.terms}
        metrics = {} if trial.metrics is None else trial.metrics.as_row()
        row |= {
            key: math.nan if trial.saturated and key != "throughput_tok_per_s" else metrics.get(key, math.nan)
            for key in ("throughput_tok_per_s", "tps_mean", "verification_budget_mean", "concurrency_mean")
        }
        rows.append(row)
    table = pd.DataFrame(rows).drop_duplicates(["policy", "rate_per_s"])
    return table.sort_values(["policy", "rate_per_s"], ignore_index=True)
