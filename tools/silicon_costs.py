"""What engines add to kernels, fitted to one half of published end-to-end runs.

By engine (vLLM before 0.14 apart) and kind of model: time of a step, time of a request in it, and the share
by which rows of prompts are dearer than their kernels. None is negative. TTFT has one number more, a
request's time outside steps. Each is what leaves the least sum of relative errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from simulator.core.arrays import Floats

KEYS = ("host", "kind")
"""Columns of rows that share what is added."""


class Added(NamedTuple):
    """ms of a step, ms of a request in it, and share of the time of prompts' rows."""

    step_ms: float
    request_ms: float
    prompts: float


def fitted(table: pd.DataFrame) -> dict[tuple[str, str], Added]:
    """Fit what is added to TPOT, by ``KEYS``."""
    found = {}
    for key, rows in table.groupby(list(KEYS)):
        lacking = (rows["tpot_ms"] - rows["kernels_tpot_ms"]).to_numpy()
        found[str(key[0]), str(key[1])] = Added(
            *least_errors(_seen(rows, "tpot"), lacking, rows["tpot_ms"].to_numpy())
        )
    return found


def least_errors(columns: Floats, lacking: Floats, measured: Floats) -> list[float]:
    """Return non-negative factors of columns [rows, n] that leave the least sum of relative errors.

    A linear program: what is left over and what is missing of each row, relative to the measured time, are
    unknowns of their own.
    """
    rows, unknowns = columns.shape
    weight = 1.0 / measured
    equal = np.hstack([columns * weight[:, None], np.eye(rows), -np.eye(rows)])
    price = np.concatenate([np.zeros(unknowns), np.ones(2 * rows)])
    solution = linprog(price, A_eq=equal, b_eq=lacking * weight, method="highs")
    if solution.x is None:
        raise RuntimeError(f"the errors have no least sum: {solution.message}")
    return [float(each) for each in solution.x[:unknowns]]


def outside_ms(table: pd.DataFrame, added: Mapping[tuple[str, str], Added]) -> dict[str, float]:
    """Return a request's time outside steps by host: of what TTFT lacks, the median weighed by 1 / TTFT."""
    rows = table.assign(lacking=table["ttft_ms"] - with_added(table, added)["predicted_ttft_ms"])
    return {str(host): max(_weighed_median(each), 0.0) for host, each in rows.groupby("host")}


def _weighed_median(rows: pd.DataFrame) -> float:
    ordered = rows.sort_values("lacking")
    weight = (1 / ordered["ttft_ms"]).cumsum().to_numpy()
    return float(ordered["lacking"].iloc[int(np.searchsorted(weight, weight[-1] / 2))])


def with_added(
    table: pd.DataFrame,
    added: Mapping[tuple[str, str], Added],
    outside: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Add ``predicted_*_ms`` and ``*_error``, relative, of both times; rows of unknown keys get nothing."""
    nothing = Added(0.0, 0.0, 0.0)
    factors = np.array(
        [added.get(key, nothing) for key in zip(*(table[name] for name in KEYS), strict=True)]
    ).reshape(len(table), 3)
    done = table.copy()
    for name in ("ttft", "tpot"):
        more = (_seen(table, name) * factors).sum(axis=1)
        if name == "ttft" and outside is not None:
            more = more + table["host"].map(dict(outside)).fillna(0.0).to_numpy()
        done[f"predicted_{name}_ms"] = table[f"kernels_{name}_ms"] + more
        done[f"{name}_error"] = done[f"predicted_{name}_ms"] / table[f"{name}_ms"] - 1
    return done


def _seen(table: pd.DataFrame, name: str) -> Floats:
    """[rows, 3]: what the factors of ``Added`` multiply."""
    return table[[f"{name}_{each}" for each in ("steps", "requests", "prompts_ms")]].to_numpy(np.float64)


def from_other_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return reported rows of each model as predicted with what is fitted to the other models alone."""
    parts = []
    for model, rows in table.groupby("model"):
        others = fitted(table[(table["model"] != model) & ~table["reported"]])
        parts.append(with_added(rows[rows["reported"]], others))
    return pd.concat(parts)
