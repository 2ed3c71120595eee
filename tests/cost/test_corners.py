"""Corners of ``cost``: tables that are wrong, and models that know no end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.core.errors import BadInputError
from simulator.cost.believed import BelievedTable, is_flat, row_spread, table_warnings
from simulator.cost.curve import Curve, Lookup
from simulator.cost.models import AdditiveCost, LengthByRequests, StepCost, StepTime, ThroughputCurve
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
    assert Endless().jitter == ()
    assert ScaledCost(Endless(), 2.0).jitter == ()
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


def test_a_believed_table_must_add_up_to_a_positive_time() -> None:
    with pytest.raises(BadInputError) as caught:
        BelievedTable(1e-3, [1, 2], [-2e-3, 0.0], [1, 8], [0.0, 0.5e-3])
    assert str(caught.value) == (
        "bias_s: bias, alpha and theta must add up to a positive time everywhere (got 0.001); "
        "their smallest sum is -0.001 s; measure again"
    )


def test_a_believed_table_by_hand() -> None:
    """4 ms; 1 ms less for a second request; 2 ms more from 1 to 9 rows, linear."""
    table = BelievedTable(4e-3, [1, 2], [0.0, -1e-3], [1, 9], [0.0, 2e-3])
    assert table.step_time_s(2, 5) == pytest.approx(4e-3)
    assert table.step_time_s(1, range(1, 10, 1)) == pytest.approx([4e-3 + 0.25e-3 * k for k in range(9)])
    assert table.lowest_s == pytest.approx(3e-3)
    assert row_spread(table) == pytest.approx(2 / 6)
    assert table.outside(3, 5)
    (warning,) = table_warnings(table)
    assert warning == (
        "more work takes less time at 2 requests (0 ms, then -1 ms): a scheduler jumps over what lies between"
    )


@pytest.mark.parametrize(("last", "flat"), [(0.0199, True), (0.021, False)])
def test_a_flat_table_never_trims(last: float, flat: bool) -> None:
    table = BelievedTable(1.0 - last, [1], [0.0], [1, 9], [0.0, last])
    assert is_flat(table) is flat
    assert any("never trim" in warning for warning in table_warnings(table)) is flat


def test_ends_of_what_was_measured() -> None:
    line = AdditiveCost(0.01, [1, 4], [0, 0.001], [1, 64], [0, 0.001])
    assert line.measured_tokens == 64
    assert AdditiveCost(0.01, [1], [0], [64], [0]).measured_tokens == math.inf
    assert ThroughputCurve([8], [100.0]).measured_tokens == math.inf
    assert StepCost(line).measured_tokens == 64
    assert StepCost(Endless()).measured_tokens == math.inf
    assert StepCost(line).outside(5, 8)
    assert not StepCost(line).outside(0, 8)
    assert StepCost(line, overhead_s=0.5).step_time_s(1, 1) == pytest.approx(0.51)


def test_a_curve_answers_between_integers_and_beyond_its_table() -> None:
    curve = Curve(np.array([0.0, 2.0]), np.array([1.0, 3.0]), "linear", "last-slope")
    assert curve(0.5) == pytest.approx(1.5)
    assert curve(2**17) == pytest.approx(1.0 + 2**17)
    assert curve(1) == pytest.approx(2.0)


def test_a_row_that_costs_more_with_context_is_never_flat() -> None:
    cost = AdditiveCost(0.01, [1], [0], [1, 64], [0, 0], row_context_s_per_token=1e-9)
    assert row_spread(cost) == math.inf


def test_the_spread_of_a_curve_is_of_its_longest_step() -> None:
    """10 and 20 ms: the shorter one is half as long."""
    assert row_spread(ThroughputCurve([1, 8], [100.0, 50.0])) == pytest.approx(0.5)
    assert table_warnings(ThroughputCurve([1, 8], [100.0, 50.0])) == ()
