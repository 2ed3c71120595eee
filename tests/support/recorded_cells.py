"""Cells over a recorded trace; importable, as workers must import them."""

from __future__ import annotations

import os

import numpy as np

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.provenance import Provenance
from simulator.deployment.setup import Setup, _cached_replay


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
