"""The cost of a step in which the drafter drafts less than a block for every request."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from simulator.cost.draft import DraftCost
from simulator.cost.models import CostModel, StepCost
from simulator.cost.scaled import ScaledCost


class Asked(NamedTuple):
    """What the drafter drafts in a step.

    requests: how many requests get drafts. tokens: of each; None for the whole block, 0 for no draft pass.
    """

    requests: int
    tokens: int | None


class AskedCost:
    """The cost of a step by what the drafter drafts.

    Without a drafter, or with drafting inside the target's curve, drafting less saves nothing and the cost is
    that of the model. undrafted: the same step without a draft pass.
    """

    def __init__(self, cost: CostModel) -> None:
        self._whole, self._factor = cost, 1.0
        self._draft: DraftCost | None = None
        self.undrafted: CostModel = cost
        while isinstance(cost, ScaledCost):
            self._factor *= cost.factor
            cost = cost.base
        if isinstance(cost, StepCost):
            self._draft = cost.draft
            self.undrafted = ScaledCost(replace(cost, draft=None), self._factor)

    def draft_s(self, requests: int, asked: Asked, context_tokens: float = 0.0) -> float:
        """Return the seconds of the draft pass; ``context_tokens`` is of all ``requests`` of the batch."""
        if self._draft is None or not asked.requests or asked.tokens == 0:
            return 0.0
        share = asked.requests / requests
        return self._factor * self._draft.time_s(asked.requests, asked.tokens, context_tokens * share)

    def step_time_s(
        self, requests: int, rows: int, context_tokens: float, prefill_tokens: int, asked: Asked | None
    ) -> float:
        """Return the seconds of one step; ``asked`` None drafts a block for every request."""
        if asked is None:
            return self._whole.step_time_s(requests, rows, context_tokens, prefill_tokens)
        target = self.undrafted.step_time_s(requests, rows, context_tokens, prefill_tokens)
        return target + self.draft_s(requests, asked, context_tokens)
