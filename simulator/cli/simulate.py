"""One simulated engine from a command line's words, and the files it leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from simulator.api.workbench import Workbench
from simulator.cli.options import say_how_read
from simulator.engine.limits import Prefill
from simulator.engine.run import SATURATED, Run, write_run
from simulator.schedulers.early_stop import early_stop_note
from simulator.traffic.parse import parse_traffic


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


def simulate_single_run(deployment: Workbench, asked: SingleRun) -> Run:
    """Simulate it, and say how a recording was read."""
    traffic = parse_traffic(asked.traffic, asked.lengths)
    say_how_read(traffic)
    return deployment.simulate(
        asked.policy, concurrency=asked.concurrency, traffic=traffic, requests=asked.requests,
        steps=asked.steps, kv_tokens=asked.kv_tokens, prefill=cast(Prefill, asked.prefill), seed=asked.seed,
    )  # fmt: skip


def write_single_run(deployment: Workbench, asked: SingleRun, out: Path) -> None:
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
