"""Tables of what changes the answer: an input that is off, growth, another bound of the SLA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.search import interpolated_rate
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.planning.tables.policies import feasible_rates
from simulator.sla.terms import Sla


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

    def row(self, usual_per_s: float, baseline_per_s: float) -> dict[str, object]:
        """As a row of ``sensitivity.csv``; usual_per_s: its rate as planned."""
        return {
            "policy": self.policy,
            "variant": self.variant,
            "rate_per_replica_per_s": self.rate_per_s,
            "change": self.rate_per_s / usual_per_s - 1,
            "gain": self.rate_per_s / baseline_per_s - 1 if baseline_per_s else math.nan,
            "tps_p10": self.tps_p10,
            **asdict(self.sizing.fleet(self.rate_per_s)),
            "cost_per_million_output_tokens": self.sizing.cost(self.rate_per_s),
        }


def _p10(search: RateSearch) -> float:
    """Speed that 90% of the users exceed at the rate that was found; NaN where none was."""
    known = None if search.at_rate is None else search.at_rate.metrics
    return math.nan if known is None else known.tps_p10


def growth_table(scenario: Scenario, sizing: Sizing, plans: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the fleet when traffic grows: the rate per replica does not change, their number does."""
    demanded = {growth: sizing.peak_per_s * (1 + growth) for growth in scenario.growth()}
    return pd.DataFrame(
        [
            {"policy": policy, "growth": growth, **asdict(sizing.fleet(rate, demand))}
            for policy, rate in feasible_rates(plans).items()
            for growth, demand in demanded.items()
        ]
    )


def cost_table(
    sizing: Sizing, sla: Sla, trials: Sequence[TrialResult], found: Sequence[RateSearch]
) -> pd.DataFrame:
    """Replicas and cost when the first term is tightened or relaxed.

    The trials made say by which factor the rate changes from the scenario's own bound to another, and the
    rate of the plan is multiplied by that: at the scenario's own bound the cost is the plan's.
    """
    rows = []
    first = sla.terms[0]
    mine = {each.policy: [t for t in trials if t.policy == each.policy] for each in found}
    own = {policy: interpolated_rate(tried, sla) for policy, tried in mine.items()}
    for bound in first.bound * np.linspace(0.5, 1.6, 45):
        varied = Sla((first.at(float(bound)), *sla.terms[1:]))
        for each in found:
            factor = interpolated_rate(mine[each.policy], varied) / own[each.policy]
            rate = each.rate_per_s * factor if each.feasible else math.nan
            rows.append(
                {
                    "term": first.key,
                    "bound": float(bound),
                    "policy": each.policy,
                    "rate_per_replica_per_s": rate,
                    **asdict(sizing.fleet(rate, None, varied.terms)),
                    "cost_per_million_output_tokens": sizing.cost(rate, varied.terms),
                }
            )
    return pd.DataFrame(rows)


def money_columns(sizing: Sizing) -> dict[str, float]:
    """Return what the report needs to price a throughput exactly as ``Sizing.cost_at_throughput`` does."""
    return {
        "demanded_per_s": sizing.peak_per_s * (1 + sizing.headroom),
        "decoded_per_request": max(sizing.tokens_per_request - 1, 1.0),
        "gpus_per_replica": sizing.gpus,
        "prefill_gpus": sizing.fleet(1.0).prefill_gpus,
        "gpu_hour": sizing.gpu_hour,
        "hours": sizing.hours,
        "hours_per_million_output_tokens": sizing.hours / (sizing.output_tokens / 1e6),
    }
