"""Figures of the pages, as Plotly reads them: plain data, so that a change is drawn without delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from simulator.report.style import policy_colour

Figure = dict[str, Any]

Scheme = Literal["light", "dark"]

Points = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a scheme: the same as those of the report's page."""

    ink: str
    soft: str
    rule: str
    panel: str


THEMES: Mapping[Scheme, Theme] = {
    "light": Theme("#1b1f24", "#57606a", "#d0d7de", "#f6f8fa"),
    "dark": Theme("#e6edf3", "#9da7b1", "#30363d", "#161b22"),
}

_BLACK = "#000000"


def colour_of(policy: str, table: pd.DataFrame, theme: Theme) -> str:
    """Return the colour that the policy has in every figure; black is drawn in ink, to be seen on dark."""
    colour = policy_colour(policy, table)
    return theme.ink if colour == _BLACK else colour


def line_figure(
    table: pd.DataFrame, x: str, y: str, axes: tuple[str, str], scheme: Scheme, *,
    coarse: Sequence[str] = (), published: Points | None = None, bound: float | None = None,
    share: bool = False, order: pd.DataFrame | None = None,
) -> Figure:  # fmt: skip
    """Draw a line for each policy. coarse: policies whose line is a first look, drawn dotted.

    bound: where an SLA lies on x. share: y is a share, shown as a percentage. order: the table by whose
    policies colours are chosen, where it is not this one.
    """
    theme = THEMES[scheme]
    traces = []
    for name, rows in table.groupby("policy", sort=False):
        policy = str(name)
        colour = colour_of(policy, table if order is None else order, theme)
        dash = "dot" if policy in coarse else "dash" if policy == "oracle" else "solid"
        known = rows[rows[x].notna() & rows[y].notna()].sort_values("concurrency")
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": policy,
                "x": known[x].tolist(), "y": known[y].tolist(), "text": known["concurrency"].tolist(),
                "line": {"color": colour, "width": 2, "dash": dash}, "marker": {"size": 5, "color": colour},
                "hovertemplate": "%{y:,.4g} at %{x:,.4g}<br>%{text} requests",
            }
        )  # fmt: skip
        traces += _marks(policy, published, colour, theme)
    figure: Figure = {"data": traces, "layout": layout(axes, theme)}
    if share:
        figure["layout"]["yaxis"]["tickformat"] = ".0%"
    if bound is not None:
        figure["layout"]["shapes"] = [
            {"type": "line", "x0": bound, "x1": bound, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": theme.soft, "width": 1.5, "dash": "dash"}}
        ]  # fmt: skip
        figure["layout"]["annotations"] = [
            {"x": bound, "yref": "paper", "y": 1, "text": f"SLA {bound:g}", "showarrow": False,
             "xanchor": "left", "yanchor": "top", "xshift": 3, "font": {"color": theme.soft}}
        ]  # fmt: skip
    return figure


def _marks(policy: str, published: Points | None, colour: str, theme: Theme) -> list[dict[str, Any]]:
    """Draw what was published of a policy as open diamonds."""
    points = [] if published is None else published.get(policy, [])
    if not points:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "name": f"{policy}, published", "showlegend": False,
            "x": [x for x, _ in points], "y": [y for _, y in points],
            "marker": {"symbol": "diamond-open", "size": 7, "color": colour},
            "hovertemplate": "published: %{y:,.4g} at %{x:,.4g}",
        }
    ]  # fmt: skip


def layout(axes: tuple[str, str], theme: Theme) -> dict[str, Any]:
    """Return the look that all figures share."""
    axis = {"gridcolor": theme.rule, "zerolinecolor": theme.rule, "rangemode": "tozero", "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": axes[0]}}, "yaxis": {**axis, "title": {"text": axes[1]}},
        "paper_bgcolor": theme.panel, "plot_bgcolor": theme.panel,
        "font": {"color": theme.ink, "family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 60, "r": 12, "t": 10, "b": 45}, "hovermode": "closest", "uirevision": axes[0],
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        "hoverlabel": {"align": "left"},
    }  # fmt: skip


def empty_figure(said: str, scheme: Scheme) -> Figure:
    """Return a figure that says why there is none."""
    theme = THEMES[scheme]
    shown = layout(("", ""), theme)
    for axis in ("xaxis", "yaxis"):
        shown[axis] |= {"visible": False}
    words = {"text": said, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return {"data": [], "layout": shown | {"annotations": [words | {"font": {"color": theme.soft}}]}}
