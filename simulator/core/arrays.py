"""Names of array types that all packages share, and a log of numbers that takes few bytes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Array = Any  # an array of any array-API namespace: NumPy or torch

Rows = NDArray[np.int64]

PACKED_ROWS = 16_384
"""Rows that are packed at once: places among them fit into two bytes. A choice."""

Expected = Callable[[str, Callable[[str], Floats]], Floats | None]
"""What a column most likely holds, given its name and the columns that do not depend on it; None: 0."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Float64 numbers in fewer bytes, exactly.

    values: the numbers themselves, in a small type where they are whole; or, where there are ``codes``, what
    these number; or, where there are ``places``, the numbers that are not as expected.
    """

    values: NDArray[Any]
    codes: NDArray[np.uint16] | None = None
    places: NDArray[np.uint16] | None = None

    @classmethod
    def of(cls, numbers: Floats, expected: Floats) -> Packed:
        """Pack up to ``PACKED_ROWS`` numbers, [n], as what takes the fewest bytes."""
        whole = _whole(numbers)
        values = numbers.copy() if whole is None else whole
        # As bits: NaN is as expected where NaN is expected, and 0 is not -0.
        places = np.flatnonzero(numbers.view(np.int64) != expected.view(np.int64))
        if 10 * places.size < values.nbytes:
            return cls(numbers[places], places=places.astype(np.uint16))
        if whole is None:
            bits, codes = np.unique(numbers.view(np.int64), return_inverse=True)
            if 8 * bits.size + 2 * codes.size < values.nbytes:
                return cls(bits.view(np.float64), codes=codes.astype(np.uint16))
        return cls(values)

    def numbers(self, expected: Floats) -> Floats:
        """Return the numbers; ``expected`` is what it was when they were packed."""
        if self.places is not None:
            found = expected.copy()
            found[self.places] = self.values
            return found
        return np.asarray(self.values if self.codes is None else self.values[self.codes], dtype=np.float64)


def _whole(numbers: Floats) -> NDArray[Any] | None:
    """Return the numbers in the smallest type of whole numbers that holds them all; None where none does."""
    least, most = numbers.min(), numbers.max()
    if not (least >= 0 and most < 2**32):  # or NaN
        return None
    whole = numbers.astype(np.min_scalar_type(int(most)))
    same = np.array_equal(whole.astype(np.float64).view(np.int64), numbers.view(np.int64))
    return whole if same else None


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

    def column(self, name: str) -> Floats:
        """Copy one column, [rows]."""
        chunks = [self._unpacked(chunk, name) for chunk in self._packed]
        latest = self._rows()[:, self.names.index(name)].copy()
        return np.concatenate([*chunks, latest]) if chunks else latest

    def table(self) -> Floats:
        """Copy the log into float64 [rows, names]."""
        if not self._packed:
            return self._rows().copy()
        return np.column_stack([self.column(name) for name in self.names])

    def clear(self) -> None:
        """Forget all rows."""
        del self._packed[:], self._latest[:]

    def _rows(self) -> Floats:
        """Look at the latest rows: the log cannot grow as long as one looks."""
        if not self._latest:
            return np.zeros((0, len(self.names)))
        return np.frombuffer(self._latest, dtype=np.float64).reshape(-1, len(self.names))

    def _pack(self) -> None:
        if len(self._latest) < PACKED_ROWS * len(self.names):
            return
        rows = self._rows()
        taken = len(rows) - len(rows) % PACKED_ROWS
        for first in range(0, taken, PACKED_ROWS):
            columns = dict(zip(self.names, rows[first : first + PACKED_ROWS].T.copy(), strict=True))
            self._packed.append(
                {
                    name: Packed.of(numbers, self._expectation(name, columns.__getitem__))
                    for name, numbers in columns.items()
                }
            )
        del rows
        del self._latest[: taken * len(self.names)]

    def _unpacked(self, chunk: Mapping[str, Packed], name: str) -> Floats:
        return chunk[name].numbers(self._expectation(name, lambda other: self._unpacked(chunk, other)))

    def _expectation(self, name: str, column: Callable[[str], Floats]) -> Floats:
        expected = self._expected(name, column)
        return np.zeros(PACKED_ROWS) if expected is None else expected
