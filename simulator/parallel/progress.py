"""A bar that says how many cells are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(label: str, total: int, completed: int, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Show a bar while the block runs; yields what to call when one more cell is done.

    The bar is on standard error, since standard output may be the result, and on a terminal only: elsewhere
    rich, which takes a tenth of a second to import, is not needed.
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(label, total=total, completed=completed)
        yield lambda: bar.advance(shown)
