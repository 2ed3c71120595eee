"""Cells for the sweep tests; importable, as workers must import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.deployment.setup import Setup, _cached_replay


@dataclass(frozen=True)
class Draw:
    """A cell with a mark on disk for every time it was computed."""

    number: int
    log: str
    fatal: bool = False
    pause_s: float = 0.0


def draw(cell: Draw) -> dict[str, object]:
    """A random number of the cell's own; a fatal cell kills its worker the first time."""
    log = Path(cell.log)
    first = not any(log.glob(f"{cell.number}-*"))
    (log / f"{cell.number}-{os.getpid()}-{time.monotonic_ns()}").touch()
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


def trace_of(rows: int, seed: int = 0) -> AcceptanceTrace:
    """A recorded trace of two sequences, drawn."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(1, 1, (rows, 5)).astype(np.float32)
    accepted = draw.integers(0, 6, rows).astype(np.uint8)
    made = Provenance(kind="synthetic", source="tests", date="2026-11-30")
    return AcceptanceTrace("recorded", logits, np.array([0, rows // 2, rows]), made, accepted=accepted)


def seen_of(cell: tuple[int, Setup]) -> dict[str, int]:
    """Which process ran a cell, which object its acceptance was, and how often this was realised there."""
    _, plan = cell
    plan.replay(0)
    return {
        "process": os.getpid(),
        "model": id(plan.acceptance),
        "realised": _cached_replay.cache_info().misses,
    }


def growing(cell: Draw) -> dict[str, object]:
    """A row that needs more room the larger the cell's number."""
    return draw(cell) | {"values": random_stream(cell.number, "cell").random(100 * cell.number).tolist()}
