"""The PNG figures of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.planning.plan import CapacityPlan
from simulator.report.style import draw_line, finish_axes, new_figure, save
from simulator.sla.terms import Term

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figures(result: CapacityPlan, directory: Path) -> None:
    """Draw the report's figures as PNG, for documents that cannot hold a page."""
    for name, figure in plan_figures(result).items():
        save(figure, directory / f"{name}.png")


def plan_figures(result: CapacityPlan) -> dict[str, Figure]:
    """Draw the figures; each names its plan and SLA, and marks the bound where it lies on the axis."""
    speed = _speed_term(result)
    statistic = speed.statistic if speed else "mean"
    costed = result.sla.terms[0]  # the one that ``tables.cost_table`` moves
    return {
        "frontier": _drawn(
            result, result.frontier, f"tps_{statistic}", "throughput_tok_per_s",
            f"tokens/s per user, {statistic}", "throughput, tokens/s per replica", speed,
        ),
        "budget": _drawn(
            result, result.frontier, "concurrency_mean", "verification_budget_mean",
            "requests running at once", "verification budget, tokens per request and step",
        ),
        "attainment": _drawn(
            result, result.trials, "rate_per_s", "attainment", "requests/s per replica",
            "share of the requests within their terms",
        ),
        "cost": _drawn(
            result, result.cost, "bound", "cost_per_million_output_tokens", _with_unit(costed),
            f"{result.scenario.price.currency} per million output tokens", costed,
        ),
    }  # fmt: skip


def _drawn(
    result: CapacityPlan, table: pd.DataFrame, x: str, y: str, x_label: str, y_label: str,
    bound: Term | None = None,
) -> Figure:  # fmt: skip
    """Draw a line for each policy. bound: the term on whose axis x lies; its bound is marked."""
    figure, (axes,) = new_figure(1, _plain(f"{result.scenario.name}\nSLA: {result.sla}"))
    for policy in result.plans["policy"]:
        mine = table[(table["policy"] == policy) & table[y].notna()].sort_values(x)
        draw_line(axes, mine[x], mine[y], policy, result.plans)
    if bound is not None:
        axes.axvline(
            bound.bound, color="0.4", linestyle=":", linewidth=1.2, label=f"SLA: {_plain(bound.text)}"
        )
    axes.set(xlabel=_plain(x_label), ylabel=_plain(y_label))
    finish_axes(axes, has_published=False)
    return figure


def _speed_term(result: CapacityPlan) -> Term | None:
    """Return the first term that bounds a statistic of the speed that the frontier tabulates."""
    for term in result.sla.terms:
        if term.metric == "tps" and term.traffic_class is None and f"tps_{term.statistic}" in result.frontier:
            return term
    return None


def _with_unit(term: Term) -> str:
    unit = "s" if term.is_time else term.unit_for(term.bound)[1].strip()
    return f"bound of {term.key}, {unit}" if unit else f"bound of {term.key}"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # or matplotlib takes it for mathematics
