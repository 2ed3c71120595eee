"""Requests that outgrow the contexts of the step times: counted by hand, and said at every door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.deployment.profile import beyond_contexts, load_profile
from simulator.planning.plan import plan
from simulator.planning.scenario.reading import load_scenario
from tests.deployment.test_extrapolated_answers import PROFILE, SCENARIO
from tests.support.command_line import run

CURVE = "kernels/h100/qwen3-8b-tp1-bf16"

DOORS = {
    "simulate": ("simulate", "--policy", "fixed:2", "--concurrency", "2", "--steps", "60"),
    "frontier": ("frontier", "--policy", "fixed:2", "--concurrency", "2", "--steps", "60", "--seeds", "1"),
    "regret": ("regret", "--believed", "flat", "--concurrency", "2", "--seeds", "2"),
    "fleet": (
        "fleet", "--traffic", "poisson:2/s", "--duration", "20s", "--replicas", "1", "--sla", "tps_mean>=1",
    ),
}  # fmt: skip


def test_requests_that_end_beyond_are_counted_with_the_longest() -> None:
    profile = load_profile(CURVE)
    assert profile.contexts_to == 16384
    said = beyond_contexts(profile, [16000, 16000, 100, 30000], [384, 385, 50, 2000])
    assert str(said).startswith(
        "2 of 4 requests (50.0%) grow beyond the contexts of 16,384 tokens that the step times are of, to "
        "32,000 at most"
    )
    assert beyond_contexts(profile, [16000], [384]) is None
    assert beyond_contexts(profile, [], []) is None
    assert beyond_contexts(load_profile("deepseek-v4-flash"), [10**6], [1]) is None


@pytest.mark.parametrize("door", DOORS)
def test_every_command_says_so(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, *more = DOORS[door]
    out = tmp_path / ("table.csv" if door in ("frontier", "regret") else "out")
    words = (command, "--profile", CURVE, "--acceptance", "length:2@5", "--out", out, *more)
    assert run(*words, "--lengths", "fixed:20000/20") == 0
    printed = capsys.readouterr()
    assert "grow beyond the contexts of 16,384 tokens" in " ".join((printed.out + printed.err).split())


def test_a_plan_warns_of_it_and_of_free_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request of 100 prompt and 200 output tokens outgrows 250, none 300."""
    monkeypatch.chdir(tmp_path)
    search = SCENARIO["search"] | {"extrapolate_rows": True}  # type: ignore[operator]
    Path("s.yaml").write_text(json.dumps(SCENARIO | {"search": search}))
    measured = PROFILE["provenance"] | {"kind": "measured"}  # type: ignore[operator]
    for longest, warned in ((250, True), (300, False)):
        Path("line.json").write_text(json.dumps(PROFILE | {"contexts_to": longest, "provenance": measured}))
        warnings = plan(load_scenario(Path("s.yaml"))).warnings
        assert any("prices no drafter: drafting is free" in each for each in warnings)
        assert any("4,096 of 4,096 requests (100.0%) grow" in each for each in warnings) is warned
