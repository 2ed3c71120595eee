"""What the early stop of ``dspark`` loses is said by every command that answers for it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from simulator.core.provenance import Provenance
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import CurveSpec
from tests.support.command_line import run
from tests.support.plans import rough_plans

SAID = "draft token that does not raise throughput"
QUIET = {"frontier": ("--workers", 1), "compare": ("--workers", 1, "--sla", 20), "simulate": ()}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def written(folder: Path, lookup: str) -> Path:
    """Step times over batches padded to 8, 24, 40 ... 200 rows, or in a straight line between these."""
    sizes = tuple(range(8, 201, 16))
    path = folder / f"{lookup}.json"
    Profile(
        name=lookup, title=lookup, provenance=Provenance(kind="synthetic", source="test", date="2026-01-01"),
        step=CurveSpec(batch_tokens=sizes, steps_per_s=tuple(1 / (0.01 + 1e-4 * rows) for rows in sizes),
                       lookup=lookup, beyond="clamp"),
    ).save(path)  # fmt: skip
    return path


def arguments(command: str, profile: Path, out: Path, policies: tuple[str, ...]) -> list[object]:
    common = [command, "--profile", profile, "--acceptance", "length:3@5", "--concurrency", 24]
    chosen = [part for policy in policies for part in ("--policy", policy)]
    return [*common, *chosen, "--steps", 300, *QUIET[command], "--out", out]


@pytest.mark.parametrize("command", ["frontier", "compare", "simulate"])
def test_commands_say_what_the_early_stop_loses(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 requests fill a batch of 24: one draft more pays for 16. On the line no budget is a trap."""
    for lookup, said in (("ceil", True), ("linear", False)):
        profile = written(tmp_path, lookup)
        assert run(*arguments(command, profile, tmp_path / f"{lookup}-{command}", ("dspark",))) == 0
        printed = capsys.readouterr()
        assert (SAID in printed.out + printed.err) == said


def test_the_loss_said_is_the_throughput_lost(tmp_path: Path) -> None:
    """A run of its own with a search over all budgets (``dspark-async:0``) delivers that much more."""
    out, policies = tmp_path / "table.csv", ("dspark", "dspark-async:0", "mtp1")
    assert run(*arguments("frontier", written(tmp_path, "ceil"), out, policies)) == 0
    table = pd.read_csv(out).set_index("policy")
    rate, loss = table["throughput_tok_per_s"], table["early_stop_loss"]
    assert loss["dspark"] == pytest.approx(1 - rate["dspark"] / rate["dspark-async:0"], abs=0.03)
    assert loss["dspark"] > 0.15
    assert loss[["dspark-async:0", "mtp1"]].tolist() == [0, 0]


def test_a_run_keeps_the_loss_beside_its_metrics(tmp_path: Path) -> None:
    profile = written(tmp_path, "ceil")
    for policy, kept in (("dspark", True), ("dspark-async", False)):
        assert run(*arguments("simulate", profile, tmp_path / policy, (policy,))) == 0
        described = json.loads((tmp_path / policy / "run.json").read_text())
        assert ("early_stop_loss" in described) == kept


def test_a_plan_warns_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = {
        "name": "Stairs", "profile": str(written(tmp_path, "ceil")), "acceptance": ["length:3@5"],
        "policies": ["dspark"], "sla": ["tps_mean>=30"],
        "traffic": {"arrivals": "poisson:20/s", "lengths": "fixed:100/60"},
        "replica": {"concurrency": 24, "gpus": 1, "prefill_tokens_per_s": 50_000},
        "search": {"precision": "20%", "requests": 200, "concurrency": [24]},
    }  # fmt: skip
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario))
    with rough_plans():
        assert run("plan", path, "--workers", "1", "--out", tmp_path / "plan") == 0
    assert SAID in " ".join("".join(capsys.readouterr()).split())
    assert pd.read_csv(tmp_path / "plan" / "plans.csv")["early_stop_loss"].iloc[0] > 0.05
