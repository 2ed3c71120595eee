"""One profile, one answer: every command gets deployment, acceptance and limits through ``deployment``."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import simulator
from simulator.core.errors import BadInputError
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import load_profile
from simulator.engine.limits import EngineLimits
from simulator.planning.scenario.scenario import Scenario
from tests.support.command_line import command_names, run

KV_TOKENS, PREFILL_TOKENS_PER_S = 5_000, 40_000.0
TINY_CPU = Path(__file__).parents[2] / "traces" / "validation" / "tiny-cpu" / "profile.json"

SERVED = ("--lengths", "fixed:100/20", "--acceptance", "conditional:0.8,0.8,0.8")
ONE = ("--policy", "fixed:3")
SWEPT = ("--concurrency", "2", "--workers", "1")
FEW = ("--seeds", "1", "--steps", "60")
COMMANDS: dict[str, tuple[str, ...]] = {
    "frontier": (*ONE, *SERVED, *SWEPT, *FEW, "--out", "frontier.csv"),
    "compare": (*ONE, *SERVED, *SWEPT, *FEW, "--sla", "1", "--out", "compare"),
    "simulate": (*ONE, *SERVED, "--concurrency", "2", "--steps", "60", "--out", "simulate"),
    "regret": (*ONE, *SERVED, *SWEPT, "--seeds", "2", "--believed", "flat", "--out", "regret.csv"),
    "fleet": (
        *ONE, *SERVED, *SWEPT, "--traffic", "poisson:5/s", "--duration", "60s", "--sla", "ttft_p99<=9s",
        "--replicas", "1", "--out", "fleet",
    ),
    "plan": ("scenario.yaml", "--workers", "1", "--out", "plan"),
}  # fmt: skip
"""Commands that simulate an engine, and how each is run in a second."""

LIVE = {"live", "validate"}
"""Commands that serve on a device: their limits are tested in ``live/checks/validation``."""

NO_ENGINE = {"list", "profile", "train", "trace", "acceptance", "import", "export", "replay", "ui"}
"""Commands, and groups of them, that run no engine under limits; the app does in its workers, by the API."""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile that knows its KV capacity and its prefill speed, in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "profile.json"
    path.write_text(
        json.dumps(
            {
                "schema": 1, "name": "known", "title": "known", "kv_tokens": KV_TOKENS,
                "prefill_tokens_per_s": PREFILL_TOKENS_PER_S,
                "provenance": {"kind": "synthetic", "source": "test", "date": "2026-01-01"},
                "step": {"type": "throughput-curve", "batch_tokens": [1, 400], "steps_per_s": [100, 50]},
            }
        )
    )  # fmt: skip
    scenario = {
        "name": "small", "profile": str(path), "policies": ["fixed:3"], "sla": ["ttft_p99<=5s"],
        "acceptance": ["conditional:0.8,0.8,0.8"],
        "traffic": {"arrivals": "poisson:5/s", "lengths": "fixed:100/20", "growth": ["0%"]},
        "replica": {"concurrency": 2}, "search": {"requests": 200, "precision": "20%", "concurrency": [1, 2]},
    }  # fmt: skip
    (tmp_path / "scenario.yaml").write_text(json.dumps(scenario))
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[EngineLimits]:
    """Every limit that is made while a test runs."""
    made: list[EngineLimits] = []
    check = EngineLimits.__post_init__

    def spy(limits: EngineLimits) -> None:
        check(limits)
        made.append(limits)

    monkeypatch.setattr(EngineLimits, "__post_init__", spy)
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_what_the_profile_knows(
    command: str, profile: Path, seen: list[EngineLimits]
) -> None:
    given = () if command == "plan" else ("--profile", profile)
    assert run(command, *given, *COMMANDS[command]) == 0
    assert {each.kv_tokens for each in seen} == {KV_TOKENS}
    speeds = {each.prefill_tokens_per_s for each in seen}
    # A plan also asks what decoding alone would carry: there, on purpose, the pool is left out.
    assert speeds - ({None} if command == "plan" else set()) == {PREFILL_TOKENS_PER_S}
    assert {(each.prefill, each.chunk_tokens) for each in seen} == {("elsewhere", 2048)}


def test_every_command_is_tested_here_or_runs_no_engine() -> None:
    engine = {words for words in command_names() if words.partition(" ")[0] not in NO_ENGINE}
    assert engine == set(COMMANDS) | LIVE


def test_only_the_door_makes_limits_and_deployments() -> None:
    """A command that builds them itself gives another answer the next time the profile learns something."""
    root = Path(simulator.__file__).parent
    made = {
        (node.func.id, path.relative_to(root).as_posix())
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        and node.func.id in ("EngineLimits", "Deployment")
    }  # fmt: skip
    assert made == {
        ("Deployment", "deployment/deployment.py"),
        ("EngineLimits", "deployment/deployment.py"),
        # Benchmarks of kernels: they have no profile.
        ("EngineLimits", "live/checks/speed/closed_loop.py"),
        ("EngineLimits", "live/checks/speed/generate.py"),
    }


# --- what the door decides ---------------------------------------------------------------------------------


def test_what_is_given_goes_before_what_the_profile_knows(profile: Path) -> None:
    deployment = deploy(profile, ["length:2@3"])
    assert deployment.limits(8) == EngineLimits(8, KV_TOKENS, prefill_tokens_per_s=PREFILL_TOKENS_PER_S)
    assert deployment.limits(8, kv_tokens=70, prefill_tokens_per_s=10.0) == EngineLimits(
        8, 70, prefill_tokens_per_s=10.0
    )
    # A pool's speed says nothing of prompts that are prefilled among decode steps.
    assert deployment.limits(8, prefill="chunked", chunk_tokens=64) == EngineLimits(
        8, KV_TOKENS, "chunked", 64, None
    )
    with pytest.raises(BadInputError, match="kv_tokens: must be positive"):
        deployment.limits(8, kv_tokens=0)


def test_a_scenario_is_the_same_deployment(profile: Path) -> None:
    scenario = Scenario.model_validate(
        {
            "name": "n", "profile": str(profile), "acceptance": ["length:2@3"], "sla": ["tps_mean>=1"],
            "traffic": {"arrivals": "poisson:1/s"}, "replica": {"concurrency": 8},
        }
    )  # fmt: skip
    by_hand = deploy(profile, ["length:2@3"])
    assert scenario.limits() == by_hand.limits(8)
    assert scenario.deployment().profile == by_hand.profile
    assert scenario.deployment().acceptance.keys() == by_hand.acceptance.keys()


def test_given_acceptance_replaces_the_profiles_own_and_is_noted() -> None:
    own = deploy("deepseek-v4-flash")
    assert own.notes == ()
    given = deploy("deepseek-v4-flash", ["length:2.5@4"], believed="deepseek-v4-pro")
    assert given.acceptance["dspark"] == parse_acceptance("length:2.5@4")
    assert set(given.acceptance) == set(own.acceptance)
    assert [note.split(" (")[0] for note in given.notes] == ["acceptance of dspark: length:2.5@4"]
    assert given.believed == load_profile("deepseek-v4-pro")


def test_no_acceptance_is_refused_unless_a_class_may_bring_its_own(profile: Path) -> None:
    with pytest.raises(BadInputError, match="no acceptance model, and there is no default"):
        deploy(profile)
    assert deploy(profile, required=False) == Deployment(load_profile(profile), {})


# --- the example --------------------------------------------------------------------------------------------


def test_a_fleet_waits_for_its_prefill_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 prompts/s of 1,500 tokens are 12,000 tokens/s; the profile prefills 11,604: the queue grows."""
    offered = 8 * 1500
    speed = load_profile(TINY_CPU).prefill_tokens_per_s
    assert speed is not None
    assert speed < offered
    code = run(
        "fleet", "--profile", TINY_CPU, "--acceptance", "length:3@7", "--policy", "dspark",
        "--concurrency", 16, "--traffic", "poisson:8/s", "--lengths", "fixed:1500/20",
        "--sla", "ttft_p99<=1s", "--replicas", 1, "--workers", 1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 1
    said = capsys.readouterr().err
    assert "saturated" in said or "misses ttft_p99<=1s" in said
