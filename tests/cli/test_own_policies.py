"""A policy of one's own on the command line, and the version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.command_line import run

MODULE = '''
import numpy as np
import simulator as sim

class Half(sim.Policy):
    """Half of each block."""

    def schedule(self, survival, batch):
        return np.full(len(survival), survival.shape[1] // 2, dtype=np.int64)

sim.register_policy("own-half", Half)
'''


def test_a_registered_policy_is_used_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("simulator.schedulers.parse._OWN", {})
    Path("my_own_policies.py").write_text(MODULE)
    words = ("frontier", "--profile", "deepseek-v4-flash", "--policy", "own-half", "--policy", "fixed:2",
             "--concurrency", "10", "--seeds", "1", "--steps", "60", "--out", "-")  # fmt: skip
    assert run(*words, "--workers", "1", "--import", "my_own_policies") == 0
    rows = [line.split(",")[1:] for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == rows[2]
    assert run(*words, "--workers", "2", "--import=my_own_policies") == 0
    assert run("frontier", "--import", "no_such_module", "--out", "f.csv") == 2
    assert "--import: cannot be imported: ModuleNotFoundError" in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("dspark-sim 0.")
