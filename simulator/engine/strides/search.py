"""The budget search and the allocation of ``schedulers.search``, compiled: the same integers, the same ties.

Candidates are counted by bucket of their high bits. Throughput at a bucket's end is exact, and what its
values add up to bounds it inside, so only buckets that can hold the maximum are sorted. All sums are of
integers below 2^53, and rounding a quotient is monotone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats, Rows
from simulator.engine.strides.jit import inner, zero
from simulator.schedulers.search import GRID, TIE

FEW = 48
"""Candidates up to which all are sorted by insertion, without counting: a choice."""

A_BUCKET = 4
"""Candidates for each bucket, were they spread evenly: a choice, that was faster than 2 and 1 at 200 x 5."""

MOST_BUCKETS = 2**11
"""A choice: two tallies of so many buckets take 32 kB, and fit into the fastest cache."""

CHUNK = 64
"""Candidates among which one of a bucket is looked for at once: a choice, faster than 32 and 128."""

_SUM = 41
"""Low bits of a tally: the sum of what candidates have above the least survival of their bucket.

The number of candidates stands above. With n of them, fewer than 2^22 (``flat_cost.LARGEST``), in buckets
2^b wide, the sum is below n * 2^b. With ``MOST_BUCKETS`` b is 19, so the sum is below 2^41; with fewer
buckets n is at most ``A_BUCKET`` * 2^(30 - b), and the sum below 2^32. So a tally stays below 2^63.
"""

_ONE = 1 << _SUM
"""A candidate in a tally."""

_POSITIVE = 2**31 - 1
"""All bits of a candidate: with this mask the compiler knows that no index is negative, and checks none."""

_LAST = 2**32 - 1

Grid = NDArray[np.int32]


class Scratch(NamedTuple):
    """Memory of a search over up to n candidates.

    time_s: [n + 2], of which the last is never a time. ordered: int32 [n]. keys: int64 [n]. tally, second:
    int64, by bucket, one more than ``MOST_BUCKETS``.
    """

    time_s: Floats
    ordered: Grid
    keys: Rows
    tally: Rows
    second: Rows


def scratch(candidates: int) -> Scratch:
    """Return memory for searches over up to so many candidates."""
    buckets = MOST_BUCKETS + 1
    return Scratch(
        np.zeros(candidates + 2), np.zeros(candidates, dtype=np.int32), np.zeros(candidates, dtype=np.int64),
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
    size, none = grid.size, requests * GRID
    best = none / memory.time_s[0]
    likely, before, held = size, 0, none
    if size <= FEW or _falls(memory.time_s[1 : size + 1]):
        order(grid, memory)
    else:
        bits = bucket_bits(size)
        _count(grid, bits, memory)
        best = max(best, _best_end(none, bits, memory))
        top, bottom, before, held = _likely(none, bits, best * (1 - TIE), memory)
        likely = _order_buckets(grid, top, bottom, bits, memory)
    ordered, time_s = memory.ordered[:likely], memory.time_s[before:]
    enough = highest(ordered, held, time_s, best) * (1 - TIE)
    if none / memory.time_s[0] >= enough:
        return 0
    return before + first_reaching(ordered, held, time_s, enough)


@inner
def _falls(time_s: Floats) -> bool:
    """Whether a larger budget ever takes less time."""
    falls = 0
    for index in range(time_s.size - 1):
        falls += time_s[index + 1] < time_s[index]
    return falls > 0


@inner
def _count(grid: Grid, bits: int, memory: Scratch) -> None:
    """Count candidates by bucket into ``memory.tally``, with the sums of their low bits: see ``_SUM``.

    Each half of the candidates has a tally of its own: neighbours are alike, and adding to a sum once more
    waits until the last addition is written.
    """
    tally, second, low, half = memory.tally, memory.second, (1 << bits) - 1, grid.size // 2
    for bucket in range((GRID >> bits) + 1):
        tally[bucket] = 0
        second[bucket] = 0
    for index in range(half):
        one, other = int(grid[index]) & _POSITIVE, int(grid[half + index]) & _POSITIVE
        tally[one >> bits] += _ONE + (one & low)
        second[other >> bits] += _ONE + (other & low)
    if grid.size > 2 * half:
        one = int(grid[2 * half])
        tally[one >> bits] += _ONE + (one & low)
    for bucket in range((GRID >> bits) + 1):
        tally[bucket] += second[bucket]


@inner
def _counted(memory: Scratch, bucket: int, bits: int) -> tuple[int, int]:
    """Candidates of a bucket, and their survivals together."""
    many = memory.tally[bucket] >> _SUM
    return many, (many * bucket << bits) + (memory.tally[bucket] & (_ONE - 1))


@inner
def _best_end(none: int, bits: int, memory: Scratch) -> float:
    """Return the best throughput of the budgets that end with a bucket; an empty one ends as that before."""
    held, taken, best = none, 0, 0.0
    for bucket in range(GRID >> bits, -1, -1):
        many, total = _counted(memory, bucket, bits)
        taken += many
        held += total
        best = max(best, held / memory.time_s[taken])
    return best


@inner
def _likely(none: int, bits: int, enough: float, memory: Scratch) -> tuple[int, int, int, int]:
    """First and last bucket that may hold a throughput of ``enough``; candidates and tokens before these.

    The last comes before the first where none may. Within a bucket no budget has more tokens than at its
    end, nor takes less time than the first.
    """
    held, taken = none, 0
    top, bottom, before, held_before = -1, 0, 0, held
    for bucket in range(GRID >> bits, -1, -1):
        many, total = _counted(memory, bucket, bits)
        if (held + total) / memory.time_s[taken + 1] >= enough and _may_reach(
            enough, bucket << bits, 1 << bits, many, held, total, memory.time_s[taken:]
        ):
            if top < 0:
                top, before, held_before = bucket, taken, held
            bottom = bucket
        held += total
        taken += many
    return top, bottom, before, held_before


@inner
def _may_reach(
    enough: float, least: int, width: int, many: int, held: int, total: int, time_s: Floats
) -> bool:
    """Whether ``many`` candidates from ``least`` on, ``total`` together, can bring a budget to ``enough``."""
    for index in range(1, many + 1):
        tokens = min(index * (least + width - 1), total - (many - index) * least)
        if (held + tokens) / time_s[index] >= enough:
            return True
    return False


@inner
def highest(ordered: Grid, held: int, time_s: Floats, known: float) -> float:
    """Return the highest throughput of budgets that add ``ordered``, falling, to ``held`` tokens.

    known: a throughput that some budget has.
    """
    best, tokens = known, held
    for index in range(ordered.size):
        tokens += int(ordered[index])
        best = max(best, tokens / time_s[index + 1])
    return best


@inner
def first_reaching(ordered: Grid, held: int, time_s: Floats, enough: float) -> int:
    """Find the smallest budget with a throughput of ``enough``: there is one."""
    tokens = held
    for index in range(ordered.size):
        if tokens / time_s[index] >= enough:
            return index
        tokens += int(ordered[index])
    return ordered.size


@inner
def sort_falling(values: Rows | Grid) -> None:
    """Sort in place, the largest first: by insertion, first over gaps where there are many (Shell, 1959).

    The gaps are those of Knuth, The Art of Computer Programming 3, 5.2.1.
    """
    gap = 1
    while 3 * gap < values.size:
        gap = 3 * gap + 1
    while gap > 0:
        for index in range(gap, values.size):
            value, place = values[index], index
            while place >= gap and values[place - gap] < value:
                values[place] = values[place - gap]
                place -= gap
            values[place] = value
        gap //= 3


@inner
def first_descent(ordered: Grid, none: int, time_s: Floats) -> int:
    """Budget of Algorithm 1 over candidates in falling order; none: tokens without drafts, in grid units."""
    tokens = none
    now = tokens / time_s[0]
    for index in range(ordered.size):
        tokens += int(ordered[index])
        following = tokens / time_s[index + 1]
        if following <= now * (1 + TIE):
            return index
        now = following
    return ordered.size


@inner
def throughput(ordered: Grid, none: int, time_s: Floats, budget: int) -> float:
    """Return the expected tokens a second of one budget, in grid units; ``ordered`` falls."""
    tokens = none
    for index in range(budget):
        tokens += int(ordered[index])
    return tokens / time_s[budget]


@inner
def admit(grid: Grid, requests: int, budget: int, lengths: Rows, memory: Scratch) -> None:
    """Verification lengths [requests] of the ``budget`` candidates with the highest survival.

    Ties go to the smaller position, then to the smaller request.
    """
    if budget <= 0 or budget >= grid.size:
        for request in range(requests):
            lengths[request] = grid.size // requests if budget > 0 else 0
        return
    bits = bucket_bits(grid.size)
    _count(grid, bits, memory)
    bucket, left = _last_bucket(budget, bits, memory.tally)
    _admit_above(grid, ((bucket + 1) << bits) - 1, lengths[:requests])
    keys = memory.keys[: memory.tally[bucket] >> _SUM]
    _write_keys(grid, requests, bucket, bits, keys)
    if left < keys.size:
        sort_falling(keys)
    for index in range(left):
        lengths[(_LAST - (keys[index] & _LAST)) % requests] += 1


@inner
def _last_bucket(budget: int, bits: int, tally: Rows) -> tuple[int, int]:
    """Bucket in which a budget ends, and how many candidates of this bucket belong to it."""
    bucket, left = GRID >> bits, budget
    while left > tally[bucket] >> _SUM:
        left -= tally[bucket] >> _SUM
        bucket -= 1
    return bucket, left


@inner
def _admit_above(grid: Grid, survival: int, lengths: Rows) -> None:
    """Admit all candidates above a survival; grid: [requests * gamma], lengths: [requests]."""
    gamma = grid.size // lengths.size
    for request in range(lengths.size):
        length = 0
        for position in range(gamma):
            length += int(grid[request * gamma + position]) > survival
        lengths[request] = length


@inner
def _write_keys(grid: Grid, requests: int, bucket: int, bits: int, keys: Rows) -> None:
    """Write a key for each candidate of a bucket, which fall in the order of admission.

    This is by survival, then position, then request.
    """
    gamma, least, most, held = grid.size // requests, bucket << bits, ((bucket + 1) << bits) - 1, 0
    for start in range(0, grid.size, CHUNK):
        if _any_between(grid[start : start + CHUNK], least, most):
            for index in range(start, min(start + CHUNK, grid.size)):
                value = int(grid[index])
                if least <= value <= most:
                    keys[held] = (value << 32) + _LAST - (index % gamma * requests + index // gamma)
                    held += 1


@inner
def _any_between(candidates: Grid, least: int, most: int) -> bool:
    """Whether a candidate lies there: compared without branches, which the compiler does for many at once."""
    found, low, high = False, np.int32(least), np.int32(most)
    for index in range(candidates.size):
        found |= (candidates[index] >= low) & (candidates[index] <= high)
    return found


@inner
def order(grid: Grid, memory: Scratch) -> None:
    """Put all candidates into ``memory.ordered``, falling."""
    if grid.size <= FEW:
        for index in range(grid.size):
            memory.ordered[index] = grid[index]
        sort_falling(memory.ordered[: grid.size])
        return
    bits = bucket_bits(grid.size)
    _count(grid, bits, memory)
    _order_buckets(grid, GRID >> bits, zero(), bits, memory)


@inner
def _order_buckets(grid: Grid, top: int, bottom: int, bits: int, memory: Scratch) -> int:
    """Put the candidates of some counted buckets into ``memory.ordered``, falling; returns how many.

    Where a bucket ends takes the place of its ``memory.second``.
    """
    ordered, tally, ends, size = memory.ordered, memory.tally, memory.second, 0
    for bucket in range(top, bottom - 1, -1):
        ends[bucket] = size
        size += tally[bucket] >> _SUM
    if size == 0:
        return 0
    least, most = bottom << bits, ((top + 1) << bits) - 1
    for start in range(0, grid.size, CHUNK):
        if _any_between(grid[start : start + CHUNK], least, most):
            for index in range(start, min(start + CHUNK, grid.size)):
                value = int(grid[index])
                if least <= value <= most:
                    ordered[ends[value >> bits]] = value
                    ends[value >> bits] += 1
    begin = 0
    for bucket in range(top, bottom - 1, -1):
        if ends[bucket] - begin > 1:
            sort_falling(ordered[begin : ends[bucket]])
        begin = ends[bucket]
    return size
