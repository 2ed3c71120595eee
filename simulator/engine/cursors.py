"""Where each request stands in its acceptance trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.trace import Replay
from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.traffic.workload import Workload

_Number = TypeVar("_Number", np.float32, np.uint8)

LONG_TRACE = 8192
"""Rows from which on indices may run past the end: NumPy wraps them by subtracting again and again."""


class TraceCursors:
    """Where in the recorded acceptance each batch row stands.

    replays: one per traffic class of the workload, all of one block size. Each request starts at the
    first row of a sequence of its class: a random order of all sequences, drawn again when used up,
    derived from ``seed`` alone, so that every policy meets the same requests with the same drafts.
    Simulated and live runs both walk these.
    """

    def __init__(self, replays: Sequence[Replay], workload: Workload, *, capacity: int, seed: int) -> None:
        sizes = {replay.gamma for replay in replays}
        if len(replays) != len(workload.classes) or len(sizes) != 1:
            raise BadInputError(
                f"needs one replay per traffic class ({len(workload.classes)}), all of one block size",
                field="replays",
                value=sorted(sizes),
            )
        self.gamma = sizes.pop()
        self._survival = _end_to_end([replay.survival for replay in replays])
        self._accepted = _end_to_end([replay.accepted for replay in replays])
        self._first_row = _first_rows(replays, workload, seed)
        self._cursor = np.zeros(capacity, dtype=np.int64)
        # First row and length of each class's trace, and of the one each batch row walks. A single long
        # trace needs neither, as NumPy wraps indices past its end.
        rows = np.array([replay.rows for replay in replays])
        one_long = len(rows) == 1 and rows[0] >= LONG_TRACE
        self._traces = None if one_long else np.stack([np.cumsum(rows) - rows, rows])
        self._walked = np.zeros((2, capacity), dtype=np.int64)
        self._class_index = workload.class_index
        self._replays = replays

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32], Rows]:
        """Return what is walked, for a loop that keeps cursors of its own.

        Survival [rows, gamma] and accepted lengths [rows], traces end to end and of the one kind that this
        loop is compiled for: writable; the row at which each request starts, int32 [n]; first row and length
        of each class's trace [2, classes].
        """
        rows = np.array([replay.rows for replay in self._replays])
        survival = np.require(self._survival, np.float32, ["C", "W"])
        accepted = np.require(self._accepted, np.uint8, ["C", "W"])
        return survival, accepted, self._first_row, np.stack([np.cumsum(rows) - rows, rows])

    def reuse(self, requests: Rows, tokens: Rows) -> float:
        """Design effect of reading the same outcomes again: 1 where each was read once.

        requests, tokens: [n], who walked and how far. Over a pool of independent rows read n[i] times each,
        the mean scatters sum(n**2) / sum(n) times as much as over as many rows read once (Kish, Survey
        Sampling, 1965). Recordings and empty blocks draw nothing and add nothing.
        """
        weighted, total = 0.0, 0
        offset = np.cumsum([0, *(replay.rows for replay in self._replays)])
        visits: dict[int, Rows] = {}
        for index, replay in enumerate(self._replays):
            mine = self._class_index[requests] == index
            first, far = self._first_row[requests[mine]] - offset[index], tokens[mine]
            total += int(far.sum())
            if not replay.drawn or not replay.gamma:
                weighted += float(far.sum())
                continue
            counted = visits.setdefault(id(replay), np.zeros(replay.rows, dtype=np.int64))
            counted += count_visits(first, far, replay.rows)
        weighted += sum(float((count.astype(np.float64) ** 2).sum()) for count in visits.values())
        return max(1.0, weighted / total) if total else 1.0

    def place(self, rows: Rows, requests: Rows) -> None:
        """Put each request's cursor at the start of its sequence."""
        self._cursor[rows] = self._first_row[requests]
        if self._traces is not None:
            self._walked[:, rows] = self._traces[:, self._class_index[requests]]

    def move(self, source: Rows, target: Rows) -> None:
        """Carry cursors to their new rows."""
        self._cursor[target] = self._cursor[source]
        if self._traces is not None:
            self._walked[:, target] = self._walked[:, source]

    def survival(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Survival at the cursors of the first rows, into ``out`` [count, gamma]."""
        return self._survival.take(self._cursor[: len(out)], axis=0, mode="wrap", out=out)

    def accepted(self, count: int) -> Rows:
        """Return accepted lengths under full verification at the first ``count`` cursors, int64 [count]."""
        return self._accepted.take(self._cursor[:count], mode="wrap").astype(np.int64)

    def advance(self, accepted: Rows) -> None:
        """Move the first rows on by what they committed: ``accepted`` drafts and the bonus token."""
        count = len(accepted)
        cursor = self._cursor[:count]
        cursor += accepted
        cursor += 1
        if self._traces is not None:
            first, rows = self._walked[:, :count]
            cursor[:] = first + (cursor - first) % rows


def _end_to_end(parts: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """Join arrays by rows; a single one is not copied, as a recording may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def count_visits(first: Rows, tokens: Rows, rows: int) -> Rows:
    """How often each of ``rows`` rows is passed by walks from ``first`` on, past the last row and round."""
    laps, rest = np.divmod(tokens, rows)
    end = first + rest
    round_again = end >= rows
    change = np.bincount(first, minlength=rows) - np.bincount(end - rows * round_again, minlength=rows)
    return np.asarray(np.cumsum(change) + (round_again.sum() + laps.sum()), dtype=np.int64)


def _first_rows(replays: Sequence[Replay], workload: Workload, seed: int) -> NDArray[np.int32]:
    """Trace row at which each request starts, replays laid end to end: the same for every policy."""
    first = np.empty(len(workload), dtype=np.int32)
    offset = 0
    for index, (replay, name) in enumerate(zip(replays, workload.classes, strict=True)):
        mine = workload.class_index == index
        first[mine] = _starts(replay, offset, int(mine.sum()), random_stream(seed, f"sequences/{name}"))
        offset += replay.rows
    return first


def _starts(replay: Replay, offset: int, wanted: int, stream: np.random.Generator) -> NDArray[np.int32]:
    """First rows of so many sequences: a random order of all of them, drawn again when used up."""
    starts = replay.sequence_start[:-1] + offset
    found = np.empty(wanted, dtype=np.int32)
    for begin in range(0, wanted, len(starts)):
        found[begin : begin + len(starts)] = stream.permutation(starts)[: wanted - begin]
    return found
