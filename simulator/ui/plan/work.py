"""What workers do for the page Plan: a capacity plan, coarse or as its scenario asks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.api.hardware_plan import COARSE
from simulator.api.planning import Plan, plan
from simulator.core.errors import BadInputError
from simulator.hardware.gpus import load_gpu
from simulator.parallel.cells import Sweeping
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.scenario.sections import SearchSpec
from simulator.ui.plan.asked import Effort, Planned, on_gpu, scenario_of
from simulator.ui.running.jobs import Say, Task
from simulator.ui.security import check_hardware


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan, and warnings of its making."""

    plan: Plan
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanTask:
    """Plan a scenario. gpu: in place of the scenario's, where not empty."""

    text: str
    gpu: str
    effort: Effort

    def scenario(self) -> Scenario:
        """Return the scenario as it is planned."""
        scenario = scenario_of(self.text)
        if self.gpu:
            if scenario.hardware is None:
                raise BadInputError(
                    "is measured on its own GPU", source="scenario", field="profile", value=scenario.profile,
                    remedy="name a model to plan on several GPUs",
                )  # fmt: skip
            check_hardware(scenario.hardware.model, self.gpu)
            scenario = on_gpu(scenario, self.gpu, load_gpu(self.gpu).price_per_hour)
        if self.effort == "scenario":
            return scenario
        coarse = SearchSpec(seed=scenario.search.seed, extrapolate_rows=scenario.search.extrapolate_rows)
        return scenario.model_copy(update={"search": coarse.model_copy(update=_coarse())})

    def run(self, say: Say) -> Answer:
        """Plan it; what is under way is said search by search."""
        on = f"{self.gpu}: " if self.gpu else ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = plan(self.scenario(), sweeping=_Watched(say=lambda text: say(on + text)))
        return Answer(found, tuple(dict.fromkeys(str(each.message) for each in caught)))


def _coarse() -> dict[str, Any]:
    return dict(COARSE) | {"concurrency": tuple(COARSE["concurrency"])}  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched(Sweeping):
    """Sweeps in this process that say which cell of which sweep is under way."""

    say: Say

    def run(self, function: Any, cells: Sequence[Any], label: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for index, cell in enumerate(cells, 1):
            self.say(f"{label.lower()}, {index} of {len(cells)}")
            rows += Sweeping.run(self, function, [cell], label)
        return rows


def tasks_of(state: Planned) -> list[Task]:
    """Return the plans that a state needs, coarse ones first."""
    efforts: tuple[Effort, ...] = ("first",) if state.effort == "first" else ("first", "scenario")
    return [PlanTask(state.text, gpu, effort) for effort in efforts for gpu in ("", *state.gpus)]
