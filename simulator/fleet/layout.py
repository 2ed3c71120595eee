"""The layout of a fleet: replicas, their limits, and the router."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from simulator.core.errors import BadInputError
from simulator.engine.limits import EngineLimits, PrefillPool

RouterName = Literal["round-robin", "least-loaded", "power-of-two", "prefix-aware"]

WARMUP, COOLDOWN = 0.2, 0.05
"""Shares of the arrival span at its start and end whose requests are served but not measured: the first
meet an empty system, the last leave one behind. Fixed, so that no policy can gain by it."""


MOST_REPLICAS = 1_000_000
"""Most replicas of a fleet. A choice: each replica is simulated."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of a fleet, the limits of each, and how requests reach them.

    pods: groups with a router each, which take turns at the traffic; None: one pod, or for round robin a pod
        per replica, which is the same. prefix_cache_tokens: tokens that each replica keeps for reuse of
        common prefixes, in addition to ``limits.kv_tokens``; the least recently used blocks go first; None:
        no reuse.
    prefill_workers: workers of one prefill pool that all replicas share, each as fast as
        ``limits.prefill_tokens_per_s``; a pod has its share of them. None: each replica has a pool of its
        own, of ``limits.prefill_workers``.
    """

    replicas: int
    limits: EngineLimits
    router: RouterName = "round-robin"
    pods: int | None = None
    prefix_cache_tokens: int | None = None
    prefill_workers: int | None = None

    def __post_init__(self) -> None:
        self._check_pool()
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise BadInputError(f"must lie in 1..{MOST_REPLICAS:,}", field="replicas", value=self.replicas)
        if self.router not in get_args(RouterName):
            known = ", ".join(get_args(RouterName))
            raise BadInputError("is not known", field="router", value=self.router, remedy=f"one of {known}")
        if self.pods is not None and (self.pods < 1 or self.replicas % self.pods):
            raise BadInputError(
                f"must divide the {self.replicas} replicas evenly", field="pods", value=self.pods
            )
        if self.router == "prefix-aware" and self.prefix_cache_tokens is None:
            raise BadInputError(
                "needs a prefix cache", field="router", value=self.router,
                remedy="give prefix_cache_tokens",
            )  # fmt: skip
        if self.prefix_cache_tokens is not None and self.prefix_cache_tokens < 1:
            raise BadInputError(
                "must be at least 1", field="prefix_cache_tokens", value=self.prefix_cache_tokens
            )

    def _check_pool(self) -> None:
        workers, pods = self.prefill_workers, self.pods or 1
        if workers is None:
            return
        if workers < 1 or workers % pods:
            raise BadInputError(
                f"must be at least 1 and divide evenly among {pods} pods",
                field="prefill_workers",
                value=workers,
            )
        if not self.limits.has_pool:
            raise BadInputError(
                "needs the speed of prefill", field="prefill_workers", value=workers,
                remedy="give prefill_tokens_per_s, with prefill elsewhere",
            )  # fmt: skip

    @property
    def pod_count(self) -> int:
        """Number of pods."""
        apart = self.router == "round-robin" and self.prefill_workers is None
        return self.pods or (self.replicas if apart else 1)

    def pod_pool(self) -> PrefillPool | None:
        """Return the prefill pool that a pod's replicas share; None without a shared pool."""
        if self.prefill_workers is None:
            return None
        return replace(self.limits, prefill_workers=self.prefill_workers // self.pod_count).pool()
