"""Cells for a cluster in batches that take long enough to be worth sending."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.parallel.parcels import Packer, Parcel

Task = Callable[[Any], Any]

Positioned = tuple[int, Any]

BATCH_S = 0.2
"""Seconds that cells given together should take. A choice, far above the 10 ms that giving one takes Dask."""


@dataclass(slots=True)
class Batches:
    """Cells for a cluster in batches: single ones at first, then as many as take ``BATCH_S`` together.

    Towards the end, batches are small enough to keep all ``threads`` busy.
    """

    task: Task
    pending: list[Positioned]
    threads: int
    packer: Packer
    given: int = 0
    size: float = 1.0

    def next(self) -> tuple[list[int], Parcel] | None:
        """Pack the next cells; None when all are given."""
        left = len(self.pending) - self.given
        count = min(int(self.size), max(left // (2 * self.threads), 1))
        batch = self.pending[self.given : self.given + count]
        self.given += len(batch)
        if not batch:
            return None
        return [at for at, _ in batch], self.packer.pack((self.task, [cell for _, cell in batch]))

    def learn(self, cells: int, seconds: float) -> None:
        """Set the size of later batches by how long one took."""
        self.size = min(max(BATCH_S * cells / max(seconds, 1e-9), 1.0), 2 * self.size)


def run_each(
    positions: list[int], parcel: Parcel, fetch: Callable[[str], bytes]
) -> tuple[list[Positioned], float]:
    """Run a task on some cells; returns their results with positions, and the seconds that they took."""
    start_s = time.perf_counter()
    task, cells = parcel.opened(fetch)
    done = [(position, task(cell)) for position, cell in zip(positions, cells, strict=True)]
    return done, time.perf_counter() - start_s


def run_with(positions: list[int], parcel: Parcel, *large: bytes) -> tuple[list[Positioned], float]:
    """``run_each``, given the pickled values that the parcel lacks."""
    return run_each(positions, parcel, dict(zip(parcel.digests, large, strict=True)).__getitem__)
