"""Training: a whole run at micro scale, interrupted and continued, and what ends it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from simulator.cli.measure import train as commands
from simulator.core.errors import BadInputError
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import load_target
from simulator.live.tracing.generate import generate
from simulator.live.tracing.run import Sampling, trace_run
from simulator.live.training import presets
from simulator.live.training.arithmetic import worked_problems
from simulator.live.training.log import read_log
from simulator.live.training.optimisation import Progress, Schedule
from simulator.live.training.presets import Preset
from simulator.live.training.train import train

MODELS = ("target", "dspark", "dflash", "mtp")
MICRO = Preset(
    vocab_size=280,
    hidden_size=32,
    intermediate_size=48,
    heads=2,
    key_value_heads=1,
    target_layers=3,
    draft_layers=1,
    target_layer_ids=(0, 1),
    gamma=3,
    markov_rank=8,
    sequences=4,
    length=32,
    anchors=4,
    target=Schedule(steps=30, learning_rate=5e-3, checkpoint_every=4),
    draft=Schedule(steps=12, learning_rate=5e-3, checkpoint_every=4),
    mtp=Schedule(steps=8, learning_rate=5e-3, checkpoint_every=4),
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    problems = worked_problems(3)
    for index in range(12):
        domain = folder / ("even" if index % 2 == 0 else "odd")
        domain.mkdir(exist_ok=True)
        (domain / f"{index}.txt").write_text("\n\n".join(next(problems) for _ in range(10)))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _micro() -> object:
    presets.PRESETS["micro"] = MICRO  # type: ignore[index]
    yield
    del presets.PRESETS["micro"]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory, _micro: object) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pair"
    train("micro", text, folder)
    return folder


class Interrupted(Exception):
    pass


def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    run: Path, text: Path, tmp_path: Path
) -> None:
    interruptions = {("target", 7), ("target", 30), ("dspark", 6), ("dflash", 12), ("mtp", 1)}

    def interrupt(progress: Progress) -> None:
        place = (progress.stage, progress.step)
        if place in interruptions:
            interruptions.remove(place)
            raise Interrupted

    for _ in range(5):
        with pytest.raises(Interrupted):
            train("micro", text, tmp_path, on_step=interrupt)
    train("micro", text, tmp_path, on_step=interrupt)
    for model in MODELS:
        once, again = (load_file(folder / model / "model.safetensors") for folder in (run, tmp_path))
        assert once.keys() == again.keys()
        assert all(once[name].equal(again[name]) for name in once)
    assert (run / "losses.csv").read_bytes() == (tmp_path / "losses.csv").read_bytes()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_losses_fall_and_are_logged_step_by_step(run: Path) -> None:
    log = read_log(run)
    for stage, steps in {"target": 30, "dspark": 12, "dflash": 12, "mtp": 8}.items():
        own = log[log["stage"] == stage]
        assert own["step"].tolist() == list(range(1, steps + 1))
        assert own["loss"].iloc[-3:].mean() < own["loss"].iloc[:3].mean()


def test_drafts_differ_in_their_heads_and_the_pair_generates_losslessly(run: Path) -> None:
    target = load_target(run / "target", dtype=torch.float32)
    drafts = {name: load_draft(run / name, dtype=torch.float32) for name in MODELS[1:]}
    assert [drafts[name].gamma for name in drafts] == [3, 3, 1]
    assert [drafts[name].has_confidence for name in drafts] == [True, False, False]
    outputs = [generate(target, draft, [5, 6, 7], max_new_tokens=12).output_ids for draft in drafts.values()]
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_run_begun_otherwise_is_not_continued(run: Path, text: Path) -> None:
    with pytest.raises(BadInputError, match=r"seed.*begun otherwise"):
        train("micro", text, run, seed=1)
    with pytest.raises(BadInputError, match=r"preset.*choose one of"):
        train("huge", text, run)


def test_damaged_checkpoint_is_named(text: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train("micro", text, tmp_path, on_step=stop)
    checkpoint = tmp_path / "checkpoints" / "target.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(BadInputError, match=r"target\.safetensors.*delete it"):
        train("micro", text, tmp_path)


def test_too_little_text_for_the_vocabulary_is_refused(text: Path, tmp_path: Path) -> None:
    presets.PRESETS["micro"] = replace(MICRO, vocab_size=50_000)  # type: ignore[index]
    try:
        with pytest.raises(BadInputError, match=r"vocab_size.*more text"):
            train("micro", text, tmp_path)
    finally:
        presets.PRESETS["micro"] = MICRO  # type: ignore[index]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.001


def test_a_micro_run_is_traced_reported_and_told_by_the_commands(
    run: Path, text: Path, tmp_path: Path
) -> None:
    app = Typer()
    app.command()(commands.train)
    app.command()(commands.trace)
    arguments = ["--out", str(tmp_path / "traces"), "--report", str(tmp_path / "report"), "--text", str(text)]
    sizes = ["--sequences", "3", "--prompt-tokens", "8", "--output-tokens", "40", "--threads", "1"]
    result = CliRunner().invoke(app, ["trace", str(run), *arguments, *sizes], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "traces").glob("pair-*.parquet"))) == 3 * 2 * 2
    assert len(list((tmp_path / "report").glob("*.csv"))) == 6
    assert len(list((tmp_path / "report").glob("*.png"))) == 3
    result = CliRunner().invoke(
        app, ["train", "--preset", "micro", "--out", str(run), "--text", str(text)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert (run / "losses.png").stat().st_size > 1000


def test_importing_the_commands_does_not_import_torch() -> None:
    check = "import sys, simulator.cli.measure.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_bad_tracing_requests_are_refused(run: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"sequences.*at least 2"):
        Sampling(sequences=1)
    with pytest.raises(BadInputError):
        trace_run(tmp_path, text, tmp_path)
    with pytest.raises(BadInputError, match="device"):
        commands.trace(run=run, device="nonsense")
