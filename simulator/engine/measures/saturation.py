"""Whether a line of requests grows without bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.core.arrays import Floats
from simulator.core.statistics import BATCHES, t_quantile

MATERIAL_GROWTH = 0.005
"""Growth of a queue, as a share of the arrivals, that is called saturation once chance is ruled out."""


@dataclass(frozen=True, slots=True)
class Trend:
    """By how many requests per second a queue grows. ci95: half-width of the 95% interval of that.

    material_per_s: the least growth that matters: ``MATERIAL_GROWTH`` of the arrivals, and 5 requests in all.
    """

    slope_per_s: float
    ci95: float
    material_per_s: float

    @property
    def grows(self) -> bool:
        """Whether the queue grows by more than chance explains, and by enough to matter."""
        return self.slope_per_s - self.ci95 > 0 and self.slope_per_s >= self.material_per_s


def queue_trend(arrived_s: Floats, served_s: Floats, from_s: float, to_s: float) -> Trend:
    """Trend of the number of requests that have arrived and are not being served.

    arrived_s: [n] seconds. served_s: [n] when each would have been served had all that it waited for come
    in one piece: arrival plus the sum of ``engine.batch.WAITS``, infinite if it is still waiting. The number
    waiting is averaged over ``BATCHES`` spans of [from_s, to_s], while requests arrive, and a straight line
    is laid through the averages. Neighbouring averages share a busy spell, so the variance of the slope is
    widened by (1 + r) / (1 - r), r being the correlation of a residual with the next one.
    """
    nothing = Trend(0.0, 0.0, np.inf)
    if not to_s > from_s:
        return nothing  # all came at once: a line that can only shrink
    edges = np.linspace(from_s, to_s, BATCHES + 1)
    middle = (edges[1:] + edges[:-1]) / 2 - (from_s + to_s) / 2
    line = _mean_count(arrived_s.copy(), edges) - _mean_count(served_s[np.isfinite(served_s)], edges)
    slope = float(middle @ line / (middle @ middle))
    residual = line - line.mean() - slope * middle
    square = float(residual @ residual)
    r = float(np.clip(residual[1:] @ residual[:-1] / square, 0.0, 0.9)) if square > 0 else 0.0
    spread = np.sqrt(square / (BATCHES - 2) / (middle @ middle) * (1 + r) / (1 - r))
    arrivals = int(np.count_nonzero((arrived_s >= from_s) & (arrived_s < to_s)))
    material = max(5.0, MATERIAL_GROWTH * arrivals) / (to_s - from_s)
    return Trend(slope, float(spread * t_quantile(0.975, BATCHES - 2)), material)


def is_saturated(arrived_s: Floats, served_s: Floats, from_s: float, to_s: float) -> bool:
    """Whether the number of requests that have arrived and are not being served grows without bound."""
    return queue_trend(arrived_s, served_s, from_s, to_s).grows


def _mean_count(times_s: Floats, edges: Floats) -> Floats:
    """Mean number of events before t, for t within each span between edges; ``times_s`` is written over."""
    times_s.sort()
    before = np.searchsorted(times_s, edges)
    np.cumsum(times_s, out=times_s)
    # The integral of N(t) from minus infinity to t is the sum over events before t of (t - event).
    summed = np.array([times_s[count - 1] if count else 0.0 for count in before.tolist()])
    integral: Floats = before * edges - summed
    return np.asarray(np.diff(integral) / np.diff(edges))
