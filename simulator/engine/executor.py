"""The seam between the serving model and what runs a step: looked up here, measured under ``live``."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Array, Rows
from simulator.core.errors import SimulatorError
from simulator.cost.asked import Asked
from simulator.engine.limits import EngineLimits
from simulator.schedulers.beyond.memory import Learner, Remembering
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload

_INT64 = np.dtype(np.int64)


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
        """Place requests, prefilled, into rows; the last token of their context is the anchor."""
        ...

    def move(self, source: Rows, target: Rows) -> None:
        """Move the requests of ``source`` rows to ``target`` rows, whose own have left."""
        ...

    def draft(self, count: int) -> Array:
        """Draft a block for rows 0..count-1 and return its survival [count, gamma]."""
        ...

    def outcome(self) -> Array:
        """Return the survival an all-knowing scheduler would see: 1 up to the accepted length, then 0."""
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


@runtime_checkable
class AskingExecutor(Protocol):
    """An executor whose drafter can be asked for less than a block for everyone."""

    def ask(self, asked: Asked) -> None:
        """Draft no more than this in the next step."""
        ...


def learner_of(
    scheduler: Scheduler, executor: Executor, workload: Workload, limits: EngineLimits
) -> Learner | None:
    """Start a policy that remembers; None for the others, which need no memory.

    Raises ``BadInputError`` where the executor drafts a block for everyone, whatever it is asked.
    """
    if not isinstance(scheduler, Remembering):
        return None
    if not isinstance(executor, AskingExecutor):
        raise scheduler.unstarted()
    return scheduler.start(limits.concurrency, executor.gamma, workload.classes)
