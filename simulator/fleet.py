"""A fleet: replicas of one engine behind a router, whole or as pods that run in parallel.

A pod is a router and its replicas in one simpy environment. A fleet is one pod, or several that share
the traffic in turn, as large installations are built; pods do not see each other, so they are cells
of a sweep. A round-robin router has no state worth sharing: its replicas are pods of one, each of which
gets exactly the requests that a single router would send it.

A prefill pool may be shared (``Fleet.prefill_workers``). It lies behind the router: a request is dealt to
its decode replica when it arrives, as the serving engines do that keep the prefix there, and its prompt
joins the one line of its pod's pool. Replicas of a shared pool are in one pod, round robin or not.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray

from simulator.acceptance import Replay, random_stream
from simulator.cost import Floats
from simulator.deployment import Plan
from simulator.errors import BadInputError
from simulator.executors import SimulatedExecutor
from simulator.metrics import Metrics, first_gaps, measure, requests_frame
from simulator.serving import WAITS, Engine, EngineLimits, PrefillPool, Step
from simulator.sla import (
    Assessment,
    Observed,
    Sla,
    Trend,
    assess,
    observe,
    pool,
    queue_trend,
    saturated_assessment,
)
from simulator.sweep import Backend, run_cells
from simulator.workload import PrefixBlocks, Workload

RouterName = Literal["round-robin", "least-loaded", "power-of-two", "prefix-aware"]

WARMUP, COOLDOWN = 0.2, 0.05
"""Shares of the arrival span at its start and end whose requests are served but not measured: the first
meet an empty system, the last leave one behind. Fixed, so that no policy can gain by it."""

FOLD_S = 10.0
"""Simulated seconds after which finished steps are packed: an engine's list of steps is large."""

MEASURABLE_STEPS = 60
"""Steps below which a replica's own metrics are left out: too few for batch means after warm-up."""

SPILL = 1.25
"""A prefix-aware router leaves the cache alone where it holds more than this times the mean load."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many replicas, what each admits, and how requests reach them.

    pods: groups with a router each, taking turns at the traffic; None: one, or for round robin as many
    as replicas, which is the same. prefix_cache_tokens: tokens each replica keeps for reuse of common
    prefixes (least recently used blocks go first), on top of ``limits.kv_tokens``; None: no reuse.
    prefill_workers: workers of one prefill pool that all replicas share, each as fast as
    ``limits.prefill_tokens_per_s``; a pod has its share of them. None: each replica has a pool of its own,
    of ``limits.prefill_workers``.
    """

    replicas: int
    limits: EngineLimits
    router: RouterName = "round-robin"
    pods: int | None = None
    prefix_cache_tokens: int | None = None
    prefill_workers: int | None = None

    def __post_init__(self) -> None:
        self._check_pool()
        if self.replicas < 1:
            raise BadInputError("must be at least 1", field="replicas", value=self.replicas)
        if self.router not in get_args(RouterName):
            known = ", ".join(get_args(RouterName))
            raise BadInputError("is not known", field="router", value=self.router, remedy=f"one of {known}")
        if self.pods is not None and (self.pods < 1 or self.replicas % self.pods):
            raise BadInputError(
                f"must divide the {self.replicas} replicas evenly", field="pods", value=self.pods
            )
        if self.router == "prefix-aware" and self.prefix_cache_tokens is None:
            raise BadInputError(
                "needs a cache to be aware of", field="router", value=self.router,
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
                "prefill at no known speed", field="prefill_workers", value=workers,
                remedy="give prefill_tokens_per_s, with prefill elsewhere",
            )  # fmt: skip

    @property
    def pod_count(self) -> int:
        """Pods that run independently of each other."""
        apart = self.router == "round-robin" and self.prefill_workers is None
        return self.pods or (self.replicas if apart else 1)

    def pod_pool(self) -> PrefillPool | None:
        """The prefill pool that a pod's replicas share, None where each has its own or none is timed."""
        if self.prefill_workers is None:
            return None
        return replace(self.limits, prefill_workers=self.prefill_workers // self.pod_count).pool()


@dataclass(frozen=True, slots=True)
class FleetRun:
    """assessment: against the SLA. metrics: means over replicas, None where none could be measured or the
    fleet is saturated. replicas: one row each: requests, steps, mean seconds that its requests waited by
    cause (``serving.WAITS``), prefix hits."""

    assessment: Assessment
    metrics: Metrics | None
    replicas: pd.DataFrame
    observed: Observed | None


def simulate_fleet(
    workload: Workload,
    plans: Sequence[Plan],
    fleet: Fleet,
    sla: Sla,
    *,
    seed: int = 0,
    workers: int = 1,
    backend: Backend = "loky",
    address: str | None = None,
    directory: Path | None = None,
    progress: bool = False,
) -> FleetRun:
    """Serve every request of an open workload on a fleet and judge the result.

    plans: one per traffic class, of one policy. Fleet metrics are means over replicas; throughput is
    per replica. Requests that arrive during warm-up and cool-down are served and not judged.
    """
    if workload.is_closed_loop or not len(workload):
        raise BadInputError("needs requests with arrival times", field="fleet traffic")
    sla.check_classes(workload.classes)
    count = fleet.pod_count
    pods = [
        Pod(
            workload.shard(index, count), tuple(plans), fleet, fleet.replicas // count, sla,
            measured_span(workload), seed, index,
        )
        for index in range(count)
    ]  # fmt: skip
    rows = run_cells(
        run_pod_row, pods, workers=workers, label="Fleet", progress=progress,
        backend=backend, address=address, directory=directory,
    )  # fmt: skip
    return _together(sla, [PodRun.from_row(row) for row in rows], measured_span(workload))


@dataclass(frozen=True, slots=True)
class Pod:
    """A router and its replicas with the requests they are sent: a cell of a fleet."""

    workload: Workload
    plans: tuple[Plan, ...]
    fleet: Fleet
    replicas: int
    sla: Sla
    measured_s: tuple[float, float]
    seed: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class PodRun:
    """What became of a pod. Of a saturated one nothing is ``observed``: its latencies mean nothing.

    metrics: of each replica that took enough steps to measure. rows: one per replica.
    """

    saturated: bool
    requests: int
    observed: Observed | None
    metrics: tuple[Metrics, ...]
    rows: tuple[dict[str, Any], ...]

    def as_row(self) -> dict[str, Any]:
        """As nested plain values, the form in which a sweep keeps a cell."""
        observed = None
        if self.observed is not None:
            gaps = {name: [gap.tolist(), count.tolist()] for name, (gap, count) in self.observed.gaps.items()}
            observed = {"requests": self.observed.requests.to_dict("list"), "gaps": gaps}
        return {
            "saturated": self.saturated,
            "requests": self.requests,
            "observed": observed,
            "metrics": [one.as_row() for one in self.metrics],
            "rows": list(self.rows),
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PodRun:
        """The pod that ``as_row`` described."""
        kept, observed = row["observed"], None
        if kept is not None:
            gaps = {name: (np.array(gap), np.array(count)) for name, (gap, count) in kept["gaps"].items()}
            observed = Observed(pd.DataFrame(kept["requests"]), gaps)
        metrics = tuple(Metrics(**one) for one in row["metrics"])
        return cls(row["saturated"], row["requests"], observed, metrics, tuple(row["rows"]))


def run_pod_row(pod: Pod) -> dict[str, Any]:
    """``run_pod`` as a sweep's cell."""
    return run_pod(pod).as_row()


def run_pod(pod: Pod) -> PodRun:
    """Simulate a pod until its last request is served."""
    environment = simpy.Environment()
    board = Board(np.zeros(pod.replicas, dtype=np.int64))
    replays = [plan.replay(pod.seed) for plan in pod.plans]
    prefill = pod.fleet.pod_pool()
    replicas = [_replica(environment, pod, replays, board, index, prefill) for index in range(pod.replicas)]
    router = _router(pod, board)
    environment.process(_arrivals(environment, pod.workload, replicas, router))
    environment.process(_fold(environment, replicas))
    while board.served < len(pod.workload):
        environment.step()
    return _finish(pod, replicas)


@dataclass(slots=True)
class Board:
    """What a pod knows of its replicas: requests on each, [replicas], who holds which prefix block, and
    how many requests were served in all."""

    loads: NDArray[np.int64]
    holders: dict[int, set[int]] = field(default_factory=dict)
    served: int = 0


class Replica(Engine):
    """An engine that keeps its pod's board, packs its steps, and may reuse prefixes."""

    def __init__(
        self, board: Board, index: int, cache: PrefixCache | None, *engine: Any, pool: PrefillPool | None
    ) -> None:
        super().__init__(*engine, pool=pool)
        self.board, self.index, self.cache = board, index, cache
        self.packed: list[tuple[Floats, NDArray[np.float32]]] = []
        self.submitted = 0

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        """Take a request, with whatever part of its prompt the cache holds."""
        if self.cache is not None:
            cached_tokens = self.cache.take(request)
        self.board.loads[self.index] += 1
        self.submitted += 1
        super().submit(request, cached_tokens=cached_tokens)

    def _leave(self, left: Floats) -> None:
        super()._leave(left)
        self.board.loads[self.index] -= left.shape[1]
        self.board.served += left.shape[1]

    def fold(self) -> None:
        """Pack the steps taken so far: 40 bytes a step in place of a tuple."""
        if self.steps:
            table = np.array(self.steps, dtype=np.float64)
            self.packed.append((table[:, 0].copy(), table[:, 1:].astype(np.float32)))
            self.steps.clear()

    def delivery_s(self) -> Floats:
        """When each decode step so far delivered its tokens, [decode steps]."""
        self.fold()
        requests = Step._fields.index("requests") - 1
        return np.concatenate([np.empty(0), *(ends[rest[:, requests] > 0] for ends, rest in self.packed)])

    def steps_frame(self) -> pd.DataFrame:
        """All steps, columns as in ``serving.Step``."""
        self.fold()
        ends = [end_s for end_s, _ in self.packed] or [np.empty(0)]
        rests = [rest for _, rest in self.packed] or [np.empty((0, len(Step._fields) - 1), np.float32)]
        frame = pd.DataFrame(np.concatenate(rests).astype(np.float64), columns=list(Step._fields[1:]))
        frame.insert(0, "end_s", np.concatenate(ends))
        counts = [name for name in Step._fields if not name.endswith("_s")]
        return frame.astype(dict.fromkeys(counts, np.int64))


# --- routers ------------------------------------------------------------------------------------------------


class Router(Protocol):
    """Says which replica of the pod a request goes to, by the state at its arrival."""

    def choose(self, request: int) -> int:
        """Index of a replica."""
        ...


@dataclass(slots=True)
class RoundRobin:
    """One after the other, whatever their load."""

    replicas: int
    _next: int = -1

    def choose(self, request: int) -> int:
        """The replica after the last one."""
        self._next = (self._next + 1) % self.replicas
        return self._next


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The replica with the fewest requests, waiting or running; ties are broken at random."""

    loads: NDArray[np.int64]
    stream: np.random.Generator

    def choose(self, request: int) -> int:
        """One of the least loaded."""
        lowest = np.flatnonzero(self.loads == self.loads.min())
        return int(lowest[self.stream.integers(lowest.size)])


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """The less loaded of two replicas drawn at random: nearly as good, and nobody asks them all."""

    loads: NDArray[np.int64]
    stream: np.random.Generator

    def choose(self, request: int) -> int:
        """The better of two, the first on ties."""
        one, other = self.stream.integers(self.loads.size, size=2)
        return int(one if self.loads[one] <= self.loads[other] else other)


@dataclass(frozen=True, slots=True)
class PrefixAware:
    """The least loaded of those that hold the longest prefix, unless they are much busier than the mean."""

    board: Board
    prefix: PrefixBlocks
    otherwise: LeastLoaded

    def choose(self, request: int) -> int:
        """A replica with the prefix in its cache, or a least loaded one."""
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


class PrefixCache:
    """Blocks of prompts that one replica keeps, the least recently used dropped first."""

    def __init__(self, workload: Workload, blocks: int, holders: dict[int, set[int]], index: int) -> None:
        assert workload.prefix is not None
        self.prefix, self.prompt_tokens = workload.prefix, workload.prompt_tokens
        self.blocks, self.holders, self.index = blocks, holders, index
        self.hit_tokens = self.asked_tokens = 0
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def hit_share(self) -> float:
        """Share of all prompt tokens that were found."""
        return self.hit_tokens / self.asked_tokens if self.asked_tokens else 0.0

    def take(self, request: int) -> int:
        """Prompt tokens found here; afterwards all of the prompt's blocks are.

        The blocks count as present from now on, although their prefill is still to come: a request that
        follows within that time is served too well. At least one token is always left to prefill.
        """
        row = self.prefix.row(request).tolist()
        found = next((k for k, block in enumerate(row) if block not in self._kept), len(row))
        for block in row:
            self._kept[block] = None
            self._kept.move_to_end(block)
            self.holders.setdefault(block, set()).add(self.index)
        while len(self._kept) > self.blocks:
            dropped, _ = self._kept.popitem(last=False)
            self.holders[dropped].discard(self.index)
        prompt = int(self.prompt_tokens[request])
        hit = min(found * self.prefix.block_tokens, prompt - 1)
        self.hit_tokens += hit
        self.asked_tokens += prompt
        return hit


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


# --- one pod ------------------------------------------------------------------------------------------------


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
    engine = (environment, pod.workload, executor, plan.scheduler, plan.believed, limits)
    return Replica(board, index, cache, *engine, pool=prefill)


def _prefix(pod: Pod) -> PrefixBlocks:
    if pod.workload.prefix is None:
        raise BadInputError(
            "the traffic does not say which prefixes are common", field="prefix_cache_tokens",
            value=pod.fleet.prefix_cache_tokens, remedy="replay a file with hash_ids, or leave it out",
        )  # fmt: skip
    return pod.workload.prefix


def _arrivals(
    environment: simpy.Environment, workload: Workload, replicas: Sequence[Replica], router: Router
) -> Generator[simpy.Event, Any, None]:
    assert workload.arrival_s is not None
    reached_s = environment.now
    for request, arrival_s in enumerate(workload.arrival_s.tolist()):
        if arrival_s > reached_s:  # see ``simulation.arrivals``
            yield environment.timeout(max(0.0, arrival_s - environment.now))
            reached_s = arrival_s
        replicas[router.choose(request)].submit(request)


def _fold(environment: simpy.Environment, replicas: Sequence[Replica]) -> Generator[simpy.Event, Any, None]:
    while True:
        yield environment.timeout(FOLD_S)
        for replica in replicas:
            replica.fold()


def _finish(pod: Pod, replicas: Sequence[Replica]) -> PodRun:
    """Measure every replica, and free its steps before the next is looked at."""
    served = [requests_frame(replica) for replica in replicas]
    trend = _trend(pod, served)
    saturated = trend.grows
    observed, measured, rows = [], [], []
    from_s, to_s = pod.measured_s
    for replica, requests in zip(replicas, served, strict=True):
        steps, first, delivery_s = replica.steps_frame(), first_gaps(replica), replica.delivery_s()
        replica.packed.clear()
        outside = replica.executor.steps_outside if isinstance(replica.executor, SimulatedExecutor) else 0
        row = _replica_row(pod, replica, steps, requests, outside)
        # The pod's queue is its replicas' together: each has an equal share of its trend.
        shares = {
            "queue_trend_per_s": trend.slope_per_s / len(replicas),
            "queue_trend_ci95": trend.ci95 / len(replicas),
        }
        rows.append(row | shares)
        if not saturated:
            gap = np.diff(delivery_s, prepend=0.0)
            mine = requests[requests["queued_s"].between(from_s, to_s, inclusive="left")]
            observed.append(observe(mine, gap, pod.sla))
        if len(steps) >= MEASURABLE_STEPS:
            measured.append(measure(steps, requests, first=first, warmup=WARMUP, steps_outside=outside))
    pooled = pool(observed) if observed else None
    return PodRun(saturated, len(pod.workload), pooled, tuple(measured), tuple(rows))


def _trend(pod: Pod, served: Sequence[pd.DataFrame]) -> Trend:
    """Trend of the requests waiting anywhere in the pod."""
    requests = pd.concat(served)
    if requests.empty:
        return Trend(0.0, 0.0, math.inf)
    arrived_s = requests["queued_s"].to_numpy()
    served_s = arrived_s + requests[list(WAITS)].to_numpy().sum(axis=1)
    return queue_trend(arrived_s, served_s, *pod.measured_s)


def _replica_row(
    pod: Pod, replica: Replica, steps: pd.DataFrame, requests: pd.DataFrame, outside: int
) -> dict[str, Any]:
    """What one replica did, and for how many seconds a request of its waited for what, on average."""
    waits = {name: float(requests[name].mean()) if len(requests) else 0.0 for name in WAITS}
    return {
        "pod": pod.index,
        "replica": replica.index,
        "requests": replica.submitted,
        "steps": len(steps),
        "steps_outside_fraction": outside / max(len(steps), 1),
        **waits,
        "prefix_hit_share": replica.cache.hit_share if replica.cache else 0.0,
    }


# --- the fleet ----------------------------------------------------------------------------------------------


def measured_span(workload: Workload) -> tuple[float, float]:
    """The part of an open workload's arrivals that is judged: without its warm-up and cool-down."""
    assert workload.arrival_s is not None
    start_s, span_s = float(workload.arrival_s[0]), workload.span_s
    return start_s + WARMUP * span_s, start_s + (1 - COOLDOWN) * span_s


def mean_metrics(measured: Sequence[Metrics]) -> Metrics | None:
    """Means over replicas, undefined ones left out; the throughput's interval is of the mean."""
    if not measured:
        return None
    table = np.array([list(one.as_row().values()) for one in measured], dtype=np.float64)
    names = [each.name for each in fields(Metrics)]
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(axis=0)
    means = np.divide(total, known.sum(axis=0), out=np.full(len(names), np.nan), where=known.any(axis=0))
    row = dict(zip(names, means.tolist(), strict=True))
    halves = table[:, names.index("throughput_ci95")]
    row["throughput_ci95"] = float(np.sqrt((halves**2).sum()) / len(measured))
    row["steps"], row["requests_finished"] = int(row["steps"]), int(row["requests_finished"])
    return Metrics(**row)


def _together(sla: Sla, runs: Sequence[PodRun], measured_s: tuple[float, float]) -> FleetRun:
    rows = pd.DataFrame([row for run in runs for row in run.rows])
    metrics = mean_metrics([one for run in runs for one in run.metrics])
    saturated = sum(run.requests for run in runs if run.saturated)
    # One pod in a hundred may look saturated by chance; that many of the requests, and it is no accident.
    if metrics is None or saturated > 0.01 * sum(run.requests for run in runs):
        return FleetRun(saturated_assessment(sla, sum(run.requests for run in runs)), None, rows, None)
    observed = pool([run.observed for run in runs if run.observed is not None])
    return FleetRun(assess(sla, observed, metrics, measured_s[1] - measured_s[0]), metrics, rows, observed)
