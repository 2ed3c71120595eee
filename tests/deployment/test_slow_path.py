"""The path that is merely enabled: dearer where nothing is drafted, and only there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import simulator as sim
from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.cost.scaled import EnabledCost, SlowPath
from tests.support.command_line import run

VLLM = "2=6.6%,189=21.6%"


def test_shares_are_those_given_and_linear_between() -> None:
    slow = SlowPath.parse(VLLM)
    assert [slow(n) for n in (1, 2, 189, 500)] == pytest.approx([0.066, 0.066, 0.216, 0.216])
    assert slow(95) == pytest.approx(0.066 + 0.15 * 93 / 187)
    assert SlowPath.parse("5%")(7) == 0.05
    assert SlowPath.parse("0.05") == SlowPath((1,), (0.05,))


def test_only_a_step_without_drafts_is_dearer() -> None:
    """10 ms a step: 4 requests in 4 rows, or in 6 with 2 prompt rows; prompts alone miss no drafts."""
    cost = EnabledCost(ThroughputCurve([1], [100.0]), SlowPath((1,), (0.5,)))
    assert cost.step_time_s(4, 4) == pytest.approx(0.015)
    assert cost.step_time_s(4, 6, 0.0, 2) == pytest.approx(0.015)
    assert cost.step_time_s(4, 5) == pytest.approx(0.010)
    assert cost.step_time_s(0, 6, 0.0, 6) == pytest.approx(0.010)
    np.testing.assert_allclose(cost.step_time_s(4, range(4, 7)), [0.015, 0.010, 0.010])
    np.testing.assert_allclose(cost.step_time_s(4, range(5, 7)), [0.010, 0.010])


def test_a_policy_that_chooses_no_drafts_pays_what_was_measured() -> None:
    """As published: K = 0 under dynamic speculation at 189 requests, 21.6% more time per token."""
    slow = sim.deployment("deepseek-v4-flash", slow_path=VLLM)
    plain = sim.deployment("deepseek-v4-flash")
    runs = {
        name: bench.simulate("batch-table:1-188=5,189-=0", concurrency=189, steps=200).metrics
        for name, bench in (("slow", slow), ("plain", plain))
    }
    assert runs["slow"].tpot_p50_s / runs["plain"].tpot_p50_s == pytest.approx(1.216, rel=1e-6)
    for policy in ("autoregressive", "fixed:3"):
        costs = [bench.plan(policy).cost.step_time_s(20, 20) for bench in (slow, plain)]
        assert costs[0] == costs[1]  # never speculates, or always
    plan = slow.plan("dspark-async")
    assert plan.believed.step_time_s(20, 20) < plan.cost.step_time_s(20, 20)


@pytest.mark.parametrize("text", ["", "2=x", "0=1%", "5=1%,2=3%", "2=-1%", "2=nan"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=re.escape("2=6.6%,189=21.6%")):
        SlowPath.parse(text)


def test_commands_take_it(tmp_path: Path) -> None:
    words = (
        "--profile",
        "deepseek-v4-flash",
        "--policy",
        "dspark-async",
        "--concurrency",
        "4",
        "--steps",
        "60",
    )
    assert run("simulate", *words, "--slow-path", VLLM, "--out", tmp_path / "a") == 0
    assert run("simulate", *words, "--slow-path", "much", "--out", tmp_path / "b") == 2
