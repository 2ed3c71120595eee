"""A log gives back what it was given, to the bit, in few bytes."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.core import arrays
from simulator.core.arrays import PACKED_ROWS, Exceptions, Expectation, Floats, Following, Log, Plain, pack

NAMES = ("ends", "took", "gaps", "counts", "ids", "few", "rare", "odd")


def expected(name: str, column: Callable[[str], Floats]) -> Expectation | None:
    if name == "ends":
        return Following(column("took"))
    return np.diff(column("ends"), prepend=0.0) if name == "gaps" else None


def table(rows: int) -> Floats:
    """Columns of every kind: what mostly is as expected, counts, few values, rare, odd ones."""
    draw = np.random.default_rng(rows)
    took = draw.exponential(1.0, rows)
    ends = np.add.accumulate(np.where(draw.random(rows) < 0.04, took + 1.0, took))
    gaps = np.diff(ends, prepend=0.0)
    gaps[draw.random(rows) < 0.02] = 0.25
    few = draw.choice(draw.random(20), rows)
    rare = np.where(draw.random(rows) < 0.01, draw.random(rows), 0.0)
    odd = draw.choice([0.0, -0.0, np.nan, np.inf, -1.0, 2.0**53 - 1, 2.0**32, 1e-300, 0.5, 7.0], rows)
    ids = 70_000 + np.cumsum(draw.integers(-3, 9, rows))
    return np.column_stack([ends, took, gaps, draw.integers(0, 300, rows), ids, few, rare, odd])


def same_bits(one: Floats, other: Floats) -> None:
    assert_array_equal(np.ascontiguousarray(one).view(np.int64), np.ascontiguousarray(other).view(np.int64))


@pytest.mark.parametrize("taken", [1, 3, 17, 200])
def test_a_log_gives_back_every_bit(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PACKED_ROWS", 32)
    monkeypatch.setattr(arrays, "ROWS_PER_BREAK", 8)
    rows, log = table(150), Log(NAMES, expected)
    for first in range(0, len(rows), taken):
        if taken == 1:
            log.append(*rows[first])
        else:
            log.extend(rows[first : first + taken])
    assert len(log) == len(rows)
    for _ in range(2):
        same_bits(log.table(), rows)
        for at, name in enumerate(NAMES):
            same_bits(log.column(name), rows[:, at])
        log = pickle.loads(pickle.dumps(log))
    log.clear()
    assert (len(log), log.table().shape, log.column("few").size) == (0, (0, len(NAMES)), 0)


ROWS = np.arange(PACKED_ROWS)


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        (np.zeros(PACKED_ROWS), 0.0),
        (ROWS % 256.0, 1.0),
        (ROWS % 257.0, 2.0),
        (ROWS + 2.0**17, 1.0),  # by their differences, as the next two
        (ROWS * 128 + 2.0**17, 2.0),
        (2.0**17 - ROWS, 1.0),
        (ROWS * 2.0**16, 4.0),
        (ROWS + 2.0**33, 8.0),
        (ROWS % 64 + 0.5, 2 + 64 * 8 / PACKED_ROWS),
        (np.where(ROWS % 8, 0.0, 0.1 + ROWS), 10 / 8),
    ],
)
def test_numbers_take_as_few_bytes_as_their_kind_needs(numbers: Floats, size: float) -> None:
    packed = pack(numbers, np.zeros(PACKED_ROWS))
    assert packed.nbytes == size * PACKED_ROWS
    same_bits(packed.numbers(np.zeros(PACKED_ROWS)), numbers)


def test_a_zero_that_is_negative_is_kept() -> None:
    numbers = np.full(PACKED_ROWS, -0.0)
    same_bits(pack(numbers, np.zeros(PACKED_ROWS)).numbers(np.zeros(PACKED_ROWS)), numbers)


@pytest.mark.parametrize("breaks", [0, 1, 128, 129])
def test_what_follows_from_the_number_before_takes_no_bytes(breaks: int) -> None:
    """Sums of increments that start anew here and there; where that is often, each number is kept."""
    draw = np.random.default_rng(breaks)
    increments, numbers = draw.exponential(1e-3, PACKED_ROWS), []
    anew = set(draw.choice(PACKED_ROWS, breaks, replace=False).tolist())
    at = 0.0
    for row, increment in enumerate(increments.tolist()):
        at = draw.random() if row in anew else at + increment
        numbers.append(at)
    packed = pack(np.array(numbers), Following(increments.copy()))
    assert isinstance(packed, Exceptions if breaks <= 128 else Plain)
    assert packed.nbytes == (10 * breaks if breaks <= 128 else 8 * PACKED_ROWS)
    same_bits(packed.numbers(Following(increments.copy())), np.array(numbers))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats(), st.booleans()), min_size=1, max_size=40))
def test_any_bits_follow_any_increments(rows: list[tuple[float, float, bool]]) -> None:
    """NaN of any sign and payload, infinities, zeros of both signs: as numbers and as increments."""
    numbers, increments, follows = (np.array(column) for column in zip(*rows, strict=True))
    with np.errstate(invalid="ignore", over="ignore"):
        for row in np.flatnonzero(follows[1:]) + 1:
            numbers[row] = numbers[row - 1] + increments[row]
        patch = pytest.MonkeyPatch()
        with patch.context() as context:
            context.setattr(arrays, "ROWS_PER_BREAK", 1)
            packed = Exceptions.of(numbers, Following(increments.copy()))
        assert packed is not None
        assert packed.nbytes <= 10 * (np.count_nonzero(~follows[1:] | np.isnan(numbers[1:])) + 1)
        same_bits(packed.numbers(Following(increments.copy())), numbers)
        same_bits(pack(numbers, increments).numbers(increments.copy()), numbers)
