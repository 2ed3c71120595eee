"""What a plan decides is what its tables say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.core.units import readable
from simulator.planning.notes import answer_line
from simulator.planning.plan import CapacityPlan, plan
from simulator.planning.scenario.scenario import Scenario
from simulator.report.plan.decision import decision, listed
from simulator.sweeps.leads import Recommendation
from tests.report.conftest import SCENARIO
from tests.support.plans import rough_plans


def test_the_decision_says_what_the_tables_say(result: CapacityPlan) -> None:
    row = result.plans.set_index("policy").loc[result.recommended]
    said = decision(result)
    assert said["Run"][0] == result.recommended
    assert said["On"][0].startswith(f"{row['gpus']:.0f} GPUs: ")
    assert f"{row['prefill_gpus']:.0f} prefill worker" in said["On"][0]
    assert f"{row['gpus'] * 24:,.0f} GPU hours per day at 2 <i>$</i>" in said["Costs"][0]
    assert said["Costs"][1].startswith(f"{readable(row['cost_per_million_following_demand'])} <i>$</i> where")
    assert result.confirmation.sentence in said["How sure"][-1]
    inputs = result.sensitivity[result.sensitivity["policy"] == result.recommended]
    for variant, gpus in inputs[["variant", "gpus"]].itertuples(index=False):
        (line,) = [each for each in said["Would change it"] if variant in each][:1]
        assert line.startswith("The same number") == (gpus == row["gpus"])
        assert gpus == row["gpus"] or f"{gpus:.0f} GPUs ({gpus - row['gpus']:+.0f})" in line
    assert said["Would change it"][-1].endswith(row["binding"])


def test_the_largest_changes_come_first_and_no_input_is_left_out(result: CapacityPlan) -> None:
    """Every input gets another number of GPUs, the later the more; four are named with their numbers."""
    gpus = result.plans.set_index("policy")["gpus"].max()
    moved = result.sensitivity.assign(gpus=gpus + 1 + np.arange(len(result.sensitivity)))
    mine = moved.loc[moved["policy"] == result.recommended, "variant"].tolist()
    said = decision(replace(result, sensitivity=moved))["Would change it"]
    assert [line.partition(":")[0] for line in said[:4]] == mine[::-1][:4]
    assert said[4] == f"No larger change of the number of GPUs with {', '.join(mine[::-1][4:])}"


def test_a_decision_names_ties_and_what_is_not_known(result: CapacityPlan) -> None:
    plans = result.plans.assign(
        tied=result.plans["policy"] != result.recommended, prefill_gpus=math.nan, gpus=math.nan
    )
    other = next(policy for policy in plans["policy"] if policy != result.recommended)
    said = decision(replace(result, plans=plans, recommendation=Recommendation(result.recommended, (other,))))
    assert said["Run"][1] == f"A tie with {other}: chance explains the difference."
    assert "the GPUs for prefill are not known" in said["On"][0]
    assert said["Costs"][0].startswith("Not known")


def test_a_fixed_length_that_ties_is_said_as_a_tie() -> None:
    """With next to no load the adaptive policy verifies every draft, as the fixed one does: step by step."""
    scenario = Scenario.model_validate(SCENARIO | {
        "name": "Few", "policies": ["mtp1", "fixed:5", "dspark-async"],
        "acceptance": ["conditional:0.99,0.99,0.99,0.99,0.99"],
        "traffic": {"arrivals": "poisson:1/s", "lengths": "fixed:60/30", "growth": ["0%"]},
        "replica": {"concurrency": 1, "prefill_tokens_per_s": 10_000},
        "search": {"precision": "30%", "requests": 200, "concurrency": [1]},
    })  # fmt: skip
    with rough_plans():
        found = plan(scenario)
    assert found.recommended == "fixed:5"
    assert found.tied == ("dspark-async",)
    assert decision(found)["Run"][:2] == (
        "fixed:5", "A tie with dspark-async: chance explains the difference."
    )  # fmt: skip


def test_another_policy_with_as_many_gpus_is_said_to_be_slower(result: CapacityPlan) -> None:
    first, second = (result.recommended, next(p for p in result.plans["policy"] if p != result.recommended))
    speeds = {first: 200.0, second: 100.0}
    plans = result.plans.assign(decode_gpus=4, tps_mean_at_peak=result.plans["policy"].map(speeds))
    said = decision(replace(result, plans=plans, recommendation=Recommendation(first, ())))["Run"]
    assert said[1] == (
        f"{second} would need as many GPUs, and serve users slower at the peak: 100 tokens/s on average "
        "instead of 200."
    )


def test_a_policy_that_is_as_fast_is_not_said_to_be_slower(result: CapacityPlan) -> None:
    """Speeds that are written alike are no reason for a choice."""
    first, second = (result.recommended, next(p for p in result.plans["policy"] if p != result.recommended))
    speeds = {first: 116.04, second: 115.96}
    plans = result.plans.assign(decode_gpus=4, tps_mean_at_peak=result.plans["policy"].map(speeds))
    said = decision(replace(result, plans=plans, recommendation=Recommendation(first, ())))["Run"]
    assert said[1] == (
        f"{second} would need as many GPUs, and serve users as fast to the digits that are shown: "
        "116 tokens/s on average at the peak."
    )


@pytest.mark.parametrize(
    ("names", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists_are_written_in_words(names: list[str], said: str) -> None:
    assert listed(names) == said


def test_values_come_with_their_intervals() -> None:
    row = {"replicas": 9, "replicas_low": 9, "replicas_high": 10}
    tie = answer_line(
        Recommendation("a", ("b", "c")),
        row | {"decode_gpus": 9, "prefill_gpus": math.nan}, "EUR",
    )  # fmt: skip
    assert tie == (
        "a (a tie with b and c); the lead is within what chance explains: 9 (9 to 10) replicas on 9 decode "
        "GPUs; prefill GPUs are not known, so no cost is stated"
    )
