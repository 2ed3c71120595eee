"""What a plan decides is what its tables say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from simulator.core.units import readable
from simulator.planning.notes import answer_line
from simulator.planning.plan import CapacityPlan
from simulator.report.plan.decision import decision
from simulator.sweeps.leads import Recommendation


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
