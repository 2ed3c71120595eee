"""Colours, axes and files that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path
from simulator.report.drawing.colours import policy_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours: distinguishable in print and with colour-blind eyes. For what is no policy."""

DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""Lines of policies in the order of a table, as in the report."""

MARKS = ("o", "s", "v", "^", "*", "p", "h", "X")
"""Marks of policies. None is a diamond: diamonds are published points."""

SYMBOLS = (
    "circle", "square", "triangle-down", "triangle-up", "star", "pentagon", "hexagon", "x",
)  # fmt: skip
"""The same marks as Plotly names them."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically; the format follows the suffix. Equal figures are equal bytes."""
    check_format(path)
    from matplotlib import rc_context

    varying = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "dspark-simulator"}):
        figure.savefig(temporary, dpi=150, metadata={varying[path.suffix.lower()]: None})


def check_format(path: Path) -> None:
    """Refuse a file name whose ending is no picture format, before any work is done for it."""
    if path.suffix.lower() not in FORMATS:
        raise BadInputError(
            "is not a picture's name", source=str(path), remedy=f"end it in one of {', '.join(FORMATS)}"
        )


def new_figure(panels: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with so many panels side by side."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(5.6 * panels + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def draw_line(
    axes: Axes, x: pd.Series[float], y: pd.Series[float], policy: str, frontier: pd.DataFrame
) -> str:
    """Draw one policy's line; returns its colour."""
    colour, place = policy_colour(policy).light, list(frontier["policy"].unique()).index(policy)
    # Lines that lie on each other are told apart: the dashes of later ones let earlier ones through.
    axes.plot(
        x, y, linestyle=DASHES[place % len(DASHES)], marker=MARKS[place % len(MARKS)], color=colour,
        label=policy, markersize=3.5, linewidth=1.6,
    )  # fmt: skip
    return colour


def style_axes(axes: Axes) -> None:
    """Give axes the look that all figures share."""
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    if axes.get_ylim()[1] > 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")


def finish_axes(axes: Axes, has_published: bool) -> None:
    """Add the legend, and say which marks are published."""
    style_axes(axes)
    if has_published:
        axes.plot([], [], linestyle="none", marker="D", markersize=3.2, markerfacecolor="white",
                  color="#444444", label="published")  # fmt: skip
    axes.legend(frameon=False, fontsize=8.5)
