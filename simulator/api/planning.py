"""A capacity plan from a scenario, and its report."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.api.handover import hours_of, intervals_of, launch_of, write_handover
from simulator.api.launching import Engine
from simulator.interop.launch.settings import Launch
from simulator.parallel.cells import Sweeping
from simulator.planning.checks import checked_scenario
from simulator.planning.plan import CapacityPlan, write_tables
from simulator.planning.plan import plan as make_plan
from simulator.planning.scenario.scenario import Scenario


class Plan(CapacityPlan):
    """A capacity plan that writes its report."""

    __slots__ = ()

    def report(self, out: str | Path, tables: str = "csv") -> Path:
        """Write report.html, tables, PNG figures, plan.json and ``cluster/``.

        See ``api.handover.write_handover`` for ``cluster/``.

        Parameters
        ----------
        out
            Folder, made where it is missing.
        tables
            Format of the tables: ``csv`` or ``parquet``.

        Returns
        -------
        Path
            The page, report.html.
        """
        from simulator.report.page import write_report
        from simulator.report.plan.figures import write_figures

        folder = Path(out)
        write_tables(self, folder, tables)
        write_figures(self, folder)
        write_report(self, folder / "report.html")
        write_handover(self, folder / "cluster", tables)
        return folder / "report.html"

    def launch(self, engine: Engine, policy: str | None = None) -> Launch:
        """Say how an engine is started for a policy.

        Parameters
        ----------
        engine
            ``vllm``, ``sglang`` or ``trtllm``.
        policy
            Name of a policy of the plan; the recommended one by default.

        Returns
        -------
        Launch
            Its ``write(folder)`` writes launch.sh and the files that it names.

        Raises
        ------
        BadInputError
            If the plan has no such policy, or the engine cannot run it.
        """
        return launch_of(self, engine, policy)

    def replicas(self, policy: str | None = None) -> pd.DataFrame:
        """Return replicas by the hour of a day, or by interval where the demand spans anything else.

        Parameters
        ----------
        policy
            Name of a policy of the plan; the recommended one by default.

        Returns
        -------
        DataFrame
            A row per hour or interval, with its start and its replicas.
        """
        intervals = intervals_of(self, policy)
        hours = hours_of(intervals)
        return intervals if hours is None else hours


def plan(
    scenario: str | Path | Scenario, *, workers: int = 1, sweeping: Sweeping | None = None, **how: Any
) -> Plan:
    """Plan GPUs and cost for a scenario.

    Parameters
    ----------
    scenario
        A file, or a scenario that is loaded.
    workers
        Processes that simulate.
    sweeping
        How cells run, in place of ``workers`` and ``how``.
    **how
        Further fields of ``Sweeping``, such as the directory of a resumable run.

    Returns
    -------
    Plan
        GPUs, cost and sensitivity for each policy; ``report`` writes them.

    Raises
    ------
    InfeasibleError
        If no policy keeps the SLA.
    BadInputError
        If the scenario cannot be read; it names the file and the field.
    """
    base = Path()
    if not isinstance(scenario, Scenario):
        base = Path(scenario).parent
        scenario = checked_scenario(Path(scenario))
    made = make_plan(scenario, base=base, sweeping=sweeping or Sweeping(workers=workers, **how))
    return Plan(**{field.name: getattr(made, field.name) for field in fields(CapacityPlan) if field.init})
