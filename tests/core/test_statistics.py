"""Intervals against closed forms and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.acceptance.trace import Replay
from simulator.core.statistics import (
    rate_interval,
    ratio_interval,
    replicated_ratio,
    t_quantile,
    units_needed,
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
