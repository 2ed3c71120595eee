"""The seam between the serving model and what runs a step: looked up here, measured under ``live``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance import Replay, random_stream
from simulator.cost import CostModel, StepTime
from simulator.errors import BadInputError, SimulatorError
from simulator.workload import Workload

Array = Any  # an array of any array-API namespace: NumPy or torch
Rows = NDArray[np.int64]
_INT64 = np.dtype(np.int64)

LONG_TRACE = 8192
"""Rows from which on indices may run past the end: NumPy wraps them by subtracting again and again."""


class Verified(NamedTuple):
    """What a step did, on the host: draft tokens verified and accepted, and how long it took.

    accepted: int64 [R], at most the verification length of each request.
    draft_tokens: the step's draft budget K, summed over requests.
    """

    accepted: Rows
    draft_tokens: int
    duration_s: float


class Chunk(NamedTuple):
    """Prompt rows of one request in one step: tokens start .. start + tokens - 1 of its prompt.

    last: whether the prompt is complete with them.
    """

    request: int
    start: int
    tokens: int
    last: bool


class PromptRows(NamedTuple):
    """All prompt rows of a step: how many, and whose."""

    tokens: int
    chunks: tuple[Chunk, ...]


NO_PROMPTS = PromptRows(0, ())


class Executor(Protocol):
    """Runs the steps of one engine over dense batch rows 0..R-1.

    The serving model says which request sits in which row; the executor keeps what it needs per row
    (a cursor into a trace, a slot of a KV cache). A step is ``draft``, then ``verify``; a request's
    first draft follows its prefill, with its first output token as anchor.
    """

    gamma: int

    def place(self, rows: Rows, requests: Rows, context_tokens: Rows) -> None:
        """These requests now sit in these rows, prefilled; the last token of their context is the anchor."""
        ...

    def move(self, source: Rows, target: Rows) -> None:
        """The requests of ``source`` rows move to ``target`` rows, whose own have left."""
        ...

    def draft(self, count: int) -> Array:
        """Draft a block for rows 0..count-1 and return its survival [count, gamma]."""
        ...

    def outcome(self) -> Array:
        """The survival an all-knowing scheduler would see: 1 up to the accepted length, then 0."""
        ...

    def snapshot(self) -> NDArray[np.float32]:
        """Host copy of the survival just drafted; read after ``verify`` has returned."""
        ...

    def verify(self, lengths: Array, context_tokens: float, prompts: PromptRows = NO_PROMPTS) -> Verified:
        """Verify that many draft tokens per row, commit what is accepted, and say how long the step took.

        ``prompts`` ride along in the same forward pass.
        """
        ...

    def prefill(self, prompts: PromptRows) -> float:
        """Run a step of nothing but prompt rows; returns its duration in seconds."""
        ...


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
        self._survival = np.concatenate([replay.survival for replay in replays])
        self._accepted = np.concatenate([replay.accepted for replay in replays]).astype(np.int64)
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
            counted += _visits(first, far, replay.rows)
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
        """Accepted lengths under full verification at the first ``count`` cursors, int64 [count]."""
        return self._accepted.take(self._cursor[:count], mode="wrap")

    def advance(self, accepted: Rows) -> None:
        """Move the first rows on by what they committed: ``accepted`` drafts and the bonus token."""
        count = len(accepted)
        cursor = self._cursor[:count]
        cursor += accepted
        cursor += 1
        if self._traces is not None:
            first, rows = self._walked[:, :count]
            cursor[:] = first + (cursor - first) % rows


class SimulatedExecutor:
    """Replays acceptance (see ``TraceCursors``) and looks the step time up in the true cost model.

    Where the cost model says how steps scatter, each step's deviation depends on ``seed`` and its number
    alone: policies that are compared meet the same.
    """

    def __init__(
        self, replays: Sequence[Replay], workload: Workload, cost: CostModel, *, capacity: int, seed: int
    ) -> None:
        self.traces = TraceCursors(replays, workload, capacity=capacity, seed=seed)
        self.gamma = self.traces.gamma
        self.cost = cost
        self.steps_outside = 0
        jitter = cost.jitter if isinstance(cost, StepTime) else ()
        self._jitter = _scatter(jitter, seed) if jitter else None
        self._buffer = np.zeros((capacity, self.gamma), dtype=np.float32)
        self._drafted = self._buffer[:0]

    def place(self, rows: Rows, requests: Rows, context_tokens: Rows) -> None:
        """Start walking each request's sequence."""
        self.traces.place(rows, requests)

    def move(self, source: Rows, target: Rows) -> None:
        """Carry cursors to their new rows."""
        self.traces.move(source, target)

    def draft(self, count: int) -> NDArray[np.float32]:
        """Survival at every row's cursor, [count, gamma]."""
        self._drafted = self.traces.survival(self._buffer[:count])
        return self._drafted

    def outcome(self) -> NDArray[np.float32]:
        """Certainty instead of survival, for the oracle."""
        accepted = self.traces.accepted(len(self._drafted))
        return (np.arange(self.gamma) < accepted[:, None]).astype(np.float32)

    def snapshot(self) -> NDArray[np.float32]:
        """The survival just drafted."""
        return self._drafted

    def verify(self, lengths: Rows, context_tokens: float, prompts: PromptRows = NO_PROMPTS) -> Verified:
        """Replay the outcome, advance the cursors, look the duration up."""
        count = len(self._drafted)
        check_lengths(lengths, count, self.gamma)
        accepted = np.minimum(lengths, self.traces.accepted(count))
        self.traces.advance(accepted)
        draft_tokens = int(np.add.reduce(lengths))
        batch_tokens = count + draft_tokens + prompts.tokens
        duration_s = self._duration_s(count, batch_tokens, context_tokens, prompts.tokens)
        return Verified(accepted, draft_tokens, duration_s)

    def prefill(self, prompts: PromptRows) -> float:
        """Duration of a step of prompt rows alone."""
        return self._duration_s(0, prompts.tokens, 0.0, prompts.tokens)

    def _duration_s(self, requests: int, batch_tokens: int, context_tokens: float, prefill: int) -> float:
        if self.cost.outside(requests, batch_tokens):
            self.steps_outside += 1
        mean_s = self.cost.step_time_s(requests, batch_tokens, context_tokens, prefill)
        return mean_s if self._jitter is None else mean_s * next(self._jitter)


def _scatter(jitter: tuple[float, ...], seed: int) -> Iterator[float]:
    """Multiples of the mean step time, one a step, drawn many at a time."""
    stream, values = random_stream(seed, "jitter"), np.array(jitter)
    while True:
        yield from stream.choice(values, size=1024).tolist()


def check_lengths(lengths: Rows, count: int, gamma: int) -> None:
    """Refuse verification lengths that are not int64 [count] within 0..gamma: a broken scheduler."""
    if not isinstance(lengths, np.ndarray) or lengths.dtype != _INT64 or lengths.shape != (count,):
        shown = f"{getattr(lengths, 'dtype', type(lengths).__name__)} {getattr(lengths, 'shape', '')}"
        raise SchedulerError(f"the scheduler returned {shown} where int64 ({count},) is due")
    # Seen as unsigned, a negative length is a huge one: a single reduction checks both ends.
    if count and np.maximum.reduce(lengths.view(np.uint64)) > gamma:
        row = int(np.argmax(lengths.view(np.uint64)))
        raise SchedulerError(
            f"the scheduler gave request row {row} length {lengths[row]}, outside 0..{gamma}"
        )


class SchedulerError(SimulatorError):
    """A scheduler broke its contract; the message says how, the serving model adds the step."""


def _visits(first: Rows, tokens: Rows, rows: int) -> Rows:
    """How often each of ``rows`` rows is passed by walks from ``first`` on, past the last row and round."""
    laps, rest = np.divmod(tokens, rows)
    end = first + rest
    change = np.bincount(first, minlength=2 * rows + 1) - np.bincount(end, minlength=2 * rows + 1)
    passed = np.cumsum(change)[: 2 * rows].reshape(2, rows).sum(axis=0)
    return np.asarray(passed + laps.sum(), dtype=np.int64)


def _first_rows(replays: Sequence[Replay], workload: Workload, seed: int) -> Rows:
    """Trace row at which each request starts, replays laid end to end: the same for every policy."""
    first = np.empty(len(workload), dtype=np.int64)
    offset = 0
    for index, (replay, name) in enumerate(zip(replays, workload.classes, strict=True)):
        mine = np.flatnonzero(workload.class_index == index)
        starts = replay.sequence_start[:-1] + offset
        stream = random_stream(seed, f"sequences/{name}")
        rounds = -(-len(mine) // len(starts))
        order = [stream.permutation(starts) for _ in range(rounds)] or [starts]
        first[mine] = np.concatenate(order)[: len(mine)]
        offset += replay.rows
    return first
