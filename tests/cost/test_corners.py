"""Corners of ``cost``: tables that are wrong, and models that know no end."""

from __future__ import annotations

import math

import pytest

from simulator.core.errors import BadInputError
from simulator.cost.believed import BelievedTable, row_spread, table_warnings
from simulator.cost.curve import Lookup
from simulator.cost.models import AdditiveCost, LengthByRequests, StepTime, ThroughputCurve
from simulator.cost.scaled import ScaledCost


class Endless(StepTime):
    """One millisecond, whatever the step."""

    def _time_s(self, requests, batch_tokens, context_tokens, prefill_tokens):  # type: ignore[no-untyped-def]
        return 1e-3 if isinstance(batch_tokens, int) else [1e-3] * len(batch_tokens)

    def outside(self, requests: int, batch_tokens: int) -> bool:
        return False


def test_a_model_of_ones_own_knows_no_end() -> None:
    assert Endless().measured_tokens == math.inf
    assert ScaledCost(Endless(), 2.0).measured_tokens == math.inf
    assert ScaledCost(ThroughputCurve([1, 8], [100, 50]), 2.0).measured_tokens == 8
    assert row_spread(Endless()) == math.inf
    assert table_warnings(Endless()) == ()


@pytest.mark.parametrize(("first", "length"), [((2,), (1,)), ((1, 1), (2, 3)), ((1,), (2, 3)), ((1,), (-1,))])
def test_lengths_by_requests_must_make_sense(first: tuple[int, ...], length: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError):
        LengthByRequests(first, length)


@pytest.mark.parametrize(
    ("tokens", "rates", "said"),
    [
        ([1, 8], [100.0], "needs 2 values"),
        ([1, 8], [100.0, math.nan], r"steps_per_s\[1\]: must be finite"),
        ([1, 8], [100.0, 0.0], "must be positive"),
    ],
)
def test_a_believed_table_must_be_readable(tokens: list[int], rates: list[float], said: str) -> None:
    lookup: Lookup = "floor"
    with pytest.raises(BadInputError, match=said):
        BelievedTable.of_curve(tokens, rates, lookup=lookup)


def test_a_believed_table_answers_and_knows_its_end() -> None:
    table = BelievedTable.of_curve([1, 8], [100.0, 200.0], lookup="floor")
    assert table.step_time_s(1, 8) == pytest.approx(1 / 200)
    assert table.outside(0, 9)
    assert not table.outside(0, 8)
    assert any("less" in warning for warning in table_warnings(table))


def test_a_row_that_costs_more_with_context_is_never_flat() -> None:
    cost = AdditiveCost(0.01, [1], [0], [1, 64], [0, 0], row_context_s_per_token=1e-9)
    assert row_spread(cost) == math.inf
