"""Time of an engine step: throughput curves, the additive model, and the whole step with its draft.

A step runs the target once over ``batch_tokens`` rows: one anchor per request, the admitted draft tokens, and
the prefill tokens scheduled with them. Every run has two cost models: the true one advances the clock, the
believed one informs the scheduler. Both are the same object unless a user gives a second one, to measure
what a wrong table costs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, overload

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.cost.curve import (
    Beyond,
    Curve,
    Lookup,
    axis,
    if_possible,
    refuse_falling,
    refuse_rising,
    values,
)
from simulator.cost.draft import DraftCost


class CostModel(Protocol):
    """Step time of the target, in seconds, as a function of what is in the batch."""

    @overload
    def step_time_s(
        self, requests: int, batch_tokens: int, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> float: ...
    @overload
    def step_time_s(
        self, requests: int, batch_tokens: range, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> Floats: ...
    def step_time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> float | Floats:
        """Return the time of one step, or of every candidate size in a contiguous range.

        Parameters
        ----------
        requests
            Requests that decode in the step.
        batch_tokens
            All rows of the forward pass, prefill included, or a range of candidate numbers of rows.
        context_tokens
            Sum over requests of the tokens that are already in the KV cache.
        prefill_tokens
            Rows of the pass that are prefill.

        Returns
        -------
        float or ndarray
            Seconds; for a range, float64 of shape [len(range)].
        """
        ...

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Say whether the answer at a point is beyond what was measured, so clamped or extrapolated.

        Parameters
        ----------
        requests
            Requests that decode in the step.
        batch_tokens
            Rows of the forward pass.

        Returns
        -------
        bool
            True beyond what was measured.
        """
        ...


class StepTime(ABC):
    """Base of the cost models here: a typed ``step_time_s`` over the ``_time_s`` of each.

    A cost model of your own needs no base; it only has to satisfy ``CostModel``.
    """

    __slots__ = ()

    @property
    def jitter(self) -> tuple[float, ...]:
        """Equally likely multiples of the mean by which single steps scatter; empty without scatter."""
        return ()

    @property
    def measured_tokens(self) -> float:
        """Tokens of the largest measured batch; infinite for a model without an end."""
        return math.inf

    @overload
    def step_time_s(
        self, requests: int, batch_tokens: int, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> float: ...
    @overload
    def step_time_s(
        self, requests: int, batch_tokens: range, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> Floats: ...
    def step_time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float = 0.0, prefill_tokens: int = 0
    ) -> float | Floats:
        """See ``CostModel.step_time_s``."""
        return self._time_s(requests, batch_tokens, context_tokens, prefill_tokens)

    @abstractmethod
    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return a float for one size, [len(range)] for a range."""


@dataclass(frozen=True, slots=True, eq=False)
class ThroughputCurve(StepTime):
    """SPS(B): engine steps per second as a function of batch tokens, as the paper's scheduler reads it.

    batch_tokens: [n] strictly increasing, >= 0. steps_per_s: [n] > 0, non-increasing.
    The lookup is linear in step time and not in rate, because times add up.
    Raises ``BadInputError`` for empty, non-finite, non-positive or non-monotone points.
    """

    batch_tokens: Floats
    steps_per_s: Floats
    lookup: Lookup = "linear"
    beyond: Beyond = "last-slope"
    curve: Curve = field(init=False, repr=False)

    def __init__(
        self,
        batch_tokens: ArrayLike,
        steps_per_s: ArrayLike,
        *,
        lookup: Lookup = "linear",
        beyond: Beyond | None = None,
    ) -> None:
        tokens = axis(batch_tokens, "batch_tokens")
        rate = values(steps_per_s, "steps_per_s", like=tokens)
        if np.any(rate <= 0):
            raise BadInputError("must be positive", field="steps_per_s", value=float(rate.min()))
        refuse_rising(tokens, rate)
        curve = Curve(tokens, 1.0 / rate, lookup, beyond or usual_beyond(lookup, len(tokens)))
        for name, value in (
            ("batch_tokens", tokens), ("steps_per_s", rate), ("lookup", lookup),
            ("beyond", curve.beyond), ("curve", curve),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range; only batch tokens count."""
        if isinstance(batch_tokens, range):
            return self.curve.span(batch_tokens.start, batch_tokens.stop)
        return self.curve(batch_tokens)

    @property
    def measured_tokens(self) -> float:
        """Batch tokens of the last point; infinite for a single point, which holds for every size."""
        return float(self.batch_tokens[-1]) if len(self.batch_tokens) > 1 else math.inf

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Say whether a size lies beyond the measured points.

        Parameters
        ----------
        requests
            Not used: the curve knows rows alone.
        batch_tokens
            Rows of the forward pass.

        Returns
        -------
        bool
            True beyond the measured points.
        """
        return self.curve.outside(batch_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class AdditiveCost(StepTime):
    """T(R, B) = bias + alpha(R) + theta(B) (+ context and prefill terms), all in seconds.

    Serving engines fit this decomposition: a fixed part, a part per request and a part per row, each
    piecewise linear. Optional terms, zero by default:

    context_s_per_token: per token of KV cache that the whole batch reads (memory-bound attention).
    row_context_s_per_token: per row and token of its context (compute-bound attention, by which a verified
        row costs more at 32k than at 16k); every row has the mean context of the batch. Rows of prompts do
        not count: each attends to its own prompt.
    prefill_s_per_token: per prefill token, beyond its cost as a row.
    beyond: what alpha and theta do above their last probe; an axis of one probe is clamped.
    """

    bias_s: float
    alpha: Curve
    theta: Curve
    context_s_per_token: float = 0.0
    row_context_s_per_token: float = 0.0
    prefill_s_per_token: float = 0.0
    beyond: Beyond = "last-slope"

    def __init__(
        self,
        bias_s: float,
        request_probes: ArrayLike,
        alpha_s: ArrayLike,
        token_probes: ArrayLike,
        theta_s: ArrayLike,
        *,
        context_s_per_token: float = 0.0,
        row_context_s_per_token: float = 0.0,
        prefill_s_per_token: float = 0.0,
        beyond: Beyond = "last-slope",
    ) -> None:
        requests, tokens = axis(request_probes, "request_probes"), axis(token_probes, "token_probes")
        alpha = values(alpha_s, "alpha_s", like=requests)
        theta = values(theta_s, "theta_s", like=tokens)
        terms = {
            "bias_s": bias_s,
            "context_s_per_token": context_s_per_token,
            "row_context_s_per_token": row_context_s_per_token,
            "prefill_s_per_token": prefill_s_per_token,
        }
        for name, value in terms.items():
            if not np.isfinite(value) or value < 0 or (name == "bias_s" and value == 0):
                raise BadInputError(
                    "must be finite and not negative, the bias positive", field=name, value=value
                )
            object.__setattr__(self, name, float(value))
        refuse_falling(requests, alpha, "alpha_s")
        refuse_falling(tokens, theta, "theta_s")
        object.__setattr__(self, "beyond", beyond)
        object.__setattr__(self, "alpha", Curve(requests, alpha, "linear", if_possible(beyond, requests)))
        object.__setattr__(self, "theta", Curve(tokens, theta, "linear", if_possible(beyond, tokens)))

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        fixed = (
            self.bias_s
            + float(self.alpha.span(requests, requests + 1)[0])
            + self.context_s_per_token * context_tokens
            + self.prefill_s_per_token * prefill_tokens
        )
        per_row = self.row_context_s_per_token * context_tokens / max(requests, 1)
        if isinstance(batch_tokens, range):
            theta = self.theta.span(batch_tokens.start, batch_tokens.stop) + fixed
            rows = np.arange(batch_tokens.start, batch_tokens.stop) - prefill_tokens
            return theta + per_row * rows if per_row else theta
        return fixed + self.theta(batch_tokens) + per_row * (batch_tokens - prefill_tokens)

    @property
    def measured_tokens(self) -> float:
        """Batch tokens of the last probe; infinite for a single probe, which holds for every size."""
        return float(self.theta.at[-1]) if len(self.theta.at) > 1 else math.inf

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Say whether requests or rows lie beyond the probes.

        Parameters
        ----------
        requests
            Requests that decode in the step; 0 in a step of prompt rows alone.
        batch_tokens
            Rows of the forward pass.

        Returns
        -------
        bool
            True where the step time is extrapolated.
        """
        return (requests > 0 and self.alpha.outside(requests)) or self.theta.outside(batch_tokens)


@dataclass(frozen=True, slots=True)
class LengthByRequests:
    """Draft tokens per request by the number of requests in the batch: ``length[i]`` from ``first[i]`` on."""

    first: tuple[int, ...]
    length: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.first))
        if not self.first or len(self.first) != len(self.length) or self.first[0] != 1 or not rising:
            raise BadInputError(
                "must rise from 1, one length each", field="first", value=self.first, remedy="as in (1, 17)"
            )
        if min(self.length) < 0:
            raise BadInputError("must not be negative", field="length", value=self.length, remedy="0 or more")

    def __call__(self, requests: int) -> int:
        """Return the length for a batch of at least one request."""
        return self.length[bisect_right(self.first, requests) - 1]


@dataclass(frozen=True, slots=True, eq=False)
class StepCost(StepTime):
    """A whole engine step: the target's pass, the drafter's, and a fixed overhead per step.

    It is itself a ``CostModel``, so the clock and the scheduler both count drafting.
    draft: None when nothing is drafted, or when the target's curve was measured with drafting in it.
    draft_tokens: of each request; None for the whole block, 0 (also by batch size) for no draft pass.
    jitter: equally likely multiples of the mean by which single steps scatter on the clock. The scheduler
        believes the mean.
    """

    target: CostModel
    draft: DraftCost | None = None
    draft_tokens: int | LengthByRequests | None = None
    overhead_s: float = 0.0
    jitter: tuple[float, ...] = ()

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return draft + verify + overhead, at one size or over a range."""
        verify = self.target.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens)
        extra = self.overhead_s
        if self.draft is not None and requests:
            asked = self.draft_tokens
            if isinstance(asked, LengthByRequests):
                asked = asked(requests)
                extra += self.draft.time_s(requests, asked, context_tokens) if asked else 0.0
            else:
                extra += self.draft.time_s(requests, asked, context_tokens)
        return verify + extra if extra else verify

    @property
    def measured_tokens(self) -> float:
        """Largest measured batch of the target's pass."""
        return self.target.measured_tokens if isinstance(self.target, StepTime) else math.inf

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Say whether the target's pass lies beyond what was measured.

        Parameters
        ----------
        requests
            Requests that decode in the step.
        batch_tokens
            Rows of the forward pass.

        Returns
        -------
        bool
            True beyond what was measured.
        """
        return self.target.outside(requests, batch_tokens)


@dataclass(frozen=True, slots=True)
class ChangedCost(StepTime):
    """Base of cost models that change the step times of another model, ``base``."""

    base: CostModel

    @property
    def jitter(self) -> tuple[float, ...]:
        """Scatter of the base model's steps."""
        return self.base.jitter if isinstance(self.base, StepTime) else ()

    @property
    def measured_tokens(self) -> float:
        """Largest measured batch of the base model."""
        return self.base.measured_tokens if isinstance(self.base, StepTime) else math.inf

    def outside(self, requests: int, batch_tokens: int) -> bool:
        """Whether the base model was measured there."""
        return self.base.outside(requests, batch_tokens)


def usual_beyond(lookup: Lookup, points: int) -> Beyond:
    """Return the default above the last point of a throughput curve: the last slope where there is one."""
    return "last-slope" if lookup == "linear" and points > 1 else "clamp"
