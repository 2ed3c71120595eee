"""``dspark-sim profile``: bare options measure, ``fit`` takes steps that someone has measured."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator.cli.app import commands
from simulator.core.errors import BadInputError
from simulator.deployment.profile import load_profile
from tests.support.command_line import run


def test_bare_options_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise BadInputError("names no draft", field="draft")

    monkeypatch.setattr("simulator.live.models.pairs.load_pair", refuse)
    for words in (("profile",), ("profile", "measure")):
        assert run(*words, "--target", "none", "--draft", "x", "--device", "cpu", "--out", tmp_path) == 2
        assert "error: --draft: names no draft" in capsys.readouterr().err
    assert run("profile", "--help") == 0
    assert "fit" in capsys.readouterr().out
    assert commands() is commands()


def test_measured_steps_are_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (r, r * (1 + k), r * context, 0.008 + 2e-4 * r + 3e-5 * r * (1 + k) + 1e-8 * r * context)
        for r in (1, 8, 32) for k in (0, 2, 5) for context in (500, 4000)
    ]  # fmt: skip
    cells = tmp_path / "cells.csv"
    columns = ["requests", "batch_tokens", "context_tokens", "step_time_s"]
    pd.DataFrame(rows, columns=columns).to_csv(cells, index=False)
    out = tmp_path / "mine.json"
    assert run("profile", "fit", cells, "--out", out, "--device", "H100", "--gpus", 2) == 0
    profile = load_profile(out)
    for requests, tokens, context, step_s in rows:
        assert profile.target_cost().step_time_s(requests, tokens, context) == pytest.approx(step_s, rel=1e-3)
    assert (profile.provenance.device, profile.replica_gpus) == ("H100", 2)
    assert "held-out error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("requests,batch_tokens\n1,2\n", "lacks step_time_s"),
        ("requests,batch_tokens,step_time_s\n1,2,x\n", "step_time_s: is not a column of numbers"),
        ("requests,batch_tokens,step_time_s\n1,2,0.01\n", "cells.csv"),
        ("", "is not a table"),
    ],
)
def test_steps_that_cannot_be_fitted_are_named(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "cells.csv"
    cells.write_text(content)
    assert run("profile", "fit", cells, "--out", tmp_path / "p.json") == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "cells.csv" in shown
    assert not (tmp_path / "p.json").exists()


def test_a_table_of_ones_own_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "mine.csv", tmp_path / "mine.json"
    file.write_text("batch_tokens,steps_per_s\n1,100\n64,80\n64,80.2\n32,79.9\n", encoding="utf-8")
    assert run("profile", "repair", file, "--out", out) == 2
    assert "provenance.kind" in capsys.readouterr().err
    assert run("profile", "repair", file, "--out", out, "--kind", "measured") == 0
    assert "given 2 times" in capsys.readouterr().err
    assert load_profile(out).provenance.kind == "measured"
