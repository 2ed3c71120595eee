"""What commands of the live path print where no terminal is: whole tables, plain lines, no bars."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import transformers
from rich.console import Console

from simulator.cli.measure.options import show_table
from simulator.cli.measure.train import _shown_progress
from simulator.core.units import UNKNOWN
from simulator.live.device import long_lived_objects_set_aside
from simulator.live.models.targets import load_target
from simulator.live.training.optimisation import Progress
from simulator.report.terminal import print_metrics
from tests.live.conftest import MakeTarget

COUNTED = gc.get_freeze_count
"""The real one: other tests are spared the counting, see tests/conftest.py."""


def test_a_piped_table_is_whole_and_shares_are_percentages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"a_long_name_of_a_column_{number}" for number in range(12)]
    frame = pd.DataFrame([[0.01234] * 12], columns=names).assign(share=0.01234)
    show_table(frame, "A title that is much longer than the forty letters of this line", ("share",))
    title, header, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert title[-1] == "line"
    assert header == [*names, "share"]
    assert row == ["0.01234"] * 12 + ["1.23%"]


def test_a_title_is_not_broken_by_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(pd.DataFrame({"n": [1]}), "A title [of 3 words] and more")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "A title [of 3 words] and more", "n", "1"
    ]  # fmt: skip


def test_shares_among_a_runs_metrics_are_percentages(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"acceptance_rate": 0.3267, "wasted_fraction": math.nan, "tps_mean": 225.14, "steps": 4800}
    run: Any = SimpleNamespace(metrics=SimpleNamespace(as_row=lambda: metrics), saturated=False)
    print_metrics(run, "a run", {"more": "said"})
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert shown == {
        "acceptance_rate": "32.67%", "wasted_fraction": UNKNOWN, "tps_mean": "225.1", "steps": "4,800",
        "more": "said",
    }  # fmt: skip


def test_piped_training_tells_each_tenth_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with _shown_progress(Console(stderr=True)) as show:
        for stage, steps in (("target", 200), ("dspark", 3)):
            for step in range(1, steps + 1):
                show(Progress(stage, step, steps, {"loss": 2.0}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["target 1/200 loss 2.000", "target 20/200 loss 2.000"]
    assert lines[10:] == ["target 200/200 loss 2.000"] + [f"dspark {step}/3 loss 2.000" for step in (1, 2, 3)]


def test_loading_draws_no_bar_and_leaves_the_users_setting(
    make_target: MakeTarget, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_target().folder
    assert folder is not None
    logging: Any = transformers.logging
    logging.enable_progress_bar()
    capfd.readouterr()
    load_target(folder)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_what_a_caller_has_set_aside_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "get_freeze_count", COUNTED)
    gc.unfreeze()
    with long_lived_objects_set_aside():
        inside = gc.get_freeze_count()
        with long_lived_objects_set_aside():
            pass
        assert gc.get_freeze_count() >= inside > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as tests/conftest.py left it
