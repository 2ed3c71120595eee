"""A quantity over one axis, interpolated between probes, and the checks of its probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError

Lookup = Literal["linear", "floor", "ceil"]

Beyond = Literal["clamp", "last-slope"]

_TABLE_LIMIT = 2**16
"""Integers below this are looked up in a table, because step loops ask for them; others are computed."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A non-negative piecewise function of one axis, with its lookup and its behaviour beyond the end.

    ``linear`` interpolates, ``floor`` takes the last point at or below, ``ceil`` the first at or above
    (a batch padded to the captured size). Below the first point the value is clamped; above the last
    it is clamped or follows the slope of the last two points. ``floor`` and ``ceil`` always clamp.
    """

    at: Floats
    value: Floats
    lookup: Lookup = "linear"
    beyond: Beyond = "clamp"
    _table: list[Floats] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.lookup not in ("linear", "floor", "ceil"):
            raise BadInputError(
                "is not a lookup", field="lookup", value=self.lookup, remedy="linear, floor or ceil"
            )
        if self.beyond not in ("clamp", "last-slope"):
            raise BadInputError(
                "is not known", field="beyond", value=self.beyond, remedy="clamp or last-slope"
            )
        if self.beyond == "last-slope" and (self.lookup != "linear" or len(self.at) < 2):
            raise BadInputError("needs a linear lookup and two points", field="beyond", value=self.beyond)
        self.at.flags.writeable = self.value.flags.writeable = False

    def __call__(self, x: float) -> float:
        """Return the value at ``x``."""
        if isinstance(x, int) and 0 <= x < _TABLE_LIMIT:
            return float(self.span(x, x + 1)[0])
        return float(self._evaluate(np.asarray(x, dtype=np.float64)))

    def span(self, first: int, stop: int) -> Floats:
        """Return the values at the integers first..stop - 1, as a read-only view into a table filled once."""
        if not self._table or stop > len(self._table[0]):
            size = max(1024, 2 * stop)
            table = self._evaluate(np.arange(size, dtype=np.float64))
            table.flags.writeable = False
            self._table[:] = [table]
        return self._table[0][first:stop]

    def outside(self, x: float) -> bool:
        """Whether ``x`` lies beyond the points."""
        return bool(x < self.at[0] or x > self.at[-1])

    def _evaluate(self, x: Floats) -> Floats:
        if self.lookup == "floor":
            return self.value[np.clip(np.searchsorted(self.at, x, side="right") - 1, 0, None)]
        if self.lookup == "ceil":
            return self.value[np.clip(np.searchsorted(self.at, x, side="left"), None, len(self.at) - 1)]
        inside = np.interp(x, self.at, self.value)
        if self.beyond == "clamp":
            return np.asarray(inside)
        slope = (self.value[-1] - self.value[-2]) / (self.at[-1] - self.at[-2])
        return np.asarray(inside + slope * np.maximum(x - self.at[-1], 0.0))


def axis(points: ArrayLike, name: str) -> Floats:
    """Return a checked axis, float64: at least one point, finite, not negative, strictly increasing."""
    array = _one_dimensional(points, name)
    if np.any(array < 0):
        raise BadInputError("must not be negative", field=name, value=float(array.min()))
    steps = np.diff(array)
    if np.any(steps <= 0):
        where = int(np.argmax(steps <= 0))
        raise BadInputError(
            "must be strictly increasing",
            field=f"{name}[{where + 1}]",
            value=float(array[where + 1]),
            remedy=f"it follows {array[where]:g}; sort the points and drop repeats, or let "
            "`dspark-sim profile repair` do so",
        )
    return array


def values(points: ArrayLike, name: str, *, like: Floats) -> Floats:
    """Return checked values, float64: finite, not negative, one per point of the axis."""
    array = _one_dimensional(points, name)
    if array.shape != like.shape:
        raise BadInputError(f"needs {len(like)} values, one per axis point", field=name, value=len(array))
    if np.any(array < 0):
        raise BadInputError("must not be negative", field=name, value=float(array.min()))
    return array


def _one_dimensional(points: ArrayLike, name: str) -> Floats:
    try:
        array = np.array(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInputError("must be numbers", field=name, value=points) from error
    if array.ndim != 1 or array.size == 0:
        raise BadInputError("must be a list of at least one number", field=name, value=points)
    if not np.all(np.isfinite(array)):
        where = int(np.argmin(np.isfinite(array)))
        raise BadInputError("must be finite", field=f"{name}[{where}]", value=float(array[where]))
    return array


def refuse_rising(tokens: Floats, rate: Floats) -> None:
    """Refuse a table in which a larger batch is faster."""
    rises = np.diff(rate) > 0
    if np.any(rises):
        where = int(np.argmax(rises))
        raise BadInputError(
            f"rises from {rate[where]:g} to {rate[where + 1]:g} at {tokens[where + 1]:g} batch tokens",
            field=f"steps_per_s[{where + 1}]",
            remedy="a larger batch cannot step faster: measure that point again, or let "
            "`dspark-sim profile repair` (simulator.cost.fit.monotone) smooth what is noise",
        )


def refuse_falling(probes: Floats, times: Floats, name: str) -> None:
    """Refuse probes in which more work takes less time."""
    falls = np.diff(times) < 0
    if np.any(falls):
        where = int(np.argmax(falls))
        raise BadInputError(
            f"falls from {times[where]:g} to {times[where + 1]:g} as the axis grows to {probes[where + 1]:g}",
            field=f"{name}[{where + 1}]",
            remedy="more work cannot take less time: measure that point again",
        )


def if_possible(beyond: Beyond, probes: Floats) -> Beyond:
    """Return ``beyond``, or ``clamp`` for a single probe, which gives no slope."""
    return beyond if len(probes) > 1 else "clamp"
