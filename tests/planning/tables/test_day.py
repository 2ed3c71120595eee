"""The day's chart: a policy changes where another is faster for sure, and a tie is called one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulator.capacity.results import TrialResult
from simulator.planning.tables.day import day_table, switch_table
from simulator.sweeps.bands import load_bands
from tests.support.trials import trial_result

SCATTER = np.array([0.95, 1.03, 1.0, 0.98, 1.04])


def tried(policy: str, speeds: dict[float, np.ndarray]) -> list[TrialResult]:
    return [trial_result(policy, rate, seed_tps=values.tolist()) for rate, values in speeds.items()]


def test_the_day_chart_runs_the_recommended_policy_unless_another_is_faster_for_sure() -> None:
    """1% behind at 1/s and 5% ahead at 3/s, in every pair: b leads from 1 + 2 * 1 / (1 + 4) = 1.4/s on."""
    slow = tried("a", {1.0: 100 * SCATTER, 3.0: 80 * SCATTER})
    fast = tried("b", {1.0: 99 * SCATTER, 3.0: 84 * SCATTER})
    bands = switch_table(slow + fast, ["a", "b"], "a")
    assert bands["policy"].tolist() == ["a", "b"]
    assert bands["tied"].tolist() == ["", ""]
    assert bands["from_per_s"].iloc[1] == pytest.approx(1.4, abs=0.01)
    assert switch_table(slow + fast, ["a", "b"], "b")["policy"].tolist() == ["a", "b"]
    noisy = tried("b", {1.0: 100 * SCATTER[::-1], 3.0: 82 * SCATTER[::-1]})
    bands = switch_table(slow + noisy, ["a", "b"], "a")
    assert bands["policy"].tolist() == ["a"]
    assert bands["tied"].tolist() == ["b"]


def test_a_tie_of_the_day_is_said_beside_the_policy() -> None:
    """At 2/s on two replicas, 1/s each, nothing tells a and b apart; at 6/s b is faster for sure."""
    switches = pd.DataFrame(
        [
            {"from_per_s": 0.0, "to_per_s": 2.0, "policy": "a", "tied": "b", "margin": -0.01},
            {"from_per_s": 2.0, "to_per_s": 3.0, "policy": "b", "tied": "", "margin": 0.05},
        ]
    )
    demand = pd.DataFrame({"start_s": [0.0, 1.0], "end_s": [1.0, 2.0], "rate_per_s": [2.0, 6.0]})
    plans = pd.DataFrame({"policy": ["a"], "feasible": [False], "rate_per_replica_per_s": [0.0]})
    day = day_table(demand, None, plans, switches, 2)  # type: ignore[arg-type]  # nothing is sized
    assert day["run"].tolist() == ["a (a tie with b)", "b"]
    assert day["policy"].tolist() == ["a", "b"]


@pytest.mark.parametrize(("lead_share", "scatter", "switches"), [(0.002, 0.0, True), (0.05, 0.2, False)])
def test_compare_and_plan_switch_by_one_rule(lead_share: float, scatter: float, switches: bool) -> None:
    """A lead of 0.2% that is known exactly counts in both; one of 5% known to 20% and more in neither."""
    swing = scatter * np.array([1.0, -1.0, 1.0, -1.0, 0.0])
    level, better = 100.0 * (1 + swing), 100.0 * (1 + lead_share) * (1 - swing)
    trials = tried("a", {1.0: 1.1 * level, 3.0: level}) + tried("b", {1.0: level, 3.0: better})
    planned = list(dict.fromkeys(switch_table(trials, ["a", "b"], "a")["policy"]))
    loads = {"a": (110.0, 110.0, 100.0), "b": (100.0, 100.0, 100.0 * (1 + lead_share))}
    rows = [
        {"policy": policy, "concurrency": load, "throughput_tok_per_s": value,
         "throughput_ci95": 100 * scatter}
        for policy, values in loads.items() for load, value in zip((1, 2, 3), values, strict=True)
    ]  # fmt: skip
    compared = load_bands(pd.DataFrame(rows))["policy"].tolist()
    assert planned == compared == (["a", "b"] if switches else ["a"])
