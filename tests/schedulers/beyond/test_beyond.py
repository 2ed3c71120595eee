"""Policies beyond the paper's: each rule by hand or by brute force, and what makes them lossless."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.cost.asked import Asked, AskedCost
from simulator.cost.draft import DraftCost
from simulator.cost.models import CostModel, StepCost, ThroughputCurve
from simulator.cost.scaled import ScaledCost
from simulator.schedulers.beyond.averages import Goodput, MovingAverage
from simulator.schedulers.beyond.fixed_budget import FixedBudget
from simulator.schedulers.beyond.gate import OffGate
from simulator.schedulers.beyond.memory import Remembering, Seen
from simulator.schedulers.beyond.slo import Balanced, SloFirst
from simulator.schedulers.beyond.trials import Bandit, Utility
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.engines.trtllm import TensorRTLLM
from simulator.schedulers.engines.vllm import VLLM
from simulator.schedulers.policies import DSpark, DSparkAsync, Tiered
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import admit, on_grid
from tests.schedulers.test_policies import GOLDEN, Decoder, golden_cost, interval
from tests.support.strategies import survivals

LINEAR = golden_cost("linear")
FREE = ThroughputCurve([1], [100.0])


def seen(lengths: Any, accepted: Any, duration_s: float = 0.01, gap_s: float = 0.01) -> Seen:
    return Seen(np.asarray(lengths), np.asarray(accepted), duration_s, gap_s)


# ---------------------------------------------------------------- losslessness


STAIRS = ThroughputCurve([3, 5, 8, 12], [1000, 600, 550, 350], lookup="ceil")
"""Step times with several peaks of throughput: what lies deeper can pay for what lies before it."""


def placed(policy: Scheduler, past: NDArray[np.float32]) -> Any:
    """The policy, or what it remembers of one step in which every request was drafted."""
    if not isinstance(policy, Remembering):
        return policy
    memory = policy.start(len(past), past.shape[1], ["a"])
    memory.place(np.arange(len(past)), np.zeros(len(past), dtype=np.int64))
    memory.asks(len(past), Batch(STAIRS, lagged=past))
    lengths = memory.schedule(past, Batch(STAIRS, lagged=past))
    memory.observe(seen(lengths, lengths // 2))
    return memory


CAUSAL = (
    DSpark(), DSparkAsync(), Tiered((0, 1, 3), 1), SGLang(), SGLang(tiers=(4, 8, 12), reinflate=True), VLLM(),
    TensorRTLLM(), FixedBudget(4), OffGate(), SloFirst((("all", 0.004),)), SloFirst((("all", 0.001),), True),
    SloFirst((("all", 0.0015),)), Balanced(), Balanced(4.0, (("all", 0.002),)),
)  # fmt: skip


def leaks(policy: Scheduler, past: Any, now: Any, other: Any, row: int, at: int) -> bool:
    """Whether draft ``at`` of a row is decided on by survivals deeper than it, which depend on its token."""
    deeper = now.copy()
    deeper[row, at + 1 :] = np.minimum(now[row, at], other[row, at + 1 :])
    kept = []
    for survival in (now, np.minimum.accumulate(deeper, axis=1)):
        memory = placed(policy, past)
        batch = Batch(STAIRS, lagged=past if policy.lag else None)
        if isinstance(policy, Remembering):
            memory.asks(len(now), batch)
        kept.append(int(memory.schedule(survival, batch)[row]) > at)
    return kept[0] != kept[1]


@pytest.mark.parametrize("policy", CAUSAL, ids=repr)
@settings(max_examples=60)
@given(survivals(3, 3), survivals(3, 3), survivals(3, 3), st.integers(0, 2), st.integers(0, 2))
def test_no_draft_is_decided_on_by_what_depends_on_its_token(
    policy: Scheduler, past: Any, now: Any, other: Any, row: int, at: int
) -> None:
    """Appendix A's condition itself: confidences after a draft may change at will, its verdict may not."""
    assert policy.lossless
    assert not leaks(policy, past, now, other, row, at)


def test_that_condition_finds_the_leak_of_a_search_without_delay() -> None:
    draw = np.random.default_rng(0)
    confidence = draw.random((3, 400, 3, 3)).astype(np.float32)
    past, now, other = np.cumprod(confidence, axis=3)
    found = [leaks(DSparkAsync(0), p, n, o, 0, 0) for p, n, o in zip(past, now, other, strict=True)]
    assert any(found)


@pytest.mark.parametrize("policy", [FixedBudget(1), FixedBudget(2)], ids=repr)
def test_a_fixed_budget_recovers_the_target(policy: Scheduler) -> None:
    low, high = interval(Decoder(policy, seed=4).run(6000).stream)
    assert low < 0.70 < high < 0.75


# ---------------------------------------------------------------- one rule after the other


@given(survivals(3, 3), st.integers(0, 12))
def test_a_fixed_budget_is_the_best_set_of_its_size(survival: NDArray[np.float32], budget: int) -> None:
    grid = on_grid(survival)
    chosen = FixedBudget(budget).schedule(survival, Batch(FREE))
    size = min(budget, 9)
    assert chosen.sum() == size

    def worth(lengths: Any) -> int:
        return sum(int(row[:length].sum(dtype=np.int64)) for row, length in zip(grid, lengths, strict=True))

    assert worth(chosen) == max(worth(v) for v in product(range(4), repeat=3) if sum(v) == size)


def priced(pass_s: float, structure: str = "parallel") -> StepCost:
    """The golden step times with a draft pass on top."""
    return StepCost(LINEAR, DraftCost(structure, 7, [1], [pass_s]))  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", ["parallel", "autoregressive"])
@pytest.mark.parametrize("pass_s", [0.0, 0.0002, 0.003, 0.02])
@pytest.mark.parametrize("acceptance", [0.3, 0.7, 0.95])
def test_goodput_takes_the_length_with_the_most_tokens_per_second(
    structure: str, pass_s: float, acceptance: float
) -> None:
    """Written out: 4 requests, 1 + a + a^2 + ... tokens each, the target's pass and the drafter's."""
    memory = Goodput().start(8, 7, ["a"])
    memory.acceptance = acceptance

    def rate(tokens: int) -> float:
        passes = tokens if structure == "autoregressive" else int(tokens > 0)
        gained = sum(acceptance**k for k in range(tokens + 1))
        return gained / (LINEAR.step_time_s(4, 4 * (1 + tokens)) + passes * pass_s)

    asked = memory.asks(4, Batch(priced(pass_s, structure)))
    assert asked.requests == 4
    assert asked.tokens is not None
    assert rate(asked.tokens) == pytest.approx(max(map(rate, range(8))))
    assert memory.schedule(GOLDEN, Batch(LINEAR)).tolist() == [asked.tokens] * 4


def test_goodput_averages_the_acceptance_of_single_drafts_and_probes_when_it_rests() -> None:
    """3 verified each: 3, 1 and 0 accepted. 4 were accepted and 2 rejected, so 6 were judged: 2/3."""
    memory = Goodput(weight=0.5, probe=2).start(8, 7, ["a"])
    memory.acceptance = 0.5
    memory.observe(seen([3, 3, 3], [3, 1, 0]))
    assert memory.acceptance == pytest.approx(0.5 + 0.5 * (4 / 6 - 0.5))
    dear = Batch(priced(10.0))
    taken = []
    for _ in range(6):
        length = memory.asks(3, dear).tokens
        taken.append(length)
        memory.observe(seen([length] * 3, [0] * 3))
    assert taken == [0, 0, 1, 0, 0, 1]


def test_goodput_takes_the_whole_block_where_drafts_are_free_and_the_shorter_length_on_ties() -> None:
    """Also where a step takes hours; certain drafts at 1 s a row bring as many tokens a second as none."""
    memory = Goodput().start(8, 7, ["a"])
    assert memory.asks(4, Batch(FREE)).tokens == 7
    slow = Goodput().start(8, 7, ["a"])
    assert slow.asks(4, Batch(ThroughputCurve([1], [1e-4]))).tokens == 7
    tied = Goodput().start(8, 7, ["a"])
    tied.acceptance = 1.0
    assert tied.asks(1, Batch(ThroughputCurve([1, 2, 4, 8], [1, 0.5, 0.25, 0.125]))).tokens == 0


def test_goodput_counts_the_steps_without_drafts_from_the_start() -> None:
    memory, dear = Goodput(probe=2).start(8, 7, ["a"]), Batch(priced(10.0))
    taken = []
    for _ in range(3):
        length = memory.asks(3, dear).tokens
        taken.append(length)
        memory.observe(seen([length] * 3, [0] * 3))
    assert taken == [0, 0, 1]


def test_the_moving_average_moves_between_tiers_with_hysteresis() -> None:
    """From 3: up above 2.5 accepted, down to 1 at 0.25 or less (0.5 - 0.25). Only the last step counts."""
    memory = MovingAverage(weight=1.0, interval=1, warmup=0).start(8, 7, ["a"])
    batch, lengths = Batch(FREE), []
    for accepted in (2.0, 2.6, 6.0, 2.3, 2.2, 0.3, 0.25, 0.5, 0.6):
        lengths.append(memory.asks(10, batch).tokens)
        memory.observe(seen([7] * 10, [accepted] * 10))
    assert lengths == [3, 3, 7, 7, 7, 3, 3, 1, 1]
    assert memory.asks(10, batch).tokens == 3
    assert MovingAverage().start(8, 2, ["a"]).tiers == [1]
    slow = MovingAverage(weight=1.0, interval=5, warmup=5).start(8, 7, ["a"])
    for step in range(1, 11):
        slow.observe(seen([7] * 10, [6.0] * 10))
        assert slow.asks(10, batch).tokens == (7 if step == 10 else 3)


def test_the_moving_average_begins_in_the_middle_as_if_all_but_one_were_accepted() -> None:
    memory = MovingAverage((1, 2, 4, 5, 7), weight=0.5, interval=1, warmup=0).start(8, 7, ["a"])
    assert (memory.asks(4, Batch(FREE)).tokens, memory.average) == (4, 3.0)
    memory.observe(seen([7] * 4, [5.0] * 4))
    assert memory.average == 4.0  # half of 3 and of 5: above 3.5
    assert memory.asks(4, Batch(FREE)).tokens == 5
    for accepted in (7.0, 7.0, 7.0):  # at the longest there is nothing above
        memory.observe(seen([7] * 4, [accepted] * 4))
    assert memory.asks(4, Batch(FREE)).tokens == 7


def test_the_moving_average_moves_up_by_its_own_margin() -> None:
    """From 3 with up=0.5: above 3.0 accepted."""
    memory = MovingAverage(weight=1.0, interval=1, warmup=0, up=0.5).start(8, 7, ["a"])
    for accepted, length in ((2.9, 3), (3.0, 3), (3.1, 7)):
        memory.observe(seen([7] * 4, [accepted] * 4))
        assert memory.asks(4, Batch(FREE)).tokens == length


class Machine:
    """Runs a policy of one length against given tokens and seconds per length."""

    def __init__(
        self, policy: Remembering, tokens: list[float], seconds: list[float], requests: int = 4
    ) -> None:
        self.memory = policy.start(64, len(tokens) - 1, ["a"])
        self.tokens, self.seconds, self.requests = tokens, seconds, requests

    def run(self, steps: int) -> list[int]:
        taken = []
        for _ in range(steps):
            length = self.memory.asks(self.requests, Batch(FREE)).tokens
            assert length is not None
            taken.append(length)
            accepted = np.full(self.requests, self.tokens[length] - 1)
            self.memory.observe(seen([length] * self.requests, accepted, self.seconds[length]))
        return taken


def test_utility_climbs_to_the_best_length_and_stays() -> None:
    """Tokens 1, 1.8, 2.4, 2.6 and 2.7 at 1, 1.1, 1.2, 1.5 and 2 s: best at 2 (utility 2), met from 4 down."""
    machine = Machine(Utility(test=2, keep=10, first=4), [1, 1.8, 2.4, 2.6, 2.7], [1, 1.1, 1.2, 1.5, 2.0])
    assert machine.run(6) == [0, 0, 3, 3, 4, 4]  # no drafts first, then the neighbours that exist
    assert machine.run(10) == [3] * 10
    assert machine.run(8) == [0, 0, 2, 2, 3, 3, 4, 4]
    assert machine.memory.utility(2) == pytest.approx(2.0)  # type: ignore[attr-defined]
    assert machine.run(10) == [2] * 10
    assert np.mean(np.array(machine.run(170)) == 2) > 0.6


def test_utility_stops_where_speculation_does_not_pay_and_rests_longer_each_time() -> None:
    machine = Machine(Utility(test=1, keep=10, first=1), [1, 1.2, 1.3], [1, 1.3, 1.5])
    taken = machine.run(3 + 10 + 3 + 20 + 3 + 40)
    assert taken == [0, 1, 2] + [0] * 10 + [0, 1, 2] + [0] * 20 + [0, 1, 2] + [0] * 40


def test_utility_is_tokens_and_time_of_a_request_over_those_without_drafts() -> None:
    """Without drafts 1 token each in 10 and 30 ms; with one draft 1.5 and 2 tokens in 10 and 20 ms.

    Of a request: one is alone in the last step.
    """
    memory = Utility(test=2, keep=3, first=1).start(8, 2, ["a"])
    for accepted, duration_s in (([0, 0], 0.01), ([0, 0], 0.03), ([1, 0], 0.01), ([1], 0.02)):
        memory.observe(seen([1] * len(accepted), accepted, duration_s))
    assert memory.utility(1) == pytest.approx((3.5 / 2) / (0.03 / 0.04))


def test_utility_of_one_is_no_reason_to_draft_and_a_success_ends_the_long_rests() -> None:
    machine = Machine(Utility(test=1, keep=2, first=1), [1, 1], [1, 1])
    assert machine.run(2 + 2 + 2 + 4) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    machine.tokens = [1, 3]
    assert machine.run(2 + 2) == [0, 1, 1, 1]
    machine.tokens = [1, 1]
    assert machine.run(2 + 2 + 2 + 4) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def test_utility_without_drafts_to_try_drafts_nothing() -> None:
    assert Machine(Utility(test=1, keep=2), [1], [1]).run(5) == [0] * 5


class Certainly:
    """Draws of the bandit: whether it explores, and what."""

    def __init__(self, *draws: float, length: int = 0) -> None:
        self.draws, self.length = list(draws), length

    def random(self) -> float:
        return self.draws.pop(0) if self.draws else 1.0

    def integers(self, above: int) -> int:
        assert above == 4
        return self.length


def test_the_bandit_plays_blocks_of_16_32_and_64_steps_in_periods_of_their_roots() -> None:
    """16 steps are 4 periods of 4, 32 are 7 of 5 (the last goes beyond), 64 are 8 of 8, 128 are 12 of 11."""
    machine = Machine(Bandit(), [1, 1.8, 2.4, 2.6], [1, 1.1, 1.2, 1.5])
    begun = []
    for step in range(16 + 35 + 64 + 132 + 1):
        machine.run(1)
        mine = machine.memory.bins[3]  # type: ignore[attr-defined]
        if mine.periods > len(begun):
            begun.append(step)
    periods = [*[4] * 4, *[5] * 7, *[8] * 8, *[11] * 12]
    assert begun == [0, *np.cumsum(periods).tolist()]


def test_the_bandit_explores_by_one_over_the_root_of_its_periods() -> None:
    """The fourth period explores below 1/2, and not at it; else the best so far is taken."""
    for draw, length in ((0.499, 3), (0.5, 1)):
        machine = Machine(Bandit(), [1, 1.8, 2.4, 2.6], [1, 1.1, 9.0, 9.0])
        drawn: Any = Certainly(0.0, 1.0, 1.0, draw, length=1)
        machine.memory._draw = drawn  # type: ignore[attr-defined]
        assert machine.run(12) == [1] * 12
        drawn.length = 3
        assert machine.run(4) == [length] * 4


def test_patience_asks_a_better_length_to_be_that_much_better() -> None:
    """Length 2, with 1.09 times the tokens a second of 1, replaces it where patience asks for less."""
    for patience, third in ((0.0, 2), (0.08, 2), (0.1, 1), (0.5, 1)):
        machine = Machine(Bandit(patience), [1, 1.0, 1.09, 1.0], [1, 1, 1, 1])
        drawn: Any = Certainly(0.0, 0.0, 0.0, length=2)
        machine.memory._draw = drawn  # type: ignore[attr-defined]
        assert machine.run(4) == [2] * 4
        drawn.length = 1
        assert machine.run(8) == [1] * 8
        assert machine.run(4) == [third] * 4


def test_lengths_that_were_never_played_promise_nothing() -> None:
    machine = Machine(Bandit(), [1, 1.8, 2.4, 2.6], [90.0, 90.0, 90.0, 90.0])
    machine.memory._draw = Certainly(0.0, length=3)  # type: ignore[attr-defined]
    assert machine.run(40) == [3] * 40


def test_the_bandit_finds_the_best_length_of_each_batch_size() -> None:
    """Drafts pay at 4 requests, and not at 40: each bin of batch sizes learns for itself."""
    few = Machine(Bandit(), [1, 1.8, 2.4, 2.6], [1, 1.1, 1.2, 1.5])
    taken = few.run(3000)
    assert np.mean(np.array(taken[1500:]) == 2) > 0.8
    many = Machine(Bandit(), [1, 1.8, 2.4, 2.6], [1, 2.0, 3.0, 4.0], requests=40)
    many.memory = few.memory
    assert np.mean(np.array(many.run(3000)[1500:]) == 0) > 0.8


def test_the_bandit_is_the_same_for_the_same_seed_and_holds_a_length() -> None:
    runs = [Machine(Bandit(seed=seed), [1, 1.8, 2.4], [1, 1.1, 1.2]).run(400) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    switches = np.count_nonzero(np.diff(runs[0]))
    assert switches < 60  # of 400 steps


# ---------------------------------------------------------------- the gate


def test_a_step_is_not_drafted_where_the_pass_costs_more_than_it_brings() -> None:
    """Certain drafts of 4 requests; without a pass, 4 tokens take 2.1 ms."""
    certain = np.ones((4, 7), dtype=np.float32)
    for pass_s, drafted in ((0.0001, True), (0.006, True), (0.02, False)):
        memory = OffGate().start(4, 7, ["a"])
        batch = Batch(priced(pass_s))
        best = max((4 + k) / (LINEAR.step_time_s(4, 4 + k) + pass_s) for k in range(29))
        assert (best > 4 / 0.0021) == drafted
        asked = memory.asks(4, batch)
        assert asked == (Asked(4, None) if drafted else Asked(0, 0))
        lengths = memory.schedule(certain, batch)
        assert (lengths.sum() > 0) == drafted


def test_a_gate_that_is_shut_sees_no_confidence_and_opens_to_look() -> None:
    """What was not drafted is NaN here: nothing of it may enter a decision."""
    memory = OffGate(probe=5).start(4, 7, ["a"])
    unknown, dear = np.full((4, 7), np.nan, dtype=np.float32), Batch(priced(10.0))
    asked = []
    for _ in range(40):
        asked.append(memory.asks(4, dear).requests)
        lengths = memory.schedule(GOLDEN.astype(np.float32) if asked[-1] else unknown, dear)
        memory.observe(seen(lengths, lengths // 2))
    assert [step for step, count in enumerate(asked) if count] == [4, 14, 34]  # after 5, 10, 20
    assert not np.isnan(memory.known).any()


def test_a_request_whose_drafts_are_rejected_is_left_out_and_tried_again() -> None:
    """Drafting costs 2 ms a request. Request 1 has all its drafts rejected, the others all accepted."""
    by_request = DraftCost("parallel", 7, [1, 5], [0.0002, 0.0010])
    memory = OffGate(weight=1.0, probe=4).start(4, 7, ["a"])
    batch = Batch(StepCost(golden_cost("linear"), by_request))
    memory.place(np.arange(4), np.zeros(4, dtype=np.int64))
    survival, drafted = np.full((4, 7), 0.9, dtype=np.float32), []
    for _ in range(11):
        memory.asks(4, batch)
        drafted.append(bool(memory.drafted[1]))
        assert memory.drafted[[0, 2, 3]].all()
        lengths = memory.schedule(survival, batch)
        assert (lengths[1] > 0) == drafted[-1] or not drafted[-1]
        memory.observe(seen(lengths, np.where(np.arange(4) == 1, 0, lengths)))
    assert drafted == [True, False, False, False, False, True, False, False, False, False, True]
    memory.place(np.array([1]), np.array([0]))  # another request takes the row
    memory.asks(4, batch)
    assert memory.drafted[1]


@pytest.mark.parametrize("pass_s", [0.0001, 0.001, 0.004])
def test_the_budget_counts_the_draft_pass(pass_s: float) -> None:
    """Certain drafts of 4 requests: the budget with the most tokens per second, pass included."""
    memory = OffGate().start(4, 7, ["a"])
    memory.asks(4, Batch(priced(pass_s)))
    rates = [(4 + k) / (LINEAR.step_time_s(4, 4 + k) + pass_s) for k in range(29)]
    assert memory.budget == int(np.argmax(rates))


@pytest.mark.parametrize("rows", [4, 10])
def test_a_request_is_drafted_where_its_tokens_pay_for_its_part_of_the_step(rows: int) -> None:
    """Written out: 0.2 ms of the pass a request, 1 us a token of context, and its rows; unknown ones stay."""
    by_request = DraftCost("parallel", 7, [1, 5], [0.0002, 0.0010], context_s_per_token=1e-6)
    batch = Batch(StepCost(LINEAR, by_request), context_tokens=400.0, prefill_tokens=2)
    accepted, verified = np.array([3.0, 0.9, 0.2, np.nan]), np.array([4.0, rows - 4.0, 0.0, np.nan])
    drafting_s = 0.0008 + 400e-6
    with_drafts = LINEAR.step_time_s(4, 4 + rows + 2) + drafting_s
    row_s = (with_drafts - LINEAR.step_time_s(4, 4 + 2) - drafting_s) / rows
    decided = set[bool]()
    for scale in np.geomspace(0.05, 10, 60):
        memory = OffGate().start(4, 7, ["a"])
        memory.asks(4, batch)
        memory.accepted[:], memory.verified[:] = accepted * scale, verified
        expected = (4 + 4.1 * scale) / with_drafts * (0.0003 + row_s * verified)
        worth = ~(accepted * scale < expected)
        assert_array_equal(memory._worth_it(4, batch), worth)
        decided |= set(worth[:3].tolist())
    assert decided == {True, False}


def test_leaving_a_request_out_needs_a_pass_that_gets_cheaper() -> None:
    """A pass of the same price for any number of requests: rejected drafts cost no more for being made."""
    memory = OffGate().start(4, 7, ["a"])
    memory.asks(4, Batch(priced(0.0001)))
    memory.accepted[:], memory.verified[:] = 0.0, 4.0
    assert memory._worth_it(4, Batch(priced(0.0001))).all()


def test_where_no_request_is_worth_its_drafts_none_is_asked_for() -> None:
    by_request = DraftCost("parallel", 7, [1, 5], [0.0002, 0.0010])
    batch = Batch(StepCost(LINEAR, by_request))
    memory = OffGate().start(4, 7, ["a"])
    memory.asks(4, batch)
    memory.accepted[:], memory.verified[:] = 0.0, 4.0
    assert memory.asks(4, batch) == Asked(0, 0)
    assert memory.schedule(GOLDEN, batch).tolist() == [0] * 4


def test_a_step_is_drafted_only_above_the_throughput_of_the_same_rows_without_a_pass() -> None:
    """At a price where the best budget has a throughput between those of 4 and of 5 rows without drafts."""
    rate = (4 / LINEAR.step_time_s(4, 4) + 4 / LINEAR.step_time_s(4, 5)) / 2
    pass_s = max((4 + k) / rate - LINEAR.step_time_s(4, 4 + k) for k in range(29))
    assert OffGate().start(4, 7, ["a"]).asks(4, Batch(priced(pass_s))) == Asked(0, 0)
    by_context = DraftCost("parallel", 7, [1], [1e-6], context_s_per_token=1e-6)
    dear = Batch(StepCost(LINEAR, by_context), context_tokens=20_000.0)
    assert OffGate().start(4, 7, ["a"]).asks(4, dear) == Asked(0, 0)


def test_a_look_where_no_draft_pays_takes_one_draft() -> None:
    steep = Batch(StepCost(ThroughputCurve([4, 5], [1000.0, 5.0]), DraftCost("parallel", 7, [1], [0.001])))
    memory, budgets = OffGate(probe=2).start(4, 7, ["a"]), []
    for _ in range(2):
        memory.asks(4, steep)
        budgets.append(memory.budget)
        memory.observe(seen([0] * 4, [0] * 4))
    assert budgets == [0, 1]


def test_what_the_gate_knows_of_rows_is_learned_carried_and_forgotten() -> None:
    """A newcomer is like the others, 2 of 4 in the mean: half of that and half of what it got itself."""
    memory = OffGate(weight=0.5).start(4, 2, ["a"])
    memory.accepted[:3], memory.verified[:3] = [1.0, np.nan, 3.0], [4.0, np.nan, 4.0]
    memory.drafted = np.array([True, True, True])
    memory.observe(seen([4, 2, 4], [4, 0, 2]))
    assert memory.accepted[:3].tolist() == [2.5, 1.0, 2.5]
    assert memory.verified[:3].tolist() == [4.0, 3.0, 4.0]
    memory.drafted = np.array([False, False, False])
    for _ in range(2):
        memory.observe(seen([0, 0, 0], [0, 0, 0]))
    assert memory.out.tolist() == [2, 2, 2, 0]
    memory.known[1] = [0.7, 0.6]
    memory.move(np.array([1]), np.array([3]))
    assert (memory.accepted[3], memory.verified[3], memory.out[3]) == (1.0, 3.0, 2)
    assert_array_equal(memory.known[3], memory.known[1])
    memory.place(np.array([1]), np.array([0]))
    assert np.isnan([memory.accepted[1], memory.verified[1]]).all()
    assert (memory.out[1], memory.known[1].tolist()) == (0, [1.0, 1.0])


def test_the_gate_decides_as_the_search_where_drafting_is_free() -> None:
    """With the drafter inside the curve: the budget of one step before, allocation of now."""
    memory = OffGate().start(4, 7, ["a"])
    batch = Batch(LINEAR)
    for survival in (GOLDEN, GOLDEN[::-1]):
        assert memory.asks(4, batch) == Asked(4, None)
        lengths = memory.schedule(survival.astype(np.float32), batch)
        memory.observe(seen(lengths, lengths))
    assert_array_equal(lengths, [1, 5, 1, 5])


def test_a_step_costs_what_was_asked_of_the_drafter() -> None:
    """10 ms a step, 1 ms a pass and draft token, 1 ms for each request more."""
    draft = DraftCost("autoregressive", 4, [1, 11], [0.001, 0.011], context_s_per_token=1e-6)
    cost = AskedCost(StepCost(FREE, draft, overhead_s=0.001))
    slower = AskedCost(ScaledCost(StepCost(FREE, draft, overhead_s=0.001), 1.1))
    for asked, extra in (
        (None, 4 * (0.003 + 0.0003)), (Asked(3, 2), 2 * (0.003 + 0.0003)),
        (Asked(1, 2), 2 * (0.001 + 0.0001)), (Asked(0, 0), 0.0), (Asked(3, 0), 0.0),
    ):  # fmt: skip
        assert cost.step_time_s(3, 9, 300.0, 0, asked) == pytest.approx(0.011 + extra)
        assert slower.step_time_s(3, 9, 300.0, 0, asked) == pytest.approx(1.1 * (0.011 + extra))
    inside: CostModel = FREE
    assert AskedCost(inside).step_time_s(3, 9, 0.0, 0, Asked(0, 0)) == 0.01


# ---------------------------------------------------------------- service levels


def slo_memory(policy: SloFirst, seconds: list[float], tokens: list[float]) -> Any:
    memory = policy.start(len(seconds), 3, ["a"])
    memory.place(np.arange(len(seconds)), np.zeros(len(seconds), dtype=np.int64))
    memory.seconds[:], memory.tokens[:] = seconds, tokens
    return memory


def test_what_a_request_needs_is_counted_from_its_target() -> None:
    """Target 10 ms, a step of 10 ms. At 40 ms, 5 tokens are due: of 4, 2, 0 got, 0, 2, 4 drafts are needed.

    Request 1's drafts of 0.9, 0.8 and 0.7: two give 1.7 of the 2, so all three are needed.
    """
    memory = slo_memory(SloFirst((("all", 0.01),)), [0.04, 0.04, 0.04], [4, 2, 0])
    grid = on_grid(np.array([[0.9, 0.8, 0.7]] * 3, dtype=np.float32)).astype(np.int64)
    assert memory.needed(grid, 0.01).sum(axis=1).tolist() == [0, 3, 3]
    memory.tokens[1] = 3
    assert memory.needed(grid, 0.01).sum(axis=1).tolist() == [0, 2, 3]  # 0.9 of 1, then 1.7


@settings(max_examples=80)
@given(survivals(3, 3), survivals(3, 3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_needed_drafts_come_first_and_then_the_most_likely(past: Any, now: Any, tokens: list[int]) -> None:
    """By brute force: of all sets of that size, the most needed drafts, and with these most survival."""
    policy = SloFirst((("all", 0.004),))
    memory = slo_memory(policy, [0.016] * 3, [float(each) for each in tokens])
    batch = Batch(LINEAR, lagged=past)
    lengths = memory.schedule(now, batch)
    budget = int(DSparkAsync().schedule(now, batch).sum())
    assert lengths.sum() == budget
    grid = on_grid(now)
    rows = 3 + budget
    needed = memory.needed(grid.astype(np.int64), LINEAR.step_time_s(3, rows)).sum(axis=1)

    def worth(vector: Any) -> tuple[int, int]:
        served = sum(min(int(length), int(need)) for length, need in zip(vector, needed, strict=True))
        return served, sum(int(row[:n].sum(dtype=np.int64)) for row, n in zip(grid, vector, strict=True))

    assert worth(lengths) == max(worth(v) for v in product(range(4), repeat=3) if sum(v) == budget)
    more = slo_memory(SloFirst((("all", 0.004),), extend=True), [0.016] * 3, [float(each) for each in tokens])
    assert (more.schedule(now, batch) >= needed).all()


def test_classes_have_targets_of_their_own() -> None:
    policy = SloFirst((("chat", 0.02), ("all", 0.005)))
    memory = policy.start(3, 2, ["chat", "code"])
    memory.place(np.arange(3), np.array([0, 1, 0]))
    assert memory.target_s.tolist() == [0.02, 0.005, 0.02]
    memory.observe(seen([1, 1, 1], [1, 0, 1], gap_s=0.03))
    memory.move(np.array([2]), np.array([1]))
    assert memory.target_s[1] == 0.02
    assert (memory.seconds[1], memory.tokens[1]) == (0.03, 2)
    none = SloFirst((("chat", 0.02),)).start(2, 2, ["chat", "code"])
    none.place(np.arange(2), np.array([0, 1]))
    assert not none.needed(np.ones((2, 2), dtype=np.int64), 1.0)[1].any()
    with pytest.raises(BadInputError) as caught:
        SloFirst((("video", 0.02), ("audio", 0.01))).start(2, 2, ["chat", "code"])
    assert str(caught.value) == (
        "policy: slo: is no traffic class of this run (got 'audio'); one of chat, code, or all"
    )


@pytest.mark.parametrize("target_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_target_is_a_positive_time(target_s: float) -> None:
    with pytest.raises(BadInputError, match=r"targets\[chat\]: must be positive"):
        SloFirst((("chat", target_s),))


def test_progress_adds_up_over_steps_of_the_rows_that_are_there() -> None:
    """Two steps of 2 rows of 3: 10 and 20 ms, and a token more than was accepted."""
    memory = SloFirst((("all", 0.01),)).start(3, 2, ["a"])
    memory.place(np.arange(3), np.zeros(3, dtype=np.int64))
    for accepted, gap_s in (([1, 0], 0.01), ([2, 2], 0.02)):
        memory.observe(seen([2, 2], accepted, gap_s=gap_s))
    assert memory.seconds.tolist() == pytest.approx([0.03, 0.03, 0.0])
    assert memory.tokens.tolist() == [5.0, 4.0, 0.0]
    assert memory.asks(2, Batch(LINEAR)) == Asked(2, None)


def test_with_nothing_needed_it_is_the_search_of_two_steps_before() -> None:
    memory = SloFirst((("all", 10.0),)).start(4, 7, ["a"])
    memory.place(np.arange(4), np.zeros(4, dtype=np.int64))
    memory.tokens[:] = 5
    batch = Batch(LINEAR, lagged=GOLDEN[::-1])
    assert_array_equal(memory.schedule(GOLDEN, batch), admit(on_grid(GOLDEN), 12))


def test_a_weight_says_how_far_a_request_is_behind() -> None:
    """Target 10 ms, horizon 20 steps of 2 ms: 0.1 s late of 0.1 s due is (0.2 + 0.04) / (0.1 + 0.04)."""
    memory = Balanced(1.0, (("all", 0.01),)).start(4, 7, ["a"])
    memory.place(np.arange(4), np.zeros(4, dtype=np.int64))
    memory.seconds[:], memory.tokens[:] = [0.2, 0.1, 0.0, 9.0], [10, 10, 0, 0]
    assert memory.behind(4, 0.04).tolist() == pytest.approx([0.24 / 0.14, 1.0, 1.0, 4.0])
    # Without a target: 0.3 s for 20 tokens of these two, 15 ms each.
    others = Balanced(1.0).start(4, 7, ["a"])
    others.seconds[:2], others.tokens[:2] = [0.2, 0.1], [10, 10]
    assert others.behind(2, 0.04).tolist() == pytest.approx([0.24 / 0.19, 0.14 / 0.19])
    early = Balanced(1.0, (("all", 1.0),)).start(1, 7, ["a"])
    early.place(np.array([0]), np.array([0]))
    early.tokens[:] = 10
    assert early.behind(1, 0.04).tolist() == [0.25]  # 0.04 / 10.04 is bounded


@settings(max_examples=80)
@given(survivals(3, 3), survivals(3, 3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_weighted_drafts_are_the_best_of_their_number(past: Any, now: Any, tokens: list[int]) -> None:
    """By brute force over all sets of the budget's size; the budget is that of two steps before."""
    memory = Balanced(2.0, (("all", 0.004),)).start(3, 3, ["a"])
    memory.place(np.arange(3), np.zeros(3, dtype=np.int64))
    memory.seconds[:], memory.tokens[:] = 0.016, tokens
    batch = Batch(LINEAR, lagged=past)
    lengths = memory.schedule(now, batch)
    budget = int(lengths.sum())
    assert budget == DSparkAsync().schedule(now, batch).sum()
    weight = memory.behind(3, 20 * LINEAR.step_time_s(3, 3 + budget)) ** 2

    def worth(vector: Any) -> float:
        rows = zip(weight, now.astype(np.float64), vector, strict=True)
        return float(sum(each * row[:length].sum() for each, row, length in rows))

    best = max(worth(v) for v in product(range(4), repeat=3) if sum(v) == budget)
    assert worth(lengths) == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert_array_equal(
        Balanced(0.0).start(3, 3, ["a"]).schedule(now, batch), DSparkAsync().schedule(now, batch)
    )


def test_a_policy_that_remembers_decides_nothing_by_itself() -> None:
    with pytest.raises(BadInputError) as caught:
        Goodput().schedule(GOLDEN, Batch(LINEAR))
    assert str(caught.value) == (
        "policy: decides by what its own earlier steps did, which only a simulated engine tells it "
        "(got 'Goodput'); simulate it, or run another policy"
    )
