"""The answer of ``dspark-sim compare``: tables on the terminal, CSV and the two figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from simulator.core.files import write_csv
from simulator.deployment.profile import Profile
from simulator.paper.claims_check import check_against
from simulator.report.frontier import plot_frontier, plot_load
from simulator.report.style import save
from simulator.sla.terms import Term
from simulator.sweeps.bands import load_bands
from simulator.sweeps.comparison import at_slas, baseline_of, promise, speed_gain_range


def report_comparison(frontier: pd.DataFrame, slas: Sequence[Term], profile: Profile, out: Path) -> None:
    """Write and print everything a frontier says about these SLAs.

    Nothing is written if no policy meets one of them (``InfeasibleError``).
    """
    answers = at_slas(frontier, slas)
    bands = load_bands(frontier)
    tables = {"frontier": frontier, "sla": answers, "load_bands": bands}
    published = profile.published
    if published is not None:
        tables["published"] = check_against(frontier, published)
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table, "%.8g")
    figure = plot_frontier(frontier, slas=slas, published=published, title=profile.title)
    save(figure, out / "frontier.png")
    save(plot_load(frontier, published=published, title=profile.title), out / "load.png")

    console = Console()
    console.print(f"[bold]{profile.title}[/bold]: {profile.provenance.line()}", highlight=False)
    for sla in slas:
        console.print(_sla_table(answers[answers["sla"] == sla.text], sla))
    base = baseline_of(frontier)
    console.print(
        "mean, p10: tokens/s of a user at that load; 90% of the users are faster than p10.\n"
        f"speed gain: mean speed over {base}'s, at {base}'s throughput.\n",
        highlight=False,
    )
    console.print(_bands_table(bands))
    if base != "dspark-async" and "dspark-async" in set(frontier["policy"]):
        low, high = speed_gain_range(frontier, "dspark-async")
        console.print(f"dspark-async at {base}'s throughput: {low:+.0%} to {high:+.0%} mean speed per user\n")
    if "published" in tables:
        console.print(_published_table(tables["published"]))
    names = ", ".join([*(f"{name}.csv" for name in tables), "frontier.png", "load.png"])
    console.print(f"wrote {out}/: {names}", highlight=False)


def _sla_table(answers: pd.DataFrame, sla: Term) -> Table:
    base, title = str(answers["baseline"].iloc[0]), promise(sla)
    table = _table(
        title[0].upper() + title[1:], "policy", "tokens/s/GPU", "requests", "mean", "p10", f"over {base}",
        "speed gain",
    )  # fmt: skip
    best = answers.loc[answers["policy"] != "oracle", "throughput_tok_per_s"].max()
    for row in answers.to_dict("records"):
        policy, throughput = str(row["policy"]), float(row["throughput_tok_per_s"])
        if math.isnan(throughput):
            table.add_row(policy, "cannot", *[""] * 5)
            continue
        style = "bold" if throughput == best else "dim" if policy == "oracle" else None
        bound = "≥ " if row["lower_bound"] else ""
        table.add_row(
            policy,
            f"{bound}{throughput:,.0f}",
            f"{bound}{row['concurrency']:,.0f}",
            _speed(float(row["tps_mean"])),
            _speed(float(row["tps_p10"])),
            _percent(float(row["gain"])),
            _percent(float(row["speed_gain"])),
            style=style,
        )
    return table


def _bands_table(bands: pd.DataFrame) -> Table:
    table = _table("Winning policy by load", "concurrent requests", "policy", "least lead", "over")
    for row in bands.to_dict("records"):
        margin, runner_up = float(row["margin"]), row["runner_up"]
        lead = "" if math.isnan(margin) else f"{margin:.1%}" + ("" if row["clear"] else ", within noise")
        loads = f"{row['from_concurrency']:.0f} to {row['to_concurrency']:.0f}"
        table.add_row(loads, str(row["policy"]), lead, runner_up or "")
    return table


def _published_table(check: pd.DataFrame) -> Table:
    table = _table("Predicted against published", "quantity", "published", "predicted", "error")
    for row in check.to_dict("records"):
        quantity, error = str(row["quantity"]), float(row["error"])
        form, shown = "{:,.0f}", f"{error:.1%}, mean absolute"
        if "gain" in quantity:
            form, shown = "{:+.0%}", f"{100 * error:+.0f} points"
        elif "budget" in quantity:
            form, shown = "{:.2f}", f"{error:.2f}, mean absolute"
        table.add_row(quantity, form.format(row["published"]), form.format(row["predicted"]), shown)
    return table


def _speed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _percent(value: float) -> str:
    if math.isnan(value):
        return ""
    return "+0%" if abs(value) < 0.005 else f"{value:+.0%}"  # never -0%


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
