"""The app: a shell around the pages, and the server that answers this machine alone."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from importlib.resources import files
from types import ModuleType
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html

from simulator.core.errors import BadInputError
from simulator.ui.check import page as check
from simulator.ui.check.work import Uploads
from simulator.ui.explore import page as explore
from simulator.ui.plan import page as plan
from simulator.ui.running.jobs import Jobs
from simulator.ui.security import HOST, protect
from simulator.ui.widgets import aria

PAGES: Mapping[str, ModuleType] = {"/": explore, "/plan": plan, "/check": check}
"""Address to page: each has a title and a layout."""

_INDEX = """<!doctype html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
<link rel="icon" href="data:,">
{%css%}
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""


def build(jobs: Jobs, uploads: Uploads) -> Dash:
    """Return the app. jobs: where its long work runs. uploads: where dropped files are kept."""
    app = Dash(
        "simulator.ui", title="DSpark simulator", update_title="", serve_locally=True, index_string=_INDEX,
        assets_folder=str(files("simulator.ui").joinpath("assets")), suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"},
                   {"name": "color-scheme", "content": "light dark"}],
    )  # fmt: skip
    app.layout = _shell
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("ui", "scheme"), Output("theme", "data"), Input("session", "data")
    )

    @app.callback(Output("page", "children"), Input("url", "pathname"), State("url", "search"))
    def show(path: str, query: str | None) -> Any:
        return PAGES.get(path, explore).layout(query or "")

    explore.register(app, jobs)
    plan.register(app, jobs)
    check.register(app, jobs, uploads)
    return app


def _shell() -> html.Div:
    """Return what stands around every page; each opened page is a session of its own."""
    links = [dcc.Link(page.TITLE, href=path) for path, page in PAGES.items()]
    return html.Div(
        [
            html.A("To the results", href="#page", className="skip"),
            html.Header([html.H1("DSpark simulator"), html.Nav(links, **aria(label="Pages"))]),
            html.Div(id="page"),
            dcc.Location(id="url", refresh=False),
            dcc.Store(id="session", data=secrets.token_urlsafe(12)),
            dcc.Store(id="theme", data="light"),
        ]
    )  # fmt: skip


class Served:
    """A running server on this machine; ``port`` is the one that it got."""

    def __init__(self, port: int, jobs: Jobs) -> None:
        """Bind the port. Raises ``BadInputError`` where that cannot be done."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            """Says nothing of requests: the terminal is for what a user should know."""

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Leave out the line of a request."""

        try:
            bound = socket.create_server((HOST, port))
        except (OSError, OverflowError) as error:
            raise BadInputError(
                f"cannot be listened on: {error}", source="port", value=port, remedy="0 takes a free one"
            ) from error
        self.jobs = jobs
        self._uploads = Uploads()
        app = build(jobs, self._uploads)
        self.port = int(bound.getsockname()[1])
        with bound:  # the server listens on a copy
            self._server = make_server(
                HOST, self.port, app.server, threaded=True, request_handler=Quiet, fd=bound.fileno()
            )
        protect(app.server, self.port, app.csp_hashes())

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}/"

    def run(self) -> None:
        """Answer until ``close``."""
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """End the server and every run."""
        self._server.shutdown()
        self._server.server_close()
        self.jobs.close()
        self._uploads.close()
