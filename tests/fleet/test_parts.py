"""Routers, the prefix cache and the layout of a fleet, by hand and without a simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.core.errors import BadInputError
from simulator.engine.limits import EngineLimits
from simulator.fleet.layout import Fleet
from simulator.fleet.prefix_cache import PrefixCache
from simulator.fleet.routers import Board, LeastLoaded, PowerOfTwo, PrefixAware, RoundRobin
from simulator.traffic.workload import PrefixBlocks, Workload


class Fixed:
    """A stream that draws what it is told."""

    def __init__(self, *draws: object) -> None:
        self.draws = list(draws)
        self.asked: list[tuple[object, object]] = []

    def integers(self, high: object, size: object = None) -> object:
        self.asked.append((high, size))
        return self.draws.pop(0)


def least(loads: list[int], *draws: object) -> LeastLoaded:
    return LeastLoaded(np.array(loads), Fixed(*draws))  # type: ignore[arg-type]


# --- routers ------------------------------------------------------------------------------------------------


def test_round_robin_begins_with_the_first_and_comes_back() -> None:
    router = RoundRobin(3)
    assert [router.choose(request) for request in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_least_loaded_are_drawn_among_evenly() -> None:
    router = least([2, 1, 5, 1], 1, 0)
    assert [router.choose(0), router.choose(0)] == [3, 1]
    assert router.stream.asked == [(2, None), (2, None)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("drawn", "chosen"), [((0, 1), 1), ((1, 0), 1), ((0, 2), 0), ((2, 0), 2)])
def test_of_two_the_less_loaded_and_on_a_tie_the_first(drawn: tuple[int, int], chosen: int) -> None:
    stream = Fixed(drawn)
    assert PowerOfTwo(np.array([4, 3, 4]), stream).choose(0) == chosen  # type: ignore[arg-type]
    assert stream.asked == [(3, 2)]


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([9, 0, 0, 7], 1),  # nobody holds more than 1.25 x 4 + 1 = 6 here: 9 does
        ([6, 2, 4, 4], 0),  # exactly 1.25 x 4 + 1
        ([7, 2, 4, 3], 1),  # beyond
    ],
)
def test_a_cached_prefix_is_left_where_its_replica_is_too_busy(loads: list[int], chosen: int) -> None:
    """Replica 0 alone holds the prefix; the least loaded takes what it spills."""
    board = Board(np.array(loads), holders={7: {0}})
    prefix = PrefixBlocks.from_rows([[7]], block_tokens=16)
    assert PrefixAware(board, prefix, least(loads, 0)).choose(0) == chosen


def test_the_longest_common_prefix_wins_and_then_the_load() -> None:
    """Block 1 is on replicas 0, 1 and 2, block 2 on 1 and 2; block 3 on 0 only, which has no block 2."""
    board = Board(np.array([0, 2, 1, 0]), holders={1: {0, 1, 2}, 2: {1, 2}, 3: {0}})
    rows = [[1, 2, 3], [1], [9, 1], [1, 2, 9], [3]]
    prefix = PrefixBlocks.from_rows(rows, block_tokens=16)
    loads = [0, 2, 1, 0]
    chosen = [PrefixAware(board, prefix, least(loads, 1)).choose(request) for request in range(len(rows))]
    assert chosen == [2, 0, 3, 2, 0]
    assert board.holders == {1: {0, 1, 2}, 2: {1, 2}, 3: {0}}, "choosing changes nothing"


def test_equal_holders_are_taken_in_order() -> None:
    board = Board(np.array([1, 1, 1]), holders={1: {2, 1}})
    prefix = PrefixBlocks.from_rows([[1]], block_tokens=16)
    assert PrefixAware(board, prefix, least([1, 1, 1])).choose(0) == 1


# --- the prefix cache ---------------------------------------------------------------------------------------


def cache(rows: list[list[int]], prompts: list[int], blocks: int) -> tuple[PrefixCache, dict[int, set[int]]]:
    count = len(rows)
    workload = Workload.single_class(
        np.arange(count, dtype=float), np.array(prompts), np.ones(count, dtype=int),
        prefix=PrefixBlocks.from_rows(rows, block_tokens=10),
    )  # fmt: skip
    holders: dict[int, set[int]] = {}
    return PrefixCache(workload, blocks, holders, index=4), holders


def test_common_leading_blocks_are_found_and_one_token_is_left() -> None:
    """30 tokens in 3 blocks: 2 blocks found are 20 tokens, 3 are 29; a hole ends the prefix."""
    kept, holders = cache([[1, 2, 3], [1, 2, 4], [1, 2, 4], [9, 1, 2]], [30, 30, 30, 30], blocks=10)
    assert kept.hit_share == 0
    assert [kept.take(request) for request in range(4)] == [0, 20, 29, 0]
    assert kept.hit_share == pytest.approx(49 / 120)
    assert holders == {block: {4} for block in (1, 2, 3, 4, 9)}


def test_the_block_used_longest_ago_goes_first() -> None:
    """Three blocks are kept: 1, 2, then 1 again and 3, then 4 drops 2."""
    kept, holders = cache([[1], [2], [1, 3], [4], [2], [1]], [10, 10, 20, 10, 10, 10], blocks=3)
    assert [kept.take(request) for request in range(4)] == [0, 0, 10, 0]
    assert holders == {1: {4}, 2: set(), 3: {4}, 4: {4}}
    assert kept.take(4) == 0, "dropped, and taken anew in place of 1"
    assert kept.take(5) == 0
    assert holders[2] == {4}
    assert holders[3] == set()


def test_another_replicas_copy_stays_when_this_one_drops_its_own() -> None:
    kept, holders = cache([[1], [2]], [10, 10], blocks=1)
    holders[1] = {0}
    kept.take(0)
    assert holders[1] == {0, 4}
    kept.take(1)
    assert holders == {1: {0}, 2: {4}}


# --- the layout ---------------------------------------------------------------------------------------------

POOLED = EngineLimits(8, prefill_tokens_per_s=1000.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 0}, "replicas: must lie in 1..1,000,000 (got 0)"),
        ({"replicas": 1_000_001}, "replicas: must lie in 1..1,000,000 (got 1000001)"),
        (
            {"router": "best"},
            "router: is not known (got 'best'); one of round-robin, least-loaded, power-of-two, prefix-aware",
        ),
        ({"pods": 0}, "pods: must divide the 4 replicas evenly (got 0)"),
        ({"pods": 3}, "pods: must divide the 4 replicas evenly (got 3)"),
        (
            {"router": "prefix-aware"},
            "router: needs a prefix cache (got 'prefix-aware'); give prefix_cache_tokens",
        ),
        ({"prefix_cache_tokens": 0}, "prefix_cache_tokens: must be at least 1 (got 0)"),
        (
            {"prefill_workers": 0},
            "prefill_workers: must be at least 1 and divide evenly among 1 pods (got 0)",
        ),
        (
            {"prefill_workers": 3, "pods": 2},
            "prefill_workers: must be at least 1 and divide evenly among 2 pods (got 3)",
        ),
        (
            {"prefill_workers": 2, "limits": EngineLimits(8)},
            "prefill_workers: needs the speed of prefill (got 2); "
            "give prefill_tokens_per_s, with prefill elsewhere",
        ),
    ],
)  # fmt: skip
def test_what_is_no_fleet_is_refused_to_the_letter(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Fleet(**({"replicas": 4, "limits": POOLED} | options))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("options", "pods"),
    [
        ({}, 4), ({"router": "least-loaded"}, 1), ({"pods": 2}, 2),
        ({"router": "least-loaded", "pods": 4}, 4), ({"prefill_workers": 2}, 1),
        ({"prefill_workers": 2, "pods": 2}, 2),
    ],
)  # fmt: skip
def test_pods_of_a_fleet(options: dict[str, Any], pods: int) -> None:
    assert Fleet(4, POOLED, **options).pod_count == pods


def test_the_ends_of_what_a_fleet_may_be() -> None:
    assert Fleet(1, POOLED).replicas == 1
    assert Fleet(4, POOLED, pods=1, prefill_workers=1).pod_count == 1
    assert Fleet(1_000_000, POOLED).pod_count == 1_000_000
    assert Fleet(4, POOLED, router="prefix-aware", prefix_cache_tokens=1).prefix_cache_tokens == 1


def test_a_pods_pool_is_its_share_of_the_workers() -> None:
    assert Fleet(4, POOLED).pod_pool() is None
    shared = Fleet(4, POOLED, pods=2, prefill_workers=6).pod_pool()
    assert shared is not None
    taken = [shared.take(1000, 0.0) for _ in range(4)]
    assert taken == [(0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (1.0, 2.0)], "three workers of 1,000 tokens/s"
