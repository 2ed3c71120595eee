"""What the early stop of Algorithm 1 gives away, against brute force and hand calculation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from simulator.cost.models import ThroughputCurve
from simulator.schedulers.early_stop import (
    MATERIAL_LOSS,
    WatchedDSpark,
    early_stop_loss,
    early_stop_note,
    watched,
)
from simulator.schedulers.policies import DSpark, DSparkAsync
from simulator.schedulers.protocol import Batch


def expected_throughput(lengths: tuple[int, ...], survival: np.ndarray, steps_per_s: np.ndarray) -> float:
    """Tokens per second by definition. steps_per_s: [rows], the first entry of one row."""
    requests = len(lengths)
    tokens = requests + sum(float(survival[r, :n].sum()) for r, n in enumerate(lengths))
    return tokens * float(steps_per_s[requests + sum(lengths) - 1])


def test_the_loss_of_one_step_by_hand() -> None:
    """One row runs 100 times a second, two to eight rows 49 times.

    A first draft token that survives with 0.95 would give 1.95 x 49 = 95.6 < 100 tokens/s: the early stop
    verifies nothing. All six give 49 x (1 + 0.95 + ... + 0.95^6) = 246.0.
    """
    survival = np.cumprod(np.full((1, 6), 0.95), axis=1)
    stairs = ThroughputCurve([1, 8], [100.0, 49.0], lookup="ceil")
    scheduler = WatchedDSpark()
    assert scheduler.schedule(survival, Batch(stairs)).tolist() == [0]
    loss = 1 - 100 / (49 * (1 - 0.95**7) / 0.05)
    assert scheduler.lost == pytest.approx(loss, rel=1e-7)
    scheduler.schedule(survival, Batch(stairs))
    smooth = ThroughputCurve([1, 8], [100.0, 90.0])
    scheduler.schedule(survival, Batch(smooth))
    assert early_stop_loss(scheduler) == pytest.approx(2 * loss / 3)  # the third step lost nothing


@pytest.mark.parametrize("seed", range(40))
def test_the_loss_is_the_one_that_brute_force_finds(seed: int) -> None:
    """Two or three requests, blocks of two or three, any falling curve: every vector of lengths is tried."""
    draw = np.random.default_rng(seed)
    requests, gamma = int(draw.integers(2, 4)), int(draw.integers(2, 4))
    survival = np.cumprod(draw.uniform(0.2, 1.0, (requests, gamma)), axis=1)
    rows = requests * (gamma + 1)
    rate = 100 * np.cumprod(np.where(draw.random(rows) < 0.4, draw.uniform(0.5, 0.9, rows), 1.0))
    lengths = DSpark().schedule(survival, batch := Batch(ThroughputCurve(np.arange(1, rows + 1), rate)))
    best = max(
        expected_throughput(each, survival, rate) for each in product(range(gamma + 1), repeat=requests)
    )
    scheduler = WatchedDSpark()
    assert scheduler.schedule(survival, batch).tolist() == lengths.tolist()
    expected = 1 - expected_throughput(tuple(lengths.tolist()), survival, rate) / best
    assert early_stop_loss(scheduler) == pytest.approx(expected, abs=1e-8)


def test_only_what_stops_early_is_watched() -> None:
    other = DSparkAsync()
    assert watched(other) is other
    assert early_stop_loss(other) is None
    assert type(watched(DSpark())) is WatchedDSpark
    assert early_stop_loss(watched(DSpark())) is None  # no step yet


def test_small_losses_are_not_worth_a_word() -> None:
    assert early_stop_note("dspark", None, "here") is None
    assert early_stop_note("dspark", 0.009, "here") is None
    note = early_stop_note("dspark", 0.254, "at 60 requests")
    assert note is not None
    assert note.startswith("dspark gives away 25% of a step's expected throughput at 60 requests")
    assert note.endswith("dspark-async searches all budgets")
    assert early_stop_note("dspark", MATERIAL_LOSS, "here") is not None
