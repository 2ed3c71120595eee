"""The quantities of a run that an SLA judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats
from simulator.sla.terms import Sla

GAP_RESOLUTION = 1.005
"""Gaps between deliveries are counted in classes half a percent wide. A choice."""

ROUNDING = 1e-9
"""Relative error that differences of clock times may have: a gap within it equals its bound. A choice."""


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """The part of a run that an SLA judges: measured requests in order of arrival, and their deliveries.

    requests: columns of ``engine.measures.recorded.RequestColumns``, ``e2e_s`` and ``deliveries``. gaps:
    classes of the time between two deliveries, [n] in seconds, and how often each occurred, [n], by the
    name of a traffic class.
    on_time: by bound of an itl term in seconds, the deliveries of each request within it, [requests].
    """

    requests: Mapping[str, NDArray[Any]]
    gaps: dict[str, tuple[Floats, Floats]]
    on_time: dict[float, NDArray[np.int64]]

    @property
    def count(self) -> int:
        """Requests observed."""
        return int(self.requests["request"].size)

    def as_row(self) -> dict[str, Any]:
        """Return nested plain values, the form in which a sweep keeps a cell."""
        return {
            "requests": {name: column.tolist() for name, column in self.requests.items()},
            "gaps": {name: [gap.tolist(), count.tolist()] for name, (gap, count) in self.gaps.items()},
            "on_time": [{"bound": bound, "count": count.tolist()} for bound, count in self.on_time.items()],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Observed:
        """Rebuild the run from the values of ``as_row``."""
        return cls(
            {name: _column(values) for name, values in row["requests"].items()},
            {name: (np.array(gap), np.array(count)) for name, (gap, count) in row["gaps"].items()},
            {each["bound"]: np.array(each["count"], dtype=np.int64) for each in row["on_time"]},
        )


def _column(values: Sequence[Any]) -> NDArray[Any]:
    """Return plain values as an array; texts stay Python's."""
    text = bool(values) and isinstance(values[0], str)
    return np.array(values, dtype=object if text else None)


def observe(requests: Mapping[str, NDArray[Any]], gap: Floats, sla: Sla) -> Observed:
    """Count deliveries per request and per traffic class.

    requests: from one engine, any part of its ``RequestColumns``. gap: [decode steps of that engine]
    time since the step before, which is the gap of a request that was in both; the gap before a request's
    first delivery is its own ``first_gap_s``.
    """
    first, deliveries = requests["first_step"], requests["decode_steps"]
    last, own = first + deliveries, requests["first_gap_s"]
    second = np.minimum(first + 1, last)
    on_time: dict[float, NDArray[np.int64]] = {}
    for term in sla.terms:
        if term.metric == "itl":
            bound = term.bound * (1 + ROUNDING)
            within = np.concatenate([[0], np.cumsum(gap <= bound)])
            on_time[term.bound] = within[last] - within[second] + (own <= bound)
    gaps = {}
    classes = requests["traffic_class"]
    for name in sorted(set(classes.tolist())):
        rows = np.flatnonzero(classes == name)
        # Requests in this step and in the one before: all that joined minus all that left.
        joined = np.bincount(second[rows], minlength=gap.size + 1)
        left = np.bincount(last[rows], minlength=gap.size + 1)
        mine = own[rows][deliveries[rows] > 0]
        count = np.concatenate([np.cumsum(joined - left)[: gap.size], np.ones(mine.size)])
        gaps[name] = tally(np.concatenate([gap, mine]), count)
    e2e_s = requests["finished_s"] - requests["queued_s"]
    return Observed({**requests, "e2e_s": e2e_s, "deliveries": deliveries}, gaps, on_time)


def tally(gap_s: Floats, count: NDArray[Any]) -> tuple[Floats, Floats]:
    """Count gaps in classes ``GAP_RESOLUTION`` wide; returns the classes and the counts."""
    seen = (count > 0) & (gap_s > 0)
    index = np.round(np.log(gap_s[seen]) / np.log(GAP_RESOLUTION)).astype(np.int64)
    classes, position = np.unique(index, return_inverse=True)
    counts: Floats = np.bincount(position, weights=count[seen], minlength=classes.size).astype(np.float64)
    return np.power(GAP_RESOLUTION, classes.astype(np.float64)), counts


def pool(parts: Sequence[Observed]) -> Observed:
    """Join the observations of several replicas, requests in order of arrival."""
    requests = {
        name: np.concatenate([part.requests[name] for part in parts]) for name in parts[0].requests
    }  # fmt: skip
    gaps = {}
    for name in sorted({name for part in parts for name in part.gaps}):
        mine = [part.gaps[name] for part in parts if name in part.gaps]
        gaps[name] = tally(np.concatenate([g for g, _ in mine]), np.concatenate([c for _, c in mine]))
    order = np.lexsort((requests["request"], requests["queued_s"]))
    on_time = {
        bound: np.concatenate([part.on_time[bound] for part in parts])[order] for bound in parts[0].on_time
    }
    return Observed({name: column[order] for name, column in requests.items()}, gaps, on_time)
