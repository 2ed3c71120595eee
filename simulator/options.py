"""Command-line options that every sweep takes, and lists of numbers as options write them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from simulator.errors import BadInputError
from simulator.units import require_ascii_digits

Number = TypeVar("Number", int, float)

MOST_NUMBERS = 10_000
"""Numbers that ``1,2,...,LAST`` may stand for."""

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


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Comma-separated numbers; ``0,0.1,...,0.9`` continues the step up to the last."""
    require_ascii_digits(text, source=option)
    parts = [part.strip() for part in text.split(",")]
    try:
        if "..." in parts:
            first, second, last = (float(parts[i]) for i in (0, 1, -1))
            count = round((last - first) / (second - first))
            if count > MOST_NUMBERS:
                raise ValueError("that many steps end nowhere")
            if len(parts) != 4 or abs(first + count * (second - first) - last) > 1e-9:
                raise ValueError("the steps do not end at the last number")
            return [kind(round(first + i * (second - first), 10)) for i in range(count + 1)]
        return [kind(part) for part in parts]
    except (ValueError, ArithmeticError, IndexError) as error:
        raise BadInputError(
            "is not a list of numbers", source=option, value=text, remedy="as in 10,20,50"
        ) from error
