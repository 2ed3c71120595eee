"""SGLang's verify-budget planner, with what its options change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import device

from simulator.core.arrays import Array, Floats
from simulator.core.errors import BadInputError
from simulator.schedulers.engines.lookup import candidates, expected_tokens, filled, first_best, floor_times
from simulator.schedulers.options import rising
from simulator.schedulers.policies import MOST_LAG
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import TIE, admit, namespace


@dataclass(frozen=True, slots=True)
class SGLang:
    """The budget by global search ``lag`` steps before, allocation by current survival.

    Rule (sgl-project/sglang, dspark_planner): maximise (R + sum of survival) / T over drafts whose survival
    is at least 1e-6, the smallest budget on ties; no request is promised a draft. ``probes``: batch tokens of
    a diagonal table, looked up at or below; without them the believed cost is asked. ``tiers``: batch tokens
    with a graph. The search ignores them, the step runs padded to one, and ``reinflate`` fills it with drafts
    (its option align-verify-tokens-to-graph-tier). ``min_gain``: share by
    which the best budget must beat verifying every candidate, else every candidate is verified
    (pull request 35413). ``prefill``: count prompt rows of the step in T, which SGLang does not.

    ``ranks``: data-parallel attention. Row r belongs to rank r modulo ``ranks``; each rank decides alone, and
    all run the largest one's tier. The believed cost is of the whole replica, asked at ``ranks`` times the
    rows of one. Lossless: see ``reason``. It needs survival and T.
    """

    lag: int = 2
    probes: tuple[int, ...] = ()
    tiers: tuple[int, ...] = ()
    reinflate: bool = False
    min_gain: float = 0.0
    prefill: bool = False
    ranks: int = 1
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "the budget comes from earlier steps, and draft k is dropped by survivals up to k"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 1 <= self.lag <= MOST_LAG:
            raise BadInputError(
                f"must lie in 1..{MOST_LAG}", field="lag", value=self.lag, remedy="SGLang uses 2"
            )
        if not 0 <= self.min_gain < float("inf"):
            raise BadInputError(
                "must be finite and not negative", field="min-gain", value=self.min_gain,
                remedy="as in min-gain=0.05",
            )  # fmt: skip
        if self.ranks < 1:
            raise BadInputError("must be at least 1", field="ranks", value=self.ranks, remedy="as in ranks=8")
        if self.reinflate and not self.tiers:
            raise BadInputError(
                "needs tiers to fill", field="reinflate", remedy="as in tiers=8/16/32,reinflate"
            )
        rising(self.probes, "probes")
        rising(self.tiers, "tiers")

    @property
    def captured_rows(self) -> tuple[int, ...]:
        """Batch sizes that a step is padded to."""
        return self.tiers

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Budgets of the ranks over the lagged survivals, then each rank's most likely drafts of now."""
        xp, count = namespace(survival), min(self.ranks, len(survival))
        past = survival if batch.lagged is None else batch.lagged
        budgets = self.budgets([past[rank::count] for rank in range(count)], batch)
        lengths = xp.zeros_like(survival[:, 0], dtype=xp.int64, device=device(survival))
        for rank, budget in enumerate(budgets):
            grid, left = candidates(survival[rank::count])
            lengths[rank::count] = admit(grid, min(budget, left))
        return lengths

    def budgets(self, lagged: list[Array], batch: Batch) -> list[int]:
        """Draft budget of each rank from its lagged survivals, after filling graphs."""
        chosen = [self.search(past, batch, len(lagged)) for past in lagged]
        if not self.reinflate:
            return chosen
        largest = max(len(past) + budget for past, budget in zip(lagged, chosen, strict=True))
        return [filled(largest, len(past), past.shape[1], self.tiers) for past in lagged]

    def search(self, past: Array, batch: Batch, ranks: int = 1) -> int:
        """Budget that the planner's search returns for one rank, before graphs are filled."""
        grid, left = candidates(past)
        requests = len(past)
        theta = expected_tokens(grid, requests) / self.times(requests, past.shape[1], batch, ranks)
        best = first_best(theta[: left + 1], TIE)
        if self.min_gain and theta[best] < theta[left] * (1 + self.min_gain):
            return left
        return best

    def times(self, requests: int, gamma: int, batch: Batch, ranks: int = 1) -> Floats:
        """Believed step time of every budget 0..requests * gamma of one rank."""
        prompts = batch.prefill_tokens if self.prefill else 0
        first = requests * ranks + prompts
        sizes = range(first, first + requests * gamma * ranks + 1)
        if self.probes:
            return floor_times(batch, sizes, self.probes, gamma + 1)[::ranks]
        times = batch.cost.step_time_s(requests * ranks, sizes, batch.context_tokens, prompts)
        return np.asarray(times)[::ranks]
