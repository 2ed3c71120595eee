"""One length for the batch, by what was accepted lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from simulator.cost.asked import Asked, AskedCost
from simulator.schedulers.beyond.memory import OneLength, Remembering, Seen
from simulator.schedulers.options import rising
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import TIE

_FIRST_ACCEPTANCE = 0.7
"""Acceptance before the first step: a choice; it is replaced at ``weight`` a step."""


@dataclass(frozen=True, slots=True)
class Goodput(Remembering):
    """The length K, 0 included, with the most expected tokens per second, acceptance as a moving average.

    Rule (TurboSpec, arXiv 2406.14066): with a the moving average of the acceptance of one draft, a block of
    K gives (1 - a^(K+1)) / (1 - a) tokens, and K maximises that over the believed time of drafting and
    verifying K of everyone. weight: of the newest step in the average. probe: after so many steps without
    drafts one of length 1 is taken, so that the average does not stay as it was. It needs T with the
    drafter's price, and no confidence.
    """

    weight: float = 0.1
    probe: int = 32
    needs_confidence: ClassVar[bool] = False
    reason: ClassVar[str] = "the length comes from outcomes of earlier steps"

    def __post_init__(self) -> None:
        self.keep_within("weight", 1e-6, 1)
        self.keep_within("probe", 1, 10**6)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> GoodputMemory:
        """Return an empty memory."""
        return GoodputMemory(self, gamma)


class GoodputMemory(OneLength):
    """The average so far."""

    def __init__(self, policy: Goodput, gamma: int) -> None:
        super().__init__(gamma)
        self.policy, self.acceptance, self.idle = policy, _FIRST_ACCEPTANCE, 0
        self._cost: AskedCost | None = None

    def choose(self, requests: int, batch: Batch) -> int:
        """Return the best length by the average."""
        self._cost = self._cost or AskedCost(batch.cost)
        if self.idle >= self.policy.probe:
            return min(1, self.gamma)
        best, length, gained, chain = 0.0, 0, 0.0, 1.0
        for tokens in range(self.gamma + 1):
            gained, chain = gained + chain, chain * self.acceptance
            rows = requests * (1 + tokens) + batch.prefill_tokens
            time_s = self._cost.step_time_s(
                requests, rows, batch.context_tokens, batch.prefill_tokens, Asked(requests, tokens)
            )
            if gained / time_s > best * (1 + TIE):
                best, length = gained / time_s, tokens
        return length

    def observe(self, seen: Seen) -> None:
        """Take the step's acceptance of one draft into the average: accepted over all that were judged."""
        verified = int(seen.lengths.sum())
        self.idle = 0 if verified else self.idle + 1
        if verified:
            accepted = int(seen.accepted.sum())
            judged = accepted + int((seen.accepted < seen.lengths).sum())
            self.acceptance += self.policy.weight * (accepted / judged - self.acceptance)


@dataclass(frozen=True, slots=True)
class MovingAverage(Remembering):
    """One of a few lengths, moved up or down by the moving average of accepted drafts, with hysteresis.

    Rule (sgl-project/sglang, pull request 21599): the target is about one more than what was accepted. From
    length n to the next one up where the average exceeds n - 0.5 + up; down to m where it is at most
    m - 0.5 + down. It is looked at every ``interval`` steps, after ``warmup`` of them. Cost is never read.
    tiers: lengths; those above the block are left out. It starts at the middle one. It needs no
    confidence and no T.
    """

    tiers: tuple[int, ...] = (1, 3, 7)
    weight: float = 0.2
    interval: int = 5
    warmup: int = 10
    up: float = 0.0
    down: float = -0.25
    needs_confidence: ClassVar[bool] = False
    reason: ClassVar[str] = "the length comes from outcomes of earlier steps"

    def __post_init__(self) -> None:
        rising(self.tiers, "tiers")
        self.keep_within("weight", 1e-6, 1)
        self.keep_within("interval", 1, 10**6)
        self.keep_within("warmup", 0, 10**6)
        self.keep_within("up", -100, 100)
        self.keep_within("down", -100, 100)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> MovingAverageMemory:
        """Return an empty memory."""
        return MovingAverageMemory(self, gamma)


class MovingAverageMemory(OneLength):
    """The average and the length so far."""

    def __init__(self, policy: MovingAverage, gamma: int) -> None:
        super().__init__(gamma)
        self.policy = policy
        self.tiers = [tier for tier in policy.tiers if tier <= gamma] or [gamma]
        self.at, self.steps = len(self.tiers) // 2, 0
        self.average = float(self.tiers[self.at] - 1)

    def choose(self, requests: int, batch: Batch) -> int:
        """Return the present length."""
        return self.tiers[self.at]

    def observe(self, seen: Seen) -> None:
        """Average the drafts accepted of a request; move by it when it is time."""
        self.steps += 1
        self.average += self.policy.weight * (float(seen.accepted.mean()) - self.average)
        if self.steps <= self.policy.warmup or self.steps % self.policy.interval:
            return
        tiers, policy = self.tiers, self.policy
        while self.at > 0 and self.average <= tiers[self.at - 1] - 0.5 + policy.down:
            self.at -= 1
        while self.at + 1 < len(tiers) and self.average > tiers[self.at] - 0.5 + policy.up:
            self.at += 1
