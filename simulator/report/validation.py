"""Tables and figures of a validation, from its tables alone: no torch, no device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.core.files import write_csv
from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_validation(
    errors: pd.DataFrame, lengths: pd.DataFrame, parity: pd.DataFrame, title: str, out: Path
) -> None:
    """Write the tables of ``live.checks.validation.results.Validation`` as CSV, and two figures of them."""
    for name, frame in (("errors", errors), ("lengths", lengths), ("parity", parity)):
        write_csv(out / f"{name}.csv", frame)
    save(plot_frontiers(errors, title), out / "frontiers.png")
    save(plot_lengths(lengths, title), out / "lengths.png")


def plot_frontiers(errors: pd.DataFrame, title: str = "") -> Figure:
    """Throughput against median generation speed: dots measured, lines predicted, a colour per policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    wide = errors.pivot(index=["policy", "concurrency"], columns="metric", values=["measured", "predicted"])
    for policy in errors["policy"].unique():
        colour = policy_colour(policy).light
        group = wide.loc[policy].sort_index()
        for kind, style in (("measured", "o"), ("predicted", "-")):
            speed, throughput = group[kind, "tps_p50"], group[kind, "throughput_tok_per_s"]
            axes.plot(speed, throughput, style, color=colour, markersize=4.5)
        axes.plot([], [], color=colour, linewidth=4, label=policy)
    axes.plot([], [], "o", color="0.3", label="measured, live")
    axes.plot([], [], "-", color="0.3", label="predicted")
    axes.set(
        xlabel="generation speed, median tokens/s/user", ylabel="throughput, output tokens/s", title=title
    )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def plot_lengths(lengths: pd.DataFrame, title: str = "") -> Figure:
    """How often each verification length was chosen: bars measured, dots predicted; a panel per load."""
    from matplotlib.figure import Figure

    loads = sorted(lengths["concurrency"].unique())
    figure = Figure(figsize=(3.2 * len(loads) + 1.8, 3.4), layout="constrained")
    policies = list(lengths["policy"].unique())
    width = 0.8 / len(policies)
    for axes, load in zip(figure.subplots(1, len(loads), sharey=True, squeeze=False)[0], loads, strict=True):
        for index, policy in enumerate(policies):
            mine = lengths[(lengths["policy"] == policy) & (lengths["concurrency"] == load)]
            at = mine["length"] + (index - (len(policies) - 1) / 2) * width
            colour = policy_colour(policy).light
            axes.bar(at, mine["measured"], width, color=colour, alpha=0.6, label=str(policy))
            axes.plot(at, mine["predicted"], "k.", markersize=4)
        axes.set(xlabel="verification length", title=f"{load} concurrent")
        axes.grid(alpha=0.25, axis="y")
    figure.axes[0].set_ylabel("share of request-steps (dots: predicted)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(title)
    return figure
