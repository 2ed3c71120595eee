"""TensorRT-LLM's planner over captured lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import device

from simulator.core.arrays import Array
from simulator.core.errors import BadInputError
from simulator.schedulers.engines.lookup import first_best
from simulator.schedulers.options import rising
from simulator.schedulers.policies import MOST_LAG
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import GRID, TIE, admit, namespace, on_grid


@dataclass(frozen=True, slots=True)
class TensorRTLLM:
    """The best of a few captured lengths, every request at least one draft, all decided ``lag`` steps before.

    Rule (NVIDIA/TensorRT-LLM, pull request 17056): of the tiers n, by default 1, half the block (rounded up)
    and the block, take the largest tau / T at R * n drafts, the smaller n on ties. Each request gets one
    draft; the others go to the most likely, the smaller position and then the smaller row on ties. Budget
    and allocation read the same lagged survivals. ``prefill``: count prompt rows of the step in T, which
    the planner does not. Lossless: see ``reason``. It needs lagged survival and T.
    """

    lag: int = 1
    tiers: tuple[int, ...] = ()
    prefill: bool = False
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "budget and allocation read earlier steps only"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 1 <= self.lag <= MOST_LAG:
            raise BadInputError(f"must lie in 1..{MOST_LAG}", field="lag", value=self.lag, remedy="usually 1")
        rising(self.tiers, "tiers")

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Tier and lengths, both over the lagged survivals."""
        past = survival if batch.lagged is None else batch.lagged
        grid, requests = on_grid(past), len(past)
        xp = namespace(grid)
        certain = xp.full((requests, 1), GRID, dtype=grid.dtype, device=device(grid))
        # With the first draft of each request made certain, the usual order admits all of these first.
        promised = xp.concat([certain, grid[:, 1:]], axis=1)
        plans = [admit(promised, requests * tier) for tier in self.tiers_of(past.shape[1])]
        theta = [self._expected(grid, plan) / self._time_s(requests, plan, batch) for plan in plans]
        best = plans[first_best(np.array(theta), TIE)]
        # Of a live step the history is on the host and the lengths are wanted where the drafts are.
        return (
            best
            if type(best) is type(survival)
            else namespace(survival).asarray(best, device=device(survival))
        )

    def tiers_of(self, gamma: int) -> list[int]:
        """Lengths with a graph, of a block of ``gamma``."""
        tiers = self.tiers or tuple(sorted({1, -(-gamma // 2), gamma}))
        usable = [tier for tier in tiers if tier <= gamma]
        if not usable:
            raise BadInputError(
                f"are all longer than the block of {gamma} tokens", field="tiers", value=self.tiers,
                remedy=f"give one of at most {gamma}",
            )  # fmt: skip
        return usable

    def _expected(self, grid: Array, plan: Array) -> int:
        xp, gamma = namespace(grid), grid.shape[1]
        reached = xp.arange(gamma, device=device(grid)) < xp.reshape(plan, (-1, 1))
        taken = xp.where(reached, grid, xp.zeros_like(grid))
        return len(grid) * GRID + int(xp.sum(xp.astype(taken, xp.int64)))

    def _time_s(self, requests: int, plan: Array, batch: Batch) -> float:
        prompts = batch.prefill_tokens if self.prefill else 0
        rows = requests + int(plan.sum()) + prompts
        return batch.cost.step_time_s(requests, rows, batch.context_tokens, prompts)
