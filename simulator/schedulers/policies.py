"""The verification policies: plain objects with one method, ``schedule``.

Each says whether it is lossless. A policy is lossless when admitting draft token x[r,k] does not
depend on x[r,k] itself (paper, appendix A); it may depend on x[r,<k], on other requests and on
earlier steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import device

from simulator.core.arrays import Array, Floats
from simulator.core.errors import BadInputError
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import (
    LARGE,
    admit,
    best_budget,
    confident,
    descending,
    first_descent,
    global_maximum,
    namespace,
    on_grid,
    throughput_of_budget,
)

MOST_LAG = 1000
"""Steps by which a budget may be old: a choice. Production uses 2, and each step of it is kept in memory."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Verify the same number of draft tokens for every request, whatever the confidence or the load.

    ``Fixed(0)`` is autoregressive decoding and ``Fixed(1)`` with a one-layer drafter is MTP-1, the
    production baseline of the paper.
    """

    length: int
    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "the length never depends on a token"
    reads_outcome: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.length < 0:
            raise BadInputError("must not be negative", field="length", value=self.length)

    @property
    def draft_tokens(self) -> int | None:
        """A fixed length is all the drafter is asked for."""
        return self.length

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Return the fixed length for every request."""
        requests, gamma = survival.shape
        if self.length > gamma:
            raise BadInputError(
                f"is longer than the block of {gamma} tokens", field="length", value=self.length,
                remedy=f"use at most fixed:{gamma}, or a drafter with a larger block",
            )  # fmt: skip
        xp = namespace(survival)
        return xp.full(requests, self.length, dtype=xp.int64, device=device(survival))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Verify up to the first token whose own confidence is below a static threshold (paper, figure 5)."""

    threshold: float
    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "confidence k is computed before token k is drawn"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise BadInputError("must be between 0 and 1", field="threshold", value=self.threshold)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Length of the prefix in which each token's own confidence reaches the threshold."""
        xp = namespace(survival)
        reached = xp.astype(confident(survival, self.threshold), xp.int64)
        return xp.sum(xp.cumulative_prod(reached, axis=1), axis=1)


@dataclass(frozen=True, slots=True)
class DSpark:
    """Algorithm 1: admit by survival while throughput strictly improves, stop at the first that does not."""

    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "x[r,k] is decided on by survivals at least as high, and none depends on it"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Budget by early stop over this step's survivals, then the most likely candidates."""
        grid = on_grid(survival)
        ordered = descending(grid)
        return admit(grid, first_descent(throughputs(grid, batch, ordered)), ordered)


@dataclass(frozen=True, slots=True)
class DSparkAsync:
    """What production runs: budget by global search ``lag`` steps before, allocation by current survival.

    The next step's size must be known before the current one ends (graph replay, overlapped
    scheduling); the delay is at once the causal barrier that makes the global search lossless, and a
    global search is not trapped by the staircase of a real throughput curve (paper section 5.2).
    With ``lag=0`` it is the leaking scheduler of appendix A. Requests that were not there ``lag``
    steps before count with survival 1, as in SGLang.
    """

    lag: int = 2
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.lag <= MOST_LAG:
            raise BadInputError(f"must lie in 0..{MOST_LAG}", field="lag", value=self.lag, remedy="usually 2")

    @property
    def lossless(self) -> bool:
        """Only the delay keeps this step's tokens out of the budget."""
        return self.lag > 0

    @property
    def reason(self) -> str:
        """Why it is, or is not, lossless."""
        if self.lossless:
            return f"the budget is {self.lag} steps old, and deeper tokens never displace shallower ones"
        return "a global search sees confidence k+1, which depends on token k (appendix A)"

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Global budget over the lagged survivals, then the most likely candidates of this step."""
        past = survival if batch.lagged is None else batch.lagged
        return admit(on_grid(survival), self.budget(past, batch))

    def budget(self, lagged: Array, batch: Batch) -> int:
        """Return the step's draft budget, known before it has drafted: no survival of this step enters."""
        return most_productive(on_grid(lagged), batch)


@dataclass(frozen=True, slots=True)
class Tiered:
    """TensorRT-LLM's form: the budget is one of a few captured sizes, ``tier`` draft tokens a request.

    The tier with the best throughput by the lagged survivals wins, the smaller on ties. The engine
    also allocates from the lagged snapshot; here the tokens go to the most likely candidates of now.
    """

    tiers: tuple[int, ...]
    lag: int = 2
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "the budget comes from earlier steps"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not self.tiers or list(self.tiers) != sorted(set(self.tiers)) or self.tiers[0] < 0:
            raise BadInputError("must be increasing lengths of 0 or more", field="tiers", value=self.tiers)
        if self.lag < 1:
            raise BadInputError("must be at least 1 to be lossless", field="lag", value=self.lag)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Best captured tier over the lagged survivals, then the most likely candidates of this step."""
        past = survival if batch.lagged is None else batch.lagged
        return admit(on_grid(survival), self.budget(past, batch))

    def budget(self, lagged: Array, batch: Batch) -> int:
        """Draft tokens of the best captured tier, known before this step has drafted."""
        requests, gamma = lagged.shape
        budgets: list[int] = [requests * tier for tier in self.tiers if tier <= gamma]
        if not budgets:
            raise BadInputError(
                f"are all longer than the block of {gamma} tokens", field="tiers", value=self.tiers,
                remedy=f"give one of at most {gamma}",
            )  # fmt: skip
        theta = throughputs(on_grid(lagged), batch)
        xp = namespace(theta)
        best = global_maximum(xp.take(theta, xp.asarray(budgets, device=device(theta)), axis=0))
        return budgets[best]


@dataclass(frozen=True, slots=True)
class Oracle:
    """Knows how many tokens will be accepted and maximises each step's realised throughput.

    Given the outcome as survival (1 up to the accepted length, then 0), the same search returns the
    best any scheduler could have done in the step: a bound, not a policy one can deploy. It bounds each
    step exactly and a run closely: where cost is convex and blocks alternate between good and bad, looking
    ahead over steps can gain a little more (the tests allow 1% over a run).
    """

    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = False
    reason: ClassVar[str] = "it looks at the very outcome it decides on"
    reads_outcome: ClassVar[bool] = True
    draft_tokens: ClassVar[int | None] = None

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Global search over certainties."""
        grid = on_grid(survival)
        if grid.shape[0] * grid.shape[1] >= LARGE:
            return admit(grid, most_productive(grid, batch))
        ordered = descending(grid)
        return admit(grid, global_maximum(throughputs(grid, batch, ordered)), ordered)


def throughputs(grid: Array, batch: Batch, ordered: Array | None = None) -> Array:
    """Compute expected tokens/s of every draft budget 0..R*gamma, from survival on the grid [R, gamma].

    ordered: ``descending(grid)``, where the caller has it already.
    """
    return throughput_of_budget(grid, grid.shape[0], _step_times(grid, batch), ordered)


def most_productive(grid: Array, batch: Batch) -> int:
    """Find the draft budget with the most expected tokens/s, the smallest on ties."""
    return best_budget(grid, grid.shape[0], _step_times(grid, batch))


def _step_times(grid: Array, batch: Batch) -> Floats:
    """Believed step time of every draft budget 0..R*gamma, in seconds."""
    requests, gamma = grid.shape
    first = requests + batch.prefill_tokens
    sizes = range(first, first + requests * gamma + 1)
    return np.asarray(batch.cost.step_time_s(requests, sizes, batch.context_tokens, batch.prefill_tokens))
