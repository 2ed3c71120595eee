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


@pytest.mark.parametrize(("first", "length"), [((2,), (1,)), ((1, 1), (2, 3)), ((1,), (2, 3)), ((), ())])
def test_lengths_by_requests_must_rise(first: tuple[int, ...], length: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError) as caught:
        LengthByRequests(first, length)
    assert str(caught.value) == f"first: must rise from 1, one length each (got {first}); as in (1, 17)"


def test_no_length_is_negative() -> None:
    with pytest.raises(BadInputError) as caught:
        LengthByRequests((1, 2), (3, -1))
    assert str(caught.value) == "length: must not be negative (got (3, -1)); 0 or more"


@pytest.mark.parametrize(
    ("tokens", "rates", "said"),
    [
        ([1, 8], [100.0],
         "steps_per_s: needs 2 values, one per axis point (got 1); export the table again"),
        ([1, 8], [100.0, math.nan], "steps_per_s[1]: must be finite (got nan); measure again"),
        ([1, 8], [100.0, 0.0], "steps_per_s: must be positive (got 0.0); measure again"),
        ([1, -8], [100.0, 1.0], "batch_tokens: must not be negative (got -8.0)"),
    ],
)  # fmt: skip
def test_a_believed_table_must_be_readable(tokens: list[int], rates: list[float], said: str) -> None:
    lookup: Lookup = "floor"
    with pytest.raises(BadInputError) as caught:
        BelievedTable.of_curve(tokens, rates, lookup=lookup)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (([-1], [0.0], [1], [0.0]), "request_probes: must not be negative (got -1.0)"),
        (([1], [0.0], [-1], [0.0]), "token_probes: must not be negative (got -1.0)"),
        (([1], [math.inf], [1], [0.0]), "alpha_s[0]: must be finite (got inf); measure again"),
        (([1], [0.0], [1], [math.inf]), "theta_s[0]: must be finite (got inf); measure again"),
        (([1], [-1e-3], [1], [0.0]),
         "bias_s: bias, alpha and theta must add up to a positive time everywhere (got 0.001); "
         "their smallest sum is 0 s; measure again"),
    ],
)  # fmt: skip
def test_the_parts_of_a_believed_table_are_named(parts: tuple[list[float], ...], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        BelievedTable(1e-3, *parts)
    assert str(caught.value) == said


def test_a_believed_table_answers_and_knows_its_end() -> None:
    table = BelievedTable.of_curve([1, 8], [100.0, 200.0], lookup="floor")
    assert table.step_time_s(1, 8) == pytest.approx(1 / 200)
    assert table.step_time_s(1, 7) == pytest.approx(1 / 100), "floor: the point below"
    assert BelievedTable.of_curve([1, 8], [0.5, 0.25], lookup="linear").step_time_s(5, 8) == 4.0
    assert table.outside(0, 9)
    assert not table.outside(0, 8)
    assert BelievedTable(1.0, [2], [0.0], [1], [0.0]).outside(1, 1)
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


def test_the_first_fall_is_named_after_a_level() -> None:
    """Level at 2, lower at 4 and at 8."""
    table = BelievedTable(5e-3, [1], [0.0], [1, 2, 4, 8], [3e-3, 3e-3, 2e-3, 1e-3])
    (warning,) = table_warnings(table)
    assert warning == (
        "more work takes less time at 4 batch tokens (3 ms, then 2 ms): a scheduler jumps over what "
        "lies between"
    )
    assert row_spread(BelievedTable(5e-3, [1, 2], [0.0, 2e-3], [1, 8], [0.0, 3e-3])) == pytest.approx(0.3)


def test_a_flat_table_says_by_how_much_it_varies() -> None:
    (warning,) = table_warnings(BelievedTable(0.99, [1], [0.0], [1, 9], [0.0, 0.01]))
    assert warning.startswith(
        "step time varies by 1.0% over all batch tokens: a scheduler that reads it sees no "
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
