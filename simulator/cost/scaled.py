"""Cost models that take longer than their base: in every step, without drafts, or per draft row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.cost.models import ChangedCost


@dataclass(frozen=True, slots=True)
class ScaledCost(ChangedCost):
    """A cost model whose every step takes ``factor`` times as long."""

    factor: float

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        return self.base.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens) * self.factor


@dataclass(frozen=True, slots=True)
class SlowPath:
    """Extra time of a step without drafts because speculation is enabled, by requests in the batch.

    An engine that may speculate runs such a step on another path than an engine that never does: other
    graphs, more metadata, a sampler that expects drafts. Measured in vLLM (vllm-project/vllm issue 49548) for
    dynamic
    speculation that chose no drafts: +6.6% time per token at 2 requests, +21.6% at 189.
    requests: rising. share: of the step's time, linear between the points and constant beyond them.
    """

    requests: tuple[int, ...]
    share: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = list(self.requests) == sorted(set(self.requests))
        if not self.requests or not rises or self.requests[0] < 1 or len(self.requests) != len(self.share):
            raise BadInputError(
                "must rise from at least 1, one share each",
                field="slow_path",
                value=self.requests,
                remedy=_HOW,
            )
        for share in self.share:
            if not 0 <= share < math.inf:
                raise BadInputError("must not be negative", field="slow_path", value=share, remedy=_HOW)

    def __call__(self, requests: int) -> float:
        """Return the share at so many requests."""
        return float(np.interp(requests, self.requests, self.share))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``REQUESTS=SHARE,...``, as in ``2=6.6%,189=21.6%``, or a single share for all."""
        requests, shares = [], []
        for part in text.split(","):
            left, equals, right = part.partition("=")
            value = (right if equals else left).strip()
            try:
                requests.append(int(left) if equals else 1)
                shares.append(float(value.removesuffix("%")) / (100 if value.endswith("%") else 1))
            except ValueError as error:
                raise BadInputError(
                    "needs REQUESTS=SHARE", field="slow_path", value=part, remedy=_HOW
                ) from error
        return cls(tuple(requests), tuple(shares))


_HOW = "as in 2=6.6%,189=21.6%"


@dataclass(frozen=True, slots=True)
class EnabledCost(ChangedCost):
    """The target's pass in an engine with speculation enabled: a step without drafts takes longer."""

    slow: SlowPath

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        without, longer = requests + prefill_tokens, 1 + self.slow(requests)
        if not isinstance(batch_tokens, range):
            time_s = self.base.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens)
            return time_s * longer if requests and batch_tokens == without else time_s
        times = np.array(self.base.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens))
        if requests and without in batch_tokens:
            times[batch_tokens.index(without)] *= longer
        return times


@dataclass(frozen=True, slots=True)
class RowCost(ChangedCost):
    """The target's pass with extra time for every draft row of a request beyond its first.

    A curve derived from steps of MTP-1 includes one draft row a request. Further rows may take longer than
    the curve says, because graphs are padded to captured sizes and attention works row by row.
    row_s: seconds for each draft row beyond one a request.
    """

    row_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.row_s < math.inf:
            raise BadInputError(
                "must not be negative", field="row_cost", value=self.row_s, remedy="as in 4us"
            )

    def _time_s(
        self, requests: int, batch_tokens: int | range, context_tokens: float, prefill_tokens: int
    ) -> float | Floats:
        """Return the step time at one size or over a range."""
        time_s = self.base.step_time_s(requests, batch_tokens, context_tokens, prefill_tokens)
        inside = 2 * requests + prefill_tokens  # rows that the curve includes
        if not requests:
            return time_s
        if isinstance(batch_tokens, range):
            beyond = np.arange(batch_tokens.start - inside, batch_tokens.stop - inside)
            return time_s + self.row_s * np.maximum(beyond, 0)
        return time_s + self.row_s * max(batch_tokens - inside, 0)
