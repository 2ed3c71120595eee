"""The fitted models beside everything the paper publishes about acceptance, fitted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.calibration import (
    calibration_table,
    expected_calibration_error,
    fit_temperatures,
    prefix_survival,
    verdicts,
)
from simulator.acceptance.fitted import FittedModel, fitted_model
from simulator.acceptance.trace import anchor_rows
from simulator.paper.figures import published
from simulator.sweeps.thresholds import threshold_sweep

if TYPE_CHECKING:
    import pandas as pd


class Comparison(NamedTuple):
    """One published number and what drawn data give; ``fitted`` says whether the fit had seen it."""

    source: str
    model: str
    quantity: str
    fitted: bool
    published: float
    simulated: float


class Recording(NamedTuple):
    """Steps under full verification: accepted length [M] and raw confidence logits [M, gamma]."""

    accepted: NDArray[np.uint8]
    logits: NDArray[np.float32] | None


def published_comparison(seeds: Sequence[int] = (1, 2, 3)) -> pd.DataFrame:
    """Every published acceptance figure beside outcomes drawn with ``seeds``, pooled.

    Columns ``source, model, quantity, fitted, published, simulated, error``.
    """
    import pandas as pd  # slow to import

    rows = [*_figure_2(seeds), *_figure_5(seeds), *_figure_6(seeds), *_table_1(seeds)]
    table = pd.DataFrame(rows, columns=Comparison._fields)
    return table.assign(error=table["simulated"] - table["published"])


def record(model: FittedModel, seeds: Sequence[int]) -> Recording:
    """Let requests verify every block whole, as the paper's evaluation does; keep what each step showed."""
    accepted, logits = [], []
    for seed in seeds:
        trace = model.trace(seed)
        replay = trace.replay(seed)
        rows = anchor_rows(replay)
        accepted.append(replay.accepted[rows])
        if trace.confidence_logits is not None:
            logits.append(trace.confidence_logits[rows])
    return Recording(np.concatenate(accepted), np.concatenate(logits) if logits else None)


def conditional_acceptance(accepted: NDArray[np.uint8], gamma: int) -> NDArray[np.float64]:
    """P(draft k accepted | those before it accepted), [gamma], from accepted lengths [M]."""
    at_least: NDArray[np.float64] = (accepted[:, None] >= np.arange(gamma + 1)).sum(axis=0)
    return at_least[1:] / at_least[:-1]


def _figure_2(seeds: Sequence[int]) -> list[Comparison]:
    figure = published().conditional_acceptance
    rows = []
    for domain, drafters in figure.values.items():
        for drafter, rates in drafters.items():
            model = fitted_model(f"{figure.target}/{drafter}/{domain}")
            found = conditional_acceptance(record(model, seeds).accepted, model.gamma)
            rows += [
                Comparison(
                    "figure 2", model.name, f"conditional acceptance {k}", True, rate, float(found[k - 1])
                )
                for k, rate in enumerate(rates, start=1)
            ]
    return rows


def _figure_5(seeds: Sequence[int]) -> list[Comparison]:
    figure = published().threshold_sweep_ends
    rows = []
    for domain, ends in figure.values.items():
        model = fitted_model(f"{figure.target}/{figure.drafter}/{figure.datasets[domain]}")
        sweeps = [threshold_sweep(model, ends.threshold, seed) for seed in seeds]
        found = np.mean([sweep.to_numpy() for sweep in sweeps], axis=0)
        for i, threshold in enumerate(ends.threshold):
            _, _, length, rate = found[i].tolist()
            at = f"at threshold {threshold:g}"
            # At threshold 0 the length is table 1's value, which set the level, and the rate follows from it.
            rows += [
                Comparison(
                    "figure 5", model.name, f"accepted length {at}", True, ends.accepted_length[i], length
                ),
                Comparison(
                    "figure 5", model.name, f"acceptance rate {at}", i > 0, ends.acceptance_rate[i], rate
                ),
            ]
    return rows


def _figure_6(seeds: Sequence[int]) -> list[Comparison]:
    figure = published().reliability
    model = fitted_model(f"{figure.target}/{figure.drafter}/chat")
    steps = record(model, seeds)
    assert steps.logits is not None
    observed, _ = verdicts(steps.accepted, model.gamma)
    raw = calibration_table(steps.logits, observed, bins=figure.bins)
    fit = fit_temperatures(steps.logits, observed)
    calibrated = prefix_survival(steps.logits, fit.temperatures)
    rows = []
    for k, position in figure.positions.items():
        after = expected_calibration_error(calibrated[:, k - 1], observed[:, k - 1], bins=figure.bins)
        for quantity, value, found in (
            ("ROC-AUC", position.roc_auc, raw["auc"].iloc[k - 1]),
            ("ECE raw", position.ece_before, raw["ece"].iloc[k - 1]),
            ("ECE calibrated", position.ece_after, after),
        ):
            rows.append(Comparison("figure 6", model.name, f"{quantity} {k}", True, value, float(found)))
    return rows


def _table_1(seeds: Sequence[int]) -> list[Comparison]:
    table = published().accepted_length
    rows = []
    for target, drafter, dataset, _, length in table.cells():
        name = f"{target}/{drafter}/{dataset}"
        rows.append(
            Comparison("table 1", name, "accepted length", True, length, _accepted_length(name, seeds))
        )
    figure = published().conditional_acceptance
    for domain, drafters in figure.values.items():
        for drafter in drafters:
            name = f"{figure.target}/{drafter}/{domain}"
            length = table.domain_mean(figure.target, drafter, domain)
            found = _accepted_length(name, seeds)
            rows.append(Comparison("table 1", name, "accepted length, domain mean", False, length, found))
    return rows


def _accepted_length(name: str, seeds: Sequence[int]) -> float:
    return 1.0 + float(record(fitted_model(name), seeds).accepted.mean())
