"""Parts that the pages share: labelled fields with room for an error, tables, figures with their exports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import pandas as pd
from dash import dcc, html

from simulator.core.errors import BadInputError
from simulator.core.units import UNKNOWN, decimals_of, in_digits
from simulator.report.columns import COLUMNS

Children = Any  # what Dash takes as content: text, a component, or a list of those


def aria(**words: str) -> dict[str, Any]:
    """Return attributes for screen readers.

    >>> aria(live="polite")
    {'aria-live': 'polite'}
    """
    return {f"aria-{name}": value for name, value in words.items()}


def field(name: str, label: str, control: Any, hint: str = "") -> html.Div:
    """Return a control under its label, with room for the error of what was given."""
    return html.Div(
        [
            html.Label(label, htmlFor=name, id=f"{name}-label"),
            control,
            html.P(hint, className="soft hint", id=f"{name}-hint") if hint else None,
            html.P(id=f"{name}-error", className="error", role="alert"),
        ],
        className="field",
        id=f"{name}-field",
    )


def dropdown(name: str, options: Sequence[str] | Mapping[str, str], value: Any, **more: Any) -> dcc.Dropdown:
    """Return a list to choose from. options: names, or value to what is shown."""
    shown = options if isinstance(options, Mapping) else {each: each for each in options}
    listed = [{"value": value, "label": label} for value, label in shown.items()]
    return dcc.Dropdown(id=name, options=listed, value=value, clearable=False, placeholder="choose", **more)


def choices(name: str, label: str, options: Mapping[str, str], value: str | None) -> html.Div:
    """Return a few options of which one holds. label: what a screen reader calls them together.

    options: value to what is shown.
    """
    listed = [{"value": value, "label": shown} for value, shown in options.items()]
    items = dcc.RadioItems(id=name, options=listed, value=value, inline=True)
    return html.Div(items, role="radiogroup", **aria(label=label))


def answer(page: str, run: html.Div) -> html.Div:
    """Return the card that says the answer first, then what it rests on, then how far a run is.

    page: letter that the names of its parts begin with. run: ``runs.bar``. A sentence beside the answer is
    what a screen reader speaks whenever it changes.
    """
    said = html.Div(id=f"{page}-answer", className="answer")
    spoken = html.P(id=f"{page}-said", className="unseen", **aria(live="polite", atomic="true"))
    return html.Div([said, spoken, html.Div(id=f"{page}-curve", className="soft"), run], className="card")


def found(page: str) -> html.Div:
    """Return the room for what was found: a sentence, spoken whenever it changes, and its tables below.

    page: letter that the names of its parts begin with.
    """
    said = html.P(id=f"{page}-said", **aria(live="polite", atomic="true"))
    return html.Div([said, html.Div(id=f"{page}-tables")], id=f"{page}-answer")


def failed(error: Exception) -> html.Span:
    """Return an error as what was found."""
    return html.Span(str(error), className="error")


def exports(buttons: Mapping[str, str]) -> html.Div:
    """Return buttons that save the view; buttons: name to what stands on it."""
    return html.Div(
        [html.Button(shown, id=name, type="button") for name, shown in buttons.items()], className="exports"
    )


def said_of(error: Exception) -> str:
    """Say an error without the place, which is where it is shown."""
    if isinstance(error, BadInputError):
        return str(BadInputError(error.problem, value=error.value, remedy=error.remedy))
    return str(error)


def figure(name: str, title: str, what: str, drawn: Mapping[str, Any] | None = None) -> html.Figure:
    """Return a figure with its title, a sentence on how to read it, and a button for a PNG.

    drawn: what it shows; empty until a callback draws it.
    """
    config: Any = {"displayModeBar": False, "responsive": True}
    more: dict[str, Any] = {} if drawn is None else {"figure": drawn}
    button = html.Button("PNG", type="button", className="small", title=f"Save {title} as PNG")
    return html.Figure(
        [
            html.Figcaption([html.Strong(title), html.Span(f" {what}", className="soft"), button]),
            html.Div(
                dcc.Graph(id=name, config=config, className="plot", style={"height": "340px"}, **more),
                role="img", **aria(label=f"{title}. {what}"),
            ),
        ]
    )  # fmt: skip


def table(
    name: str,
    heads: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    best: Sequence[bool] = (),
    meanings: Mapping[str, str] = COLUMNS,
) -> html.Div:
    """Return a table.

    name: what a screen reader calls it. heads: column to what stands above it. best: which rows are in bold.
    meanings: what a column means, shown on hover and to a screen reader.
    """
    kinds = {column: "text" if any(_is_long(row[column]) for row in rows) else "" for column in heads}
    head = html.Tr(
        [
            html.Th(
                shown,
                scope="col",
                title=meanings.get(column) or COLUMNS.get(column, ""),
                className=kinds[column],
            )
            for column, shown in heads.items()
        ]
    )
    columns = [texts([row[column] for row in rows]) for column in heads]
    body = []
    for index, (first, *others) in enumerate(zip(*columns, strict=True)):
        cells: list[Any] = [html.Th(first, scope="row")]
        for kind, text in zip(list(kinds.values())[1:], others, strict=True):
            cells.append(html.Td(text, className=kind))
        body.append(html.Tr(cells, className="best" if index < len(best) and best[index] else ""))
    return scrolled(name, head, body)


def scrolled(name: str, head: html.Tr, body: Sequence[html.Tr]) -> html.Div:
    """Return a table that scrolls sideways, by keyboard too; its numbers are not read out as they change."""
    listed = html.Table([html.Thead(head), html.Tbody(body)], **aria(label=name))
    return html.Div(listed, className="table", tabIndex="0", role="group", **aria(label=name, live="off"))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table by column."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > 12


def texts(values: Sequence[object]) -> list[str]:
    """Write the values of a column: numbers all with the same decimals, a dash for what is not known.

    >>> texts([1.5, 2, None, "cannot", True])
    ['1.50', '2.00', '–', 'cannot', 'yes']
    """
    decimals = decimals_of(float(value) for value in values if _is_number(value))
    return [
        in_digits(float(value), decimals) if _is_number(value) else _WORDS.get(value, str(value))
        for value in values
    ]


_WORDS: Mapping[object, str] = {True: "yes", False: "no", None: UNKNOWN}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def percent(value: float) -> str:
    """Write a change as a signed percentage."""
    return UNKNOWN if math.isnan(value) else "+0%" if abs(value) < 0.005 else f"{value:+.0%}"


def code(text: str, name: str) -> html.Div:
    """Return text to be copied, with a button that does it."""
    return html.Div(
        [
            html.Pre(text, id=name, tabIndex="0"),
            dcc.Clipboard(target_id=name, title="Copy", className="copy"),
        ],
        className="code",
    )


def badge(kind: str, band: float | None) -> html.Span:
    """Return what a curve rests on, and by how much it may be off."""
    off = ", no error band is known" if band is None else f", step times within {band:.0%}"
    return html.Span(f"{kind}{off}", className=f"badge {kind}", title="What the curve rests on")


def bullets(items: Sequence[str], name: str = "warnings") -> html.Ul | None:
    """Return sentences as a list, or nothing."""
    return html.Ul([html.Li(each) for each in items], className=name) if items else None
