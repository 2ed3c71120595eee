"""Costs made from another cost, by hand: padded to captured sizes, scaled, asked for less than a block."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.core.errors import BadInputError
from simulator.cost.asked import Asked, AskedCost
from simulator.cost.draft import DraftCost
from simulator.cost.models import AdditiveCost, LengthByRequests, StepCost, ThroughputCurve
from simulator.cost.padded import PaddedCost
from simulator.cost.scaled import EnabledCost, RowCost, ScaledCost, SlowPath

LINE = ThroughputCurve([0, 100], [1000.0, 100.0])
"""1 ms for nothing and 90 us a row."""


def line_s(rows: float) -> float:
    return 1e-3 + 9e-5 * rows


# --- padded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "runs_as"), [(1, 4), (4, 4), (5, 16), (16, 16), (17, 17), (60, 60)])
def test_a_step_runs_as_the_first_captured_size_that_holds_it(rows: int, runs_as: int) -> None:
    cost = PaddedCost(LINE, (4, 16))
    assert cost.step_time_s(1, rows) == pytest.approx(line_s(runs_as))


def test_a_range_of_padded_steps_is_a_staircase() -> None:
    times = PaddedCost(LINE, (4, 16)).step_time_s(1, range(3, 19))
    assert times == pytest.approx([line_s(each) for each in [4] * 2 + [16] * 12 + [17, 18]])


def test_a_padded_step_is_outside_where_it_runs() -> None:
    """90 rows are measured and run as 128, which is not; 130 run as they are."""
    cost = PaddedCost(LINE, (4, 128))
    assert not cost.outside(1, 4)
    assert cost.outside(1, 90)
    assert cost.outside(1, 130)
    few = PaddedCost(AdditiveCost(1.0, [1, 4], [0, 1], [1, 64], [0, 1]), (4,))
    assert not few.outside(4, 4)
    assert few.outside(5, 4)


def test_a_change_passes_on_context_and_prompts() -> None:
    """Every changed cost hands all four arguments to its base, in order."""

    class Each(ThroughputCurve):
        def step_time_s(self, requests, batch_tokens, context_tokens=0.0, prefill_tokens=0):  # type: ignore[no-untyped-def, override]
            size = np.asarray(batch_tokens if isinstance(batch_tokens, int) else list(batch_tokens))
            return requests + 10 * size + 1000 * context_tokens + 1e6 * prefill_tokens

    base = Each([1], [1.0])
    told = 3 + 10 * 20 + 1000 * 0.5 + 1e6 * 7
    slow = SlowPath((1,), (0.5,))
    for cost, factor in (
        (PaddedCost(base, (20,)), 1.0), (ScaledCost(base, 2.0), 2.0),
        (EnabledCost(base, slow), 1.0), (RowCost(base, 0.0), 1.0), (StepCost(base), 1.0),
    ):  # fmt: skip
        assert cost.step_time_s(3, 20, 0.5, 7) == told * factor
        assert cost.step_time_s(3, range(20, 21), 0.5, 7)[0] == told * factor


def test_a_step_without_drafts_takes_the_slow_path() -> None:
    """Half as long again at 2 requests and twice as long at 6; a draft row more and the step is as always."""
    slow = EnabledCost(LINE, SlowPath((2, 6), (0.5, 1.0)))
    assert slow.step_time_s(2, 2) == pytest.approx(1.5 * line_s(2))
    assert slow.step_time_s(4, 4) == pytest.approx(1.75 * line_s(4))
    assert slow.step_time_s(9, 9) == pytest.approx(2.0 * line_s(9))
    assert slow.step_time_s(2, 3) == line_s(3)
    assert slow.step_time_s(2, 9, 0.0, 7) == pytest.approx(1.5 * line_s(9)), "prompt rows are no drafts"
    assert slow.step_time_s(2, 2, 0.0, 7) == line_s(2)
    assert slow.step_time_s(0, 7, 0.0, 7) == line_s(7), "prompts alone are not sped up"
    times = slow.step_time_s(2, range(8, 11), 0.0, 7)
    assert times == pytest.approx([line_s(8), 1.5 * line_s(9), line_s(10)])
    assert slow.step_time_s(0, range(7, 9), 0.0, 7) == pytest.approx([line_s(7), line_s(8)])
    assert slow.step_time_s(2, range(3, 5)) == pytest.approx([line_s(3), line_s(4)])


def test_each_row_beyond_two_a_request_costs_more() -> None:
    """3 requests and 7 prompt rows: the curve includes 13 rows, and each further one takes 1 ms more."""
    rows = RowCost(LINE, 1e-3)
    assert rows.step_time_s(3, 13, 0.0, 7) == pytest.approx(line_s(13))
    assert rows.step_time_s(3, 10, 0.0, 7) == pytest.approx(line_s(10))
    assert rows.step_time_s(3, 15, 0.0, 7) == pytest.approx(line_s(15) + 2e-3)
    times = rows.step_time_s(3, range(12, 16), 0.0, 7)
    assert times == pytest.approx([line_s(12), line_s(13), line_s(14) + 1e-3, line_s(15) + 2e-3])
    assert rows.step_time_s(0, 15, 0.0, 7) == pytest.approx(line_s(15))


# --- scatter and ends of what was changed -------------------------------------------------------------------


def test_a_change_keeps_the_scatter_and_the_end_of_what_it_changes() -> None:
    step = StepCost(LINE, jitter=(0.9, 1.1))
    for cost in (ScaledCost(step, 2.0), RowCost(step, 0.0), PaddedCost(step, (4,))):
        assert cost.jitter == (0.9, 1.1)
        assert cost.measured_tokens == 100
        assert not cost.outside(1, 100)
        assert cost.outside(1, 101)


@pytest.mark.parametrize(
    ("requests", "share"),
    [((), ()), ((2, 2), (0.1, 0.1)), ((3, 2), (0.1, 0.1)), ((0,), (0.1,)), ((1, 2), (0.1,)),
     ((1,), (-0.1,)), ((1,), (math.inf,)), ((1,), (math.nan,))],
)  # fmt: skip
def test_a_slow_path_must_make_sense(requests: tuple[int, ...], share: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError) as caught:
        SlowPath(requests, share)
    wrong = share[0] if requests == (1,) else requests
    said = "must not be negative" if requests == (1,) else "must rise from at least 1, one share each"
    assert str(caught.value) == f"slow_path: {said} (got {wrong}); as in 2=6.6%,189=21.6%"


def test_a_slow_path_of_nothing_slows_nothing() -> None:
    assert SlowPath.parse("1=0%, 8=50%") == SlowPath((1, 8), (0.0, 0.5))
    assert SlowPath.parse("7%") == SlowPath((1,), (0.07,))
    assert SlowPath.parse("2=0.25") == SlowPath((2,), (0.25,))
    with pytest.raises(BadInputError, match=r"slow_path: needs REQUESTS=SHARE \(got '1=2=3'\)"):
        SlowPath.parse("1=2=3")
    with pytest.raises(BadInputError, match=r"slow_path: needs REQUESTS=SHARE \(got '8:50%'\); as in 2="):
        SlowPath.parse("1=0%,8:50%")


@pytest.mark.parametrize("row_s", [-1e-9, math.inf, math.nan])
def test_a_row_costs_something_finite(row_s: float) -> None:
    with pytest.raises(BadInputError, match=r"row_cost: must not be negative .*; as in 4us"):
        RowCost(LINE, row_s)
    assert RowCost(LINE, 0.0).step_time_s(1, 50) == LINE.step_time_s(1, 50)


# --- asked for less than a block ----------------------------------------------------------------------------

AUTOREGRESSIVE = DraftCost("autoregressive", 5, [1, 11], [1e-3, 2e-3], context_s_per_token=1e-6)
"""One pass a token: 1 ms for one request, 0.1 ms more for each further one, 1 us a token of context."""


def test_a_drafter_that_is_asked_for_less_takes_less() -> None:
    """Four requests of eight with half of the context, two tokens each; every step takes twice its time."""
    cost = AskedCost(ScaledCost(StepCost(LINE, AUTOREGRESSIVE, overhead_s=5e-4), 2.0))
    passes = 2 * (1.3e-3 + 1e-6 * 50)
    assert cost.draft_s(8, Asked(4, 2), 100.0) == pytest.approx(2 * passes)
    target = 2 * (line_s(20) + 5e-4)
    assert cost.step_time_s(8, 20, 100.0, 0, Asked(4, 2)) == pytest.approx(target + 2 * passes)
    assert cost.step_time_s(8, 20, 100.0, 0, Asked(0, None)) == pytest.approx(target)
    assert cost.step_time_s(8, 20, 100.0, 0, Asked(4, 0)) == pytest.approx(target)
    assert cost.draft_s(8, Asked(4, 1)) == pytest.approx(2 * 1.3e-3), "one token takes one pass"
    assert cost.undrafted.step_time_s(8, 20) == pytest.approx(target)


@pytest.mark.parametrize("asked", [None, Asked(0, None)])
def test_the_target_is_told_everything_whatever_is_drafted(asked: Asked | None) -> None:
    """Six times 1 s, 1 s a request, 0.1 s a row, 1e-3 s a token of context and 1e-2 s a prompt token."""
    target = AdditiveCost(
        1.0, [0, 10], [0, 10], [0, 10], [0, 1], context_s_per_token=1e-3, prefill_s_per_token=1e-2
    )
    nothing = DraftCost("parallel", 5, [1], [0.0])
    cost = AskedCost(ScaledCost(ScaledCost(StepCost(target, nothing), 2.0), 3.0))
    assert cost.step_time_s(3, 20, 50.0, 7, asked) == pytest.approx(6 * (1 + 3 + 2 + 0.05 + 0.07))


def test_without_a_word_on_what_is_asked_everyone_gets_a_block() -> None:
    whole = ScaledCost(StepCost(LINE, AUTOREGRESSIVE), 2.0)
    cost = AskedCost(whole)
    assert cost.step_time_s(8, 20, 100.0, 0, None) == whole.step_time_s(8, 20, 100.0, 0)
    assert cost.step_time_s(8, 20, 100.0, 0, Asked(8, None)) == pytest.approx(
        whole.step_time_s(8, 20, 100.0, 0)
    )


@pytest.mark.parametrize("cost", [LINE, StepCost(LINE), ScaledCost(LINE, 3.0)])
def test_where_drafting_has_no_price_of_its_own_nothing_is_saved(cost: ThroughputCurve) -> None:
    asked = AskedCost(cost)
    assert asked.draft_s(8, Asked(4, 2)) == 0
    for what in (None, Asked(8, None), Asked(0, 0)):
        assert asked.step_time_s(8, 20, 0.0, 0, what) == pytest.approx(cost.step_time_s(8, 20))


def test_lengths_by_requests_price_what_is_drafted() -> None:
    """Three tokens up to 10 requests, none from 11 on."""
    lengths = LengthByRequests((1, 11), (3, 0))
    assert [lengths(requests) for requests in (1, 10, 11, 500)] == [3, 3, 0, 0]
    cost = StepCost(LINE, AUTOREGRESSIVE, draft_tokens=lengths)
    assert cost.step_time_s(10, 20) == pytest.approx(line_s(20) + 3 * 1.9e-3)
    assert cost.step_time_s(11, 20) == pytest.approx(line_s(20))
    assert cost.step_time_s(0, 20) == pytest.approx(line_s(20)), "prompts alone draft nothing"
    longer = StepCost(LINE, AUTOREGRESSIVE, draft_tokens=lengths, overhead_s=5e-4)
    assert longer.step_time_s(10, 20, 100.0) == pytest.approx(line_s(20) + 5e-4 + 3 * (1.9e-3 + 1e-4))
    np.testing.assert_allclose(cost.step_time_s(10, range(20, 22)), [line_s(n) + 5.7e-3 for n in (20, 21)])
