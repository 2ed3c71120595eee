"""What workers do for the pages: curves, lines of a frontier, coarse first and then refined."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.api.workbench import Workbench, deployment
from simulator.core.errors import SimulatorError
from simulator.deployment.profile import Profile
from simulator.hardware.choose import DRAFTERS, Hardware, first_look, profile_for, require_acceptance
from simulator.ui.explore.asked import Deployed, Explored, widths_of
from simulator.ui.running.jobs import Say, Task

Stage = Literal["formula", "coarse", "usual", "full"]
"""formula: coarse, on the formula's curve while one of measured kernels is not composed yet."""

LOADS: Mapping[Stage, tuple[int, ...]] = {
    "formula": (4, 16, 50, 120, 250),
    "coarse": (4, 16, 50, 120, 250),
    "usual": (1, 4, 10, 20, 50, 100, 150, 200, 300),
    "full": (1, 4, 8, 14, 20, 30, 45, 65, 90, 120, 160, 200, 250, 300),
}
"""Concurrent requests of each stage. coarse: a shape within a second. full: the loads of ``compare``."""

SEEDS: Mapping[Stage, int] = {"formula": 1, "coarse": 1, "usual": 1, "full": 3}

COARSE_STEPS = (400, 200, 120, 80, 60)
"""Engine steps at each load of a coarse line: a choice, few enough for a fraction of a second in all."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What answers: the profile, what to know of it, and the acceptance of its drafters.

    acceptance: name by drafter. rates: P(draft k accepted | those before) of the drafter with most drafts.
    """

    profile: Profile
    notes: tuple[str, ...]
    acceptance: Mapping[str, str]
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CurveTask:
    """Find what a deployment rests on. formula: the formula's curve, until another is composed."""

    on: Deployed
    formula: bool = False

    def run(self, say: Say) -> Curve:
        """Compose the curve where none is shipped, which takes seconds."""
        say("the formula" if self.formula else "the curve")
        bench, notes = bench_of(self.on, self.formula)
        names = {drafter: model.name for drafter, model in bench.acceptance.items()}
        longest = max(bench.acceptance.values(), key=lambda model: model.gamma)
        return Curve(bench.profile, notes, names, conditional_rates(longest))


@dataclass(frozen=True, slots=True)
class Line:
    """One policy's rows of a frontier, and what to know of them."""

    table: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LineTask:
    """Simulate one policy over the loads of a stage."""

    on: Deployed
    policy: str
    stage: Stage

    def run(self, say: Say) -> Line:
        """Sweep; loads that would rest on extrapolation are left out, with a note."""
        coarse = self.stage in ("formula", "coarse")
        say(f"{self.policy}, {'a first look' if coarse else 'refined'}")
        bench, _ = bench_of(self.on, self.stage == "formula")
        loads = LOADS[self.stage]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pieces = zip(loads, COARSE_STEPS, strict=True) if coarse else [(loads, None)]
            tables = [
                bench.frontier(self.policy, load, seeds=SEEDS[self.stage], steps=steps).table
                for load, steps in pieces
            ]
        return Line(pd.concat(tables, ignore_index=True), tuple(str(each.message) for each in caught))


def tasks_of(state: Explored) -> list[Task]:
    """Return what a state needs: the curve, every policy coarsely, then every policy as finely as asked.

    Where the curve takes seconds to compose, all of it on the formula's first, which takes a second.
    """
    stages: tuple[Stage, ...] = ("coarse", state.effort)
    lines = [LineTask(state.on, policy, stage) for stage in stages for policy in state.policies]
    tasks: list[Task] = [CurveTask(state.on), *lines]
    if not is_composed(state.on):
        return tasks
    first = [LineTask(state.on, policy, "formula") for policy in state.policies]
    return [CurveTask(state.on, formula=True), *first, *tasks]


@lru_cache(maxsize=64)
def is_composed(on: Deployed) -> bool:
    """Whether the curve of a deployment takes seconds to compose; not where it has an error to show."""
    with suppress(SimulatorError):
        return not on.profile and first_look(hardware_of(on)) is not None
    return False


def hardware_of(on: Deployed) -> Hardware:
    """Return a model on a GPU as the library reads it; whatever is empty is left to it."""
    widths: dict[str, Any] = dict(widths_of(on.layout))
    return Hardware(
        model=on.model, gpu=on.gpu, engine=on.engine or None, precision=on.precision or None,
        drafters=DRAFTERS, **widths,
    )  # fmt: skip


@lru_cache(maxsize=8)
def bench_of(on: Deployed, formula: bool = False) -> tuple[Workbench, tuple[str, ...]]:
    """Return a deployment with verbs, and what to know of it. formula: see ``CurveTask``."""
    given = [on.acceptance] if on.acceptance else []
    if on.profile:
        bench = deployment(on.profile, given)
        return bench, bench.notes
    require_acceptance(on.model, given)
    asked = hardware_of(on)
    chosen = (first_look(asked) if formula else None) or profile_for(asked)
    bench = deployment(chosen.profile, given)
    return bench, (*chosen.notes, *bench.notes)


def conditional_rates(model: AcceptanceModel, seed: int = 0) -> tuple[float, ...]:
    """Estimate P(draft k accepted | those before), over one realisation; 0 where nothing gets so far."""
    accepted = model.replay(seed).accepted
    reached = np.array([np.count_nonzero(accepted >= k) for k in range(model.gamma + 1)])
    with np.errstate(invalid="ignore"):
        return tuple(np.round(np.nan_to_num(reached[1:] / reached[:-1]), 3).tolist())
