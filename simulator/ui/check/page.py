"""The page Check: its layout, and what happens on it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode

import pandas as pd
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from simulator.core.errors import BadInputError, SimulatorError
from simulator.dumps.outcomes import Replayed
from simulator.ui import widgets
from simulator.ui.check import measured_runs, view, work
from simulator.ui.check.work import ACCEPTANCE, HELD_OUT, WHOLE, Uploads, subjects, tasks_of
from simulator.ui.explore.work import Line
from simulator.ui.exports import one_file
from simulator.ui.figures import Figure, Scheme, empty_figure
from simulator.ui.running import runs
from simulator.ui.running.jobs import Jobs
from simulator.ui.security import MOST_UPLOAD_BYTES, check_policies, decoded_upload

TITLE = "Check"

MOST_IN_PAGE_BYTES = 2**26
"""Size from which on the page does not even read a file (64 MiB): it would only fill its memory."""

FILES = "/files"
"""What a session is called where it reads files: that goes on beside the comparison."""


def layout(query: str) -> html.Div:
    """Return the page with the subject that its address names; an unknown one is said at the top."""
    given = parse_qs(query.removeprefix("?"))
    problems = []
    chosen = {}
    for name, known in (("subject", subjects()), ("runs", measured_runs.places())):
        asked = given.get(name, [known[0]])[-1]
        chosen[name] = asked if asked in known else known[0]
        if asked not in known:
            problems.append(f"The address of this page: {name} {asked[:80]!r} is not known")
    main = [_published(chosen["subject"]), _end_to_end(chosen["runs"]), _measured(), _file()]
    return html.Div(
        [
            *(html.P(said, className="error", role="alert") for said in problems),
            html.Main(main, className="check"),
            *runs.parts("c"), *runs.parts("d"),
        ]
    )  # fmt: skip


def _published(subject: str) -> html.Section:
    names = {name: name for name in subjects()} | {
        ACCEPTANCE: "the paper's figures on acceptance",
        HELD_OUT: "measured gains of chain drafters, held out",
    }
    return html.Section(
        [
            html.H2("Predicted against published"),
            widgets.field("c-subject", "Of", widgets.dropdown("c-subject", names, subject)),
            runs.bar("c"),
            widgets.found("c"),
            widgets.figure("c-misses", view.MISSES, "Zero is right; the largest miss is on top."),
            widgets.exports({"c-csv": "CSV", "c-html": "One HTML file"}),
        ]
    )  # fmt: skip


def _end_to_end(where: str) -> html.Section:
    """Return the section of published end-to-end runs; hidden where none are shipped."""
    names = {name: name for name in measured_runs.places()}
    what = f"On the line is right; dotted: {measured_runs.OFF:.0%} off."
    return html.Section(
        [
            html.H2("Predicted against measured end to end, elsewhere"),
            widgets.field("m-runs", "Model and GPU", widgets.dropdown("m-runs", names, where)),
            widgets.found("m"),
            widgets.figure("m-figure", measured_runs.TITLE, what),
            widgets.exports({"m-csv": "CSV", "m-html": "One HTML file"}),
            dcc.Download(id="m-file"),
        ],
        hidden=measured_runs.runs().empty,
    )


def _measured() -> html.Section:
    more = "Other engines and end-to-end runs, with what was left out: docs/validation.md."
    return html.Section(
        [
            html.H2("Predicted against measured here"),
            html.Details(
                [html.Summary("Live validations that are shipped"), *view.measured(work.measured())]
            ),
            html.P(more, className="soft"),
        ]
    )


def _file() -> html.Section:
    limit = f"At most {MOST_UPLOAD_BYTES >> 20} MiB. It stays on this machine."
    button = html.Button("Choose a file, or drop it here", type="button", id="d-choose")
    drop = dcc.Upload(button, id="d-upload", className="drop", max_size=MOST_IN_PAGE_BYTES)
    letters = 4 * MOST_UPLOAD_BYTES // 3 + 100  # in base64, after what the browser writes in front
    limits = {"letters": letters, "said": f"is larger than {MOST_UPLOAD_BYTES >> 20} MiB; record fewer steps"}
    policies = dcc.Input(id="d-policies", value="sglang", debounce=True, autoComplete="off")
    below = "Comma-separated; the first stands for the engine."
    return html.Section(
        [
            html.H2("What an engine's file says"),
            html.P("SGLang's recorded decode steps are decided again; a log's acceptance is read."),
            widgets.field("d-policies", "Policies", policies, below),
            widgets.field("d-upload", "File", drop, limit),
            dcc.Store(id="d-limits", data=limits),
            dcc.Store(id="d-sent"),
            html.P(id="d-large", className="error", role="alert"),
            runs.bar("d"),
            widgets.found("d"),
            widgets.exports(
                {"d-report": "Report (Markdown)", "d-html": "One HTML file", "d-csv": "CSV of the steps"}
            ),
        ]
    )


def register(app: Dash, jobs: Jobs, uploads: Uploads) -> None:
    """Connect the page. uploads: where dropped files are kept."""
    _register_published(app, jobs)
    _register_runs(app)
    _register_file(app, jobs, uploads)
    runs.register(app, jobs, "c", tasks_of)
    runs.register(app, jobs, "d", lambda asked: [uploads.task(asked)], of=FILES)


# --- Published ----------------------------------------------------------------------------------------------


def _register_published(app: Dash, jobs: Jobs) -> None:
    @app.callback(
        Output("c-asked", "data"), Output("c-address", "data"), Output("c-subject-error", "children"),
        Input("c-subject", "value"), Input("c-again", "n_clicks"), Input("m-runs", "value"),
        State("session", "data"),
    )  # fmt: skip
    def ask(subject: str, _again: int, where: str, session: str) -> tuple[Any, ...]:
        if subject not in subjects():
            return no_update, no_update, "is not known"
        try:
            jobs.ask(session, tasks_of(subject))
        except BadInputError as error:
            return no_update, no_update, widgets.said_of(error)
        chosen = {"subject": (subject, subjects()[0]), "runs": (where, measured_runs.EVERYWHERE)}
        words = {name: value for name, (value, usual) in chosen.items() if value != usual}
        return subject, urlencode(words), ""

    @app.callback(
        Output("c-said", "children"), Output("c-tables", "children"), Output("c-misses", "figure"),
        Input("c-seen", "data"), Input("theme", "data"), State("c-asked", "data"), State("session", "data"),
    )  # fmt: skip
    def draw(_seen: str | None, scheme: Scheme, asked: str | None, session: str) -> tuple[Any, Any, Figure]:
        table = None if asked is None else _table(jobs, session, asked)
        if isinstance(table, SimulatorError):
            return widgets.failed(table), "", view.misses(None, scheme)
        found = ("", "") if table is None else view.compared(table, str(asked))
        return *found, view.misses(table, scheme)

    @app.callback(
        Output("c-file", "data"), Input("c-csv", "n_clicks"), Input("c-html", "n_clicks"),
        State("c-asked", "data"), State("session", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def export(_csv: int, _html: int, asked: str | None, session: str) -> Any:
        table = None if asked is None else _table(jobs, session, asked)
        if not isinstance(table, pd.DataFrame):
            return no_update
        if ctx.triggered_id == "c-csv":
            return {"filename": f"{asked}-check.csv", "content": table.to_csv(index=False)}
        content = one_file(view.file_of(table, str(asked)))
        return {"filename": f"{asked}-check.html", "content": content, "type": "text/html"}


def _table(jobs: Jobs, session: str, subject: str) -> pd.DataFrame | SimulatorError | None:
    """Return predictions beside published results, an error, or nothing while they are being made."""
    tasks = tasks_of(subject)
    found = [jobs.look(session, tasks).found.get(task) for task in tasks]
    failed = next((each for each in found if isinstance(each, SimulatorError)), None)
    if failed is not None:
        return failed
    if subject in WHOLE:
        return found[0] if isinstance(found[0], pd.DataFrame) else None
    lines = [each for each in found if isinstance(each, Line)]
    return work.claims(subject, lines) if len(lines) == len(tasks) else None


# --- End-to-end runs ----------------------------------------------------------------------------------------


def _register_runs(app: Dash) -> None:
    @app.callback(
        Output("m-said", "children"), Output("m-tables", "children"), Output("m-figure", "figure"),
        Input("m-runs", "value"), Input("theme", "data"),
    )  # fmt: skip
    def show(where: str, scheme: Scheme) -> tuple[Any, Any, Figure]:
        if measured_runs.runs().empty or where not in measured_runs.places():
            return "", "", empty_figure("none is shipped", scheme)
        return *measured_runs.said(where), measured_runs.figure(where, scheme)

    @app.callback(
        Output("m-file", "data"),
        Input("m-csv", "n_clicks"),
        Input("m-html", "n_clicks"),
        State("m-runs", "value"),
        prevent_initial_call=True,
    )
    def export(_csv: int, _html: int, where: str) -> Any:
        if where not in measured_runs.places():
            return no_update
        if ctx.triggered_id == "m-csv":
            return {"filename": "runs.csv", "content": measured_runs.of(where).to_csv(index=False)}
        content = one_file(measured_runs.file_of(where))
        return {"filename": "runs.html", "content": content, "type": "text/html"}


# --- An engine's file ---------------------------------------------------------------------------------------


def _register_file(app: Dash, jobs: Jobs, uploads: Uploads) -> None:
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("ui", "bounded"), Output("d-sent", "data"), Output("d-large", "children"),
        Input("d-upload", "contents"), State("d-limits", "data"), prevent_initial_call=True,
    )  # fmt: skip

    @app.callback(
        Output("d-asked", "data"), Output("d-upload-error", "children"),
        Output("d-policies-error", "children"),
        Input("d-sent", "data"), Input("d-policies", "value"), Input("d-again", "n_clicks"),
        State("d-upload", "filename"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def drop(
        contents: str | None, policies: str, _again: int, name: str | None, session: str
    ) -> tuple[Any, ...]:
        listed = tuple(each.strip() for each in (policies or "").split(",") if each.strip())
        try:
            check_policies(listed)
        except BadInputError as error:
            return no_update, no_update, widgets.said_of(error)
        if contents is None:
            return no_update, "", ""
        try:
            digest = uploads.keep(decoded_upload(contents, name or "the file"))
            words = [("dump", digest), ("name", name or "the file"), *(("policy", each) for each in listed)]
            asked = urlencode(words)
            jobs.ask(session + FILES, [uploads.task(asked)])
        except BadInputError as error:
            return no_update, widgets.said_of(error), ""
        return asked, "", ""

    @app.callback(
        Output("d-said", "children"), Output("d-tables", "children"),
        Input("d-seen", "data"), Input("theme", "data"), State("d-asked", "data"), State("session", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def show(_seen: str | None, scheme: Scheme, asked: str | None, session: str) -> tuple[Any, Any]:
        found: Any = None if asked is None else _found(jobs, uploads, session, asked)
        if isinstance(found, SimulatorError):
            return widgets.failed(found), ""
        return ("", "") if found is None else view.explained(found, scheme)

    @app.callback(
        Output("d-file", "data"),
        Input("d-report", "n_clicks"), Input("d-csv", "n_clicks"), Input("d-html", "n_clicks"),
        State("d-asked", "data"), State("session", "data"), prevent_initial_call=True,
    )  # fmt: skip
    def export(_report: int, _csv: int, _html: int, asked: str | None, session: str) -> Any:
        found: Any = None if asked is None else _found(jobs, uploads, session, asked)
        if not isinstance(found, Replayed):
            return no_update
        if ctx.triggered_id == "d-csv":
            return {"filename": "decisions.csv", "content": found.steps.to_csv(index=False)}
        if ctx.triggered_id == "d-html":
            content = one_file(view.file_of_replay(found))
            return {"filename": "replay.html", "content": content, "type": "text/html"}
        return {"filename": "report.md", "content": found.report()}


def _found(jobs: Jobs, uploads: Uploads, session: str, asked: str) -> object:
    """Return what a file tells, the error of reading it, or nothing while it is being read."""
    task = uploads.task(asked)
    return jobs.look(session + FILES, [task]).found.get(task)
