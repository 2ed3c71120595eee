"""The cost of steps padded to a captured batch size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.core.arrays import Floats
from simulator.cost.models import ChangedCost


@dataclass(frozen=True, slots=True)
class PaddedCost(ChangedCost):
    """A cost model whose steps run padded to the first of ``captured`` rows that holds them.

    captured: rising batch tokens. Above the last of them a step runs as it is, without a graph.
    """

    captured: tuple[int, ...]

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        if not isinstance(batch_tokens, range):
            rows = self._rows(batch_tokens)
            return self.base.step_time_s(requests, rows, context_tokens, prefill_tokens)
        times: dict[int, float] = {}
        for rows in dict.fromkeys(map(self._rows, batch_tokens)):
            times[rows] = self.base.step_time_s(requests, rows, context_tokens, prefill_tokens)
        return np.array([times[self._rows(size)] for size in batch_tokens])

    def _rows(self, rows: int) -> int:
        at = int(np.searchsorted(self.captured, rows))
        return self.captured[at] if at < len(self.captured) else rows

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Whether the padded size lies beyond what the base model was measured at."""
        return self.base.outside(requests, self._rows(batch_tokens))
