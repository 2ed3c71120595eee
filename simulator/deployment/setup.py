"""A policy made concrete on a deployment: scheduler, acceptance, costs."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.acceptance.trace import AcceptanceModel, Replay
from simulator.core.errors import BadInputError
from simulator.cost.models import CostModel, StepTime
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.parse import NamedPolicy
from simulator.schedulers.policies import Fixed
from simulator.schedulers.protocol import Scheduler

NO_DRAFT = Replay(np.zeros((1, 0), np.float32), np.zeros(1, np.uint8), np.array([0, 1], dtype=np.int64))
"""What autoregressive decoding replays: blocks of no tokens."""

MOST_BEYOND = 3.0
"""Batch tokens over the largest that was measured, above which step times are refused: a choice.

A line measured without speculation knows how a step grows with requests. Further rows of the same requests
share their KV cache and often their experts, so they cost less than that line says: read at four times its
end, at 8 rows a request, it gave 0.76 of the throughput without speculation where 0.99 was measured (Kimi-K3
on AMD GPUs, AMD-AGI/Infera issue 74, 32 requests).
"""


KEPT_REPLAYS = 8
"""Realised traces kept in a process, some 3 MB each as shipped: more than the five seeds that a rate's trials
take in turn (``capacity.trials.REPLICATIONS``), as fewer would never be met again."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A policy made concrete: its scheduler, its drafter's acceptance, and what its steps cost.

    cost advances the clock; believed is what the scheduler consults. note says what was assumed.
    """

    policy: NamedPolicy
    drafter: str
    acceptance: AcceptanceModel | None
    cost: CostModel
    believed: CostModel
    note: str | None = None

    @property
    def scheduler(self) -> Scheduler:
        """The policy's scheduler."""
        return self.policy.scheduler

    def extrapolates(self, requests: int) -> BadInputError | None:
        """Return the error of a batch whose rows lie far beyond those measured, or None.

        requests: in the batch. Only lengths that are fixed or go by the number of requests are known before
        a step; what other policies have chosen is judged after a run (``extrapolated``).
        """
        length = self._known_length(requests)
        return None if length is None else self.extrapolated(requests * (1 + length), requests)

    def extrapolated(self, rows: float, requests: int) -> BadInputError | None:
        """Return the error of steps of so many rows (drafts and anchors), or None; requests: in them."""
        measured = self.cost.measured_tokens if isinstance(self.cost, StepTime) else math.inf
        if not rows > MOST_BEYOND * measured:
            return None
        return BadInputError(
            f"verifies {rows:,.0f} rows at {requests} requests, {rows / measured:.1f} times those measured: "
            "its answer would rest on extrapolation along rows",
            source="policy", field=self.policy.name,
            remedy="measure a fixed length too (docs/planning.md, two lines), take fewer requests, or accept "
            "it with `extrapolate_rows` (in a scenario: search.extrapolate_rows)",
        )  # fmt: skip

    def _known_length(self, requests: int) -> int | None:
        scheduler = self.scheduler
        if isinstance(scheduler, Fixed):
            return scheduler.length
        return scheduler.lengths(requests) if isinstance(scheduler, BatchTable) else None

    def replay(self, seed: int) -> Replay:
        """Realise acceptance for one seed; cached, since many cells of a sweep share it."""
        return NO_DRAFT if self.acceptance is None else realised(self.acceptance, seed)


def realised(model: AcceptanceModel, seed: int) -> Replay:
    """``model.replay(seed)``, kept for the next cell of a sweep that asks for the same."""
    return _cached_replay(model, seed) if isinstance(model, Hashable) else model.replay(seed)


@lru_cache(maxsize=KEPT_REPLAYS)
def _cached_replay(model: AcceptanceModel, seed: int) -> Replay:
    return model.replay(seed)
