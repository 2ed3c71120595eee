"""The commands of ``dspark-sim`` that train models and record traces.

Importing this module does not import torch; running a command does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from simulator.cli.groups import Answer, grouped
from simulator.cli.measure.options import command_line, show_table
from simulator.core.errors import BadInputError
from simulator.core.files import check_writable_directory
from simulator.core.interruption import noting

if TYPE_CHECKING:
    from simulator.live.training import optimisation

Text = Annotated[
    Path | None,
    typer.Option(
        help="Folder of UTF-8 text; its sub-folders are the domains, and extensions those of other files. "
        "Default: this Python's standard library (code, prose) and generated arithmetic.",
        show_default=False,
    ),
]

Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")]


def train(
    out: Annotated[Path, typer.Option(help="Run directory; an interrupted run in it is continued.")],
    preset: Annotated[
        str, typer.Option(help="tiny (minutes on one CPU core) or small (sized for a modern GPU).")
    ] = "tiny",
    text: Text = None,
    device: Device = "cpu",
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of weights, batches and anchors.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all by default.", show_default=False)
    ] = None,
) -> Answer:
    """Train a tokenizer, a target and its DSpark, DFlash and MTP-1 drafts from text."""
    check_writable_directory(out)
    console = Console(stderr=True)
    with console.status("loading torch and the text"):
        from simulator.live.device import prepare
        from simulator.live.training import train as training
        from simulator.report.traces import write_losses

        prepare(device, threads)
    with (
        _shown_progress(console) as show,
        noting(lambda: f"checkpoints are kept in {out}: the same command resumes"),
    ):
        training.train(preset, text, out, device=device, seed=seed, on_step=show)
    write_losses(out)
    Console().print(f"{out}: trained; record its traces with `dspark-sim trace {out}`", soft_wrap=True)
    return {"preset": preset, "directory": out}


@contextmanager
def _shown_progress(console: Console) -> Iterator[Callable[[optimisation.Progress], None]]:
    """Show each stage's progress: a bar on a terminal, elsewhere a plain line for every tenth of it."""
    if not console.is_terminal:
        yield lambda progress: _say_tenths(console, progress)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        bars: dict[str, TaskID] = {}

        def show(progress: optimisation.Progress) -> None:
            loss = progress.losses["loss"]
            if progress.stage not in bars:
                bars[progress.stage] = display.add_task(progress.stage, total=progress.steps, loss=loss)
            display.update(bars[progress.stage], completed=progress.step, loss=loss)

        yield show


def _say_tenths(console: Console, progress: optimisation.Progress) -> None:
    """Print a line at a stage's first step and wherever a tenth of its steps is full."""
    step, steps = progress.step, progress.steps
    if step == 1 or step * 10 // steps > (step - 1) * 10 // steps:
        said = f"{progress.stage} {step}/{steps} loss {progress.losses['loss']:.3f}"
        console.print(said, soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class AnyPair:
    """A target and a draft of your own, and the prompts that they continue."""

    target: Annotated[
        str | None,
        typer.Option(help="Target folder or hub name, with --draft and --prompts: traces any pair."),
    ] = None
    draft: Annotated[str | None, typer.Option(help="Draft folder or hub name.")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL; each line has turns, messages, prompt or prompt_ids.", show_default=False),
    ] = None
    temperature: Annotated[float, typer.Option(help="Of the outputs; 0 is greedy.")] = 1.0
    dtype: Annotated[
        str | None, typer.Option(help="Of weights; default float32 on a CPU, else bfloat16.")
    ] = None
    raw: Annotated[bool, typer.Option("--raw", help="Text as it is, without the chat template.")] = False
    thinking: Annotated[bool, typer.Option(help="What the chat template is told of thinking.")] = False

    @property
    def asked(self) -> bool:
        """Whether any of the three was given; refuses a part of them."""
        given = (self.target, self.draft, self.prompts)
        if any(each is None for each in given) and any(each is not None for each in given):
            raise BadInputError(
                "--target, --draft and --prompts go together", field="trace",
                remedy="give all three, or none to trace a run directory",
            )  # fmt: skip
        return self.target is not None


@grouped
def trace(
    pair: AnyPair,
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run directory of `dspark-sim train`. Default: the tiny models that are shipped.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the traces.")] = Path("traces/acceptance"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for tables (CSV) and figures (PNG).", show_default=False)
    ] = None,
    text: Text = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            help="Outputs per domain and split, 32 by default; with --prompts, at most so many of them.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of held-out text in each prompt.")] = 48,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            help="Anchor positions in each output: 192 by default, at most 2048 with --prompts.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of prompts and of sampled outputs.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all by default.", show_default=False)
    ] = None,
) -> Answer:
    """Record what every draft would have accepted at every position of the target's own output."""
    for folder in (out, report):
        if folder is not None:
            check_writable_directory(folder)
    console = Console(stderr=True)
    if pair.asked:
        if run is not None or text is not None:
            raise BadInputError("is traced without --target, --draft and --prompts", field="run", value=run)
        return _trace_pair(
            console, pair, out, report, sequences, output_tokens or 2048, device, seed, threads
        )
    with console.status("loading torch and the models") as status:
        from simulator.live.device import prepare
        from simulator.live.tracing.run import Sampling, trace_run

        prepare(device, threads)
        traced = trace_run(
            run, text, out, sampling=Sampling(sequences or 32, prompt_tokens, output_tokens or 192, seed),
            device=device, on_step=lambda step: status.update(f"tracing {step}"),
        )  # fmt: skip
    if report is not None:
        from simulator.live.tracing.report import write_tables
        from simulator.report.traces import write_figures

        write_tables(traced.recorded, traced.fits, report)
        write_figures(report)
    for file in traced.files:
        Console().print(str(file), soft_wrap=True, highlight=False)
    return {"files": list(traced.files)}


def _trace_pair(
    console: Console,
    pair: AnyPair,
    out: Path,
    report: Path | None,
    sequences: int | None,
    output_tokens: int,
    device: str,
    seed: int,
    threads: int | None,
) -> Answer:
    """Trace a pair over a file of prompts, and show its rounds."""
    assert pair.target is not None
    assert pair.draft is not None
    assert pair.prompts is not None
    console.print("loading torch and the models")
    from simulator.live.device import prepare
    from simulator.live.tracing.pair_run import PairTracing, trace_files
    from simulator.live.tracing.prompts import PromptOptions
    from simulator.live.tracing.report import write_pair_tables

    prepare(device, threads)
    with (
        _shown_prompts(console) as show,
        noting(lambda: f"finished prompts are kept in {out}: the same command resumes"),
    ):
        traced = trace_files(
            pair.target, pair.draft, pair.prompts, out, device=device, dtype=pair.dtype,
            reading=PromptOptions(pair.raw, pair.thinking, sequences, seed),
            options=PairTracing(output_tokens, pair.temperature, seed, command_line()), on_prompt=show,
        )  # fmt: skip
    if report is not None:
        write_pair_tables(traced.recorded, traced.rounds, report)
    rates = [name for name in traced.rounds.columns if "rate" in name]
    show_table(traced.rounds, f"{pair.draft} on {pair.target}: rounds under full verification", rates)
    Console().print(str(traced.file), soft_wrap=True, highlight=False)
    return {"tables": {"rounds": traced.rounds}, "files": [traced.file]}


@contextmanager
def _shown_prompts(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many prompts are done: a bar on a terminal, elsewhere a plain line for every tenth."""
    if console.is_terminal:
        with Progress(console=console) as display:
            bar = display.add_task("prompts", total=None)
            yield lambda done, of: display.update(bar, completed=done, total=of)
        return

    def say(done: int, of: int) -> None:
        if done == 1 or done * 10 // of > (done - 1) * 10 // of:
            console.print(f"prompt {done}/{of}", soft_wrap=True, highlight=False)

    yield say
