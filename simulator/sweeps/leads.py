"""Which policy leads, and whether by more than chance: one rule for ``compare``, the plan and its day chart.

A lead counts when it is larger than its 95% interval, and the policy that runs stays until another leads it.
A plan tries policies with the same random numbers, replication by replication, so that a lead is judged by
the pairs: two policies that differ less than their own scatter may still differ for sure, and the other way
round. A frontier states an interval for each policy; there a lead counts when it exceeds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.statistics import mean_interval


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


def lead_of_means(one: float, half: float, other: float, other_half: float) -> Lead:
    """Lead of one mean over another where each comes with its own half-width."""
    return Lead((one - other) / other, (half + other_half) / other)


def winner(policies: Iterable[str], running: str, lead_over: Callable[[str, str], Lead]) -> str:
    """Keep the policy that runs unless others lead it for sure; then take the one with the largest lead.

    lead_over: the lead of its first policy over its second.
    """
    leads = {policy: lead_over(policy, running) for policy in policies if policy != running}
    sure = {policy: each.share for policy, each in leads.items() if each.sure}
    return max(sure, key=lambda policy: sure[policy], default=running)


def tied_with(policy: str, policies: Iterable[str], lead_over: Callable[[str, str], Lead]) -> tuple[str, ...]:
    """Other policies that a policy does not lead for sure."""
    return tuple(other for other in policies if other != policy and not lead_over(policy, other).sure)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The policy to run, and those of which it cannot be said that they are worse."""

    policy: str
    tied: tuple[str, ...]

    @property
    def label(self) -> str:
        """The policy, and those that it is tied with."""
        return f"{self.policy} (a tie with {' and '.join(self.tied)})" if self.tied else self.policy

    def __str__(self) -> str:
        return f"{self.label}; the lead is within what chance explains" if self.tied else self.policy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that may be recommended, with the GPUs of its fleet.

    seed_rates: requests/s per replica, seed_tps: mean speeds at the peak in tokens/s/user, both one value
    per replication.
    """

    policy: str
    gpus: float
    seed_rates: Sequence[float]
    seed_tps: Sequence[float]


def recommend(candidates: Sequence[Candidate]) -> Recommendation:
    """Fewest GPUs, then the faster at the peak; listed first where all is equal.

    Another policy is tied with the first when it neither needs more GPUs for sure nor serves slower for sure:
    equal numbers of GPUs cost the same, and different ones may come from rates that chance explains.
    """
    first = min(candidates, key=lambda each: (each.gpus, -float(np.nanmean(each.seed_tps))))
    tied = [
        each.policy
        for each in candidates
        if each is not first
        and (each.gpus == first.gpus or not lead(first.seed_rates, each.seed_rates).sure)
        and not lead(first.seed_tps, each.seed_tps).sure
    ]
    return Recommendation(first.policy, tuple(tied))
