"""Draft rows that cost more than the curve says: from the second of a request on, and only those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulator as sim
from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.cost.scaled import RowCost
from simulator.planning.scenario.reading import load_scenario
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.scenario.sections import StepsSpec
from tests.support.command_line import run


def test_rows_beyond_one_draft_a_request_are_dearer() -> None:
    """10 ms a step, 1 ms a row: 4 requests hold 4 drafts in 8 rows; a ninth and a tenth cost 1 ms."""
    cost = RowCost(ThroughputCurve([1], [100.0]), 1e-3)
    assert [cost.step_time_s(4, rows) for rows in (4, 8, 9, 10)] == pytest.approx([0.01, 0.01, 0.011, 0.012])
    np.testing.assert_allclose(cost.step_time_s(4, range(7, 11)), [0.01, 0.01, 0.011, 0.012])
    assert cost.step_time_s(4, 14, 0.0, 6) == pytest.approx(0.010)  # six are rows of prompts
    assert cost.step_time_s(0, 6, 0.0, 6) == pytest.approx(0.010)


@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 40), st.floats(0, 1e-3))
def test_one_size_is_what_the_range_says_of_it(
    requests: int, drafts: int, prompts: int, row_s: float
) -> None:
    cost = RowCost(ThroughputCurve([1, 100], [100.0, 50.0]), row_s)
    first = requests + prompts
    span = cost.step_time_s(requests, range(first, first + drafts + 1), 0.0, prompts)
    assert span[-1] == pytest.approx(cost.step_time_s(requests, first + drafts, 0.0, prompts))
    assert (np.diff(span) >= 0).all()


def test_a_scheduler_knows_it_and_verifies_less() -> None:
    plain, dear = (sim.deployment("deepseek-v4-flash", row_cost=each) for each in (0.0, "20us"))
    assert dear.row_cost_s == pytest.approx(20e-6)
    plan = dear.plan("dspark-async")
    assert plan.believed.step_time_s(50, 200) == plan.cost.step_time_s(50, 200)
    budgets = [
        bench.simulate("dspark-async", concurrency=50, steps=300).metrics.verification_budget_mean
        for bench in (plain, dear)
    ]
    assert budgets[1] < budgets[0] - 0.3


def test_mtp1_is_as_it_was() -> None:
    plain, dear = (sim.deployment("deepseek-v4-flash", row_cost=each) for each in (0.0, "20us"))
    for requests in (1, 50, 300):
        times = [bench.plan("mtp1").cost.step_time_s(requests, 2 * requests) for bench in (plain, dear)]
        assert times[0] == times[1]


@pytest.mark.parametrize("text", ["4", "much", "-4us"])
def test_what_makes_no_sense_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        sim.deployment("deepseek-v4-flash", row_cost=text).plan("dspark-async")
    words = ("--profile", "deepseek-v4-flash", "--policy", "mtp1", "--concurrency", "4", "--steps", "60")
    assert run("simulate", *words, "--row-cost", text, "--out", tmp_path / "a") == 2


def test_scenarios_take_it_with_the_slow_path(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "name: dear rows\nprofile: deepseek-v4-flash\ntraffic: {arrivals: poisson:5/s}\n"
        "sla: ['tps_mean>=20']\nsteps: {row_cost: 4us, slow_path: '2=6.6%,189=21.6%'}\n"
    )
    deployment = load_scenario(path).deployment()
    assert deployment.row_cost_s == pytest.approx(4e-6)
    assert deployment.slow_path is not None
    assert deployment.slow_path(2) == pytest.approx(0.066)
    assert Scenario.model_fields["steps"].default == StepsSpec()
    assert StepsSpec().apply(deployment).row_cost_s == 0.0


@pytest.mark.parametrize(
    ("steps", "field"),
    [("row_cost: much", "row_cost"), ("row_cost: -4us", "row_cost"), ("slow_path: '2=x'", "slow_path")],
)
def test_what_makes_no_sense_in_a_scenario_is_named_with_its_file(
    steps: str, field: str, tmp_path: Path
) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "name: wrong\nprofile: deepseek-v4-flash\ntraffic: {arrivals: poisson:5/s}\n"
        f"sla: ['tps_mean>=20']\nsteps: {{{steps}}}\n"
    )
    with pytest.raises(BadInputError, match=rf"scenario\.yaml: steps\.{field}"):
        load_scenario(path)
