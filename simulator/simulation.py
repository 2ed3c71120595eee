"""One run of one engine: arrivals in, metrics out."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import simpy

from simulator.acceptance import Replay
from simulator.cost import CostModel
from simulator.errors import BadInputError
from simulator.executors import Executor, SimulatedExecutor
from simulator.metrics import Metrics, first_gaps, measure, requests_frame, steps_frame, walks
from simulator.schedulers import Scheduler
from simulator.serving import Engine, EngineLimits
from simulator.sla import is_saturated
from simulator.workload import Workload

SATURATED = (
    "Saturated: requests arrive faster than they are served, and ever more of them wait. Whatever contains "
    "the wait has no value; throughput is the most that this engine delivers."
)
"""What is said beside the metrics of such a run."""

TURNOVERS = 5
"""Requests per slot that a closed loop finishes: a p10 of speed is then within a percent of a long run's."""

FEWEST_FINISHED = 100
"""Requests that a closed loop finishes however few its slots are."""

MOST_STEPS = 100_000
"""Engine steps after which a closed loop ends even if its requests do not: seconds of computing."""


@dataclass(frozen=True, slots=True)
class Run:
    """What happened: one row per finished request, one per engine step, and the metrics over them.

    saturated: requests arrived faster than they were served; whatever contains their wait is NaN.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    metrics: Metrics
    saturated: bool = False


def simulate(
    workload: Workload,
    replays: Sequence[Replay],
    scheduler: Scheduler,
    cost: CostModel,
    limits: EngineLimits,
    *,
    believed: CostModel | None = None,
    seed: int = 0,
    steps: int | None = None,
    finish: int = 0,
    warmup: float = 0.2,
) -> Run:
    """Simulate one engine.

    replays: one per traffic class. cost: the true step cost, which advances the clock; ``believed``
    is what the scheduler consults (default: the same). A closed loop runs for ``steps`` engine steps, and
    goes on until ``finish`` requests are complete (for ``MOST_STEPS`` at most; see ``enough_requests``);
    an open loop until every request is served, or for ``steps`` if given.
    """
    executor = SimulatedExecutor(replays, workload, cost, capacity=limits.concurrency, seed=seed)
    engine = run_engine(
        workload, executor, scheduler, cost if believed is None else believed, limits,
        seed=seed, steps=steps, finish=finish,
    )  # fmt: skip
    return summarise(engine, warmup=warmup, steps_outside=executor.steps_outside)


def run_engine(
    workload: Workload,
    executor: Executor,
    scheduler: Scheduler,
    believed: CostModel,
    limits: EngineLimits,
    *,
    seed: int = 0,
    steps: int | None = None,
    finish: int = 0,
) -> Engine:
    """Drive one engine over a workload with any executor, simulated or live, and return it for measuring."""
    if workload.is_closed_loop and steps is None:
        raise BadInputError(
            "is needed: a closed loop never ends", field="steps", remedy="give a number of steps"
        )
    engine = Engine(simpy.Environment(), workload, executor, scheduler, believed, limits, seed=seed)
    advance(engine, steps, finish)
    return engine


def enough_requests(concurrency: int) -> int:
    """Requests that a closed loop must finish before quantiles over requests mean anything.

    Short outputs finish first: in a run shorter than a few lives of a request the quantiles of speed are
    those of short outputs, whose speed scatters most. ``TURNOVERS`` per slot leave four lives after
    warm-up, which takes one. At least ``FEWEST_FINISHED``, so that a p10 rests on more than a handful.
    """
    return max(TURNOVERS * concurrency, FEWEST_FINISHED)


def advance(engine: Engine, steps: int | None, finish: int = 0) -> None:
    """Let a new engine serve its workload, or so many steps of it; a closed loop may need to go on."""
    environment, workload, wanted = engine.environment, engine.workload, len(engine.workload)
    if not workload.is_closed_loop:
        environment.process(arrivals(environment, workload, engine))
    try:
        if steps is None:
            while engine.completed < wanted:
                environment.step()
        else:
            while len(engine.steps) < steps and (workload.is_closed_loop or engine.completed < wanted):
                environment.step()
            while engine.completed < finish and workload.is_closed_loop and len(engine.steps) < MOST_STEPS:
                environment.step()
    except simpy.core.EmptySchedule as error:  # pragma: no cover - would be a bug in the engine
        raise RuntimeError(
            f"the engine stopped with {wanted - engine.completed} requests unserved"
        ) from error


def summarise(engine: Engine, *, warmup: float = 0.2, steps_outside: int = 0) -> Run:
    """Frames and metrics of an engine that has run."""
    requests, steps = requests_frame(engine), steps_frame(engine)
    metrics = measure(
        steps, requests, first=first_gaps(engine), warmup=warmup, steps_outside=steps_outside,
        walked=walks(engine) if engine.workload.is_closed_loop else None,
    )  # fmt: skip
    if not is_overloaded(engine, warmup=warmup):
        return Run(requests, steps, metrics)
    metrics = metrics.without_waiting(decoding_waits=engine.limits.has_pool)
    return Run(requests, steps, metrics, saturated=True)


def is_overloaded(engine: Engine, *, warmup: float = 0.2) -> bool:
    """Whether more and more requests wait while they arrive, after a share of that time as warm-up."""
    arrival_s = engine.workload.arrival_s
    if arrival_s is None or not arrival_s.size:
        return False
    start_s, end_s = float(arrival_s[0]), min(float(arrival_s[-1]), float(engine.environment.now))
    return is_saturated(*engine.served_s(), start_s + warmup * (end_s - start_s), end_s)


def arrivals(
    environment: simpy.Environment, workload: Workload, engine: Engine
) -> Generator[simpy.Event, Any, None]:
    """Submit each request to one engine at its arrival time."""
    assert workload.arrival_s is not None
    reached_s = environment.now
    for request, arrival_s in enumerate(workload.arrival_s.tolist()):
        if arrival_s > reached_s:  # not ``now``, which rounding may leave just short of it: ties stay ties
            yield environment.timeout(max(0.0, arrival_s - environment.now))
            reached_s = arrival_s
        engine.submit(request)
