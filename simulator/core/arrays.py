"""Names of array types that all packages share, and a log of numbers that takes few bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Array = Any  # an array of any array-API namespace: NumPy or torch

Rows = NDArray[np.int64]

PACKED_ROWS = 16_384
"""Rows that are packed at once: places among them fit into two bytes. A choice."""

ROWS_PER_BREAK = 128
"""Rows for each number that does not follow from the one before: Python sums the rows between two such at a
time. A choice."""


@dataclass(frozen=True, slots=True)
class Following:
    """Expects each number to be the one before it plus an increment, [n]; the first, its increment."""

    increments: Floats

    def after(self, numbers: Floats) -> Floats:
        """Return what is expected, given the numbers."""
        expected = self.increments.copy()
        expected[1:] += numbers[:-1]
        return expected

    def between(self, places: NDArray[Any], values: Floats) -> Floats:
        """Return all numbers, given those that are not as expected; they take the increments' place."""
        numbers = self.increments
        numbers[places] = values
        for first, end in pairwise((0, *places.tolist(), numbers.size)):
            np.add.accumulate(numbers[first:end], out=numbers[first:end])
        return numbers


Expectation = Floats | Following

Expected = Callable[[str, Callable[[str], Floats]], Expectation | None]
"""What a column most likely holds, given its name and the columns that do not depend on it; None: 0.

Numbers are written over what it returns, so it makes that anew each time.
"""


@dataclass(frozen=True, slots=True)
class Plain:
    """Numbers as they are, or in a small type where they are whole."""

    values: NDArray[Any]

    @classmethod
    def of(cls, numbers: Floats) -> Plain:
        """Pack any numbers, [n]."""
        whole = _whole(numbers)
        return cls(numbers.copy() if whole is None else whole)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.values.nbytes

    def numbers(self, _: Expectation) -> Floats:
        """Return the numbers."""
        return self.values.astype(np.float64)  # a copy: expectations are written over


@dataclass(frozen=True, slots=True)
class Differences:
    """Whole numbers, by how much each exceeds the one before, in one or two bytes. values: [n], 0 first."""

    first: int
    values: NDArray[Any]

    @classmethod
    def of(cls, whole: NDArray[Any]) -> Differences | None:
        """Pack whole numbers below 2^32, [n]; None where differences need more than two bytes."""
        values = np.diff(whole.astype(np.int64), prepend=np.int64(whole[0]))
        for kind in (np.int8, np.int16):
            if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
                return cls(int(whole[0]), values.astype(kind))
        return None

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.values.nbytes

    def numbers(self, _: Expectation) -> Floats:
        """Return the numbers."""
        numbers = self.values.astype(np.float64)
        numbers[0] = self.first
        return np.add.accumulate(numbers, out=numbers)


@dataclass(frozen=True, slots=True)
class Coded:
    """Few values, and for each number which of them it is. codes: [n]."""

    values: Floats
    codes: NDArray[np.uint16]

    @classmethod
    def of(cls, numbers: Floats) -> Coded:
        """Pack any numbers, [n]."""
        bits, codes = np.unique(numbers.view(np.int64), return_inverse=True)
        return cls(bits.view(np.float64), codes.astype(np.uint16))

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.values.nbytes + self.codes.nbytes

    def numbers(self, _: Expectation) -> Floats:
        """Return the numbers."""
        return self.values[self.codes]


@dataclass(frozen=True, slots=True)
class Exceptions:
    """The numbers that are not as expected, and where they stand."""

    values: Floats
    places: NDArray[np.uint16]

    @classmethod
    def of(cls, numbers: Floats, expected: Expectation) -> Exceptions | None:
        """Pack any numbers, [n]; None where so many differ that putting them together would take long."""
        likely = expected.after(numbers) if isinstance(expected, Following) else expected
        # As bits: NaN is as expected where NaN is expected, and 0 is not -0.
        differ = numbers.view(np.int64) != likely.view(np.int64)
        if isinstance(expected, Following):
            differ |= np.isnan(numbers)  # which NaN a sum is depends on the order of its terms
            if np.count_nonzero(differ) * ROWS_PER_BREAK > numbers.size:
                return None
        places = np.flatnonzero(differ)
        return cls(numbers[places], places.astype(np.uint16))

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self.values.nbytes + self.places.nbytes

    def numbers(self, expected: Expectation) -> Floats:
        """Return the numbers, in place of ``expected``: what it was when they were packed."""
        if isinstance(expected, Following):
            return expected.between(self.places, self.values)
        expected[self.places] = self.values
        return expected


Packed = Plain | Differences | Coded | Exceptions
"""Float64 numbers in fewer bytes, exactly."""


def pack(numbers: Floats, expected: Expectation) -> Packed:
    """Pack up to ``PACKED_ROWS`` numbers, [n], as what takes the fewest bytes."""
    found: Packed | None = Exceptions.of(numbers, expected)
    if found is not None and found.nbytes < numbers.size:
        return found  # less than a byte for each
    plain = Plain.of(numbers)
    if found is None or plain.nbytes <= found.nbytes:
        found = plain
    if plain.values.itemsize in (2, 4):
        other: Packed | None = Differences.of(plain.values)
    else:  # numbering takes a sort
        other = Coded.of(numbers) if found.nbytes == numbers.nbytes else None
    return found if other is None or found.nbytes <= other.nbytes else other


def _whole(numbers: Floats) -> NDArray[Any] | None:
    """Return the numbers in the smallest type of whole numbers that holds them all; None where none does."""
    least, most = numbers.min(), numbers.max()
    if not (least >= 0 and most < 2**32):  # or NaN
        return None
    whole = numbers.astype(np.min_scalar_type(int(most)))
    same = np.array_equal(whole.astype(np.float64).view(np.int64), numbers.view(np.int64))
    return whole if same else None


class Part(NamedTuple):
    """Some rows of a log that follow each other. column: copies one column of them, [rows]."""

    rows: int
    column: Callable[[str], Floats]


class Log:
    """Rows of float64 numbers, appended one after the other; all but the latest are packed, exactly."""

    __slots__ = ("_expected", "_latest", "_packed", "names")

    def __init__(self, names: Sequence[str], expected: Expected = lambda *_: None) -> None:
        """Make an empty log. names: of the columns. expected: see ``Expected``; it must be picklable."""
        self.names = tuple(names)
        self._expected = expected
        self._packed: list[Mapping[str, Packed]] = []
        self._latest = array("d")

    def __len__(self) -> int:
        """Count the rows."""
        return PACKED_ROWS * len(self._packed) + len(self._latest) // len(self.names)

    def append(self, *numbers: float) -> None:
        """Append a row, given by its numbers in order of the names."""
        self._latest.extend(numbers)
        self._pack()

    def extend(self, rows: Floats) -> None:
        """Append rows, float64 [n, names]."""
        self._latest.frombytes(rows.tobytes())
        self._pack()

    def parts(self) -> Iterator[Part]:
        """Return all rows in parts, the latest last: whoever reads part by part holds no whole column."""
        return map(self.part, range(self.ended + 1))

    @property
    def ended(self) -> int:
        """Count the parts to which no row is added any more."""
        return len(self._packed)

    def part(self, at: int) -> Part:
        """Return a part by its number; that of the latest rows is ``ended``."""
        if at < len(self._packed):
            return Part(PACKED_ROWS, partial(self._unpacked, self._packed[at]))
        return Part(len(self._latest) // len(self.names), self._recent)

    def column(self, name: str, kind: type[np.generic] = np.float64) -> NDArray[Any]:
        """Copy one column, [rows], into an array of some kind."""
        column, end = np.empty(len(self), dtype=kind), 0
        for part in self.parts():
            column[end : end + part.rows] = part.column(name)
            end += part.rows
        return column

    def table(self) -> Floats:
        """Copy the log into float64 [rows, names]."""
        table = np.empty((len(self), len(self.names)))
        for at, name in enumerate(self.names):
            table[:, at] = self.column(name)
        return table

    def clear(self) -> None:
        """Forget all rows."""
        del self._packed[:], self._latest[:]

    def _rows(self) -> Floats:
        """Look at the latest rows: the log cannot grow as long as one looks."""
        return np.frombuffer(self._latest, dtype=np.float64).reshape(-1, len(self.names))

    def _recent(self, name: str) -> Floats:
        if not self._latest:
            return np.zeros(0)
        return self._rows()[:, self.names.index(name)].copy()

    def _pack(self) -> None:
        if len(self._latest) < PACKED_ROWS * len(self.names):
            return
        rows = self._rows()
        taken = len(rows) - len(rows) % PACKED_ROWS
        for first in range(0, taken, PACKED_ROWS):
            columns = dict(zip(self.names, rows[first : first + PACKED_ROWS].T.copy(), strict=True))
            self._packed.append(
                {
                    name: pack(numbers, self._expectation(name, columns.__getitem__))
                    for name, numbers in columns.items()
                }
            )
        del rows
        del self._latest[: taken * len(self.names)]

    def _unpacked(self, chunk: Mapping[str, Packed], name: str) -> Floats:
        return chunk[name].numbers(self._expectation(name, partial(self._unpacked, chunk)))

    def _expectation(self, name: str, column: Callable[[str], Floats]) -> Expectation:
        expected = self._expected(name, column)
        return np.zeros(PACKED_ROWS) if expected is None else expected
