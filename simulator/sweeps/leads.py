"""Leads of one policy over another: one rule for ``compare``, the plan and its day chart.

A lead counts when it is larger than its 95% interval. The running policy stays until another policy leads it.
A plan runs policies with the same random numbers in each replication, and judges a lead by the pairs: two
policies may differ for sure by less than the scatter of each. A frontier has an interval for each policy;
there a lead counts when it exceeds the sum of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.statistics import mean_interval


@dataclass(frozen=True, slots=True)
class Lead:
    """Lead of one over another as a share, over paired replications, and its 95% half-width.

    ci95 is NaN for fewer than two pairs, which give no estimate of chance.
    """

    share: float
    ci95: float

    @property
    def sure(self) -> bool:
        """Whether the lead exceeds chance; a single pair counts as it is."""
        return self.share > (0.0 if np.isnan(self.ci95) else self.ci95)


def lead(one: ArrayLike, other: ArrayLike) -> Lead:
    """Return the lead of one over another in positive values, by replication, without pairs with NaN."""
    ratio = np.log(np.asarray(one, dtype=np.float64) / np.asarray(other, dtype=np.float64))
    known = ratio[~np.isnan(ratio)]
    if not known.size:
        return Lead(float("nan"), float("nan"))
    mean, half = mean_interval(known)
    return Lead(float(np.expm1(mean)), half)


def lead_of_means(one: float, half: float, other: float, other_half: float) -> Lead:
    """Return the lead of one mean over another, each with its own half-width."""
    return Lead((one - other) / other, (half + other_half) / other)


def winner(policies: Iterable[str], running: str, lead_over: Callable[[str, str], Lead]) -> str:
    """Keep the running policy unless others lead it for sure; then take the one with the largest lead.

    lead_over: the lead of its first policy over its second.
    """
    leads = {policy: lead_over(policy, running) for policy in policies if policy != running}
    sure = {policy: each.share for policy, each in leads.items() if each.sure}
    return max(sure, key=lambda policy: sure[policy], default=running)


def tied_with(policy: str, policies: Iterable[str], lead_over: Callable[[str, str], Lead]) -> tuple[str, ...]:
    """Return the policies that a policy does not lead for sure."""
    return tuple(other for other in policies if other != policy and not lead_over(policy, other).sure)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The policy to run, and the policies that are not worse for sure."""

    policy: str
    tied: tuple[str, ...]

    @property
    def label(self) -> str:
        """The policy and its ties."""
        return f"{self.policy} (a tie with {' and '.join(self.tied)})" if self.tied else self.policy

    def __str__(self) -> str:
        return f"{self.label}; the lead is within what chance explains" if self.tied else self.policy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that may be recommended, with the GPUs of its fleet.

    seed_rates: requests/s per replica. seed_tps: mean speeds at the peak in tokens/s/user. Both have one
    value per replication.
    """

    policy: str
    gpus: float
    seed_rates: Sequence[float]
    seed_tps: Sequence[float]


def recommend(candidates: Sequence[Candidate]) -> Recommendation:
    """Recommend the fewest GPUs, then the fastest at the peak, then the first listed.

    A policy is tied with the first when it needs no more GPUs for sure and serves no slower for sure. Equal
    numbers of GPUs cost the same, and different numbers may come from rates that differ by chance.
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
