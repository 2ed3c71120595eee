"""Intervals against closed forms and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.acceptance.trace import Replay
from simulator.core.statistics import (
    divide,
    divide_each,
    mean_interval,
    quantile,
    quantile_of_parts,
    rate_interval,
    ratio_interval,
    replicated_ratio,
    t_quantile,
    units_needed,
    weighted_quantile,
)
from simulator.engine.cursors import TraceCursors
from tests.support.engines import closed_loop


def test_a_correlated_sequence_is_covered_nearly_as_often_as_said() -> None:
    """AR(1) of correlation 0.97 over 800 steps: its time constant outlasts a batch of 40 steps.

    Batches of 40 alone hold the truth in about 78 of 100 runs; more is asked here.
    """
    stream, covered = np.random.default_rng(8), 0
    for _ in range(300):
        shocks = stream.normal(0, 1, 1000)
        path = np.empty(1000)
        level = 0.0
        for step, shock in enumerate(shocks):
            level = path[step] = 0.97 * level + shock
        mean, half = rate_interval(100 + path[200:], np.ones(800))
        covered += abs(mean - 100) <= half
    assert covered / 300 >= 0.86


def test_a_ratio_of_replications_covers_as_often_as_it_says() -> None:
    """1000 samples of eight pairs of ratio 3: within three binomial standard errors of 95%, 2.1 points."""
    stream, covered = np.random.default_rng(9), 0
    for _ in range(1000):
        bottom = stream.gamma(50, 0.1, 8)
        ratio, half = replicated_ratio(3 * bottom + stream.normal(0, 1, 8), bottom)
        covered += abs(ratio - 3) <= half
    assert covered / 1000 == pytest.approx(0.95, abs=0.021)


def test_a_ratio_of_one_pair_has_no_interval() -> None:
    ratio, half = replicated_ratio(np.array([6.0]), np.array([2.0]))
    assert ratio == 3
    assert np.isnan(half)


@pytest.mark.parametrize(
    ("demand", "rate", "half", "units"),
    [
        (100.0, 10.5, 0.6, (10, 10, 11)),  # 100/11.1 = 9.01, 100/10.5 = 9.52, 100/9.9 = 10.1
        (100.0, 10.0, 0.0, (10, 10, 10)),
        (100.0, 10.0, float("nan"), (10, 10, 10)),
        (0.3, 0.1, 0.0, (3, 3, 3)),  # 0.3 / 0.1 is above 3 by rounding only
        (100.0, 10.0, 20.0, (4, 10, 100)),
        (0.0, 10.0, 1.0, (1, 1, 1)),
    ],
)
def test_units_needed_by_hand(demand: float, rate: float, half: float, units: tuple[int, int, int]) -> None:
    assert units_needed(demand, rate, half) == units


def test_batches_too_short_for_an_interval_are_said_to_be() -> None:
    ratio, half = ratio_interval(np.ones(39), np.ones(39))
    assert ratio == 1
    assert np.isnan(half)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), min_size=1, max_size=9), st.booleans())
def test_reuse_is_the_design_effect_of_rows_counted_one_by_one(
    walks: list[tuple[int, int]], drawn: bool
) -> None:
    rows = 9
    replay = Replay(
        np.full((rows, 1), 0.5, np.float32), np.zeros(rows, np.uint8), np.arange(rows + 1), drawn=drawn
    )
    cursors = TraceCursors([replay], closed_loop([50] * rows), capacity=1, seed=3)
    requests, tokens = (np.array(column) for column in zip(*walks, strict=True))
    visits = np.zeros(rows)
    for request, far in walks:
        cursors.place(np.array([0]), np.array([request]))
        for _ in range(far):
            visits[int(cursors._cursor[0]) % rows] += 1
            cursors.advance(np.array([0]))
    expected = (visits**2).sum() / visits.sum() if drawn and visits.any() else 1.0
    assert cursors.reuse(requests, tokens) == pytest.approx(expected)
    assert_array_equal(visits.sum(), tokens.sum())


@pytest.mark.parametrize("freedom", [1, 2, 3, 19, 198, 1e5])
def test_the_t_quantile_is_scipys_bit_for_bit(freedom: float) -> None:
    from scipy import stats

    for share in (0.9, 0.975, 0.995):
        assert t_quantile(share, freedom) == stats.t.ppf(share, freedom)


def test_a_mean_of_replications_by_hand() -> None:
    """1, 2 and 3: a standard deviation of 1 over the root of 3, times t of 2 degrees of freedom, 4.302653."""
    mean, half = mean_interval(np.array([1, 2, 3]))
    assert (mean, half) == (2, pytest.approx(4.302653 / np.sqrt(3), rel=1e-6))
    assert mean_interval(np.array([1, 2, 3]), 0.9)[1] == pytest.approx(2.919986 / np.sqrt(3), rel=1e-6)
    mean, half = mean_interval(np.array([5.0]))
    assert mean == 5
    assert np.isnan(half)


def test_quantiles_and_ratios_of_nothing_are_unknown() -> None:
    assert np.isnan(quantile(np.array([]), 0.5))
    assert quantile(np.array([1.0, 2.0, 4.0]), 0.75) == 3.0
    nothing = np.array([]), np.array([])
    assert np.isnan(weighted_quantile(*nothing, [0.1, 0.9])).tolist() == [True, True]
    for parts in ([], [nothing]):
        assert np.isnan(quantile_of_parts(lambda parts=parts: parts, [0.1, 0.9])).tolist() == [True, True]
    assert np.isnan(divide(1, 0))
    assert divide(1, 4) == 0.25
    ratio = divide_each(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, -1.0]))
    assert ratio[0] == 0.5
    assert np.isnan(ratio[1:]).all()


def test_a_weighted_quantile_is_the_first_value_with_that_share_below_it() -> None:
    """Weights 1, 1 and 2 of 10, 20 and 30: shares of 0.25, 0.5 and 1, whatever the order."""
    values, weights = np.array([30.0, 10.0, 20.0]), np.array([2, 1, 1])
    found = weighted_quantile(values, weights, [0.0, 0.25, 0.26, 0.5, 0.51, 1.0])
    assert found.tolist() == [10, 10, 20, 20, 30, 30]


EDGES = [0.0, 5e-324, 1.0, np.nextafter(1.0, 0.0), np.nextafter(1.0, 2.0), 1.0 + 2.0**-8, 1e308, np.inf]
"""Values that share a bucket, stand at the edge of one, or lie as far apart as they can."""

WEIGHED = st.tuples(
    st.one_of(st.sampled_from(EDGES), st.floats(0.0, np.inf), st.floats(0.01, 0.011)), st.integers(0, 9)
)


@given(
    st.lists(st.lists(WEIGHED, max_size=6), min_size=1, max_size=5),
    st.lists(WEIGHED, max_size=4),
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4),
)
def test_a_quantile_of_parts_is_that_of_all_values_sorted(
    pairs: list[list[tuple[float, int]]], taken_back: list[tuple[float, int]], at: list[float]
) -> None:
    """Parts may be empty and weights 0; what one part adds another one takes back."""
    parts = [
        (np.array([value for value, _ in part]), np.array([weight for _, weight in part], dtype=np.int64))
        for part in pairs
    ]
    values, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    back, counts = (np.array([pair[column] for pair in taken_back], dtype=float) for column in (0, 1))
    parts = [(back, -counts), *parts, (back, counts)]
    found = quantile_of_parts(lambda: parts, at)
    weighed = weights > 0
    expected = weighted_quantile(values[weighed], weights[weighed], at)
    assert_array_equal(found.view(np.int64), expected.view(np.int64))


@pytest.mark.parametrize("spread", [0.0, 1e-12, 0.3, 50.0])
def test_a_quantile_of_many_parts_is_exact_however_the_values_lie(spread: float) -> None:
    """All alike, all in one bucket, in some hundreds of buckets, and in all that there are."""
    draw = np.random.default_rng(1)
    parts = [(np.exp(spread * draw.normal(size=500)), draw.integers(0, 200, 500)) for _ in range(8)]
    values, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    at = [1e-6, 0.01, 0.5, 0.99, 1.0]
    assert_array_equal(quantile_of_parts(lambda: parts, at), weighted_quantile(values, weights, at))


def test_requests_alone_make_the_interval_where_steps_do_not_scatter() -> None:
    """Clusters 1, -1, 2, -2: squares add up to 10, variance 10 * 4/3; freedom 200/34, at most 3."""
    rate, half = rate_interval(np.full(40, 3.0), np.ones(40), by_request=np.array([1.0, -1.0, 2.0, -2.0]))
    assert rate == 3
    assert half == pytest.approx(np.sqrt(40 / 3) / 40 * 3.182446, rel=1e-6)
    nothing = rate_interval(np.full(40, 3.0), np.ones(40), by_request=np.zeros(4))
    assert nothing == (3.0, 0.0)


@pytest.mark.parametrize(("reuse", "factor"), [(0.5, 1.0), (1.0, 1.0), (1.5, 1.5)])
def test_reading_again_adds_the_variance_within_a_text(reuse: float, factor: float) -> None:
    """Pairs of steps one token above and one below the mean: 20 sums of +-2, of variance 80/19, times 20."""
    tokens = np.tile([2.0, 2.0, 0.0, 0.0], 10)
    _, half = rate_interval(tokens, np.ones(40), by_request=np.array([1.0, -1.0]), reuse=reuse)
    assert half == pytest.approx(np.sqrt(factor * 1600 / 19) / 40 * 2.093024, rel=1e-6)


def test_a_single_request_gives_no_interval_of_its_own() -> None:
    tokens = np.tile([2.0, 2.0, 0.0, 0.0], 10)
    plain = rate_interval(tokens, np.ones(40))
    assert plain == rate_interval(tokens, np.ones(40), by_request=np.array([1e9]), reuse=3.0)


def test_a_ratio_over_nothing_is_unknown() -> None:
    assert np.isnan(ratio_interval(np.ones(50), np.zeros(50))).all()
    ratio, half = ratio_interval(2 * np.ones(40), np.ones(40))
    assert (ratio, half) == (2, 0)
