"""Which policy leads, and whether by more than chance: one rule for the plan, its day chart and its report.

Policies are tried with the same random numbers, replication by replication. So a lead is judged by the pairs:
two policies that differ less than their own scatter may still differ for sure, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.statistics import mean_interval

SWITCH_LEAD = 0.01
"""Lead in speed below which a switch of policies is not worthwhile, however sure it is."""


@dataclass(frozen=True, slots=True)
class Lead:
    """By which share one is ahead of another, over paired replications, and the half-width of that.

    ci95 is NaN with fewer than two pairs: then nothing is known of chance.
    """

    share: float
    ci95: float

    @property
    def sure(self) -> bool:
        """Whether it is more than chance; with one pair, whatever is ahead."""
        return self.share > (0.0 if np.isnan(self.ci95) else self.ci95)


def lead(one: ArrayLike, other: ArrayLike) -> Lead:
    """Lead of one over another in positive values, paired by replication; pairs with NaN are left out."""
    ratio = np.log(np.asarray(one, dtype=np.float64) / np.asarray(other, dtype=np.float64))
    known = ratio[~np.isnan(ratio)]
    if not known.size:
        return Lead(float("nan"), float("nan"))
    mean, half = mean_interval(known)
    return Lead(float(np.expm1(mean)), half)


def ahead(one: ArrayLike, other: ArrayLike, least: float = SWITCH_LEAD) -> bool:
    """Whether one leads another for sure and by at least a share."""
    found = lead(one, other)
    return bool(found.sure and found.share >= least)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The policy to run, and those of which it cannot be said that they are worse."""

    policy: str
    tied: tuple[str, ...]

    def __str__(self) -> str:
        if not self.tied:
            return self.policy
        others = " and ".join(self.tied)
        return f"{self.policy} (a tie with {others}: the lead is within what chance explains)"


def recommend(rows: Sequence[Mapping[str, Any]]) -> Recommendation:
    """Fewest GPUs, then the faster at the peak; listed first where all is equal.

    rows: of candidates, with policy, gpus, seed_rates (rates per replica) and seed_tps (mean speeds at the
    peak), one value per replication. Another policy is tied with the first when it neither needs more GPUs
    for sure nor serves slower for sure: equal numbers of GPUs cost the same, and different ones may come
    from rates that chance explains.
    """
    first = min(rows, key=lambda row: (row["gpus"], -float(np.nanmean(row["seed_tps"]))))
    tied = [
        str(row["policy"])
        for row in rows
        if row is not first
        and (row["gpus"] == first["gpus"] or not lead(first["seed_rates"], row["seed_rates"]).sure)
        and not ahead(first["seed_tps"], row["seed_tps"])
    ]
    return Recommendation(str(first["policy"]), tuple(tied))
