"""The rows of a batch: requests in flight, their lagged survival, recorded steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats, Log, Rows


class Step(NamedTuple):
    """One engine step as recorded. Times in seconds; the rest counts requests or tokens.

    gap_s is the time since the batch last received tokens: the duration, and any prefill in between. A
    newcomer's own gap differs (``engine.measures.metrics.first_gaps``). A step of nothing but prefill has
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
    """Recorded steps, exactly, in 20 to 60 bytes a step, and 96 for each of the latest; counts below 2^53.

    A log that is ``fold``ed now and then takes 52 bytes a step: all but the ends in float32.
    """

    __slots__ = ("_folded",)

    def __init__(self) -> None:
        super().__init__(Step._fields, _expected_of_steps)
        self._folded: list[tuple[Floats, NDArray[np.float32]]] = []

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
            table = super().table()
            self._folded.append((table[:, 0].copy(), table[:, 1:].astype(np.float32)))
            super().clear()

    def clear(self) -> None:
        """Forget all steps."""
        super().clear()
        del self._folded[:]

    def table(self) -> Floats:
        """Copy the log into float64 [steps, fields of ``Step``]."""
        folded = [np.column_stack([ends, rest]) for ends, rest in self._folded]
        return np.concatenate([*folded, super().table()]) if folded else super().table()

    def column(self, name: str) -> Floats:
        """Copy one field of all steps, [steps]."""
        at = self.names.index(name)
        folded = [rest[:, at - 1].astype(np.float64) if at else ends for ends, rest in self._folded]
        return np.concatenate([*folded, super().column(name)]) if folded else super().column(name)

    def delivery_s(self) -> Floats:
        """When each decode step delivered its tokens, [decode steps]."""
        ends: Floats = self.column("end_s")[self.column("requests") > 0]
        return ends


def _expected_of_steps(name: str, column: Callable[[str], Floats]) -> Floats | None:
    """Expect every step to decode: it delivers to all requests that the step before it delivered to."""
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


def joined_log() -> Log:
    """Make a log of ``ADMITTED``: a row for each request, in order of joining."""
    return Log(ADMITTED, _expected_of_joined)


def _expected_of_joined(name: str, column: Callable[[str], Floats]) -> Floats | None:
    """Expect that no request waits, and that those prefilled elsewhere join as they are admitted."""
    return column("admitted_s") if name == "first_token_s" else None


def finished_log() -> Log:
    """Make a log of ``BATCH_ROW``: a row for each request that has finished, in order of completion."""
    return Log(BATCH_ROW)


@dataclass(frozen=True, slots=True, eq=False)
class Described(Mapping[str, Floats]):
    """What is known of requests: ``DESCRIBED`` by name, [n] each, put together when asked for.

    row: gives a column of ``BATCH_ROW``.
    """

    joined: Log
    row: Callable[[str], Floats]

    def __getitem__(self, name: str) -> Floats:
        if name in BATCH_ROW[2:]:
            return self.row(name)
        return self.joined.column(name)[self.row("entry").astype(np.int64)]

    def __iter__(self) -> Iterator[str]:
        return iter(DESCRIBED)

    def __len__(self) -> int:
        return len(DESCRIBED)


def arrived_and_waited(joined: Log) -> tuple[Floats, Floats]:
    """When each request that has joined arrived, and all that it waited for before, [n] in seconds."""
    waited: Floats = np.zeros(len(joined))
    for name in WAITS:
        waited += joined.column(name)
    return joined.column("queued_s"), waited


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
        return self.waited_pool_s + sum(self.kept_out_s) + self.waited_prefill_s

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
