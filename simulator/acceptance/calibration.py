"""Calibration of confidences: calibration error, ranking, and sequential temperature scaling.

All statistics are of prefix survival, the product of the confidences up to a draft position, because a
scheduler acts on that product (paper, section 3.2.1 and figure 6). Positions are columns: predicted and
observed values are [N, gamma], with one statistic per column.

``observed`` is 1 where the prefix was accepted and 0 where it was not; a probability gives the expected
statistic. ``weight`` counts an observation that many times; 0 leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

_EDGE = 1e-8
"""For the calibration error, predictions are kept this far inside 0..1, as the reference metric does."""


@dataclass(frozen=True, slots=True)
class Convention:
    """Choices that the published descriptions leave open: the temperatures tried, the bins of the error."""

    name: str
    grid: tuple[float, ...]
    bins: int

    def __post_init__(self) -> None:
        if self.bins < 1 or not self.grid or min(self.grid) <= 0:
            raise BadInputError("needs bins and positive temperatures", source="calibration", field=self.name)


REFERENCE = Convention("reference", tuple(round(0.05 * i, 2) for i in range(2, 101)), bins=20)
"""20 bins, as in the paper. The paper gives no grid: 0.1 to 5 in steps of 0.05 is a choice."""

SGLANG = Convention("sglang", tuple(np.logspace(-1, 1, 41).tolist()), bins=15)
"""The convention of SGLang's calibration files: 41 temperatures, 0.1 to 10 on a log scale, 15 bins."""


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """Sequential temperatures, one per position, and the remaining calibration error.

    ``c_k = sigmoid(raw_k / temperatures[k])``; errors are of the cumulative product up to each position.
    """

    convention: Convention
    temperatures: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Predicted and observed acceptance in equal bins of the prediction, without empty bins."""

    bin: NDArray[np.int64]
    predicted: Floats
    observed: Floats
    weight: Floats
    ece: float = field(init=False)

    def __post_init__(self) -> None:
        gap = float(np.abs(self.predicted - self.observed) @ self.weight)
        object.__setattr__(self, "ece", gap / float(self.weight.sum()))


def prefix_survival(logits: ArrayLike, temperatures: ArrayLike | None = None) -> Floats:
    """Predicted survival, float64 [N, gamma], of raw confidence logits [N, gamma].

    The sigmoid is float32 and the product float64, as in the reference.
    """
    raw = np.asarray(logits, dtype=np.float32)
    if temperatures is not None:
        raw = (raw / np.asarray(temperatures, dtype=np.float32)).astype(np.float32, copy=False)
    return np.cumprod(expit(raw), axis=1, dtype=np.float64)


def verdicts(
    accepted: ArrayLike, gamma: int, effective_length: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """Return ``(observed, weight)``, both [N, gamma], of accepted lengths [N].

    Drafts beyond the effective length of a block have no verdict and weigh nothing.
    """
    position = np.arange(gamma)
    observed = (np.asarray(accepted)[:, None] > position).astype(np.float64)
    if effective_length is None:
        return observed, np.ones_like(observed)
    return observed, (np.asarray(effective_length)[:, None] > position).astype(np.float64)


def reliability(
    predicted: ArrayLike, observed: ArrayLike, *, bins: int = 20, weight: ArrayLike | None = None
) -> Reliability:
    """Reliability data of one position: predictions and outcomes [N] in ``bins`` equal bins of 0..1."""
    value, outcome, mass = _flat(predicted, observed, weight)
    value = np.clip(value, _EDGE, 1 - _EDGE)
    index = _bin_of(value, bins)
    count: Floats = np.bincount(index, mass, bins).astype(np.float64)
    filled = np.flatnonzero(count > 0)
    return Reliability(
        bin=filled,
        predicted=np.bincount(index, mass * value, bins)[filled] / count[filled],
        observed=np.bincount(index, mass * outcome, bins)[filled] / count[filled],
        weight=count[filled],
    )


def expected_calibration_error(
    predicted: ArrayLike, observed: ArrayLike, *, bins: int = 20, weight: ArrayLike | None = None
) -> float:
    """Mean distance between prediction and outcome over equal bins, weighted by their counts."""
    return _ece(*_flat(predicted, observed, weight), bins)


def brier_score(predicted: ArrayLike, observed: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Mean squared distance between prediction and outcome (0 or 1)."""
    value, outcome, mass = _flat(predicted, observed, weight)
    # E[(p - y)^2] of a Bernoulli y with mean `outcome`, which is the square itself where y is 0 or 1.
    squared = value * value - 2 * value * outcome + outcome
    return float(mass @ squared / mass.sum())


def roc_auc(
    predicted: ArrayLike,
    observed: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    histogram_bins: int | None = None,
) -> float:
    """P(an accepted prefix was predicted above a rejected one), ties counting one half.

    ``histogram_bins`` (the reference uses 1000) ties all predictions that share a bin; None is exact.
    NaN when all outcomes are alike.
    """
    value, outcome, mass = _flat(predicted, observed, weight)
    if histogram_bins is None:
        levels, index = np.unique(value, return_inverse=True)
        size = len(levels)
    else:
        index, size = _bin_of(value, histogram_bins), histogram_bins
    accepted = np.bincount(index, mass * outcome, size)
    rejected = np.bincount(index, mass * (1 - outcome), size)
    pairs = float(accepted.sum() * rejected.sum())
    if pairs <= 0:
        return float("nan")
    below = np.cumsum(rejected) - rejected
    return float(accepted @ (below + rejected / 2)) / pairs


def calibration_table(
    logits: ArrayLike,
    observed: ArrayLike,
    *,
    temperatures: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    bins: int = 20,
) -> pd.DataFrame:
    """One row per draft position: ``position, count, ece, auc, brier, predicted_mean, observed_mean``."""
    import pandas as pd  # slow to import

    predicted = prefix_survival(logits, temperatures)
    outcome, mass = _like(predicted, observed), _like(predicted, 1.0 if weight is None else weight)
    rows = []
    for k in range(predicted.shape[1]):
        column, result, counted = predicted[:, k], outcome[:, k], mass[:, k]
        rows.append(
            {
                "position": k + 1,
                "count": counted.sum(),
                "ece": expected_calibration_error(column, result, bins=bins, weight=counted),
                "auc": roc_auc(column, result, weight=counted),
                "brier": brier_score(column, result, weight=counted),
                "predicted_mean": np.average(column, weights=counted),
                "observed_mean": np.average(result, weights=counted),
            }
        )
    return pd.DataFrame(rows)


def fit_temperatures(
    logits: ArrayLike,
    observed: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    convention: Convention = REFERENCE,
) -> TemperatureFit:
    """Fit sequential temperatures (paper, section 3.2.1).

    Positions are fitted from left to right, with earlier positions fixed. The temperature of position k
    minimises the calibration error of the cumulative product up to k over the grid; on a tie the smallest
    wins. A position without observations keeps temperature 1 and has no error (NaN).
    """
    raw = np.asarray(logits, dtype=np.float32)
    outcome, mass = _like(raw, observed), _like(raw, 1.0 if weight is None else weight)
    untouched = prefix_survival(raw)
    prefix = np.ones(len(raw))
    chosen, before, after = [], [], []
    for k in range(raw.shape[1]):
        seen = np.flatnonzero(mass[:, k] > 0)
        result, counted = outcome[seen, k], mass[seen, k]
        before.append(_ece(untouched[seen, k], result, counted, convention.bins))
        errors = [
            _ece(prefix[seen] * expit(raw[seen, k] / np.float32(t)), result, counted, convention.bins)
            for t in convention.grid
        ]
        best = int(np.argmin(errors)) if seen.size else None
        chosen.append(1.0 if best is None else convention.grid[best])
        after.append(float("nan") if best is None else errors[best])
        prefix *= expit(raw[:, k] / np.float32(chosen[-1]))
    return TemperatureFit(convention, tuple(chosen), tuple(before), tuple(after))


def _ece(predicted: Floats, observed: Floats, weight: Floats, bins: int) -> float:
    # Within a bin, weighted means differ by the sum of weighted differences over the bin's weight,
    # and that weight cancels: one pass over the data instead of three.
    total = float(weight.sum())
    if total <= 0:
        return float("nan")
    value = np.clip(predicted, _EDGE, 1 - _EDGE)
    gaps = np.bincount(_bin_of(value, bins), weight * (value - observed), bins)
    return float(np.abs(gaps).sum()) / total


def _bin_of(value: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((value * bins).astype(np.int64), bins - 1)


def _flat(
    predicted: ArrayLike, observed: ArrayLike, weight: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    value = np.asarray(predicted, dtype=np.float64)
    if value.ndim != 1 or not np.all((value >= 0) & (value <= 1)):
        raise BadInputError("must be one axis of values within 0..1", source="calibration", field="predicted")
    outcome, mass = _like(value, observed), _like(value, 1.0 if weight is None else weight)
    if not np.all((outcome >= 0) & (outcome <= 1)):
        raise BadInputError("must be within 0..1", source="calibration", field="observed")
    if not (np.all(mass >= 0) and mass.sum() > 0):
        raise BadInputError("must be non-negative and not all 0", source="calibration", field="weight")
    return value, outcome, mass


def _like(shaped: NDArray[np.floating], values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim and array.shape != shaped.shape:
        shapes = f"{array.shape} against {shaped.shape}"
        raise BadInputError(
            "shapes differ", source="calibration", value=shapes, remedy="pass one value per draft"
        )
    return np.broadcast_to(array, shaped.shape)
