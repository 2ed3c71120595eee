"""A capacity plan from a scenario, and its report."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from simulator.api.launching import Engine, launch
from simulator.hardware.models import load_model
from simulator.interop.launch.settings import Launch
from simulator.parallel.cells import Sweeping
from simulator.planning.checks import checked_scenario
from simulator.planning.plan import CapacityPlan, write_tables
from simulator.planning.plan import plan as make_plan
from simulator.planning.scenario import Scenario


class Plan(CapacityPlan):
    """A capacity plan that writes its report."""

    __slots__ = ()

    def report(self, out: str | Path, tables: str = "csv") -> Path:
        """Write report.html, tables (csv or parquet), PNG figures and plan.json; returns the page's path."""
        from simulator.report.page import write_report
        from simulator.report.plan_figures import write_figures

        folder = Path(out)
        write_tables(self, folder, tables)
        write_figures(self, folder)
        write_report(self, folder / "report.html")
        return folder / "report.html"

    def launch(self, engine: Engine, policy: str | None = None) -> Launch:
        """Return how an engine is started for a policy, the recommended one unless another is named.

        engine: vllm, sglang or trtllm. ``write(folder)`` of what comes back writes launch.sh and its files.
        """
        return launch_of(self, engine, policy)


def launch_of(plan: CapacityPlan, engine: Engine, policy: str | None = None) -> Launch:
    """Return how an engine is started for a plan's replica; see ``Plan.launch``."""
    scenario = plan.scenario
    memory, hardware = scenario.replica.kv_memory, scenario.hardware
    return launch(
        scenario.deployment(), policy or plan.recommended, engine, scenario.limits(),
        gpus=scenario.replica_gpus(), context_tokens=plan.context_tokens,
        memory_share=None if memory is None else memory.usable,
        model=None if hardware is None else load_model(hardware.model).name,
    )  # fmt: skip


def plan(scenario: str | Path | Scenario, *, workers: int = 1, **how: Any) -> Plan:
    """Plan GPUs and cost for a scenario: a file, or one that is loaded.

    workers: processes. how: further fields of ``Sweeping``, such as the directory of a resumable run.
    Raises ``InfeasibleError`` where no policy keeps the SLA, and ``BadInputError`` that names the file.
    """
    base = Path()
    if not isinstance(scenario, Scenario):
        base = Path(scenario).parent
        scenario = checked_scenario(Path(scenario))
    made = make_plan(scenario, base=base, sweeping=Sweeping(workers=workers, **how))
    return Plan(**{field.name: getattr(made, field.name) for field in fields(CapacityPlan) if field.init})
