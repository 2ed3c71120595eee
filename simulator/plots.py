"""Figures: the frontier, and load against throughput and budget (the paper's figures 7 and 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.comparison import Bound, lines, parse_speed
from simulator.errors import BadInputError
from simulator.files import atomic_path
from simulator.profiles import PublishedClaims
from simulator.sla import Term

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

Published = Mapping[str, Sequence[tuple[float, float]]]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours: distinguishable in print and with colour-blind eyes."""
_FIXED_COLOURS = {"mtp1": "#6b6b6b", "oracle": "#b5b5b5"}


def plot_frontier(
    frontier: pd.DataFrame,
    *,
    slas: Sequence[Bound] = (),
    published: PublishedClaims | None = None,
    title: str = "",
) -> Figure:
    """Throughput against mean generation speed per user, one line per policy (the paper's figure 7).

    An SLA on the mean is a vertical line; one on a quantile, a cross on each policy where it just holds. The
    caption says what p10 is there.
    """
    figure, (axes,) = _figure(1, title)
    for policy, group in frontier.groupby("policy", sort=False):
        _line(axes, group["tps_mean"], group["throughput_tok_per_s"], str(policy), frontier)
    _dots(axes, published.throughput_vs_tps if published else {}, frontier)
    captions = [_mark(axes, parse_speed(sla), frontier) for sla in slas]
    if captions:
        figure.supxlabel("\n".join(captions), fontsize=7.5, color="#444444")
    axes.set_xlabel("mean generation speed, tokens/s/user")
    axes.set_ylabel("throughput, output tokens/s/GPU")
    _finish(axes, published is not None and bool(published.throughput_vs_tps))
    return figure


def _mark(axes: Axes, term: Term, frontier: pd.DataFrame) -> str:
    """Draw where an SLA holds; returns the caption with each policy's p10 there."""
    found = {policy: line.at_sla(term) for policy, line in lines(frontier).items()}
    if term.quantile is None:
        axes.axvline(term.bound, color="#444444", linewidth=0.8, linestyle=":")
        axes.annotate(f"SLA {term.bound:g} on average", (term.bound, 1), xycoords=("data", "axes fraction"),
                      xytext=(3, -3), textcoords="offset points", va="top", fontsize=8,
                      color="#444444")  # fmt: skip
    else:
        x, y = zip(*((each.tps_mean, each.throughput) for each in found.values()), strict=True)
        axes.plot(x, y, linestyle="none", marker="x", markersize=5, color="#444444", label=term.text)
    shown = [f"{policy} {each.tps_p10:.0f}" for policy, each in found.items() if each.tps_p10 > 0]
    return f"p10 of speed at {term.text}: {', '.join(shown) or 'none keeps it'}"


def plot_load(frontier: pd.DataFrame, *, published: PublishedClaims | None = None, title: str = "") -> Figure:
    """Throughput and verification budget against concurrency (the paper's figure 8)."""
    figure, (left, right) = _figure(2, title)
    for policy, group in frontier.groupby("policy", sort=False):
        load = group["concurrency"]
        colour = _line(left, load, group["throughput_tok_per_s"], str(policy), frontier)
        low, high = (group["throughput_tok_per_s"] + sign * group["throughput_ci95"] for sign in (-1, 1))
        left.fill_between(load, low, high, color=colour, alpha=0.15, linewidth=0)
        _line(right, load, group["verification_budget_mean"], str(policy), frontier)
    _dots(left, published.throughput if published else {}, frontier)
    _dots(right, published.budget if published else {}, frontier)
    for axes, label in (
        (left, "throughput, output tokens/s/GPU"),
        (right, "verification budget, tokens/request"),
    ):
        axes.set_xlabel("concurrent requests per GPU")
        axes.set_ylabel(label)
    _style(right)
    _finish(left, published is not None and bool(published.throughput))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically; the format follows the suffix. Equal figures are equal bytes."""
    check_format(path)
    from matplotlib import rc_context

    varying = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "dspark-simulator"}):
        figure.savefig(temporary, dpi=150, metadata={varying[path.suffix.lower()]: None})


def check_format(path: Path) -> None:
    """Refuse a file name whose ending is no picture format, before any work is done for it."""
    if path.suffix.lower() not in FORMATS:
        raise BadInputError(
            "is not a picture's name", source=str(path), remedy=f"end it in one of {', '.join(FORMATS)}"
        )


def _figure(panels: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(5.6 * panels + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def _line(axes: Axes, x: pd.Series[float], y: pd.Series[float], policy: str, frontier: pd.DataFrame) -> str:
    colour = _colour(policy, frontier)
    style = "--" if policy == "oracle" else "-"
    axes.plot(x, y, style, color=colour, label=policy, marker="o", markersize=2.5, linewidth=1.6)
    return colour


def _dots(axes: Axes, curves: Published, frontier: pd.DataFrame) -> None:
    for policy, points in curves.items():
        if policy in set(frontier["policy"]):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, linestyle="none", marker="D", markersize=3.2, markerfacecolor="white",
                      markeredgewidth=0.9, color=_colour(policy, frontier))  # fmt: skip


def _colour(policy: str, frontier: pd.DataFrame) -> str:
    if policy in _FIXED_COLOURS:
        return _FIXED_COLOURS[policy]
    others = [name for name in frontier["policy"].unique() if name not in _FIXED_COLOURS]
    return PALETTE[others.index(policy) % len(PALETTE)]


def _style(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    if axes.get_ylim()[1] > 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _finish(axes: Axes, has_published: bool) -> None:
    _style(axes)
    if has_published:
        axes.plot([], [], linestyle="none", marker="D", markersize=3.2, markerfacecolor="white",
                  color="#444444", label="published")  # fmt: skip
    axes.legend(frameon=False, fontsize=8.5)
