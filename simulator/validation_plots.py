"""Figures of a validation, from its tables alone: no torch, no device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_frontiers(errors: pd.DataFrame, title: str = "") -> Figure:
    """Throughput against median generation speed: dots measured, lines predicted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    wide = errors.pivot(index=["policy", "concurrency"], columns="metric", values=["measured", "predicted"])
    for colour, (policy, group) in zip(_COLOURS, wide.groupby(level="policy", sort=False), strict=False):
        group = group.sort_index(level="concurrency")
        for kind, style in (("measured", "o"), ("predicted", "-")):
            speed, throughput = group[kind, "tps_p50"], group[kind, "throughput_tok_per_s"]
            axes.plot(speed, throughput, style, color=colour, label=f"{policy}, {kind}")
    axes.set(
        xlabel="generation speed, median tokens/s/user", ylabel="throughput, output tokens/s", title=title
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    return figure


def plot_lengths(lengths: pd.DataFrame, title: str = "") -> Figure:
    """How often each verification length was chosen: bars measured, dots predicted; a panel per load."""
    from matplotlib.figure import Figure

    loads = sorted(lengths["concurrency"].unique())
    figure = Figure(figsize=(3.2 * len(loads) + 0.6, 3.4), layout="constrained")
    policies = list(lengths["policy"].unique())
    width = 0.8 / len(policies)
    for axes, load in zip(figure.subplots(1, len(loads), sharey=True, squeeze=False)[0], loads, strict=True):
        for index, policy in enumerate(policies):
            mine = lengths[(lengths["policy"] == policy) & (lengths["concurrency"] == load)]
            at = mine["length"] + (index - (len(policies) - 1) / 2) * width
            axes.bar(at, mine["measured"], width, color=_COLOURS[index % 7], alpha=0.6, label=str(policy))
            axes.plot(at, mine["predicted"], "k.", markersize=4)
        axes.set(xlabel="verification length", title=f"{load} concurrent")
        axes.grid(alpha=0.25, axis="y")
    figure.axes[0].set_ylabel("share of request-steps (dots: predicted)")
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(title)
    return figure
