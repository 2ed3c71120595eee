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
    with pytest.raises(BadInputError, match="is no traffic class of this run"):
        SloFirst((("video", 0.02),)).start(2, 2, ["chat", "code"])


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
    with pytest.raises(BadInputError, match="which only a simulated engine tells it"):
        Goodput().schedule(GOLDEN, Batch(LINEAR))
