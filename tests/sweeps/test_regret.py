"""Regret: a right table loses nothing, and wrong ones lose in the ways they are known to."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.beliefs import BELIEFS, believe
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import load_profile
from simulator.report.frontier import plot_regret
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.regret import belief_warnings, regret


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    profile = load_profile("deepseek-v4-flash")
    return Deployment(profile, {name: spec.build() for name, spec in profile.acceptance.items()})


def test_only_ratios_count_and_a_floor_lookup_buys_whole_blocks(
    deployment: Deployment, tmp_path: Path
) -> None:
    policy = parse_policy("dspark-async")
    table = regret(deployment, policy, ["scaled:1.5", "floor:4", "flat"], [150], seeds=3, steps=400)
    rows = table.set_index("belief")
    assert rows.loc["scaled:1.5", "regret"] == pytest.approx(0, abs=1e-3)
    for wrong in ("floor:4", "flat"):
        assert rows.loc[wrong, "regret"] > 0.02
        assert rows.loc[wrong, "significant"]
    assert rows.loc["flat", "verification_budget_mean"] == pytest.approx(6, abs=0.01)
    assert rows.loc["flat", "true_budget_mean"] < 5
    plot_regret(table, tmp_path / "regret.png")
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")


def test_another_engines_table_is_believed(deployment: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "sglang.json"
    path.write_text(
        '{"sample_batch_tokens":[8,64,512],"sample_steps_per_sec":[70.0,55.0,30.0],"max_batch_tokens":512}'
    )
    plan = deployment.plan(parse_policy("dspark-async"))
    drafting = plan.cost.step_time_s(1, 64) - deployment.profile.target_cost().step_time_s(1, 64)
    assert drafting > 0  # the table is of the target's pass: drafting comes on top, as in the true cost
    assert believe(str(path), plan, 10).step_time_s(1, 64) == pytest.approx(1 / 55 + drafting)


def test_a_table_that_falls_is_believed_as_the_engine_looks_it_up(
    deployment: Deployment, tmp_path: Path
) -> None:
    """One request, drafts of 1 to 6 rows. A rate ten times as high from 4 rows on must buy at least 4 rows in
    every step; the true curve buys what it buys, and the loss is not a gain."""
    path = tmp_path / "dip.json"
    path.write_text(
        '{"sample_batch_tokens":[1,2,4,6],"sample_steps_per_sec":[70.0,60.0,700.0,50.0],"max_batch_tokens":6}'
    )
    row = regret(deployment, parse_policy("dspark-async"), [str(path)], [1], seeds=2, steps=300).iloc[0]
    assert row["verification_budget_mean"] == pytest.approx(5, abs=0.01)  # floor: 5 rows still look as fast
    assert row["regret"] > 0
    assert belief_warnings(["flat", str(path)]) == [
        f"{path}: more work takes less time at 4 batch tokens (16.67 ms, then 1.429 ms): a scheduler jumps "
        "over what lies between"
    ]


def test_a_flat_table_is_named_as_one_that_can_never_trim(tmp_path: Path) -> None:
    path = tmp_path / "flat.json"
    path.write_text('{"sample_batch_tokens":[8,64],"sample_steps_per_sec":[70.0,69.9],"max_batch_tokens":64}')
    (warning,) = belief_warnings([str(path)])
    assert "varies by 0.1%" in warning
    assert "never trim" in warning


@pytest.mark.parametrize(
    ("belief", "message"),
    [
        ("guess", "is not a belief"),
        ("floor:1", "at least 2 probes"),
        ("scaled:0", "positive factor"),
        ("no-context", "no context axis"),
        ("missing.json", "no such file"),
    ],
)
def test_bad_beliefs_are_explained(deployment: Deployment, belief: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        believe(belief, deployment.plan(parse_policy("dspark-async")), 100)


def test_what_is_missing_is_said(deployment: Deployment) -> None:
    with pytest.raises(BadInputError, match="at least 2 seeds"):
        regret(deployment, parse_policy("dspark-async"), list(BELIEFS)[:1], [10], seeds=1)


@pytest.mark.parametrize(
    ("beliefs", "loads", "message"),
    [
        (["flat", "flat"], [5], "beliefs: gives flat more than once"),
        (["flat"], [5, 9, 5], "concurrency: gives 5 more than once"),
    ],
)
def test_repeats_are_refused_rather_than_counted_twice(
    deployment: Deployment, beliefs: list[str], loads: list[int], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        regret(deployment, parse_policy("dspark-async"), beliefs, loads, seeds=2, steps=100)
