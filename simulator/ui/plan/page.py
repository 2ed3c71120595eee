"""The page Plan: its layout, and what happens on it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dash import Dash, Input, Output, State, ctx, dcc, html, no_update

from simulator.api.planning import Plan
from simulator.core.errors import BadInputError
from simulator.ui import widgets
from simulator.ui.figures import Figure, Scheme, empty_figure
from simulator.ui.plan import asked as ask_for
from simulator.ui.plan import form, view
from simulator.ui.plan.asked import FIELDS, MOST_GPUS, Planned, from_query, to_query
from simulator.ui.plan.work import tasks_of
from simulator.ui.running import runs
from simulator.ui.running.jobs import Jobs

TITLE = "Plan"

SLOTS = (*FIELDS, "yaml")
"""Controls that can show an error; what is about no field of the form is shown under the YAML."""


def layout(query: str) -> html.Div:
    """Return the page in the state that its address names; what cannot be read is said at the top."""
    problem = None
    try:
        state = from_query(query)
        ask_for.mapping_of(state.text)
    except BadInputError as error:
        state, problem = Planned(ask_for.example()), str(error)
    said = None if problem is None else f"The address of this page: {problem}"
    known = dcc.Store(id="p-kept", data=state.kept)
    return html.Div(
        [
            html.P(said, className="error", role="alert") if said else None,
            html.Div([form.controls(state), _results(state)], className="page"),
            *runs.parts("p"), known,
        ]
    )  # fmt: skip


def _results(state: Planned) -> html.Main:
    figures = [
        widgets.figure("p-cost", view.HARDWARE, "What the same traffic costs."),
        widgets.figure("p-day", view.DAY, "What each policy needs."),
        widgets.figure("p-tornado", view.TORNADO, "By input, of the recommended policy."),
        widgets.figure("p-frontier", view.FRONTIER, "The scenario's mix in a closed loop."),
    ]
    below = ("p-hardware-table", "p-beside", "p-tables", "p-same")
    buttons = {
        "p-keep": "Keep this plan beside the next", "p-drop": "Put the kept plan away",
        "p-report": "One HTML file", "p-csv": "CSV", "p-save": "scenario.yaml",
    }  # fmt: skip
    return html.Main(
        [
            widgets.answer("p", runs.bar("p")),
            form.editor(state),
            widgets.choices("p-shown", "GPU whose plan is shown", {}, None),
            html.Div(figures, className="grid"),
            *(html.Div(id=name) for name in below),
            widgets.exports(buttons),
        ],
        id="p-results",
    )


def register(app: Dash, jobs: Jobs) -> None:
    """Connect the page: form and text follow each other, the button asks, results are drawn."""
    _register_form(app)
    _register_asking(app, jobs)
    runs.register(app, jobs, "p", lambda asked: _tasks(from_query(asked)))
    _register_drawing(app, jobs)
    _register_exports(app, jobs)


def _tasks(state: Planned) -> list[Any]:
    """Return what a state needs, the plan beside it included."""
    kept = tasks_of(from_query(state.kept)) if state.kept else []
    return list(dict.fromkeys([*tasks_of(state), *kept]))


def _register_form(app: Dash) -> None:
    @app.callback(Output("p-profile-field", "hidden"), Output("p-hardware", "hidden"), Input("p-on", "value"))
    def choose(on: str) -> tuple[bool, bool]:
        return on != "profile", on == "profile"

    @app.callback(
        Output("p-yaml", "value"), *(Output(f"p-{name}", "value") for name in FIELDS),
        *(Output(f"p-{name}-error", "children") for name in SLOTS),
        Input("p-yaml", "n_blur"), Input("p-problem", "data"),
        *(Input(f"p-{name}", "value") for name in FIELDS), State("p-yaml", "value"),
        prevent_initial_call=True,
    )  # fmt: skip
    def follow(_blur: int, problem: Mapping[str, str] | None, *given: Any) -> tuple[Any, ...]:
        """Write what was changed into the other side, and each error at its field."""
        *values, text = given
        names = {name.removeprefix("p-") for name in runs.changed()}
        filled = {name: value for name, value in zip(FIELDS, values, strict=True) if name in names}
        written: Any = no_update
        shown, slots = [no_update] * len(FIELDS), dict.fromkeys(SLOTS, "")
        try:
            scenario = ask_for.mapping_of(text)
            for name, value in filled.items():
                scenario = ask_for.with_field(scenario, name, value)
            if filled:
                written = text = ask_for.written(scenario)
            if "yaml" in names:
                shown = list(ask_for.form_of(scenario).values())
            ask_for.scenario_of(text)
        except BadInputError as error:
            slots[ask_for.field_of(error)] = widgets.said_of(error)
        if "problem" in names and problem:
            slots[problem["field"]] = problem["said"]
        return written, *shown, *slots.values()


def _register_asking(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        Output("p-asked", "data"), Output("p-problem", "data"), Output("p-address", "data"),
        Input("p-go", "n_clicks"), Input("p-again", "n_clicks"), Input("p-kept", "data"),
        State("p-yaml", "value"), State("p-gpus", "value"), State("p-effort", "value"),
        State("p-on", "value"), State("session", "data"),
    )  # fmt: skip
    def ask(
        _go: int,
        _again: int,
        kept: str,
        text: str,
        gpus: list[str] | None,
        effort: str,
        on: str,
        session: str,
    ) -> tuple[Any, ...]:
        further = tuple(gpus or ())[:MOST_GPUS] if on == "hardware" else ()
        state = Planned(text, further, "scenario" if effort == "scenario" else "first", kept or "")
        try:
            ask_for.scenario_of(text)
            if runs.changed() & {"p-go", "p-again"}:
                jobs.ask(session, _tasks(state))
            elif not jobs.look(session, _tasks(state)).found:
                return (no_update,) * 3  # a page that is opened shows what is known already
        except BadInputError as error:
            problem = {"field": ask_for.field_of(error), "said": widgets.said_of(error)}
            return no_update, problem, no_update
        return to_query(state), None, to_query(state)


def _register_drawing(app: Dash, jobs: Jobs) -> None:
    seen = (Input("p-seen", "data"), Input("p-shown", "value"))
    known = (State("p-asked", "data"), State("session", "data"))

    @app.callback(
        Output("p-shown", "options"), Output("p-shown", "value"), Output("p-answer", "children"),
        Output("p-said", "children"), Output("p-curve", "children"), Output("p-hardware-table", "children"),
        Output("p-tables", "children"), Output("p-same", "children"),
        *seen, *known,
    )  # fmt: skip
    def decide(_seen: str | None, shown: str | None, asked: str | None, session: str) -> tuple[Any, ...]:
        listed, chosen = _found(jobs, session, asked, shown)
        if asked is None or chosen is None:
            said = "Change what you like, then press Plan." if asked is None else "The plan is being made."
            return [], None, said, said, "", "", "", ""
        options = [{"value": each.gpu, "label": view.name_of(each)} for each in listed]
        tables = "" if chosen.answer is None else view.tables_of(chosen.answer.plan)
        return (
            options, chosen.gpu, view.said(chosen), view.plainly(chosen),
            widgets.bullets(view.notes_of(chosen)), view.compared(listed) if len(listed) > 1 else "",
            tables, view.same(from_query(asked)),
        )  # fmt: skip

    @app.callback(
        [Output(name, "figure") for name in ("p-cost", "p-day", "p-tornado", "p-frontier")],
        *seen, Input("theme", "data"), *known,
    )  # fmt: skip
    def draw(
        _seen: str | None, shown: str | None, scheme: Scheme, asked: str | None, session: str
    ) -> list[Figure]:
        listed, chosen = _found(jobs, session, asked, shown)
        if chosen is None or chosen.answer is None:
            return [empty_figure("no plan yet", scheme)] * 4
        return [
            view.hardware_figure(listed, scheme),
            *view.figures_of(chosen.answer.plan, scheme).values(),
        ]

    @app.callback(Output("p-beside", "children"), Output("p-drop", "hidden"), *seen, *known)
    def compare(_seen: str | None, shown: str | None, asked: str | None, session: str) -> tuple[Any, bool]:
        state = Planned("") if asked is None else from_query(asked)
        if not state.kept:
            return "", True
        one = _plan(jobs, session, state.kept, "")
        other = _plan(jobs, session, asked, shown)
        if one is None or other is None:
            return "The plan beside this one is being made.", False
        return [html.H3("Two plans"), view.beside(one, other)], False


def _found(
    jobs: Jobs, session: str, asked: str | None, shown: str | None
) -> tuple[list[view.Found], view.Found | None]:
    """Return what there is of every GPU, and the one that is shown."""
    listed = [] if asked is None else view.found_of(jobs, session, from_query(asked))
    chosen = next((each for each in listed if each.gpu == shown), listed[0] if listed else None)
    return listed, chosen


def _plan(jobs: Jobs, session: str, asked: str | None, shown: str | None) -> Plan | None:
    _, chosen = _found(jobs, session, asked, shown)
    return None if chosen is None or chosen.answer is None else chosen.answer.plan


def _register_exports(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        Output("p-kept", "data"), Input("p-keep", "n_clicks"), Input("p-drop", "n_clicks"),
        State("p-asked", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def keep(_keep: int, _drop: int, asked: str | None) -> str:
        if ctx.triggered_id == "p-drop" or asked is None:
            return ""
        return to_query(replace(from_query(asked), kept="", gpus=()))

    @app.callback(
        Output("p-file", "data"),
        Input("p-report", "n_clicks"), Input("p-csv", "n_clicks"), Input("p-save", "n_clicks"),
        State("p-shown", "value"), State("p-yaml", "value"),
        State("p-asked", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def export(
        _report: int, _csv: int, _save: int, shown: str | None, text: str, asked: str | None, session: str
    ) -> Any:
        if ctx.triggered_id == "p-save":
            return {"filename": "scenario.yaml", "content": text}
        plan = _plan(jobs, session, asked, shown)
        if plan is None:
            return no_update
        if ctx.triggered_id == "p-report":
            return {"filename": "report.html", "content": view.report_of(plan), "type": "text/html"}
        packed = base64.b64encode(view.tables_file(plan)).decode("ascii")
        return {"filename": "plan.zip", "content": packed, "base64": True, "type": "application/zip"}
