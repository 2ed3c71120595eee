"""A log gives back what it was given, to the bit, in few bytes."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from simulator.core import arrays
from simulator.core.arrays import PACKED_ROWS, Floats, Log, Packed

NAMES = ("ends", "gaps", "counts", "few", "rare", "odd")


def expected(name: str, column: Callable[[str], Floats]) -> Floats | None:
    return np.diff(column("ends"), prepend=0.0) if name == "gaps" else None


def table(rows: int) -> Floats:
    """Columns of every kind: any numbers, what mostly is as expected, counts, few values, rare, odd."""
    draw = np.random.default_rng(rows)
    ends = np.cumsum(draw.exponential(1.0, rows))
    gaps = np.diff(ends, prepend=0.0)
    gaps[draw.random(rows) < 0.02] = 0.25
    few = draw.choice(draw.random(20), rows)
    rare = np.where(draw.random(rows) < 0.01, draw.random(rows), 0.0)
    odd = draw.choice([0.0, -0.0, np.nan, np.inf, -1.0, 2.0**53 - 1, 2.0**32, 1e-300, 0.5, 7.0], rows)
    return np.column_stack([ends, gaps, draw.integers(0, 300, rows), few, rare, odd])


def same_bits(one: Floats, other: Floats) -> None:
    assert_array_equal(np.ascontiguousarray(one).view(np.int64), np.ascontiguousarray(other).view(np.int64))


@pytest.mark.parametrize("taken", [1, 3, 17, 200])
def test_a_log_gives_back_every_bit(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PACKED_ROWS", 32)
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


@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        (np.zeros(PACKED_ROWS), 0.0),
        (np.arange(PACKED_ROWS) % 256.0, 1.0),
        (np.arange(PACKED_ROWS) % 257.0, 2.0),
        (np.arange(PACKED_ROWS) + 2.0**17, 4.0),
        (np.arange(PACKED_ROWS) + 2.0**33, 8.0),
        (np.arange(PACKED_ROWS) % 64 + 0.5, 2 + 64 * 8 / PACKED_ROWS),
        (np.where(np.arange(PACKED_ROWS) % 8, 0.0, 0.1 + np.arange(PACKED_ROWS)), 10 / 8),
    ],
)
def test_numbers_take_as_few_bytes_as_their_kind_needs(numbers: Floats, size: float) -> None:
    packed = Packed.of(numbers, np.zeros(PACKED_ROWS))
    parts = (packed.values, packed.codes, packed.places)
    assert sum(part.nbytes for part in parts if part is not None) == size * PACKED_ROWS
    same_bits(packed.numbers(np.zeros(PACKED_ROWS)), numbers)


def test_a_zero_that_is_negative_is_kept() -> None:
    numbers = np.full(PACKED_ROWS, -0.0)
    same_bits(Packed.of(numbers, np.zeros(PACKED_ROWS)).numbers(np.zeros(PACKED_ROWS)), numbers)
