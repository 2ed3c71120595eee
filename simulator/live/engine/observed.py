"""A scheduler as the live engine drives it: the same decisions, the budget on the host if it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.beyond.memory import Remembering
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import admit, on_grid


@dataclass(slots=True)
class StepTiming:
    """Where a step's time went, in seconds, and how much of it was padding.

    schedule_s: host time of the scheduler. visible_schedule_s: device time between the end of the draft
    and the beginning of the target's pass, what is left of scheduling once both have overlapped.
    capture_s: recording graphs, which the duration leaves out but the parts may contain.
    """

    draft_s: float
    schedule_s: float
    visible_schedule_s: float
    verify_s: float
    duration_s: float
    requests: int
    batch_tokens: int
    padded_requests: int
    padded_tokens: int
    capture_s: float = 0.0


@dataclass(slots=True)
class Decision:
    """A step as the scheduler met it, for decision parity: tensors as they were, numbers of the batch."""

    survival: torch.Tensor
    lagged: NDArray[np.float32] | None
    context_tokens: float
    prefill_tokens: int
    lengths: torch.Tensor


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
        if isinstance(scheduler, Remembering):
            raise scheduler.unstarted()
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
