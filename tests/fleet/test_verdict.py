"""``dspark-sim fleet`` writes its verdict, takes every limit of a plan, and ends with 1 on a breach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import run

STEP_S = 0.01


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps of 10 ms whatever the batch, so that every running request gets 100 tokens/s."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "profile.json"
    curve = {"type": "throughput-curve", "batch_tokens": [1, 400], "steps_per_s": [1 / STEP_S, 1 / STEP_S]}
    provenance = {"kind": "synthetic", "source": "test", "date": "2026-01-01"}
    known = {"schema": 1, "name": "even", "title": "even", "provenance": provenance, "step": curve}
    path.write_text(json.dumps(known))
    return path


def fleet(profile: Path, *more: object, rate: float = 4.0, replicas: int = 2) -> tuple[int, dict[str, Any]]:
    """``dspark-sim fleet`` on prompts of 100 and outputs of 21 tokens: its exit code and its verdict."""
    code = run(
        "fleet", "--profile", profile, "--acceptance", "length:2@3", "--policy", "autoregressive",
        "--traffic", f"poisson:{rate}/s", "--lengths", "fixed:100/21", "--duration", "120s",
        "--replicas", replicas, "--workers", 1, "--out", "out", *more,
    )  # fmt: skip
    return code, json.loads(Path("out/verdict.json").read_text())


def test_the_verdict_holds_every_term(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdict = fleet(profile, "--sla", "tps_mean>=90", "--sla", "ttft_p99<=2s")
    assert code == 0
    assert verdict["holds"] is True
    assert verdict["fleet"]["replicas"] == 2
    assert verdict["policy"] == "autoregressive"
    mean, first = verdict["terms"]
    assert (mean["term"], mean["statistic"], mean["asked"]) == ("tps_mean>=90", "mean", 90)
    assert mean["attained"] == pytest.approx(1 / STEP_S)
    assert mean["attained_ci95"] == pytest.approx(0, abs=1e-6)
    assert mean["share_kept"] is None
    assert (first["asked"], first["share_asked"], first["share_kept"]) == (2.0, 0.99, 1.0)
    assert first["share_kept_ci95"] == pytest.approx(3 / verdict["requests_judged"])
    assert mean["holds"] is first["holds"] is True
    assert "met    tps_mean>=90: 100 ± " in capsys.readouterr().out


def test_a_term_that_fails_ends_with_1_and_stands_in_the_verdict(profile: Path) -> None:
    code, verdict = fleet(profile, "--sla", "tps_mean>=110", "--sla", "ttft_p99<=2s")
    assert code == 1
    assert verdict["holds"] is False
    assert [each["holds"] for each in verdict["terms"]] == [False, True]
    assert verdict["terms"][0]["attained"] == pytest.approx(100)


def test_a_mean_alone_promises_nothing_to_any_request(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, verdict = fleet(profile, "--sla", "tps_mean>=90")
    assert code == 0
    assert verdict["attainment"] is None
    assert "attainment" not in capsys.readouterr().out


def test_a_saturated_fleet_has_a_verdict_without_numbers(profile: Path) -> None:
    """Two slots deliver 200 tokens/s; 20 requests/s ask for 400."""
    code, verdict = fleet(profile, "--sla", "ttft_p99<=2s", "--concurrency", 1, rate=20.0)
    assert code == 1
    assert verdict["saturated"] is True
    assert verdict["holds"] is False
    assert verdict["attainment"] is verdict["terms"][0]["attained"] is None


@pytest.mark.parametrize(
    ("limit", "least_s"),
    [
        # Room for one request of 100 + 21 tokens: at 4/s and 0.2 s each it is busy for 80% of the time, and
        # by Pollaczek-Khinchine the mean wait is 0.8 * 0.2 / (2 * 0.2) = 0.4 s.
        (("--kv-tokens", 121), 0.2),
        # A worker of 200 tokens/s takes 0.5 s for a prompt; two of them are busy all the time.
        (("--prefill-tokens-per-s", 1000, "--prefill-workers", 1), 0.1),
        # 100 prompt tokens in steps of 10: ten steps of 10 ms before the first token.
        (("--prefill", "chunked", "--chunk-tokens", 10), 0.1),
    ],
)
def test_a_fleet_takes_the_limits_of_a_plan(profile: Path, limit: tuple[object, ...], least_s: float) -> None:
    sla = ("--sla", "ttft_mean<=50ms")
    code, verdict = fleet(profile, *sla, replicas=1)
    assert code == 0
    assert verdict["terms"][0]["attained"] <= STEP_S
    code, verdict = fleet(profile, *sla, *limit, replicas=1)
    assert code == 1
    assert verdict["terms"][0]["attained"] > least_s


def test_a_speed_of_prefill_without_a_pool_is_refused(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--sla", "ttft_p99<=2s", "--prefill", "chunked", "--prefill-tokens-per-s", 10)
    assert run("fleet", "--profile", profile, "--traffic", "poisson:1/s", "--replicas", 1, "--out", "out",
               "--acceptance", "length:2@3", *given) == 2  # fmt: skip
    assert "there is no prefill pool with --prefill chunked" in capsys.readouterr().err
