"""vLLM's adaptive verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from simulator.core.arrays import Array, Floats
from simulator.core.errors import BadInputError
from simulator.schedulers.engines.lookup import ceil_times, expected_tokens, first_best
from simulator.schedulers.options import rising
from simulator.schedulers.policies import MOST_LAG
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import TIE, admit, on_grid


@dataclass(frozen=True, slots=True)
class VLLM:
    """The budget by global search over confidences one step old, allocation by current ones.

    Rule (vllm-project/vllm, adaptive_verification): maximise (requests that sample + sum of survival) /
    (draft[R] + verify[T + B]). Verification is looked up at the first captured size at or above, above the
    last one at the size itself. Prompt rows of the step are rows of T; a prompt counts in the numerator only
    in the step in which it ends, as it samples a token there. Ties are unspecified; the smaller budget is
    taken. ``captured``: batch tokens with a graph; the step runs padded to one. ``prefill=no``: leave prompt
    rows out of T. Lossless: see ``reason``. It needs survival and T.
    """

    lag: int = 1
    captured: tuple[int, ...] = ()
    prefill: bool = True
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "the budget comes from an earlier step, the order from survivals up to each draft"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 1 <= self.lag <= MOST_LAG:
            raise BadInputError(
                f"must lie in 1..{MOST_LAG}", field="lag", value=self.lag, remedy="vLLM uses 1"
            )
        rising(self.captured, "captured")

    @property
    def captured_rows(self) -> tuple[int, ...]:
        """Batch sizes that a step is padded to."""
        return self.captured

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Global budget over the lagged survivals, then the most likely drafts of now."""
        past = survival if batch.lagged is None else batch.lagged
        return admit(on_grid(survival), self.search(past, batch))

    def search(self, past: Array, batch: Batch) -> int:
        """Draft budget from the lagged survivals."""
        requests, gamma = past.shape
        sampling = requests + (batch.prompts_ending if self.prefill else 0)
        theta = expected_tokens(on_grid(past), sampling) / self.times(requests, gamma, batch)
        return first_best(theta, TIE)

    def times(self, requests: int, gamma: int, batch: Batch) -> Floats:
        """Believed step time of every budget 0..requests * gamma."""
        prompts = batch.prefill_tokens if self.prefill else 0
        sizes = range(requests + prompts, requests * (1 + gamma) + prompts + 1)
        if self.captured:
            return ceil_times(batch, requests, sizes, self.captured, prompts)
        return np.asarray(batch.cost.step_time_s(requests, sizes, batch.context_tokens, prompts))
