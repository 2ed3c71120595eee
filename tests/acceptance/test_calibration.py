"""Calibration statistics against the reference's numbers, brute force and the properties that define them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from safetensors.numpy import load_file

from simulator.acceptance.calibration import (
    REFERENCE,
    SGLANG,
    Convention,
    brier_score,
    calibration_table,
    expected_calibration_error,
    fit_temperatures,
    prefix_survival,
    reliability,
    roc_auc,
    verdicts,
)
from simulator.core.errors import BadInputError

FIXTURE = Path(__file__).parents[1] / "support" / "deepspec" / "calibration"
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def reference() -> dict:
    return json.loads((FIXTURE / "calibration.json").read_text())


@pytest.fixture(scope="module")
def recorded(reference: dict) -> dict[str, NDArray]:
    return load_file(FIXTURE / "calibration.safetensors")


@pytest.mark.parametrize("case", ["raw", "with_effective_lengths", "with_fixed_temperatures"])
def test_statistics_equal_the_reference(reference: dict, recorded: dict, case: str) -> None:
    temperatures = reference["reference"]["fixed_temperatures"] if case == "with_fixed_temperatures" else None
    effective = recorded["effective_lengths"] if case == "with_effective_lengths" else None
    predicted = prefix_survival(recorded["confidence_logits"], temperatures)
    observed, weight = verdicts(recorded["accepted_counts"], 7, effective)
    for k, expected in enumerate(reference["reference"][case]["per_position"]):
        args = predicted[:, k], observed[:, k]
        assert weight[:, k].sum() == expected["total_weight"]
        ece = expected_calibration_error(*args, weight=weight[:, k])
        auc = roc_auc(*args, weight=weight[:, k], histogram_bins=reference["num_fine_bins"])
        assert ece == pytest.approx(expected["ece"], abs=1e-7)
        assert auc == pytest.approx(expected["auc"], abs=1e-9)
        assert brier_score(*args, weight=weight[:, k]) == pytest.approx(expected["brier"], abs=1e-7)
        curve = reliability(*args, weight=weight[:, k])
        assert_allclose(curve.bin, [b["bin"] for b in expected["reliability"]])
        assert_allclose(curve.predicted, [b["avg_pred"] for b in expected["reliability"]], atol=1e-6)
        assert_allclose(curve.observed, [b["avg_target"] for b in expected["reliability"]], atol=1e-12)
        assert_allclose(curve.weight, [b["weight"] for b in expected["reliability"]])


def test_temperatures_equal_the_fixtures_fit(reference: dict, recorded: dict) -> None:
    expected = reference["paper_sts"]
    assert_allclose(REFERENCE.grid, expected["grid"])
    observed, _ = verdicts(recorded["accepted_counts"], 7)
    fit = fit_temperatures(recorded["confidence_logits"], observed)
    assert_allclose(fit.temperatures, expected["temperatures"])
    assert_allclose(fit.ece_before, expected["ece_before"], atol=1e-7)
    assert_allclose(fit.ece_after, expected["ece_after"], atol=1e-7)


def test_the_table_agrees_with_its_parts(reference: dict, recorded: dict) -> None:
    observed, weight = verdicts(recorded["accepted_counts"], 7, recorded["effective_lengths"])
    table = calibration_table(recorded["confidence_logits"], observed, weight=weight)
    expected = reference["reference"]["with_effective_lengths"]["per_position"]
    assert table["position"].tolist() == list(range(1, 8))
    for column, name in (("ece", "ece"), ("predicted_mean", "pred_mean"), ("observed_mean", "target_mean")):
        assert_allclose(table[column], [row[name] for row in expected], atol=1e-6)
    assert_allclose(table["auc"], [row["auc"] for row in expected], atol=2e-3)  # exact, not by histogram


def drawn(
    seed: int, rows: int = 4000, temperatures: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> tuple[Array, Array]:
    """Raw logits whose sigmoid at ``temperatures`` is exactly the chance of acceptance, and outcomes."""
    rng = np.random.default_rng(seed)
    calibrated = rng.normal(1.0, 1.5, (rows, len(temperatures)))
    outcomes = rng.random(calibrated.shape) < 1 / (1 + np.exp(-calibrated))
    return calibrated * temperatures, np.cumprod(outcomes, axis=1).astype(float)


def brute_force_ece(predicted: Array, observed: Array, bins: int) -> float:
    error = 0.0
    for low in range(bins):
        inside = [i for i, p in enumerate(predicted) if min(int(p * bins), bins - 1) == low]
        if inside:
            error += len(inside) * abs(predicted[inside].mean() - observed[inside].mean())
    return error / len(predicted)


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 25))
def test_ece_equals_brute_force_and_the_reliability_curve(seed: int, rows: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.random(rows) * 0.999 + 0.0005
    observed = (rng.random(rows) < 0.5).astype(float)
    expected = brute_force_ece(predicted, observed, bins)
    assert expected_calibration_error(predicted, observed, bins=bins) == pytest.approx(expected, abs=1e-12)
    assert reliability(predicted, observed, bins=bins).ece == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    predicted = np.array([p / 10 for p, _ in pairs])
    observed = np.array([float(y) for _, y in pairs])
    good, bad = predicted[observed == 1], predicted[observed == 0]
    if not (len(good) and len(bad)):
        assert np.isnan(roc_auc(predicted, observed))
        return
    margin = good[:, None] - bad
    expected = ((margin > 0) + 0.5 * (margin == 0)).mean()
    assert roc_auc(predicted, observed) == pytest.approx(expected)


@given(st.integers(0, 10**6), st.floats(0.2, 5))
def test_auc_does_not_see_a_monotone_transform(seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    predicted, observed = rng.uniform(0.01, 0.99, 50), (rng.random(50) < 0.5).astype(float)
    assume(0 < observed.sum() < 50)
    assert roc_auc(predicted**power, observed) == pytest.approx(roc_auc(predicted, observed))
    assert roc_auc(1 - predicted, observed) == pytest.approx(1 - roc_auc(predicted, observed))


@given(st.integers(0, 10**6))
def test_a_weight_counts_an_observation_that_often(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, observed = rng.random(30), (rng.random(30) < 0.5).astype(float)
    weight = rng.integers(0, 4, 30)
    assume(0 < observed @ weight < weight.sum())
    repeated = np.repeat(predicted, weight), np.repeat(observed, weight)
    for statistic in (expected_calibration_error, brier_score, roc_auc):
        assert statistic(predicted, observed, weight=weight) == pytest.approx(statistic(*repeated))


def test_a_chance_for_an_outcome_gives_the_expected_statistic() -> None:
    rng = np.random.default_rng(4)
    chance = rng.random(200_000)
    outcome = (rng.random(chance.size) < chance).astype(float)
    predicted = chance**0.7
    for statistic in (expected_calibration_error, brier_score, roc_auc):
        assert statistic(predicted, chance) == pytest.approx(statistic(predicted, outcome), abs=0.005)


def test_true_chances_are_calibrated_and_false_ones_are_not() -> None:
    logits, observed = drawn(0, rows=50_000)
    honest = calibration_table(logits, observed)
    boastful = calibration_table(logits * 2 + 0.5, observed)
    assert honest["ece"].max() < 0.01
    assert boastful["ece"].min() > 0.03


@pytest.mark.parametrize("convention", [REFERENCE, SGLANG])
def test_scaling_recovers_known_temperatures(convention: Convention) -> None:
    truth = (2.0, 0.5, 1.4)
    logits, observed = drawn(1, rows=60_000, temperatures=truth)
    fit = fit_temperatures(logits, observed, convention=convention)
    assert_allclose(fit.temperatures, truth, rtol=0.13)  # one step of the coarser grid is 12%
    assert max(fit.ece_after) < 0.015 < min(fit.ece_before)
    after = prefix_survival(logits, fit.temperatures)
    for k in range(3):
        error = expected_calibration_error(after[:, k], observed[:, k], bins=convention.bins)
        assert error == pytest.approx(fit.ece_after[k], abs=1e-6)


@given(st.integers(0, 10**6))
@settings(max_examples=15)
def test_each_temperature_is_the_best_of_the_grid_given_the_earlier_ones(seed: int) -> None:
    logits, observed = drawn(seed, rows=60, temperatures=(1.3, 0.8))
    convention = Convention("coarse", (0.5, 1.0, 2.0), bins=5)
    fit = fit_temperatures(logits, observed, convention=convention)
    for k in range(2):
        for t in convention.grid:
            tried = [*fit.temperatures[:k], t]
            predicted = prefix_survival(logits[:, : k + 1], tried)[:, k]
            error = expected_calibration_error(predicted, observed[:, k], bins=5)
            assert error >= fit.ece_after[k] - 1e-7
            if t < fit.temperatures[k]:
                assert error > fit.ece_after[k]


def test_unjudged_drafts_weigh_nothing() -> None:
    logits, _ = drawn(2, rows=500)
    accepted = np.random.default_rng(2).integers(0, 4, 500)
    effective = np.random.default_rng(3).integers(0, 4, 500)
    observed, weight = verdicts(accepted, 3, effective)
    whole = fit_temperatures(logits, observed, weight=weight)
    for k in range(3):
        seen = effective > k
        part = fit_temperatures(logits[seen, : k + 1], observed[seen, : k + 1], weight=weight[seen, : k + 1])
        assert part.ece_before[k] == pytest.approx(whole.ece_before[k])


def test_a_position_never_judged_keeps_temperature_one() -> None:
    logits, observed = drawn(3, rows=50)
    weight = np.ones((50, 3)) * [1, 1, 0]
    fit = fit_temperatures(logits, observed, weight=weight)
    assert fit.temperatures[2] == 1.0
    assert np.isnan(fit.ece_after[2])


@pytest.mark.parametrize(
    ("predicted", "observed", "weight", "message"),
    [
        ([0.5, np.nan], [1, 0], None, "predicted: must be"),
        ([0.5, 1.5], [1, 0], None, "predicted: must be"),
        ([[0.5]], [[1]], None, "predicted: must be one axis"),
        ([0.5, 0.5], [1, 2], None, "observed: must be"),
        ([0.5, 0.5], [1, 0, 1], None, "shapes differ"),
        ([0.5, 0.5], [1, 0], [0, 0], "weight: must be"),
        ([], [], None, "weight: must be"),
    ],
)
def test_statistics_refuse_what_has_no_meaning(
    predicted: list, observed: list, weight: list | None, message: str
) -> None:
    for statistic in (expected_calibration_error, brier_score, roc_auc, reliability):
        with pytest.raises(BadInputError, match=message):
            statistic(predicted, observed, weight=weight)


@pytest.mark.parametrize("changes", [{"grid": ()}, {"grid": (0.0, 1.0)}, {"bins": 0}])
def test_a_convention_refuses_what_it_cannot_mean(changes: dict) -> None:
    with pytest.raises(BadInputError, match="positive temperatures"):
        Convention(**({"name": "odd", "grid": (1.0,), "bins": 20} | changes))
