"""One simulated engine from a command line's words, and the files it leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from simulator.cli.options import say_how_read
from simulator.deployment.deployment import Deployment
from simulator.engine.limits import Prefill
from simulator.engine.run import SATURATED, Run, enough_requests, require_steps, simulate, write_run
from simulator.schedulers.early_stop import early_stop_note
from simulator.schedulers.parse import parse_policy
from simulator.traffic.parse import draw_workload, parse_traffic

CLOSED_LOOP_STEPS = 2000
"""Least engine steps of a closed loop unless told otherwise: it has no end of its own. It goes on until
every slot has finished some requests; see ``engine.run.enough_requests``."""

GENERATED_REQUESTS = 2000
"""Requests of an arrival process or a closed loop unless told otherwise; a recording is played whole."""


@dataclass(frozen=True, slots=True)
class SingleRun:
    """What to run, in the words of the command line; see ``dspark-sim simulate --help``."""

    policy: str
    concurrency: int
    traffic: str
    lengths: str | None
    requests: int | None
    steps: int | None
    kv_tokens: int | None
    prefill: str
    seed: int


def simulate_single_run(deployment: Deployment, asked: SingleRun) -> Run:
    """Simulate it."""
    require_steps(asked.steps, source="dspark-sim simulate")
    plan = deployment.answerable(deployment.plan(parse_policy(asked.policy)), asked.concurrency)
    traffic = parse_traffic(asked.traffic, asked.lengths)
    say_how_read(traffic)
    workload = draw_workload(traffic, asked.seed, requests=asked.requests, generated=GENERATED_REQUESTS)
    limits = deployment.limits(
        asked.concurrency, kv_tokens=asked.kv_tokens, prefill=cast(Prefill, asked.prefill)
    )
    steps, finish = asked.steps, 0
    if steps is None and workload.is_closed_loop:
        steps, finish = CLOSED_LOOP_STEPS, enough_requests(asked.concurrency)
    run = simulate(
        workload,
        [plan.replay(asked.seed)] * len(workload.classes),
        plan.scheduler,
        plan.cost,
        limits,
        believed=plan.believed,
        seed=asked.seed,
        steps=steps,
        finish=finish,
    )
    decode = run.steps[run.steps["requests"] > 0]
    rows = float((decode["requests"] + decode["draft_tokens"]).mean())
    refused = None if deployment.extrapolate_rows else plan.extrapolated(rows, asked.concurrency)
    if refused is not None:
        raise refused
    return run


def write_single_run(deployment: Deployment, asked: SingleRun, out: Path) -> None:
    """Simulate it, write its files and show its metrics."""
    run = simulate_single_run(deployment, asked)
    models = {drafter: model.name for drafter, model in deployment.acceptance.items()}
    profile = deployment.profile
    write_run(
        run,
        out,
        {
            "kind": "simulated",
            "profile": profile.name,
            "profile_provenance": profile.provenance.model_dump(mode="json", exclude_none=True),
            "acceptance": models,
            **asdict(asked),
        },
    )
    table = Table(title=f"{asked.policy} on {profile.title}", box=None, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in run.metrics.as_row().items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console = Console()
    console.print(table)
    if run.saturated:
        console.print(SATURATED)
    where = f"at {run.metrics.concurrency_mean:.3g} requests on average"
    if note := early_stop_note(asked.policy, run.early_stop_loss, where):
        console.print(f"warning: {note}")
