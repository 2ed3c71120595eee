"""The figure of regret."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pandas as pd

from simulator.core.files import atomic_path
from simulator.report.style import PALETTE


def plot_regret(table: pd.DataFrame, path: Path) -> None:
    """Regret against concurrency with its intervals, one line per belief."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(cycle(PALETTE), cycle("osD^vpX*"), table["belief"].unique(), strict=False)
    for colour, marker, belief in styles:
        mine = table[table["belief"] == belief]
        loss, half = 100 * mine["regret"], 100 * mine["regret_ci95"]
        drawn = {"color": colour, "marker": marker, "markersize": 5, "capsize": 3, "label": belief}
        axes.errorbar(mine["concurrency"], loss, yerr=half, **drawn)
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(xlabel="concurrent requests", ylabel="throughput lost to the wrong table, %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")
