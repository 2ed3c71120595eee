"""Cost models: lookups, behaviour beyond the points, what is counted as outside, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.core.errors import BadInputError
from simulator.cost.draft import DraftCost
from simulator.cost.models import AdditiveCost, CostModel, StepCost, ThroughputCurve
from tests.support.strategies import additive_costs, cost_models, throughput_curves

# Step times 2, 4 and 8 ms in powers of two, so that every lookup below is exact.
TOKENS, STEPS_PER_S = [8, 16, 32], [512.0, 256.0, 128.0]
MS = 1 / 1024


@pytest.mark.parametrize(
    ("lookup", "at", "step_time_ms"),
    [
        ("linear", 8, 2), ("linear", 12, 3), ("linear", 16, 4), ("linear", 20, 5), ("linear", 32, 8),
        ("floor", 8, 2), ("floor", 15, 2), ("floor", 16, 4), ("floor", 31, 4), ("floor", 32, 8),
        ("ceil", 8, 2), ("ceil", 9, 4), ("ceil", 16, 4), ("ceil", 17, 8), ("ceil", 32, 8),
    ],
)  # fmt: skip
def test_lookup_between_points(lookup: Any, at: int, step_time_ms: float) -> None:
    """Linear means linear in step time: 12 tokens take 3 ms; linear in rate would say 2.67."""
    assert ThroughputCurve(TOKENS, STEPS_PER_S, lookup=lookup).step_time_s(1, at) == step_time_ms * MS


@pytest.mark.parametrize(
    ("options", "step_time_ms"),
    [
        ({}, 12),  # a curve follows its last slope unless told otherwise: 4 ms per 16 tokens
        ({"beyond": "last-slope"}, 12),
        ({"beyond": "clamp"}, 8),
        ({"lookup": "floor"}, 8),
        ({"lookup": "ceil"}, 8),
    ],
)
def test_beyond_the_last_point(options: dict[str, Any], step_time_ms: float) -> None:
    assert ThroughputCurve(TOKENS, STEPS_PER_S, **options).step_time_s(1, 48) == step_time_ms * MS


@pytest.mark.parametrize("lookup", ["linear", "floor", "ceil"])
def test_below_the_first_point_is_clamped(lookup: Any) -> None:
    assert ThroughputCurve(TOKENS, STEPS_PER_S, lookup=lookup).step_time_s(1, 1) == 2 * MS


def test_outside_is_beyond_either_end_and_not_the_ends_themselves() -> None:
    curve = ThroughputCurve(TOKENS, STEPS_PER_S)
    assert [curve.outside(1, b) for b in (7, 8, 20, 32, 33)] == [True, False, False, False, True]
    additive = AdditiveCost(0.01, [2, 4], [0, 0], [8, 32], [0, 0])
    assert [additive.outside(r, b) for r, b in ((2, 8), (4, 32), (1, 8), (5, 8), (2, 7), (2, 33))] == [
        False, False, True, True, True, True,
    ]  # fmt: skip
    assert StepCost(additive).outside(1, 8)


def test_two_points_have_a_slope_and_parts_say_what_they_do_beyond() -> None:
    """4 and 8 ms at 16 and 32 tokens; above them 4 ms more for 16 tokens more, or nothing."""
    assert ThroughputCurve([16, 32], [256.0, 128.0]).step_time_s(1, 48) == 12 * MS
    clamped = AdditiveCost(10 * MS, [1, 5], [0, 4 * MS], [0, 64], [0, 16 * MS], beyond="clamp")
    assert (clamped.beyond, AdditiveCost(MS, [1], [0], [1], [0]).beyond) == ("clamp", "last-slope")
    assert clamped.step_time_s(9, 128) == 30 * MS
    goes_on = AdditiveCost(10 * MS, [1, 5], [0, 4 * MS], [0, 64], [0, 16 * MS])
    assert goes_on.step_time_s(9, 128) == 50 * MS


def test_a_single_point_is_a_constant() -> None:
    curve = ThroughputCurve([8], [512.0])
    assert {curve.step_time_s(1, b) for b in (1, 8, 999)} == {2 * MS}


def test_additive_parts_add() -> None:
    cost = AdditiveCost(
        10 * MS, [1, 5], [0, 4 * MS], [0, 64], [0, 16 * MS],
        context_s_per_token=MS / 16, row_context_s_per_token=MS / 64, prefill_s_per_token=MS / 4,
    )  # fmt: skip
    # bias 10, alpha(3) 2, theta(32) 8, context 48/16 = 3, rows (32 - 8) x 16 / 64 = 6, prefill 8/4 = 2
    assert cost.step_time_s(3, 32, context_tokens=48, prefill_tokens=8) == 31 * MS


def test_a_row_over_a_long_context_costs_more_than_over_a_short_one() -> None:
    cost = AdditiveCost(0.01, [1], [0], [0, 64], [0, 0], row_context_s_per_token=1e-9)
    row_at = {
        context: cost.step_time_s(4, 9, 4 * context) - cost.step_time_s(4, 8, 4 * context)
        for context in (16_000, 32_000)
    }
    assert row_at[32_000] == pytest.approx(2 * row_at[16_000], rel=1e-6)


@given(cost_models(), st.integers(0, 70), st.integers(0, 70), st.integers(1, 80), st.integers(0, 40))
def test_a_range_agrees_bit_for_bit_with_one_size_at_a_time(
    cost: CostModel, requests: int, first: int, count: int, prefill: int
) -> None:
    """A scheduler that plans over the range and a clock that asks for one size must not disagree."""
    sizes = range(first, first + count)
    context = 100.0 * requests
    spanned = cost.step_time_s(requests, sizes, context, prefill)
    assert_array_equal(spanned, [cost.step_time_s(requests, size, context, prefill) for size in sizes])


@given(cost_models())
def test_a_range_beyond_the_table_filled_first_agrees_too(cost: CostModel) -> None:
    assert len(cost.step_time_s(1, range(1, 4))) == 3
    assert cost.step_time_s(1, range(4999, 5000))[0] == cost.step_time_s(1, 4999)
    assert cost.step_time_s(1, range(3, 4))[0] == cost.step_time_s(1, 3)


@given(cost_models(), st.integers(0, 70), st.integers(1, 1000))
def test_more_work_never_takes_less_time(cost: CostModel, requests: int, tokens: int) -> None:
    times = cost.step_time_s(requests, range(tokens + 1), 50.0 * requests)
    assert np.all(times > 0)
    # Extrapolation is computed from differences of nearly equal numbers: allow their rounding.
    assert np.all(np.diff(times) >= -1e-12 * times[1:])


@given(throughput_curves())
def test_every_lookup_passes_through_the_points(curve: ThroughputCurve) -> None:
    times = [curve.step_time_s(1, int(tokens)) for tokens in curve.batch_tokens]
    assert_array_equal(times, 1 / curve.steps_per_s)


@given(additive_costs(), st.floats(0, 1e-3))
def test_step_cost_is_target_plus_draft_plus_overhead(cost: AdditiveCost, overhead_s: float) -> None:
    draft = DraftCost("parallel", 5, [1, 64], [0.001, 0.002])
    whole = StepCost(cost, draft, overhead_s=overhead_s)
    extra = overhead_s + draft.time_s(4)
    assert whole.step_time_s(4, 9) == cost.step_time_s(4, 9) + extra
    assert_array_equal(whole.step_time_s(4, range(4, 25)), cost.step_time_s(4, range(4, 25)) + extra)


def test_nothing_is_drafted_for_an_empty_batch() -> None:
    target = ThroughputCurve(TOKENS, STEPS_PER_S)
    step = StepCost(target, DraftCost("parallel", 5, [1], [0.5]), overhead_s=MS)
    assert step.step_time_s(0, 16) == 4 * MS + MS


@pytest.mark.parametrize(
    ("structure", "sequential_s", "asked_for", "expected_ms"),
    [
        ("autoregressive", None, None, 5 * 2),  # a pass per token
        ("autoregressive", None, 1, 2),
        ("autoregressive", None, 0, 0),
        ("parallel", None, None, 2),  # one pass whatever is asked for
        ("parallel", None, 1, 2),
        ("semi-autoregressive", [MS / 4], None, 2 + 5 / 4),  # and a turn per token of the block
        ("semi-autoregressive", [MS / 4], 1, 2 + 5 / 4),
        ("semi-autoregressive", None, None, 2),
    ],
)
def test_draft_cost_follows_the_structure(
    structure: Any, sequential_s: list[float] | None, asked_for: int | None, expected_ms: float
) -> None:
    draft = DraftCost(structure, 5, [1], [2 * MS], sequential_s)
    assert draft.time_s(1, asked_for) == expected_ms * MS


def test_a_turn_takes_longer_with_more_requests_as_a_pass_does() -> None:
    """Five turns of 1/4, 3/8, 1/2 and 3/4 ms; a block of one token is a block."""
    draft = DraftCost("semi-autoregressive", 5, [1, 5], [1 * MS, 2 * MS], [MS / 4, MS / 2])
    assert [draft.time_s(r) / MS for r in (1, 3, 5, 9)] == [2.25, 3.375, 4.5, 6.75]
    assert DraftCost("autoregressive", 1, [1], [2 * MS]).time_s(1) == 2 * MS


def test_draft_cost_grows_with_requests_and_follows_its_last_slope() -> None:
    draft = DraftCost("parallel", 5, [1, 5], [1 * MS, 2 * MS])
    assert [draft.time_s(r) / MS for r in (1, 3, 5, 9)] == [1, 1.5, 2, 3]


def test_a_draft_pass_reads_its_context_as_often_as_it_runs() -> None:
    parallel, one_by_one = (
        DraftCost(structure, 5, [1], [2 * MS], context_s_per_token=MS / 128)
        for structure in ("parallel", "autoregressive")
    )
    assert parallel.time_s(1, context_tokens=64) == 2.5 * MS
    assert one_by_one.time_s(1, context_tokens=64) == 5 * 2.5 * MS
    target = ThroughputCurve(TOKENS, STEPS_PER_S)
    step = StepCost(target, parallel)
    assert step.step_time_s(1, 8, 64.0) == step.step_time_s(1, 8) + 0.5 * MS


def test_step_cost_asks_for_as_many_drafts_as_it_is_told() -> None:
    draft = DraftCost("autoregressive", 5, [1], [2 * MS])
    target = ThroughputCurve(TOKENS, STEPS_PER_S)
    assert StepCost(target, draft, draft_tokens=1).step_time_s(1, 8) == 4 * MS
    assert StepCost(target, draft).step_time_s(1, 8) == 12 * MS


CURVE: dict[str, Any] = {"batch_tokens": TOKENS, "steps_per_s": STEPS_PER_S}
ADDITIVE: dict[str, Any] = {
    "bias_s": 0.01, "request_probes": [1, 2], "alpha_s": [0, 1],
    "token_probes": [1, 2, 3], "theta_s": [0, 1, 2],
}  # fmt: skip
DRAFT: dict[str, Any] = {
    "structure": "semi-autoregressive", "block_size": 5,
    "requests": [1, 2], "pass_s": [0.1, 0.2], "sequential_s": [0.1, 0.2],
}  # fmt: skip


SORTED = "sort the points and drop repeats, or let `dspark-sim profile repair` do so"
AGAIN = "more work cannot take less time: measure that point again"
TERMS = "must be finite and not negative, the bias positive"


@pytest.mark.parametrize(
    ("kind", "good", "changes", "message"),
    [
        (ThroughputCurve, CURVE, {"steps_per_s": [512, np.nan, 128]},
         "steps_per_s[1]: must be finite (got nan)"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, np.inf, 32]},
         "batch_tokens[1]: must be finite (got inf)"),
        (ThroughputCurve, CURVE, {"steps_per_s": [512, 256, -128]},
         "steps_per_s: must not be negative (got -128.0)"),
        (ThroughputCurve, CURVE, {"steps_per_s": [512, 256, 0]}, "steps_per_s: must be positive (got 0.0)"),
        (ThroughputCurve, CURVE, {"batch_tokens": [-8, 16, 32]},
         "batch_tokens: must not be negative (got -8.0)"),
        (ThroughputCurve, CURVE, {"batch_tokens": [], "steps_per_s": []},
         "batch_tokens: must be a list of at least one number (got [])"),
        (ThroughputCurve, CURVE, {"batch_tokens": [[8, 16, 32]]},
         "batch_tokens: must be a list of at least one number (got [[8, 16, 32]])"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, "x", 32]},
         "batch_tokens: must be numbers (got [8, 'x', 32])"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, [16], 32]},
         "batch_tokens: must be numbers (got [8, [16], 32])"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, 32, 16]},
         f"batch_tokens[2]: must be strictly increasing (got 16.0); it follows 32; {SORTED}"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, 9, 9]},
         f"batch_tokens[2]: must be strictly increasing (got 9.0); it follows 9; {SORTED}"),
        (ThroughputCurve, CURVE, {"batch_tokens": [8, 8, 7]},
         f"batch_tokens[1]: must be strictly increasing (got 8.0); it follows 8; {SORTED}"),
        (ThroughputCurve, CURVE, {"steps_per_s": [512, 256]},
         "steps_per_s: needs 3 values, one per axis point (got 2)"),
        (ThroughputCurve, CURVE, {"steps_per_s": [512, 128, 128.5]},
         "steps_per_s[2]: rises from 128 to 128.5 at 32 batch tokens; a larger batch cannot step faster: "
         "measure "
         "that point again, or let `dspark-sim profile repair` (simulator.cost.fit.monotone) smooth what "
         "is noise"),
        (ThroughputCurve, CURVE, {"lookup": "nearest"},
         "lookup: is not a lookup (got 'nearest'); linear, floor or ceil"),
        (ThroughputCurve, CURVE, {"beyond": "guess"},
         "beyond: is not known (got 'guess'); clamp or last-slope"),
        (ThroughputCurve, CURVE, {"lookup": "ceil", "beyond": "last-slope"},
         "beyond: needs a linear lookup and two points (got 'last-slope')"),
        (AdditiveCost, ADDITIVE, {"bias_s": 0}, f"bias_s: {TERMS} (got 0)"),
        (AdditiveCost, ADDITIVE, {"bias_s": np.nan}, f"bias_s: {TERMS} (got nan)"),
        (AdditiveCost, ADDITIVE, {"prefill_s_per_token": -1.0}, f"prefill_s_per_token: {TERMS} (got -1.0)"),
        (AdditiveCost, ADDITIVE, {"context_s_per_token": np.inf}, f"context_s_per_token: {TERMS} (got inf)"),
        (AdditiveCost, ADDITIVE, {"alpha_s": [1, 0]},
         f"alpha_s[1]: falls from 1 to 0 as the axis grows to 2; {AGAIN}"),
        (AdditiveCost, ADDITIVE, {"alpha_s": [-1, 0]}, "alpha_s: must not be negative (got -1.0)"),
        (AdditiveCost, ADDITIVE, {"theta_s": [0, 2, 1]},
         f"theta_s[2]: falls from 2 to 1 as the axis grows to 3; {AGAIN}"),
        (AdditiveCost, ADDITIVE, {"theta_s": [-1, 0, 1]}, "theta_s: must not be negative (got -1.0)"),
        (AdditiveCost, ADDITIVE, {"theta_s": [0, 1]}, "theta_s: needs 3 values, one per axis point (got 2)"),
        (AdditiveCost, ADDITIVE, {"request_probes": [2, 1]},
         f"request_probes[1]: must be strictly increasing (got 1.0); it follows 2; {SORTED}"),
        (AdditiveCost, ADDITIVE, {"token_probes": [1, 3, -2]},
         "token_probes: must not be negative (got -2.0)"),
        (AdditiveCost, ADDITIVE, {"beyond": "guess"},
         "beyond: is not known (got 'guess'); clamp or last-slope"),
        (DraftCost, DRAFT, {"structure": "psychic"},
         "structure: is not known (got 'psychic'); autoregressive, parallel, semi-autoregressive"),
        (DraftCost, DRAFT, {"block_size": 0}, "block_size: must be at least 1 (got 0)"),
        (DraftCost, DRAFT, {"structure": "parallel"},
         "sequential_s: only a semi-autoregressive drafter has one"),
        (DraftCost, DRAFT, {"pass_s": [0.2, 0.1]},
         f"pass_s[1]: falls from 0.2 to 0.1 as the axis grows to 2; {AGAIN}"),
        (DraftCost, DRAFT, {"sequential_s": [0.2, 0.1]},
         f"sequential_s[1]: falls from 0.2 to 0.1 as the axis grows to 2; {AGAIN}"),
        (DraftCost, DRAFT, {"sequential_s": [0.2, -0.1]}, "sequential_s: must not be negative (got -0.1)"),
        (DraftCost, DRAFT, {"requests": [2, -1]}, "requests: must not be negative (got -1.0)"),
        (DraftCost, DRAFT, {"pass_s": [0.1]}, "pass_s: needs 2 values, one per axis point (got 1)"),
        (DraftCost, DRAFT, {"context_s_per_token": -1.0},
         "context_s_per_token: must be finite and not negative (got -1.0)"),
    ],
)  # fmt: skip
def test_tables_that_make_no_sense_are_refused(
    kind: Any, good: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    assert kind(**good)
    with pytest.raises(BadInputError) as caught:
        kind(**{**good, **changes})
    assert str(caught.value) == message


def test_a_table_cannot_be_changed_behind_the_model() -> None:
    points = np.array([512.0, 256.0, 128.0])
    curve = ThroughputCurve(TOKENS, points)
    points[:] = 1.0
    assert curve.step_time_s(1, 8) == 2 * MS
    for array in (curve.batch_tokens, curve.curve.value, curve.step_time_s(1, range(8, 12))):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
