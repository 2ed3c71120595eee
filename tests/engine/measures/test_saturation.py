"""The trend of a queue, against counting on a fine grid and a textbook's regression."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import linregress, t

from simulator.core.statistics import BATCHES
from simulator.engine.measures.saturation import MATERIAL_GROWTH, is_saturated, queue_trend

Floats = NDArray[np.float64]


def counted(arrived_s: Floats, served_s: Floats, from_s: float, to_s: float) -> tuple[Floats, Floats]:
    """Middles of the spans, and requests waiting in each: the mean over many moments of it."""
    edges = np.linspace(from_s, to_s, BATCHES + 1)
    waiting = []
    for low, high in pairwise(edges):
        moments = low + (np.arange(4000) + 0.5) / 4000 * (high - low)
        waiting.append(np.mean([((arrived_s <= at) & (served_s > at)).sum() for at in moments]))
    return (edges[1:] + edges[:-1]) / 2, np.array(waiting)


@pytest.mark.parametrize("wave", [0.0, 30.0])
def test_the_slope_and_its_interval_are_the_textbooks(wave: float) -> None:
    """A wave makes neighbours alike: the variance of the slope is widened by (1 + r) / (1 - r)."""
    draw = np.random.default_rng(3)
    arrived = np.sort(draw.uniform(0, 100, 300))
    served = arrived + draw.uniform(0, 10, 300) + wave * (1 + np.sin(arrived / 8))
    served[-4:] = np.inf  # still waiting
    found = queue_trend(arrived, served, 10.0, 90.0)
    middles, waiting = counted(arrived, served, 10.0, 90.0)
    fit = linregress(middles, waiting)
    residual = waiting - fit.intercept - fit.slope * middles
    r = min(max(float(residual[1:] @ residual[:-1] / (residual @ residual)), 0.0), 0.9)
    assert (r > 0.5) == (wave > 0)
    half = fit.stderr * math.sqrt((1 + r) / (1 - r)) * t.ppf(0.975, BATCHES - 2)
    assert found.slope_per_s == pytest.approx(fit.slope, rel=5e-3, abs=1e-4)
    assert found.ci95 == pytest.approx(half, rel=5e-3)
    between = int(((arrived >= 10) & (arrived < 90)).sum())
    assert found.material_per_s == pytest.approx(max(5, MATERIAL_GROWTH * between) / 80)


def test_a_line_that_grows_evenly_is_known_exactly() -> None:
    """Two arrive each second and nobody is served: 2/s, without scatter beyond the steps of the count."""
    arrived = np.arange(0, 400) / 2
    found = queue_trend(arrived, np.full(400, np.inf), 0.0, 200.0)
    assert found.slope_per_s == pytest.approx(2.0, rel=1e-9)
    assert found.ci95 == pytest.approx(0.0, abs=1e-9)
    assert found.grows
    assert is_saturated(arrived, np.full(400, np.inf), 0.0, 200.0)
    assert not is_saturated(arrived, arrived + 1.0, 0.0, 200.0)


def test_what_comes_at_once_has_no_trend() -> None:
    found = queue_trend(np.zeros(9), np.full(9, np.inf), 0.0, 0.0)
    assert (found.slope_per_s, found.ci95, found.material_per_s) == (0.0, 0.0, math.inf)
    assert not found.grows


def test_growth_that_matters_is_a_share_of_the_arrivals_between() -> None:
    """40 arrive each second for 100 s, 3,200 of them between 10 and 90 s: 16 of those in 80 s."""
    arrived = np.arange(4000) / 40
    found = queue_trend(arrived, arrived + 1.0, 10.0, 90.0)
    assert found.material_per_s == pytest.approx(MATERIAL_GROWTH * 3200 / 80)
