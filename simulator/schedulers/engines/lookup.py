"""How an engine looks a step time up, and the batch sizes it has graphs of.

Engines do not ask a cost model, they read a table: SGLang the last probe at or below a size (its diagonal
table), vLLM the first captured size at or above. Both are made here of the cost that the scheduler believes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from simulator.core.arrays import Array, Floats
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import GRID, namespace, on_grid

HOPELESS = 1074
"""Survival in grid units from which on a draft is a candidate: 1e-6, as in SGLang and TensorRT-LLM."""


def candidates(survival: Array) -> tuple[Array, int]:
    """Survival on the grid, 0 below ``HOPELESS``; and how many candidates are left."""
    grid = on_grid(survival)
    xp = namespace(grid)
    kept = grid >= HOPELESS
    return xp.where(kept, grid, xp.zeros_like(grid)), int(xp.sum(xp.astype(kept, xp.int64)))


def floor_times(batch: Batch, sizes: range, probes: Sequence[int], rows_per_request: int) -> Floats:
    """Look sizes up in a diagonal table: the last probe at or below each, the first one below them all.

    The table is measured as SGLang's profiler does, at whole blocks: a probe of B rows runs B /
    ``rows_per_request`` requests. So it knows no other batch and no context.
    """
    at = np.clip(np.searchsorted(probes, np.arange(sizes.start, sizes.stop), side="right") - 1, 0, None)
    measured = [batch.cost.step_time_s(max(1, probe // rows_per_request), probe) for probe in probes]
    return np.asarray(measured, dtype=np.float64)[at]


def ceil_times(batch: Batch, requests: int, sizes: range, captured: Sequence[int], prefill: int) -> Floats:
    """Look sizes up at the first captured one at or above; above the last one, at the size itself."""
    padded = [padded_rows(size, captured) for size in sizes]
    known = {
        size: float(batch.cost.step_time_s(requests, size, batch.context_tokens, prefill))
        for size in dict.fromkeys(padded)
    }
    return np.array([known[size] for size in padded])


def padded_rows(rows: int, captured: Sequence[int]) -> int:
    """Rows that the engine runs: the first captured size that holds them, or as they are above the last."""
    at = bisect_left(captured, rows)
    return captured[at] if at < len(captured) else rows


def filled(rows: int, requests: int, gamma: int, captured: Sequence[int]) -> int:
    """Draft budget that fills the graph which ``rows`` run in, never more than there are drafts."""
    return min(padded_rows(rows, captured), requests * (gamma + 1)) - requests


def expected_tokens(grid: Array, sampling: int) -> Floats:
    """Tokens in grid units that each budget 0..size is expected to commit, ``sampling`` of them certain."""
    xp = namespace(grid)
    ordered = xp.sort((-grid).reshape(-1))
    gained = xp.cumulative_sum(ordered, dtype=xp.int64, include_initial=True)
    return sampling * GRID - np.asarray(gained.cpu() if hasattr(gained, "cpu") else gained)


def first_best(theta: Floats, tie: float) -> int:
    """Index of the largest value, the first within a relative ``tie``."""
    return int(np.argmax(theta >= theta.max() * (1 - tie)))
