"""From a sustainable rate to replicas, prefill workers, GPU hours and money, defined once for every table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from simulator.capacity.server import share_at_rate
from simulator.core.units import parse_percent
from simulator.planning.prefill_sizing import PoolAsked, PoolSizing
from simulator.planning.scenario.scenario import Scenario
from simulator.sla.terms import Sla, Term
from simulator.traffic.sources import ReplayTraffic, Traffic

NO_SPEED = (
    "prefill runs elsewhere at no stated speed: its GPUs are not known, so no cost is stated, and time to "
    "first token leaves prefill out; give replica.prefill_tokens_per_s (prompt tokens per second of one "
    "worker), use a profile that has measured it, or set replica.prefill: chunked"
)
"""What a plan says instead of a cost when it does not know how fast a prefill worker is."""


@dataclass(frozen=True, slots=True)
class FleetSize:
    """What a fleet consists of: decode replicas, prefill workers and the GPUs of both; NaN is not known."""

    replicas: float
    prefill_workers: float
    decode_gpus: float
    prefill_gpus: float
    gpus: float


UNKNOWN_FLEET = FleetSize(math.nan, math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class FleetCost:
    """GPU hours of decode and prefill together, and cost per million output tokens, in the price's currency.

    Of the peak's fleet kept all the time, and of one that follows demand.
    """

    gpu_hours: float
    gpu_hours_following_demand: float
    cost_per_million_output_tokens: float
    cost_per_million_following_demand: float


@dataclass(frozen=True, eq=False)
class Sizing:
    """What a scenario demands and what its GPUs cost.

    peak_per_s, profile: demanded requests/s, at most and by the time of day (start_s, end_s, rate_per_s).
    gpus: of one replica. hours: of the profile. output_tokens: in all of it; ``tokens_per_request`` of
    them each. pool: how prefill workers are counted where prompts are prefilled elsewhere, None where they
    are not or where a worker's speed is not known (``prefill_known`` says which). context_tokens: of a
    request in the batch, in the mean over all that decode. sized: workers of the pool by requests/s, as far
    as they were counted before (``with_pools``).
    """

    peak_per_s: float
    headroom: float
    gpus: int
    gpu_hour: float
    hours: float
    output_tokens: float
    tokens_per_request: float
    profile: pd.DataFrame
    pool: PoolSizing | None
    prefill_known: bool
    context_tokens: float
    sized: Mapping[float, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: Scenario, traffic: Traffic, profile: pd.DataFrame, sla: Sla) -> Sizing:
        """Size a scenario whose demand over time is ``profile``."""
        width_s = (profile["end_s"] - profile["start_s"]).to_numpy()
        requests = float(profile["rate_per_s"].to_numpy() @ width_s)
        drawn = share_at_rate(traffic, 1.0, 20_000, scenario.search.seed)
        if isinstance(traffic, ReplayTraffic):
            drawn = traffic.workload(scenario.search.seed)
        sample = drawn.output_tokens
        limits, gpus = scenario.limits(), scenario.replica_gpus()
        speed = limits.prefill_tokens_per_s if limits.prefill == "elsewhere" else None
        pool = None
        if speed is not None:
            per_worker = scenario.replica.prefill_gpus or gpus
            pool = PoolSizing(traffic, speed, per_worker, sla.terms, scenario.search.seed)
        return cls(
            peak_per_s=float(profile["rate_per_s"].max()),
            headroom=parse_percent(scenario.fleet.headroom, "fleet.headroom"),
            gpus=gpus,
            gpu_hour=scenario.price.gpu_hour,
            hours=float(width_s.sum()) / 3600,
            output_tokens=requests * float(sample.mean()),
            tokens_per_request=float(sample.mean()),
            profile=profile,
            pool=pool,
            prefill_known=limits.prefill != "elsewhere" or pool is not None,
            # A request of n output tokens is in the batch n times as long, with half of them on average.
            context_tokens=float(np.average(drawn.prompt_tokens + sample / 2, weights=sample)),
        )

    def replicas(self, rate_per_s: float, demanded_per_s: float | None = None) -> int:
        """Replicas for a demanded rate (default: the peak) with headroom, when each sustains a rate."""
        return max(1, math.ceil(self._with_headroom(demanded_per_s) / rate_per_s - 1e-9))

    def prefill_workers(
        self, demanded_per_s: float | None = None, terms: Sequence[Term] | None = None
    ) -> float:
        """Workers of the prefill pool for a demanded rate with headroom.

        terms: of another SLA than the scenario's. 0 where decode replicas prefill, NaN where a worker's speed
        is not known or no number of workers is enough.
        """
        if self.pool is None:
            return 0 if self.prefill_known else math.nan
        rate = self._pool_rate(demanded_per_s)
        if terms is None and rate in self.sized:
            return self.sized[rate]
        found = self.pool.workers(rate, terms)
        return math.nan if found is None else found

    def pools(self, growth: Sequence[float]) -> list[PoolAsked]:
        """Return the pools of every demanded rate, and of the peak when it has grown: cells of a sweep."""
        if self.pool is None:
            return []
        grown = [self.peak_per_s * (1 + each) for each in (0.0, *growth)]
        rates = dict.fromkeys(self._pool_rate(each) for each in [*grown, *self.profile["rate_per_s"]])
        return [PoolAsked(self.pool, rate) for rate in rates]

    def with_pools(self, pools: Sequence[PoolAsked], workers: Sequence[float]) -> Sizing:
        """Return the same demand that knows the workers of some pools; NaN: no number is enough."""
        known = (each if math.isnan(each) else int(each) for each in workers)
        return replace(self, sized=dict(zip((each.rate_per_s for each in pools), known, strict=True)))

    def fleet(
        self, rate_per_s: float, demanded_per_s: float | None = None, terms: Sequence[Term] | None = None
    ) -> FleetSize:
        """Replicas, prefill workers and the GPUs of both, when each replica sustains a rate."""
        if not rate_per_s > 0:
            return UNKNOWN_FLEET
        replicas = self.replicas(rate_per_s, demanded_per_s)
        workers = self.prefill_workers(demanded_per_s, terms)
        prefill_gpus = workers * (self.pool.gpus if self.pool else 1)
        decode_gpus = replicas * self.gpus
        return FleetSize(replicas, workers, decode_gpus, prefill_gpus, decode_gpus + prefill_gpus)

    def costs(self, rate_per_s: float) -> FleetCost:
        """Price the peak's fleet kept all the time, and one that follows demand. NaN as in ``fleet``."""
        width_h = (self.profile["end_s"] - self.profile["start_s"]).to_numpy() / 3600
        following = [self.fleet(rate_per_s, demanded).gpus for demanded in self.profile["rate_per_s"]]
        following_h = float(np.array(following) @ width_h)
        return FleetCost(
            gpu_hours=self.fleet(rate_per_s).gpus * self.hours,
            gpu_hours_following_demand=following_h,
            cost_per_million_output_tokens=self.cost(rate_per_s),
            cost_per_million_following_demand=self._per_million(following_h),
        )

    def cost(self, rate_per_s: float, terms: Sequence[Term] | None = None) -> float:
        """Cost per million output tokens of the peak's fleet, decode and prefill, kept all the time."""
        return self._per_million(self.fleet(rate_per_s, None, terms).gpus * self.hours)

    def cost_at_throughput(self, tokens_per_s: float) -> float:
        """Price a million output tokens if every replica decoded so many tokens/s.

        A request's first token comes with its prefill, so that one less than its output is decoded.
        """
        return self.cost(tokens_per_s / max(self.tokens_per_request - 1, 1.0))

    def with_prefill_speed(self, factor: float) -> Sizing:
        """Return the same demand with prefill workers ``factor`` times as fast."""
        if self.pool is None:
            return self
        return replace(self, pool=replace(self.pool, tokens_per_s=self.pool.tokens_per_s * factor), sized={})

    def _pool_rate(self, demanded_per_s: float | None) -> float:
        """Return the rate with headroom, rounded, so that a day's two equal halves are sized once."""
        return float(f"{self._with_headroom(demanded_per_s):.6g}")

    def _with_headroom(self, demanded_per_s: float | None) -> float:
        return (self.peak_per_s if demanded_per_s is None else demanded_per_s) * (1 + self.headroom)

    def _per_million(self, gpu_hours: float) -> float:
        return gpu_hours * self.gpu_hour / (self.output_tokens / 1e6)
