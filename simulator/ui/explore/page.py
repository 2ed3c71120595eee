"""The page Explore: its layout, and what happens on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, html, no_update

from simulator.core.errors import BadInputError, InfeasibleError, SimulatorError
from simulator.ui import widgets
from simulator.ui.explore import view
from simulator.ui.explore.asked import Deployed, Explored, from_query, to_query
from simulator.ui.explore.form import BY_POSITION, FEWEST, MOST_EDITED, check, controls, layouts_of, state_of
from simulator.ui.explore.view import view_of
from simulator.ui.explore.work import tasks_of
from simulator.ui.exports import one_file
from simulator.ui.figures import Scheme
from simulator.ui.running import runs
from simulator.ui.running.jobs import Jobs
from simulator.ui.security import check_policies

TITLE = "Explore"

FIELDS = ("profile", "model", "gpu", "engine", "precision", "layout", "acceptance", "policy", "sla")
"""Fields that can show an error; whatever belongs to none is shown with the policies."""


def layout(query: str) -> html.Div:
    """Return the page in the state that its address names; what cannot be read is said at the top."""
    problem = None
    try:
        state = from_query(query)
        check(state.on)
    except BadInputError as error:
        state, problem = Explored(), str(error)
    return html.Div(
        [
            html.P(f"The address of this page: {problem}", className="error", role="alert")
            if problem
            else None,
            html.Div([controls(state), _results()], className="page"),
            *runs.parts("e"),
        ]
    )


def _results() -> html.Main:
    figures = [
        widgets.figure("e-speed", view.SPEED, "Up and to the right is better."),
        widgets.figure("e-budget", view.BUDGET, "Tokens verified per request and step."),
        widgets.figure("e-accepted", view.ACCEPTED, "Tokens committed per request and step."),
        widgets.figure("e-wasted", view.WASTED, "What each policy wastes."),
    ]
    return html.Main(
        [
            widgets.answer("e", runs.bar("e")),
            html.Div(id="e-notes"),
            html.Div(id="e-table"),
            html.Div(figures, className="grid"),
            html.Details([html.Summary("As a command, and in Python"), html.Div(id="e-same")], open=True),
            widgets.exports({"e-csv": "CSV", "e-html": "One HTML file"}),
        ],
        id="e-results",
    )  # fmt: skip


def register(app: Dash, jobs: Jobs) -> None:
    """Connect the page: controls ask, the clock looks, results are drawn."""
    _register_controls(app)
    _register_asking(app, jobs)
    runs.register(app, jobs, "e", lambda asked: tasks_of(from_query(asked)))
    _register_errors(app, jobs)
    _register_drawing(app, jobs)
    _register_exports(app, jobs)


def _register_controls(app: Dash) -> None:
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("ui", "follow"),
        Output("e-sla", "value"), Output("e-sla-number", "value"),
        Input("e-sla", "value"), Input("e-sla-number", "value"), prevent_initial_call=True,
    )  # fmt: skip

    @app.callback(Output("e-profile-field", "hidden"), Output("e-hardware", "hidden"), Input("e-on", "value"))
    def choose(on: str) -> tuple[bool, bool]:
        return on != "profile", on == "profile"

    @app.callback(
        Output("e-layout", "options"), Output("e-layout", "value"),
        Input("e-model", "value"), Input("e-gpu", "value"), Input("e-precision", "value"),
        State("e-layout", "value"),
    )  # fmt: skip
    def fit(model: str | None, gpu: str | None, precision: str, chosen: str) -> Any:
        fitting = layouts_of(Deployed("", model or "", gpu or "", precision=precision))
        options = [{"value": label, "label": shown} for label, shown in fitting.items()]
        return [{"value": "", "label": FEWEST}, *options], chosen if chosen in fitting else ""

    @app.callback(Output("e-rates", "hidden"), Input("e-acceptance", "value"))
    def edit(acceptance: str) -> bool:
        return acceptance != BY_POSITION

    @app.callback(
        Output("e-policy", "options"), Output("e-policy", "value"), Output("e-own", "value"),
        Output("e-own-error", "children"),
        Input("e-own", "value"), State("e-policy", "options"), State("e-policy", "value"),
        prevent_initial_call=True,
    )  # fmt: skip
    def add(text: str | None, options: list[dict[str, str]], chosen: list[str]) -> Any:
        if not text:
            return no_update, no_update, no_update, no_update
        try:
            check_policies([text])
        except BadInputError as error:
            return no_update, no_update, no_update, widgets.said_of(error)
        known = {each["value"]: each for each in options} | {text: {"value": text, "label": text}}
        return list(known.values()), list(dict.fromkeys([*chosen, text])), "", ""


def _register_asking(app: Dash, jobs: Jobs) -> None:
    words = (
        "on", "profile", "model", "gpu", "engine", "precision", "layout", "acceptance", "policy", "effort",
    )  # fmt: skip

    @app.callback(
        Output("e-asked", "data"), Output("e-problem", "data"),
        *(Input(f"e-{name}", "value") for name in words),
        *(Input(f"e-rate-{k}", "value") for k in range(1, MOST_EDITED + 1)),
        Input("e-again", "n_clicks"), State("session", "data"),
    )  # fmt: skip
    def ask(*given: Any) -> tuple[Any, Any]:
        *chosen, _again, session = given
        try:
            state = state_of(*chosen)
            jobs.ask(session, tasks_of(state))
        except BadInputError as error:
            return no_update, {"source": error.source, "said": widgets.said_of(error)}
        return to_query(state), None


def _register_errors(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        [Output(f"e-{name}-error", "children") for name in FIELDS],
        Input("e-problem", "data"), Input("e-seen", "data"),
        State("e-asked", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def complain(problem: Mapping[str, str] | None, _seen: str, asked: str | None, session: str) -> list[str]:
        found = () if asked is None else view_of(jobs, session, from_query(asked)).errors
        slots = dict.fromkeys(FIELDS, "")
        if problem:
            slots[problem["source"] if problem["source"] in slots else "policy"] = problem["said"]
            return list(slots.values())
        for error in found:
            slots[_field_of(error)] += f"{widgets.said_of(error)} "
        return list(slots.values())


def _field_of(error: SimulatorError) -> str:
    if isinstance(error, InfeasibleError):
        return "gpu"  # what does not fit
    source = error.source if isinstance(error, BadInputError) else None
    return source if source in FIELDS else "policy"


def _register_drawing(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        Output("e-budget", "figure"), Output("e-accepted", "figure"), Output("e-wasted", "figure"),
        Output("e-curve", "children"), Output("e-notes", "children"), Output("e-sla", "max"),
        Input("e-seen", "data"), Input("theme", "data"), State("e-asked", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def draw(_seen: str | None, scheme: Scheme, asked: str | None, session: str) -> Any:
        seen = view_of(jobs, session, from_query(asked or ""))
        figures = view.load_figures(seen, scheme)
        fastest = (
            no_update if seen.table.empty else max(50, round(1.05 * float(seen.table["tps_mean"].max())))
        )
        return *figures.values(), view.curve_line(seen.curve), widgets.bullets(seen.notes), fastest

    @app.callback(
        Output("e-speed", "figure"), Output("e-answer", "children"), Output("e-said", "children"),
        Output("e-table", "children"),
        Output("e-same", "children"), Output("e-address", "data"),
        Input("e-seen", "data"), Input("e-sla", "value"),
        Input("e-statistic", "value"), Input("theme", "data"),
        State("e-asked", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def judge(
        _seen: str | None, sla: float | str, statistic: str, scheme: Scheme,
        asked: str | None, session: str,
    ) -> Any:  # fmt: skip
        state = replace(
            from_query(asked or ""), sla=float(sla), statistic="p10" if statistic == "p10" else "mean"
        )
        seen = view_of(jobs, session, state)
        said, table = view.answered(seen, state)
        figure = view.speed_figure(seen, state, scheme)
        address = no_update if asked is None else to_query(state)
        return figure, said, view.plainly(said), table, view.same(state), address


def _register_exports(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        Output("e-file", "data"), Input("e-csv", "n_clicks"), Input("e-html", "n_clicks"),
        State("e-address", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def export(_csv: int, _html: int, address: str | None, session: str) -> Any:
        state = from_query(address or "")
        seen = view_of(jobs, session, state)
        if seen.table.empty:
            return no_update
        if ctx.triggered_id == "e-csv":
            return {"filename": "frontier.csv", "content": seen.table.to_csv(index=False)}
        content = one_file(view.file_of(seen, state))
        return {"filename": "explored.html", "content": content, "type": "text/html"}
