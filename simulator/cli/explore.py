"""Commands that simulate: list, frontier, compare, simulate, acceptance show; and ui, the app."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.groups import Answer, grouped
from simulator.cli.options import (
    Believing,
    Concurrency,
    KeptWorkers,
    Limits,
    Policies,
    Policy,
    ProcessLengths,
    Replications,
    Seed,
    Tables,
    completing,
    say_contexts,
    say_how_read,
)
from simulator.core.errors import BadInputError, Interrupted, refuse_repeats
from simulator.core.units import numbers

if TYPE_CHECKING:
    import pandas as pd

    from simulator.api.workbench import Workbench

DEFAULT_LOADS = "1,4,8,14,20,30,45,65,90,120,160,200,250,300"

DEFAULT_POLICIES = ("mtp1", "mtp3", "fixed:3", "fixed:5", "dspark-async", "oracle")
"""What is compared unless told otherwise; ``mtp3`` only where that drafter is known."""


def list_everything(
    models: Annotated[bool, typer.Option("--models", help="Models that --model names.")] = False,
    gpus: Annotated[bool, typer.Option("--gpus", help="GPUs that --gpu names.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Show what holds this model, and how.", autocompletion=completing("models")),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="With --model: every layout of these GPUs, comma-separated.",
            autocompletion=completing("gpus"),
        ),
    ] = None,
) -> Answer:
    """Show profiles, policies and acceptance models, each with where it comes from; or models, or GPUs.

    With --model: the smallest layout of every GPU, or with --gpu every layout of a node. Exit 1: no GPU named
    holds the model.
    """
    from simulator.cli.listing import listed, print_fits, print_gpus, print_listing, print_models

    if model is not None:
        return {"layouts": print_fits(model, None if gpu is None else gpu.split(","))}
    if gpu is not None:
        raise BadInputError("is missing", source="--model", remedy="--gpu shows what it holds of a model")
    if models:
        print_models()
    if gpus:
        print_gpus()
    if not models and not gpus:
        print_listing()
    return listed(models=models, gpus=gpus)


@grouped
def frontier(
    deployed: Believing,
    out: Annotated[Path, typer.Option(help="CSV or FILE.parquet to write; - for standard output.")],
    replications: Replications,
    kept: KeptWorkers,
    policy: Policies = None,
    concurrency: Concurrency = "10,20,50,100,200",
    plot: Annotated[Path | None, typer.Option(help="Figure to write beside it (.png, .svg, .pdf).")] = None,
) -> Answer:
    """Sweep policies over concurrency: one row each, with confidence intervals."""
    from simulator.core.files import check_writable_file, is_standard_output, write_table

    if plot is not None:
        from simulator.report.drawing.style import check_format

        check_format(plot)
    check_writable_file(*(path for path in (out, plot) if path is not None))
    bench = deployed.workbench(replications.longest())
    table = _sweep(bench, policy, concurrency, replications, kept)
    write_table(out, table, "%.8g")
    if plot is not None:
        from simulator.report.drawing.style import save
        from simulator.report.frontier import plot_frontier

        save(plot_frontier(table, published=bench.profile.published, title=bench.profile.title), plot)
    _warn(table)
    typer.echo(f"wrote {out}" + (f" and {plot}" if plot else ""), err=is_standard_output(out))
    return {"tables": {"frontier": table}, "files": [path for path in (out, plot) if path is not None]}


@grouped
def compare(
    deployed: Believing,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    sla: Annotated[
        list[str],
        typer.Option(
            help="Minimum generation speed in tokens/s/user, repeatable: 80 on average (tps_mean>=80), or "
            "p10>=80 for 90% of the users."
        ),
    ],
    replications: Replications,
    kept: KeptWorkers,
    policy: Policies = None,
    concurrency: Concurrency = DEFAULT_LOADS,
    tables: Tables = "csv",
) -> Answer:
    """Who wins under each SLA and at which load, and by how much; published results beside predictions."""
    from simulator.core.files import check_writable_directory
    from simulator.report.terminal import report_comparison
    from simulator.sweeps.comparison import parse_speed

    terms = sorted(map(parse_speed, sla), key=lambda term: term.bound)
    refuse_repeats((term.text for term in terms), "sla")
    check_writable_directory(out)
    bench = deployed.workbench(replications.longest())
    table = _sweep(bench, policy, concurrency, replications, kept, slas=terms)
    found = report_comparison(table, terms, bench.profile, out, tables)
    _warn(table)
    return {"profile": bench.profile.name, "tables": found, "directory": out}


@grouped
def simulate(
    deployed: Believing,
    out: Annotated[Path, typer.Option(help="Directory to write requests, steps and metrics to.")],
    policy: Policy,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests running at once.")],
    limits: Limits,
    traffic: Annotated[
        str,
        typer.Option(
            help="closed, poisson:12/s, gamma:12/s,cv=3, diurnal:... or a trace FILE or FILE@OPTIONS."
        ),
    ] = "closed",
    lengths: ProcessLengths = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="The first N requests. Default: 2000 of a process, all of a trace file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Engine steps; a closed loop needs an end (default 2000).")
    ] = None,
    seed: Seed = 0,
) -> Answer:
    """Run one engine under one policy on one traffic, request by request."""
    from simulator.core.files import check_writable_directory
    from simulator.report.terminal import report_run
    from simulator.traffic.parse import parse_traffic
    from simulator.traffic.sources import longest_in

    check_writable_directory(out)
    source = parse_traffic(traffic, lengths)
    bench = deployed.workbench(sum(longest_in(source)))
    say_how_read(source)
    run = bench.simulate(
        policy, concurrency=concurrency, traffic=source, requests=requests, steps=steps, seed=seed,
        **limits.asked(),
    )  # fmt: skip
    asked = {
        "policy": policy, "concurrency": concurrency, "traffic": traffic, "lengths": lengths,
        "requests": requests, "steps": steps, "seed": seed, **limits.asked(),
    }  # fmt: skip
    report_run(run, bench, asked, out)
    typer.echo(f"wrote {out}")
    return {"saturated": run.saturated, "metrics": run.metrics.as_row(), "asked": asked, "directory": out}


def acceptance_show(
    model: Annotated[
        str,
        typer.Argument(
            help="An acceptance model: a name, a trace file, rates, a mix.",
            autocompletion=completing("acceptance"),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="CSV or FILE.parquet to write, with a PNG of the same name beside it; - for standard output."
        ),
    ],
    thresholds: Annotated[
        str, typer.Option(help="Confidence thresholds, comma-separated.")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    seed: Seed = 0,
) -> Answer:
    """Sweep a static confidence threshold over an acceptance model (the paper's figure 5)."""
    from simulator.core.files import beside, check_writable_file, is_standard_output, write_table
    from simulator.deployment.acceptance_text import parse_acceptance
    from simulator.report.drawing.style import save
    from simulator.report.terminal import print_thresholds
    from simulator.report.thresholds import plot_threshold_sweep
    from simulator.sweeps.thresholds import threshold_sweep

    figure = beside(out, ".png")
    check_writable_file(*(path for path in (out, figure) if path is not None))
    parsed = parse_acceptance(model)
    table = threshold_sweep(parsed, numbers(thresholds, float, "thresholds"), seed)
    write_table(out, table, "%.8g")
    if figure is not None:
        save(plot_threshold_sweep(table, parsed), figure)
        print_thresholds(table)
    written = f"wrote {out}" + (f" and {figure}" if figure else "")
    typer.echo(f"{parsed.provenance.line()}\n{written}", err=is_standard_output(out))
    return {
        "acceptance": parsed.name, "provenance": parsed.provenance.line(), "tables": {"thresholds": table},
        "files": [path for path in (out, figure) if path is not None],
    }  # fmt: skip


def ui(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 8050,
    opened: Annotated[
        bool, typer.Option("--open/--no-browser", help="Open the page in the browser once it is served.")
    ] = True,
) -> None:
    """Explore, plan and check in a browser: an app on this machine that needs no network."""
    from contextlib import suppress
    from importlib.util import find_spec

    if find_spec("dash") is None:
        raise BadInputError(
            "needs the package dash", source="ui", remedy="pip install 'dspark-simulator[ui]'"
        )
    from simulator.ui.running.jobs import Jobs

    jobs = Jobs()  # first: its imports go on beside those of the app

    from simulator.ui.app import Served

    served = Served(port, jobs)
    typer.echo(f"serving {served.address}\nCtrl-C ends it, and every run", err=True)
    if opened:
        import webbrowser

        webbrowser.open(served.address)
    with suppress(Interrupted):  # which is how it ends
        try:
            served.run()
        finally:
            served.close()


def _sweep(
    bench: Workbench, policies: list[str] | None, concurrency: str, replications: Replications,
    kept: KeptWorkers, **how: Any,
) -> pd.DataFrame:  # fmt: skip
    chosen = policies or [name for name in DEFAULT_POLICIES if name != "mtp3" or _knows_mtp3(bench)]
    for policy in chosen:
        if note := bench.plan(policy).note:
            typer.echo(f"note: {note}", err=True)
    drawn = replications.drawn()
    say_contexts(bench, drawn)
    return bench.frontier(
        chosen, numbers(concurrency, int, "concurrency"), seeds=replications.seeds,
        lengths=drawn, steps=replications.steps, progress=sys.stderr.isatty(),
        **kept.how(), **how,
    ).table  # fmt: skip


def _knows_mtp3(bench: Workbench) -> bool:
    priced = bench.profile.drafters
    return (
        "mtp" in bench.acceptance
        and bench.acceptance["mtp"].gamma >= 3
        and (priced is None or "mtp" in priced)
    )


def _warn(table: pd.DataFrame) -> None:
    _warn_outside(table)
    _warn_early_stop(table)
    _warn_truncated(table)


def _warn_truncated(table: pd.DataFrame) -> None:
    from simulator.sweeps.frontier import FEW_TURNOVERS

    worst = table.iloc[int(table["finished_per_slot"].argmin())]
    if worst["finished_per_slot"] < FEW_TURNOVERS:
        typer.echo(
            f"warning: {worst['policy']} at {worst['concurrency']} requests finished only "
            f"{worst['finished_per_slot']:.1f} requests per slot: short outputs finish first, so "
            "that p10 and p50 of speed are theirs; give more --steps, or leave them out",
            err=True,
        )


def _warn_early_stop(table: pd.DataFrame) -> None:
    """Say the largest loss of each policy that stops early, and at which load."""
    from simulator.schedulers.early_stop import early_stop_note

    for policy, rows in table.groupby("policy", sort=False):
        worst = rows.iloc[int(rows["early_stop_loss"].argmax())]
        where = f"at {worst['concurrency']} requests"
        if note := early_stop_note(str(policy), float(worst["early_stop_loss"]), where):
            typer.echo(f"warning: {note}", err=True)


def _warn_outside(table: pd.DataFrame) -> None:
    worst = table.iloc[int(table["steps_outside_fraction"].argmax())]
    share = float(worst["steps_outside_fraction"])
    if share > 0:
        typer.echo(
            f"warning: up to {share:.0%} of the steps ({worst['policy']} at {worst['concurrency']} requests) "
            "ran beyond the batch sizes of the profile, where step time is clamped or extrapolated; measure "
            "larger batches, or leave such loads out",
            err=True,
        )
