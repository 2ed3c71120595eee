"""Cells for the sweep tests; importable, as workers must import them, and quickly: many workers do."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from simulator.core.errors import BadInputError
from simulator.core.random import random_stream


@dataclass(frozen=True)
class Draw:
    """A cell with a mark on disk for every time it was computed.

    pause_s: how long it takes, unless the log holds the file ``hurry``.
    """

    number: int
    log: str
    fatal: bool = False
    pause_s: float = 0.0


def draw(cell: Draw) -> dict[str, object]:
    """A random number of the cell's own; a fatal cell kills its worker the first time."""
    log = Path(cell.log)
    first = not any(log.glob(f"{cell.number}-*"))
    (log / f"{cell.number}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if not (log / "hurry").exists():
        time.sleep(cell.pause_s)
    if cell.fatal and first:
        os.kill(os.getpid(), signal.SIGKILL)
    value = float(random_stream(cell.number, "cell").random())
    return {"number": cell.number, "value": value, "list": [value, 1.0], "nan": float("nan"), "none": None}


def times_computed(log: Path, number: int) -> int:
    """How often a cell ran."""
    return len(list(log.glob(f"{number}-*")))


def always_fatal(cell: Draw) -> dict[str, object]:
    """Kills every worker that touches it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def refuse(cell: Draw) -> dict[str, object]:
    """Finds every cell at fault."""
    raise BadInputError("is bad", source="sample", field="number", value=cell.number, remedy="mend it")


def growing(cell: Draw) -> dict[str, object]:
    """A row that needs more room the larger the cell's number."""
    return draw(cell) | {"values": random_stream(cell.number, "cell").random(100 * cell.number).tolist()}
