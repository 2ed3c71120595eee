"""Policies that the compiled loop runs itself: those of the paper, as numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats, Rows
from simulator.engine.strides.jit import inner
from simulator.engine.strides.search import (
    Grid,
    Scratch,
    admit,
    best_budget,
    first_descent,
    first_reaching,
    highest,
    order,
    throughput,
)
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.early_stop import WatchedDSpark
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Scheduler
from simulator.schedulers.search import FAINT, GRID, TIE, UNDECIDED

BY_COUNT, THRESHOLD, DESCENT, GLOBAL, TIERED, ORACLE = range(6)
"""Kinds of policy: a length by the number of requests, then as the classes are called."""


class FlatPolicy(NamedTuple):
    """A policy as numbers.

    kind: which. lag: steps by which the survivals that set the budget are old. watched: whether what an early
    stop loses is added up. least: confidence that a token needs. lengths: int64 [requests + 1], by number
    of requests. tiers: int64, lengths of which one is chosen.
    """

    kind: int
    lag: int
    watched: bool
    least: float
    lengths: Rows
    tiers: Rows


_NONE = np.zeros(0, dtype=np.int64)


def flatten(scheduler: Scheduler, requests: int, gamma: int) -> FlatPolicy | None:
    """Return a policy for batches of up to so many requests as numbers; None where Python has to run it.

    So it is with a policy of one's own, and with lengths that do not fit the block, which it refuses.
    """
    kind = type(scheduler)  # a subclass may do anything
    if kind is Fixed or kind is BatchTable:
        assert isinstance(scheduler, Fixed | BatchTable)
        return _by_count(scheduler, requests, gamma)
    if kind is Threshold:
        assert isinstance(scheduler, Threshold)
        return FlatPolicy(THRESHOLD, 0, False, scheduler.threshold * (1 - UNDECIDED), _NONE, _NONE)
    if kind is Tiered:
        assert isinstance(scheduler, Tiered)
        tiers = np.array([tier for tier in scheduler.tiers if tier <= gamma], dtype=np.int64)
        return FlatPolicy(TIERED, scheduler.lag, False, 0.0, _NONE, tiers) if tiers.size else None
    plain = {DSpark: DESCENT, WatchedDSpark: DESCENT, DSparkAsync: GLOBAL, Oracle: ORACLE}
    if kind not in plain:
        return None
    return FlatPolicy(plain[kind], scheduler.lag, kind is WatchedDSpark, 0.0, _NONE, _NONE)


def _by_count(scheduler: Fixed | BatchTable, requests: int, gamma: int) -> FlatPolicy | None:
    lengths = np.zeros(requests + 1, dtype=np.int64)
    lengths[1:] = (
        scheduler.length
        if isinstance(scheduler, Fixed)
        else [scheduler.lengths(count) for count in range(1, requests + 1)]
    )
    return None if lengths.max() > gamma else FlatPolicy(BY_COUNT, 0, False, 0.0, lengths, _NONE)


@inner
def needs_times(policy: FlatPolicy) -> bool:
    """Whether the policy asks how long steps take."""
    return policy.kind >= DESCENT


@inner
def schedule(
    policy: FlatPolicy, grid: Grid, lagged: Grid, requests: int, lengths: Rows, memory: Scratch
) -> float:
    """Write verification lengths; returns the share of throughput that an early stop gives away.

    grid, lagged: [requests * gamma], survivals of now (of the outcome, for the oracle) and of ``lag`` steps
    before. memory.time_s: believed step times of every budget.
    """
    if policy.kind == BY_COUNT:
        for request in range(requests):
            lengths[request] = policy.lengths[requests]
        return 0.0
    lost = 0.0
    if policy.kind == DESCENT or policy.kind == TIERED:
        order(lagged, memory)
    if policy.kind == DESCENT:
        budget = first_descent(memory.ordered[: grid.size], requests * GRID, memory.time_s)
        if policy.watched:
            lost = _lost(memory.ordered[: grid.size], requests * GRID, budget, memory.time_s)
    elif policy.kind == TIERED:
        budget = _best_tier(policy, requests, memory)
    else:
        budget = best_budget(lagged, requests, memory)
    admit(grid, requests, budget, lengths, memory)
    return lost


@inner
def _lost(ordered: Grid, none: int, budget: int, time_s: Floats) -> float:
    """Share of throughput that ``budget`` gives away; none: tokens without drafts, in grid units."""
    enough = highest(ordered, none, time_s, none / time_s[0]) * (1 - TIE)
    best = first_reaching(ordered, none, time_s, enough)
    return 1 - throughput(ordered, none, time_s, budget) / throughput(ordered, none, time_s, best)


@inner
def _best_tier(policy: FlatPolicy, requests: int, memory: Scratch) -> int:
    """Draft tokens of the best tier over candidates in order, the smaller on ties."""
    best = 0.0
    for index in range(2 * policy.tiers.size):  # once for the best, then for the first as good
        budget = requests * policy.tiers[index % policy.tiers.size]
        now = throughput(memory.ordered, requests * GRID, memory.time_s, budget)
        if index < policy.tiers.size:
            best = max(best, now)
        elif now >= best * (1 - TIE):
            return budget
    return 0  # pragma: no cover - one of them is the best


@inner
def confident_length(survival: NDArray[np.float32], least: float) -> int:
    """Tokens of a block up to the first whose confidence is below ``least``; survival: [gamma]."""
    before = 1.0
    for position in range(survival.size):
        now = np.float64(survival[position])
        if not now >= before * least - FAINT:
            return position
        before = now
    return survival.size
