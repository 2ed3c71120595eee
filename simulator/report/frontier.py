"""Figures: the frontier, load against throughput and budget (the paper's figures 7 and 8), and regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.core.files import atomic_path
from simulator.deployment.profile import stands_for
from simulator.deployment.profile_parts import PublishedClaims
from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import (
    DASHES,
    MARKS,
    PALETTE,
    draw_line,
    finish_axes,
    new_figure,
    style_axes,
)
from simulator.sla.terms import Term
from simulator.sweeps.comparison import Bound, parse_speed
from simulator.sweeps.lines import lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Published = Mapping[str, Sequence[tuple[float, float]]]


def plot_frontier(
    frontier: pd.DataFrame,
    *,
    slas: Sequence[Bound] = (),
    published: PublishedClaims | None = None,
    title: str = "",
) -> Figure:
    """Draw throughput against mean generation speed per user, one line per policy (the paper's figure 7).

    An SLA on the mean is a vertical line; one on a quantile, a cross on each policy where it just holds. The
    caption says what p10 is there.

    Parameters
    ----------
    frontier
        Rows of ``sweep_frontier``.
    slas
        Speed SLAs, tokens/s per user.
    published
        Claims to mark beside the lines.
    title
        Of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, not shown and not saved.
    """
    figure, (axes,) = new_figure(1, title)
    for policy, group in frontier.groupby("policy", sort=False):
        draw_line(axes, group["tps_mean"], group["throughput_tok_per_s"], str(policy), frontier)
    _dots(axes, published.throughput_vs_tps if published else {}, frontier)
    captions = [_mark(axes, parse_speed(sla), frontier, row) for row, sla in enumerate(slas)]
    if captions:
        figure.supxlabel("\n".join(captions), fontsize=7.5, color="#444444")
    axes.set_xlabel("mean generation speed, tokens/s/user")
    axes.set_ylabel(f"throughput, output {speed_of(frontier)}")
    finish_axes(axes, published is not None and bool(published.throughput_vs_tps))
    return figure


def replica_of(frontier: pd.DataFrame) -> str:
    """Say what throughput and load are of: a GPU, or a replica of several."""
    return stands_for(float(frontier["replica_gpus"].iloc[0]) if "replica_gpus" in frontier else None)


def speed_of(frontier: pd.DataFrame) -> str:
    """Return the unit of throughput as an axis has it."""
    of = replica_of(frontier)
    return "tokens/s/GPU" if of == "GPU" else f"tokens/s per {of}"


def _mark(axes: Axes, term: Term, frontier: pd.DataFrame, row: int) -> str:
    """Draw where an SLA holds; returns the caption with each policy's p10 there.

    row: on which its label stands, so that labels of near bounds do not overlap.
    """
    found = {policy: line.at_sla(term) for policy, line in lines(frontier).items()}
    if term.quantile is None:
        axes.axvline(term.bound, color="#444444", linewidth=0.8, linestyle=":")
        axes.annotate(f"SLA {term.bound:g} on average", (term.bound, 1), xycoords=("data", "axes fraction"),
                      xytext=(3, -3 - 10 * row), textcoords="offset points", va="top", fontsize=8,
                      color="#444444")  # fmt: skip
    else:
        x, y = zip(*((each.tps_mean, each.throughput) for each in found.values()), strict=True)
        axes.plot(x, y, linestyle="none", marker="x", markersize=5, color="#444444", label=term.text)
    shown = [f"{policy} {each.tps_p10:.0f}" for policy, each in found.items() if each.tps_p10 > 0]
    return f"p10 of speed at {term.text}: {', '.join(shown) or 'none keeps it'}"


def plot_load(frontier: pd.DataFrame, *, published: PublishedClaims | None = None, title: str = "") -> Figure:
    """Draw throughput and verification budget against concurrency (the paper's figure 8).

    Parameters
    ----------
    frontier
        Rows of ``sweep_frontier``.
    published
        Claims to mark beside the lines.
    title
        Of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, not shown and not saved.
    """
    figure, (left, right) = new_figure(2, title)
    for policy, group in frontier.groupby("policy", sort=False):
        load = group["concurrency"]
        colour = draw_line(left, load, group["throughput_tok_per_s"], str(policy), frontier)
        low, high = (group["throughput_tok_per_s"] + sign * group["throughput_ci95"] for sign in (-1, 1))
        left.fill_between(load, low, high, color=colour, alpha=0.15, linewidth=0)
        draw_line(right, load, group["verification_budget_mean"], str(policy), frontier)
    _dots(left, published.throughput if published else {}, frontier)
    _dots(right, published.budget if published else {}, frontier)
    for axes, label in (
        (left, f"throughput, output {speed_of(frontier)}"),
        (right, "verification budget, tokens/request"),
    ):
        axes.set_xlabel(f"concurrent requests per {replica_of(frontier)}")
        axes.set_ylabel(label)
    style_axes(right)
    finish_axes(left, published is not None and bool(published.throughput))
    return figure


def _dots(axes: Axes, curves: Published, frontier: pd.DataFrame) -> None:
    for policy, points in curves.items():
        if policy in set(frontier["policy"]):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, linestyle="none", marker="D", markersize=3.2, markerfacecolor="white",
                      markeredgewidth=0.9, color=policy_colour(policy).light)  # fmt: skip


def plot_regret(table: pd.DataFrame, path: Path, title: str = "") -> None:
    """Regret against concurrency with its 95% intervals, one line per belief."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(cycle(PALETTE), cycle(MARKS), cycle(DASHES), table["belief"].unique(), strict=False)
    for colour, marker, dash, belief in styles:
        mine = table[table["belief"] == belief]
        loss, half = 100 * mine["regret"], 100 * mine["regret_ci95"]
        axes.errorbar(
            mine["concurrency"], loss, yerr=half, label=belief, color=colour, marker=marker, linestyle=dash,
            markersize=5, capsize=3,
        )  # fmt: skip
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(xlabel="concurrent requests", ylabel="throughput lost to the wrong table, %", title=title)
    axes.set_xscale("log", base=2)
    # The axis names the loads that were run: a power of two between them would look like one.
    axes.set_xticks(sorted({int(load) for load in table["concurrency"]}))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")
