"""The PNG figures of a plan."""

from __future__ import annotations

from pathlib import Path

from simulator.core.files import atomic_path
from simulator.planning.plan import CapacityPlan


def write_figures(result: CapacityPlan, directory: Path) -> None:
    """Draw the report's figures as PNG, for documents that cannot hold a page."""
    from matplotlib.figure import Figure

    drawings = {
        "frontier": (result.frontier, "tps_mean", "throughput_tok_per_s", "tokens/s per user", "tokens/s"),
        "budget": (
            result.frontier, "concurrency_mean", "verification_budget_mean", "requests running at once",
            "tokens per request and step",
        ),
        "attainment": (
            result.trials, "rate_per_s", "attainment", "requests/s per replica", "share within their terms",
        ),
        "cost": (
            result.cost, "bound", "cost_per_million_output_tokens", str(result.cost["term"].iloc[0]),
            f"{result.scenario.price.currency} per million output tokens",
        ),
    }  # fmt: skip
    for name, (table, x, y, x_label, y_label) in drawings.items():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for policy, marker in zip(result.plans["policy"], "osD^*pPX" * 8, strict=False):
            mine = table[(table["policy"] == policy) & table[y].notna()].sort_values(x)
            axes.plot(mine[x], mine[y], marker=marker, markersize=4, label=_plain(policy))
        axes.set(xlabel=_plain(x_label), ylabel=_plain(y_label))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_path(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # or matplotlib takes it for mathematics
