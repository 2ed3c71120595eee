"""What a training run leaves for people: the losses of every step as CSV, and their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from simulator.errors import BadInputError
from simulator.files import atomic_path, write_csv

LOG_FILE, PLOT_FILE = "losses.csv", "losses.png"
_COLUMNS = ("stage", "step", "loss", "cross_entropy", "l1", "confidence", "accepted_length")
_SMOOTHING = 20  # steps in the running mean that is drawn


def write_log(run: Path, stage: str, log: Sequence[Mapping[str, float]]) -> None:
    """Put one model's losses, one row per step, into losses.csv and draw losses.png anew."""
    path = run / LOG_FILE
    rows = pd.DataFrame(log).assign(stage=stage, step=range(1, len(log) + 1)).reindex(columns=list(_COLUMNS))
    if path.is_file():
        earlier = read_log(run)
        rows = pd.concat([earlier[earlier["stage"] != stage], rows.astype(earlier.dtypes.to_dict())])
    write_csv(path, rows, "%.6g")
    _plot(rows, run / PLOT_FILE)


def read_log(run: Path) -> pd.DataFrame:
    """losses.csv of a run directory; columns stage, step, loss, its terms, and accepted_length.

    accepted_length is what the training batch itself promises under sampling, empty for the target.
    """
    path = run / LOG_FILE
    try:
        return pd.read_csv(path).reindex(columns=list(_COLUMNS))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"cannot be read: {error}", source=str(path), remedy="delete it; training writes it again"
        ) from error


def _plot(rows: pd.DataFrame, path: Path) -> None:
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(rows["stage"]))
    figure = Figure(figsize=(3.2 * len(stages), 2.8), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(axes, stages, strict=True):
        own = rows[rows["stage"] == stage]
        for term, label in (("cross_entropy", "cross-entropy"), ("l1", "L1"), ("confidence", "confidence")):
            curve = own[term].rolling(_SMOOTHING, min_periods=1).mean()
            if curve.any():  # DFlash has no confidences, the target neither those nor distances
                axis.plot(own["step"], curve, label=label, linewidth=1.2)
        axis.set(title=stage, xlabel="step", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel(f"loss, mean of {_SMOOTHING} steps")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
