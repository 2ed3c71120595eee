"""Time to draft a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from simulator.core.errors import BadInputError
from simulator.cost.curve import Curve, axis, if_possible, refuse_falling, values

Structure = Literal["autoregressive", "parallel", "semi-autoregressive"]


@dataclass(frozen=True, slots=True, eq=False)
class DraftCost:
    """Time to draft one block for every request of a batch, by the drafter's structure.

    autoregressive (Eagle3, MTP): one pass per draft token. parallel (DFlash): one pass for the whole block.
    semi-autoregressive (DSpark): one pass, and a light sequential loop with one turn per token.
    A parallel pass always drafts the whole block, even if a part of it is verified (paper, limitations). Only
    an autoregressive drafter therefore takes less time for fewer tokens.

    requests: [n] strictly increasing. pass_s, sequential_s: [n] seconds, non-decreasing.
    context_s_per_token: seconds of a pass per token of context that the drafter attends to, over the batch.
    """

    structure: Structure
    block_size: int
    pass_time: Curve
    sequential_time: Curve
    context_s_per_token: float

    def __init__(
        self,
        structure: Structure,
        block_size: int,
        requests: ArrayLike,
        pass_s: ArrayLike,
        sequential_s: ArrayLike | None = None,
        context_s_per_token: float = 0.0,
    ) -> None:
        known = ("autoregressive", "parallel", "semi-autoregressive")
        if structure not in known:
            raise BadInputError("is not known", field="structure", value=structure, remedy=", ".join(known))
        if block_size < 1:
            raise BadInputError("must be at least 1", field="block_size", value=block_size)
        if sequential_s is not None and structure != "semi-autoregressive":
            raise BadInputError("only a semi-autoregressive drafter has one", field="sequential_s")
        probes = axis(requests, "requests")
        passes = values(pass_s, "pass_s", like=probes)
        turns = values(
            np.zeros_like(probes) if sequential_s is None else sequential_s, "sequential_s", like=probes
        )
        refuse_falling(probes, passes, "pass_s")
        refuse_falling(probes, turns, "sequential_s")
        if not np.isfinite(context_s_per_token) or context_s_per_token < 0:
            raise BadInputError(
                "must be finite and not negative", field="context_s_per_token", value=context_s_per_token
            )
        beyond = if_possible("last-slope", probes)
        object.__setattr__(self, "structure", structure)
        object.__setattr__(self, "block_size", int(block_size))
        object.__setattr__(self, "pass_time", Curve(probes, passes, "linear", beyond))
        object.__setattr__(self, "sequential_time", Curve(probes, turns, "linear", beyond))
        object.__setattr__(self, "context_s_per_token", float(context_s_per_token))

    def time_s(self, requests: int, draft_tokens: int | None = None, context_tokens: float = 0.0) -> float:
        """Return how long a batch's drafts take.

        Parameters
        ----------
        requests
            Requests that each get a block.
        draft_tokens
            Tokens drafted for each, the whole block by default. Only an autoregressive drafter takes less
            time for fewer.
        context_tokens
            Tokens of context that the drafter attends to, over the batch.

        Returns
        -------
        float
            Seconds.
        """
        block = float(self.pass_time.span(requests, requests + 1)[0])
        block += self.context_s_per_token * context_tokens
        if self.structure == "autoregressive":
            return block * (self.block_size if draft_tokens is None else draft_tokens)
        if self.structure == "parallel":
            return block
        return block + self.block_size * float(self.sequential_time.span(requests, requests + 1)[0])
