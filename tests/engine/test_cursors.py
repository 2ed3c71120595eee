"""Cursors over the traces of several classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.acceptance.trace import Replay
from simulator.engine.cursors import TraceCursors
from simulator.traffic.workload import Workload


def trace(rows: int, *, drawn: bool, gamma: int = 1) -> Replay:
    """Blocks of which nothing is accepted, each a sequence of its own."""
    outcomes = np.zeros(rows, np.uint8)
    return Replay(np.full((rows, gamma), 0.5, np.float32), outcomes, np.arange(rows + 1), drawn=drawn)


def walked(*replays_and_tokens: Any) -> float:
    """Reuse where requests go to the classes in turn; the last argument: how far each request walks."""
    *replays, tokens = replays_and_tokens
    classes, count = len(replays), len(tokens)
    load = Workload(
        None, np.full(count, 4), np.full(count, 50), np.arange(count, dtype=np.int16) % classes,
        tuple("abc"[:classes]),
    )  # fmt: skip
    cursors = TraceCursors(replays, load, capacity=1, seed=0)
    return cursors.reuse(np.arange(count), np.array(tokens))


def test_rows_that_two_classes_share_are_read_by_both() -> None:
    """Three rows read 3 + 3 times: each twice. Two traces of their own: each row once."""
    shared = trace(3, drawn=True)
    assert walked(shared, shared, [3, 3]) == pytest.approx(3 * 2**2 / 6)
    assert walked(shared, trace(3, drawn=True), [3, 3]) == 1.0
    assert walked(shared, trace(3, drawn=True), [6, 3]) == pytest.approx((3 * 2**2 + 3) / 9)


def test_recordings_count_as_read_once() -> None:
    """Three drawn rows read six times, and nine tokens of a recording: (3 * 2**2 + 9) / 15."""
    drawn = trace(3, drawn=True)
    assert walked(drawn, trace(3, drawn=False), [6, 9]) == pytest.approx(21 / 15)
    assert walked(trace(3, drawn=False), drawn, [9, 6]) == pytest.approx(21 / 15)
    assert walked(trace(3, drawn=False), trace(4, drawn=False), drawn, [9, 5, 6]) == pytest.approx(26 / 20)
    assert walked(trace(3, drawn=False), trace(3, drawn=False), [4, 5, 6, 7]) == 1.0
    empty = trace(3, drawn=True, gamma=0)
    assert walked(empty, empty, [6, 9]) == 1.0, "without drafts nothing is drawn"
    assert walked(drawn, drawn, [0, 0]) == 1.0


def test_traces_without_drafts_that_were_drawn_count_as_read_once() -> None:
    assert walked(trace(2, drawn=True, gamma=0), trace(5, drawn=False, gamma=0), [9, 9]) == 1.0
