"""The verification policies once more: plain loops over requests and budgets, for the reference simulator.

Every function gets what a step knows and returns a length for each request of the batch, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Block = Sequence[float]
"""Survival of one request's draft tokens, position by position."""

TIE = 1e-12
"""Throughputs this close, relatively, are alike; of those the smallest budget counts."""


@dataclass(frozen=True)
class Seen:
    """What is known before a step is verified.

    now, past: survival of each request, of this step and of the one that the budget is taken from.
    outcome: how many drafts of each the target would accept. time_s: seconds of the step by its drafts.
    """

    now: Sequence[Block]
    past: Sequence[Block]
    outcome: Sequence[int]
    time_s: Callable[[int], float]

    @property
    def gamma(self) -> int:
        """Block size."""
        return len(self.now[0])


def ranked(blocks: Sequence[Block]) -> list[tuple[float, int, int]]:
    """Return all candidates, the most likely first; ties by position, then by request."""
    found = [(-block[k], k, place) for place, block in enumerate(blocks) for k in range(len(block))]
    return [(-survival, k, place) for survival, k, place in sorted(found)]


def throughputs(blocks: Sequence[Block], time_s: Callable[[int], float]) -> list[float]:
    """Return expected tokens per second with 0, 1, 2 ... of the most likely candidates."""
    tokens, rates = float(len(blocks)), [len(blocks) / time_s(0)]
    for budget, (survival, _, _) in enumerate(ranked(blocks), start=1):
        tokens += survival
        rates.append(tokens / time_s(budget))
    return rates


def best(rates: Sequence[float]) -> int:
    """Return the place of the largest, the first of those alike."""
    return next(place for place, rate in enumerate(rates) if rate >= max(rates) * (1 - TIE))


def dealt(blocks: Sequence[Block], budget: int) -> list[int]:
    """Give so many drafts to the most likely candidates."""
    lengths = [0] * len(blocks)
    for _, _, place in ranked(blocks)[:budget]:
        lengths[place] += 1
    return lengths


def dspark(seen: Seen) -> list[int]:
    """Algorithm 1: one candidate more until throughput rises no more."""
    rates = throughputs(seen.now, seen.time_s)
    budget = 0
    while budget + 1 < len(rates) and rates[budget + 1] > rates[budget] * (1 + TIE):
        budget += 1
    return dealt(seen.now, budget)


def dspark_async(seen: Seen) -> list[int]:
    """Budget from the past, over all budgets; the drafts go to the most likely of now."""
    return dealt(seen.now, best(throughputs(seen.past, seen.time_s)))


def tiered(tiers: Sequence[int]) -> Callable[[Seen], list[int]]:
    """Choose among so many drafts a request, by the past."""

    def choose(seen: Seen) -> list[int]:
        rates = throughputs(seen.past, seen.time_s)
        budgets = [tier * len(seen.past) for tier in tiers if tier <= seen.gamma]
        return dealt(seen.now, budgets[best([rates[budget] for budget in budgets])])

    return choose


def oracle(seen: Seen) -> list[int]:
    """Know the outcome: a draft survives or it does not."""
    certain = [[float(k < good) for k in range(seen.gamma)] for good in seen.outcome]
    return dealt(certain, best(throughputs(certain, seen.time_s)))


def threshold(least: float) -> Callable[[Seen], list[int]]:
    """Stop each request before the first draft whose own confidence is below."""

    def choose(seen: Seen) -> list[int]:
        lengths = []
        for block in seen.now:
            before, length = 1.0, 0
            while length < len(block) and block[length] / before >= least:
                before, length = block[length], length + 1
            lengths.append(length)
        return lengths

    return choose


def batch_table(rows: Sequence[tuple[int, int]]) -> Callable[[Seen], list[int]]:
    """Look a length up by how many requests there are. rows: where each range begins, and its length."""

    def choose(seen: Seen) -> list[int]:
        requests = len(seen.now)
        return [[length for first, length in rows if first <= requests][-1]] * requests

    return choose


def fixed(length: int) -> Callable[[Seen], list[int]]:
    """Verify always the same."""
    return lambda seen: [length] * len(seen.now)
