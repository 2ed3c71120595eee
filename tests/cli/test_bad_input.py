"""Inputs that once ended in a traceback, a hang or a wrong answer: each is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.deployment.profile import shipped_profiles
from simulator.planning.scenario.example import EXAMPLE
from tests.support.command_line import run

FLASH = ("--profile", "deepseek-v4-flash")
SIMULATE = ("simulate", *FLASH, "--policy", "mtp1", "--concurrency", "4", "--out", "out")
FRONTIER = ("frontier", *FLASH, "--seeds", "1", "--steps", "60", "--workers", "1", "--out", "f.csv")
REGRET = ("regret", *FLASH, "--believed", "floor:4", "--concurrency", "4", "--workers", "1", "--out", "r.csv")
FLEET = ("fleet", *FLASH, "--traffic", "poisson:1/s", "--sla", "ttft_p99<=1s", "--out", "out")

OPTIONS = {
    "GPUs one by one": (("list", "--gpu", "h100", "--gpu", "h200"), "--gpu: is given more than once"),
    "an SLA beside a scenario": (("plan", "s.yaml", "--out", "p", "--sla", "tps_p10>=60"), "--sla: is for"),
    "a width beside a scenario": (("plan", "s.yaml", "--out", "p", "--tp", "4"), "--tp: is for --model"),
    "negative seed": ((*SIMULATE, "--steps", "60", "--seed", "-1"), "--seed"),
    "cluster without a port": ((*FRONTIER, "--backend", "dask", "--address", "foo"), "address"),
    "name longer than any file's": ((*FRONTIER, "--acceptance", "a" * 300), "acceptance"),
    "no tokens allowed": ((*FRONTIER, "--lengths", "lognormal:1500,cv=1,max=0/300"), "max"),
    "variation of nothing": ((*SIMULATE, "--traffic", "gamma:5/s,cv=1e-300"), "cv"),
    "superscript digit": ((*FRONTIER, "--acceptance", "length:3.5@²"), "no digit"),
    "endless list": ((*FRONTIER, "--concurrency", "1,2,...,1e12"), "--concurrency"),
    "budget of long ago": ((*FRONTIER, "--policy", f"dspark-async:{'9' * 30}"), "lag"),
    "endless seeds": (("frontier", *FLASH, "--out", "f.csv", "--seeds", "9" * 30), "seeds"),
    "geometric beyond numbers": ((*FRONTIER, "--lengths", "geometric:1e300/10"), "geometric"),
    "requests beyond memory": ((*FRONTIER, "--policy", "dspark", "--concurrency", "9" * 20), "concurrency"),
    "endless steps of a sweep": ((*FRONTIER[:5], "--steps", "9" * 30, *FRONTIER[7:]), "steps"),
    "endless steps of a run": ((*SIMULATE, "--steps", "9" * 30), "steps"),
    "endless seeds of a regret": ((*REGRET, "--seeds", "9" * 30), "seeds"),
    "more workers than a machine has": ((*FRONTIER, "--workers", "9" * 30), "workers"),
    "more workers of a fleet": ((*FLEET, "--replicas", "2", "--workers", "9" * 30), "workers"),
    "replicas beyond memory": ((*FLEET, "--replicas", "9" * 12), "replicas"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_mean_nothing_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, named = OPTIONS[name]
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "fault" not in said
    assert len(said) < 8000
    assert not list(tmp_path.iterdir())


PROFILE = shipped_profiles()["deepseek-v4-flash"].read_text()
SCENARIOS = {
    "impossible date": EXAMPLE.replace("price:", "price:\n  when: 2024-13-45", 1),
    "tag": EXAMPLE.replace("name: ", "name: !!python/object:os.system ", 1),
    "deep nesting": "a: " + "[" * 5000 + "]" * 5000,
    "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "requests beyond memory": EXAMPLE.replace("concurrency: 256", "concurrency: 2147483648", 1),
    "key given twice": EXAMPLE.replace("name: ", "name: first\nname: ", 1),
}
PROFILES = {
    "deep nesting": "[" * 100_000 + "]" * 100_000,
    "infinite jitter": PROFILE.replace('"name"', '"jitter": [1e999], "name"', 1),
    "jitter that is no number": PROFILE.replace('"name"', '"jitter": [NaN], "name"', 1),
    "negative claim": json.dumps(
        json.loads(PROFILE) | {"published": {"source": "x", "throughput": {"mtp1": [[10, -5]]}}}
    ),
    "key given twice": PROFILE.replace('"name"', '"name": "a", "name"', 1),
    "true for a number": PROFILE.replace('"replica_gpus": 1', '"replica_gpus": true', 1),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_that_mean_nothing_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SCENARIOS[name])
    assert run("plan", "s.yaml", "--out", "plan") == 2
    assert "error: s.yaml: " in capsys.readouterr().err


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_that_mean_nothing_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text(PROFILES[name])
    assert PROFILES[name] != PROFILE
    assert run("frontier", "--profile", "p.json", "--concurrency", "4", "--out", "f.csv") == 2
    assert "error: p.json: " in capsys.readouterr().err


def test_a_hash_beyond_64_bits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (
        {"timestamp": i * 1000, "input_length": 10, "output_length": 5, "hash_ids": [2**70]} for i in range(5)
    )
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(*SIMULATE, "--traffic", "t.jsonl") == 2
    assert (
        "t.jsonl: 5 of 5 rows are malformed: line 1: hash_ids has an id beyond 64 bits"
        in capsys.readouterr().err
    )


def test_a_scenario_names_its_file_for_what_only_a_plan_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(EXAMPLE.replace("policies: [mtp1", "policies: [fixed:99", 1))
    assert run("plan", "s.yaml", "--out", "plan") == 2
    assert "error: s.yaml: " in capsys.readouterr().err
