"""What one live step took, and what was decided in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


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
