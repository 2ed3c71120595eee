"""Static confidence thresholds: verified and committed tokens, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.trace import AcceptanceModel, anchor_rows
from simulator.core.errors import BadInputError
from simulator.schedulers.search import confident

if TYPE_CHECKING:
    import pandas as pd


def threshold_sweep(model: AcceptanceModel, thresholds: Sequence[float], seed: int) -> pd.DataFrame:
    """Verify each block up to its first draft whose confidence is below the threshold (paper, figure 5).

    The raw confidence of the single draft decides, not the product. Every sequence of the replay is walked
    from its first row to its last, each step advancing by what it committed.

    Returns one row per threshold: ``threshold, verified_length_mean, accepted_length_mean,
    acceptance_rate``. The bonus token counts in both lengths, and the rate is accepted over verified.
    Raises ``BadInputError`` for a model without confidences and for thresholds outside 0..1.
    """
    import pandas as pd  # slow to import

    if not model.has_confidence:
        raise BadInputError(
            "has no confidence head, so no threshold applies",
            source=model.name,
            remedy="choose a DSpark model or a trace with confidences",
        )
    if not len(thresholds):
        raise BadInputError("needs at least one", source=model.name, field="thresholds")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise BadInputError("must be within 0..1", source=model.name, field="thresholds", value=threshold)
    replay = model.replay(seed, raw=True)
    rows = []
    for threshold in thresholds:
        verified = _leading(confident(replay.survival, threshold)) + 1
        committed = np.minimum(replay.accepted.astype(np.int64) + 1, verified)
        steps = anchor_rows(replay, committed)
        rows.append(
            {
                "threshold": float(threshold),
                "verified_length_mean": verified[steps].mean(),
                "accepted_length_mean": committed[steps].mean(),
                "acceptance_rate": committed[steps].sum() / verified[steps].sum(),
            }
        )
    return pd.DataFrame(rows)


def _leading(passes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many drafts of each block pass before the first that does not, [N]."""
    leading: NDArray[np.int64] = np.logical_and.accumulate(passes, axis=1).sum(axis=1)
    return leading
