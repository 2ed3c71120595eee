"""What ``fleet`` says of the table and the policy that its verdict rests on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator.deployment.profile_parts import CurveSpec
from tests.cli.test_early_stop import SAID, written
from tests.deployment.test_setup import LINE
from tests.support.command_line import run

TERMS = ("--sla", "tps_mean>=10", "--duration", "20s", "--replicas", 1, "--workers", 1)


def fleet(profile: Path, out: Path, rate: int, *what: object) -> int:
    """Serve outputs of 60 tokens behind a prefill pool that adds next to nothing."""
    traffic = ("--traffic", f"poisson:{rate}/s", "--lengths", "fixed:100/60", "--prefill-tokens-per-s", "1e7")
    return run("fleet", "--profile", profile, *traffic, *TERMS, "--out", out, *what)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Ten milliseconds a step, measured up to 64 rows: every draft pays."""
    step = CurveSpec(batch_tokens=(1, 64), steps_per_s=(100.0, 99.9), beyond="clamp")
    LINE.model_copy(update={"step": step}).save(tmp_path / "flat.json")
    return tmp_path / "flat.json"


@pytest.mark.parametrize(("lookup", "policy", "said"), [
    ("ceil", "dspark", True), ("linear", "dspark", False), ("ceil", "dspark-async:0", False),
])  # fmt: skip
def test_a_fleet_says_what_the_early_stop_loses(
    lookup: str, policy: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--acceptance", "length:3@5", "--policy", policy, "--concurrency", 24)
    assert fleet(written(tmp_path, lookup), tmp_path / "fleet", 20, *what) == 0
    printed = capsys.readouterr().err
    loss = pd.read_csv(tmp_path / "fleet" / "replicas.csv")["early_stop_loss"].max()
    assert (SAID in printed) == said
    assert (loss > 0.15) == said
    assert (f"gives away {loss:.0%}" in printed) == said


def test_a_verdict_on_rows_far_beyond_those_measured_is_refused(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 tokens in 10 ms: 60 take 0.2 s, 150/s are 30 requests at once, 8 rows each: 240, 3.75 times 64."""
    what = ("--acceptance", "length:3@7", "--policy", "dspark-async", "--concurrency", 60)
    assert fleet(flat, tmp_path / "no", 150, *what) == 2
    assert "extrapolation along rows" in capsys.readouterr().err
    assert not list((tmp_path / "no").glob("*"))
    assert fleet(flat, tmp_path / "yes", 150, *what, "--extrapolate-rows") == 0
    assert pd.read_csv(tmp_path / "yes" / "replicas.csv")["rows_mean"].item() == pytest.approx(240, rel=0.1)


def test_a_saturated_verdict_on_such_rows_is_refused_as_well(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 requests carry 40 x 3 / 60 / 10 ms = 200/s at most; all 40 take 8 rows: 320, 5 times 64."""
    what = ("--acceptance", "length:3@7", "--policy", "dspark-async", "--concurrency", 40)
    assert fleet(flat, tmp_path / "no", 300, *what) == 2
    assert "5.0 times those measured" in capsys.readouterr().err
    assert fleet(flat, tmp_path / "yes", 300, *what, "--extrapolate-rows") == 1


def test_steps_beyond_the_table_are_said(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """60/s are 12 requests, 96 rows: beyond 64, and within three times as many. 10/s are 2, 16 rows."""
    what = ("--acceptance", "length:3@7", "--policy", "dspark-async", "--concurrency", 40)
    for rate, said in ((60, True), (10, False)):
        assert fleet(flat, tmp_path / str(rate), rate, *what) == 0
        assert ("beyond the batch sizes of the profile" in capsys.readouterr().err) == said


def test_prompts_in_a_step_are_no_rows_of_its_requests(flat: Path, tmp_path: Path) -> None:
    """Chunks of 100 tokens share the steps of about 2 requests: 16 rows at most."""
    what = ("--acceptance", "length:3@7", "--policy", "dspark-async", "--concurrency", 40)
    traffic = ("--traffic", "poisson:10/s", "--lengths", "fixed:2000/60", "--prefill", "chunked")
    chunked = ("--chunk-tokens", 500, *TERMS, "--out", tmp_path / "chunked")
    assert run("fleet", "--profile", flat, *what, *traffic, *chunked) == 0
    assert pd.read_csv(tmp_path / "chunked" / "replicas.csv")["rows_mean"].item() < 64


@pytest.mark.parametrize(("term", "said"), [("tps_p90>=10", True), ("tps_p10>=10", False)])
def test_a_fleet_says_that_a_term_promises_to_few(
    term: str, said: bool, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet(flat, tmp_path / "fleet", 2, "--acceptance", "length:3@5", "--concurrency", 24, "--sla", term)
    assert ("warning: tps_p90>=10 promises to 10% of the requests only" in capsys.readouterr().err) == said
