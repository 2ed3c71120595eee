"""The PNG figures of a plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.planning.plan import CapacityPlan
from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import draw_line, finish_axes, new_figure, save
from simulator.sla.terms import Term

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_figures(result: CapacityPlan, directory: Path) -> None:
    """Draw the report's figures as PNG, for documents that cannot hold a page."""
    for name, figure in plan_figures(result).items():
        save(figure, directory / f"{name}.png")


def plan_figures(result: CapacityPlan) -> dict[str, Figure]:
    """Draw the figures; each names its plan and SLA, and marks a bound on the axis of what it bounds."""
    costed = result.sla.terms[0]  # the one that ``tables.cost_table`` moves
    return {
        "frontier": _frontier(result),
        "budget": _drawn(
            result, result.frontier, "concurrency_mean", "verification_budget_mean",
            "requests running at once", "verification budget, tokens per request and step",
        ),
        "attainment": _attainment(result),
        "cost": _drawn(
            result, result.cost, "bound", "cost_per_million_output_tokens", with_unit(costed),
            f"{result.scenario.price.currency} per million output tokens", costed,
        ),
    }  # fmt: skip


def _drawn(
    result: CapacityPlan, table: pd.DataFrame, x: str, y: str, x_label: str, y_label: str,
    bound: Term | None = None,
) -> Figure:  # fmt: skip
    figure, (axes,) = new_figure(1, _title(result))
    _draw(axes, result, table, x, y, x_label, y_label, bound)
    return figure


def _draw(
    axes: Axes, result: CapacityPlan, table: pd.DataFrame, x: str, y: str, x_label: str, y_label: str,
    bound: Term | None,
) -> None:  # fmt: skip
    """Draw a line for each policy. bound: the term on whose axis x lies; its bound is marked."""
    for policy in result.plans["policy"]:
        mine = table[(table["policy"] == policy) & table[y].notna()].sort_values(x)
        draw_line(axes, mine[x], mine[y], policy, result.plans)
    if bound is not None:
        axes.axvline(
            bound.bound, color="0.4", linestyle=":", linewidth=1.2, label=f"SLA: {_plain(bound.text)}"
        )
    axes.set(xlabel=_plain(x_label), ylabel=_plain(y_label))
    finish_axes(axes, has_published=False)


def _frontier(result: CapacityPlan) -> Figure:
    """Draw throughput over each statistic of the speed that the SLA bounds, a panel each."""
    bounds = {term.statistic: term for term in result.sla.terms if _is_tabulated(term, result)}
    statistics = list(bounds) or ["mean"]
    figure, panels = new_figure(len(statistics), _title(result))
    for axes, statistic in zip(panels, statistics, strict=True):
        _draw(
            axes, result, result.frontier, f"tps_{statistic}", "throughput_tok_per_s",
            f"tokens/s per user, {statistic}", "throughput, tokens/s per replica", bounds.get(statistic),
        )  # fmt: skip
    return figure


def _is_tabulated(term: Term, result: CapacityPlan) -> bool:
    speed = term.metric == "tps" and term.traffic_class is None
    return speed and f"tps_{term.statistic}" in result.frontier


def _attainment(result: CapacityPlan) -> Figure:
    """Draw the share of the requests within their terms over the rate, a lane for each policy."""
    from matplotlib.figure import Figure  # as in ``style.new_figure``

    trials, policies = result.trials, list(result.plans["policy"])
    figure = Figure(figsize=(6.4, 1.4 + 1.1 * len(policies)), layout="constrained")
    lanes = figure.subplots(len(policies), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    floor = lane_floor(trials)
    for axes, policy in zip(lanes, policies, strict=True):
        _lane(axes, trials[trials["policy"] == policy].sort_values("rate_per_s"), floor, result)
        axes.set_title(_plain(policy), loc="left", fontsize=9)
    lanes[0].set_ylim(floor, 1 + 0.15 * (1 - floor))
    lanes[0].yaxis.set_major_formatter("{x:.0%}")
    lanes[-1].set_xlabel("requests/s per replica")
    figure.supylabel("share of the requests within their terms", fontsize=9)
    figure.suptitle(
        f"{_title(result)}\nfilled: the SLA is kept, hollow: missed, x: saturated; 95% intervals", fontsize=10
    )
    return figure


def _lane(axes: Axes, mine: pd.DataFrame, floor: float, result: CapacityPlan) -> None:
    """Draw a policy's trials: a line with intervals, hollow marks where the SLA is missed."""
    colour = policy_colour(str(mine["policy"].iloc[0])).light
    known = mine[mine["attainment"].notna()]
    axes.errorbar(
        known["rate_per_s"], known["attainment"], yerr=known["attainment_ci95"].fillna(0), color=colour,
        linewidth=1.4, elinewidth=0.8, capsize=2,
    )  # fmt: skip
    for met, face in ((True, colour), (False, "white")):
        part = known[known["met"].astype(bool) == met]
        axes.plot(
            part["rate_per_s"], part["attainment"], linestyle="none", marker="o", markersize=4,
            color=colour, markerfacecolor=face,
        )  # fmt: skip
    lost = mine.loc[mine["saturated"].astype(bool), "rate_per_s"]
    axes.plot(lost, [floor + 0.1 * (1 - floor)] * len(lost), linestyle="none", marker="x", color=colour)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def lane_floor(trials: pd.DataFrame) -> float:
    """Return where the axis of the shares begins: below the lowest interval, at a multiple of 10%."""
    low = (trials["attainment"] - trials["attainment_ci95"].fillna(0)).min()
    return 0.0 if math.isnan(low) else max(0.0, min(0.9, math.floor(low * 10) / 10))


def _title(result: CapacityPlan) -> str:
    return _plain(f"{result.scenario.name}\nSLA: {result.sla}")


def with_unit(term: Term) -> str:
    """Name the axis on which the bound of a term lies."""
    unit = "s" if term.is_time else term.unit_for(term.bound)[1].strip()
    return f"bound of {term.key}, {unit}" if unit else f"bound of {term.key}"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # or matplotlib takes it for mathematics
