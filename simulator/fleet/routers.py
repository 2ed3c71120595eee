"""Routers: each chooses a replica for every request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.traffic.workload import PrefixBlocks

SPILL = 1.25
"""A prefix-aware router skips a cached replica with more than this times the mean load. A choice."""


@dataclass(slots=True)
class Board:
    """State of a pod that routers read.

    Requests on each replica, [replicas]; the replicas that hold each prefix block; the number of requests
    served in all; and when the next request arrives, seconds, before which no router reads any of this.
    """

    loads: NDArray[np.int64]
    holders: dict[int, set[int]] = field(default_factory=dict)
    served: int = 0
    next_arrival_s: float = 0.0

    def leave(self, replica: int, count: int) -> None:
        """Note that so many requests have left a replica."""
        self.loads[replica] -= count
        self.served += count


class Router(Protocol):
    """Chooses a replica of the pod for a request, by the state at its arrival."""

    def choose(self, request: int) -> int:
        """Return the index of a replica."""
        ...


@dataclass(slots=True)
class RoundRobin:
    """One replica after the other, whatever their load."""

    replicas: int
    _next: int = -1

    def choose(self, request: int) -> int:
        """Return the replica after the last one."""
        self._next = (self._next + 1) % self.replicas
        return self._next


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The replica with the fewest requests, waiting or running; ties are broken at random."""

    loads: NDArray[np.int64]
    stream: np.random.Generator

    def choose(self, request: int) -> int:
        """Return one of the least loaded replicas."""
        lowest = np.flatnonzero(self.loads == self.loads.min())
        return int(lowest[self.stream.integers(lowest.size)])


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """The less loaded of two random replicas: nearly as good as the least loaded, at two reads."""

    loads: NDArray[np.int64]
    stream: np.random.Generator

    def choose(self, request: int) -> int:
        """Return the less loaded of the two, the first on ties."""
        one, other = self.stream.integers(self.loads.size, size=2)
        return int(one if self.loads[one] <= self.loads[other] else other)


@dataclass(frozen=True, slots=True)
class PrefixAware:
    """The least loaded replica with the longest cached prefix, unless it is too busy (``SPILL``)."""

    board: Board
    prefix: PrefixBlocks
    otherwise: LeastLoaded

    def choose(self, request: int) -> int:
        """Return a replica with the prefix in its cache, or a least loaded one."""
        best: set[int] = set()
        for block in self.prefix.row(request).tolist():
            holding = self.board.holders.get(block, set())
            both = holding & best if best else holding
            if not both:
                break
            best = set(both)
        if best:
            loads = self.board.loads
            index = min(best, key=lambda each: (int(loads[each]), each))
            if loads[index] <= SPILL * loads.mean() + 1:
                return index
        return self.otherwise.choose(request)
