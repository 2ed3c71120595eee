"""The GPU campaign's machinery, dry on a CPU with a tiny pair."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_campaign"


def campaign(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
    code: int = script["main"]()
    return code


def test_every_part_runs_dry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("simulator.live.profiler.FLAT", -1.0)  # a busy machine may show no slope
    where = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert campaign(monkeypatch, *where, "ceilings", "profile-8b", "validation-8b") == 0
    assert (tmp_path / "ceilings.json").is_file()
    assert (tmp_path / "validation-8b" / "frontiers.png").is_file()


def test_a_part_that_fails_fails_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert campaign(monkeypatch, *where, "validation-4b", "ceilings") == 1
    said = capsys.readouterr().out
    assert "validation-4b: failed: SimulatorError: no profile of 4b" in said
    assert "ceilings: done" in said
    with pytest.raises(SystemExit):
        campaign(monkeypatch, "nonsense")
