"""Workload: what it refuses, and that selecting and merging keep every request whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError
from simulator.traffic.workload import PrefixBlocks, Workload, merge

GOOD: dict[str, Any] = {
    "arrival_s": np.array([0.0, 1.0, 1.0]),
    "prompt_tokens": np.array([5, 6, 7]),
    "output_tokens": np.array([1, 2, 3]),
    "class_index": np.array([0, 1, 0]),
    "classes": ("chat", "code"),
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("arrival_s", [0.0, 2.0, 1.0], r"arrival_s: goes back in time \(request 2\) \(got 1.0\)"),
        ("arrival_s", [-1.0, 2.0, 3.0], "must not be negative"),
        ("arrival_s", [0.0, np.nan, 3.0], "must be finite"),
        ("arrival_s", [0.0, 1.0], "arrival_s: has 2 entries where prompt_tokens has 3"),
        ("arrival_s", [[0.0, 1.0, 2.0]], "one dimension"),
        ("prompt_tokens", [5, 0, 7], "prompt_tokens: must be at least 1"),
        ("prompt_tokens", [5.0, 6.0, 7.0], "must be integers"),
        ("output_tokens", [1, 2, -3], "output_tokens: must be at least 1"),
        ("output_tokens", [1, 2], "has 2 entries"),
        ("class_index", [0, 2, 0], r"must lie in 0\.\.1"),
        ("class_index", [0, 100_000, 0], "does not fit int16"),
        ("class_index", [0, -65_536, 0], "does not fit int16"),
        ("classes", tuple(map(str, range(2**15 + 1))), "classes: must be at most 32,768"),
        ("clock_tick_s", -1.0, "clock_tick_s: must be finite"),
        ("clock_tick_s", np.nan, "clock_tick_s: must be finite"),
        ("classes", ("chat", "chat"), "distinct"),
        ("classes", (), "distinct"),
        ("prefix", PrefixBlocks.from_rows([[1], [2]], 512), "prefix: has 2 entries"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(field: str, value: Any, message: str) -> None:
    given_value = np.array(value) if isinstance(value, list) else value
    with pytest.raises(BadInputError, match=message):
        Workload(**{**GOOD, field: given_value})


def test_arrays_cannot_be_changed_afterwards() -> None:
    workload = Workload(**GOOD)
    with pytest.raises(ValueError, match="read-only"):
        workload.prompt_tokens[0] = 9


def test_rate_counts_gaps_rather_than_requests() -> None:
    assert Workload.single_class([2.0, 3.0, 4.0], [1, 1, 1], [1, 1, 1]).rate_per_s == 1.0
    assert Workload.single_class([2.0, 2.0], [1, 1], [1, 1]).rate_per_s == np.inf
    assert np.isnan(Workload.single_class([2.0], [1], [1]).rate_per_s)


def test_a_closed_loop_has_no_times_to_ask_for() -> None:
    closed = Workload.single_class(None, [1], [1])
    assert closed.is_closed_loop
    for ask in (lambda: closed.rate_per_s, lambda: closed.before(1.0), lambda: closed.at_rate(2.0)):
        with pytest.raises(BadInputError, match="closed loop"):
            ask()


def test_a_clock_tick_goes_with_the_times() -> None:
    workload = Workload(**GOOD, clock_tick_s=3.0)
    assert workload.head(2).clock_tick_s == 3.0
    assert workload.at_rate(2.0).clock_tick_s == 1.5
    assert merge([Workload(**GOOD), workload]).clock_tick_s == 3.0


def test_ids_and_classes_beyond_their_width_are_refused() -> None:
    with pytest.raises(BadInputError, match="prefix ids: must fit 64 bits"):
        PrefixBlocks.from_rows([[2**63]], 16)
    many = [Workload.single_class([0.0], [1], [1], name=str(index)) for index in range(2**15 + 1)]
    with pytest.raises(BadInputError, match=r"classes: must be at most 32,768 \(got 32769\)"):
        merge(many)


def test_shards_partition_the_requests() -> None:
    workload = Workload.single_class(np.arange(10.0), np.arange(1, 11), np.ones(10, int))
    shards = [workload.shard(index, 3) for index in range(3)]
    assert merge(shards).prompt_tokens.tolist() == workload.prompt_tokens.tolist()
    assert [len(shard) for shard in shards] == [4, 3, 3]
    with pytest.raises(BadInputError, match="shard"):
        workload.shard(3, 3)


def test_selecting_by_time_class_and_count() -> None:
    workload = Workload(**GOOD)
    assert workload.before(1.0).prompt_tokens.tolist() == [5]
    assert workload.of_class("chat").prompt_tokens.tolist() == [5, 7]
    assert workload.head(2).output_tokens.tolist() == [1, 2]
    with pytest.raises(BadInputError, match="no such class"):
        workload.of_class("math")


def test_a_faster_rate_moves_arrivals_and_nothing_else() -> None:
    workload = Workload(**GOOD)
    faster = workload.at_rate(4.0)
    assert faster.arrival_s is not None
    assert faster.arrival_s.tolist() == [0.0, 0.25, 0.25]
    assert faster.prompt_tokens.tolist() == workload.prompt_tokens.tolist()
    with pytest.raises(BadInputError, match="positive"):
        workload.at_rate(0.0)


def test_merging_interleaves_and_joins_classes_by_name() -> None:
    code = Workload.single_class([0.5, 1.0], [50, 51], [9, 9], name="code")
    merged = merge([Workload(**GOOD), code])
    assert merged.arrival_s is not None
    assert merged.arrival_s.tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert merged.prompt_tokens.tolist() == [5, 50, 6, 7, 51]
    assert [merged.classes[index] for index in merged.class_index] == ["chat", "code", "code", "chat", "code"]
    with pytest.raises(BadInputError, match="mix closed loops"):
        merge([code, Workload.single_class(None, [1], [1])])


def test_merging_keeps_prefix_blocks_of_one_size_only() -> None:
    parts = [
        Workload.single_class([time], [600], [1], prefix=PrefixBlocks.from_rows([[number, 7]], size))
        for time, number, size in ((1.0, 1, 512), (0.0, 2, 512), (2.0, 3, 64))
    ]
    kept = merge(parts[:2]).prefix
    assert kept is not None
    assert [kept.row(0).tolist(), kept.row(1).tolist()] == [[2, 7], [1, 7]]
    assert merge(parts).prefix is None


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=5), min_size=1, max_size=8), st.data())
def test_prefix_rows_survive_any_selection(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    taken = PrefixBlocks.from_rows(rows, 16).take(np.array(chosen, dtype=np.intp))
    assert [taken.row(index).tolist() for index in range(len(taken))] == [rows[index] for index in chosen]


@pytest.mark.parametrize("offsets", [[], [0, 2], [1, 3], [0, 3, 1, 3]])
def test_prefix_offsets_must_cover_the_ids(offsets: list[int]) -> None:
    with pytest.raises(BadInputError, match="prefix offsets"):
        PrefixBlocks(16, np.array([1, 2, 3]), np.array(offsets, dtype=np.int64))
