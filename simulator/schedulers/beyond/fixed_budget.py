"""A constant number of draft tokens for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.core.arrays import Array
from simulator.core.errors import BadInputError
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import admit, on_grid

_MOST_BUDGET = 2**31
"""Drafts of a batch, more than any batch has: a choice, so that sums of them stay exact."""


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """Verify the ``budget`` most likely draft tokens of the batch in every step, whatever the load.

    Rule (TETRIS, arXiv 2502.15197): capacity is a constant, and the best candidates by survival fill it. It
    needs survival and nothing else.
    """

    budget: int
    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "x[r,k] competes by survivals up to k, for a number that never changes"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.budget <= _MOST_BUDGET:
            raise BadInputError(
                f"must lie in 0..{_MOST_BUDGET}", field="budget", value=self.budget,
                remedy="as in fixed-budget:64",
            )  # fmt: skip

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Return the lengths of the most likely candidates of this step."""
        return admit(on_grid(survival), self.budget)
