"""No draft pass where it costs more than it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from simulator.core.arrays import Array, Rows
from simulator.cost.asked import Asked, AskedCost
from simulator.schedulers.beyond.memory import Learner, Remembering, Seen
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import GRID, admit, global_maximum, on_grid, throughput_of_budget

_MOST_PROBES = 16
"""Longest wait before a step is drafted again, in waits of ``probe`` steps: a choice."""


@dataclass(frozen=True, slots=True)
class OffGate(Remembering):
    """As ``dspark-async``, but a step, or a request, whose drafts are not worth their pass is not drafted.

    Rule (for the limitation that the paper names: a draft pass is never recovered). Before drafting, the
    last known survivals of each request give the best budget with a draft pass, and its throughput. (a)
    Step: where R tokens in a step without draft pass and drafts come at least as fast, nothing is drafted.
    (b) Request: with theta the tokens per second of late, a request is left out where its accepted drafts,
    less theta times the time of their rows, are fewer than theta times what its draft pass takes.
    weight: of the newest step in a request's mean. probe: steps after which what is left out is drafted once,
    for without drafts there is no confidence and nothing to learn from; for whole steps, twice as long after
    each probe that changed nothing, up to 16 times. It needs survival and T with the
    drafter's price; where that is inside the curve, nothing is saved.
    """

    weight: float = 0.02
    probe: int = 16
    reason: ClassVar[str] = (
        "whether to draft, and the budget, come from earlier steps; the order from survivals up to each draft"
    )

    def __post_init__(self) -> None:
        self.keep_within("weight", 1e-6, 1)
        self.keep_within("probe", 1, 10**6)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> OffGateMemory:
        """Return an empty memory."""
        return OffGateMemory(self, capacity, gamma)


class OffGateMemory(Learner):
    """Per row: the survivals last drafted, recent means of accepted and verified drafts, steps left out."""

    def __init__(self, policy: OffGate, capacity: int, gamma: int) -> None:
        self.policy, self.gamma = policy, gamma
        self.known = np.ones((capacity, gamma), dtype=np.float32)
        self.accepted, self.verified = np.full(capacity, np.nan), np.full(capacity, np.nan)
        self.out = np.zeros(capacity, dtype=np.int64)
        self.drafted: Array = np.zeros(0, dtype=bool)
        self.budget, self.idle, self.wait = 0, 0, policy.probe
        self._cost: AskedCost | None = None

    def asks(self, requests: int, batch: Batch) -> Asked:
        """Ask for the requests that are worth their drafts, or for none."""
        self._cost = self._cost or AskedCost(batch.cost)
        self.drafted = self._worth_it(requests, batch)
        count = int(self.drafted.sum())
        self.budget = self._best(requests, count, batch) if count else 0
        self.idle = 0 if self.budget else self.idle + 1
        if not self.budget:
            self.drafted[:] = False
        return Asked(int(self.drafted.sum()), None if self.budget else 0)

    def _best(self, requests: int, count: int, batch: Batch) -> int:
        """Return the best budget of the drafted requests; 0 where the step is faster without a draft pass."""
        theta, plain = self._theta(requests, count, batch)
        best = global_maximum(theta)
        if theta[best] > plain:
            self.wait = self.policy.probe
            return best
        if self.idle + 1 < self.wait:
            return 0
        # Nothing is learned without drafts, so now and then, ever more seldom, they are taken all the same.
        self.wait = min(2 * self.wait, _MOST_PROBES * self.policy.probe)
        return max(best, 1)

    def _theta(self, requests: int, count: int, batch: Batch) -> tuple[Array, float]:
        """Tokens per second in grid units by budget with ``count`` drafted, and without a draft pass."""
        assert self._cost is not None
        first, context = requests + batch.prefill_tokens, batch.context_tokens
        sizes = range(first, first + count * self.gamma + 1)
        times = np.array(self._cost.undrafted.step_time_s(requests, sizes, context, batch.prefill_tokens))
        plain = requests * GRID / float(times[0])
        times += self._cost.draft_s(requests, Asked(count, None), context)
        return throughput_of_budget(on_grid(self.known[:requests][self.drafted]), requests, times), plain

    def _worth_it(self, requests: int, batch: Batch) -> Array:
        """Tell the requests whose recent acceptance pays for drafting them; all while too little is known."""
        assert self._cost is not None
        accepted, verified = self.accepted[:requests], self.verified[:requests]
        everyone = Asked(requests, None)
        per_request = self._cost.draft_s(requests, everyone, batch.context_tokens)
        per_request -= self._cost.draft_s(requests, Asked(requests - 1, None), batch.context_tokens)
        if not per_request > 0 or np.isnan(accepted).all():
            return np.ones(requests, dtype=bool)
        context, prompts = batch.context_tokens, batch.prefill_tokens
        rows = requests + int(np.nansum(verified))
        whole = self._cost.step_time_s(requests, rows + prompts, context, prompts, everyone)
        shorter = self._cost.step_time_s(requests, requests + prompts, context, prompts, everyone)
        per_row = max(0.0, whole - shorter) / max(1, rows - requests)
        theta = (requests + float(np.nansum(accepted))) / whole
        worth = ~(accepted < theta * (per_request + per_row * verified))  # NaN: not known, and so drafted
        return worth | (self.out[:requests] >= self.policy.probe)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Give the budget to the most likely drafts of the requests that were drafted."""
        lengths = np.zeros(len(survival), dtype=np.int64)
        if self.budget:
            mine = survival[self.drafted]
            lengths[self.drafted] = admit(on_grid(mine), self.budget)
            self.known[: len(survival)][self.drafted] = mine
        return lengths

    def observe(self, seen: Seen) -> None:
        """Average what drafted requests got; count the steps of the others."""
        count, weight = len(seen.accepted), self.policy.weight
        if not self.drafted.any():
            self.out[:count] += 1
            return
        self.out[:count] = np.where(self.drafted, 0, self.out[:count] + 1)
        for mean, now in ((self.accepted, seen.accepted), (self.verified, seen.lengths)):
            mine = mean[:count]
            known = ~np.isnan(mine)
            usual = mine[known].mean() if known.any() else now[self.drafted].mean()
            before = np.where(known, mine, usual)  # a newcomer is like the others until it shows otherwise
            mine[self.drafted] = (before + weight * (now - before))[self.drafted]

    def place(self, rows: Rows, classes: Rows) -> None:
        """Newcomers count as certain, and as not known."""
        self.known[rows] = 1.0
        self.accepted[rows] = self.verified[rows] = np.nan
        self.out[rows] = 0

    def move(self, source: Rows, target: Rows) -> None:
        """Carry rows."""
        for array in (self.known, self.accepted, self.verified, self.out):
            array[target] = array[source]
