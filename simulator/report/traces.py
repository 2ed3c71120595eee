"""Figures of live runs: recorded traces (the paper's figures 2, 5 and 6), and losses of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import save

LABELS: Mapping[str, str] = {"dspark": "DSpark", "dflash": "DFlash", "mtp": "MTP-1"}

KIND_LABELS: Mapping[str, str] = {
    "greedy": "greedy",
    "expected": "temperature 1",
    "coupled": "temperature 1, coupled",
}

_COLOURS = {name: policy_colour(policy).light for name, policy in
            (("dspark", "dspark"), ("dflash", "dflash"), ("mtp", "mtp1"))}  # fmt: skip
"""The colours of the policies that verify all that a draft proposes."""

_MARKS = {"dspark": "o", "dflash": "s", "mtp": "D"}

_FEWEST_DRAWN = 30
"""Rates of fewer observations than this are noise, and not drawn."""

SMOOTHING_STEPS = 20
"""Steps in the running mean that is drawn of a loss."""


def write_figures(folder: Path) -> None:
    """Draw conditional.png, thresholds.png and reliability.png beside the tables of recorded traces.

    folder: where ``simulator.live.tracing.report.write_tables`` has written.
    """
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in FIGURES}
    for name, table in tables.items():
        save(FIGURES[name](table), folder / f"{name}.png")


def write_losses(run: Path) -> None:
    """Draw losses.png from the losses.csv that training has written into a run directory."""
    save(plot_losses(pd.read_csv(run / "losses.csv")), run / "losses.png")


def plot_conditional(table: pd.DataFrame) -> Figure:
    """Draw the paper's figure 2: conditional acceptance over the position, a panel per domain and kind."""
    kinds = [kind for kind in ("greedy", "expected") if kind in set(table["kind"])]
    domains = sorted(set(table["domain"]))
    figure, axes = _panels(len(kinds), len(domains))
    for row, kind in enumerate(kinds):
        for column, domain in enumerate(domains):
            axis = axes[row][column]
            for draft, label in LABELS.items():
                own = table.query("draft == @draft and domain == @domain and kind == @kind")
                own = own[own["rounds"] >= _FEWEST_DRAWN]
                axis.plot(
                    own["position"],
                    own["rate"],
                    marker=_MARKS[draft],
                    markersize=3.5,
                    color=_COLOURS[draft],
                    label=label,
                )
            axis.set(title=f"{domain}, {KIND_LABELS[kind]}", ylim=(0, 1.02), xlabel="draft position")
        axes[row][0].set_ylabel("P(accepted | those before)")
    figure.suptitle("Acceptance by position in the block")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def plot_thresholds(table: pd.DataFrame) -> Figure:
    """Draw the paper's figure 5: length and acceptance rate when blocks end at the first low confidence.

    table: thresholds.csv of recorded traces, columns domain, threshold, verified, accepted, rate.
    """
    domains = list(dict.fromkeys(table["domain"]))
    figure, axes = _panels(1, len(domains))
    for axis, domain in zip(axes[0], domains, strict=True):
        own = table[table["domain"] == domain]
        axis.plot(own["threshold"], own["verified"], color="tab:grey", label="verified length")
        axis.plot(own["threshold"], own["accepted"], color="tab:blue", label="accepted length")
        axis.plot([], [], color="tab:red", label="acceptance rate (right)")
        axis.set(title=domain, xlabel="confidence threshold", ylim=(0, own["verified"].max() + 0.3))
        rates = axis.twinx()
        rates.plot(own["threshold"], own["rate"], color="tab:red")
        rates.set_ylim(0, 1.02)
        rates.spines["top"].set_visible(False)
    axes[0][0].set_ylabel("tokens per round")
    figure.suptitle("Blocks that end at the first low confidence")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def plot_reliability(table: pd.DataFrame) -> Figure:
    """Draw the paper's figure 6: observed over predicted prefix survival, all domains, raw and calibrated.

    table: reliability.csv of recorded traces, columns kind, position, survival, predicted, observed, weight,
    ece; four of its positions are drawn, evenly spaced.
    """
    gamma = int(table["position"].max())
    positions = sorted({1, (gamma + 2) // 3, (2 * gamma + 1) // 3, gamma})
    kinds = list(dict.fromkeys(table["kind"]))
    figure, axes = _panels(len(kinds), len(positions))
    for row, kind in zip(axes, kinds, strict=True):
        for axis, position in zip(row, positions, strict=True):
            axis.plot([0, 1], [0, 1], color="lightgrey", linewidth=1)
            own = table[(table["kind"] == kind) & (table["position"] == position)]
            errors = [_draw_curve(axis, own, survival) for survival in ("raw", "calibrated")]
            title = f"prefix of {position}, {KIND_LABELS[kind]}\nECE {errors[0]} raw, {errors[1]} calibrated"
            axis.set_title(title, fontsize="medium")
            axis.set(xlabel="predicted survival", xlim=(0, 1), ylim=(0, 1.02))
        row[0].set_ylabel("accepted")
    figure.suptitle("Accepted against predicted survival")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_curve(axis: Any, table: pd.DataFrame, survival: str) -> str:
    """Draw one curve; returns its calibration error as text."""
    own = table[table["survival"] == survival]
    shown = own[own["weight"] >= _FEWEST_DRAWN]
    axis.plot(
        shown["predicted"], shown["observed"], label=survival, marker="o", markersize=3,
        color={"raw": "tab:red", "calibrated": "tab:blue"}[survival],
    )  # fmt: skip
    return f"{own['ece'].iloc[0]:.1%}"


def plot_losses(rows: pd.DataFrame) -> Figure:
    """Draw the losses of every step, one panel per model.

    rows: losses.csv, columns stage, step, loss and its terms.
    """
    stages = list(dict.fromkeys(rows["stage"]))
    figure = Figure(figsize=(3.2 * len(stages), 2.8), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        own = rows[rows["stage"] == stage]
        for term, label in (("cross_entropy", "cross-entropy"), ("l1", "L1"), ("confidence", "confidence")):
            curve = own[term].rolling(SMOOTHING_STEPS, min_periods=1).mean()
            if curve.any():  # DFlash has no confidences, the target neither those nor distances
                axis.plot(own["step"], curve, label=label, linewidth=1.2)
        axis.set(title=stage, xlabel="step", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle("Losses of training")
    axes[0].set_ylabel(f"loss, mean of {SMOOTHING_STEPS} steps")
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.1 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


FIGURES: Mapping[str, Callable[[pd.DataFrame], Figure]] = {
    "conditional": plot_conditional,
    "thresholds": plot_thresholds,
    "reliability": plot_reliability,
}
"""Figures of recorded traces, by the name of the table that each draws."""
