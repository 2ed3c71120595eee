"""A policy made concrete on a deployment: scheduler, acceptance, costs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.acceptance.trace import AcceptanceModel, Replay
from simulator.cost.models import CostModel
from simulator.schedulers.parse import Policy
from simulator.schedulers.protocol import Scheduler

NO_DRAFT = Replay(np.zeros((1, 0), np.float32), np.zeros(1, np.uint8), np.array([0, 1], dtype=np.int64))
"""What autoregressive decoding replays: blocks of no tokens."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A policy made concrete: its scheduler, its drafter's acceptance, and what its steps cost.

    cost advances the clock; believed is what the scheduler consults. note says what was assumed.
    """

    policy: Policy
    drafter: str
    acceptance: AcceptanceModel | None
    cost: CostModel
    believed: CostModel
    note: str | None = None

    @property
    def scheduler(self) -> Scheduler:
        """The policy's scheduler."""
        return self.policy.scheduler

    def replay(self, seed: int) -> Replay:
        """Realise acceptance for one seed; cached, since many cells of a sweep share it."""
        return NO_DRAFT if self.acceptance is None else realised(self.acceptance, seed)


def realised(model: AcceptanceModel, seed: int) -> Replay:
    """``model.replay(seed)``, kept for the next cell of a sweep that asks for the same."""
    return _cached_replay(model, seed) if isinstance(model, Hashable) else model.replay(seed)


@lru_cache(maxsize=4)
def _cached_replay(model: AcceptanceModel, seed: int) -> Replay:
    return model.replay(seed)
