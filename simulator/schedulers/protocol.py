"""What a scheduler is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from simulator.core.arrays import Array
from simulator.cost.models import CostModel


@dataclass(slots=True)
class Batch:
    """What a scheduler may know of a step besides the survival of its draft tokens.

    cost: the believed step time. context_tokens: tokens in the KV cache, summed over requests.
    prefill_tokens: prefill rows that run in the same step. lagged: survival [R, gamma] of the same
    rows ``lag`` steps before, 1 where a request was not there yet; None for policies without a lag.
    prompts_ending: requests whose last prompt rows run in the same step, which gives each its first token.
    """

    cost: CostModel
    context_tokens: float = 0.0
    prefill_tokens: int = 0
    lagged: Array | None = None
    prompts_ending: int = 0


class Policy(ABC):
    """Base class of a policy of your own: write ``schedule``, and override what differs.

    ``lossless`` stays False until you state it with a ``reason``: whether outputs keep the target's
    distribution depends on what the schedule may look at (paper, appendix A), and no code can check that.
    """

    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = False
    reason: ClassVar[str] = "not stated"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    @abstractmethod
    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Turn survivals into verification lengths.

        Parameters
        ----------
        survival
            float32 [R, gamma], of NumPy or, on a device, of torch: probability that drafts 1..k of a request
            are all accepted.
        batch
            The step's cost model, context and, with ``lag``, the older survivals.

        Returns
        -------
        array
            Verification lengths, int64 [R] of the same library, each in 0..gamma.
        """


class Scheduler(Protocol):
    """Decides how many draft tokens of each request the target verifies in this step.

    lag: how many steps old the survival in ``Batch.lagged`` must be (0: not used).
    lossless / reason: whether the target's output distribution is untouched, and why.
    reads_outcome: the policy is given what will happen in place of what is predicted.
    draft_tokens: how many tokens the drafter is asked for, None for its whole block.
    """

    @property
    def lag(self) -> int:
        """Steps by which the survivals that are read are older than the step."""

    @property
    def lossless(self) -> bool:
        """Whether outputs keep the target's distribution."""

    @property
    def reason(self) -> str:
        """Why it is lossless, or by which counterexample it is not."""

    @property
    def reads_outcome(self) -> bool:
        """Whether it needs to know what will be accepted; then no deployment can run it."""

    @property
    def draft_tokens(self) -> int | None:
        """Draft tokens that it ever verifies of a request; None for the whole block."""

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Turn survivals into verification lengths.

        Parameters
        ----------
        survival
            float32 [R, gamma], of NumPy or, on a device, of torch: probability that drafts 1..k of a request
            are all accepted.
        batch
            The step's cost model, context and, with ``lag``, the older survivals.

        Returns
        -------
        array
            Verification lengths, int64 [R] of the same library, each in 0..gamma.
        """
        ...
