"""Answers that rest on rows far beyond those measured are refused, or left out and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import CurveSpec
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.frontier import sweep_frontier
from tests.support.command_line import run

LINE = Profile(
    name="line", title="line", provenance=Provenance(kind="synthetic", source="test", date="2026-01-01"),
    step=CurveSpec(batch_tokens=(1, 64), steps_per_s=(100.0, 50.0)),
)  # fmt: skip
"""A line measured without speculation, up to 64 requests."""


def deployment(extrapolate_rows: bool = False) -> Deployment:
    return deploy(LINE, ["length:3@7"], extrapolate_rows=extrapolate_rows)


@pytest.mark.parametrize(("requests", "policy", "refused"), [
    (24, "fixed:7", False),  # 192 rows: three times the last point, and no more
    (25, "fixed:7", True),
    (97, "mtp1", True), (96, "mtp1", False),
    (192, "autoregressive", False), (193, "autoregressive", True),
    (24, "batch-table:1-=7", False), (25, "batch-table:1-=7", True),
    (25, "batch-table:1-24=7,25-=6", False), (28, "batch-table:1-24=7,25-=6", True),  # 175 and 196 rows
    (500, "dspark-async", False),  # its rows are not known before it has decided
])  # fmt: skip
def test_rows_of_fixed_lengths_are_known_before_a_step(requests: int, policy: str, refused: bool) -> None:
    setup = deployment().plan(parse_policy(policy))
    assert (setup.extrapolates(requests) is not None) == refused
    assert deployment(True).answerable(setup, requests) is setup
    if refused:
        with pytest.raises(BadInputError, match=r"extrapolation along rows.*`extrapolate_rows`"):
            deployment().answerable(setup, requests)


def test_a_sweep_leaves_such_loads_out_and_says_so() -> None:
    policies = [parse_policy("fixed:7"), parse_policy("autoregressive")]
    said = r"loads above 16 are left out: policy: fixed:7: verifies 320 rows at 40 requests, 5\.0 times"
    with pytest.warns(UserWarning, match=said):
        table = sweep_frontier(deployment(), policies, [8, 16, 40], seeds=1, steps=60)
    kept = table.groupby("policy")["concurrency"].agg(list).to_dict()
    assert kept == {"fixed:7": [8, 16], "autoregressive": [8, 16, 40]}
    with pytest.raises(BadInputError, match=r"fixed:7.* 5\.0 times .*extrapolation along rows"):
        sweep_frontier(deployment(), policies, [40], seeds=1, steps=60)
    whole = sweep_frontier(deployment(True), policies, [8, 40], seeds=1, steps=60)
    assert len(whole) == 4


def test_no_gap_of_refused_loads_is_interpolated_over() -> None:
    """25 requests of 8 rows are 200, 40 of 2 rows are 80: the limit is 192, and 40 would stand alone."""
    table = parse_policy("batch-table:1-30=7,31-=1")
    with pytest.warns(UserWarning, match="loads above 8 are left out: policy: batch-table.* 200 rows at 25"):
        kept = sweep_frontier(deployment(), [table], [8, 25, 40], seeds=1, steps=60)
    assert kept["concurrency"].tolist() == [8]


def test_rows_that_a_scheduler_chose_are_judged_after_the_run() -> None:
    """Beyond 64 rows this curve ends, and rows are free: all 8 of each request are verified, 320 at 40."""
    step = CurveSpec(batch_tokens=(1, 64), steps_per_s=(100.0, 99.9), beyond="clamp")
    flat = LINE.model_copy(update={"step": step})
    policies = [parse_policy(name) for name in ("dspark-async", "oracle")]
    said = "loads above 8 are left out: policy: dspark-async: verifies 320 rows at 40 requests, 5.0 times"
    with pytest.warns(UserWarning, match=said):
        table = sweep_frontier(deploy(flat, ["length:3@7"]), policies, [8, 40], seeds=1, steps=60)
    assert table[table["policy"] == "dspark-async"]["concurrency"].tolist() == [8]
    with pytest.raises(BadInputError, match=r"dspark-async: verifies 320 rows .*`extrapolate_rows`"):
        sweep_frontier(deploy(flat, ["length:3@7"]), policies[:1], [40], seeds=1, steps=60)
    whole = deploy(flat, ["length:3@7"], extrapolate_rows=True)
    assert len(sweep_frontier(whole, policies, [8, 40], seeds=1, steps=60)) == 4


def test_a_single_run_beyond_what_was_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = CurveSpec(batch_tokens=(1, 64), steps_per_s=(100.0, 99.9), beyond="clamp")
    LINE.model_copy(update={"step": step}).save(tmp_path / "flat.json")
    what = [
        "simulate", "--profile", tmp_path / "flat.json", "--acceptance", "length:3@7", "--policy",
        "dspark-async", "--concurrency", 40, "--steps", 60, "--out", tmp_path / "run",
    ]  # fmt: skip
    assert run(*what) == 2
    assert "dspark-async: verifies 320 rows at 40 requests" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*"))
    assert run(*what, "--extrapolate-rows") == 0
