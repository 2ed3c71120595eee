"""Figures of a campaign's report: measured step times beside the fitted curve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulator.core.arrays import Floats
from simulator.cost.models import CostModel
from simulator.report.drawing.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = tuple(zip(PALETTE, "os^Dvp*", strict=True))
"""A colour and a marker each: readable in grey, too."""


def plot_steps(steps: pd.DataFrame, cost: CostModel, title: str, *, logarithmic: bool = True) -> Figure:
    """Step time and steps per second over batch tokens, a column of panels per context of a request.

    steps: measured with ``requests``, ``batch_tokens``, ``context_tokens`` (of the whole batch) and
    ``seconds``, drafting included; dots, one colour per draft tokens a request. cost: what a profile makes of
    them, drafting included; lines.
    """
    from matplotlib.figure import Figure

    contexts = sorted((steps["context_tokens"] // steps["requests"]).unique())
    figure = Figure(figsize=(max(6.4, 3.4 * len(contexts) + 0.8), 6.2), layout="constrained")
    panels = figure.subplots(2, len(contexts), squeeze=False, sharex=True, sharey="row")
    for (time, rate), context in zip(panels.T, contexts, strict=True):
        group = steps[steps["context_tokens"] == context * steps["requests"]]
        for label, style, cells in _by_drafts(group):
            sizes, fitted_s = _fitted(cost, cells, int(context))
            for axes, measured, fitted in (
                (time, 1e3 * cells["seconds"], 1e3 * fitted_s),
                (rate, 1 / cells["seconds"], 1 / fitted_s),
            ):
                colour, marker = style
                axes.plot(cells["batch_tokens"], measured, marker, color=colour, markersize=4, label=label)
                axes.plot(sizes, fitted, color=colour, linewidth=1.1, alpha=0.8)
        time.set_title(f"context {context:,} tokens a request", fontsize=10)
        rate.set_xlabel("batch tokens")
    panels[0][0].set_ylabel("step time, drafting included, ms")
    panels[1][0].set_ylabel("steps per second")
    for row in panels:
        top = 1.06 * max(axes.dataLim.y1 for axes in row)
        for axes in row:
            axes.set_ylim(0, top)
            _style(axes, logarithmic)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9,
        title="draft tokens a request", title_fontsize=9,
    )  # fmt: skip
    figure.suptitle(f"{title}: measured (dots) and fitted (lines)", fontsize=11)
    return figure


def _by_drafts(group: pd.DataFrame) -> Iterator[tuple[str, tuple[str, str], pd.DataFrame]]:
    drafts = group["batch_tokens"] // group["requests"] - 1
    for style, (count, cells) in zip(_STYLES, group.groupby(drafts), strict=False):
        yield str(count), style, cells.sort_values("batch_tokens")


def _fitted(cost: CostModel, cells: pd.DataFrame, context: int) -> tuple[Floats, Floats]:
    """Batch tokens and fitted seconds over the cells' range of requests, at their drafts a request."""
    least, most = int(cells["requests"].min()), int(cells["requests"].max())
    each = int(cells["batch_tokens"].iloc[0] // cells["requests"].iloc[0])
    requests = np.unique(np.geomspace(least, most, 200).round().astype(int))
    times = [cost.step_time_s(int(r), int(r) * each, float(r * context)) for r in requests]
    return requests.astype(float) * each, np.array(times)


def _style(axes: Axes, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
