"""A cost model whose every step takes a factor longer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.core.arrays import Floats
from simulator.cost.models import CostModel, StepTime


@dataclass(frozen=True, slots=True)
class ScaledCost(StepTime):
    """A cost model whose every step takes ``factor`` times as long."""

    base: CostModel
    factor: float

    @property
    def jitter(self) -> tuple[float, ...]:
        """As the base model's steps scatter."""
        return self.base.jitter if isinstance(self.base, StepTime) else ()

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Step time at one size or over a range."""
        return self.base.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens) * self.factor

    @property
    def measured_tokens(self) -> float:
        """As the base model."""
        return self.base.measured_tokens if isinstance(self.base, StepTime) else math.inf

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Whether the base model was measured there."""
        return self.base.outside(requests, batch_tokens)
