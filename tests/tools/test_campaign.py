"""The GPU campaign's machinery, dry on a CPU with very small models."""

from __future__ import annotations

import re
import runpy
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from simulator.core.errors import BadInputError, InfeasibleError, SimulatorError
from simulator.core.files import write_json
from simulator.core.reading import read_json
from simulator.deployment.profile import load_profile
from simulator.live.profiling import device_ceilings
from simulator.live.training.optimisation import Schedule
from simulator.live.training.presets import PRESETS
from tests.support.modelled_device import modelled_device
from tools.campaign.campaign import Campaign, run
from tools.campaign.parts import PARTS, gpu_tests
from tools.campaign.report import write_report
from tools.campaign.simulated import gains_of, won_words

SCRIPT = Path(__file__).parents[2] / "tools" / "campaign" / "__main__.py"
SPEED = (
    "floor.bandwidth_floor", "scheduling.visible_scheduling", "padding.ragged_against_padded",
    "generate.against_generate",
)  # fmt: skip
BRIEF = replace(
    PRESETS["nano"], hidden_size=64, intermediate_size=128, target_layers=2, target_layer_ids=(0,),
    target=Schedule(steps=12, learning_rate=5e-3),
    draft=Schedule(steps=8, learning_rate=5e-3), mtp=Schedule(steps=8, learning_rate=5e-3),
)  # fmt: skip
"""Trained just long enough for every loss to fall."""


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
    code: int = script["main"]()
    return code


SAVE = Figure.savefig


def coarsely(figure: Figure, path: Path, *, dpi: int, **options: Any) -> None:
    """Save a figure small and not laid out: how figures look is shown by the tests of the report."""
    figure.set_layout_engine("none")
    SAVE(figure, path, dpi=dpi / 5, **options)


def tiny(out: Path) -> Campaign:
    return Campaign(out, "cpu", tiny=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign in which all parts of the small pair and of one size have run; speed only pretends."""
    out = tmp_path_factory.mktemp("campaign")
    parts = [
        "ceilings", "schedulers", "train-small", "trace-small", "profile-small", "validation-small",
        "profile-8b", "staircase-8b", "validation-8b", "speed", "report",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, modelled_device():
        small = partial(device_ceilings.measure_ceilings, copy_bytes=2**20, matmul_size=64)
        patch.setattr(device_ceilings, "measure_ceilings", small)
        patch.setattr("gc.collect", lambda *_: 0)  # keeps real steps even; modelled ones are
        patch.setattr("tools.campaign.parts.LIVE_POLICIES", "mtp1 dspark-async")
        patch.setattr("simulator.live.training.presets.PRESETS", PRESETS | {"nano": BRIEF})
        patch.setattr(Figure, "savefig", coarsely)
        for name in SPEED:
            table = pd.DataFrame({"kind": ["x"], "step_ms": [1.23456]})
            patch.setattr(f"simulator.live.checks.speed.{name}", lambda *_, table=table: table)
        where = ["--tiny", "--device", "cpu", "--workers", "1", "--out", str(out)]
        assert command(patch, *where, *parts) == 0
    return out


def test_every_part_leaves_its_results_and_where_they_come_from(measured: Path) -> None:
    for name in (
        "ceilings.json", "agreement.json", "small/losses.csv", "validation-small/errors.csv",
        "validation-8b/frontiers.png", "trace-report-small/accepted_length.csv", "speed/bandwidth_floor.csv",
    ):  # fmt: skip
        assert (measured / name).is_file(), name
    profile = load_profile(tiny(measured).profile_of("8b", 5))
    assert profile.provenance.kind == "measured"
    assert profile.provenance.command == "scripts/gpu_campaign profile-8b --device cpu --tiny"
    for path in (measured / "parts").glob("*.json"):
        kept: Any = read_json(path)
        assert kept["status"] == "done"
        assert kept["command"] == f"scripts/gpu_campaign {kept['part']} --device cpu --tiny"
        assert kept["seconds"] > 0
    settings: Any = read_json(measured / "validation-small" / "settings.json")
    assert settings["replayed"] is False
    assert settings["prompts"] == "code"


def test_the_report_shows_what_was_measured_and_says_what_was_not(measured: Path) -> None:
    (page,) = measured.glob("cpu-*.md")
    text = page.read_text()
    assert "nan" not in text.lower().replace("nano", "")
    for part in ("profile-4b", "staircase-14b", "validation-4b", "gpu-tests"):
        assert f"Not measured yet: run `scripts/gpu_campaign {part}`." in text
    for part in ("profile-8b", "validation-small", "train-small", "speed", "schedulers"):
        assert f"(`scripts/gpu_campaign {part} --device cpu --tiny`, 20" in text
    assert "1,000 random batches against NumPy. torch on cpu: 0 differ." in text
    assert "| x | 1.235 |" in text
    assert "0 of 318 decisions differ" in text
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(images) == len(set(images)) == 11
    assert all((measured / image).read_bytes().startswith(b"\x89PNG") for image in images)


def test_finished_work_is_not_done_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("simulator.live.profiling.run.measure_profile", again)
    for name in SPEED:
        monkeypatch.setattr(f"simulator.live.checks.speed.{name}", again)
    for name in ("profile-8b", "staircase-8b", "speed"):
        PARTS[name](tiny(measured))


def test_a_report_needs_no_device_and_a_campaign(measured: Path, tmp_path: Path) -> None:
    elsewhere = Campaign(measured, "cuda", tiny=True)
    assert run(elsewhere, {"report": lambda _: None}, ["report"], say=lambda _: None)
    with pytest.raises(BadInputError, match="no part has been run"):
        write_report(tiny(tmp_path))
    write_json(tmp_path / "campaign.json", {"device": "NVIDIA H200", "tiny": False})
    text = write_report(tiny(tmp_path)).read_text()
    assert (tmp_path / "nvidia-h200.md").is_file()
    assert text.count("Not measured yet: run") == len(re.findall("^##+ ", text, re.MULTILINE)) - 5


def test_a_part_that_fails_fails_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert command(monkeypatch, *where, "validation-4b", "trace-small", "ceilings") == 1
    said = capsys.readouterr().out
    assert "validation-4b: failed after" in said
    assert "no profile of 4b at gamma 7 yet; run profile-4b first" in said
    assert "no trained pair yet; run train-small first" in said
    assert "ceilings: done" in said
    with pytest.raises(SystemExit):
        command(monkeypatch, *where, "nonsense")
    with pytest.raises(SystemExit):
        command(monkeypatch, *where, "--workers", "0")


def test_a_part_stops_in_time_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign's clock stands still but for what the slow part adds; its alarm is the system's."""
    ran: list[str] = []
    said: list[str] = []
    clock_s = [0.0]

    def slow(_: Campaign) -> None:
        ran.append("slow")
        clock_s[0] += 0.7
        if ran.count("slow") == 1:
            time.sleep(30)

    monkeypatch.setattr("tools.campaign.campaign.time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    known = {"quick": lambda _: ran.append("quick"), "slow": slow, "last": lambda _: ran.append("last")}
    start_s = time.monotonic()
    assert not run(tiny(tmp_path), known, minutes=0.01, say=said.append)
    assert time.monotonic() - start_s < 10
    assert ran == ["quick", "slow"]
    assert said[-4:] == [
        "quick: done", "slow: unfinished", "last: not begun",
        "the minutes are over; continue with the same command",
    ]  # fmt: skip
    assert run(tiny(tmp_path), known, minutes=1, say=said.append)
    assert ran == ["quick", "slow", "slow", "last"]
    kept: Any = read_json(tmp_path / "parts" / "slow.json")
    assert kept["seconds"] == pytest.approx(1.4)  # of both commands
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # no alarm is left behind


def test_a_folder_holds_one_devices_results(tmp_path: Path) -> None:
    write_json(tmp_path / "campaign.json", {"device": "NVIDIA H100", "tiny": True})
    with pytest.raises(BadInputError, match="campaign of another device"):
        run(tiny(tmp_path), PARTS, ["ceilings"], say=print)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("assert True", None),
        ("assert False", "1 of 1 failed"),
        ("import pytest; pytest.skip('no device')", "no test ran, 1 were skipped"),
    ],
)
def test_tests_must_run_and_pass(
    tmp_path: Path, body: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than this test
    test = tmp_path / "test_one.py"
    test.write_text(f"def test_one() -> None:\n    {body}\n")
    if message is None:
        gpu_tests(tiny(tmp_path), selection=[str(test)])
    else:
        with pytest.raises(InfeasibleError, match=message):
            gpu_tests(tiny(tmp_path), selection=[str(test)])
    counts: Any = read_json(tmp_path / "gpu-tests.json")
    assert counts["tests"] == 1


def test_a_profile_of_another_device_is_refused(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.live.device.device_name", lambda _: "another")
    with pytest.raises(SimulatorError, match="delete it and measure again"):
        PARTS["profile-8b"](tiny(measured))


def test_gains_are_told_from_noise() -> None:
    frontier = pd.DataFrame(
        {
            "policy": ["mtp1", "fixed:3", "fixed:5", "dspark", "dspark-async"] * 3,
            "concurrency": [1] * 5 + [8] * 5 + [64] * 5,
            "throughput_tok_per_s": [100, 120, 110, 150, 140, 100, 150, 110, 150, 149, 100, 90, 80, 85, 91],
            "throughput_ci95": [1.0] * 15,
        }
    )
    gains = gains_of(frontier)
    assert gains["fixed"].tolist() == ["fixed:3"] * 3
    assert gains["confident"].tolist() == ["dspark", "dspark", "dspark-async"]
    assert won_words(gains) == (
        "Confidence scheduling beats MTP-1 at 1, 8 concurrent (+50.0%). "
        "Confidence scheduling loses to MTP-1 at 64 concurrent (-9.0%). "
        "Confidence scheduling beats the best fixed length at 1 concurrent (+25.0%). "
        "Confidence scheduling is level with the best fixed length at 8, 64 concurrent (+0.0% to +1.1%)."
    )
