"""The figure of a threshold sweep (the paper's figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.acceptance.trace import AcceptanceModel
from simulator.paper.figures import SweepEnds, published

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def plot_threshold_sweep(sweep: pd.DataFrame, model: AcceptanceModel) -> Figure:
    """Figure 5's two curves over the threshold, with its published end points where the paper has them."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    lengths = figure.subplots()
    rates = lengths.twinx()
    for axes, column, colour, label in (
        (lengths, "verified_length_mean", "tab:grey", "verified per step"),
        (lengths, "accepted_length_mean", "tab:blue", "accepted per step"),
        (rates, "acceptance_rate", "tab:orange", "acceptance rate (right axis)"),
    ):
        axes.plot(sweep["threshold"], sweep[column], color=colour, marker="o", markersize=3, label=label)
    known = published_ends(model)
    if known is not None:
        dataset, ends = known
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": "D",
            "markersize": 7,
            "markerfacecolor": "none",
        }
        lengths.plot(
            ends.threshold, ends.accepted_length, color="tab:blue", label=f"published, {dataset}", **style
        )
        rates.plot(
            ends.threshold, ends.acceptance_rate, color="tab:orange", label="_", **style
        )  # one entry for both
    lengths.set(
        xlabel="threshold on raw confidence",
        ylabel="tokens per step, bonus included",
        title=f"A threshold on confidence: {model.name}",
    )
    lengths.set_ylim(bottom=0)
    rates.set(ylabel="accepted / verified", ylim=(0, 1.02))
    handles = [*lengths.get_legend_handles_labels()[0], *rates.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def published_ends(model: AcceptanceModel) -> tuple[str, SweepEnds] | None:
    """Figure 5's end points and their dataset, for the fitted model of that dataset or of its domain.

    None for any other model, and for a block size other than the paper's.
    """
    figures = published()
    sweeps = figures.threshold_sweep_ends
    if model.gamma != figures.accepted_length.gamma:
        return None
    for domain, dataset in sweeps.datasets.items():
        prefix = f"{sweeps.target}/{sweeps.drafter}"
        if model.name in (f"{prefix}/{dataset}", f"{prefix}/{domain}"):
            return dataset, sweeps.values[domain]
    return None
