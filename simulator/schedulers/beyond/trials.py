"""One length for the batch, found by trying: Cascade's utility and Nightjar's bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from simulator.core.random import random_stream
from simulator.schedulers.beyond.memory import OneLength, Remembering, Seen
from simulator.schedulers.protocol import Batch

_MOST_PATIENCE = 64
"""Longest rest, in set phases, of a batch in which speculation does not pay: a choice."""


@dataclass(frozen=True, slots=True)
class Utility(Remembering):
    """Try a length, keep it while it pays, and stop speculating where gain over cost is below 1.

    Rule (Cascade, arXiv 2506.20675): the utility of K is its tokens per step over those without drafts,
    divided by its time per step over that without; both measured. Test phases of ``test`` steps each try no
    drafts, the present length, one more and one less; the best is kept for ``keep`` steps. Where no length
    has a utility above 1 nothing is drafted, for twice as long each time. It needs measured step times, no
    confidence and no T.
    """

    test: int = 4
    keep: int = 32
    first: int = 3
    needs_confidence: ClassVar[bool] = False
    reason: ClassVar[str] = "the length comes from times and outcomes of earlier steps"

    def __post_init__(self) -> None:
        self.keep_within("test", 1, 10**6)
        self.keep_within("keep", 1, 10**6)
        self.keep_within("first", 1, 255)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> UtilityMemory:
        """Return an empty memory."""
        return UtilityMemory(self, gamma)


class UtilityMemory(OneLength):
    """Which length is tried or kept, and what was measured of each in this round of tests."""

    def __init__(self, policy: Utility, gamma: int) -> None:
        super().__init__(gamma)
        self.policy, self.best, self.patience = policy, min(policy.first, gamma), 1
        self.queue: list[int] = self._round()
        self.left, self.present = policy.test, self.queue.pop(0)
        self.testing, self.rates = True, dict[int, list[float]]()

    def _round(self) -> list[int]:
        near = {self.best - 1, self.best, self.best + 1}
        return [0, *sorted(length for length in near if 1 <= length <= self.gamma)]

    def choose(self, requests: int, batch: Batch) -> int:
        """Return the length that is tried or kept."""
        return self.present

    def observe(self, seen: Seen) -> None:
        """Measure a tested length; go on to the next, or keep the best."""
        if self.testing:
            tokens = len(seen.accepted) + float(seen.accepted.sum())
            # Per request: batches of different sizes are met within one round of tests.
            total = self.rates.setdefault(self.present, [0.0, 0.0])
            total[0] += tokens / len(seen.accepted)
            total[1] += seen.duration_s
        self.left -= 1
        if self.left:
            return
        if self.testing and self.queue:
            self.present, self.left = self.queue.pop(0), self.policy.test
        elif self.testing:
            self._keep_best()
        else:
            self.queue, self.rates, self.testing = self._round(), {}, True
            self.present, self.left = self.queue.pop(0), self.policy.test

    def utility(self, length: int) -> float:
        """Gain of a tested length over its cost, both relative to no drafts; 1 for none."""
        (tokens, seconds), (plain_tokens, plain_seconds) = self.rates[length], self.rates[0]
        return (tokens / plain_tokens) / (seconds / plain_seconds)

    def _keep_best(self) -> None:
        tried = {length: self.utility(length) for length in self.rates if length}
        best = max(tried, key=lambda length: tried[length], default=0)
        self.testing = False
        if best and tried[best] > 1:
            self.best = self.present = best
            self.left, self.patience = self.policy.keep, 1
        else:
            self.present, self.left = 0, self.policy.keep * self.patience
            self.patience = min(2 * self.patience, _MOST_PATIENCE)


@dataclass(frozen=True, slots=True)
class Bandit(Remembering):
    """A bandit over lengths, 0 included, for each range of batch sizes; a length is held to save switches.

    Rule (Nightjar, arXiv 2512.22420): batch sizes fall into bins, here powers of 2. Each plays by itself, in
    blocks of 16, 32, 64 ... steps. A length is held for about the root of the block's steps. The n-th such
    period explores a random length with probability 1 / sqrt(n), else it takes the one with the most tokens
    per second so far. patience: a better length replaces the present one only where it promises more than
    this share, for switching costs the drafter a prefill. seed: of the exploration. It needs measured
    step times, no confidence and no T.
    """

    patience: float = 0.0
    seed: int = 0
    needs_confidence: ClassVar[bool] = False
    reason: ClassVar[str] = "the length comes from times and outcomes of earlier steps, and from chance"

    def __post_init__(self) -> None:
        self.keep_within("patience", 0, 10)
        self.keep_within("seed", 0, 2**63 - 1)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> BanditMemory:
        """Return an empty memory."""
        return BanditMemory(self, gamma)


@dataclass(slots=True)
class _Bin:
    """What is known of one range of batch sizes: tokens and seconds by length, and the period under way."""

    tokens: list[float]
    seconds: list[float]
    length: int = 0
    left: int = 0
    block_left: int = 0
    block: int = 8
    periods: int = 0


class BanditMemory(OneLength):
    """All bins."""

    def __init__(self, policy: Bandit, gamma: int) -> None:
        super().__init__(gamma)
        self.policy, self.bins, self._now = policy, dict[int, _Bin](), -1
        self._draw = random_stream(policy.seed, "bandit")

    def choose(self, requests: int, batch: Batch) -> int:
        """Return the length of the bin's period, beginning a new one where the last is over."""
        self._now = requests.bit_length()
        arms = self.gamma + 1
        mine = self.bins.setdefault(self._now, _Bin([0.0] * arms, [0.0] * arms))
        if not mine.left:
            self._begin(mine)
        return mine.length

    def _begin(self, mine: _Bin) -> None:
        if mine.block_left <= 0:
            mine.block *= 2
            mine.block_left = mine.block
        mine.left = math.isqrt(mine.block)
        mine.block_left -= mine.left
        mine.periods += 1
        if self._draw.random() < 1 / math.sqrt(mine.periods):
            mine.length = int(self._draw.integers(self.gamma + 1))
            return
        totals = zip(mine.tokens, mine.seconds, strict=True)
        rate = [tokens / seconds if seconds else 0.0 for tokens, seconds in totals]
        best = max(range(len(rate)), key=lambda length: rate[length])
        if rate[best] > rate[mine.length] * (1 + self.policy.patience):
            mine.length = best

    def observe(self, seen: Seen) -> None:
        """Credit the length with the step's tokens and time."""
        mine = self.bins[self._now]
        mine.tokens[mine.length] += len(seen.accepted) + float(seen.accepted.sum())
        mine.seconds[mine.length] += seen.duration_s
        mine.left -= 1
