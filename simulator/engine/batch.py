"""The rows of a batch: requests in flight, their lagged survival, recorded steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import PACKED_ROWS, Expectation, Floats, Following, Log, Part, Rows
from simulator.traffic.workload import Workload


class Step(NamedTuple):
    """One engine step as recorded. Times in seconds; the rest counts requests or tokens.

    gap_s is the time since the batch last received tokens: the duration, and any prefill in between. A
    newcomer's own gap differs (``engine.measures.metrics.FirstGaps``). A step of nothing but prefill has
    ``requests`` 0. waiting: requests that have arrived and are not being served, be it in the pool's line,
    for a slot, for KV cache, or admitted with their prefill not begun. Three sums since the step before, in
    request-seconds: decoding_s is time in the batch, queued_s is time spent so ``waiting``, handover_s is
    what newcomers spent between the first token, from a prefill pool, and their place in the batch.
    """

    end_s: float
    duration_s: float
    gap_s: float
    requests: int
    draft_tokens: int
    accepted_tokens: int
    committed_tokens: int
    prefill_tokens: int
    waiting: int
    decoding_s: float
    queued_s: float
    handover_s: float


class StepLog(Log):
    """Recorded steps, exactly, in 11 to 20 bytes a step as a rule, the latest in 96; counts below 2^53.

    A log that is ``fold``ed now and then takes 52 bytes a step: all but the ends in float32.
    """

    __slots__ = ("_decoding", "_folded")

    def __init__(self) -> None:
        super().__init__(Step._fields, _expected_of_steps)
        self._folded: list[tuple[Floats, NDArray[np.float32]]] = []
        self._decoding: list[int] = []  # decode steps of each part that grows no more, where counted so far

    def __len__(self) -> int:
        return sum(ends.size for ends, _ in self._folded) + super().__len__()

    def __iter__(self) -> Iterator[Step]:
        return (_step(row) for row in self.table().tolist())

    def __getitem__(self, index: int) -> Step:
        """Return one step, counted from the end where ``index`` is negative."""
        return _step(self.table()[index].tolist())

    def fold(self) -> None:
        """Pack the steps recorded so far more: all but their ends are rounded to float32."""
        if super().__len__():
            unfolded = range(len(self._folded), self.ended + 1)
            tables = [
                np.column_stack([part.column(name) for name in self.names])
                for part in map(self.part, unfolded)
            ]
            del self._decoding[len(self._folded) :]
            table = np.concatenate(tables)
            self._folded.append((table[:, 0].copy(), table[:, 1:].astype(np.float32)))
            super().clear()

    def clear(self) -> None:
        """Forget all steps. Requests that were recorded beside them can no longer be read."""
        super().clear()
        del self._folded[:], self._decoding[:]

    @property
    def ended(self) -> int:
        """Count the parts to which no step is added any more."""
        return len(self._folded) + super().ended

    def part(self, at: int) -> Part:
        """Return a part by its number; that of the latest steps is ``ended``."""
        if at < len(self._folded):
            return Part(self._folded[at][0].size, partial(self._unfolded, self._folded[at]))
        return super().part(at - len(self._folded))

    def _unfolded(self, folded: tuple[Floats, NDArray[np.float32]], name: str) -> Floats:
        ends, rest = folded
        at = self.names.index(name)
        return rest[:, at - 1].astype(np.float64) if at else ends

    def delivery_s(self) -> Floats:
        """When each decode step delivered its tokens, [decode steps]."""
        return np.concatenate([_of_decode_steps(part, "end_s") for part in self.parts()])

    @property
    def decode_steps(self) -> int:
        """Count the decode steps so far."""
        return sum(self._decode_steps()) + _decode_steps(self.part(self.ended))

    def _decode_steps(self) -> list[int]:
        """Count the decode steps of each part that grows no more."""
        self._decoding += map(_decode_steps, map(self.part, range(len(self._decoding), self.ended)))
        return self._decoding

    def of_decode_steps(self, name: str, numbers: Rows) -> Floats:
        """Copy a field of decode steps, [n], given by their number from 0 on; 0 for a number below 0.

        numbers: none below the one before.
        """
        first, found = np.cumsum([0, *self._decode_steps()]), np.zeros(numbers.size)
        edges = [*np.searchsorted(numbers, first).tolist(), numbers.size]
        for at, (begin, end) in enumerate(pairwise(edges)):
            if begin < end:
                found[begin:end] = _of_decode_steps(self.part(at), name)[numbers[begin:end] - first[at]]
        return found


def _decode_steps(part: Part) -> int:
    return int(np.count_nonzero(part.column("requests")))


def _of_decode_steps(part: Part, name: str) -> Floats:
    column, decoding = part.column(name), part.column("requests") > 0
    return column if decoding.all() else column[decoding]


def _expected_of_steps(name: str, column: Callable[[str], Floats]) -> Expectation | None:
    """Expect every step to decode, at once: it delivers to all that the step before it delivered to."""
    if name == "end_s":
        return Following(column("duration_s"))
    if name == "gap_s":
        ends = column("end_s")
        return np.diff(ends, prepend=ends[0])
    if name == "decoding_s":
        return column("requests") * column("gap_s")
    return None


def _step(row: Sequence[float]) -> Step:
    end, took, gap, r, drafts, accepted, committed, prefill, waiting, decoding, queued, handover = row
    counts = (int(r), int(drafts), int(accepted), int(committed), int(prefill), int(waiting))
    return Step(end, took, gap, *counts, decoding, queued, handover)


WAITS = ("waited_pool_s", "waited_slot_s", "waited_kv_s", "waited_step_s", "waited_prefill_s")
"""What a request waited for, in seconds. Together: all the time in which it had arrived and was not served.

In line it waits for what keeps the head of the line out: a slot, KV cache, or, where both are there, the
end of the step under way. waited_pool_s: for a worker of the prefill pool. waited_prefill_s: admitted,
until the first chunk of its own prompt.
"""

ADMITTED = (
    "request", "queued_s", "admitted_s", "first_token_s", *WAITS, "first_step", "decode_tokens"
)  # fmt: skip
"""What is known of a request when it joins the batch."""

# A row of the batch, kept as float64: where ``ADMITTED`` lies, whose it is, and what changes.
BATCH_ROW = ("entry", "request", "remaining", "finished_s", "last_step")

REQUEST, REMAINING, FINISHED_S, LAST_STEP = range(1, len(BATCH_ROW))

DESCRIBED = (*ADMITTED, *BATCH_ROW[2:])
"""What is known of a request in the batch, or of one that has left it."""


def joined_log(workload: Workload, steps: StepLog) -> Log:
    """Make a log of ``ADMITTED``: a row for each request, in order of joining, in 1 to 25 bytes as a rule.

    steps: what the same engine records, each step before the requests that join after it.
    """
    return Log(ADMITTED, partial(_expected_of_joined, workload, steps))


def _expected_of_joined(
    workload: Workload, steps: StepLog, name: str, column: Callable[[str], Floats]
) -> Expectation | None:
    """Expect requests in order of arrival, prefilled elsewhere: they join when the step under way ends."""
    if name == "request":
        return Following(np.ones_like(column("first_step")))
    if name == "queued_s":
        arrival_s, request = workload.arrival_s, column("request").astype(np.int64)
        return column("admitted_s") if arrival_s is None else arrival_s[request]
    if name == "admitted_s":
        return steps.of_decode_steps("end_s", column("first_step").astype(np.int64) - 1)
    if name == "first_token_s":
        return column("admitted_s")
    if name == "waited_step_s":
        apart = sum(column(other) for other in ("waited_pool_s", "waited_slot_s", "waited_kv_s"))
        return np.where(apart == 0, column("admitted_s") - column("queued_s"), 0.0)
    if name == "decode_tokens":
        return workload.output_tokens[column("request").astype(np.int64)].astype(np.float64) - 1
    return None


def finished_log(steps: StepLog) -> Log:
    """Make a log of ``BATCH_ROW``: a row for each request that has finished, in order of completion.

    A row takes 2 to 5 bytes as a rule. steps: what the same engine records, each step before the requests
    that finish with it.
    """
    return Log(BATCH_ROW, partial(_expected_of_finished, steps))


def _expected_of_finished(steps: StepLog, name: str, column: Callable[[str], Floats]) -> Expectation | None:
    """Expect requests to join in the order of their numbers, and to finish with a decode step."""
    if name == "request":
        return column("entry")
    if name == "finished_s":
        return steps.of_decode_steps("end_s", column("last_step").astype(np.int64) - 1)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Described(Mapping[str, Floats]):
    """What is known of requests: ``DESCRIBED`` by name, [n] each, put together when asked for.

    row: copies a column of ``BATCH_ROW``.
    """

    joined: Log
    row: Callable[[str], Floats]

    def __getitem__(self, name: str) -> Floats:
        if name in BATCH_ROW[2:]:
            return self.row(name)
        column, found = self.joined.column(name), self.row("entry")
        for begin in range(0, found.size, PACKED_ROWS):
            some = found[begin : begin + PACKED_ROWS]
            some[:] = column[some.astype(np.int64)]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(DESCRIBED)

    def __len__(self) -> int:
        return len(DESCRIBED)


def arrived_and_waited(joined: Log) -> tuple[Floats, Floats]:
    """When each request that has joined arrived, and all that it waited for before, [n] in seconds."""
    waited_s, end = np.zeros(len(joined)), 0
    for part in joined.parts():
        for name in WAITS:
            waited_s[end : end + part.rows] += part.column(name)
        end += part.rows
    return joined.column("queued_s"), waited_s


@dataclass(slots=True)
class Prompt:
    """A request on its way into the batch; ``left`` counts prompt tokens still to prefill.

    kept_out_s: the engine's counters of what kept the line out, first as they stood when this request got
    in line, then, once it is admitted, what it waited for.
    """

    request: int
    queued_s: float
    left: int
    admitted_s: float = np.nan
    first_token_s: float = np.nan  # known early where a prefill pool emits it
    waited_pool_s: float = 0.0
    kept_out_s: tuple[float, ...] = (0.0, 0.0, 0.0)
    waited_prefill_s: float = 0.0
    started: bool = False

    def admit(self, now: float, kept_out_s: list[float]) -> None:
        """Take the request out of the line."""
        self.admitted_s = now
        self.kept_out_s = tuple(
            after - before for before, after in zip(self.kept_out_s, kept_out_s, strict=True)
        )

    @property
    def waited_s(self) -> float:
        """All that it has waited for, if it is waiting no more."""
        slot_s, kv_s, step_s = self.kept_out_s  # one by one: from Python 3.12 on ``sum`` rounds otherwise
        return self.waited_pool_s + (slot_s + kv_s + step_s) + self.waited_prefill_s

    def described(self, first_token_s: float, first_step: int, tokens: int) -> tuple[float, ...]:
        """``ADMITTED`` of it, now that it joins the batch with so many tokens to decode."""
        return (
            self.request, self.queued_s, self.admitted_s, first_token_s, self.waited_pool_s, *self.kept_out_s,
            self.waited_prefill_s, first_step, tokens,
        )  # fmt: skip


class BatchRows:
    """The table of requests in flight, one dense column range 0..count-1, holes only between steps."""

    def __init__(self, capacity: int) -> None:
        self.table = np.zeros((len(BATCH_ROW), capacity))
        self.count = 0
        self.holes: Rows = np.empty(0, dtype=np.int64)

    @property
    def occupied(self) -> int:
        """Rows that hold a request."""
        return self.count - self.holes.size

    def release(self, rows: Rows) -> Floats:
        """Open these rows; returns what they held."""
        self.holes = np.concatenate([self.holes, rows]) if self.holes.size else rows
        return self.table[:, rows]

    def take(self, entry: Floats) -> Rows:
        """Rows for newcomers, holes first; stores ``entry`` [columns, n] there."""
        wanted = entry.shape[1]
        rows, self.holes = self.holes[:wanted], self.holes[wanted:]
        if rows.size < wanted:
            added = np.arange(self.count, self.count + wanted - rows.size)
            self.count += added.size
            rows = np.concatenate([rows, added])
        self.table[:, rows] = entry
        return rows

    def close_holes(self) -> tuple[Rows, Rows]:
        """Move rows from the end of the batch into the holes; returns (source, target)."""
        count = self.occupied
        tail = np.arange(count, self.count)
        source = tail[~np.isin(tail, self.holes)]
        target = self.holes[self.holes < count]
        self.table[:, target] = self.table[:, source]
        self.count, self.holes = count, self.holes[:0]
        return source, target


class History:
    """Survival of the last ``lag`` steps, rows kept aligned with the batch, 1 for newcomers."""

    def __init__(self, lag: int, capacity: int, gamma: int) -> None:
        self._steps = deque(np.ones((capacity, gamma), dtype=np.float32) for _ in range(lag))

    def lagged(self, count: int) -> NDArray[np.float32] | None:
        """Survival [count, gamma] from ``lag`` steps before, None without a lag."""
        return self._steps[0][:count] if self._steps else None

    def push(self, survival: NDArray[np.float32]) -> None:
        """Remember this step's survival, forget the oldest."""
        if self._steps:
            oldest = self._steps.popleft()
            oldest[: len(survival)] = survival
            self._steps.append(oldest)

    def place(self, rows: Rows) -> None:
        """Newcomers have no past: they count as certain."""
        for step in self._steps:
            step[rows] = 1.0

    def move(self, source: Rows, target: Rows) -> None:
        """Rows move within the batch."""
        for step in self._steps:
            step[target] = step[source]
