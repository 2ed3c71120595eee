"""``dspark-sim live`` and ``validate``: serve traffic on a device, and hold the simulation against it.

Importing this module does not import torch; running a command does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from simulator.cli.groups import Answer, grouped
from simulator.cli.measure.options import Pair, Served, command_line, show_table, sizes
from simulator.cli.options import Policy, Prefill
from simulator.core.errors import BadInputError
from simulator.core.files import check_writable_directory
from simulator.core.interruption import noting

if TYPE_CHECKING:
    from simulator.engine.engine import Engine


@grouped
def live(
    pair: Pair,
    served: Served,
    policy: Policy,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests decoding at once.")],
    out: Annotated[Path, typer.Option(help="Run directory.")],
    traffic: Annotated[str, typer.Option(help="As for simulate.")] = "closed",
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="The first N requests. Default: 256 of a process, all of a trace file."),
    ] = None,
    prefill: Prefill = "elsewhere",
    chunk: Annotated[int, typer.Option(min=1, help="Prompt rows of one step.")] = 2048,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
) -> Answer:
    """Serve traffic on a device and write the files of a simulated run, durations measured.

    A run that breaks off leaves the steps and requests it had, with the reason in unfinished.json.
    """
    check_writable_directory(out)
    model, drafters = pair.load()
    from simulator.engine.run import write_unfinished
    from simulator.live.checks.asked import Asked, validation_case
    from simulator.live.checks.validation.live_run import run_live, write_live
    from simulator.report.terminal import print_metrics
    from simulator.traffic.parse import draw_workload, names_process, parse_traffic

    asked = Asked(
        policies=[policy], concurrency=[concurrency], temperature=temperature, attention=pair.attention,
        graphs=pair.graphs, fuse=pair.fuse, simulated=False, **served.asked(),
    )  # fmt: skip
    case = validation_case(model, drafters, asked)
    case.check_profile()
    # Lengths are those of random prompts too, so that they have a default; a recording brings its own.
    source = parse_traffic(traffic, served.lengths if names_process(traffic) else None)
    workload = draw_workload(source, served.seed, requests=requests, generated=256)
    limits = case.deployment.limits(concurrency, prefill=prefill, chunk_tokens=chunk)

    def salvage(engine: Engine, error: BaseException) -> None:
        write_unfinished(engine, out, str(error) or type(error).__name__)
        Console(stderr=True).print(f"broke off; {len(engine.steps)} steps are kept in {out}")

    result = run_live(
        case, case.policies[0], workload, limits,
        steps=served.steps if workload.is_closed_loop else None, salvage=salvage,
    )  # fmt: skip
    words = {"policy": policy, "concurrency": concurrency, "traffic": traffic, "command": command_line()}
    described = write_live(result, case, words, out)
    shown = {"visible_schedule_share": f"{described['visible_schedule_share']:.2%}"}
    print_metrics(result.run, f"{policy} live on {described['device']}", shown)
    return {**described, "metrics": result.run.metrics.as_row(), "directory": out}


@grouped
def validate(
    pair: Pair,
    served: Served,
    out: Annotated[
        Path, typer.Option(help="Directory of results; an interrupted validation in it continues.")
    ],
    policies: Annotated[
        str, typer.Option(help="Policies, separated by spaces.")
    ] = "autoregressive mtp1 dspark dspark-async",
    concurrency: Annotated[str, typer.Option(help="Concurrent requests.")] = "1,4,16,64,256",
    runs: Annotated[
        int, typer.Option(min=1, help="Live runs of each cell; the median of each metric counts.")
    ] = 1,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=SHARE: exit with 1 when its median error is larger."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 is greedy; the profile's must be alike.")
    ] = 0.0,
) -> Answer:
    """Run live and simulated from one scenario and report where they differ."""
    check_writable_directory(out)
    tolerances = _tolerances(tolerance)
    model, drafters = pair.load()
    from simulator.live.checks.asked import Asked, validation_case
    from simulator.live.checks.validation.validate import validate as run
    from simulator.live.device import device_name
    from simulator.live.profiling.profile_fit import label
    from simulator.report.validation import write_validation

    asked = Asked(
        policies=policies.split(), concurrency=sizes(concurrency, "concurrency"), temperature=temperature,
        attention=pair.attention, graphs=pair.graphs, fuse=pair.fuse, **served.asked(),
    )  # fmt: skip
    case = validation_case(model, drafters, asked)
    with noting(lambda: f"finished runs are kept in {out}: the same command resumes"):
        result = run(case, out, Console(stderr=True).print, runs=runs)
    title = f"{label(model)} on {device_name(model.device)}"
    write_validation(result.errors, result.lengths, result.parity, title, out)
    show_table(result.summary().reset_index(), f"Absolute error, {title}", ("median", "max", "spread"))
    show_table(result.parity, "Decisions", ("visible_schedule_share", "padding_share"))
    result.check(tolerances)
    tables = {"errors": result.errors, "lengths": result.lengths, "parity": result.parity}
    return {"title": title, "tables": tables, "directory": out}


def _tolerances(texts: list[str] | None) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts or []]
    try:
        return {metric: float(share) for metric, _, share in pairs}
    except ValueError as error:
        raise BadInputError(
            "is not a tolerance", field="tolerance", value=texts, remedy="as in throughput_tok_per_s=0.03"
        ) from error
