"""The additive fit: exact on exact cells, honest about noise, and refusing what cells cannot tell apart."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simulator.core.errors import BadInputError
from simulator.cost.fit import _folds, fit_additive, monotone, spread_token_probes
from simulator.cost.models import AdditiveCost

TRUE = AdditiveCost(
    0.012, [1, 16, 64], [0, 0.002, 0.006], [64, 128, 512], [0, 0.001, 0.011],
    context_s_per_token=2e-9, row_context_s_per_token=5e-12, prefill_s_per_token=3e-6,
)  # fmt: skip
PROBES = {"request_probes": [1, 16, 64], "token_probes": [64, 128, 512]}


def grid(cost: AdditiveCost = TRUE, *, contexts: tuple[float, ...] = (0.0,)) -> pd.DataFrame:
    """Cells of every request count with every batch size, at each context per request."""
    cells = [
        (r, b, r * context, b // 4, cost.step_time_s(r, b, r * context, b // 4 if context else 0))
        for r in (1, 4, 16, 40, 64)
        for b in (64, 100, 128, 300, 512)
        for context in contexts
    ]
    names = ["requests", "batch_tokens", "context_tokens", "prefill_tokens", "step_time_s"]
    return pd.DataFrame(cells, columns=names)


def diagonal() -> pd.DataFrame:
    """What an engine profiled at full blocks of five gives: batch tokens always six times the requests."""
    cells = [(r, 6 * r, TRUE.step_time_s(r, 6 * r)) for r in (1, 2, 4, 8, 16, 32, 64)]
    return pd.DataFrame(cells, columns=["requests", "batch_tokens", "step_time_s"])


def test_exact_cells_give_back_the_model_and_no_error() -> None:
    fit = fit_additive(grid(), **PROBES)
    assert_allclose(fit.cost.bias_s, TRUE.bias_s, rtol=1e-9)
    assert_allclose(fit.cost.alpha.value, TRUE.alpha.value, rtol=1e-9)
    assert_allclose(fit.cost.theta.value, TRUE.theta.value, rtol=1e-9)
    assert fit.held_out.max < 1e-9


def test_what_alpha_and_theta_share_is_in_the_bias() -> None:
    shifted = AdditiveCost(0.010, [1, 64], [0.001, 0.006], [64, 512], [0.001, 0.011])
    fit = fit_additive(grid(shifted))
    assert fit.cost.alpha.value[0] == fit.cost.theta.value[0] == 0
    assert_allclose(fit.cost.bias_s, 0.012, rtol=1e-9)


def test_optional_terms_are_recovered_from_cells_that_vary_them() -> None:
    cells = grid(contexts=(0.0, 1000.0, 30_000.0))
    cells["prefill_tokens"] = np.random.default_rng(0).integers(0, 50, len(cells))
    cells["step_time_s"] = [
        TRUE.step_time_s(int(c.requests), int(c.batch_tokens), float(c.context_tokens), int(c.prefill_tokens))
        for c in cells.itertuples()
    ]
    fit = fit_additive(cells, terms=("context", "row_context", "prefill"), **PROBES)
    assert_allclose(fit.cost.context_s_per_token, TRUE.context_s_per_token, rtol=1e-6)
    assert_allclose(fit.cost.row_context_s_per_token, TRUE.row_context_s_per_token, rtol=1e-6)
    assert_allclose(fit.cost.prefill_s_per_token, TRUE.prefill_s_per_token, rtol=1e-6)


def test_residuals_restate_the_cells_and_the_predictions_of_the_cost() -> None:
    cells = grid()
    cells["step_time_s"] *= np.random.default_rng(1).lognormal(0, 0.02, len(cells))
    fit = fit_additive(cells, **PROBES)
    cost = [
        fit.cost.step_time_s(int(r), int(b)) for r, b in zip(cells.requests, cells.batch_tokens, strict=True)
    ]
    assert_allclose(fit.residuals["predicted_s"], cost, rtol=1e-12)
    assert_allclose(fit.residuals["relative_error"], np.array(cost) / cells["step_time_s"] - 1, rtol=1e-9)
    assert fit.in_sample.max == fit.residuals["relative_error"].abs().max()
    assert fit.held_out.median == fit.residuals["held_out_error"].abs().median()


def test_held_out_error_sees_a_useless_fit_that_the_residuals_do_not() -> None:
    """With an unknown for nearly every cell the fit follows pure noise; cells it has not seen tell."""
    cells = grid()
    cells["step_time_s"] = np.random.default_rng(2).uniform(0.01, 0.02, len(cells))
    fit = fit_additive(cells)
    assert fit.held_out.median > 1.2 * fit.in_sample.median


def test_repeats_of_a_cell_are_held_out_together() -> None:
    """Ten identical copies add nothing: the held-out error must not fall because a twin was seen."""
    noisy = grid().assign(step_time_s=lambda t: t["step_time_s"] * np.linspace(0.9, 1.1, len(t)))
    once = fit_additive(noisy, **PROBES)
    tenfold = fit_additive(pd.concat([noisy] * 10, ignore_index=True), **PROBES)
    errors = once.residuals["held_out_error"]
    assert_allclose(tenfold.residuals["held_out_error"], np.tile(errors, 10), rtol=1e-9)


def test_equal_seeds_hold_out_the_same_cells() -> None:
    noisy = grid().assign(step_time_s=lambda t: t["step_time_s"] * np.linspace(0.9, 1.1, len(t)))
    errors = [fit_additive(noisy, seed=seed).residuals["held_out_error"] for seed in (3, 3, 4)]
    assert_array_equal(errors[0], errors[1])
    assert not np.array_equal(errors[0], errors[2])


@given(st.lists(st.floats(1e-4, 1.0), min_size=25, max_size=25))
def test_any_positive_times_give_a_valid_cost(times: list[float]) -> None:
    """AdditiveCost itself refuses falling curves and a bias that is not positive."""
    fit = fit_additive(grid().assign(step_time_s=times), **PROBES)
    assert fit.cost.bias_s > 0
    assert fit.cost.alpha.value[0] == fit.cost.theta.value[0] == 0


def test_many_sizes_are_thinned_and_keep_both_ends() -> None:
    cells = pd.DataFrame(
        [(r, b) for r in range(1, 31) for b in (64, *range(100, 140))], columns=["requests", "batch_tokens"]
    )
    fit = fit_additive(cells.assign(step_time_s=0.01 + 1e-5 * cells["batch_tokens"]))
    for curve, most, first, last in ((fit.cost.alpha, 8, 1, 30), (fit.cost.theta, 16, 64, 139)):
        assert len(curve.at) == most
        assert (curve.at[0], curve.at[-1]) == (first, last)


def test_one_request_count_is_a_curve_over_batch_tokens() -> None:
    fit = fit_additive(grid().query("requests == 16"), folds=2)
    assert_allclose(fit.cost.step_time_s(16, 300), TRUE.step_time_s(16, 300), rtol=1e-9)
    assert fit.cost.outside(17, 300)


TOGETHER = (
    "cells: requests, batch_tokens: requests and batch tokens move together: alpha and theta cannot be told "
    "apart; measure few requests with long blocks and many with none at equal batch tokens"
)
STRETCH = "a stretch between two probes has no cell of its own; use fewer probes, at measured values of"
FEW = "at least 3 are needed; measure a grid of requests and batch tokens"
POSITIVE = "must be finite and not negative, a step time positive"


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (diagonal(), {}, TOGETHER),
        (diagonal(), {"request_probes": [1, 64], "token_probes": [6, 384]}, TOGETHER),
        (grid().head(2), {}, f"cells: has 2 distinct cells, {FEW}"),
        (pd.concat([grid().head(2)] * 9), {}, f"cells: has 2 distinct cells, {FEW}"),
        (grid().iloc[[0, 6, 12, 18, 19]], {},
         "cells: 5 cells cannot determine 8 unknowns; measure more cells or give fewer probes"),
        (grid(), {"token_probes": [64, 70, 80, 512]}, f"cells: token_probes: {STRETCH} batch_tokens"),
        (grid(), {"request_probes": [1, 2, 3, 64]}, f"cells: request_probes: {STRETCH} requests"),
        (grid(), {"request_probes": [2, 1]},
         "request_probes[1]: must be strictly increasing (got 1.0); it follows 2; sort the points and drop "
         "repeats, or let `dspark-sim profile repair` do so"),
        (grid(), {"token_probes": [-1, 1]}, "token_probes: must not be negative (got -1.0)"),
        (grid(), {"terms": ("context",)},
         "cells: context_tokens: is zero in every cell, so its context term cannot be fitted; measure "
         "cells that "
         "have some, or leave out the context term"),
        (grid().assign(context_tokens=lambda t: 900 * t["requests"]), {"terms": ("context",)},
         "cells: context_tokens: moves together with requests and batch tokens: the context term cannot "
         "be told "
         "apart; vary it at equal requests and batch tokens, or leave out the context term"),
        (grid(), {"terms": ("cache",)},
         "terms: is not a term, or twice (got 'cache'); context, row_context, prefill"),
        (grid(), {"terms": ("prefill", "prefill")},
         "terms: is not a term, or twice (got 'prefill'); context, row_context, prefill"),
        (grid(), {"folds": 1}, "folds: must be 2 to 25, the number of distinct cells (got 1)"),
        (grid(), {"folds": 26}, "folds: must be 2 to 25, the number of distinct cells (got 26)"),
        (grid().drop(columns="step_time_s"), {},
         "cells: step_time_s: column is missing "
         "(got ['requests', 'batch_tokens', 'context_tokens', 'prefill_tokens'])"),
        (grid().assign(step_time_s="fast"), {},
         "cells: must be numbers; could not convert string to float: 'fast'"),
        (grid().assign(step_time_s=0.0), {}, f"cells: step_time_s[0]: {POSITIVE} (got 0.0)"),
        (grid().assign(step_time_s=np.nan), {}, f"cells: step_time_s[0]: {POSITIVE} (got nan)"),
        (grid().assign(requests=-1), {}, f"cells: requests[0]: {POSITIVE} (got -1.0)"),
        (grid().assign(batch_tokens=3), {},
         "cells: batch_tokens[5]: counts every request's anchor (got 3.0)"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_fitted_are_refused(
    cells: pd.DataFrame, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        fit_additive(cells, **options)
    assert str(caught.value) == message


def test_as_many_folds_as_cells_and_as_few_cells_as_three() -> None:
    assert fit_additive(grid(), folds=25, **PROBES).folds == 25
    three = pd.DataFrame({"requests": 1, "batch_tokens": [1, 2, 4], "step_time_s": [1.0, 1.5, 2.0]})
    fit = fit_additive(three, token_probes=[1, 4], folds=3)
    assert fit.cost.bias_s == pytest.approx(1.0, rel=0.2)


def test_cells_are_dealt_evenly_and_by_what_was_measured_alone() -> None:
    """25 cells in four folds: 7, 6, 6 and 6 of them; repeats stay together though their times differ."""
    cells = pd.concat([grid(), grid().assign(step_time_s=0.5)], ignore_index=True)
    fold = _folds(cells, 4, 0)
    np.testing.assert_array_equal(fold[:25], fold[25:])
    assert sorted(np.bincount(fold[:25]).tolist()) == [6, 6, 6, 7]


def test_the_order_of_the_cells_changes_nothing() -> None:
    noisy = grid().assign(step_time_s=lambda t: t["step_time_s"] * np.linspace(0.9, 1.1, len(t)))
    turned = noisy.iloc[::-1]
    errors = [fit_additive(each, **PROBES).residuals["held_out_error"].to_numpy() for each in (noisy, turned)]
    assert_allclose(errors[0], errors[1][::-1], rtol=1e-9)


def test_a_bias_is_never_quite_zero() -> None:
    """1 us a row and nothing else: of the fastest cell, 64 us, a millionth is left."""
    rows = pd.DataFrame({"requests": 1, "batch_tokens": [64, 128, 256, 512]})
    fit = fit_additive(rows.assign(step_time_s=1e-6 * rows["batch_tokens"]), token_probes=[0, 512], folds=2)
    assert fit.cost.bias_s == pytest.approx(64e-12, rel=1e-6)


@pytest.mark.parametrize("prompts", [True, False])
def test_rows_of_prompts_do_not_read_the_context_of_others(prompts: bool) -> None:
    """4 s, and 1 us a row and token of a request's context; prompt rows are free here."""
    true = AdditiveCost(4.0, [1], [0], [1], [0], row_context_s_per_token=1e-6)
    cells = pd.DataFrame(
        list(product((1, 2), (16, 32), (0, 64, 512), (0, 8) if prompts else (0,))),
        columns=["requests", "batch_tokens", "context_tokens", "prefill_tokens"],
    )
    cells["step_time_s"] = [true.step_time_s(*map(int, row)) for row in cells.to_numpy()]
    if not prompts:
        cells = cells.drop(columns="prefill_tokens")
    fit = fit_additive(cells, terms=("row_context",))
    assert_allclose(fit.cost.row_context_s_per_token, 1e-6, rtol=1e-9)
    assert fit.in_sample.max < 1e-9
    assert fit.cost.context_s_per_token == fit.cost.prefill_s_per_token == 0


def test_a_fit_does_beyond_its_probes_what_it_is_told() -> None:
    assert fit_additive(grid(), beyond="clamp", **PROBES).cost.beyond == "clamp"
    repaired = monotone([1, 2], [2.0, 1.0], beyond="clamp")
    assert repaired.curve.step_time_s(1, 9) == 1.0


def test_errors_are_summed_up_by_their_quantiles() -> None:
    cells = grid().assign(step_time_s=lambda t: t["step_time_s"] * np.linspace(0.9, 1.1, len(t)))
    fit = fit_additive(cells, **PROBES)
    size = np.sort(fit.residuals["relative_error"].abs())
    # Of 25 sizes the ninth tenth lies 0.6 of the way from the 22nd to the 23rd.
    assert fit.in_sample.p90 == pytest.approx(size[21] + 0.6 * (size[22] - size[21]))


def test_a_monotone_curve_is_left_alone_bit_for_bit() -> None:
    rate = 1 / np.linspace(0.01, 0.07, 9) ** 1.1
    repaired = monotone(range(1, 10), rate)
    assert_array_equal(repaired.curve.steps_per_s, rate)
    assert repaired.largest_change == 0


def test_a_rise_is_pooled_at_its_geometric_mean() -> None:
    repaired = monotone([1, 2, 3, 4], [10.0, 8.0, 9.0, 5.0], lookup="ceil")
    assert_allclose(repaired.curve.steps_per_s, [10, np.sqrt(72), np.sqrt(72), 5], rtol=1e-12)
    assert repaired.largest_change == pytest.approx(np.sqrt(72) / 8 - 1)
    assert repaired.curve.lookup == "ceil"


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=12))
def test_any_positive_rates_become_a_valid_curve(rates: list[float]) -> None:
    """ThroughputCurve itself refuses a rise; the change reported is the one made."""
    repaired = monotone(range(len(rates)), rates)
    change = np.abs(repaired.curve.steps_per_s / np.array(rates) - 1).max()
    assert repaired.largest_change == change


@pytest.mark.parametrize(
    ("tokens", "rates", "said"),
    [
        ([1, 2], [1.0, 0.0], "steps_per_s: must be positive (got 0.0)"),
        ([1, 2], [1.0, -1.0], "steps_per_s: must not be negative (got -1.0)"),
        ([1, -2], [1.0, 1.0], "batch_tokens: must not be negative (got -2.0)"),
    ],
)
def test_rates_that_cannot_be_repaired_are_refused(tokens: list[int], rates: list[float], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        monotone(tokens, rates)
    assert str(caught.value) == said


def test_token_probes_are_measured_sizes_with_two_cells_each() -> None:
    """Six cells of three sizes bear three probes; of four cells two, the ends."""
    six = pd.DataFrame({"requests": [1, 2] * 3, "batch_tokens": [8, 8, 16, 16, 64, 64]})
    assert spread_token_probes(six) == [8, 16, 64]
    assert spread_token_probes(six.iloc[[0, 2, 3, 5]]) == [8, 64]
    five = pd.DataFrame({"requests": 1, "batch_tokens": [8, 16, 32, 64, 128]})
    assert spread_token_probes(five) == [8, 128], "two and a half pairs are two"
    many = pd.DataFrame([(r, 8 * b) for r in (1, 2, 3) for b in range(1, 47)], columns=six.columns)
    assert spread_token_probes(many) == [8.0 * (1 + 3 * k) for k in range(16)]


def test_a_fit_says_what_misleads_a_scheduler() -> None:
    flat = AdditiveCost(0.012, [1, 64], [0, 0.006], [64, 512], [0, 0])
    fit = fit_additive(grid(flat), request_probes=[1, 64], token_probes=[64, 512])
    assert any("never trim" in warning for warning in fit.warnings)
    assert fit_additive(grid(), **PROBES).warnings == ()


def test_a_term_that_varies_is_not_blamed_for_requests_and_rows_that_move_together() -> None:
    cells = diagonal()
    cells["prefill_tokens"] = [0, 5, 1, 7, 0, 3, 9]
    probes = {"request_probes": [1, 64], "token_probes": [6, 384]}
    with pytest.raises(BadInputError, match="requests and batch tokens move together"):
        fit_additive(cells, terms=("prefill",), **probes)
