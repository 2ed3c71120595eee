"""A fleet: replicas of one engine behind a router, whole or as pods that run in parallel.

A pod is a router and its replicas in one simpy environment. A fleet is one pod, or several pods that take
turns at the traffic, as in large installations. Pods do not interact, so each is a cell of a sweep. A
round-robin router has no state to share: its replicas are pods of one replica, and each receives the same
requests as from a single router.

``Fleet.prefill_workers`` gives a pod one prefill pool for all of its replicas. The pool lies behind the
router: a request goes to its decode replica on arrival, as in serving engines that keep the prefix there, and
its prompt joins the one line of the pool. Replicas of a shared pool are in one pod, also with round robin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.core.errors import BadInputError
from simulator.deployment.setup import Setup
from simulator.engine.measures.metrics import Metrics
from simulator.fleet.layout import COOLDOWN, WARMUP, Fleet
from simulator.fleet.pod import FleetPart, PodRun, ReplicaRun, run_part, run_part_row
from simulator.parallel.backends import Backend
from simulator.parallel.cells import run_cells
from simulator.sla.observed import Observed, pool
from simulator.sla.terms import Sla
from simulator.sla.verdict import Assessment, assess, saturated_assessment
from simulator.traffic.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class FleetRun:
    """The result of a fleet.

    fleet: its layout. requests, rate_per_s: of the whole workload. assessment: against the SLA.
    metrics: means over replicas; None where no replica could be measured or the fleet is saturated.
    """

    fleet: Fleet
    requests: int
    rate_per_s: float
    assessment: Assessment
    metrics: Metrics | None
    parts: tuple[ReplicaRun, ...]
    observed: Observed | None

    @property
    def replicas(self) -> pd.DataFrame:
        """A row per replica, columns of ``ReplicaRun.as_row``."""
        import pandas as pd

        return pd.DataFrame([each.as_row() for each in self.parts])

    @property
    def rows_mean(self) -> float:
        """Mean rows of a decode step at the replica with the most."""
        return max(each.rows_mean for each in self.parts)


def simulate_fleet(
    workload: Workload,
    plans: Sequence[Setup],
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
    judged_s = measured_span(workload)
    parts = [
        FleetPart(workload, tuple(plans), fleet, sla, judged_s, seed, index)
        for index in range(fleet.pod_count)
    ]
    if directory is None:
        runs = run_cells(
            run_part, parts, workers=workers, label="Fleet", progress=progress,
            backend=backend, address=address,
        )  # fmt: skip
        return _together(workload, fleet, sla, runs)
    rows = run_cells(
        run_part_row, parts, workers=workers, label="Fleet", progress=progress,
        backend=backend, address=address, directory=directory,
    )  # fmt: skip
    return _together(workload, fleet, sla, [PodRun.from_row(row) for row in rows])


def measured_span(workload: Workload) -> tuple[float, float]:
    """Return the span of arrivals that is judged, in s: without warm-up and cool-down."""
    assert workload.arrival_s is not None
    start_s, span_s = float(workload.arrival_s[0]), workload.span_s
    return start_s + WARMUP * span_s, start_s + (1 - COOLDOWN) * span_s


def mean_metrics(measured: Sequence[Metrics]) -> Metrics | None:
    """Return means over replicas without undefined ones; the interval of throughput is of the mean."""
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


def _together(workload: Workload, fleet: Fleet, sla: Sla, runs: Sequence[PodRun]) -> FleetRun:
    parts = tuple(each for run in runs for each in run.replicas)
    metrics = mean_metrics([one for run in runs for one in run.metrics])
    saturated = sum(run.requests for run in runs if run.saturated)
    what = (fleet, len(workload), workload.rate_per_s)
    # 1% is a choice: one pod in a hundred may look saturated by chance.
    if metrics is None or saturated > 0.01 * sum(run.requests for run in runs):
        overrun = saturated_assessment(sla, sum(run.requests for run in runs))
        return FleetRun(*what, overrun, None, parts, None)
    pooled = [run.observed for run in runs if run.observed is not None]
    observed = pooled[0] if len(pooled) == 1 else pool(pooled)  # a pod has pooled its replicas
    start_s, end_s = measured_span(workload)
    return FleetRun(*what, assess(sla, observed, metrics, end_s - start_s), metrics, parts, observed)
