"""The price of a step in which the drafter is asked for less than a block for everyone."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from simulator.cost.models import CostModel, StepCost


class Asked(NamedTuple):
    """What the drafter is asked for in a step.

    requests: how many it drafts for. tokens: of each, None for the whole block; 0 is no draft pass.
    """

    requests: int
    tokens: int | None


class AskedCost:
    """A step's cost by what the drafter is asked for.

    Where drafting is inside the target's curve, or there is no drafter, nothing can be saved and the answer
    is the cost model's own. undrafted: the same step without a draft pass.
    """

    def __init__(self, cost: CostModel) -> None:
        self._whole = cost
        self._draft = cost.draft if isinstance(cost, StepCost) else None
        self.undrafted: CostModel = replace(cost, draft=None) if isinstance(cost, StepCost) else cost

    def draft_s(self, requests: int, asked: Asked, context_tokens: float = 0.0) -> float:
        """Seconds of the draft pass of a batch of ``requests`` with so much context in all."""
        if self._draft is None or not asked.requests or asked.tokens == 0:
            return 0.0
        share = asked.requests / requests
        return self._draft.time_s(asked.requests, asked.tokens, context_tokens * share)

    def step_time_s(
        self, requests: int, rows: int, context_tokens: float, prefill_tokens: int, asked: Asked | None
    ) -> float:
        """Seconds of one step; ``asked`` None: a block for every request."""
        if asked is None:
            return self._whole.step_time_s(requests, rows, context_tokens, prefill_tokens)
        target = self.undrafted.step_time_s(requests, rows, context_tokens, prefill_tokens)
        return target + self.draft_s(requests, asked, context_tokens)
