"""Which policy runs at which rate, and the fleet over a day."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd

from simulator.capacity.results import TrialResult
from simulator.core.arrays import Floats
from simulator.planning.sizing import Sizing
from simulator.planning.tables.policies import feasible_rates
from simulator.sweeps.leads import Lead, Recommendation, lead, tied_with, winner


@dataclass(frozen=True, slots=True)
class RateBand:
    """A range of rates per replica in which one policy is run.

    tied: policies that are not slower for sure. margin: its smallest lead over the next policy.
    """

    from_per_s: float
    to_per_s: float
    policy: str
    tied: tuple[str, ...]
    margin: float

    def follows(self, other: RateBand) -> bool:
        """Whether another band, at lower rates, says the same."""
        return (self.policy, self.tied) == (other.policy, other.tied)

    def extended(self, other: RateBand) -> RateBand:
        """Return this band up to the end of another, with the smaller margin of the two."""
        margin = float(np.fmin(self.margin, other.margin))
        return replace(self, to_per_s=other.to_per_s, margin=margin)

    def as_row(self) -> dict[str, object]:
        """As a row of ``switches.csv``."""
        return asdict(self) | {"tied": " and ".join(self.tied)}


def switch_table(trials: Sequence[TrialResult], policies: Sequence[str], recommended: str) -> pd.DataFrame:
    """Which policy to run at which rate per replica, among those that keep the SLA there.

    The recommended one, unless another serves users faster for sure; that one then keeps its place until it
    is overtaken in the same way (``leads.winner``). Speeds (mean TPS) are interpolated linearly between
    trials, replication by replication. tied: policies that are not slower for sure. margin: the smallest
    lead over the next policy in the band, negative where that one is ahead by chance; NaN where no other
    keeps the SLA.
    """
    top = max((t.rate_per_s for t in trials if t.met), default=0.0)
    rates = np.linspace(min(t.rate_per_s for t in trials), top, 400)
    speed = {policy: _speeds_at(rates, trials, policy) for policy in policies}
    bands: list[RateBand] = []
    for column, rate in enumerate(rates):
        here = {
            policy: values[column] for policy, values in speed.items() if not np.isnan(values[column]).all()
        }
        if not here:
            continue
        candidates = [bands[-1].policy, recommended] if bands else [recommended]
        running = next((policy for policy in candidates if policy in here), None)
        band = _band_at(float(rate), here, running)
        if bands and band.follows(bands[-1]):
            bands[-1] = bands[-1].extended(band)
        else:
            bands.append(band)
    return pd.DataFrame([band.as_row() for band in bands], columns=[each.name for each in fields(RateBand)])


def _band_at(rate: float, speeds: Mapping[str, Floats], running: str | None) -> RateBand:
    """Tell which policy runs at one rate, and by how much it leads the next."""

    def lead_over(one: str, other: str) -> Lead:
        return lead(speeds[one], speeds[other])

    mean = {policy: float(np.nanmean(values)) for policy, values in speeds.items()}
    policy = winner(speeds, running or max(mean, key=lambda each: mean[each]), lead_over)
    others = [value for name, value in mean.items() if name != policy]
    margin = mean[policy] / max(others) - 1 if others else math.nan
    return RateBand(rate, rate, policy, tied_with(policy, speeds, lead_over), margin)


def _speeds_at(rates: Floats, trials: Sequence[TrialResult], policy: str) -> Floats:
    """Mean speed of every replication at each rate, [rates, replications]; NaN above the last that held."""
    mine = [t for t in trials if t.policy == policy and t.met]
    if not mine:
        return np.full((rates.size, 1), np.nan)
    mine.sort(key=lambda t: t.rate_per_s)
    at, speeds = np.array([t.rate_per_s for t in mine]), np.array([t.seed_tps for t in mine])
    return np.stack(
        [np.interp(rates, at, column, left=column[0], right=np.nan) for column in speeds.T], axis=1
    )


def day_table(
    demand: pd.DataFrame, sizing: Sizing, plans: pd.DataFrame, switches: pd.DataFrame, replicas: int
) -> pd.DataFrame:
    """Tabulate the day.

    The rate on each replica of the planned fleet, the policy to run then with those that it is tied with,
    prefill GPUs, and each policy's decode replicas and GPUs of both kinds.
    """
    table = demand.assign(rate_per_replica_per_s=demand["rate_per_s"] / replicas)
    bands = [_band_of(switches, rate) for rate in table["rate_per_replica_per_s"]]
    table["policy"] = [policy for policy, _ in bands]
    table["tied"] = [tied for _, tied in bands]
    table["run"] = [Recommendation(policy, (tied,) if tied else ()).label for policy, tied in bands]
    for policy, sustained in feasible_rates(plans).items():
        fleets = [sizing.fleet(sustained, rate) for rate in demand["rate_per_s"]]
        table["prefill_gpus"] = [fleet.prefill_gpus for fleet in fleets]
        table[f"replicas {policy}"] = [fleet.replicas for fleet in fleets]
        table[f"gpus {policy}"] = [fleet.gpus for fleet in fleets]
    return table


def _band_of(switches: pd.DataFrame, rate: float) -> tuple[str, str]:
    """Find the policy to run at a rate and those tied with it; empty where no policy keeps the SLA."""
    bands = switches[switches["to_per_s"] >= rate]
    if not len(switches):
        return "", ""
    band = (bands if len(bands) else switches.tail(1)).iloc[0]
    return str(band["policy"]), str(band["tied"])
