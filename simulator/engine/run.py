"""The files a run leaves, simulated or live: the same names, columns and units."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import simpy

from simulator.acceptance.trace import Replay
from simulator.core.errors import BadInputError
from simulator.core.files import write_json, write_table
from simulator.cost.models import CostModel
from simulator.engine.executor import Executor
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import FirstGaps, Metrics, measure, walks
from simulator.engine.measures.recorded import Recorded, frame, requests_frame, steps_frame
from simulator.engine.measures.saturation import is_saturated
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides.serving import ServingEngine, serving_engine
from simulator.schedulers.early_stop import early_stop_loss, watched
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


def write_run(run: Run, directory: Path, description: Mapping[str, object], **more: pd.DataFrame) -> None:
    """Write ``requests.parquet``, ``steps.parquet`` and ``run.json`` (the description and the metrics).

    more: further tables, written to files of their names.
    ``description`` says what was run: policy, traffic, seed, profile, device, date, command.
    ``run.json`` is written last, so its presence says that the directory is complete.
    """
    _write_frames(directory, requests=run.requests, steps=run.steps, **more)
    metrics = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in run.metrics.as_row().items()
    }
    outcome: dict[str, object] = {"saturated": run.saturated, "metrics": metrics}
    if run.early_stop_loss is not None:
        outcome["early_stop_loss"] = run.early_stop_loss
    write_json(directory / "run.json", {"schema": 1, **description, **outcome})


def write_unfinished(engine: ServingEngine, directory: Path, reason: str) -> None:
    """Keep what a run had done when it broke off: both frames, and ``unfinished.json`` with the reason.

    There is no ``run.json``, and so no metrics: whatever reads run directories passes this one over.
    """
    _write_frames(directory, requests=requests_frame(engine), steps=steps_frame(engine))
    write_json(directory / "unfinished.json", {"schema": 1, "reason": reason, "steps": len(engine.steps)})


def _write_frames(directory: Path, **frames: pd.DataFrame) -> None:
    for name, table in frames.items():
        units = {"queued_s": "requests*s"} if name == "steps" else {}
        write_table(directory / f"{name}.parquet", table, units=units)


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

STEPS_LIMIT = 10**7
"""Engine steps that can be asked for: a choice, some hours of computing far above what answers need."""


@dataclass(frozen=True)
class Run:
    """What happened: the metrics, and what was recorded of every finished request and engine step.

    The frames are made when they are asked for, since most runs are wanted for their metrics alone.
    saturated: requests arrived faster than they were served; whatever contains their wait is NaN.
    early_stop_loss: see ``schedulers.early_stop``; None where the policy does not stop early.
    """

    recorded: Recorded
    metrics: Metrics
    saturated: bool = False
    early_stop_loss: float | None = None

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per finished request in order of completion, columns as in ``RequestColumns``."""
        return frame(self.recorded.requests)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per engine step, columns as in ``engine.batch.Step``."""
        return frame(self.recorded.steps)

    @property
    def rows_mean(self) -> float:
        """Mean drafts and anchors of a decode step, without prompt rows; 0 where nothing was decoded."""
        requests, drafts = (self.recorded.steps[name] for name in ("requests", "draft_tokens"))
        decode = requests > 0
        return float((requests + drafts)[decode].mean()) if decode.any() else 0.0


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

    Parameters
    ----------
    workload
        Requests: an open loop with arrival times, or a closed loop.
    replays
        Outcomes of drafts, one per traffic class.
    scheduler
        Decides the verification lengths of a step.
    cost
        The true step cost, which advances the clock.
    limits
        What the engine admits.
    believed
        The step cost that the scheduler consults; ``cost`` by default.
    seed
        Of jitter, and of where requests start in their replay.
    steps
        Of the engine: a closed loop runs for so many; an open loop until every request is served, or for so
        many.
    finish
        A closed loop goes on until so many requests are complete, for ``MOST_STEPS`` at most; see
        ``enough_requests``.
    warmup
        Share of the run that metrics leave out.

    Returns
    -------
    Run
        Requests and steps as tables, and metrics.

    Raises
    ------
    BadInputError
        If a request can never fit, or a closed loop would not advance.
    """
    require_steps(steps)
    executor = SimulatedExecutor(replays, workload, cost, capacity=limits.concurrency, seed=seed)
    scheduler = watched(scheduler)
    engine = run_engine(
        workload, executor, scheduler, cost if believed is None else believed, limits,
        seed=seed, steps=steps, finish=finish,
    )  # fmt: skip
    run = summarise(engine, warmup=warmup, steps_outside=executor.steps_outside)
    return replace(run, early_stop_loss=early_stop_loss(scheduler))


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
) -> ServingEngine:
    """Drive one engine over a workload with any executor, simulated or live, and return it for measuring."""
    if workload.is_closed_loop and steps is None:
        raise BadInputError(
            "is needed: a closed loop never ends", field="steps", remedy="give a number of steps"
        )
    engine = serving_engine(
        simpy.Environment(), workload, executor, scheduler, believed, limits,
        seed=seed, steps=None if finish else steps,
    )  # fmt: skip
    advance(engine, steps, finish)
    return engine


def require_steps(steps: int | None, *, source: str | None = None) -> None:
    """Refuse a number of steps that is none, or that no run could finish; None, the default, passes.

    source: the option, where ``steps`` comes from one.
    """
    if steps is not None and steps < 1:
        raise BadInputError("must be at least 1", source=source, field="steps", value=steps)
    if steps is not None and steps > STEPS_LIMIT:
        raise BadInputError(
            f"must be at most {STEPS_LIMIT:,}", source=source, field="steps", value=steps,
            remedy="give fewer; some thousands are enough for most answers",
        )  # fmt: skip


def enough_requests(concurrency: int) -> int:
    """Return how many requests a closed loop must finish before quantiles over requests mean anything.

    Short outputs finish first: in a run shorter than a few lives of a request the quantiles of speed are
    those of short outputs, whose speed scatters most. ``TURNOVERS`` per slot leave four lives after
    warm-up, which takes one. At least ``FEWEST_FINISHED``, so that a p10 rests on more than a handful.
    """
    return max(TURNOVERS * concurrency, FEWEST_FINISHED)


def advance(engine: ServingEngine, steps: int | None, finish: int = 0) -> None:
    """Let a new engine serve its workload, or so many steps of it; a closed loop may need to go on."""
    environment, workload, wanted = engine.environment, engine.workload, len(engine.workload)
    engine.expect(steps, finish if workload.is_closed_loop else 0, MOST_STEPS)
    if not workload.is_closed_loop and not engine.takes_arrivals():
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


def summarise(engine: ServingEngine, *, warmup: float = 0.2, steps_outside: int = 0) -> Run:
    """Metrics of an engine that has run, and what it recorded."""
    recorded = Recorded.of(engine)
    metrics = measure(
        recorded.steps, recorded.requests, first=FirstGaps(engine), warmup=warmup,
        steps_outside=steps_outside,
        walked=walks(engine) if engine.workload.is_closed_loop else None,
    )  # fmt: skip
    if not is_overloaded(engine, warmup=warmup):
        return Run(recorded, metrics)
    metrics = metrics.without_waiting(decoding_waits=engine.limits.has_pool)
    return Run(recorded, metrics, saturated=True)


def is_overloaded(engine: ServingEngine, *, warmup: float = 0.2) -> bool:
    """Whether more and more requests wait while they arrive, after a share of that time as warm-up."""
    arrival_s = engine.workload.arrival_s
    if arrival_s is None or not arrival_s.size:
        return False
    start_s, end_s = float(arrival_s[0]), min(float(arrival_s[-1]), engine.now_s)
    return is_saturated(*engine.served_s(), start_s + warmup * (end_s - start_s), end_s)


def arrivals(
    environment: simpy.Environment, workload: Workload, engine: ServingEngine
) -> Generator[simpy.Event, Any, None]:
    """Submit each request to one engine at its arrival time."""
    assert workload.arrival_s is not None
    reached_s = environment.now
    for request, arrival_s in enumerate(map(float, workload.arrival_s)):
        if arrival_s > reached_s:  # not ``now``, which rounding may leave just short of it: ties stay ties
            yield environment.timeout(max(0.0, arrival_s - environment.now))
            reached_s = arrival_s
        engine.submit(request)
