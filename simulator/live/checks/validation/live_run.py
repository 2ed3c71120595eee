"""A workload served on the device under one policy, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import simpy

from simulator.acceptance.trace import AcceptanceTrace
from simulator.deployment.setup import Setup
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits
from simulator.engine.run import Run, advance, summarise, write_run
from simulator.live.checks.validation.case import ValidationCase
from simulator.live.device import long_lived_objects_set_aside
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.observed import Decision
from simulator.live.engine.prompt_rows import prompt_rows_for
from simulator.live.engine.prompts import random_prompts
from simulator.schedulers.parse import NamedPolicy
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class LiveRun:
    """A live run: its frames and metrics, what its scheduler met, and where each step's time went.

    Steps in which a CUDA graph was recorded are not among the timings.
    """

    run: Run
    records: list[Decision]
    timings: pd.DataFrame

    @property
    def visible_schedule_share(self) -> float:
        """Share of the time that is scheduling which no pass hid."""
        return float(self.timings["visible_schedule_s"].sum() / self.timings["duration_s"].sum())

    @property
    def padding_share(self) -> float:
        """Share of the rows that were computed and that no token needed."""
        return float(1 - self.timings["batch_tokens"].sum() / self.timings["padded_tokens"].sum())


def run_live(
    scenario: ValidationCase,
    policy: NamedPolicy,
    workload: Workload,
    limits: EngineLimits,
    *,
    steps: int | None,
    salvage: Callable[[Engine, BaseException], None] = lambda engine, error: None,
) -> LiveRun:
    """Serve a workload on the device under one policy; ``salvage`` is told of a run that breaks off."""
    plan = scenario.plan(policy)
    draft = None if plan.drafter == "none" else scenario.drafter_of(plan)
    replayed = scenario.replayed and draft is not None
    replays = [plan.replay(scenario.seed)] * len(workload.classes) if replayed else None
    executor = LiveExecutor(
        scenario.target, draft, workload, concurrency=limits.concurrency,
        prompts=scenario.prompts or random_prompts(scenario.target.vocab_size, scenario.seed),
        replays=replays, prompt_rows=prompt_rows_for(workload, limits), calibration=_calibration(plan),
        options=scenario.options,
    )  # fmt: skip
    scheduler = executor.observe(plan.scheduler, keep_records=True)
    engine = Engine(
        simpy.Environment(), workload, executor, scheduler, plan.believed, limits, seed=scenario.seed
    )
    try:
        with long_lived_objects_set_aside():
            advance(engine, steps)
    except BaseException as error:
        salvage(engine, error)
        raise
    timings = pd.DataFrame(executor.timings)
    return LiveRun(
        summarise(engine), scheduler.records, timings[timings["capture_s"] == 0].drop(columns="capture_s")
    )


def write_live(
    live: LiveRun, case: ValidationCase, words: Mapping[str, object], out: Path
) -> dict[str, object]:
    """Write the files of a live run and return its description, ``run.json``.

    words: what was asked for. visible_schedule_share: of the time, seconds of scheduling that no pass hid;
    padding_share: of the rows that were computed, those that no token needed.
    """
    described = {
        "kind": "live", **words, "visible_schedule_share": live.visible_schedule_share,
        "padding_share": live.padding_share, **case.settings(),
    }  # fmt: skip
    write_run(live.run, out, described, timings=live.timings)
    return described


def _calibration(plan: Setup) -> list[float] | None:
    model = plan.acceptance
    if not isinstance(model, AcceptanceTrace) or model.temperatures is None:
        return None
    temperatures: list[float] = model.temperatures.tolist()
    return temperatures
