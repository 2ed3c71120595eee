"""Cost tables as engines read them, and warnings about tables that mislead a scheduler.

A scheduler reads the table that it is given. Engines accept tables in which more work takes less time and
tables that hardly change with size. ``BelievedTable`` holds such tables, so that their effect on decisions
can be measured, and ``table_warnings`` describes their faults. The true cost, which advances the clock, is a
``ThroughputCurve`` or an ``AdditiveCost``, and both refuse such tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.cost.curve import Curve, Lookup, axis
from simulator.cost.models import AdditiveCost, CostModel, StepTime, ThroughputCurve

FLAT = 0.02
"""Step times that vary by less than this share over all batch tokens are flat. Profilers scatter by 2%."""


@dataclass(frozen=True, slots=True, eq=False)
class BelievedTable(StepTime):
    """T(R, B) = bias + alpha(R) + theta(B) seconds at the table's points, clamped beyond them.

    alpha and theta may fall and alpha may be negative; every sum of points must be positive.
    Raises ``BadInputError`` for axes that do not increase, lengths that differ and sums
    that are not positive.
    """

    bias_s: float
    alpha: Curve
    theta: Curve
    lowest_s: float = field(init=False, default=0.0)

    def __init__(
        self,
        bias_s: float,
        request_probes: ArrayLike,
        alpha_s: ArrayLike,
        token_probes: ArrayLike,
        theta_s: ArrayLike,
        *,
        lookup: Lookup = "linear",
    ) -> None:
        requests, tokens = axis(request_probes, "request_probes"), axis(token_probes, "token_probes")
        alpha, theta = _finite(alpha_s, requests, "alpha_s"), _finite(theta_s, tokens, "theta_s")
        lowest = float(bias_s + alpha.min() + theta.min())
        if not np.isfinite(bias_s) or lowest <= 0:
            raise BadInputError(
                "bias, alpha and theta must add up to a positive time everywhere",
                field="bias_s", value=bias_s, remedy=f"their smallest sum is {lowest:g} s; measure again",
            )  # fmt: skip
        object.__setattr__(self, "bias_s", float(bias_s))
        object.__setattr__(self, "alpha", Curve(requests, alpha))
        object.__setattr__(self, "theta", Curve(tokens, theta, lookup))
        object.__setattr__(self, "lowest_s", lowest)

    @classmethod
    def of_curve(cls, batch_tokens: ArrayLike, steps_per_s: ArrayLike, *, lookup: Lookup) -> BelievedTable:
        """Make a table from steps per second by batch tokens. Rates may rise and must be positive."""
        tokens = axis(batch_tokens, "batch_tokens")
        rate = _finite(steps_per_s, tokens, "steps_per_s")
        if rate.min() <= 0:
            raise BadInputError(
                "must be positive", field="steps_per_s", value=float(rate.min()), remedy="measure again"
            )
        return cls(0.0, [1.0], [0.0], tokens, 1.0 / rate, lookup=lookup)

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        fixed = self.bias_s + float(self.alpha.span(requests, requests + 1)[0])
        if isinstance(batch_tokens, range):
            return self.theta.span(batch_tokens.start, batch_tokens.stop) + fixed
        return fixed + self.theta(batch_tokens)

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Whether the size lies beyond the table's points."""
        return (requests > 0 and self.alpha.outside(requests)) or self.theta.outside(batch_tokens)


def table_warnings(cost: CostModel) -> tuple[str, ...]:
    """Return what misleads a scheduler: a flat table, or sizes at which more work takes less time."""
    warnings = []
    if is_flat(cost):
        warnings.append(f"step time varies by {row_spread(cost):.1%} over all batch tokens: {NEVER_TRIMS}")
    for name, curve in _curves(cost):
        falls = np.flatnonzero(np.diff(curve.value) < 0)
        if falls.size:
            at, value = curve.at[falls[0] + 1], curve.value
            warnings.append(
                f"more work takes less time at {at:g} {name} ({1e3 * value[falls[0]]:.4g} ms, then "
                f"{1e3 * value[falls[0] + 1]:.4g} ms): a scheduler jumps over what lies between"
            )
    return tuple(warnings)


NEVER_TRIMS = (
    "a scheduler that reads it sees no cost in a draft and can never trim; measure larger batches, and check "
    "that the profiler's pinned budgets were honoured"
)


def is_flat(cost: CostModel) -> bool:
    """Whether batch tokens change the step time by less than ``FLAT``."""
    return row_spread(cost) < FLAT


def row_spread(cost: CostModel) -> float:
    """Return by how much step time varies with batch tokens, as a share of the table's longest step.

    Infinite for a model without points, and for a model with a cost per row and context.
    """
    if isinstance(cost, ThroughputCurve):
        return float(np.ptp(cost.curve.value) / cost.curve.value.max())
    if isinstance(cost, BelievedTable) or (
        isinstance(cost, AdditiveCost) and not cost.row_context_s_per_token
    ):
        longest = cost.bias_s + cost.alpha.value.max() + cost.theta.value.max()
        return float(np.ptp(cost.theta.value) / longest)
    return float("inf")


def _curves(cost: CostModel) -> list[tuple[str, Curve]]:
    if isinstance(cost, ThroughputCurve):
        return [("batch tokens", cost.curve)]
    if isinstance(cost, AdditiveCost | BelievedTable):
        return [("requests", cost.alpha), ("batch tokens", cost.theta)]
    return []


def _finite(points: ArrayLike, like: Floats, name: str) -> Floats:
    array = np.array(points, dtype=np.float64)
    if array.shape != like.shape:
        raise BadInputError(
            f"needs {len(like)} values, one per axis point", field=name, value=array.size,
            remedy="export the table again",
        )  # fmt: skip
    if not np.isfinite(array).all():
        where = int(np.argmin(np.isfinite(array)))
        raise BadInputError(
            "must be finite", field=f"{name}[{where}]", value=float(array[where]), remedy="measure again"
        )
    return array
