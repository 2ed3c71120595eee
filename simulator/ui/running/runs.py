"""What every page with a run has: a clock that looks, progress in words, cancel and run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from simulator.ui.running.jobs import Jobs, Seen, Task

CLOCK_MS = 300
"""Milliseconds between two looks at a run: often enough to follow, seldom enough to cost nothing."""


def parts(page: str) -> list[Any]:
    """Return what a run keeps in its page. page: the letter that the names of its parts begin with.

    asked: the query of the state that was asked. seen: changes whenever there is more to show. address: the
    query that the page's address shall have, written: the one that it has.
    """
    kept = ("asked", "seen", "problem", "address", "written")
    clock = dcc.Interval(id=f"{page}-clock", interval=CLOCK_MS, disabled=True)
    return [*(dcc.Store(id=f"{page}-{name}") for name in kept), clock, dcc.Download(id=f"{page}-file")]


def bar(page: str) -> html.Div:
    """Return how far a run is, with what can be done about it.

    A screen reader speaks its beginning and where it was stopped, not every part of it.
    """
    buttons = [
        html.Button(shown, id=f"{page}-{name}", type="button", className="small", hidden=True)
        for name, shown in (("cancel", "Cancel"), ("again", "Run again"))
    ]
    shown = html.Span(id=f"{page}-progress")
    spoken = html.Span(id=f"{page}-spoken", role="status", className="unseen")
    return html.Div([shown, spoken, *buttons], className="progress")


def register(
    app: Dash, jobs: Jobs, page: str, tasks_of: Callable[[str], Sequence[Task]], of: str = ""
) -> None:
    """Look at the run of a page until it has ended, and keep its address.

    tasks_of: what a query asks. of: added to the session's name where a page has two runs.
    """
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("ui", "address"),
        Output(f"{page}-written", "data"), Input(f"{page}-address", "data"), prevent_initial_call=True,
    )  # fmt: skip

    @app.callback(
        Output(f"{page}-seen", "data"),
        Output(f"{page}-progress", "children"), Output(f"{page}-spoken", "children"),
        Output(f"{page}-clock", "disabled"),
        Output(f"{page}-cancel", "hidden"), Output(f"{page}-again", "hidden"),
        Input(f"{page}-clock", "n_intervals"), Input(f"{page}-asked", "data"),
        Input(f"{page}-cancel", "n_clicks"),
        State("session", "data"), State(f"{page}-seen", "data"),
        prevent_initial_call=True,
    )  # fmt: skip
    def look(
        _ticks: int, asked: str | None, _cancelled: int, session: str, before: str | None
    ) -> tuple[Any, ...]:
        if asked is None:
            return no_update, "", "", True, True, True
        if f"{page}-cancel" in changed():
            jobs.cancel(session + of)
        tasks = tasks_of(asked)
        seen = jobs.look(session + of, tasks)
        token = f"{asked}|{len(seen.found)}|{seen.running}"
        said = progress(seen, len(tasks))
        stopped = not seen.running and len(seen.found) < len(tasks)
        spoken = "Running." if seen.running else said
        return (
            no_update if token == before else token, said, spoken,
            not seen.running, not seen.running, not stopped,
        )  # fmt: skip


def changed() -> set[str]:
    """Return the ids of all that changed since the last call: one call may stand for several changes.

    ``ctx.triggered_id`` names one of them only, so a click beside a tick of the clock would be lost.
    """
    return {str(name) for name in ctx.triggered_prop_ids.values()}


def progress(seen: Seen, total: int) -> str:
    """Say how far a run is, or that it was stopped.

    >>> progress(Seen({}, False, ""), 3)
    'Stopped after 0 of 3 parts; what is there is shown.'
    """
    done = len(seen.found)
    if seen.running:
        return f"{done} of {total} parts; now {seen.said or 'starting'}."
    return f"Stopped after {done} of {total} parts; what is there is shown." if done < total else ""
