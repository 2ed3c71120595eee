"""``dspark-sim``: the command line. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from simulator.errors import Interrupted, SimulatorError, refuse_repeats
from simulator.options import (
    AddressOption,
    BackendOption,
    CellsOption,
    ProcessLengthsOption,
    WorkersOption,
    numbers,
)

if TYPE_CHECKING:
    import pandas as pd

    from simulator.deployment import Deployment

app = typer.Typer(
    name="dspark-sim",
    help="What confidence-scheduled speculative decoding is worth on your hardware and traffic, "
    "before you deploy it.\n\n"
    "Start with:  dspark-sim compare --profile deepseek-v4-flash --sla 80 --sla 120 --out runs/flash",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
acceptance_app = typer.Typer(help="Look at acceptance models.", no_args_is_help=True)
app.add_typer(acceptance_app, name="acceptance")

_ELSEWHERE = {
    "simulator.planning_commands": ("plan", "regret", "fleet"),
    "simulator.live.commands": ("train", "trace"),
    "simulator.live.serving_commands": ("profile", "live", "validate"),
}
"""Module to the commands registered from it."""

_LIVE_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")

DEFAULT_LOADS = "1,4,8,14,20,30,45,65,90,120,160,200,250,300"
DEFAULT_POLICIES = ("mtp1", "fixed:3", "fixed:5", "dspark-async", "oracle")

ProfileOption = Annotated[
    str, typer.Option("--profile", help="Shipped profile (see `dspark-sim list`) or a profile FILE.json.")
]
AcceptanceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--acceptance",
        help="[DRAFTER=]MODEL, repeatable: a name from `dspark-sim list`, a trace FILE.parquet, "
        "an engine's log FILE[@BLOCK] (docs/engine_files.md), conditional:0.9,0.88, marginal:0.9,0.8, "
        "length:3.5@5, rate:0.34@7, or a mix 0.6*A+0.4*B. "
        "Default: what the profile carries.",
    ),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", help="Policy[@DRAFTER], repeatable; `dspark-sim list` shows them."),
]
ConcurrencyOption = Annotated[str, typer.Option(help="Concurrent requests per GPU, comma-separated.")]
SeedsOption = Annotated[
    int, typer.Option(help="Independent replications; the confidence intervals are over them.")
]
StepsOption = Annotated[
    int | None, typer.Option(help="Engine steps per run. Default: by concurrency, equal precision.")
]
LengthsOption = Annotated[
    str,
    typer.Option(help="Prompt/output lengths: default, fixed:1024/256, lognormal:1500,cv=1/300,cv=0.8, ..."),
]
BelievedOption = Annotated[
    str | None,
    typer.Option(help="Profile whose step cost the scheduler believes, where it is not the true one."),
]


@app.command("list")
def list_everything() -> None:
    """Show profiles, policies and acceptance models, each with where it comes from."""
    from simulator.listing import print_listing

    print_listing()


@app.command()
def frontier(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="CSV to write; - for standard output.")],
    acceptance: AcceptanceOption = None,
    policy: PolicyOption = None,
    concurrency: ConcurrencyOption = "10,20,50,100,200",
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    workers: WorkersOption = -1,
    lengths: LengthsOption = "default",
    believed: BelievedOption = None,
    backend: BackendOption = "loky",
    address: AddressOption = None,
    cells: CellsOption = None,
    plot: Annotated[Path | None, typer.Option(help="Figure to write beside it (.png, .svg, .pdf).")] = None,
) -> None:
    """Sweep policies over concurrency: one row each, with confidence intervals."""
    from simulator.files import check_writable_file, is_standard_output, write_csv

    if plot is not None:
        from simulator.plots import check_format

        check_format(plot)
    check_writable_file(*(path for path in (out, plot) if path is not None))
    deployment = _deployment(profile, acceptance, believed)
    table = _sweep(
        deployment, policy, concurrency, seeds, steps, lengths,
        workers=workers, backend=backend, address=address, directory=cells,
    )  # fmt: skip
    write_csv(out, table, "%.8g")
    if plot is not None:
        from simulator.plots import plot_frontier, save

        loaded = deployment.profile
        save(plot_frontier(table, published=loaded.published, title=loaded.title), plot)
    _warn_outside(table)
    _warn_truncated(table)
    typer.echo(f"wrote {out}" + (f" and {plot}" if plot else ""), err=is_standard_output(out))


@app.command()
def compare(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    sla: Annotated[
        list[str],
        typer.Option(
            help="Minimum generation speed in tokens/s/user, repeatable: 80 on average (tps_mean>=80), or "
            "p10>=80 for 90% of the users."
        ),
    ],
    acceptance: AcceptanceOption = None,
    policy: PolicyOption = None,
    concurrency: ConcurrencyOption = DEFAULT_LOADS,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    workers: WorkersOption = -1,
    lengths: LengthsOption = "default",
    believed: BelievedOption = None,
    backend: BackendOption = "loky",
    address: AddressOption = None,
    cells: CellsOption = None,
) -> None:
    """Who wins under each SLA and at which load, and by how much; published results beside predictions."""
    from simulator.comparison import parse_speed
    from simulator.comparison_report import report_comparison
    from simulator.files import check_writable_directory

    terms = sorted(map(parse_speed, sla), key=lambda term: term.bound)
    refuse_repeats((term.text for term in terms), "--sla")
    check_writable_directory(out)
    deployment = _deployment(profile, acceptance, believed)
    table = _sweep(
        deployment, policy, concurrency, seeds, steps, lengths,
        workers=workers, backend=backend, address=address, directory=cells, slas=terms,
    )  # fmt: skip
    report_comparison(table, terms, deployment.profile, out)
    _warn_outside(table)
    _warn_truncated(table)


@app.command()
def simulate(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="Directory to write requests, steps and metrics to.")],
    policy: Annotated[str, typer.Option(help="Policy[@DRAFTER].")],
    concurrency: Annotated[int, typer.Option(min=1, help="Requests running at once.")],
    acceptance: AcceptanceOption = None,
    traffic: Annotated[
        str,
        typer.Option(help="closed, poisson:12/s, gamma:12/s,cv=3, diurnal:... or a trace FILE[@OPTIONS]."),
    ] = "closed",
    lengths: ProcessLengthsOption = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="The first N requests. Default: 2000 of a process, all of a trace file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Engine steps; a closed loop needs an end (default 2000).")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV-cache capacity in tokens. Default: the profile's.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="elsewhere, chunked or whole.")] = "elsewhere",
    seed: Annotated[int, typer.Option(help="Seed of every random stream.")] = 0,
    believed: BelievedOption = None,
) -> None:
    """Run one engine under one policy on one traffic, request by request."""
    from simulator.files import check_writable_directory
    from simulator.single_run import SingleRun, write_single_run

    check_writable_directory(out)
    deployment = _deployment(profile, acceptance, believed)
    run = SingleRun(policy, concurrency, traffic, lengths, requests, steps, kv_tokens, prefill, seed)
    write_single_run(deployment, run, out)
    typer.echo(f"wrote {out}")


@acceptance_app.command("show")
def acceptance_show(
    model: Annotated[str, typer.Argument(help="An acceptance model: a name, a trace file, rates, a mix.")],
    out: Annotated[
        Path, typer.Option(help="CSV to write, with a PNG of the same name beside it; - for standard output.")
    ],
    thresholds: Annotated[
        str, typer.Option(help="Confidence thresholds, comma-separated.")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    seed: Annotated[int, typer.Option(help="Seed of the drawn outcomes.")] = 0,
) -> None:
    """Sweep a static confidence threshold over an acceptance model (the paper's figure 5)."""
    from simulator.acceptance import parse_acceptance
    from simulator.acceptance_sweep import plot_threshold_sweep, threshold_sweep
    from simulator.files import beside, check_writable_file, is_standard_output, write_csv
    from simulator.plots import save

    figure = beside(out, ".png")
    check_writable_file(*(path for path in (out, figure) if path is not None))
    parsed = parse_acceptance(model)
    table = threshold_sweep(parsed, numbers(thresholds, float, "--thresholds"), seed)
    write_csv(out, table, "%.8g")
    if figure is not None:
        save(plot_threshold_sweep(table, parsed), figure)
        typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    written = f"wrote {out}" + (f" and {figure}" if figure else "")
    typer.echo(f"{parsed.provenance.line()}\n{written}", err=is_standard_output(out))


def _deployment(profile: str, acceptance: list[str] | None, believed: str | None = None) -> Deployment:
    from simulator.deployment import deploy

    deployment = deploy(profile, acceptance or (), believed=believed)
    for note in deployment.notes:
        typer.echo(note, err=True)
    return deployment


def _sweep(
    deployment: Deployment, policies: list[str] | None, concurrency: str, seeds: int, steps: int | None,
    lengths: str, **how: Any,
) -> pd.DataFrame:  # fmt: skip
    from simulator.frontier import sweep_frontier
    from simulator.lengths import parse_lengths
    from simulator.schedulers import parse_policy

    chosen = [parse_policy(text) for text in policies or DEFAULT_POLICIES]
    for policy in chosen:
        note = deployment.plan(policy).note
        if note:
            typer.echo(f"note: {note}", err=True)
    return sweep_frontier(
        deployment,
        chosen,
        numbers(concurrency, int, "--concurrency"),
        seeds=seeds,
        lengths=parse_lengths(lengths),
        steps=steps,
        progress=sys.stderr.isatty(),
        **how,
    )


def _warn_truncated(table: pd.DataFrame) -> None:
    from simulator.frontier import FEW_TURNOVERS

    worst = table.iloc[int(table["finished_per_slot"].argmin())]
    if worst["finished_per_slot"] < FEW_TURNOVERS:
        typer.echo(
            f"warning: {worst['policy']} at {worst['concurrency']} requests finished only "
            f"{worst['finished_per_slot']:.1f} requests per slot: short outputs finish first, so "
            "that p10 and p50 of speed are theirs; give more --steps, or leave them out",
            err=True,
        )


def _warn_outside(table: pd.DataFrame) -> None:
    worst = table.iloc[int(table["steps_outside_fraction"].argmax())]
    share = float(worst["steps_outside_fraction"])
    if share > 0:
        typer.echo(
            f"warning: up to {share:.0%} of the steps ({worst['policy']} at {worst['concurrency']} requests) "
            "ran beyond the batch sizes of the profile, where step time is clamped or extrapolated",
            err=True,
        )


def _register_elsewhere() -> None:
    """Commands that live in modules of their own; those import what is heavy only when they run."""
    from importlib import import_module

    for module, names in _ELSEWHERE.items():
        commands = import_module(module)
        for name in names:
            app.command(name)(getattr(commands, name))


def main() -> None:
    """Entry point: whatever ends a command becomes one line on standard error and an exit code.

    0 done, 1 infeasible or a check failed, 2 bad input or an output that cannot be written, 70 a fault of
    this program, 130 interrupted. ``DSPARK_DEBUG=1`` shows where a fault happened.
    """
    from simulator.files import DISK_FAULTS
    from simulator.interruption import interruptible

    shown, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        with interruptible():
            _register_elsewhere()
            app()
    except (SimulatorError, Interrupted) as error:
        said = f"error: {error}" if isinstance(error, SimulatorError) else f"interrupted by {error}"
        _end(error.exit_code, said, *_notes(error))
    except SystemExit:
        _flush()
        raise
    except ModuleNotFoundError as error:
        if error.name not in _LIVE_PACKAGES:
            _fault(error)
        _end(2, f"error: this command needs {error.name}; pip install 'dspark-simulator[live]'")
    except MemoryError as error:
        _end(2, f"error: out of memory{f' ({error})' if str(error) else ''}; ask for less at once")
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            _fault(error)
        _unwritable(error)
    except Exception as error:
        _fault(error)
    finally:
        warnings.formatwarning = shown


def _notes(error: BaseException) -> list[str]:
    notes = list(getattr(error, "__notes__", ()))
    if not notes and isinstance(error, Interrupted):
        return ["nothing is half-written: the same command starts over"]
    return notes


def _end(code: int, *lines: str) -> NoReturn:
    typer.echo("; ".join(lines), err=True)
    sys.exit(code)


def _fault(error: Exception) -> NoReturn:
    """One line for an error that is this program's own; the traceback goes to a file."""
    from tempfile import NamedTemporaryFile
    from traceback import format_exception

    details = "".join(format_exception(error))
    if os.environ.get("DSPARK_DEBUG"):
        typer.echo(details, err=True)
    try:
        with NamedTemporaryFile("w", prefix="dspark-sim-", suffix=".txt", delete=False) as file:
            file.write(f"{shlex.join(sys.argv)}\n{details}")
        where = f"details in {file.name}"
    except OSError:
        where = "repeat the command with DSPARK_DEBUG=1 for details"
    reason = (str(error) or "no message").splitlines()[0][:300]
    _end(
        70,
        f"error: this is a fault of dspark-sim, please report it: {type(error).__name__}: {reason}; {where}",
    )


def _flush() -> None:
    """Write what standard output still holds while it can be said that it could not be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _unwritable(error)


def _unwritable(error: OSError) -> NoReturn:
    if error.filename is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter tries again, with a traceback
    _end(2, f"error: {error.filename or 'standard output'}: cannot be written: {error.strerror}")


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"
