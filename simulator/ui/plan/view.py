"""What the page Plan shows of its plans: the decision, the hardware, the day, what would change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pandas as pd
from dash import html

from simulator.api.hardware_plan import HardwareAnswer, comparison
from simulator.api.planning import Plan
from simulator.core.errors import InfeasibleError, SimulatorError
from simulator.core.units import UNKNOWN, readable
from simulator.planning.plan import write_tables
from simulator.report.page import write_report
from simulator.report.plan.decision import decision, recommended_row
from simulator.report.plan.tables import ShownTable, plan_tables
from simulator.ui import widgets
from simulator.ui.figures import (
    Figure,
    Scheme,
    bars_figure,
    day_figure,
    empty_figure,
    line_figure,
    tornado_figure,
)
from simulator.ui.plan.asked import Planned
from simulator.ui.plan.work import Answer, PlanTask
from simulator.ui.running.jobs import Jobs

COST = "cost_per_million_output_tokens"

FOUNDATIONS = "Rests on"
"""The question of ``report.plan.decision`` whose long answer, all assumptions, is folded away."""

COMMAND = "dspark-sim plan scenario.yaml --out runs/plan"

FRONTIER, DAY, TORNADO, HARDWARE = (
    "Throughput against speed per user", "Replicas over the day", "What an input that is off does",
    "Cost by hardware",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What there is by now of one GPU. coarse: a first answer only. error: why there is no plan."""

    gpu: str
    answer: Answer | None
    error: SimulatorError | None
    coarse: bool


def found_of(jobs: Jobs, session: str, state: Planned) -> list[Found]:
    """Return the finest answer of each GPU, those that have none yet left out."""
    tasks = {
        (gpu, effort): PlanTask(state.text, gpu, effort)
        for gpu in ("", *state.gpus)
        for effort in ("first", state.effort)
    }
    seen = jobs.look(session, list(tasks.values())).found
    listed = []
    for gpu in ("", *state.gpus):
        for effort in (state.effort, "first"):
            result = seen.get(tasks[gpu, effort])
            if result is not None:
                answer = result if isinstance(result, Answer) else None
                error = result if isinstance(result, SimulatorError) else None
                listed.append(Found(gpu, answer, error, effort == "first"))
                break
    return listed


def name_of(found: Found) -> str:
    """Return what a plan is called where several stand side by side."""
    if found.gpu:
        return found.gpu
    scenario = None if found.answer is None else found.answer.plan.scenario
    hardware = None if scenario is None else scenario.hardware
    return "the scenario" if scenario is None else hardware.gpu if hardware else str(scenario.profile)


def said(found: Found) -> list[Any]:
    """Say the decision of a plan, question by question, or why there is none."""
    if found.error is not None:
        return _refused(found.error)
    assert found.answer is not None
    plan = found.answer.plan
    profile = plan.scenario.loaded_profile()
    first = " A first answer: the search is coarse." if found.coarse else ""
    badge = widgets.badge(profile.provenance.kind, profile.step_time_band)
    told = decision(plan)
    listed = _terms({question: told[question] for question in told if question != FOUNDATIONS})
    rests = _terms(dict(plan.assumptions))
    return [
        html.P([badge, " ", html.Strong(profile.title), first]), html.Dl(listed, className="decision"),
        html.Details([html.Summary("What it rests on"), html.Dl(rests, className="decision plainly")]),
    ]  # fmt: skip


def plainly(found: Found) -> str:
    """Say what to run, on how many GPUs and for how much, or why there is no plan, in plain sentences."""
    if found.answer is None:
        return f"No plan: {found.error}"
    told = decision(found.answer.plan)
    return " ".join(f"{question} {told[question][0].rstrip('.')}." for question in ("Run", "On", "Costs"))


def _terms(told: Mapping[str, str | Sequence[str]]) -> list[Any]:
    """Return topics with their sentences."""
    listed: list[Any] = []
    for topic, said in told.items():
        sentences = [said] if isinstance(said, str) else said
        listed += [html.Dt(topic), html.Dd([html.P(each) for each in sentences])]
    return listed


def _refused(error: SimulatorError) -> list[Any]:
    shown: list[Any] = [html.P([html.Strong("No plan: "), str(error)])]
    if isinstance(error, InfeasibleError):
        titles = ("What binds", "Nearest feasible SLA", "What would change it")
        for title, items in zip(titles, (error.binds, error.nearest, error.changes), strict=True):
            if items:
                shown += [html.H3(title), widgets.bullets(items, "plain")]
    return shown


def tables_of(plan: Plan) -> list[Any]:
    """Return the report's tables of a plan, with a definition at every column's head."""
    titles = {
        "plans": "Fleets at the peak", "fared": "What users get", "sensitivity": "With an input off",
        "growth": "When traffic grows",
    }  # fmt: skip
    return [
        each
        for name, shown in plan_tables(plan).items()
        if shown.rows
        for each in (html.H3(titles[name]), _shown(titles[name], shown))
    ]


def _shown(name: str, table: ShownTable) -> html.Div:
    """Return a table of the report as it stands in a page."""
    head = html.Tr(
        [
            html.Th(
                each.text, scope="col", title=each.definition, className="text" if each.is_text else ""
            )
            for each in table.heads
        ]
    )  # fmt: skip
    body = []
    for index, row in enumerate(table.rows):
        cells: list[Any] = [html.Th(row[0], scope="row")]
        for text, each in zip(row[1:], table.heads[1:], strict=True):
            cells.append(html.Td(text, className="text" if each.is_text else ""))
        body.append(html.Tr(cells, className="best" if index == table.best else ""))
    return widgets.scrolled(name, head, body)


def notes_of(found: Found) -> list[str]:
    """Return what to know of a plan: its own warnings, and those of its making."""
    return [] if found.answer is None else [*found.answer.plan.warnings, *found.answer.notes]


def hardware_table(listed: list[Found]) -> pd.DataFrame:
    """Tabulate GPUs and policies that keep the SLA, cheapest first; see ``api.hardware_plan.comparison``."""
    answers = [
        HardwareAnswer(
            name_of(each), name_of(each), each.answer.plan, None, (), each.answer.plan.scenario, ""
        )
        for each in listed
        if each.answer is not None
    ]
    return comparison(answers)


def figures_of(plan: Plan, scheme: Scheme) -> dict[str, Figure]:
    """Draw a plan's day, its sensitivity and its frontier, by title."""
    known = (term for term in plan.sla.terms if f"{term.metric}_{term.statistic}" in plan.frontier)
    speed = next((term for term in known if term.metric == "tps"), None)
    statistic = "mean" if speed is None else speed.statistic
    frontier = line_figure(
        plan.frontier, f"tps_{statistic}", "throughput_tok_per_s",
        (f"tokens/s per user, {statistic}", "tokens/s per replica"), scheme,
        bound=None if speed is None else speed.bound,
    )  # fmt: skip
    day = day_figure(plan.day, plan.plans, scheme)
    return {DAY: day, TORNADO: _tornado(plan, scheme), FRONTIER: frontier}


def _tornado(plan: Plan, scheme: Scheme) -> Figure:
    """Draw by how much each input moves the GPUs; where none does, the requests of a replica."""
    row = recommended_row(plan)
    mine = plan.sensitivity
    if len(mine):
        mine = mine[mine["policy"] == plan.recommended]
    # GPUs are NaN where those of prefill are not known.
    known = "gpus" if row["gpus"] == row["gpus"] else "decode_gpus"
    units = {
        known: "GPUs" if known == "gpus" else "GPUs for decoding",
        "rate_per_replica_per_s": "requests/s per replica",
    }
    for column, unit in units.items():
        drawn = mine[mine[column].notna()] if len(mine) else mine
        if len(drawn) and (drawn[column] != row[column]).any():
            shown = f"{unit}, {readable(row[column])} planned"
            return tornado_figure(
                drawn["variant"].tolist(), drawn[column].tolist(), row[column], shown, scheme
            )
    return empty_figure("no input that was varied changes anything", scheme)


def hardware_figure(listed: list[Found], scheme: Scheme) -> Figure:
    """Draw the cost of each policy on each GPU; where no cost is known, the GPUs."""
    table = hardware_table(listed)
    if table.empty:
        return empty_figure("no plan yet", scheme)
    if table[COST].notna().any():
        return bars_figure(table, "gpu", COST, f"{_currency(listed)} per M output tokens", scheme)
    return bars_figure(table, "gpu", "gpus", "GPUs", scheme)


def _currency(listed: list[Found]) -> str:
    return next(each.answer.plan.scenario.price.currency for each in listed if each.answer)


_BAND = {"band": "By how much step times of the curve may be off; a dash where that is not known."}


def compared(listed: list[Found]) -> Any:
    """Tabulate what the same traffic takes on each GPU, cheapest first, and why others have no plan."""
    table = hardware_table(listed)
    refused = [f"{name_of(each)}: {each.error}" for each in listed if each.error is not None]
    shown: list[Any] = [html.H3(HARDWARE), widgets.bullets(refused, "plain")]
    if not table.empty:
        heads = {
            "gpu": "GPU", "policy": "policy", "gpus": "GPUs", "replicas": "replicas",
            COST: f"{_currency(listed)} per M output tokens",
            "rate_per_replica_per_s": "requests/s per replica", "curve": "curve", "band": "step times within",
        }  # fmt: skip
        bands = [
            UNKNOWN if band is None or band != band else f"{band:.0%}" for band in table["step_time_band"]
        ]
        rows = widgets.records(table.assign(band=bands))
        shown.append(widgets.table(HARDWARE, heads, rows, list(table["recommended"]), _BAND))
    return html.Div(shown)


PYTHON = """import simulator as sim

plan = sim.plan("scenario.yaml")
print(plan.answer)
plan.report("runs/plan")
"""


def same(state: Planned) -> html.Details:
    """Return the view as a command and as Python."""
    said = "Save scenario.yaml first; it holds all that the plan depends on."
    if state.gpus:
        said += " Beside it: the same file with another hardware.gpu and its price.gpu_hour."
    title = html.Summary("As a command, and in Python")
    shown = [widgets.code(COMMAND, "p-command"), widgets.code(PYTHON, "p-python")]
    return html.Details([title, html.P(said, className="soft"), *shown], open=True)


def beside(one: Plan, other: Plan) -> html.Div:
    """Set two plans side by side: what each runs, needs and costs."""
    kept, this = _summary(one), _summary(other)
    rows: list[Mapping[str, Any]] = []
    for what, before in kept.items():
        now = this.get(what, UNKNOWN)
        change = "" if before == now else "differs"
        if isinstance(before, float) and isinstance(now, float) and before > 0:
            change = widgets.percent(now / before - 1)
        rows.append({"what": what, "kept": _text(before), "this": _text(now), "change": change})
    names = {"kept": f"kept: {one.scenario.name}", "this": f"this: {other.scenario.name}"}
    return widgets.table("Two plans", {"what": "", **names, "change": "change"}, rows)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else readable(value)


def _summary(plan: Plan) -> dict[str, str | float]:
    row, scenario = recommended_row(plan), plan.scenario
    numbers = {
        "GPUs": "gpus", "replicas": "replicas", "requests/s per replica": "rate_per_replica_per_s",
        f"{scenario.price.currency} per M output tokens": COST,
        "tokens/s per user at the peak, p10": "tps_p10_at_peak",
    }  # fmt: skip
    words: dict[str, str | float] = {
        "runs on": scenario.loaded_profile().title, "policy": plan.recommended, "SLA": str(plan.sla)
    }  # fmt: skip
    return words | {what: float(row[name]) for what, name in numbers.items()}


def report_of(plan: Plan) -> str:
    """Return the one-file report of a plan, as ``dspark-sim plan`` writes it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_report(plan, path)
        return path.read_text(encoding="utf-8")


def tables_file(plan: Plan) -> bytes:
    """Return every table of a plan as CSV, and ``plan.json``, in one zip file."""
    with TemporaryDirectory() as folder:
        out, packed = Path(folder) / "plan", Path(folder) / "plan.zip"
        write_tables(plan, out)
        with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
            for path in sorted(out.iterdir()):
                archive.write(path, path.name)
        return packed.read_bytes()
