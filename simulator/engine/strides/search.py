"""The budget search and the allocation of ``schedulers.search``, compiled: the same integers, the same ties.

Candidates are counted by bucket of their high bits. Throughput at a bucket's end is exact and bounds it
inside, so only buckets that can hold the maximum are sorted. All sums are of integers below 2^53.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats, Rows
from simulator.engine.strides.jit import inner
from simulator.schedulers.search import GRID, TIE

FEW = 48
"""Candidates up to which all are sorted by insertion, without counting: a choice."""

A_BUCKET = 4
"""Candidates for each bucket, were they spread evenly: a choice, that was faster than 2 and 1 at 200 x 5."""

MOST_BUCKETS = 2**13
"""A choice: two arrays of so many counts take 128 kB."""

Grid = NDArray[np.int32]


class Scratch(NamedTuple):
    """Memory of a search over up to n candidates.

    time_s: [n + 1]. ordered: int32 [n]. tally, total: int64, by bucket, one more than ``MOST_BUCKETS``.
    """

    time_s: Floats
    ordered: Grid
    tally: Rows
    total: Rows


def scratch(candidates: int) -> Scratch:
    """Return memory for searches over up to so many candidates."""
    buckets = MOST_BUCKETS + 1
    return Scratch(
        np.zeros(candidates + 1), np.zeros(candidates, dtype=np.int32),
        np.zeros(buckets, dtype=np.int64), np.zeros(buckets, dtype=np.int64),
    )  # fmt: skip


@inner
def bucket_bits(candidates: int) -> int:
    """Low bits that a bucket leaves out, for so many candidates: fewer candidates, wider buckets."""
    bits, buckets = 30, 1
    while buckets < MOST_BUCKETS and buckets * A_BUCKET < candidates:
        bits, buckets = bits - 1, 2 * buckets
    return bits


@inner
def best_budget(grid: Grid, requests: int, memory: Scratch) -> int:
    """Find the budget with the most expected tokens a second, the smallest on ties.

    grid: [n] survival of all candidates in grid units. memory.time_s: [n + 1] filled by the caller.
    """
    size = grid.size
    ordered = memory.ordered
    if size <= FEW:
        _copy(grid, ordered)
        sort_falling(ordered, 0, size)
        return first_best(ordered, size, requests * GRID, memory.time_s, 0, -1.0)
    bits = bucket_bits(size)
    _count(grid, bits, memory.tally, memory.total)
    best = _best_end(requests, bits, memory)
    top, bottom, before, held = _likely(requests, bits, best * (1 - TIE), memory)
    likely = _order_buckets(grid, top, bottom, bits, memory)
    return first_best(ordered, likely, held, memory.time_s, before, best)


@inner
def _copy(grid: Grid, into: Grid) -> None:
    for index in range(grid.size):
        into[index] = grid[index]


@inner
def _count(grid: Grid, bits: int, count: Rows, total: Rows) -> None:
    """Count candidates and add their survivals up, by bucket."""
    for bucket in range((GRID >> bits) + 1):
        count[bucket] = 0
        total[bucket] = 0
    for index in range(grid.size):
        value = int(grid[index])
        count[value >> bits] += 1
        total[value >> bits] += value


@inner
def _best_end(requests: int, bits: int, memory: Scratch) -> float:
    """Return the best throughput of the budgets that end with a bucket, and of none."""
    held, taken = requests * GRID, 0
    best = held / memory.time_s[0]
    for bucket in range(GRID >> bits, -1, -1):
        if memory.tally[bucket]:
            taken += memory.tally[bucket]
            held += memory.total[bucket]
            best = max(best, held / memory.time_s[taken])
    return best


@inner
def _likely(requests: int, bits: int, enough: float, memory: Scratch) -> tuple[int, int, int, int]:
    """First and last bucket that may hold a throughput of ``enough``; candidates and tokens before these.

    Within a bucket no budget has more tokens than at its end, nor takes less than its shortest step. The end
    of a bucket belongs to it; a budget of none belongs to the first one.
    """
    time_s = memory.time_s
    held, taken = requests * GRID, 0
    top, bottom, before, held_before = -1, -1, 0, held
    for bucket in range(GRID >> bits, -1, -1):
        many = memory.tally[bucket]
        if many == 0:
            continue
        shortest = time_s[taken + 1] if taken else min(time_s[0], time_s[1])
        for budget in range(taken + 2, taken + many + 1):
            shortest = min(shortest, time_s[budget])
        if (held + memory.total[bucket]) / shortest >= enough:
            if top < 0:
                top, before, held_before = bucket, taken, held
            bottom = bucket
        held += memory.total[bucket]
        taken += many
    return top, bottom, before, held_before


@inner
def _gather(grid: Grid, bucket: int, bits: int, into: Grid) -> int:
    """Copy the candidates of one bucket; returns how many."""
    size = 0
    for index in range(grid.size):
        if grid[index] >> bits == bucket:
            into[size] = grid[index]
            size += 1
    return size


@inner
def first_best(ordered: Grid, size: int, held: int, time_s: Floats, before: int, known: float) -> int:
    """Find the smallest of the best budgets from ``before`` on, which has ``held`` tokens in grid units.

    ordered: the ``size`` candidates that follow, falling. known: a throughput that some budget has.
    """
    best, tokens = max(known, held / time_s[before]), held
    for index in range(size):
        tokens += int(ordered[index])
        best = max(best, tokens / time_s[before + index + 1])
    enough, tokens = best * (1 - TIE), held
    if tokens / time_s[before] >= enough:
        return before
    for index in range(size):
        tokens += int(ordered[index])
        if tokens / time_s[before + index + 1] >= enough:
            return before + index + 1
    return before + size  # not reached: one of them is the best


@inner
def sort_falling(values: Grid, first: int, stop: int) -> None:
    """Sort ``values[first:stop]`` in place, the largest first: by insertion, or through a heap where many."""
    if stop - first > FEW:
        for root in range((stop - first) // 2 - 1, -1, -1):
            _sift(values, first, root, stop - first)
        for size in range(stop - first - 1, 0, -1):
            values[first], values[first + size] = values[first + size], values[first]
            _sift(values, first, 0, size)
        return
    for index in range(first + 1, stop):
        value, place = values[index], index
        while place > first and values[place - 1] < value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@inner
def _sift(values: Grid, first: int, root: int, size: int) -> None:
    """Move the root of a heap of ``size`` values, the smallest on top, down to its place."""
    value, at = values[first + root], root
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and values[first + child + 1] < values[first + child]:
            child += 1
        if values[first + child] >= value:
            break
        values[first + at] = values[first + child]
        at = child
    values[first + at] = value


@inner
def first_descent(ordered: Grid, size: int, requests: int, time_s: Floats) -> int:
    """Budget of Algorithm 1 over ``size`` candidates in falling order."""
    tokens = requests * GRID
    now = tokens / time_s[0]
    for index in range(size):
        tokens += int(ordered[index])
        following = tokens / time_s[index + 1]
        if following <= now * (1 + TIE):
            return index
        now = following
    return size


@inner
def throughput(ordered: Grid, requests: int, time_s: Floats, budget: int) -> float:
    """Return the expected tokens a second of one budget, in grid units; ``ordered`` falls."""
    tokens = requests * GRID
    for index in range(budget):
        tokens += int(ordered[index])
    return tokens / time_s[budget]


@inner
def admit(grid: Grid, requests: int, budget: int, lengths: Rows, memory: Scratch) -> None:
    """Verification lengths [requests] of the ``budget`` candidates with the highest survival.

    Ties go to the smaller position, then to the smaller request.
    """
    gamma = grid.size // max(requests, 1)
    if budget <= 0 or budget >= grid.size:
        for request in range(requests):
            lengths[request] = gamma if budget > 0 else 0
        return
    threshold = _nth(grid, budget, memory)
    if _reaching(grid, requests, threshold, lengths) == budget:
        return  # no tie to break
    room = budget - _reaching(grid, requests, threshold + 1, lengths)
    for position in range(gamma):
        for request in range(requests):
            if room == 0:
                return
            if grid[request * gamma + position] == threshold:
                lengths[request] += 1
                room -= 1


@inner
def _reaching(grid: Grid, requests: int, threshold: int, lengths: Rows) -> int:
    """Count the candidates of each request that reach a threshold, into ``lengths``; returns their sum."""
    gamma, together = grid.size // requests, 0
    for request in range(requests):
        length = 0
        for place in range(request * gamma, (request + 1) * gamma):
            length += grid[place] >= threshold
        lengths[request] = length
        together += length
    return together


@inner
def _nth(grid: Grid, budget: int, memory: Scratch) -> int:
    """Survival of the ``budget``-th candidate, the first being the most likely."""
    if grid.size <= FEW:
        _copy(grid, memory.ordered)
        sort_falling(memory.ordered, 0, grid.size)
        return memory.ordered[budget - 1]
    bits = bucket_bits(grid.size)
    count, left = memory.tally, budget
    for bucket in range((GRID >> bits) + 1):
        count[bucket] = 0
    for index in range(grid.size):
        count[grid[index] >> bits] += 1
    bucket = GRID >> bits
    while left > count[bucket]:
        left -= count[bucket]
        bucket -= 1
    held = _gather(grid, bucket, bits, memory.ordered)
    sort_falling(memory.ordered, 0, held)
    return memory.ordered[left - 1]


@inner
def order(grid: Grid, memory: Scratch) -> None:
    """Put all candidates into ``memory.ordered``, falling."""
    if grid.size <= FEW:
        _copy(grid, memory.ordered)
        sort_falling(memory.ordered, 0, grid.size)
        return
    bits = bucket_bits(grid.size)
    _count(grid, bits, memory.tally, memory.total)
    _order_buckets(grid, GRID >> bits, 0, bits, memory)


@inner
def _order_buckets(grid: Grid, top: int, bottom: int, bits: int, memory: Scratch) -> int:
    """Put the candidates of some counted buckets into ``memory.ordered``, falling; returns how many.

    Where a bucket ends takes the place of its ``memory.total``.
    """
    ordered, tally, ends, size = memory.ordered, memory.tally, memory.total, 0
    for bucket in range(top, bottom - 1, -1):
        ends[bucket] = size
        size += tally[bucket]
    least, most = bottom << bits, ((top + 1) << bits) - 1
    for index in range(grid.size):
        value = grid[index]
        if least <= value <= most:
            ordered[ends[value >> bits]] = value
            ends[value >> bits] += 1
    for bucket in range(top, bottom - 1, -1):
        if tally[bucket] > 1:
            sort_falling(ordered, ends[bucket] - tally[bucket], ends[bucket])
    return size
