"""A scheduler as the live engine drives it: the same decisions, the budget on the host if it can be."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from simulator.live.engine.timing import Decision
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import admit, on_grid


@runtime_checkable
class _KnowsBudgetEarly(Protocol):
    def budget(self, lagged: Any, batch: Batch) -> int: ...


class ObservedScheduler:
    """Passes decisions through; keeps what they were made from.

    A lagged policy is taken apart: its budget comes from the host's snapshot of earlier steps, so that the
    size of the target's pass is known while the device still drafts; the allocation stays on the device.
    draft_budget: K of the last decision, None where only the device knows it.
    """

    def __init__(self, scheduler: Scheduler, *, keep_records: bool = False) -> None:
        self.inner = scheduler
        self.lag, self.lossless, self.reason = scheduler.lag, scheduler.lossless, scheduler.reason
        self.reads_outcome, self.draft_tokens = scheduler.reads_outcome, scheduler.draft_tokens
        self.draft_budget: int | None = None
        self.records: list[Decision] = []
        self._keep = keep_records

    def schedule(self, survival: Tensor, batch: Batch) -> Tensor:
        """Return the scheduler's own lengths."""
        lengths = self._decide(survival, batch)
        if self._keep:
            lagged = None if batch.lagged is None else batch.lagged.copy()
            self.records.append(
                Decision(survival.clone(), lagged, batch.context_tokens, batch.prefill_tokens, lengths)
            )
        return lengths

    def _decide(self, survival: Tensor, batch: Batch) -> Tensor:
        requests = survival.shape[0]
        lengths: Tensor
        if isinstance(self.inner, _KnowsBudgetEarly) and batch.lagged is not None:
            self.draft_budget = self.inner.budget(batch.lagged, batch)
            lengths = admit(on_grid(survival), self.draft_budget)
        else:
            lengths = self.inner.schedule(survival, batch)
            by_size = self.inner.lengths if isinstance(self.inner, BatchTable) and requests else None
            fixed = self.inner.draft_tokens if by_size is None else by_size(requests)
            self.draft_budget = None if fixed is None else fixed * requests
        return lengths
