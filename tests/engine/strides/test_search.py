"""The compiled search against the one in NumPy, and its packed tallies against plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.core.arrays import Rows
from simulator.cost.models import ThroughputCurve
from simulator.engine.strides import search
from simulator.engine.strides.flat_cost import LARGEST, flatten
from simulator.engine.strides.search import A_BUCKET, CHUNK, FEW, MOST_BUCKETS, Grid, Scratch
from simulator.schedulers.search import GRID, admit, best_budget

callable_from_python: Callable[..., Any] = numba.njit(error_model="numpy")
"""As ``jit.compiled``, and not kept on disk."""

SPREADS = ("even", "certain", "none", "alike", "clustered", "edges")


@callable_from_python
def counted(grid: Grid, bits: int, memory: Scratch, many: Rows, total: Rows) -> None:
    """Numbers and sums by bucket, unpacked."""
    search._count(grid, bits, memory)
    for bucket in range(many.size):
        many[bucket], total[bucket] = search._counted(memory, bucket, bits)


@callable_from_python
def decided(grid: Grid, requests: int, lengths: Rows, memory: Scratch) -> int:
    """Budget, and lengths of it."""
    budget = search.best_budget(grid, requests, memory)
    search.admit(grid, requests, budget, lengths, memory)
    return budget


@callable_from_python
def admitted(grid: Grid, requests: int, budget: int, lengths: Rows, memory: Scratch) -> None:
    search.admit(grid, requests, budget, lengths, memory)


@callable_from_python
def ordered(grid: Grid, memory: Scratch) -> None:
    search.order(grid, memory)


@callable_from_python
def bucket_bits(candidates: int) -> int:
    return search.bucket_bits(candidates)


def survivals(draw: np.random.Generator, spread: str, size: int) -> Grid:
    """Candidates in grid units, in no order."""
    if spread == "certain":
        return np.full(size, GRID, dtype=np.int32)
    if spread == "none":
        return np.zeros(size, dtype=np.int32)
    if spread == "alike":
        return np.full(size, draw.integers(0, GRID + 1), dtype=np.int32)
    if spread == "clustered":
        return (GRID - draw.geometric(1e-5, size)).clip(0, GRID).astype(np.int32)
    if spread == "edges":  # the first and the last value of a bucket, whatever its width
        edge = draw.integers(0, 9, size) << 27
        return (edge - draw.integers(0, 2, size)).clip(0, GRID).astype(np.int32)
    return draw.integers(0, GRID + 1, size).astype(np.int32)


def assert_counted(grid: Grid, bits: int) -> None:
    buckets = (GRID >> bits) + 1
    many, total = np.zeros(buckets, dtype=np.int64), np.zeros(buckets, dtype=np.int64)
    counted(grid, bits, search.scratch(grid.size), many, total)
    assert_array_equal(many, np.bincount(grid >> bits, minlength=buckets))
    # of a bucket's values above its first: NumPy adds weights in float64, which holds them
    above = np.bincount(grid >> bits, grid & ((1 << bits) - 1), buckets).astype(np.int64)
    assert_array_equal(total, above + many * (np.arange(buckets) << bits))


@pytest.mark.parametrize("spread", SPREADS)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 3000))
def test_a_tally_holds_how_many_and_how_much(spread: str, seed: int, size: int) -> None:
    grid = survivals(np.random.default_rng(seed), spread, size)
    assert_counted(grid, bucket_bits(size))


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="four million candidates, one by one")
@pytest.mark.parametrize("value", [0, 2**19 - 1, GRID - 1, GRID])
def test_a_tally_holds_the_largest_batch_in_one_bucket(value: int) -> None:
    """Also where all of them have every low bit set."""
    assert_counted(np.full(LARGEST - 1, value, dtype=np.int32), bucket_bits(LARGEST - 1))


def test_low_bits_never_reach_the_number_of_candidates() -> None:
    """At every size at which buckets become narrower, and at the largest there is."""
    sizes = [A_BUCKET * 2**power + one for power in range(21) for one in (0, 1)]
    for size in [1, 2, *(size for size in sizes if size < LARGEST), LARGEST - 1]:
        bits = bucket_bits(size)
        assert GRID >> bits <= MOST_BUCKETS
        assert size * ((1 << bits) - 1) < 1 << search._SUM
    assert np.iinfo(np.int64).max == (LARGEST << search._SUM) - 1  # one candidate less, and a full sum


def test_larger_batches_than_tallies_hold_are_left_to_python() -> None:
    cost = ThroughputCurve([1, 2], [100, 90])
    assert flatten(cost, 1, LARGEST + 1) is None


def random_times(draw: np.random.Generator, size: int) -> Any:
    """Step times of every budget: some rise, some have stairs, some fall here and there."""
    kind = draw.integers(3)
    rises = draw.uniform(0, 1e-5, size) if kind == 0 else draw.choice([0.0, 1e-4], size, p=[0.95, 0.05])
    if kind == 2:
        rises[draw.random(size) < 0.01] = -1e-6
    return 0.008 + np.cumsum(rises)


@pytest.mark.parametrize("spread", SPREADS)
@given(seed=st.integers(0, 2**32), requests=st.integers(1, 400), gamma=st.integers(1, 9))
def test_decisions_are_those_of_numpy(spread: str, seed: int, requests: int, gamma: int) -> None:
    """Budget, lengths and order: also of blocks whose survival rises, which no drafter has."""
    draw = np.random.default_rng(seed)
    size = requests * gamma
    grid, memory = survivals(draw, spread, size), search.scratch(size)
    memory.time_s[: size + 1] = random_times(draw, size + 1)
    lengths = np.full(requests + 1, -1, dtype=np.int64)  # one more than the batch has
    budget = decided(grid, requests, lengths, memory)
    block = grid.reshape(requests, gamma)
    assert budget == best_budget(block, requests, memory.time_s[: size + 1])
    assert_array_equal(lengths[:-1], admit(block, budget))
    budget = int(draw.integers(0, size + 1))
    admitted(grid, requests, budget, lengths, memory)
    assert_array_equal(lengths[:-1], admit(block, budget))
    assert lengths[-1] == -1
    ordered(grid, memory)
    assert_array_equal(memory.ordered, np.sort(grid)[::-1])


@pytest.mark.parametrize("size", [FEW, FEW + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 1])
def test_the_last_candidates_are_looked_at_as_well(size: int) -> None:
    """Whether the last chunk is full, short or one candidate: the only one that pays is the last."""
    grid, memory = np.zeros(size, dtype=np.int32), search.scratch(size)
    grid[-1] = GRID // 2
    memory.time_s[: size + 1] = 0.008 + 1e-6 * np.arange(size + 1)
    lengths = np.zeros(size, dtype=np.int64)
    assert decided(grid, size, lengths, memory) == 1
    assert_array_equal(lengths, grid > 0)
