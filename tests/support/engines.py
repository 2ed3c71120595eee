"""Engines small enough to reason about: replays, costs, and an executor that keeps its own books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.trace import Replay
from simulator.core.arrays import Rows
from simulator.cost.models import CostModel, ThroughputCurve
from simulator.engine.engine import Engine
from simulator.engine.executor import NO_PROMPTS, Chunk, PromptRows, Verified
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.traffic.workload import Workload

TICK = 2.0**-7
"""A step time in seconds whose multiples add up without rounding."""


def constant_cost(step_time_s: float = TICK) -> ThroughputCurve:
    """Every step takes the same."""
    return ThroughputCurve([1], [1 / step_time_s])


def tokens_cost(s_per_token: float = TICK) -> ThroughputCurve:
    """A step takes as long as it has rows: every verified and every prefilled token counts."""
    return ThroughputCurve([1, 2], [1 / s_per_token, 0.5 / s_per_token])


def rising_cost() -> ThroughputCurve:
    """A step has a fixed part, then each token costs more than the one before: drafts pay at light load."""
    return ThroughputCurve([1, 16, 64, 256], 1 / np.array([1.0, 1.25, 3.0, 12.0]) / TICK)


def constant_replay(gamma: int, accepted: int, rows: int = 64) -> Replay:
    """Every block of ``gamma`` has ``accepted`` good tokens, and the drafter half believes in each."""
    survival = np.tile(np.cumprod(np.full(gamma, 0.5, dtype=np.float32)), (rows, 1))
    return Replay(survival, np.full(rows, accepted, dtype=np.uint8), np.array([0, rows]))


def random_replay(gamma: int, rows: int = 4096, sequences: int = 32, seed: int = 0) -> Replay:
    """Calibrated drafts: each token is accepted with the confidence given, which varies from row to row."""
    draw = np.random.default_rng(seed)
    confidence = draw.beta(4, 1, (rows, 1)) * draw.uniform(0.8, 1.0, (rows, gamma))
    accepted = np.cumprod(draw.random((rows, gamma)) < confidence, axis=1).sum(axis=1)
    start = np.linspace(0, rows, sequences + 1).astype(np.int64)
    return Replay(np.cumprod(confidence, axis=1).astype(np.float32), accepted.astype(np.uint8), start)


def closed_loop(output_tokens: Any, prompt_tokens: Any = None) -> Workload:
    """A closed loop over requests of these outputs and prompts (default: one token each)."""
    return Workload.single_class(None, _prompts(prompt_tokens, output_tokens), output_tokens)


def open_loop(arrival_s: Any, output_tokens: Any, prompt_tokens: Any = None) -> Workload:
    """Requests arriving at these times."""
    return Workload.single_class(arrival_s, _prompts(prompt_tokens, output_tokens), output_tokens)


def _prompts(prompt_tokens: Any, output_tokens: Any) -> Any:
    return np.ones(len(output_tokens), dtype=np.int64) if prompt_tokens is None else prompt_tokens


@dataclass
class Seen:
    """What one request went through, by its own account."""

    anchors: list[int] = field(default_factory=list)  # trace rows its blocks were drafted at
    committed: list[int] = field(default_factory=list)  # tokens of each step, overshoot included
    survival: list[NDArray[np.float32]] = field(default_factory=list)


class Bookkeeper(SimulatedExecutor):
    """Follows each request by name, in dictionaries, where the engine moves rows of arrays.

    Anchors are recognised by their survival, so they mean something where no two trace rows are alike.
    """

    def __init__(self, replays: Sequence[Replay], *args: Any, **options: Any) -> None:
        super().__init__(replays, *args, **options)
        rows = np.concatenate([replay.survival for replay in replays])
        self.trace_row = {row.tobytes(): index for index, row in enumerate(rows)}
        self.request_in: dict[int, int] = {}
        self.seen: dict[int, list[Seen]] = {}  # a closed loop serves a request again and again
        self.batches: list[tuple[int, int, int]] = []  # requests, draft tokens, prefill tokens
        self.contexts: list[float] = []
        self.prompts: list[tuple[Chunk, ...]] = []  # of each step that has prompt rows
        self.held: dict[int, float] = {}  # tokens in the cache of a request when it is placed

    def place(self, rows: Rows, requests: Rows, context_tokens: Rows) -> None:
        super().place(rows, requests, context_tokens)
        for row, request in zip(rows.tolist(), requests.tolist(), strict=True):
            self.request_in[row] = request
            self.seen.setdefault(request, []).append(Seen())
        self.held.update(zip(requests.tolist(), context_tokens.tolist(), strict=True))

    def move(self, source: Rows, target: Rows) -> None:
        super().move(source, target)
        moved = [self.request_in.pop(row) for row in source.tolist()]
        self.request_in.update(zip(target.tolist(), moved, strict=True))

    def draft(self, count: int) -> NDArray[np.float32]:
        survival = super().draft(count)
        for row in range(count):
            seen = self.now_in(row)
            seen.anchors.append(self.trace_row[survival[row].tobytes()])
            seen.survival.append(survival[row].copy())
        return survival

    def verify(self, lengths: Rows, context_tokens: float, prompts: PromptRows = NO_PROMPTS) -> Verified:
        verified = super().verify(lengths, context_tokens, prompts)
        self.batches.append((len(lengths), int(lengths.sum()), prompts.tokens))
        self.prompts += [prompts.chunks] if prompts.tokens else []
        self.contexts.append(context_tokens)
        for row, accepted in enumerate(verified.accepted.tolist()):
            self.now_in(row).committed.append(accepted + 1)
        return verified

    def prefill(self, prompts: PromptRows) -> float:
        self.batches.append((0, 0, prompts.tokens))
        self.prompts.append(prompts.chunks)
        return super().prefill(prompts)

    def now_in(self, row: int) -> Seen:
        """The account of whoever sits in this row."""
        return self.seen[self.request_in[row]][-1]


class Witness:
    """A scheduler that lets another decide, and checks the history that both are shown."""

    reads_outcome = False
    draft_tokens = None
    lossless = True
    reason = "it decides nothing"

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.lag = scheduler, scheduler.lag
        self.executor: Bookkeeper | None = None
        self.mismatches: list[str] = []
        self.newcomers = self.veterans = 0

    def schedule(self, survival: NDArray[np.float32], batch: Batch) -> Rows:
        assert self.executor is not None
        for row in range(len(survival)):
            past = self.executor.now_in(row).survival  # this step's included
            is_new = len(past) <= self.lag
            expected = np.ones_like(survival[row]) if is_new else past[-1 - self.lag]
            if not np.array_equal(batch.lagged[row], expected):
                self.mismatches.append(f"row {row} at its step {len(past) - 1}")
            self.newcomers += is_new
            self.veterans += not is_new
        return self.scheduler.schedule(survival, batch)


def run(
    workload: Workload,
    replay: Replay | Sequence[Replay],
    scheduler: Scheduler,
    cost: CostModel,
    limits: EngineLimits,
    *,
    steps: int | None = None,
    seed: int = 0,
    believed: CostModel | None = None,
) -> tuple[Engine, Bookkeeper]:
    """An engine that has run, and its bookkeeper."""
    replays = [replay] if isinstance(replay, Replay) else replay
    executor = Bookkeeper(replays, workload, cost, capacity=limits.concurrency, seed=seed)
    if isinstance(scheduler, Witness):
        scheduler.executor = executor
    engine = run_engine(workload, executor, scheduler, believed or cost, limits, seed=seed, steps=steps)
    return engine, executor


def queue_waits(arrival_s: NDArray[np.float64], service_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Waiting times of one server, first come first served (Lindley's recursion)."""
    waits, free_s = [], 0.0
    for arrival, service in zip(arrival_s.tolist(), service_s.tolist(), strict=True):
        start = max(arrival, free_s)
        waits.append(start - arrival)
        free_s = start + service
    return np.array(waits)
