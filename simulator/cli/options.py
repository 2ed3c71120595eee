"""Command-line options that every sweep takes, and lists of numbers as options write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

WorkersOption = Annotated[
    int, typer.Option(help="Processes; -1 uses every core. Results do not depend on it.")
]

BackendOption = Annotated[
    Literal["loky", "dask", "ray"], typer.Option(help="Where cells run: here, or on a cluster.")
]

AddressOption = Annotated[
    str | None, typer.Option(help="Cluster to use; a local one is started where none is given.")
]

CellsOption = Annotated[
    Path | None, typer.Option(help="Directory that keeps finished cells, so that the same sweep resumes.")
]

ProcessLengthsOption = Annotated[
    str | None,
    typer.Option(
        help="Prompt/output lengths of a process: fixed:1024/256, lognormal:1500,cv=1/300,cv=0.8, ... "
        "A trace file has its own. Default: azure-2023-conversation."
    ),
]


def say_how_read(traffic: object) -> None:
    """One line on standard error about a recording: its layout, unit and rows that were left out."""
    report = getattr(traffic, "report", None)
    if report is not None:
        typer.echo(report.summary(), err=True)


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

ExtrapolateOption = Annotated[
    bool,
    typer.Option(
        "--extrapolate-rows",
        help="Answer also for batches whose rows lie far beyond those that the profile was measured with.",
    ),
]

BelievedOption = Annotated[
    str | None,
    typer.Option(help="Profile whose step cost the scheduler believes, where it is not the true one."),
]
