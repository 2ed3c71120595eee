"""Sweeps: independent cells, run in parallel, in order, with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from joblib import Parallel, delayed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Cell = TypeVar("Cell")
Result = TypeVar("Result")


def run_cells(
    function: Callable[[Cell], Result],
    cells: Sequence[Cell],
    *,
    workers: int = 1,
    label: str = "Simulating",
    progress: bool = False,
) -> list[Result]:
    """``[function(cell) for cell in cells]`` on ``workers`` processes; the result does not depend on how many.

    ``function`` must be importable and depend on nothing but its cell.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task(label, total=len(cells))
        call, results = delayed(function), []
        for result in Parallel(n_jobs=workers, return_as="generator")(
            delayed(function)(cell) for cell in cells
        ):
            results.append(result)
            bar.advance(task)
    return results
