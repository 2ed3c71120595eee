"""Results of trials as a search would have found them, for tests of what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.capacity.results import TrialResult
from simulator.engine.batch import WAITS
from simulator.sla.verdict import TermResult


def trial_result(
    policy: str,
    rate_per_s: float,
    *,
    met: bool = True,
    seed_tps: Sequence[float] = (),
    terms: Sequence[TermResult] = (),
) -> TrialResult:
    """One trial with what a test is about; nothing waited, and no metrics were measured."""
    nan = math.nan
    return TrialResult(
        policy=policy, rate_per_s=rate_per_s, met=met, saturated=False, attainment=nan, attainment_ci95=nan,
        goodput_per_s=nan, requests=100, terms=tuple(terms), metrics=None, steps_outside_fraction=0.0,
        early_stop_loss=0.0, rows_mean=1.0,
        queue_trend_per_s=0.0, queue_trend_ci95=nan, replications=max(len(seed_tps), 1),
        seed_tps=tuple(seed_tps), waits=dict.fromkeys(WAITS, 0.0),
    )  # fmt: skip
