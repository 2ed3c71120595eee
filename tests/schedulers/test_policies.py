"""The policies: what each decides, on which survival, and whether decoding stays lossless under it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.stats import binomtest

from simulator.core.errors import BadInputError
from simulator.cost.draft import DraftCost
from simulator.cost.models import AdditiveCost, CostModel, LengthByRequests, StepCost, ThroughputCurve
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.policies import MOST_LAG, DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import GRID, LARGE, on_grid, throughput_of_budget
from tests.support.strategies import cost_models, survivals

# Four requests with blocks of seven, and step times of 2.0, 2.2, 2.6 and 9.0 ms at 0, 8, 16 and 32 tokens.
GOLDEN = np.array(
    [
        [0.95, 0.87, 0.79, 0.69, 0.59, 0.47, 0.35],
        [0.60, 0.18, 0.02, 0.00, 0.00, 0.00, 0.00],
        [0.90, 0.81, 0.73, 0.66, 0.59, 0.53, 0.48],
        [0.70, 0.49, 0.34, 0.24, 0.17, 0.12, 0.08],
    ]
)
GOLDEN_TOKENS, GOLDEN_S = [0, 8, 16, 32], np.array([2.0, 2.2, 2.6, 9.0]) / 1000


ANY = Batch(ThroughputCurve([1], [1.0]))  # for policies that do not ask


def golden_cost(lookup: str) -> ThroughputCurve:
    return ThroughputCurve(GOLDEN_TOKENS, 1 / GOLDEN_S, lookup=lookup)  # type: ignore[arg-type]


def throughput(survival: NDArray[np.float64], lengths: NDArray[np.int64], cost: CostModel) -> float:
    """Theta by the definition, tokens per second."""
    tau = sum(1 + row[:length].sum() for row, length in zip(survival, lengths, strict=True))
    return float(tau / cost.step_time_s(len(survival), len(survival) + int(lengths.sum())))


@pytest.mark.parametrize(
    ("lookup", "scheduler", "lengths", "tok_per_ms"),
    [
        ("floor", DSparkAsync(lag=0), [7, 3, 7, 7], None),
        ("linear", DSparkAsync(lag=0), [5, 1, 5, 1], 4.954),
        ("ceil", DSparkAsync(lag=0), [5, 1, 5, 1], 4.954),
        ("ceil", DSpark(), [2, 0, 2, 0], 3.42),
        ("linear", Tiered((1, 3, 7)), [5, 1, 5, 1], 4.954),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_decisions_of_the_engines(
    lookup: str, scheduler: Scheduler, lengths: list[int], tok_per_ms: float | None, dtype: type[np.floating]
) -> None:
    cost = golden_cost(lookup)
    chosen = scheduler.schedule(GOLDEN.astype(dtype), Batch(cost))
    assert_array_equal(chosen, lengths)
    if tok_per_ms:
        assert throughput(GOLDEN, chosen, cost) / 1000 == pytest.approx(tok_per_ms, abs=0.005)


def test_golden_throughput_of_the_middle_tier() -> None:
    """Tiers of 1, 3 and 7: three tokens a request, 12 in all, are worth 12.88 tokens a step."""
    cost = golden_cost("linear")
    theta = throughput_of_budget(on_grid(GOLDEN), 4, cost.step_time_s(4, range(4, 33))) / GRID
    assert theta[12] * cost.step_time_s(4, 16) == pytest.approx(12.88)
    assert max((4, 12, 28), key=lambda budget: theta[budget]) == 12


@st.composite
def decisions(draw: st.DrawFn) -> tuple[NDArray[np.float32], Batch]:
    """A small batch with a believed cost, prefill rows and context."""
    requests, gamma = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lagged = draw(st.none() | survivals(requests, gamma))
    batch = Batch(draw(cost_models()), draw(st.floats(0, 1e5)), draw(st.integers(0, 30)), lagged)
    return draw(survivals(requests, gamma)), batch


POLICIES = (
    Fixed(0), Fixed(1), Threshold(0.5), DSpark(), DSparkAsync(), DSparkAsync(0), Tiered((0, 1, 3)), Oracle(),
    BatchTable(LengthByRequests((1, 2, 5), (1, 0, 1))),
)  # fmt: skip


@given(decisions(), st.sampled_from(POLICIES))
def test_every_policy_keeps_the_contract(
    decision: tuple[NDArray[np.float32], Batch], policy: Scheduler
) -> None:
    survival, batch = decision
    before = survival.copy()
    lengths = policy.schedule(survival, batch)
    assert lengths.dtype == np.int64
    assert lengths.shape == (len(survival),)
    assert np.all((lengths >= 0) & (lengths <= survival.shape[1]))
    assert_array_equal(survival, before)
    assert policy.reason


@given(decisions())
def test_the_global_search_beats_every_length_vector(decision: tuple[NDArray[np.float32], Batch]) -> None:
    """In what it believes: expected tokens over the time of a step with these prefill rows and context."""
    survival, batch = decision
    requests, gamma = survival.shape
    grid = on_grid(survival)

    def theta(lengths: tuple[int, ...]) -> float:
        tau = sum(
            GRID + int(row[:length].sum(dtype=np.int64)) for row, length in zip(grid, lengths, strict=True)
        )
        rows = requests + sum(lengths) + batch.prefill_tokens
        return tau / batch.cost.step_time_s(requests, rows, batch.context_tokens, batch.prefill_tokens)

    batch.lagged = None
    chosen = tuple(DSparkAsync(lag=0).schedule(survival, batch).tolist())
    assert theta(chosen) == max(theta(vector) for vector in product(range(gamma + 1), repeat=requests))
    assert tuple(Oracle().schedule(survival, batch).tolist()) == chosen


@given(survivals(3, 4), survivals(3, 4), cost_models())
def test_async_takes_the_budget_from_the_past_and_the_allocation_from_now(
    now: NDArray[np.float32], past: NDArray[np.float32], cost: CostModel
) -> None:
    policy = DSparkAsync(lag=2)
    lengths = policy.schedule(now, Batch(cost, lagged=past))
    assert lengths.sum() == policy.schedule(past, Batch(cost, lagged=past)).sum()
    reordered = past[::-1].copy()  # the same budget, whoever it came from
    assert_array_equal(policy.schedule(now, Batch(cost, lagged=reordered)), lengths)


def test_async_on_a_staircase_crosses_the_step_that_stops_algorithm_1() -> None:
    """One token more than fits doubles the time, the next five are free: worth it only together."""
    survival = np.cumprod(np.full((1, 6), 0.95), axis=1)
    cost = ThroughputCurve([1, 8], [100.0, 60.0], lookup="ceil")
    assert DSpark().schedule(survival, Batch(cost)).tolist() == [6]
    steep = ThroughputCurve([1, 8], [100.0, 50.0], lookup="ceil")
    assert DSpark().schedule(survival, Batch(steep)).tolist() == [0]
    assert DSparkAsync().schedule(survival, Batch(steep, lagged=survival)).tolist() == [6]


def test_prefill_rows_and_context_count_in_the_decision() -> None:
    survival = np.cumprod(np.full((1, 4), 0.9), axis=1)
    riser = ThroughputCurve([1, 5, 6], [100.0, 100.0, 10.0])
    assert DSpark().schedule(survival, Batch(riser)).tolist() == [4]
    assert DSpark().schedule(survival, Batch(riser, prefill_tokens=2)).tolist() == [2]
    dear_rows = AdditiveCost(0.01, [1], [0], [1], [0], row_context_s_per_token=1e-6)
    assert DSpark().schedule(survival, Batch(dear_rows)).tolist() == [4]
    assert DSpark().schedule(survival, Batch(dear_rows, context_tokens=1e6)).tolist() == [0]


def test_fixed_verifies_what_it_says_and_asks_the_drafter_for_no_more() -> None:
    survival = np.zeros((3, 5), dtype=np.float32)
    assert Fixed(2).schedule(survival, Batch(golden_cost("linear"))).tolist() == [2, 2, 2]
    assert Fixed(2).draft_tokens == 2
    assert DSpark().draft_tokens is None


def test_fixed_longer_than_the_block_says_what_to_use() -> None:
    with pytest.raises(
        BadInputError, match=r"length: is longer than the block of 5 tokens \(got 6\); use at most fixed:5"
    ):
        Fixed(6).schedule(np.zeros((3, 5)), Batch(golden_cost("linear")))


@given(
    st.lists(st.lists(st.integers(0, 8), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 8)
)
def test_threshold_stops_at_the_first_confidence_below_it(eighths: list[list[int]], threshold: int) -> None:
    """In eighths, so that products and ratios are exact."""
    survival = np.cumprod(np.array(eighths) / 8, axis=1)
    expected = []
    for row in eighths:
        below = [k for k, confidence in enumerate(row) if confidence < threshold]
        expected.append(below[0] if below else len(row))
    lengths = Threshold(threshold / 8).schedule(survival, Batch(golden_cost("linear")))
    assert_array_equal(lengths, expected)


@given(
    st.sampled_from([0.05, 0.1, 0.3, 0.35, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]),
    st.integers(1, 255),
    st.booleans(),
)
def test_a_confidence_that_is_the_threshold_reaches_it_at_every_depth(
    threshold: float, gamma: int, in_float32: bool
) -> None:
    """Survival is rounded to float32 and underflows; what is written alike must still compare alike."""
    if in_float32:
        survival = np.cumprod(np.full((2, gamma), threshold, np.float32), axis=1, dtype=np.float32)
    else:
        survival = np.cumprod(np.full((2, gamma), threshold), axis=1).astype(np.float32)
    batch = Batch(golden_cost("linear"))
    assert_array_equal(Threshold(threshold).schedule(survival, batch), [gamma, gamma])
    if threshold < 1:
        above = min(threshold + 1e-6, 1.0)
        assert_array_equal(Threshold(above).schedule(survival, batch), [0, 0])


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), st.floats(0, 1))
def test_threshold_compares_the_confidences_that_made_the_survival(
    confidences: list[float], threshold: float
) -> None:
    """Against a loop over the confidences themselves, wherever they are not within rounding of P."""
    row = np.array(confidences, dtype=np.float32)
    survival = np.cumprod(row, dtype=np.float32)
    assume(threshold == 0 or threshold > 1e-30)  # below, float32 itself cannot say it
    assume(all(abs(float(c) - threshold) > 1e-6 * max(float(c), threshold) for c in row))
    expected = next((k for k, c in enumerate(row) if float(c) < threshold), len(row))
    # Else float32 has lost what is compared: a survival, or its product with the threshold.
    assume(expected == 0 or survival[expected - 1] * (threshold or 1.0) > 1e-30)
    found = Threshold(threshold).schedule(survival[None], Batch(golden_cost("linear")))
    assert_array_equal(found, [expected])


@given(survivals(3, 5), st.sampled_from([0.0, 0.3, 0.6, 0.7, 0.95, 1.0]))
def test_threshold_is_the_same_on_torch(survival: NDArray[np.float32], threshold: float) -> None:
    torch = pytest.importorskip("torch")
    survival[0] = np.cumprod(np.full(5, threshold, np.float32), dtype=np.float32)
    batch = Batch(golden_cost("linear"))
    expected = Threshold(threshold).schedule(survival, batch)
    assert expected[0] == 5
    assert_array_equal(Threshold(threshold).schedule(torch.from_numpy(survival), batch).numpy(), expected)


@pytest.mark.parametrize("requests", [1, 7, 11, 17, 25, 28, 33])
@pytest.mark.parametrize("scheduler", [DSpark(), DSparkAsync(), Tiered((0, 1, 3, 5)), Oracle()])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_tie_that_rounding_would_decide_goes_to_the_smaller_budget(
    requests: int, scheduler: Scheduler, library: str
) -> None:
    """Certain drafts at a price per row: every budget is worth 1 / 1.3 ms, so none is admitted."""
    survival = np.ones((requests, 5), np.float32)
    if library == "torch":
        survival = pytest.importorskip("torch").from_numpy(survival)
    price_per_row = AdditiveCost(0.0013, [1, 2], [0, 0], [1, 401], [0, 0.52])
    lengths = scheduler.schedule(survival, Batch(price_per_row))
    assert int(lengths.sum()) == 0


def test_tiers_that_no_block_holds_are_refused_with_the_block_size() -> None:
    assert Tiered((3, 9)).schedule(GOLDEN, Batch(golden_cost("linear"))).sum() == 12
    with pytest.raises(BadInputError, match="tiers: are all longer than the block of 7 tokens"):
        Tiered((8, 9)).schedule(GOLDEN, Batch(golden_cost("linear")))


def test_a_table_gives_every_request_the_length_of_its_batch_size() -> None:
    """Inclusive ranges; a gap (65 to 127) and what lies beyond keep the length before, as in vLLM."""
    scheduler = parse_policy("batch-table:1-16=5,17-64=3,128-256=0").scheduler
    batch = Batch(golden_cost("linear"))
    for requests, length in ((1, 5), (16, 5), (17, 3), (64, 3), (100, 3), (128, 0), (500, 0)):
        survival = np.random.default_rng(requests).random((requests, 5))
        assert scheduler.schedule(survival, batch).tolist() == [length] * requests
    assert scheduler.draft_tokens == 5
    with pytest.raises(BadInputError, match="longer than the block of 4 tokens"):
        scheduler.schedule(np.ones((2, 4)), batch)


def test_a_drafter_is_paid_for_what_the_table_asks_of_it() -> None:
    """10 ms a step. An autoregressive drafter takes 1 ms a draft, a parallel one 2 ms a block, none at 0."""
    lengths = LengthByRequests((1, 3, 5), (4, 1, 0))
    flat = ThroughputCurve([1], [100.0])
    one_by_one = StepCost(flat, DraftCost("autoregressive", 5, [1], [0.001]), lengths)
    at_once = StepCost(flat, DraftCost("parallel", 5, [1], [0.002]), lengths)
    sizes = (1, 2, 3, 4, 5, 9)
    assert [one_by_one.step_time_s(n, n) for n in sizes] == pytest.approx(
        [0.014] * 2 + [0.011] * 2 + [0.01] * 2
    )
    assert [at_once.step_time_s(n, n) for n in sizes] == pytest.approx([0.012] * 4 + [0.01] * 2)


def test_tiered_takes_the_smaller_of_equal_tiers() -> None:
    """Nothing is ever accepted and tokens are free: every tier is worth the same."""
    flat = ThroughputCurve([1], [100.0])
    assert Tiered((1, 2, 4)).schedule(np.zeros((2, 4)), Batch(flat)).tolist() == [1, 1]


@pytest.fixture
def torch() -> ModuleType:
    """Torch, where it is installed."""
    return pytest.importorskip("torch", reason="the [live] extra is not installed")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_torch_decides_as_numpy_does(torch: ModuleType, policy: Scheduler, dtype: str) -> None:
    draw = np.random.default_rng(11)
    costs = [golden_cost("linear"), golden_cost("ceil"), golden_cost("floor")]
    for trial in range(40):
        requests = int(draw.integers(1, 12))
        confidence = draw.random((2, requests, 5))
        if trial % 2:
            confidence = np.round(confidence * 3) / 3
        now, past = np.cumprod(confidence, axis=2).astype(dtype)
        cost = costs[trial % 3]
        ours = policy.schedule(now, Batch(cost, lagged=past))
        theirs = policy.schedule(torch.from_numpy(now), Batch(cost, lagged=torch.from_numpy(past)))
        assert theirs.dtype == torch.int64
        assert_array_equal(ours, theirs.numpy())


# ---------------------------------------------------------------- losslessness, token by token (appendix A)

P_TARGET, Q_DRAFT = np.array([0.7, 0.3]), np.array([0.5, 0.5])
SECOND_CONFIDENCE = (0.9, 0.0)  # after token A, after token B: the leak
APPENDIX_COST = ThroughputCurve([1, 2, 3], [1.0, 0.5, 0.45])


@dataclass
class Decoder:
    """One request, block of two, rejection sampling over two tokens: A = 0 and B = 1.

    The target and the draft draw every token independently, so that each committed token must follow
    ``P_TARGET`` if decoding is lossless. ``first`` keeps the first token of every step, ``stream`` all.
    """

    scheduler: Scheduler
    seed: int
    first: list[int] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)

    def run(self, steps: int) -> Decoder:
        draw = np.random.default_rng(self.seed)
        past = deque(np.ones((1, 2)) for _ in range(self.scheduler.lag))
        acceptance = 1 - 0.5 * np.abs(P_TARGET - Q_DRAFT).sum()
        for _ in range(steps):
            drafts = [self.sample(Q_DRAFT, draw), self.sample(Q_DRAFT, draw)]
            survival = acceptance * np.array([[1.0, SECOND_CONFIDENCE[drafts[0]]]])
            batch = Batch(APPENDIX_COST, lagged=past[0] if past else None)
            length = int(self.scheduler.schedule(survival, batch)[0])
            if past:
                past.append(survival)
                past.popleft()
            committed = self.verify(drafts[:length], draw)
            self.first.append(committed[0])
            self.stream.extend(committed)
        return self

    def verify(self, drafts: list[int], draw: np.random.Generator) -> list[int]:
        """Accept with min(1, p / q); after a rejection the residual, after the last draft the target."""
        for accepted, token in enumerate(drafts):
            if draw.random() >= min(1.0, P_TARGET[token] / Q_DRAFT[token]):
                residual = np.maximum(P_TARGET - Q_DRAFT, 0)
                return [*drafts[:accepted], self.sample(residual / residual.sum(), draw)]
        return [*drafts, self.sample(P_TARGET, draw)]

    @staticmethod
    def sample(probability: NDArray[np.float64], draw: np.random.Generator) -> int:
        return int(draw.random() >= probability[0])


def interval(tokens: list[int]) -> tuple[float, float]:
    """99.9% confidence interval (Clopper-Pearson) of the share of token A."""
    low, high = binomtest(tokens.count(0), len(tokens)).proportion_ci(0.999)
    return float(low), float(high)


@pytest.mark.parametrize(
    "policy",
    [
        DSpark(),
        DSparkAsync(lag=1),
        DSparkAsync(lag=2),
        Fixed(0),
        Fixed(2),
        Threshold(0.5),
        Tiered((0, 2), lag=1),
        BatchTable(LengthByRequests((1,), (2,))),
    ],
    ids=repr,
)
def test_a_lossless_policy_recovers_the_target(policy: Scheduler) -> None:
    """(0.70, 0.30) lies inside the 99.9% interval, of first tokens and of all, and 0.85 far outside."""
    assert policy.lossless
    decoder = Decoder(policy, seed=2).run(6000)
    for tokens in (decoder.first, decoder.stream):
        low, high = interval(tokens)
        assert low < 0.70 < high
        assert high < 0.75


def test_a_global_search_without_the_lag_leaks() -> None:
    """(0.85, 0.15) lies inside the 99.9% interval and 0.70 outside: the leak is real and is found."""
    policy = DSparkAsync(lag=0)
    assert not policy.lossless
    low, high = interval(Decoder(policy, seed=2).run(6000).first)
    assert low < 0.85 < high
    assert low > 0.80


def test_the_delayed_policies_do_speculate_in_that_simulation() -> None:
    """Losslessness would be trivial for a policy that never verifies; those with a lag do."""
    for lag in (1, 2):
        decoder = Decoder(DSparkAsync(lag=lag), seed=2).run(2000)
        assert len(decoder.stream) > 1.5 * len(decoder.first)


def test_policies_say_why_they_are_lossless() -> None:
    assert DSparkAsync(2).reason.startswith("the budget is 2 steps old")
    assert not DSparkAsync(0).lossless
    assert "appendix A" in DSparkAsync(0).reason


def test_a_large_batch_of_the_oracle_is_decided_as_a_small_one() -> None:
    """Certainties leave no choice of candidates: whatever is accepted, and nothing beyond it."""
    requests, gamma = LARGE // 4 + 1, 4
    accepted = np.arange(requests) % (gamma + 1)
    certain = (np.arange(gamma) < accepted[:, None]).astype(np.float32)
    cost = ThroughputCurve([1, requests * (1 + gamma)], [100.0, 99.0])
    assert_array_equal(Oracle().schedule(certain, Batch(cost)), accepted)
    assert_array_equal(Oracle().schedule(certain[:5], Batch(cost)), accepted[:5])


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    assert DSparkAsync(MOST_LAG).lag == MOST_LAG
    assert Tiered((0, 2)).tiers == (0, 2)
    assert (Threshold(0.0).threshold, Threshold(1.0).threshold) == (0.0, 1.0)


def test_a_tier_as_long_as_the_block_is_taken() -> None:
    """Sure drafts and steps of one length: the longest tier that fits is the best."""
    cost, sure = ThroughputCurve([1, 64], [100.0, 100.0]), np.ones((4, 3), dtype=np.float32)
    assert_array_equal(Tiered((1, 3, 5)).schedule(sure, Batch(cost, lagged=sure)), [3, 3, 3, 3])
    with pytest.raises(BadInputError) as caught:
        Tiered((4, 5)).schedule(sure, Batch(cost, lagged=sure))
    assert str(caught.value).endswith("the block of 3 tokens (got (4, 5)); give one of at most 3")


def test_a_table_takes_ranges_of_one_and_says_what_is_wrong_with_others() -> None:
    one = parse_policy("batch-table:1-1=2,2-=1").scheduler
    assert one.schedule(np.ones((1, 2), np.float32), ANY).tolist() == [2]
    assert one.schedule(np.ones((2, 2), np.float32), ANY).tolist() == [1, 1]
    assert one.schedule(np.ones((0, 2), np.float32), ANY).tolist() == []
    with pytest.raises(BadInputError) as caught:
        one.schedule(np.ones((1, 1), np.float32), ANY)
    assert str(caught.value) == (
        "policy: batch-table: is longer than the block of 1 tokens (got 2); "
        "use lengths of at most 1, or a drafter with a larger block"
    )
