"""What the page Explore shows of a state: who wins, figures, and the same as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from dash import html

from simulator.core.errors import SimulatorError
from simulator.deployment.profile import stands_for
from simulator.deployment.profile_parts import PublishedClaims
from simulator.sweeps.comparison import at_slas, parse_speed, promise
from simulator.ui import widgets
from simulator.ui.explore.asked import Explored, as_commands, as_python
from simulator.ui.explore.form import STATISTICS
from simulator.ui.explore.work import (
    LOADS,
    SEEDS,
    Curve,
    CurveTask,
    Line,
    LineTask,
    Stage,
    is_composed,
    tasks_of,
)
from simulator.ui.exports import Page
from simulator.ui.figures import Figure, Scheme, empty_figure, line_figure
from simulator.ui.running.jobs import Jobs

SPEED, BUDGET, ACCEPTED, WASTED = (
    "Throughput against speed per user",
    "Verification budget against load",
    "Accepted length against load",
    "Verified drafts that are rejected",
)

LOAD = "requests running at once"

CARRIES = "What each policy carries"


@dataclass(frozen=True, slots=True)
class View:
    """What there is to show by now. coarse: policies whose line is a first look."""

    curve: Curve | None
    table: pd.DataFrame
    coarse: tuple[str, ...]
    notes: tuple[str, ...]
    errors: tuple[SimulatorError, ...]

    @property
    def published(self) -> PublishedClaims | None:
        """What was published of the profile."""
        return None if self.curve is None else self.curve.profile.published

    @property
    def unit(self) -> str:
        """What a throughput is of."""
        return f"tokens/s per {stands_for(None if self.curve is None else self.curve.profile.replica_gpus)}"


FIRST_LOOK = "A first look by the formula: the curve of measured kernels is being composed."


def view_of(jobs: Jobs, session: str, state: Explored) -> View:
    """Put together what the workers have found so far: for each policy its finest line."""
    found = jobs.look(session, tasks_of(state)).found
    stages: tuple[Stage, ...] = (state.effort, "coarse")
    looked = is_composed(state.on) and any(
        LineTask(state.on, policy, "coarse") not in found for policy in state.policies
    )
    if looked:
        stages = ("formula",)  # for all policies: lines of two curves say nothing beside each other
    frames, coarse, notes = [], [], [FIRST_LOOK] if looked else []
    for policy in state.policies:
        lines = {stage: found.get(LineTask(state.on, policy, stage)) for stage in stages}
        stage, line = next((each for each in lines.items() if isinstance(each[1], Line)), (None, None))
        if isinstance(line, Line):
            frames.append(line.table)
            notes += [f"{policy}: {each}" for each in line.notes]
            coarse += [] if stage == state.effort else [policy]
    errors = {str(each): each for each in found.values() if isinstance(each, SimulatorError)}
    curve = found.get(CurveTask(state.on, formula=looked))
    return View(
        curve if isinstance(curve, Curve) else None,
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
        tuple(coarse), tuple(dict.fromkeys(notes)), tuple(errors.values()),
    )  # fmt: skip


def curve_line(curve: Curve | None) -> Any:
    """Say what answers and what it rests on."""
    if curve is None:
        return "The curve is being looked up."
    profile = curve.profile
    named = ", ".join(f"{drafter}: {name}" for drafter, name in curve.acceptance.items())
    rests = [html.P(profile.provenance.line()), html.P(f"Acceptance of {named}.")]
    return [
        widgets.badge(profile.provenance.kind, profile.step_time_band), " ", html.Strong(profile.title),
        html.Details([html.Summary("What it rests on"), *rests, widgets.bullets(curve.notes, "plain")]),
    ]  # fmt: skip


def load_figures(seen: View, scheme: Scheme) -> dict[str, Figure]:
    """Draw what goes by load, by title."""
    if seen.table.empty:
        return dict.fromkeys((BUDGET, ACCEPTED, WASTED), empty_figure("no line yet", scheme))
    budget = None if seen.published is None else seen.published.budget

    def drawn(column: str, unit: str, **more: Any) -> Figure:
        return line_figure(
            seen.table, "concurrency", column, (LOAD, unit), scheme, coarse=seen.coarse, **more
        )

    return {
        BUDGET: drawn("verification_budget_mean", "tokens", published=budget),
        ACCEPTED: drawn("accepted_length_mean", "tokens, bonus included"),
        WASTED: drawn("wasted_fraction", "share of verified drafts", share=True),
    }


def speed_figure(seen: View, state: Explored, scheme: Scheme) -> Figure:
    """Draw the frontier with the SLA on it."""
    if seen.table.empty:
        return empty_figure("no line yet", scheme)
    on_average = state.statistic == "mean"
    marks = seen.published.throughput_vs_tps if seen.published and on_average else None
    axes = (f"tokens/s per user, {STATISTICS[state.statistic]}", seen.unit)
    return line_figure(
        seen.table, f"tps_{state.statistic}", "throughput_tok_per_s", axes, scheme,
        coarse=seen.coarse, published=marks, bound=state.sla,
    )  # fmt: skip


def answered(seen: View, state: Explored) -> tuple[Any, Any]:
    """Say who wins under the SLA, and tabulate what each policy carries."""
    if seen.table.empty:
        return ("No line could be simulated." if seen.errors else "The first lines are being simulated."), ""
    term = parse_speed(state.term)
    try:
        rows = at_slas(seen.table, [term]).to_dict("records")
    except SimulatorError as error:
        return str(error), ""
    told = promise(term)
    return [f"{told[0].upper()}{told[1:]}: ", *_winner(rows, seen.unit)], _table(rows)


def plainly(said: Any) -> str:
    """Return an answer as plain text."""
    pieces = said if isinstance(said, list) else [said]
    return "".join(each if isinstance(each, str) else str(each.children) for each in pieces)


def _winner(rows: list[dict[Any, Any]], unit: str) -> list[Any]:
    leading = [row for row in rows if row["leading"]]
    if not leading:
        return ["only the oracle keeps it, which cannot be deployed."]
    best = max(leading, key=lambda row: float(row["throughput_tok_per_s"]))
    ties = [str(row["policy"]) for row in leading if row is not best]
    base = best["baseline"]
    least = "at least " if best["lower_bound"] else ""
    gain = "" if best["policy"] == base else f", {widgets.percent(best['gain'])} over {base}"
    if math.isnan(best["gain"]):
        gain = f", and {base} cannot keep it"
    verb = "are" if len(ties) > 1 else "is"
    tie = f"; {' and '.join(ties)} {verb} not worse for sure" if ties else ""
    carried = f"{best['throughput_tok_per_s']:,.0f} {unit}"
    return [
        html.Strong(str(best["policy"])),
        f" carries {least}{carried} with {best['concurrency']:,.0f} requests at once{gain}{tie}.",
    ]


def _table(rows: list[dict[Any, Any]]) -> html.Div:
    base = rows[0]["baseline"]
    heads = {
        "policy": "policy", "throughput_tok_per_s": "tokens/s", "concurrency": "requests",
        "tps_mean": "per user", "tps_p10": "per user, p10",
        "gain": f"over {base}", "speed_gain": f"speed over {base}",
    }  # fmt: skip
    shown: list[Mapping[str, Any]] = []
    for row in rows:
        cannot = {} if row["throughput_tok_per_s"] > 0 else {"throughput_tok_per_s": "cannot"}
        gains = {
            name: "" if row["policy"] == base else widgets.percent(row[name])
            for name in ("gain", "speed_gain")
        }
        shown.append({str(name): value for name, value in row.items()} | gains | cannot)
    return widgets.table(CARRIES, heads, shown, [bool(row["leading"]) for row in rows])


def same(state: Explored) -> list[Any]:
    """Return the view as commands and as Python."""
    loads, seeds = LOADS[state.effort], SEEDS[state.effort]
    return [
        widgets.code("\n".join(as_commands(state, loads, seeds)), "e-command"),
        widgets.code(as_python(state, loads, seeds), "e-python"),
    ]


def file_of(seen: View, state: Explored) -> Page:
    """Return what the page shows as one file."""
    profile = None if seen.curve is None else seen.curve.profile
    sentences = [] if profile is None else [profile.title, profile.provenance.line()]
    tables = {"All loads": seen.table}
    try:
        term = parse_speed(state.term)
        tables = {f"{CARRIES}: {promise(term)}": at_slas(seen.table, [term])} | tables
    except SimulatorError as error:
        sentences.append(str(error))
    figures = {SPEED: speed_figure(seen, state, "light")} | load_figures(seen, "light")
    commands = as_commands(state, LOADS[state.effort], SEEDS[state.effort])
    return Page("Policies compared", [*sentences, *seen.notes], tables, figures, commands)
