"""Figures of the pages, as Plotly reads them: plain data, so that a change is drawn without delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import SYMBOLS

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

_LESS, _MORE = "#009E73", "#D55E00"
"""Of Okabe and Ito's colours: a number that falls, and one that rises."""


def colour_of(policy: str, scheme: Scheme) -> str:
    """Return the colour that the policy has in every figure."""
    colours = policy_colour(policy)
    return colours.dark if scheme == "dark" else colours.light


def line_figure(
    table: pd.DataFrame, x: str, y: str, axes: tuple[str, str], scheme: Scheme, *,
    coarse: Sequence[str] = (), published: Points | None = None, bound: float | None = None,
    share: bool = False,
) -> Figure:  # fmt: skip
    """Draw a line for each policy. coarse: policies whose line is a first look, drawn dotted.

    bound: where an SLA lies on x. share: y is a share, shown as a percentage.
    """
    theme = THEMES[scheme]
    traces = []
    for place, (name, rows) in enumerate(table.groupby("policy", sort=False)):
        policy = str(name)
        colour = colour_of(policy, scheme)
        mark = {"size": 6, "color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)]}
        dash = "dot" if policy in coarse else "dash" if policy == "oracle" else "solid"
        known = rows[rows[x].notna() & rows[y].notna()].sort_values("concurrency")
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": policy,
                "x": known[x].tolist(), "y": known[y].tolist(), "text": known["concurrency"].tolist(),
                "line": {"color": colour, "width": 2, "dash": dash}, "marker": mark,
                "hovertemplate": "%{y:,.4g} at %{x:,.4g}<br>%{text} requests",
            }
        )  # fmt: skip
        traces += _marks(policy, published, colour, named=not any(t["mode"] == "markers" for t in traces))
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


def _marks(policy: str, published: Points | None, colour: str, *, named: bool) -> list[dict[str, Any]]:
    """Draw what was published of a policy as open diamonds. named: the legend names them, once for all."""
    points = [] if published is None else published.get(policy, [])
    if not points:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "name": "published", "showlegend": named,
            "x": [x for x, _ in points], "y": [y for _, y in points],
            "marker": {"symbol": "diamond-open", "size": 7, "color": colour},
            "hovertemplate": f"{policy}, published: %{{y:,.4g}} at %{{x:,.4g}}<extra></extra>",
        }
    ]  # fmt: skip


def day_figure(day: pd.DataFrame, plans: pd.DataFrame, scheme: Scheme) -> Figure:
    """Draw each policy's replicas over the day, in steps. day, plans: tables of a plan."""
    theme = THEMES[scheme]
    hours = [*(day["start_s"] / 3600), day["end_s"].iloc[-1] / 3600]
    traces = []
    for policy in plans["policy"]:
        if f"replicas {policy}" in day:
            replicas = day[f"replicas {policy}"].tolist()
            line = {"color": colour_of(policy, scheme), "width": 2, "shape": "hv"}
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": policy, "line": line, "x": hours,
                    "y": [*replicas, replicas[-1]], "hovertemplate": "%{y} replicas at %{x:.4g} h",
                }
            )  # fmt: skip
    return {"data": traces, "layout": layout(("hour", "replicas"), theme)}


def tornado_figure(
    names: Sequence[str], values: Sequence[float], planned: float, unit: str, scheme: Scheme
) -> Figure:
    """Draw what each input that is off does to a number; the largest change is on top."""
    theme = THEMES[scheme]
    rows = sorted(zip(names, values, strict=True), key=lambda row: abs(row[1] - planned))
    colours = [_MORE if value > planned else _LESS for _, value in rows]
    bars = {
        "type": "bar", "orientation": "h", "y": [name for name, _ in rows], "base": planned,
        "x": [value - planned for _, value in rows], "marker": {"color": colours},
        "customdata": [value for _, value in rows],
        "hovertemplate": "%{y}: %{customdata:,.4g}<extra></extra>",
    }  # fmt: skip
    shown = layout((unit, ""), theme)
    shown["xaxis"] |= {"rangemode": "normal"}
    shown["shapes"] = [
        {"type": "line", "x0": planned, "x1": planned, "yref": "paper", "y0": 0, "y1": 1,
         "line": {"color": theme.soft, "width": 1.5}}
    ]  # fmt: skip
    return {"data": [bars], "layout": shown}


LONGEST = 28
"""Letters of a name beside its bar; the whole name is shown on hover and in the table."""

MOST_MISSES = 20
"""Misses that are drawn: more names than that cannot be read beside their bars."""


def misses_figure(
    names: Sequence[str], published: Sequence[float], predicted: Sequence[float], scheme: Scheme
) -> Figure:
    """Draw by how much predictions are off, as a share of what was published; the largest is on top.

    Names are cut, and stand behind their place, which the table has too.
    """
    theme = THEMES[scheme]
    errors = [now / then - 1 for then, now in zip(published, predicted, strict=True)]
    ranked = sorted(zip(names, errors, strict=True), key=lambda row: -abs(row[1]))[:MOST_MISSES]
    rows = [(numbered(place, name), error) for place, (name, error) in enumerate(ranked, 1)][::-1]
    places = list(range(len(rows)))
    bars = {
        "type": "bar", "orientation": "h", "y": places, "x": [error for _, error in rows],
        "marker": {"color": [_MORE if error > 0 else _LESS for _, error in rows]},
        "text": [name for name, _ in rows], "textposition": "none",
        "hovertemplate": "%{text}: %{x:+.1%}<extra></extra>",
    }  # fmt: skip
    shown = layout(("predicted over published, less 1", ""), theme)
    shown["xaxis"] |= {"tickformat": "+.0%", "rangemode": "normal", "zerolinecolor": theme.soft}
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name, _ in rows]
    shown["yaxis"] |= {"tickvals": places, "ticktext": labels, "rangemode": "normal"}
    return {"data": [bars], "layout": shown}


def numbered(place: int, name: str) -> str:
    """Return a name behind its place in a list that begins with 1."""
    return f"{place}. {name}"


def steps_figure(steps: pd.DataFrame, scheme: Scheme) -> Figure:
    """Draw how many drafts the engine verified in each recorded step, and how many are decided again."""
    theme = THEMES[scheme]
    kinds = (("engine_drafts", "as recorded", theme.soft, 5), ("decided_drafts", "decided again", _MORE, 1.5))
    steps_run, why = steps["forward_ct"].tolist(), steps["why"].tolist()
    traces = [
        {"type": "scatter", "mode": "lines", "name": name, "x": steps_run, "y": steps[column].tolist(),
         "line": {"color": colour, "width": width}, "text": why,
         "hovertemplate": "%{y} drafts in step %{x}<br>%{text}"}
        for column, name, colour, width in kinds
    ]  # fmt: skip
    shown = layout(("engine step", "drafts verified in the batch"), theme)
    shown["xaxis"] |= {"rangemode": "normal"}
    return {"data": traces, "layout": shown}


def bars_figure(table: pd.DataFrame, at: str, value: str, unit: str, scheme: Scheme) -> Figure:
    """Draw a bar for each policy at each value of a column, as GPUs side by side."""
    theme = THEMES[scheme]
    traces = [
        {"type": "bar", "name": str(policy), "x": rows[at].tolist(), "y": rows[value].tolist(),
         "marker": {"color": colour_of(str(policy), scheme)}, "hovertemplate": "%{x}: %{y:,.3g}"}
        for policy, rows in table.groupby("policy", sort=False)
    ]  # fmt: skip
    return {"data": traces, "layout": layout(("", unit), theme)}


def layout(axes: tuple[str, str], theme: Theme) -> dict[str, Any]:
    """Return the look that all figures share."""
    axis = {"gridcolor": theme.rule, "zerolinecolor": theme.rule, "rangemode": "tozero", "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": axes[0]}}, "yaxis": {**axis, "title": {"text": axes[1]}},
        "paper_bgcolor": theme.panel, "plot_bgcolor": theme.panel,
        "font": {"color": theme.ink, "family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 60, "r": 12, "t": 44, "b": 45}, "hovermode": "closest", "uirevision": axes[0],
        "legend": {"orientation": "h", "yref": "container", "yanchor": "top", "y": 1.0, "x": 0,
                   "bgcolor": "rgba(0,0,0,0)"},
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
