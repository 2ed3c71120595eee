"""A run's bar: what is clicked while the clock ticks is not lost."""

from __future__ import annotations

from typing import Any

import pytest
from dash import Dash, dcc, html

from simulator.ui.running import runs
from simulator.ui.running.jobs import Seen
from tests.support.dash_calls import call


class Recording:
    """Jobs of which one never ends, until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, session: str) -> None:
        self.cancelled.append(session)

    def look(self, session: str, tasks: Any) -> Seen:
        return Seen({}, not self.cancelled, "")


@pytest.mark.parametrize("beside", [(), ("x-clock.n_intervals",), ("x-clock.n_intervals", "x-asked.data")])
def test_a_click_beside_a_tick_cancels(beside: tuple[str, ...]) -> None:
    app, jobs = Dash(), Recording()
    app.layout = html.Div([dcc.Store(id="session"), *runs.parts("x"), runs.bar("x")])
    runs.register(app, jobs, "x", lambda _: ["a task"])  # type: ignore[arg-type, list-item]
    values = {"x-asked.data": "q", "session.data": "mine", "x-clock.n_intervals": 4, "x-cancel.n_clicks": 1}
    client = app.server.test_client()
    shown = call(client, ["x-clock.n_intervals"], values, {})
    assert shown["x-progress"]["children"] == "0 of 1 parts; now starting."
    shown = call(client, [*beside, "x-cancel.n_clicks"], values, {})
    assert jobs.cancelled == ["mine"]
    assert shown["x-progress"]["children"].startswith("Stopped after 0 of 1 parts")
