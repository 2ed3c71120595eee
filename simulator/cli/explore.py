"""Commands that simulate: list, frontier, compare, simulate, acceptance show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli.app import acceptance_app, app
from simulator.cli.options import (
    AcceptanceOption,
    AddressOption,
    BackendOption,
    BelievedOption,
    CellsOption,
    ConcurrencyOption,
    ExtrapolateOption,
    LengthsOption,
    PolicyOption,
    ProcessLengthsOption,
    ProfileOption,
    SeedsOption,
    StepsOption,
    WorkersOption,
)
from simulator.core.errors import refuse_repeats
from simulator.core.units import numbers

if TYPE_CHECKING:
    import pandas as pd

    from simulator.api.workbench import Workbench
    from simulator.deployment.deployment import Deployment

DEFAULT_LOADS = "1,4,8,14,20,30,45,65,90,120,160,200,250,300"

DEFAULT_POLICIES = ("mtp1", "fixed:3", "fixed:5", "dspark-async", "oracle")


@app.command("list")
def list_everything() -> None:
    """Show profiles, policies and acceptance models, each with where it comes from."""
    from simulator.cli.listing import print_listing

    print_listing()


@app.command()
def frontier(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="CSV to write; - for standard output.")],
    acceptance: AcceptanceOption = None,
    policy: PolicyOption = None,
    concurrency: ConcurrencyOption = "10,20,50,100,200",
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    workers: WorkersOption = -1,
    lengths: LengthsOption = "default",
    believed: BelievedOption = None,
    extrapolate_rows: ExtrapolateOption = False,
    backend: BackendOption = "loky",
    address: AddressOption = None,
    cells: CellsOption = None,
    plot: Annotated[Path | None, typer.Option(help="Figure to write beside it (.png, .svg, .pdf).")] = None,
) -> None:
    """Sweep policies over concurrency: one row each, with confidence intervals."""
    from simulator.core.files import check_writable_file, is_standard_output, write_csv

    if plot is not None:
        from simulator.report.style import check_format

        check_format(plot)
    check_writable_file(*(path for path in (out, plot) if path is not None))
    deployment = _deployment(profile, acceptance, believed, extrapolate_rows)
    table = _sweep(
        deployment, policy, concurrency, seeds, steps, lengths,
        workers=workers, backend=backend, address=address, directory=cells,
    )  # fmt: skip
    write_csv(out, table, "%.8g")
    if plot is not None:
        from simulator.report.frontier import plot_frontier
        from simulator.report.style import save

        loaded = deployment.profile
        save(plot_frontier(table, published=loaded.published, title=loaded.title), plot)
    _warn_outside(table)
    _warn_early_stop(table)
    _warn_truncated(table)
    typer.echo(f"wrote {out}" + (f" and {plot}" if plot else ""), err=is_standard_output(out))


@app.command()
def compare(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    sla: Annotated[
        list[str],
        typer.Option(
            help="Minimum generation speed in tokens/s/user, repeatable: 80 on average (tps_mean>=80), or "
            "p10>=80 for 90% of the users."
        ),
    ],
    acceptance: AcceptanceOption = None,
    policy: PolicyOption = None,
    concurrency: ConcurrencyOption = DEFAULT_LOADS,
    seeds: SeedsOption = 3,
    steps: StepsOption = None,
    workers: WorkersOption = -1,
    lengths: LengthsOption = "default",
    believed: BelievedOption = None,
    extrapolate_rows: ExtrapolateOption = False,
    backend: BackendOption = "loky",
    address: AddressOption = None,
    cells: CellsOption = None,
) -> None:
    """Who wins under each SLA and at which load, and by how much; published results beside predictions."""
    from simulator.core.files import check_writable_directory
    from simulator.report.terminal import report_comparison
    from simulator.sweeps.comparison import parse_speed

    terms = sorted(map(parse_speed, sla), key=lambda term: term.bound)
    refuse_repeats((term.text for term in terms), "--sla")
    check_writable_directory(out)
    deployment = _deployment(profile, acceptance, believed, extrapolate_rows)
    table = _sweep(
        deployment, policy, concurrency, seeds, steps, lengths,
        workers=workers, backend=backend, address=address, directory=cells, slas=terms,
    )  # fmt: skip
    report_comparison(table, terms, deployment.profile, out)
    _warn_outside(table)
    _warn_early_stop(table)
    _warn_truncated(table)


@app.command()
def simulate(
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="Directory to write requests, steps and metrics to.")],
    policy: Annotated[str, typer.Option(help="Policy[@DRAFTER].")],
    concurrency: Annotated[int, typer.Option(min=1, help="Requests running at once.")],
    acceptance: AcceptanceOption = None,
    traffic: Annotated[
        str,
        typer.Option(help="closed, poisson:12/s, gamma:12/s,cv=3, diurnal:... or a trace FILE[@OPTIONS]."),
    ] = "closed",
    lengths: ProcessLengthsOption = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="The first N requests. Default: 2000 of a process, all of a trace file."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Engine steps; a closed loop needs an end (default 2000).")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV-cache capacity in tokens. Default: the profile's.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="elsewhere, chunked or whole.")] = "elsewhere",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random stream.")] = 0,
    believed: BelievedOption = None,
    extrapolate_rows: ExtrapolateOption = False,
) -> None:
    """Run one engine under one policy on one traffic, request by request."""
    from simulator.cli.simulate import SingleRun, write_single_run
    from simulator.core.files import check_writable_directory

    check_writable_directory(out)
    deployment = _deployment(profile, acceptance, believed, extrapolate_rows)
    run = SingleRun(policy, concurrency, traffic, lengths, requests, steps, kv_tokens, prefill, seed)
    write_single_run(deployment, run, out)
    typer.echo(f"wrote {out}")


@acceptance_app.command("show")
def acceptance_show(
    model: Annotated[str, typer.Argument(help="An acceptance model: a name, a trace file, rates, a mix.")],
    out: Annotated[
        Path, typer.Option(help="CSV to write, with a PNG of the same name beside it; - for standard output.")
    ],
    thresholds: Annotated[
        str, typer.Option(help="Confidence thresholds, comma-separated.")
    ] = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the drawn outcomes.")] = 0,
) -> None:
    """Sweep a static confidence threshold over an acceptance model (the paper's figure 5)."""
    from simulator.core.files import beside, check_writable_file, is_standard_output, write_csv
    from simulator.deployment.acceptance_text import parse_acceptance
    from simulator.report.style import save
    from simulator.report.thresholds import plot_threshold_sweep
    from simulator.sweeps.thresholds import threshold_sweep

    figure = beside(out, ".png")
    check_writable_file(*(path for path in (out, figure) if path is not None))
    parsed = parse_acceptance(model)
    table = threshold_sweep(parsed, numbers(thresholds, float, "--thresholds"), seed)
    write_csv(out, table, "%.8g")
    if figure is not None:
        save(plot_threshold_sweep(table, parsed), figure)
        typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    written = f"wrote {out}" + (f" and {figure}" if figure else "")
    typer.echo(f"{parsed.provenance.line()}\n{written}", err=is_standard_output(out))


def _deployment(
    profile: str, acceptance: list[str] | None, believed: str | None, extrapolate_rows: bool
) -> Workbench:
    from simulator.api.workbench import deployment

    made = deployment(profile, acceptance or (), believed=believed, extrapolate_rows=extrapolate_rows)
    for note in made.notes:
        typer.echo(note, err=True)
    return made


def _sweep(
    deployment: Deployment, policies: list[str] | None, concurrency: str, seeds: int, steps: int | None,
    lengths: str, **how: Any,
) -> pd.DataFrame:  # fmt: skip
    from simulator.schedulers.parse import parse_policy
    from simulator.sweeps.frontier import sweep_frontier
    from simulator.traffic.lengths import parse_lengths

    chosen = [parse_policy(text) for text in policies or DEFAULT_POLICIES]
    for policy in chosen:
        note = deployment.plan(policy).note
        if note:
            typer.echo(f"note: {note}", err=True)
    return sweep_frontier(
        deployment,
        chosen,
        numbers(concurrency, int, "--concurrency"),
        seeds=seeds,
        lengths=parse_lengths(lengths),
        steps=steps,
        progress=sys.stderr.isatty(),
        **how,
    )


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
            "ran beyond the batch sizes of the profile, where step time is clamped or extrapolated",
            err=True,
        )
