"""Fields of other programs' JSON, read as strictly as those programs do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.reading import parse_json, read_json
from simulator.cost.believed import NEVER_TRIMS, is_flat, row_spread
from simulator.cost.models import AdditiveCost, ThroughputCurve

LARGEST = 2**53
"""Integers beyond this are no counts: they would not even survive a conversion to float64."""


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object and where it stands; keys that nobody asks for are ignored.

    Numbers must be JSON numbers: ``true`` is none, ``8.0`` is no integer, NaN and infinities are refused.
    """

    source: str
    values: Mapping[str, object]

    def has(self, key: str) -> bool:
        """Whether the key is there with something in it; writers put ``null`` for what does not apply."""
        return self.values.get(key) is not None

    def whole(self, key: str) -> int:
        """Read an integer."""
        return self._integer(key, self._value(key))

    def number(self, key: str) -> float:
        """Read a finite number."""
        return self._finite(key, self._value(key))

    def flag(self, key: str) -> bool:
        """Read ``true`` or ``false``."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false", value)
        return value

    def text(self, key: str) -> str:
        """Read a string."""
        value = self._value(key)
        if not isinstance(value, str):
            raise self.error(key, "must be a string", value)
        return value

    def wholes(self, key: str) -> list[int]:
        """Read a list of integers."""
        return [self._integer(f"{key}[{index}]", item) for index, item in enumerate(self._items(key))]

    def numbers(self, key: str) -> list[float]:
        """Read a list of finite numbers."""
        return [self._finite(f"{key}[{index}]", item) for index, item in enumerate(self._items(key))]

    def record(self, key: str) -> Record:
        """Read a nested object."""
        value = self._value(key)
        if not isinstance(value, dict):
            raise self.error(key, "must be an object", value)
        return Record(f"{self.source}: {key}", value)

    def records(self, key: str) -> list[Record]:
        """Read a list of objects."""
        nested = []
        for index, item in enumerate(self._items(key)):
            if not isinstance(item, dict):
                raise self.error(f"{key}[{index}]", "must be an object", item)
            nested.append(Record(f"{self.source}: {key}[{index}]", item))
        return nested

    def error(self, key: str, problem: str, value: object = None, remedy: str | None = None) -> BadInputError:
        """Return a complaint about one field."""
        return BadInputError(problem, source=self.source, field=key, value=value, remedy=remedy)

    def _value(self, key: str) -> object:
        if key not in self.values:
            raise self.error(key, "is missing", remedy="export the file again with the engine's own tool")
        return self.values[key]

    def _items(self, key: str) -> list[object]:
        value = self._value(key)
        if not isinstance(value, list):
            raise self.error(key, "must be a list", value)
        return value

    def _integer(self, key: str, value: object) -> int:
        if type(value) is not int:
            raise self.error(key, "must be an integer", value)
        if abs(value) > LARGEST:
            raise self.error(key, f"must be at most {LARGEST}", remedy="export the file again")
        return value

    def _finite(self, key: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(key, "must be a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(key, "must be finite", value)
        return number


def read_record(path: Path) -> Record:
    """Read the JSON object in a file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadInputError("must be a JSON object", source=str(path), value=value)
    return Record(str(path), value)


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """JSON objects, one a line, with their line numbers; empty lines are passed over."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        value = parse_json(line, place, is_line=True)
        if not isinstance(value, dict):
            raise BadInputError("must be a JSON object", source=place, value=value)
        yield number, Record(place, value)


def read_text(path: Path) -> str:
    """Read an engine's text file; bytes that are not UTF-8, as in logs, become replacement characters."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", source=str(path)) from error


@contextmanager
def blaming(source: str) -> Iterator[None]:
    """Name the file in complaints of the objects built from it."""
    try:
        yield
    except BadInputError as error:
        if error.source is not None:
            raise
        raise BadInputError(
            error.problem, source=source, field=error.field, value=error.value, remedy=error.remedy
        ) from error


_Table = TypeVar("_Table", ThroughputCurve, AdditiveCost)


def refuse_flat(cost: _Table, field: str) -> _Table:
    """Return the cost, unless batch tokens hardly change it."""
    if is_flat(cost):
        raise BadInputError(
            f"varies by {row_spread(cost):.1%} over all batch tokens: {NEVER_TRIMS}",
            field=field, remedy="or pass allow_flat=True to see what it costs",
        )  # fmt: skip
    return cost


def signed_values(points: list[float], name: str, like: Floats) -> Floats:
    """One value per axis point; whether a negative one makes sense is for the cost model to say."""
    if len(points) != len(like):
        raise BadInputError(
            f"needs {len(like)} values, one per axis point", field=name, value=len(points),
            remedy="export the table again",
        )  # fmt: skip
    return np.array(points, dtype=np.float64)


def whole_points(points: Floats, field: str) -> list[int]:
    """Probe positions as the integers that a file must hold."""
    for index, point in enumerate(points):
        if not float(point).is_integer():
            raise BadInputError(
                "must be a whole number in this file", field=f"{field}[{index}]", value=float(point)
            )
    return [int(point) for point in points]


def refuse_extra_terms(cost: AdditiveCost, file_format: str) -> None:
    """Complain about parts of an additive cost for which a file has no place."""
    for term in ("context_s_per_token", "row_context_s_per_token", "prefill_s_per_token"):
        if getattr(cost, term):
            raise BadInputError(
                f"has no place in {file_format}",
                field=term,
                value=getattr(cost, term),
                remedy="fit without it, for the context lengths the engine will see",
            )
