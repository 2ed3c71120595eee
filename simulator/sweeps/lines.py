"""A frontier as one line per policy, and the answers of each line under an SLA."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.core.arrays import Floats
from simulator.sla.terms import Term

if TYPE_CHECKING:
    import pandas as pd

SPEEDS = ("tps_mean", "tps_p10", "tps_p50")
"""Columns of a frontier that an SLA can bound. The paper's speed is the mean: throughput / requests."""


@dataclass(frozen=True, slots=True)
class AtSla:
    """Best throughput of a policy under an SLA, its load, and the speeds at that load.

    lower_bound: the sweep ended before the SLA was reached. All are NaN where no load keeps the SLA.
    """

    throughput: float = math.nan
    concurrency: float = math.nan
    tps_mean: float = math.nan
    tps_p10: float = math.nan
    lower_bound: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One policy's frontier over increasing concurrency: throughput, and falling speeds per user.

    Between simulated loads the time per token, of a slot and of a user, is linear in concurrency: the
    straight line of the frontier's plot, exact for a linear step time. relative_ci95: half-width of the
    throughput's interval over the throughput, at each load; 0 where it is unknown.
    """

    policy: str
    concurrency: Floats
    throughput: Floats
    speeds: dict[str, Floats]
    relative_ci95: Floats

    @property
    def tps(self) -> Floats:
        """Mean speed per user."""
        return self.speeds["tps_mean"]

    def bracket(self, term: Term) -> tuple[int, int] | None:
        """Return the indices of the last load that keeps a term and of the next; None where none keeps it.

        Both are the same where the last load of all keeps the term.
        """
        meets = self.speeds[term.key] >= term.bound
        if not meets.any():
            return None
        last = int(np.flatnonzero(meets)[-1])
        return last, min(last + 1, len(meets) - 1)

    def at_sla(self, term: Term) -> AtSla:
        """Return the best throughput that keeps a term."""
        ends = self.bracket(term)
        if ends is None:
            return AtSla()
        last, after = ends
        load = float(self.concurrency[last])
        if after != last:
            slowness = 1 / self.speeds[term.key][[last, after]]
            load = float(np.interp(1 / term.bound, slowness, self.concurrency[[last, after]]))
        mean, p10 = (self._between(self.speeds[name], load) for name in ("tps_mean", "tps_p10"))
        if after != last and term.key == "tps_mean":
            mean = term.bound  # the interpolated value, except for rounding
        slot = self._between(self.throughput / self.concurrency, load)
        return AtSla(load * slot, load, mean, p10, last + 1 == len(self.concurrency))

    def throughput_ci95_at(self, term: Term) -> float:
        """Return the half-width of ``at_sla``'s throughput; NaN where no load keeps the term.

        The whole line moves up and down by its interval. The load that just keeps the term moves with it, so
        the interval is wider than at a fixed load.
        """
        low, high = (self._moved(sign).at_sla(term).throughput for sign in (-1, 1))
        return (high - low) / 2 if not math.isnan(low) else abs(high - self.at_sla(term).throughput)

    def _moved(self, sign: int) -> Line:
        """Return the line at the end of its interval."""
        factor = 1 + sign * self.relative_ci95
        speeds = {name: speed * factor for name, speed in self.speeds.items()}
        return replace(self, throughput=self.throughput * factor, speeds=speeds)

    def tps_at_throughput(self, throughput: float) -> float:
        """Return the mean speed per user at the lowest load with that throughput; NaN outside its range."""
        reach, first = np.unique(np.maximum.accumulate(self.throughput), return_index=True)
        if not reach[0] <= throughput <= reach[-1]:
            return float("nan")
        return float(np.interp(throughput, reach, self.tps[first]))

    def _between(self, rate: Floats, load: float) -> float:
        """Interpolate a rate between simulated loads, inverse linear; NaN where a neighbour is unknown."""
        with np.errstate(divide="ignore"):
            return float(1 / np.interp(load, self.concurrency, 1 / rate))


def lines(frontier: pd.DataFrame) -> dict[str, Line]:
    """Return a frontier table as one line per policy, in the order of the table."""
    result = {}
    for policy, group in frontier.groupby("policy", sort=False):
        ordered = group.sort_values("concurrency")

        def column(name: str, rows: pd.DataFrame = ordered) -> Floats:
            return rows[name].to_numpy(dtype=np.float64) if name in rows else np.full(len(rows), np.nan)

        speeds = {name: column(name) for name in SPEEDS}
        throughput = column("throughput_tok_per_s")
        relative = np.nan_to_num(column("throughput_ci95") / throughput)
        result[str(policy)] = Line(str(policy), column("concurrency"), throughput, speeds, relative)
    return result
