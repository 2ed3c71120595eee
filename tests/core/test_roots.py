"""Equations solved as SciPy solves them, and its fits."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import brentq

from simulator.core.statistics import isotonic, non_negative, root


@pytest.mark.parametrize("seed", range(60))
def test_a_root_is_scipys_to_the_bit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    zero, power, scale = draw.uniform(-3, 3), int(draw.choice([1, 3, 5])), 10 ** draw.uniform(-6, 6)
    tilt = draw.uniform(0, 2)

    def function(at: float) -> float:
        away = at - zero
        return scale * (away**power + tilt * math.expm1(away))

    low, high = zero - draw.uniform(0.01, 40), zero + draw.uniform(0.01, 5)
    if draw.random() < 0.3:
        low, high = high, low
    tolerances = {"xtol": 10 ** draw.uniform(-13, -3), "rtol": 10 ** draw.uniform(-15, -3)}
    assert root(function, low, high) == brentq(function, low, high)
    assert root(function, low, high, **tolerances) == brentq(function, low, high, **tolerances)


def test_a_root_at_an_end_or_on_the_way_is_exact() -> None:
    assert root(lambda at: at - 1, 1.0, 3.0) == 1.0
    assert root(lambda at: at - 3, 1.0, 3.0) == 3.0
    assert root(lambda at: at, -2.0, 1.0) == 0.0
    assert root(lambda at: at * at - 2, 0.0, 2.0) == pytest.approx(math.sqrt(2), abs=2e-12)


def test_a_step_of_which_no_line_leads_to_the_root_is_halved() -> None:
    def jump(at: float) -> float:
        return -1.0 if at < 0.7 else 1000.0

    assert root(jump, 0.0, 1.0, xtol=1e-9) == brentq(jump, 0.0, 1.0, xtol=1e-9)
    assert root(jump, 0.0, 1.0, xtol=1e-9) == pytest.approx(0.7, abs=1e-9)


def test_signs_that_agree_and_a_root_too_far_away_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no change of sign between 1\.0 and 2\.0"):
        root(lambda at: at, 1.0, 2.0)
    with pytest.raises(ArithmeticError, match="in 100 steps"):
        root(lambda at: -1.0 if at < 1e-300 else 1.0, -1.0, 1.0, xtol=0.0)  # a thousand halvings


def test_isotonic_values_pool_neighbours_that_are_out_of_order() -> None:
    assert isotonic(np.array([1.0, 3.0, 2.0, 5.0])).tolist() == [1.0, 2.5, 2.5, 5.0]
    assert isotonic(np.array([5.0, 2.0, 3.0, 1.0]), increasing=False).tolist() == [5.0, 2.5, 2.5, 1.0]


def test_unknowns_are_never_negative() -> None:
    # Alone, the second unknown would be -1; at 0 the first is the mean of 1 and 3.
    matrix = np.array([[1.0, 1.0], [1.0, -1.0]])
    assert non_negative(matrix, np.array([1.0, 3.0])).tolist() == pytest.approx([2.0, 0.0])


def test_a_first_result_imports_no_optimiser_no_pool_and_no_bar() -> None:
    script = (
        "import sys, simulator as sim\n"
        "sim.deployment('deepseek-v4-flash').simulate('dspark-async', concurrency=8, steps=60)\n"
        "print([name for name in ('scipy.optimize', 'joblib', 'rich', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
