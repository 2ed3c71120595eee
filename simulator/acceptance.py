"""What drafts are worth: position-indexed acceptance traces and the replay that schedulers run on.

Speculative decoding is lossless, so a sequence of the target's own output does not depend on how
far each block was verified. A trace therefore records, for every position as anchor, what the
confidence head said of the block drafted there and how much of it the target would accept under
full verification. A scheduler that verifies ``l`` tokens commits ``min(accepted, l) + 1`` and the
next anchor is that many rows on: every policy replays exactly, from one trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.provenance import Provenance


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A realised trace, ready for the step loop: what the scheduler sees and what would happen.

    Rows are anchor positions of all sequences laid end to end (N rows); a request walks them
    forward from its first row and, past the last row, continues at row 0.

    survival: float32 [N, gamma], cumulative product of the (calibrated) confidences.
    accepted: uint8 [N], draft tokens the target accepts under full verification, 0..gamma.
    sequence_start: int64 [S + 1], first row of each sequence, then N.
    """

    survival: NDArray[np.float32]
    accepted: NDArray[np.uint8]
    sequence_start: NDArray[np.int64]

    @property
    def gamma(self) -> int:
        """Block size."""
        return int(self.survival.shape[1])

    @property
    def rows(self) -> int:
        """Number of anchor positions."""
        return int(self.survival.shape[0])


class AcceptanceModel(Protocol):
    """Anything that can be realised as a replay: a recorded trace, a fitted model, plain rates, a mix."""

    @property
    def name(self) -> str: ...

    @property
    def gamma(self) -> int: ...

    @property
    def has_confidence(self) -> bool:
        """False for drafters without a confidence head: only fixed lengths can be scheduled."""
        ...

    @property
    def provenance(self) -> Provenance: ...

    def replay(self, seed: int) -> Replay:
        """Realise outcomes; the same seed gives the same bytes."""
        ...


TraceKind = Literal["greedy", "sampled"]
