"""The executor that looks up what a step takes and accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.trace import Replay
from simulator.core.arrays import Floats, Rows
from simulator.core.random import random_stream
from simulator.cost.asked import Asked, AskedCost
from simulator.cost.models import CostModel, StepTime
from simulator.engine.cursors import TraceCursors
from simulator.engine.executor import NO_PROMPTS, PromptRows, Verified, check_lengths
from simulator.traffic.workload import Workload


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
        self._by_asked = AskedCost(cost)
        self._asked: Asked | None = None
        self._buffer = np.zeros((capacity, self.gamma), dtype=np.float32)
        self._drafted = self._buffer[:0]

    @property
    def scatters(self) -> bool:
        """Whether single steps scatter about their mean."""
        return self._jitter is not None

    def scatter(self, steps: int) -> Floats:
        """Multiples of the mean time of the next ``steps`` steps, for a loop that times steps itself."""
        assert self._jitter is not None
        return np.fromiter(islice(self._jitter, steps), dtype=np.float64, count=steps)

    def place(self, rows: Rows, requests: Rows, context_tokens: Rows) -> None:
        """Start walking each request's sequence."""
        self.traces.place(rows, requests)

    def move(self, source: Rows, target: Rows) -> None:
        """Carry cursors to their new rows."""
        self.traces.move(source, target)

    def ask(self, asked: Asked) -> None:
        """Draft no more than this in the next step: its price falls with it."""
        self._asked = asked

    def draft(self, count: int) -> NDArray[np.float32]:
        """Survival at every row's cursor, [count, gamma]."""
        self._drafted = self.traces.survival(self._buffer[:count])
        return self._drafted

    def outcome(self) -> NDArray[np.float32]:
        """Certainty instead of survival, for the oracle."""
        accepted = self.traces.accepted(len(self._drafted))
        return (np.arange(self.gamma) < accepted[:, None]).astype(np.float32)

    def snapshot(self) -> NDArray[np.float32]:
        """Return the survival just drafted."""
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
        if self._asked is None:
            mean_s = self.cost.step_time_s(requests, batch_tokens, context_tokens, prefill)
        else:
            mean_s = self._by_asked.step_time_s(requests, batch_tokens, context_tokens, prefill, self._asked)
            self._asked = None
        return mean_s if self._jitter is None else mean_s * next(self._jitter)


def _scatter(jitter: tuple[float, ...], seed: int) -> Iterator[float]:
    """Multiples of the mean step time, one a step, drawn many at a time."""
    stream, values = random_stream(seed, "jitter"), np.array(jitter)
    while True:
        yield from stream.choice(values, size=1024).tolist()
