"""What Algorithm 1's early stop gives away where throughput over the budget has more than one peak.

A step time that rises in stairs (padded batch sizes, tiles of a matrix product) makes throughput fall just
behind a stair and rise again up to the next one. Algorithm 1 stops at the first fall; a search over all
budgets does not (paper, section 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.core.arrays import Array
from simulator.schedulers.policies import DSpark, throughputs
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import admit, first_descent, global_maximum, on_grid

MATERIAL_LOSS = 0.01
"""Loss from which on a reader is told: below, it is within what a sweep's interval allows."""


@dataclass(slots=True)
class WatchedDSpark:
    """Decide as ``DSpark`` does, and add up how much more the best budget of each step promised."""

    lost: float = 0.0
    steps: int = 0
    lag: ClassVar[int] = DSpark.lag
    lossless: ClassVar[bool] = DSpark.lossless
    reason: ClassVar[str] = DSpark.reason
    reads_outcome: ClassVar[bool] = DSpark.reads_outcome
    draft_tokens: ClassVar[int | None] = DSpark.draft_tokens

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Return the lengths of ``DSpark``."""
        grid = on_grid(survival)
        theta = throughputs(grid, batch)
        budget = first_descent(theta)
        self.lost += 1 - float(theta[budget]) / float(theta[global_maximum(theta)])
        self.steps += 1
        return admit(grid, budget)


def watched(scheduler: Scheduler) -> Scheduler:
    """Return the scheduler, watched where it stops early; for one run, as what it sees adds up."""
    return WatchedDSpark() if isinstance(scheduler, DSpark) else scheduler


def early_stop_loss(scheduler: Scheduler) -> float | None:
    """Mean over decode steps of the share of expected throughput given away; None where nothing was watched.

    Of one step: 1 - Theta(budget taken) / Theta(best budget), over the same survivals and believed times.
    """
    if not isinstance(scheduler, WatchedDSpark) or not scheduler.steps:
        return None
    return scheduler.lost / scheduler.steps


def early_stop_note(policy: str, loss: float | None, where: str) -> str | None:
    """Say how much a policy loses by stopping early (``where``: at which load); None below 1%."""
    if loss is None or not loss >= MATERIAL_LOSS:
        return None
    return (
        f"{policy} gives away {loss:.0%} of a step's expected throughput {where}: Algorithm 1 stops at the "
        "first draft token that does not raise throughput, and on this curve more of them raise it again; "
        "dspark-async searches all budgets"
    )
