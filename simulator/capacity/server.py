"""One replica and its share of the traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from simulator.core.errors import BadInputError
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.sla.terms import Sla
from simulator.traffic.arrivals import ClosedLoop, DiurnalArrivals, PoissonArrivals
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True)
class Server:
    """One replica of a policy under an SLA.

    plans: one per traffic class, of one policy.
    """

    plans: tuple[Setup, ...]
    limits: EngineLimits
    sla: Sla
    traffic: Traffic
    requests: int
    seed: int
    prefix_cache_tokens: int | None = None

    @property
    def policy(self) -> str:
        """Name of the policy."""
        return self.plans[0].policy.name

    def replication(self, index: int) -> Server:
        """Return the same server with other random numbers; number 0 is the server itself."""
        return replace(self, seed=replication_seed(self.seed, index))


def replication_seed(seed: int, index: int) -> int:
    """Return the seed of a replication; number 0 keeps the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def share_at_rate(traffic: Traffic, rate_per_s: float, requests: int, seed: int) -> Workload:
    """Draw the requests of one replica whose share of the traffic arrives at ``rate_per_s``.

    A process keeps its burstiness at the lower rate. A process that varies over the day becomes Poisson at a
    fixed rate, because a trial is short against a day. A recording is resampled as a whole, at the rate of
    its peak (``replay.resampled``).
    """
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise BadInputError("must be positive", field="rate", value=rate_per_s)
    if isinstance(traffic, SyntheticTraffic):
        if isinstance(traffic.arrivals, ClosedLoop):
            raise BadInputError("has no rate to plan for", field="traffic", value="closed")
        if isinstance(traffic.arrivals, DiurnalArrivals):
            return replace(traffic, arrivals=PoissonArrivals(rate_per_s)).workload(seed, requests=requests)
        return traffic.scaled(rate_per_s / traffic.arrivals.rate_per_s).workload(seed, requests=requests)
    if isinstance(traffic, ReplayTraffic):
        return traffic.trial(rate_per_s, requests, seed)
    raise BadInputError("cannot be planned for", field="traffic", value=type(traffic).__name__)
