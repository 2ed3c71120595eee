"""What a training run leaves for people: the losses of every step as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from simulator.core.errors import BadInputError
from simulator.core.files import write_csv

LOG_FILE = "losses.csv"

_COLUMNS = ("stage", "step", "loss", "cross_entropy", "l1", "confidence", "accepted_length")


def write_log(run: Path, stage: str, log: Sequence[Mapping[str, float]]) -> None:
    """Put one model's losses, one row per step, into losses.csv."""
    path = run / LOG_FILE
    rows = pd.DataFrame(log).assign(stage=stage, step=range(1, len(log) + 1)).reindex(columns=list(_COLUMNS))
    if path.is_file():
        earlier = read_log(run)
        rows = pd.concat([earlier[earlier["stage"] != stage], rows.astype(earlier.dtypes.to_dict())])
    write_csv(path, rows, "%.6g")


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
