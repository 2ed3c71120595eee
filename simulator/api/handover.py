"""What a plan hands to a cluster: launches, replicas by the hour, rules of its SLA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.api.launching import ENGINES, Engine, launch
from simulator.core.errors import BadInputError
from simulator.core.files import slug, without_nan, write_json, write_table, write_text
from simulator.hardware.models import load_model
from simulator.interop.launch.cluster import HOURS, DynamoTargets, dynamo, keda, llm_d
from simulator.interop.launch.settings import Launch
from simulator.planning.demand import DAY_S
from simulator.planning.plan import CapacityPlan
from simulator.sla.metric_names import Engine as Measured
from simulator.sla.prometheus import prometheus_rules
from simulator.sla.terms import Term

MEASURED: tuple[Measured, ...] = ("vllm", "sglang")
"""Engines whose metrics have names in ``sla.metric_names``."""


def launch_of(plan: CapacityPlan, engine: Engine, policy: str | None = None) -> Launch:
    """Return how an engine is started for a plan's replica; policy: None takes the recommended one."""
    scenario = plan.scenario
    memory = scenario.replica.kv_memory
    return launch(
        scenario.deployment(), policy or plan.recommended, engine, scenario.limits(),
        gpus=scenario.replica_gpus(), context_tokens=plan.context_tokens,
        memory_share=None if memory is None else memory.usable, model=_model(plan),
    )  # fmt: skip


def intervals_of(plan: CapacityPlan, policy: str | None = None) -> pd.DataFrame:
    """Replicas over the demand: start_s, end_s, rate_per_s, replicas, prefill_workers, gpus.

    prefill_workers: NaN where the speed of one is not known.
    """
    policy, scenario, day = policy or plan.recommended, plan.scenario, plan.day
    per_worker = scenario.replica.prefill_gpus or scenario.replica_gpus()
    counts = {
        "replicas": day[f"replicas {policy}"], "prefill_workers": day["prefill_gpus"] / per_worker,
        "gpus": day[f"gpus {policy}"],
    }  # fmt: skip
    times = {name: day[name] for name in ("start_s", "end_s", "rate_per_s")}
    return pd.DataFrame(times | {name: _counted(column) for name, column in counts.items()})


def hours_of(intervals: pd.DataFrame) -> pd.DataFrame | None:
    """Replicas by the hour of a day: the most that any interval of the hour needs; None for other spans.

    Columns: hour, and those of ``intervals_of`` after the times.
    """
    start, end = intervals["start_s"].to_numpy(), intervals["end_s"].to_numpy()
    if start[0] != 0 or not math.isclose(end[-1], DAY_S):
        return None
    rows = []
    for hour in range(HOURS):
        inside = (start < 3600 * (hour + 1) - 1e-6) & (end > 3600 * hour + 1e-6)
        most = intervals[inside].drop(columns=["start_s", "end_s"]).max(skipna=False)
        rows.append({"hour": hour} | most.to_dict())
    table = pd.DataFrame(rows)
    return table.assign(**{name: _counted(table[name]) for name in ("replicas", "prefill_workers", "gpus")})


def _counted(column: pd.Series[float]) -> pd.Series[float] | pd.Series[int]:
    """Return counts as whole numbers where all are known and whole: others read 17 and not 17.0."""
    whole = bool(column.notna().all() and (column == column.round()).all())
    return column.astype(int) if whole else column


def write_handover(plan: CapacityPlan, folder: Path, form: str = "csv") -> None:
    """Write a folder for each engine, replicas as JSON, table and manifests, rules, and what is in it."""
    listed: dict[str, str] = {}
    for engine in ENGINES:
        try:
            made = launch_of(plan, engine)
            made.write(folder / engine)
            listed[f"{engine}/launch.sh"] = f"starts {made.engine} {made.checked}"
        except BadInputError as error:
            listed[f"{engine}/"] = f"not written: {error}"
    listed |= _write_replicas(plan, folder, form)
    name = slug(plan.scenario.name)
    for measured in MEASURED:
        write_text(folder / f"rules-{measured}.yaml", prometheus_rules(plan.sla, measured, name))
        listed[f"rules-{measured}.yaml"] = f"PrometheusRule: the SLA's terms as {measured} measures them"
    lines = [f"# {plan.answer}", "", "| file | what |", "| --- | --- |"]
    lines += [f"| `{file}` | {what.replace('|', '/')} |" for file, what in listed.items()]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _write_replicas(plan: CapacityPlan, folder: Path, form: str) -> dict[str, str]:
    intervals = intervals_of(plan)
    hours = hours_of(intervals)
    replica_gpus = plan.scenario.replica_gpus()
    write_json(folder / "replicas.json", {
        "schema": 1, "policy": plan.recommended, "headroom": plan.scenario.fleet.headroom,
        "replica_gpus": replica_gpus,
        "hours": None if hours is None else without_nan(hours.to_dict("records")),
        "intervals": without_nan(intervals.to_dict("records")),
    })  # fmt: skip
    listed = {"replicas.json": "replicas by interval of the demand, and by hour where it is a day's"}
    name = slug(plan.scenario.name)
    if hours is not None:
        write_table(folder / f"hours.{form}", hours)
        write_text(folder / "keda.yaml", keda(_deployments(name, hours)))
        listed |= {f"hours.{form}": "replicas by the hour", "keda.yaml": "KEDA's ScaledObject, cron triggers"}
    else:
        listed["keda.yaml"] = "not written: the demand is not a day's, and cron has no other clock"
    write_text(folder / "dynamo.yaml", dynamo(_dynamo(plan, intervals)))
    cost = replica_gpus * plan.scenario.price.gpu_hour
    write_text(folder / "llm-d.yaml", llm_d(name, _model(plan) or name, cost))
    return listed | {
        "dynamo.yaml": "targets and limits for Dynamo's planner, which takes no schedule",
        "llm-d.yaml": "llm-d's VariantAutoscaling: what a replica costs, no schedule",
    }


def _deployments(name: str, hours: pd.DataFrame) -> Mapping[str, list[int]]:
    """Return replicas by the hour of each Deployment: decode, and prefill where its workers are known."""
    replicas = {name: hours["replicas"].tolist()}
    workers = hours["prefill_workers"]
    if workers.notna().all() and (workers > 0).any():
        replicas[f"{name}-prefill"] = [math.ceil(count - 1e-9) for count in workers]
    return replicas


def _dynamo(plan: CapacityPlan, intervals: pd.DataFrame) -> DynamoTargets:
    scenario = plan.scenario
    elsewhere = scenario.replica.prefill == "elsewhere"
    workers = intervals["prefill_workers"]
    counts = [int(intervals["replicas"].min())]
    counts += [int(workers.min())] if elsewhere and workers.notna().all() else []
    gpus = intervals["gpus"] if intervals["gpus"].notna().all() else intervals["replicas"]
    drafts = scenario.deployment().plan(plan.recommended)
    return DynamoTargets(
        backend=(scenario.hardware and scenario.hardware.engine) or "vllm", disaggregated=elsewhere,
        ttft_ms=_target_ms(plan, "ttft"), itl_ms=_target_ms(plan, "itl", "tpot", "tps"),
        most_gpus=int(np.ceil(gpus.max())), fewest_replicas=max(1, min(counts)),
        replica_gpus=scenario.replica_gpus(),
        prefill_gpus=scenario.replica.prefill_gpus or scenario.replica_gpus() if elsewhere else None,
        drafts=0 if drafts.acceptance is None else drafts.acceptance.gamma,
    )  # fmt: skip


def _target_ms(plan: CapacityPlan, *metrics: str) -> float | None:
    """Return the tightest bound of the first of these metrics that is promised; a speed as its inverse."""

    def milliseconds(term: Term) -> float:
        return 1e3 / term.bound if term.metric == "tps" else 1e3 * term.bound

    for metric in metrics:
        found = [milliseconds(term) for term in plan.sla.terms if term.metric == metric]
        if found:
            return round(min(found), 3)
    return None


def _model(plan: CapacityPlan) -> str | None:
    hardware = plan.scenario.hardware
    return None if hardware is None else load_model(hardware.model).name
