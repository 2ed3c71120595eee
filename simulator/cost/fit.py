"""Fit an additive cost to measured cells, and repair a non-monotone curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.core.statistics import isotonic, non_negative
from simulator.cost.believed import table_warnings
from simulator.cost.curve import Beyond, Lookup, axis, values
from simulator.cost.models import AdditiveCost, ThroughputCurve

if TYPE_CHECKING:
    import pandas as pd

Term = Literal["context", "row_context", "prefill"]

MIN_BIAS_SHARE = 1e-6
"""Least fixed part of a step, as a share of the fastest cell: a fixed part must be positive. A choice."""

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as zero: step times are measured less exactly."""

_COLUMN = {"context": "context_tokens", "row_context": "context_tokens", "prefill": "prefill_tokens"}

_FEWEST_CELLS = 3


class RelativeError(NamedTuple):
    """|predicted - measured| / measured over cells."""

    median: float
    p90: float
    max: float


@dataclass(frozen=True, slots=True, eq=False)
class AdditiveFit:
    """A fitted additive cost and its errors.

    residuals: the cells with ``predicted_s``, ``relative_error`` (signed, of the fit to all cells) and
        ``held_out_error`` (signed, of a fit without the cell).
    held_out: k-fold over distinct cells, so that repeats of a cell are never on both sides. Quote this error;
        ``in_sample`` falls with every further probe.
    """

    cost: AdditiveCost
    residuals: pd.DataFrame
    in_sample: RelativeError
    held_out: RelativeError
    folds: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Faults of the fitted cost that mislead a scheduler, however small the errors."""
        return table_warnings(self.cost)


def fit_additive(
    cells: pd.DataFrame,
    *,
    request_probes: ArrayLike | None = None,
    token_probes: ArrayLike | None = None,
    terms: Sequence[Term] = (),
    folds: int = 5,
    seed: int = 0,
    beyond: Beyond = "last-slope",
) -> AdditiveFit:
    """Fit T = bias + alpha(R) + theta(B) (+ terms) to measured cells.

    cells: columns ``requests``, ``batch_tokens``, ``step_time_s``, and ``context_tokens`` or
    ``prefill_tokens`` where a term needs them; one row per measurement, repeats welcome. Rows of prompts,
    where there are any, do not count for the row_context term.
    Probes default to the measured sizes, at most 8 for requests and 16 for tokens. Every increment
    between probes is a non-negative unknown, so alpha and theta never fall. Errors count relative to the step
    time, as errors of throughput do. By convention alpha and theta start at 0, and the bias holds their
    common part.

    Raises ``BadInputError`` where the cells cannot tell the parts apart, with what to measure.
    """
    table = _checked(cells, terms)
    design = _Design(
        _probes(request_probes, table["requests"], "request_probes", most=8),
        _probes(token_probes, table["batch_tokens"], "token_probes", most=16),
        tuple(terms),
    )
    measured_s = table["step_time_s"].to_numpy()
    matrix = design.matrix(table)
    _refuse_ambiguous(design, table, matrix)
    solution = _solve(matrix, measured_s)
    fold = _folds(table, folds, seed)
    held_out_s = np.empty_like(measured_s)
    for index in range(folds):
        test = fold == index
        held_out_s[test] = matrix[test] @ _solve(matrix[~test], measured_s[~test])
    predicted_s = matrix @ solution
    residuals = table.assign(
        predicted_s=predicted_s,
        relative_error=predicted_s / measured_s - 1,
        held_out_error=held_out_s / measured_s - 1,
    )
    return AdditiveFit(
        design.cost(solution, beyond),
        residuals,
        _summary(residuals["relative_error"]),
        _summary(residuals["held_out_error"]),
        folds,
    )


def spread_token_probes(cells: pd.DataFrame) -> list[float]:
    """Choose measured batch tokens as probes: two cells for each probe, both ends included."""
    sizes = np.unique(cells["batch_tokens"])
    count = len(cells[["requests", "batch_tokens"]].drop_duplicates())
    chosen = np.linspace(0, len(sizes) - 1, max(2, min(len(sizes), count // 2, 16))).round().astype(int)
    return [float(size) for size in sizes[np.unique(chosen)]]


class Repaired(NamedTuple):
    """A throughput curve made monotone, and the largest relative change to any of its points."""

    curve: ThroughputCurve
    largest_change: float


def monotone(
    batch_tokens: ArrayLike,
    steps_per_s: ArrayLike,
    *,
    lookup: Lookup = "linear",
    beyond: Beyond | None = None,
) -> Repaired:
    """Repair measurement noise that makes a larger batch look faster.

    Isotonic regression on the logarithm: the non-increasing curve with the least squared relative change.
    Points in order keep their exact value. A ``largest_change`` of a few percent is noise; measure again
    beyond that.
    """
    tokens = axis(batch_tokens, "batch_tokens")
    rate = values(steps_per_s, "steps_per_s", like=tokens)
    if np.any(rate <= 0):
        raise BadInputError("must be positive", field="steps_per_s", value=float(rate.min()))
    logarithm = np.log(rate)
    fitted = isotonic(logarithm, increasing=False)
    repaired = np.where(fitted == logarithm, rate, np.exp(fitted))
    repaired = np.minimum.accumulate(repaired)  # exp and log round, and rounding must not change the order
    change = np.abs(repaired / rate - 1).max()
    return Repaired(ThroughputCurve(tokens, repaired, lookup=lookup, beyond=beyond), float(change))


@dataclass(frozen=True, slots=True)
class _Design:
    """The unknowns and their factors: bias, increments of alpha and theta, and one per extra term."""

    requests: Floats
    tokens: Floats
    terms: tuple[Term, ...]

    def matrix(self, table: pd.DataFrame) -> Floats:
        """[cells, unknowns]."""
        requests, tokens = table["requests"].to_numpy(), table["batch_tokens"].to_numpy()
        columns = [np.ones((len(table), 1)), _ramps(requests, self.requests), _ramps(tokens, self.tokens)]
        for term in self.terms:
            amount = table[_COLUMN[term]].to_numpy()
            if term == "row_context":
                prompts = table["prefill_tokens"].to_numpy() if "prefill_tokens" in table else 0.0
                amount = amount / np.maximum(requests, 1) * (tokens - prompts)
            columns.append(amount[:, None])
        return np.concatenate(columns, axis=1)

    def groups(self) -> dict[str, slice]:
        """Return the columns of each part."""
        alpha = 1 + len(self.requests) - 1
        theta = alpha + len(self.tokens) - 1
        parts = {"bias": slice(0, 1), "alpha": slice(1, alpha), "theta": slice(alpha, theta)}
        return parts | {term: slice(theta + i, theta + i + 1) for i, term in enumerate(self.terms)}

    def cost(self, solution: Floats, beyond: Beyond) -> AdditiveCost:
        """Return the unknowns as a cost model."""
        part = {name: solution[columns] for name, columns in self.groups().items()}
        coefficient = {term: float(part[term][0]) for term in self.terms}
        return AdditiveCost(
            float(part["bias"][0]),
            self.requests,
            np.concatenate([[0.0], np.cumsum(part["alpha"])]),
            self.tokens,
            np.concatenate([[0.0], np.cumsum(part["theta"])]),
            context_s_per_token=coefficient.get("context", 0.0),
            row_context_s_per_token=coefficient.get("row_context", 0.0),
            prefill_s_per_token=coefficient.get("prefill", 0.0),
            beyond=beyond,
        )


def _ramps(at: Floats, probes: Floats) -> Floats:
    """Return the share of each stretch between probes below a point: [points, probes - 1], 0 to 1."""
    return np.clip((at[:, None] - probes[:-1]) / np.diff(probes), 0.0, 1.0)


def _solve(matrix: Floats, measured_s: Floats) -> Floats:
    """Return the non-negative unknowns with the least squared relative error; the bias has a minimum."""
    least = MIN_BIAS_SHARE * float(measured_s.min())
    relative = matrix / measured_s[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0  # a fold may hold no cell of a stretch
    solution = non_negative(relative / scale, 1.0 - least / measured_s) / scale
    solution[0] += least
    return np.asarray(solution)


def _refuse_ambiguous(design: _Design, table: pd.DataFrame, matrix: Floats) -> None:
    """Refuse cells that cannot tell the unknowns apart, with the parts that vary together."""
    relative = matrix / table["step_time_s"].to_numpy()[:, None]
    missing = _missing_rank(relative)
    if not missing:
        return
    groups = design.groups()
    for name, probes, axis_name in (
        ("alpha", "request_probes", "requests"),
        ("theta", "token_probes", "batch_tokens"),
    ):
        if _missing_rank(np.concatenate([relative[:, :1], relative[:, groups[name]]], axis=1)):
            raise BadInputError(
                "a stretch between two probes has no cell of its own",
                source="cells",
                field=probes,
                remedy=f"use fewer probes, at measured values of {axis_name}",
            )
    for term in design.terms:
        if not np.any(matrix[:, groups[term]]):
            raise BadInputError(
                f"is zero in every cell, so its {term} term cannot be fitted",
                source="cells",
                field=_COLUMN[term],
                remedy=f"measure cells that have some, or leave out the {term} term",
            )
        if _missing_rank(np.delete(relative, groups[term], axis=1)) < missing:
            raise BadInputError(
                f"moves together with requests and batch tokens: the {term} term cannot be told apart",
                source="cells",
                field=_COLUMN[term],
                remedy=f"vary it at equal requests and batch tokens, or leave out the {term} term",
            )
    sizes = table[["requests", "batch_tokens"]].drop_duplicates()
    on_a_diagonal = not sizes["requests"].duplicated().any() and not sizes["batch_tokens"].duplicated().any()
    if len(matrix) < matrix.shape[1] and not on_a_diagonal:
        raise BadInputError(
            f"{len(matrix)} cells cannot determine {matrix.shape[1]} unknowns",
            source="cells",
            remedy="measure more cells or give fewer probes",
        )
    raise BadInputError(
        "requests and batch tokens move together: alpha and theta cannot be told apart",
        source="cells",
        field="requests, batch_tokens",
        remedy="measure few requests with long blocks and many with none at equal batch tokens",
    )


def _missing_rank(relative: Floats) -> int:
    """Return how many columns are combinations of the others."""
    length = np.linalg.norm(relative, axis=0)
    rank = np.linalg.matrix_rank(relative / np.where(length > 0, length, 1.0), rtol=RANK_TOLERANCE)
    return int(relative.shape[1] - rank)


def _folds(table: pd.DataFrame, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row: distinct cells at random, repeats of a cell together."""
    inputs = [name for name in table.columns if name != "step_time_s"]
    cell = table.groupby(inputs, sort=True).ngroup().to_numpy()
    distinct = int(cell.max()) + 1
    if not 2 <= folds <= distinct:
        raise BadInputError(
            f"must be 2 to {distinct}, the number of distinct cells", field="folds", value=folds
        )
    deal = random_stream(seed, "held-out folds").permutation(distinct) % folds
    return np.asarray(deal[cell], dtype=np.int64)


def _probes(given: ArrayLike | None, measured: pd.Series[float], name: str, *, most: int) -> Floats:
    """Return the probes asked for, or measured sizes thinned evenly in rank with both ends."""
    if given is not None:
        return axis(given, name)
    sizes = np.unique(measured.to_numpy(dtype=np.float64))
    chosen = np.linspace(0, len(sizes) - 1, min(most, len(sizes))).round().astype(np.int64)
    return np.asarray(sizes[chosen], dtype=np.float64)


def _checked(cells: pd.DataFrame, terms: Sequence[Term]) -> pd.DataFrame:
    """Return the columns that a fit needs, float64. A value that no measurement can give is refused."""
    for term in terms:
        if term not in _COLUMN or terms.count(term) > 1:
            raise BadInputError(
                "is not a term, or twice", field="terms", value=term, remedy=", ".join(_COLUMN)
            )
    also = ["prefill_tokens"] if "row_context" in terms and "prefill_tokens" in cells else []
    wanted = dict.fromkeys(["requests", "batch_tokens", *(_COLUMN[t] for t in terms), *also, "step_time_s"])
    missing = [name for name in wanted if name not in cells.columns]
    if missing:
        raise BadInputError("column is missing", source="cells", field=missing[0], value=list(cells.columns))
    try:
        table = cells[list(wanted)].astype(np.float64).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise BadInputError("must be numbers", source="cells", remedy=str(error)) from error
    distinct = len(table.drop_duplicates([name for name in wanted if name != "step_time_s"]))
    if distinct < _FEWEST_CELLS:
        raise BadInputError(
            f"has {distinct} distinct cells, at least {_FEWEST_CELLS} are needed",
            source="cells",
            remedy="measure a grid of requests and batch tokens",
        )
    for name in wanted:
        column = table[name].to_numpy()
        wrong = ~np.isfinite(column) | (column < 0) | ((name == "step_time_s") & (column == 0))
        _refuse_rows(wrong, name, column, "must be finite and not negative, a step time positive")
    rows = table["batch_tokens"].to_numpy()
    _refuse_rows(rows < table["requests"].to_numpy(), "batch_tokens", rows, "counts every request's anchor")
    return table


def _refuse_rows(wrong: NDArray[np.bool_], name: str, column: Floats, rule: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadInputError(rule, source="cells", field=f"{name}[{row}]", value=float(column[row]))


def _summary(error: pd.Series[float]) -> RelativeError:
    size = np.abs(error.to_numpy())
    return RelativeError(float(np.median(size)), float(np.quantile(size, 0.9)), float(size.max()))
