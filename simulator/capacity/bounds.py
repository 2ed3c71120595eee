"""Physical limits of a replica's rate, by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.capacity.server import Server, share_at_rate
from simulator.core.statistics import BATCHES, rate_interval
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.recorded import Recorded
from simulator.engine.run import run_engine
from simulator.engine.simulated import SimulatedExecutor
from simulator.parallel.hashing import Arrays, content_hash
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True)
class Capacity:
    """Most requests per second that one replica can serve, by stage.

    decode_per_s: the engine with a line that is never empty: all slots, all KV cache or every chunk of
    prompts in use, whichever ends first; ``decode_ci95`` is its half-width. pool_per_s: the prefill pool.
    """

    decode_per_s: float
    decode_ci95: float
    pool_per_s: float

    @property
    def rate_per_s(self) -> float:
        """Rate of the narrowest stage."""
        return min(self.decode_per_s, self.pool_per_s)

    @property
    def ceiling_per_s(self) -> float:
        """A rate above the capacity for sure."""
        return min(self.decode_per_s + self.decode_ci95, self.pool_per_s)


UNBOUNDED = Capacity(math.inf, 0.0, math.inf)

MOST_READ = 16
"""Large arrays whose digests are kept, with the arrays: a few recordings', which every trial hashes."""

_KNOWN: dict[str, Capacity] = {}

_READ: Arrays = {}


def capacity(server: Server) -> Capacity:
    """Return the mean service rate of every stage, for the requests of the server's trials.

    All requests arrive at once. The engine is measured while some wait: from the first fifth of that time (a
    choice; the batch has mixed by then) to its end. The pool's rate is its prompt tokens per second over the
    mean prompt. A prefix cache saves an unknown part of the prompts, and prefill then bounds nothing.
    """
    if len(_READ) > MOST_READ:
        _READ.clear()
    key = content_hash(capacity, server, arrays=_READ)
    if key not in _KNOWN:
        _KNOWN[key] = _measured_capacity(server)
    return _KNOWN[key]


def _measured_capacity(server: Server) -> Capacity:
    sample = share_at_rate(server.traffic, 1.0, server.requests, server.seed)
    limits, pool_per_s = server.limits, math.inf
    if server.prefix_cache_tokens is None:
        pool_per_s = limits.pool_tokens_per_s / float(sample.prompt_tokens.mean())
        limits = replace(limits, prefill_tokens_per_s=None)
    else:
        limits = replace(limits, prefill="elsewhere", prefill_tokens_per_s=None)
    steps = _overloaded_steps(server, replace(sample, arrival_s=np.zeros(len(sample))), limits)
    tokens = max(float(sample.output_tokens.mean()) - 1, 1.0)
    end_s, waiting = steps["end_s"], int((steps["waiting"] > 0).sum())
    begin = waiting // 5
    if waiting - begin < 2 * BATCHES:  # too few requests to fill the engine: only their whole time is known
        return Capacity(len(sample) / float(end_s[-1]), math.inf, pool_per_s)
    committed, elapsed = steps["committed_tokens"][begin + 1 : waiting], np.diff(end_s[begin:waiting])
    rate, half = rate_interval(committed, elapsed)
    return Capacity(rate / tokens, half / tokens, pool_per_s)


def _overloaded_steps(server: Server, workload: Workload, limits: EngineLimits) -> Mapping[str, NDArray[Any]]:
    """Serve a workload that arrives at once; returns the columns of its steps."""
    plan, replays = server.plans[0], [each.replay(server.seed) for each in server.plans]
    executor = SimulatedExecutor(replays, workload, plan.cost, capacity=limits.concurrency, seed=server.seed)
    engine = run_engine(workload, executor, plan.scheduler, plan.believed, limits, seed=server.seed)
    return Recorded.of(engine).steps


def closed_loop_capacity(server: Server) -> float:
    """Measure the requests per second of a replica with a closed loop: a scale for rates, not a promise."""
    return capacity(server).rate_per_s
