"""The answers of ``simulate``, ``compare`` and ``plan`` on the terminal, and files of the first two."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from simulator.core.files import write_table
from simulator.core.units import readable, readable_column, share, signed_share
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile, beyond_contexts
from simulator.engine.run import SATURATED, Run, write_run
from simulator.paper.claims_check import check_against
from simulator.planning.plan import CapacityPlan
from simulator.report.drawing.style import save
from simulator.report.frontier import plot_frontier, plot_load, replica_of
from simulator.report.plan.decision import decision
from simulator.report.plan.tables import COST, LOADS, ShownTable, fared, fleets
from simulator.schedulers.early_stop import early_stop_note
from simulator.sla.terms import Term
from simulator.sweeps.bands import load_bands
from simulator.sweeps.comparison import at_slas, baseline_of, promise, speed_gain_range


def report_run(run: Run, deployment: Deployment, asked: Mapping[str, object], out: Path) -> None:
    """Write one engine's requests, steps and ``run.json``, and print its metrics with what to know of them.

    asked: what was asked for, in the words of the command line; it stands in ``run.json``.
    """
    profile = deployment.profile
    provenance = profile.provenance.model_dump(mode="json", exclude_none=True)
    models = {drafter: model.name for drafter, model in deployment.acceptance.items()}
    described = {"profile": profile.name, "profile_provenance": provenance, "acceptance": models, **asked}
    write_run(run, out, {"kind": "simulated", **described})
    print_metrics(run, f"{asked['policy']} on {profile.title}")
    where = f"at {run.metrics.concurrency_mean:.3g} requests on average"
    lengths = (run.requests["prompt_tokens"], run.requests["output_tokens"])
    notes = (
        early_stop_note(str(asked["policy"]), run.early_stop_loss, where),
        beyond_contexts(profile, *lengths),
    )
    for note in filter(None, notes):
        Console().print(f"warning: {note}")


def print_metrics(run: Run, title: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print the metrics of one engine's run, a line each, with what else there is to say of it."""
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in run.metrics.as_row().items():
        table.add_row(name, _shown(name, value))
    for name, text in more.items():
        table.add_row(name, text)
    console = Console()
    console.print(table)
    if run.saturated:
        console.print(SATURATED)


def _shown(metric: str, value: int | float) -> str:
    """Write a metric's value, shares in percent."""
    if not isinstance(value, float):
        return f"{value:,}"
    return share(value, 2) if metric.endswith(("_fraction", "acceptance_rate")) else f"{value:,.4g}"


def report_comparison(
    frontier: pd.DataFrame, slas: Sequence[Term], profile: Profile, out: Path, form: str = "csv"
) -> dict[str, pd.DataFrame]:
    """Write and print everything a frontier says about these SLAs; returns the tables by name.

    Nothing is written if no policy meets one of them (``InfeasibleError``).
    """
    answers = at_slas(frontier, slas)
    bands = load_bands(frontier)
    tables = {"frontier": frontier, "sla": answers, "load_bands": bands}
    published = profile.published
    if published is not None:
        tables["published"] = check_against(frontier, published)
    for name, table in tables.items():
        write_table(out / f"{name}.{form}", table, "%.8g")
    figure = plot_frontier(frontier, slas=slas, published=published, title=profile.title)
    save(figure, out / "frontier.png")
    save(plot_load(frontier, published=published, title=profile.title), out / "load.png")

    console = Console()
    said = escape(profile.provenance.line())
    console.print(f"[bold]{escape(profile.title)}[/bold]: {said}", highlight=False)
    for sla in slas:
        console.print(_sla_table(answers[answers["sla"] == sla.text], sla, replica_of(frontier)))
    base = baseline_of(frontier)
    if replica_of(frontier) != "GPU":
        console.print(f"tokens/s, requests: those of a {replica_of(frontier)}.", highlight=False)
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
    names = ", ".join([*(f"{name}.{form}" for name in tables), "frontier.png", "load.png"])
    console.print(f"wrote {out}/: {names}", highlight=False)
    return tables


def print_hardware(table: pd.DataFrame, refused: Mapping[str, str]) -> None:
    """Print what the same traffic costs on each layout, cheapest first, and why others have no answer."""
    console = Console()
    if not table.empty:
        shown = _table(
            "By hardware, cheapest first", "replica", "policy", "GPUs", "replicas",
            "cost per\n1M output\ntokens", "requests/s\na replica", "curve",
        )  # fmt: skip
        for whole in (0, -1):
            shown.columns[whole].no_wrap = True
        columns = {
            name: readable_column(table[name].astype(float).tolist())
            for name in ("gpus", "replicas", "cost_per_million_output_tokens", "rate_per_replica_per_s")
        }
        for row, *numbers in zip(table.to_dict("records"), *columns.values(), strict=True):
            band = "" if pd.isna(row["step_time_band"]) else f" ±{row['step_time_band']:.0%}"
            layout = f"{row['replica_gpus']} x {row['gpu']}"
            shown.add_row(
                layout, str(row["policy"]), *numbers, f"{row['curve']}{band}",
                style="bold" if row["recommended"] else None,
            )  # fmt: skip
        console.print(shown)
    for name, why in refused.items():
        _say(console, f"{name}: {why}")


def print_regret(table: pd.DataFrame) -> None:
    """Print what a scheduler loses with each belief at each load."""
    shown = _table(
        "Throughput lost to the wrong table, with 95% intervals", "belief", "requests", "tokens/s",
        "with the\ntrue table", "lost", "±", "for sure",
    )  # fmt: skip
    for row in table.to_dict("records"):
        shown.add_row(
            escape(str(row["belief"])), f"{row['concurrency']:,}", f"{row['throughput_tok_per_s']:,.0f}",
            f"{row['true_throughput_tok_per_s']:,.0f}", signed_share(row["regret"], 2),
            share(row["regret_ci95"], 2), "yes" if row["significant"] else "no",
        )  # fmt: skip
    Console().print(shown)


def print_thresholds(table: pd.DataFrame) -> None:
    """Print what a static confidence threshold lets through, step by step of the threshold."""
    shown = _table(
        "Blocks that end at a low confidence", "threshold", "verified\nlength",
        "accepted\nlength", "acceptance\nrate",
    )  # fmt: skip
    names = ("verified_length_mean", "accepted_length_mean")
    lengths = [readable_column(table[name].tolist()) for name in names]
    rows = zip(table["threshold"], *lengths, table["acceptance_rate"], strict=True)
    for threshold, verified, accepted, rate in rows:
        shown.add_row(f"{threshold:g}", verified, accepted, share(rate))
    Console().print(shown)


_FLEET = ("policy", "rate_per_replica_per_s", "replicas", "gpus", COST)

_FARED = ("policy", "load", "rate_per_s", "tps_mean", "tps_p10", "attained")


def print_plan(result: CapacityPlan) -> None:
    """Print what a plan decides, then its warnings (on standard error), then its tables."""
    console = Console()
    console.print(_decision_table(result))
    for warning in result.warnings:
        _say(Console(stderr=True), f"warning: {warning}")
    _print_table(console, "\nFleet at the peak, with 95% intervals", fleets(result).only(*_FLEET))
    _print_table(console, "\nWhat users get", fared(result).only(*_FARED))
    _print_terms(console, result)


def _decision_table(result: CapacityPlan) -> Table:
    """Answer a question in each row, the sentences of an answer below each other."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Plan", escape(result.scenario.name))
    table.add_row("SLA", escape(str(result.sla)))
    for question, lines in decision(result).items():
        for place, line in enumerate(lines):
            bold = question in ("Run", "On") and not place
            table.add_row("" if place else question, escape(line), style="bold" if bold else None)
    return table


def _print_terms(console: Console, result: CapacityPlan) -> None:
    """Print what users of the recommended policy get of each term; the report has all policies."""
    mine = result.terms[result.terms["policy"] == result.recommended]
    console.print(f"\n[bold]{escape(result.recommended)}, term by term[/bold]")
    for load, rows in mine.groupby("load", sort=False):
        _say(console, f"A replica at {readable(rows['rate_per_s'].iloc[0])} requests/s ({LOADS[str(load)]}):")
        width = rows["term"].str.len().max()
        for term, shown, holds in rows[["term", "shown", "holds"]].itertuples(index=False):
            _say(console, f"  {'kept  ' if holds else 'MISSED'} {term:{width}}  {shown}")


def _print_table(console: Console, title: str, shown: ShownTable) -> None:
    """Print a table of the report, its best row in bold."""
    first, *heads = shown.heads
    table = _table(title, escape(first.text.lower()))
    for head in heads:
        table.add_column(escape(_lower(head.text)), justify="left" if head.is_text else "right")
    table.columns[0].no_wrap = True
    for place, row in enumerate(shown.rows):
        table.add_row(*map(escape, row), style="bold" if place == shown.best else None)
    console.print(table)


def _lower(text: str) -> str:
    """Begin with a small letter, unless the word is an abbreviation such as GPU or USD."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _say(console: Console, line: str) -> None:
    """Print a line as it is: what a scenario says may look like markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sla_table(answers: pd.DataFrame, sla: Term, replica: str) -> Table:
    base, title = str(answers["baseline"].iloc[0]), promise(sla)
    table = _table(
        title[0].upper() + title[1:], "policy", "tokens/s/GPU" if replica == "GPU" else "tokens/s",
        "requests", "mean", "p10", f"over {base}", "speed gain",
    )  # fmt: skip
    for row in answers.to_dict("records"):
        policy, throughput = str(row["policy"]), float(row["throughput_tok_per_s"])
        if math.isnan(throughput):
            table.add_row(_with_drafter(row), "cannot", *[""] * 5)
            continue
        style = "bold" if row["leading"] else "dim" if policy == "oracle" else None
        bound = "≥ " if row["lower_bound"] else ""
        table.add_row(
            _with_drafter(row),
            f"{bound}{throughput:,.0f}",
            f"{bound}{row['concurrency']:,.0f}",
            _speed(float(row["tps_mean"])),
            _speed(float(row["tps_p10"])),
            _percent(float(row["gain"])),
            _percent(float(row["speed_gain"])),
            style=style,
        )
    return table


def _with_drafter(row: Mapping[Hashable, object]) -> str:
    """Name a policy; a fixed length says whose drafts it takes, in the form that asks for just that."""
    policy, drafter = str(row["policy"]), str(row["drafter"])
    return f"{policy}@{drafter}" if policy.startswith("fixed:") and "@" not in policy and drafter else policy


def _bands_table(bands: pd.DataFrame) -> Table:
    table = _table("Winning policy by load", "concurrent requests", "policy", "least lead", "over")
    for row in bands.to_dict("records"):
        margin, runner_up = float(row["margin"]), row["runner_up"]
        lead = "" if math.isnan(margin) else share(margin) if row["clear"] else f"a tie, {share(margin)}"
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
