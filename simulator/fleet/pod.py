"""One pod: a router and its replicas in one simulation."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.acceptance.trace import Replay
from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.deployment.setup import Setup
from simulator.engine.batch import WAITS
from simulator.engine.limits import PrefillPool
from simulator.engine.measures.metrics import FirstGaps, Metrics, measure
from simulator.engine.measures.recorded import Recorded
from simulator.engine.measures.saturation import Trend, queue_trend
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides.serving import ServingEngine, serving_engine
from simulator.fleet.layout import WARMUP, Fleet
from simulator.fleet.prefix_cache import PrefixCache
from simulator.fleet.routers import Board, LeastLoaded, PowerOfTwo, PrefixAware, RoundRobin, Router
from simulator.schedulers.early_stop import early_stop_loss, watched
from simulator.sla.observed import Observed, observe, pool
from simulator.sla.terms import Sla
from simulator.traffic.workload import PrefixBlocks, Workload

FOLD_S = 10.0
"""Simulated seconds between two packings of the finished steps, which are large as objects. A choice."""

MEASURABLE_STEPS = 60
"""Least steps of a replica with metrics of its own: fewer give no batch means after warm-up. A choice."""


@dataclass(frozen=True, slots=True)
class FleetPart:
    """One pod of a fleet, as a cell: ``workload`` is the fleet's, which all cells of a worker share."""

    workload: Workload
    plans: tuple[Setup, ...]
    fleet: Fleet
    sla: Sla
    measured_s: tuple[float, float]
    seed: int
    index: int

    def pod(self) -> Pod:
        """Return the pod with its share of the requests."""
        count = self.fleet.pod_count
        return Pod(
            self.workload.shard(self.index, count), self.plans, self.fleet, self.fleet.replicas // count,
            self.sla, self.measured_s, self.seed, self.index,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pod:
    """A router and its replicas with their requests."""

    workload: Workload
    plans: tuple[Setup, ...]
    fleet: Fleet
    replicas: int
    sla: Sla
    measured_s: tuple[float, float]
    seed: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaRun:
    """The result of one replica.

    requests: the number that it received. rows_mean: drafts and anchors of a decode step, without prompts; 0
    without a decode step. waits: mean seconds that a request waited, by cause (``engine.batch.WAITS``).
    queue_trend_per_s: the trend of the pod's queue over the number of replicas.
    """

    pod: int
    replica: int
    requests: int
    steps: int
    rows_mean: float
    steps_outside_fraction: float
    early_stop_loss: float
    waits: Mapping[str, float]
    prefix_hit_share: float
    queue_trend_per_s: float
    queue_trend_ci95: float

    def as_row(self) -> dict[str, Any]:
        """Return a row of a table of replicas; every cause of waiting has a column."""
        row: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            row |= value if each.name == "waits" else {each.name: value}
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ReplicaRun:
        """Rebuild the replica from the values of ``as_row``."""
        waits = {name: row[name] for name in WAITS}
        return cls(**{name: value for name, value in row.items() if name not in WAITS}, waits=waits)


@dataclass(frozen=True, slots=True)
class PodRun:
    """The result of a pod. A saturated pod has no ``observed``, because its latencies mean nothing.

    metrics: of each replica with enough steps to measure.
    """

    saturated: bool
    requests: int
    observed: Observed | None
    metrics: tuple[Metrics, ...]
    replicas: tuple[ReplicaRun, ...]

    def as_row(self) -> dict[str, Any]:
        """Return nested plain values, the form in which a sweep keeps a cell."""
        return {
            "saturated": self.saturated,
            "requests": self.requests,
            "observed": None if self.observed is None else self.observed.as_row(),
            "metrics": [one.as_row() for one in self.metrics],
            "replicas": [each.as_row() for each in self.replicas],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PodRun:
        """Rebuild the pod from the values of ``as_row``."""
        observed = None if row["observed"] is None else Observed.from_row(row["observed"])
        metrics = tuple(Metrics(**one) for one in row["metrics"])
        replicas = tuple(ReplicaRun.from_row(each) for each in row["replicas"])
        return cls(row["saturated"], row["requests"], observed, metrics, replicas)


def run_part(part: FleetPart) -> PodRun:
    """Run ``run_pod`` as a cell of a sweep that is not kept."""
    return run_pod(part.pod())


def run_part_row(part: FleetPart) -> dict[str, Any]:
    """Run ``run_pod`` as a cell of a sweep that is kept, as plain values: five times the memory."""
    return run_part(part).as_row()


def run_pod(pod: Pod) -> PodRun:
    """Simulate a pod until its last request is served."""
    environment = simpy.Environment()
    board = Board(np.zeros(pod.replicas, dtype=np.int64))
    replays = [plan.replay(pod.seed) for plan in pod.plans]
    prefill = pod.fleet.pod_pool()
    replicas = [_replica(environment, pod, replays, board, index, prefill) for index in range(pod.replicas)]
    router = _router(pod, board)
    if not (pod.replicas == 1 and replicas[0].takes_all()):
        environment.process(_arrivals(environment, pod.workload, replicas, router, board))
    environment.process(_fold(environment, replicas))
    while board.served < len(pod.workload):
        environment.step()
    return _finish(pod, replicas)


@dataclass(slots=True)
class Replica:
    """An engine of a pod: it may reuse prefixes, and the board says how many requests it has."""

    index: int
    board: Board
    engine: ServingEngine
    executor: SimulatedExecutor
    cache: PrefixCache | None
    submitted: int = 0

    def takes_all(self) -> bool:
        """Whether the engine takes all requests of its workload by itself, as no other replica gets any."""
        if self.cache is not None or not self.engine.takes_arrivals():
            return False
        self.submitted = len(self.engine.workload)
        self.board.loads[self.index] += self.submitted
        self.board.next_arrival_s = math.inf
        return True

    def submit(self, request: int) -> None:
        """Take a request; the cached part of its prompt is not prefilled again."""
        cached_tokens = 0 if self.cache is None else self.cache.take(request)
        self.board.loads[self.index] += 1
        self.submitted += 1
        self.engine.submit(request, cached_tokens=cached_tokens)


def _router(pod: Pod, board: Board) -> Router:
    stream = random_stream(pod.seed, f"router/{pod.index}")
    name = pod.fleet.router
    if name == "round-robin":
        return RoundRobin(pod.replicas)
    if name == "power-of-two":
        return PowerOfTwo(board.loads, stream)
    least = LeastLoaded(board.loads, stream)
    if name == "least-loaded":
        return least
    return PrefixAware(board, _prefix(pod), least)


def _replica(
    environment: simpy.Environment,
    pod: Pod,
    replays: Sequence[Replay],
    board: Board,
    index: int,
    prefill: PrefillPool | None,
) -> Replica:
    plan, limits, cache = pod.plans[0], pod.fleet.limits, None
    if pod.fleet.prefix_cache_tokens is not None:
        blocks = pod.fleet.prefix_cache_tokens // _prefix(pod).block_tokens
        cache = PrefixCache(pod.workload, blocks, board.holders, index)
    executor = SimulatedExecutor(
        replays, pod.workload, plan.cost, capacity=limits.concurrency, seed=pod.seed + pod.index
    )
    engine = serving_engine(
        environment, pod.workload, executor, watched(plan.scheduler), plan.believed, limits,
        pool=prefill, horizon=lambda: board.next_arrival_s, on_leave=lambda count: board.leave(index, count),
    )  # fmt: skip
    return Replica(index, board, engine, executor, cache)


def _prefix(pod: Pod) -> PrefixBlocks:
    if pod.workload.prefix is None:
        raise BadInputError(
            "the traffic does not say which prefixes are common", field="prefix_cache_tokens",
            value=pod.fleet.prefix_cache_tokens, remedy="replay a file with hash_ids, or leave it out",
        )  # fmt: skip
    return pod.workload.prefix


def _arrivals(
    environment: simpy.Environment,
    workload: Workload,
    replicas: Sequence[Replica],
    router: Router,
    board: Board,
) -> Generator[simpy.Event, Any, None]:
    assert workload.arrival_s is not None
    reached_s = environment.now
    for request, arrival_s in enumerate(workload.arrival_s.tolist()):
        if arrival_s > reached_s:  # see ``engine.run.arrivals``
            delay_s = max(0.0, arrival_s - environment.now)
            board.next_arrival_s = environment.now + delay_s
            yield environment.timeout(delay_s)
            reached_s = arrival_s
        replicas[router.choose(request)].submit(request)
    board.next_arrival_s = math.inf


def _fold(environment: simpy.Environment, replicas: Sequence[Replica]) -> Generator[simpy.Event, Any, None]:
    while True:
        yield environment.timeout(FOLD_S)
        for replica in replicas:
            replica.engine.steps.fold()


def _finish(pod: Pod, replicas: Sequence[Replica]) -> PodRun:
    """Measure every replica; free its steps before the next replica is measured."""
    served = [dict(Recorded.of(replica.engine).requests) for replica in replicas]
    trend = queue_trend_of(pod, served)
    saturated = trend.grows
    observed, measured, runs = [], [], []
    from_s, to_s = pod.measured_s
    for replica, requests in zip(replicas, served, strict=True):
        engine, outside = replica.engine, replica.executor.steps_outside
        engine.steps.fold()  # all steps are rounded alike, wherever the clock stood at the last fold
        steps, first, delivery_s = (
            dict(Recorded.of(engine).steps),
            list(FirstGaps(engine)),
            engine.delivery_s(),
        )
        engine.steps.clear()
        # Requests wait in one queue of the pod; each replica gets an equal share of its trend.
        share = (trend.slope_per_s / len(replicas), trend.ci95 / len(replicas))
        runs.append(_replica_run(pod, replica, steps, requests, outside, share))
        if not saturated:
            gap = np.diff(delivery_s, prepend=0.0)
            judged = (requests["queued_s"] >= from_s) & (requests["queued_s"] < to_s)
            mine = {name: column[judged] for name, column in requests.items()}
            observed.append(observe(mine, gap, pod.sla))
        if steps["requests"].size >= MEASURABLE_STEPS:
            measured.append(measure(steps, requests, first=first, warmup=WARMUP, steps_outside=outside))
    pooled = pool(observed) if observed else None
    return PodRun(saturated, len(pod.workload), pooled, tuple(measured), tuple(runs))


def queue_trend_of(pod: Pod, served: Sequence[Mapping[str, NDArray[Any]]]) -> Trend:
    """Return the trend of the number of requests that wait in the pod."""
    arrived_s = np.concatenate([requests["queued_s"] for requests in served])
    if not arrived_s.size:
        return Trend(0.0, 0.0, math.inf)
    waited_s = [np.sum([requests[name] for name in WAITS], axis=0) for requests in served]
    served_s = arrived_s + np.concatenate(waited_s)
    return queue_trend(arrived_s, served_s, *pod.measured_s)


def _replica_run(
    pod: Pod,
    replica: Replica,
    steps: Mapping[str, NDArray[Any]],
    requests: Mapping[str, NDArray[Any]],
    outside: int,
    trend: tuple[float, float],
) -> ReplicaRun:
    """Summarise one replica.

    trend: the replica's share of the slope of the pod's queue, and the half-width of that slope.
    """
    decode = steps["requests"] > 0
    rows = (steps["requests"] + steps["draft_tokens"])[decode]
    return ReplicaRun(
        pod=pod.index,
        replica=replica.index,
        requests=replica.submitted,
        steps=decode.size,
        rows_mean=float(rows.mean()) if rows.size else 0.0,
        steps_outside_fraction=outside / max(decode.size, 1),
        early_stop_loss=early_stop_loss(replica.engine.scheduler) or 0.0,
        waits={name: float(requests[name].mean()) if requests[name].size else 0.0 for name in WAITS},
        prefix_hit_share=replica.cache.hit_share if replica.cache else 0.0,
        queue_trend_per_s=trend[0],
        queue_trend_ci95=trend[1],
    )
