"""A verification length for each range of batch sizes, as vLLM takes it by hand.

vLLM calls it ``num_speculative_tokens_per_batch_size`` (vllm-project/vllm pull request 32374): inclusive
ranges; batch sizes between or beyond the ranges keep the length of the range before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from array_api_compat import device

from simulator.core.errors import BadInputError
from simulator.cost.models import LengthByRequests
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import namespace

Array = Any  # an array of any array-API namespace: NumPy or torch

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d*)\s*=\s*(\d+)\s*")

_HOW = "as in batch-table:1-16=5,17-64=3,65-=1"


@dataclass(frozen=True, slots=True)
class BatchTable:
    """Verify as many draft tokens of every request as a table says for the number of requests decoding.

    The table counts the requests of the decode batch; vLLM also counts those whose prompt runs in the step.
    Where the length is 0 nothing is drafted, and an autoregressive drafter drafts no more than the length.
    """

    lengths: LengthByRequests
    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "the length depends on how many requests there are, never on a token"
    reads_outcome: ClassVar[bool] = False

    @property
    def draft_tokens(self) -> int | None:
        """The longest length: what the drafter may be asked for."""
        return max(self.lengths.length)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Return the table's length for every request."""
        requests, gamma = survival.shape
        length = self.lengths(requests) if requests else 0
        if length > gamma:
            raise BadInputError(
                f"is longer than the block of {gamma} tokens", source="policy", field="batch-table",
                value=length, remedy=f"use lengths of at most {gamma}, or a drafter with a larger block",
            )  # fmt: skip
        xp = namespace(survival)
        return xp.full(requests, length, dtype=xp.int64, device=device(survival))

    @classmethod
    def parse(cls, argument: str) -> Self:
        """From ``FIRST-LAST=LENGTH,...``, the last range open or closed."""
        first: list[int] = []
        length: list[int] = []
        end: int | None = 0
        for part in argument.split(","):
            match = _RANGE.fullmatch(part)
            if match is None:
                raise _bad("needs ranges FIRST-LAST=LENGTH")
            low, high = int(match[1]), int(match[2]) if match[2] else None
            if end is None or low <= end or (high is not None and high < low):
                raise _bad(f"ranges must rise and not overlap, which {part.strip()} breaks")
            first.append(low)
            length.append(int(match[3]))
            end = high
        if first[0] != 1:
            raise _bad("must begin at 1 request")
        return cls(LengthByRequests(tuple(first), tuple(length)))


def _bad(problem: str) -> BadInputError:
    return BadInputError(problem, remedy=_HOW)
