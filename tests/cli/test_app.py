"""The command line: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html import escape
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from simulator.acceptance.fitted import catalogue
from simulator.cli import explore
from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.profile import shipped_profiles
from simulator.hardware import gpus, models
from simulator.report.columns import definition
from simulator.schedulers.parse import policy_help
from tests.support.command_line import command_names, run
from tests.sweeps.test_frontier import COLUMNS

FLASH = "deepseek-v4-flash"
SHORT = ("--seeds", "1", "--steps", "60", "--workers", "1")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


# --- what works ---------------------------------------------------------------------------------------------


def test_list_shows_everything_with_its_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    for text in (
        FLASH, "deepseek-v4-pro", "published on DeepSeek production serving", "[:LAG]", "oracle",
        "qwen3-4b/dspark/chat", "gemma4-12b/eagle3/alpaca", "fitted, ",
    ):  # fmt: skip
        assert text in shown


def test_list_keeps_a_row_on_one_line_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    profiles = {name for name in shipped_profiles() if not name.startswith("kernels/")} | {"--model"}
    acceptance = {model.name for model in catalogue()} | production_acceptance().keys()
    policies = {re.split(r"[:\[]", form)[0] for form in policy_help()}
    for title, names, end, heads in (
        ("Profiles", profiles, "Policies", 1), ("Policies", policies, "Policies in full", 1),
        ("Acceptance models", acceptance, "Also:", 2),
    ):  # fmt: skip
        first = next(number for number, line in enumerate(lines) if line.startswith(title))
        last = next(number for number in range(first + 1, len(lines)) if lines[number].startswith(end))
        rows = lines[first + 1 + heads : last]
        assert [re.split(r"[ :]", row)[0] in names for row in rows] == [True] * len(names)
    lines = [line.rstrip() for line in lines]
    written = "".join("".join(lines).split())
    for form, text in policy_help().items():  # what may be added stands whole, in a table of its own
        assert "".join(text.split()) in written
        assert "[" not in form or form in lines
    assert " ".join(" ".join(lines).split()).count("arXiv 2607.05147, table 1 and figures 2, 6") == 1


@pytest.mark.parametrize(
    ("option", "names"), [("--models", models.catalogue()), ("--gpus", gpus.catalogue())]
)
def test_models_and_gpus_take_one_line_each_on_80_columns(
    option: str, names: Mapping[str, object],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    assert run("list", option) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3 : 3 + len(names)]] == list(names)
    assert max(map(len, lines)) <= 80


def test_frontier_writes_the_promised_columns_and_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "deep" / "frontier.csv", tmp_path / "frontier.png"
    chosen = ("--policy", "mtp1", "--policy", "dspark-async", "--concurrency", "5,20")
    assert run("frontier", "--profile", FLASH, *chosen, *SHORT, "--out", out, "--plot", plot) == 0
    table = pd.read_csv(out)
    assert set(COLUMNS) <= set(table.columns)
    assert list(zip(table["policy"], table["concurrency"], strict=True)) == [
        ("mtp1", 5), ("mtp1", 20), ("dspark-async", 5), ("dspark-async", 20)
    ]  # fmt: skip
    assert (table["throughput_tok_per_s"] > 0).all()
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert files(tmp_path) == {"deep/frontier.csv", "frontier.png"}
    assert str(out) in capsys.readouterr().out


def test_compare_answers_each_sla_on_screen_and_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slas = ("--sla", 120, "--sla", 80)
    loads = ("--concurrency", "10,60,160,250")
    assert run("compare", "--profile", FLASH, *slas, *loads, *SHORT, "--out", tmp_path) == 0
    assert files(tmp_path) == {
        "frontier.csv", "sla.csv", "load_bands.csv", "published.csv", "frontier.png", "load.png"
    }  # fmt: skip
    answers = pd.read_csv(tmp_path / "sla.csv")
    assert answers["sla_tok_per_s"].unique().tolist() == [80, 120]
    assert set(answers["policy"]) == set(explore.DEFAULT_POLICIES)
    assert set(COLUMNS) <= set(pd.read_csv(tmp_path / "frontier.csv").columns)
    assert list(pd.read_csv(tmp_path / "published.csv").columns) == [
        "quantity", "published", "predicted", "error"
    ]  # fmt: skip
    shown = capsys.readouterr().out
    for text in ("At least 80 tokens/s", "At least 120", "Winning policy by load", "Predicted against"):
        assert text in shown


def test_compare_of_the_oracle_alone_has_no_winner(tmp_path: Path) -> None:
    alone = ("--policy", "oracle", "--concurrency", "5,20")
    assert run("compare", "--profile", FLASH, "--sla", 80, *alone, *SHORT, "--out", tmp_path) == 0
    assert (tmp_path / "load_bands.csv").read_text().startswith("from_concurrency")


def test_simulate_leaves_requests_steps_and_a_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--policy", "dspark-async", "--concurrency", 8, "--steps", 80, "--lengths", "fixed:10/20")
    assert run("simulate", "--profile", FLASH, *what, "--out", tmp_path) == 0
    assert files(tmp_path) == {"requests.parquet", "steps.parquet", "run.json"}
    description = json.loads((tmp_path / "run.json").read_text())
    assert description["policy"] == "dspark-async"
    assert description["profile"] == FLASH
    assert description["metrics"]["throughput_tok_per_s"] > 0
    assert len(pd.read_parquet(tmp_path / "steps.parquet")) == 80
    assert "throughput_tok_per_s" in capsys.readouterr().out


def test_simulate_says_when_the_queue_only_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen at a time carry a few requests of 300 tokens a second, not sixty."""
    what = ("--policy", "mtp1", "--concurrency", 16, "--lengths", "fixed:10/300", "--requests", 300)
    for rate, saturated in ((60, True), (2, False)):
        out = tmp_path / str(rate)
        assert run("simulate", "--profile", FLASH, *what, "--traffic", f"poisson:{rate}/s", "--out", out) == 0
        assert ("Saturated: requests arrive faster" in capsys.readouterr().out) == saturated
        description = json.loads((out / "run.json").read_text())
        assert description["saturated"] == saturated
        assert (description["metrics"]["ttft_p99_s"] is None) == saturated


def test_acceptance_show_continues_a_list_of_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chat.csv"
    assert run("acceptance", "show", "qwen3-4b-chat", "--thresholds", "0,0.1,...,0.9", "--out", out) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == [
        "threshold", "verified_length_mean", "accepted_length_mean", "acceptance_rate"
    ]  # fmt: skip
    assert table["threshold"].tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert table["verified_length_mean"].is_monotonic_decreasing
    assert table["acceptance_rate"].is_monotonic_increasing
    assert files(tmp_path) == {"chat.csv", "chat.png"}
    assert "fitted" in capsys.readouterr().out


def test_acceptance_given_by_hand_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--acceptance", "conditional:0.9,0.8", "--policy", "fixed:2", "--policy", "mtp1")
    out = tmp_path / "frontier.csv"
    assert run("frontier", "--profile", FLASH, *given, "--concurrency", 5, *SHORT, "--out", out) == 0
    assert "acceptance of dspark: conditional:0.9,0.8" in capsys.readouterr().err


def test_batches_beyond_the_measured_range_are_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--policy", "fixed:5", *SHORT, "--out", tmp_path / "frontier.csv")
    assert run("frontier", "--profile", FLASH, *what, "--concurrency", "20,300") == 0
    warning = capsys.readouterr().err
    assert "warning: up to 100% of the steps (fixed:5 at 300 requests)" in warning
    far = ("--concurrency", "20,400")
    with pytest.warns(UserWarning, match="loads above 20 are left out: policy: fixed:5"):
        assert run("frontier", "--profile", FLASH, *what, *far) == 0
    assert run("frontier", "--profile", FLASH, *what, *far, "--extrapolate-rows") == 0
    assert "(fixed:5 at 400 requests)" in capsys.readouterr().err


def test_runs_too_short_for_their_outputs_are_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--policy", "fixed:5", "--concurrency", "40", "--seeds", "1", "--workers", "1")
    long = ("--lengths", "fixed:10/600", "--out", tmp_path / "frontier.csv")
    assert run("frontier", "--profile", FLASH, *what, *long, "--steps", "60") == 0
    assert "fixed:5 at 40 requests finished only 0." in capsys.readouterr().err
    assert run("frontier", "--profile", FLASH, *what, *long) == 0
    assert "finished only" not in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "frontier.csv")["finished_per_slot"].item() > 3


# --- what is refused ----------------------------------------------------------------------------------------


def profile_without_acceptance(directory: Path) -> Path:
    path = directory / "bare.json"
    path.write_text(
        json.dumps(
            {
                "schema": 1,
                "name": "bare",
                "title": "bare",
                "provenance": {"kind": "synthetic", "source": "test", "date": "2026-01-01"},
                "step": {"batch_tokens": [1, 100], "steps_per_s": [100, 50], "type": "throughput-curve"},
            }
        )
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--profile", "deepseek-v5"), "is not a profile (got 'deepseek-v5'); name one of deepseek-v4-flash"),
        (("--profile", "missing.json"), "missing.json: no such file"),
        (("--policy", "best"), "best: is not a policy; one of autoregressive"),
        (("--policy", "fixed:x"), "needs a number after the colon"),
        (("--policy", "fixed:9"), "verifies 9 tokens but its drafter's block has 5"),
        (("--policy", "fixed:3@eagle3"), "no acceptance is given for drafter 'eagle3'"),
        (
            ("--policy", "dspark-async@eagle3", "--acceptance", "qwen3-4b/eagle3/chat"),
            "schedules by confidence",
        ),
        (("--acceptance", "nonsense"), "nonsense"),
        (("--acceptance", "length:3@5", "--acceptance", "length:2@5"), "two models for drafter 'dspark'"),
        (("--concurrency", "0"), "concurrency: must be at least 1 (got 0)"),
        (("--concurrency", "5,5"), "gives 5 more than once"),
        (("--concurrency", "5,ten"), "--concurrency: is not a list of numbers (got '5,ten')"),
        (("--concurrency", "5,10,...,inf"), "--concurrency: is not a list of numbers"),
        (("--concurrency", "5,5,...,9"), "--concurrency: is not a list of numbers"),
        (("--seeds", "0"), "seeds: must lie in 1"),
        (("--steps", "0"), "steps: must be at least 1"),
        (("--workers", "0"), "workers"),
        (("--lengths", "fixed:0/10"), "fixed length: must lie in 1..1,000,000,000 tokens (got 0)"),
        (("--believed", "deepseek-v5"), "is not a profile"),
        (("--plot", "figure.docx"), "is not a picture's name"),
    ],
)
def test_bad_input_ends_with_two_one_line_and_no_file(
    arguments: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = {"--profile": FLASH, "--concurrency": "5", "--policy": "fixed:2"}
    for option in arguments[::2]:
        usual.pop(option, None)
    rest = [part for pair in usual.items() for part in pair]
    given = [option for option in ("--seeds", "--steps", "--workers") if option not in arguments]
    short = [part for option in given for part in (option, "60" if option == "--steps" else "1")]
    assert run("frontier", *arguments, *rest, *short, "--out", "out/frontier.csv") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_there_is_no_default_acceptance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = profile_without_acceptance(tmp_path)
    out = tmp_path / "frontier.csv"
    assert run("frontier", "--profile", bare, "--concurrency", 5, *SHORT, "--out", out) == 2
    assert "--acceptance: no acceptance model, and there is no default; pass one" in capsys.readouterr().err
    assert files(tmp_path) == {"bare.json"}
    given = ("--acceptance", "length:2.5@4", "--policy", "fixed:4")
    assert run("frontier", "--profile", bare, *given, "--concurrency", 5, *SHORT, "--out", out) == 0
    assert files(tmp_path) == {"bare.json", "frontier.csv"}


def test_an_sla_nobody_can_meet_ends_with_one_and_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--sla", 80, "--sla", 900, "--policy", "mtp1", "--policy", "fixed:3", "--concurrency", "5,20")
    assert run("compare", "--profile", FLASH, *what, *SHORT, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "no policy reaches 900 tokens/s/user" in error
    nearest = float(error.split("nearest feasible SLA is ")[1].split()[0])
    assert 80 < nearest < 900
    assert "(fixed:3 at the lowest concurrency)" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sla", ["0", "-5", "nan"])
def test_an_sla_must_be_a_speed(sla: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "--profile", FLASH, f"--sla={sla}", *SHORT, "--out", tmp_path / "out") == 2
    assert "--sla: must be positive" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--policy", "fixed:2", "--concurrency", "0"), "concurrency"),
        (("--policy", "fixed:2", "--concurrency", "4", "--prefill", "never"), "prefill"),
        (
            ("--policy", "fixed:2", "--concurrency", "4", "--traffic", "poisson:12"),
            "poisson rate: has no unit",
        ),
        (("--policy", "dspark:2", "--concurrency", "4"), "takes no argument"),
        (("--policy", "fixed:2", "--concurrency", "4", "--kv-tokens", "0"), "kv"),
        (("--policy", "fixed:2", "--concurrency", "4", "--steps", "0"), "steps"),
    ],
)
def test_simulate_refuses_what_makes_no_sense(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("simulate", "--profile", FLASH, *arguments, "--out", tmp_path / "out") == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "thresholds", "complaint"),
    [
        ("qwen3-4b/eagle3/chat", "0,0.5", "no confidence head"),
        ("qwen3-4b-chat", "0,1.5", "must be within 0..1"),
        ("qwen3-4b-chat", "nan", "must be within 0..1"),
        ("qwen3-4b-chat", "", "--thresholds: is not a list of numbers"),
        ("qwen3-4b-poetry", "0", "qwen3-4b-poetry"),
    ],
)
def test_acceptance_show_refuses(
    model: str, thresholds: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    assert run("acceptance", "show", model, f"--thresholds={thresholds}", "--out", out) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- a plan that cannot be made -----------------------------------------------------------------------------


def test_an_infeasible_plan_leaves_what_binds_and_what_is_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "scenario.yaml", tmp_path / "plan"

    def planned(sla: str) -> int:
        words = {
            "name": "<b>Small</b>", "profile": FLASH, "policies": ["mtp1"], "sla": [sla],
            "traffic": {"arrivals": "poisson:20/s", "lengths": "fixed:100/100"},
            "replica": {"concurrency": 20},
            "search": {"requests": 200, "precision": "20%", "concurrency": [1]},
        }  # fmt: skip
        file.write_text(json.dumps(words))
        shutil.rmtree(out / "cells", ignore_errors=True)
        return run("plan", file, "--out", out, "--workers", "1")

    assert planned("tps_p10>=900") == 1
    said = json.loads((out / "infeasible.json").read_text())
    (nearest,), (row,) = said["nearest_sla"], said["attained"]
    assert said["answer"] in capsys.readouterr().err
    assert said["binds"] == ["tps_p10>=900"]
    assert (row["policy"], row["asked"], row["holds"]) == ("mtp1", 900, False)
    bound = float(nearest.removeprefix("tps_p10>="))
    assert row["attained"] * 0.99 < bound <= row["attained"]
    assert f"needs {900 / row['attained']:.3g} times what mtp1 attains" in said["changes"][0]
    page = (out / "report.html").read_text()
    for text in ("What binds", "tps_p10&gt;=900", escape(nearest), escape(said["changes"][0])):
        assert text in page
    assert "&lt;b&gt;Small" in page
    assert f'tabindex=0 title="{definition("holds")}">Kept<' in page
    assert not re.search(r"<b>|<script|https?:|src=", page)
    assert planned(nearest) == 0
    assert {"plan.json", "report.html"} <= files(out)
    assert "infeasible.json" not in files(out)
    assert planned("tps_p10>=900") == 1
    assert "plan.json" not in files(out)


# --- where it writes ----------------------------------------------------------------------------------------

WRITING = {
    "frontier": ("--profile", FLASH, "--policy", "mtp1"),
    "compare": ("--profile", FLASH, "--sla", "80"),
    "simulate": ("--profile", FLASH, "--policy", "mtp1", "--concurrency", "4"),
    "acceptance show": ("qwen3-4b-chat",),
    "plan": ("scenario.yaml",),
    "regret": ("--profile", FLASH, "--believed", "flat"),
    "fleet": (
        "--profile", FLASH, "--traffic", "poisson:9/s", "--sla", "tps_p10>=5", "--replicas", "2",
        "--lengths", "default",
    ),
    "train": (),
    "trace": (),
    "profile": ("--target", "none"),
    "profile fit": ("cells.csv",),
    "profile repair": ("table.csv",),
    "profile derive": ("--model", "qwen3-8b", "--gpu", "h100"),
    **{f"import {kind}": ("file.json",) for kind in (
        "sglang-table", "sglang-rounds", "sglang-dump", "trtllm", "vllm-log"
    )},
    "replay": ("dump.json", "--table", FLASH),
    "export sglang": (FLASH,),
    "export trtllm": (FLASH,),
    "export launch": ("vllm", "--profile", FLASH, "--policy", "fixed:3@dspark", "--concurrency", "64"),
    "live": ("--target", "none", "--policy", "dspark", "--profile", FLASH, "--concurrency", "4"),
    "validate": ("--target", "none", "--profile", FLASH),
}  # fmt: skip


@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulator.planning.scenario.example import EXAMPLE

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.chdir(tmp_path)
    for name in ("sweeps.frontier.run_cells", "sweeps.regret.run_cells", "fleet.fleet.run_cells",
                 "planning.plan.run_cells", "api.workbench.simulate",
                 "sweeps.thresholds.threshold_sweep"):  # fmt: skip
        monkeypatch.setattr(f"simulator.{name}", work)
    (tmp_path / "scenario.yaml").write_text(EXAMPLE)
    for out in ("/proc/none/here.csv", "scenario.yaml/below.csv"):
        assert run(*command.split(), *WRITING[command], "--out", out) == 2
        assert f"error: {out}: cannot be written: " in capsys.readouterr().err
    assert files(tmp_path) == {"scenario.yaml"}


def test_every_command_that_writes_is_in_the_test_above() -> None:
    assert command_names() - {"list", "ui"} == set(WRITING)


def test_a_minus_writes_one_table_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ("--policy", "mtp1", "--concurrency", "5", *SHORT)
    regret = ("--believed", "flat", "--concurrency", "5", "--seeds", "2", "--workers", "1")
    for command, column in (
        (("frontier", "--profile", FLASH, *chosen), "policy"),
        (("acceptance", "show", "qwen3-4b-chat"), "threshold"),
        (("regret", "--profile", FLASH, *regret), "belief"),
    ):
        assert run(*command, "--out", "-") == 0
        shown = capfd.readouterr().out
        table = pd.read_csv(StringIO(shown))
        assert shown.count("\n") == len(table) + 1
        assert column in table.columns
        assert len(table) > 0
    assert run("plan", "--init", "-") == 0
    assert capfd.readouterr().out.startswith("#")
    assert not files(tmp_path)


# --- how it starts ------------------------------------------------------------------------------------------


def processor_s_of_children() -> float:
    """Seconds that ended children have used a processor: other work on the machine does not count."""
    times = os.times()
    return times.children_user + times.children_system


def test_help_is_quick_and_says_where_to_start() -> None:
    began_s = processor_s_of_children()
    command = [sys.executable, "-m", "simulator", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    taken_s = processor_s_of_children() - began_s
    assert "dspark-sim compare --profile deepseek-v4-flash" in " ".join(shown.split())
    for name in ("list", "frontier", "compare", "simulate", "acceptance"):
        assert name in shown
    assert taken_s < 2, "a cold --help takes 0.2 s of processor time; something heavy is imported"


def imported_by(code: str) -> set[str]:
    """Top-level modules loaded after running ``code`` in a fresh interpreter."""
    code += "\nimport sys; print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_the_command_line_imports_nothing_heavy() -> None:
    loaded = imported_by("from simulator.cli import app; app.commands()")
    assert "typer" in loaded
    assert not loaded & {"torch", "scipy", "pandas", "matplotlib", "simpy", "pyarrow", "joblib", "pydantic"}
    assert "numpy" not in imported_by("import simulator")


def test_a_first_result_needs_no_table() -> None:
    """pandas and pyarrow take a third of its processor time; they are loaded where a table is made."""
    flash = "import simulator as sim; flash = sim.deployment('deepseek-v4-flash')"
    run = "run = flash.simulate('dspark-async', concurrency=2, steps=60); run.metrics"
    heavy = {"pandas", "pyarrow", "matplotlib", "plotly", "joblib", "rich", "typer", "numba", "torch"}
    loaded = imported_by(f"{flash}; {run}")
    assert "scipy" in loaded
    assert not loaded & heavy
    assert "pandas" in imported_by(f"{flash}; {run}; run.steps")


def test_nothing_outside_live_imports_torch() -> None:
    walk = """
import importlib, pkgutil, simulator
names = [m.name for m in pkgutil.walk_packages(simulator.__path__, "simulator.")]
names = [n for n in names if not n.startswith("simulator.live") and n != "simulator.__main__"]
assert len(names) > 30, names
for name in names:
    importlib.import_module(name)
"""
    loaded = imported_by(walk)
    assert {"numpy", "scipy", "pandas"} <= loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "safetensors"}


def test_every_public_name_resolves() -> None:
    import simulator

    assert sorted(simulator.__all__) == sorted([*simulator._HOME, "interop", "__version__"])
    for name in simulator._HOME:
        assert callable(getattr(simulator, name)) or name == "Scheduler", name
    assert simulator.interop.__name__ == "simulator.interop"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", simulator.__version__)
    with pytest.raises(AttributeError, match="no attribute 'frontiers'"):
        _ = simulator.frontiers
