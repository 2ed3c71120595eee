"""Engines' schedulers: a decision worked out by hand for each difference, and torch beside NumPy.

The four requests and step times are the golden vector of ``test_policies``: 2.0, 2.2, 2.6 and 9.0 ms at 0, 8,
16 and 32 rows, linear between them. Theta is in tokens per ms.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.deployment.deployment import deploy
from simulator.schedulers.engines.lookup import ceil_times, filled, floor_times, padded_rows
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.engines.trtllm import TensorRTLLM
from simulator.schedulers.engines.vllm import VLLM
from simulator.schedulers.protocol import Batch, Scheduler
from tests.schedulers.test_policies import GOLDEN, Decoder, golden_cost, interval
from tests.support.strategies import survivals

LINEAR = golden_cost("linear")


def decide(policy: Scheduler, survival: NDArray[np.float64], batch: Batch | None = None) -> list[int]:
    chosen: list[int] = policy.schedule(survival, batch or Batch(LINEAR, lagged=survival)).tolist()
    return chosen


def test_sglang_searches_all_budgets() -> None:
    """12 drafts give 12.88 tokens in 2.6 ms, Theta 4.954: more than at any other budget."""
    assert decide(SGLang(), GOLDEN) == [5, 1, 5, 1]


def test_a_floor_lookup_sells_drafts_before_a_riser() -> None:
    """28 rows are priced as 16, 2.6 ms. 24 drafts have survival; the four of 0 are no candidates."""
    assert decide(SGLang(probes=(8, 16, 32)), GOLDEN) == [7, 3, 7, 7]
    # A table that begins at 16 rows is blind below: every size up to 31 is the same to it.
    assert decide(SGLang(probes=(16, 32)), GOLDEN) == [7, 3, 7, 7]


def test_a_diagonal_table_is_measured_at_whole_blocks() -> None:
    """Probe 20 of blocks of 7 runs 2 requests: what the table says does not depend on the requests of now."""
    seen = []

    class Asked(ThroughputCurve):
        def _time_s(self, requests, batch_tokens, context_tokens, prefill_tokens):  # type: ignore[no-untyped-def]
            seen.append((requests, batch_tokens, context_tokens))
            return 1.0

    batch = Batch(Asked([1], [1.0]), context_tokens=1e5, lagged=GOLDEN)
    SGLang(probes=(4, 20, 32)).schedule(GOLDEN, batch)
    assert seen == [(1, 4, 0.0), (2, 20, 0.0), (4, 32, 0.0)]


def test_survivals_below_a_millionth_are_no_candidates() -> None:
    """Rows are free, so every candidate is taken; 1e-6 itself is one, in the budget and in the allocation."""
    free = ThroughputCurve([1], [100.0])
    survival = np.array([[0.5, 1.01e-6, 0.99e-6], [0.4, 0.3, 1e-7]])
    assert decide(SGLang(), survival, Batch(free, lagged=survival)) == [2, 2]
    # Six candidates two steps ago, four now.
    assert decide(SGLang(), survival, Batch(free, lagged=np.ones((2, 3)))) == [2, 2]
    assert decide(VLLM(), survival, Batch(free, lagged=np.ones((2, 3)))) == [3, 3]


def test_the_budget_is_of_the_past_and_the_allocation_of_now_but_not_in_tensorrt_llm() -> None:
    """The same budget of 12 from the golden rows, spent on rows in another order."""
    now = GOLDEN[[3, 0, 1, 2]]
    assert decide(SGLang(), now, Batch(LINEAR, lagged=GOLDEN)) == [1, 5, 1, 5]
    assert decide(VLLM(), now, Batch(LINEAR, lagged=GOLDEN)) == [1, 5, 1, 5]
    assert decide(TensorRTLLM(tiers=(1, 3, 7)), now, Batch(LINEAR, lagged=GOLDEN)) == [5, 1, 5, 1]
    assert (SGLang().lag, VLLM().lag, TensorRTLLM().lag) == (2, 1, 1)


def test_reinflation_fills_the_graph_that_the_step_runs_in() -> None:
    """16 rows run in a graph of 24: the 20 most likely drafts instead of 12. The search ignores graphs."""
    assert decide(SGLang(tiers=(8, 24, 32)), GOLDEN) == [5, 1, 5, 1]
    assert decide(SGLang(tiers=(8, 24, 32), reinflate=True), GOLDEN) == [7, 2, 7, 4]
    # A graph of more rows than there are tokens is filled with all of them, those without survival left out.
    assert decide(SGLang(tiers=(8, 64), reinflate=True), GOLDEN) == [7, 3, 7, 7]


def test_a_budget_must_beat_verifying_all_by_the_minimum_gain() -> None:
    """All 24 candidates: 16.35 tokens in 7.4 ms, Theta 2.209. 4.954 is 124% more."""
    assert decide(SGLang(min_gain=1.2), GOLDEN) == [5, 1, 5, 1]
    assert decide(SGLang(min_gain=1.3), GOLDEN) == [7, 3, 7, 7]


def test_data_parallel_ranks_run_the_largest_rank_s_graph() -> None:
    """Two ranks of one request; a rank of b rows takes 1.0, 1.2, 1.4 s for b = 1, 2, 3.

    Rank 0 (certain) takes 2 drafts: 3 / 1.4 beats 2 / 1.2. Rank 1 takes none: 1.1 / 1.2 is below 1. Both run
    graphs of 3 rows, so that rank 1's can be filled. Decided together, 2 drafts are best (4 tokens in 1.2 s)
    and fill their graph.
    """
    survival = np.array([[1.0, 1.0], [0.1, 0.05]])
    batch = Batch(ThroughputCurve([2, 4, 6], [1, 1 / 1.2, 1 / 1.4]), lagged=survival)
    assert decide(SGLang(tiers=(1, 2, 3), ranks=2), survival, batch) == [2, 0]
    assert decide(SGLang(tiers=(1, 2, 3), ranks=2, reinflate=True), survival, batch) == [2, 2]
    assert decide(SGLang(tiers=(4, 6), reinflate=True), survival, batch) == [2, 0]


def test_vllm_looks_up_the_next_captured_size() -> None:
    """Captured at 8, 16, 32: 16 rows at 2.6 ms hold 12 drafts, Theta 4.954; at 32 rows it is 1.8."""
    assert decide(VLLM(captured=(8, 16, 32)), GOLDEN) == [5, 1, 5, 1]
    # Captured at 16 only, up to 12 drafts are free; above it sizes are their own, and 17 rows cost 3.0 ms.
    assert decide(VLLM(captured=(16,)), GOLDEN) == [5, 1, 5, 1]
    # Captured at 12 and 32: 8 drafts, 10.44 tokens in 2.4 ms.
    assert decide(VLLM(captured=(12, 32)), GOLDEN) == [4, 0, 3, 1]


def test_prompt_rows_are_rows_of_t_in_vllm_only() -> None:
    """4 prompt rows leave 8 drafts below 16 rows: 10.44 tokens in 2.6 ms, Theta 4.02."""
    batch = Batch(LINEAR, prefill_tokens=4, lagged=GOLDEN)
    assert decide(VLLM(), GOLDEN, batch) == [4, 0, 3, 1]
    assert decide(VLLM(prefill=False), GOLDEN, batch) == [5, 1, 5, 1]
    assert decide(SGLang(), GOLDEN, batch) == [5, 1, 5, 1]
    assert decide(SGLang(prefill=True), GOLDEN, batch) == [4, 0, 3, 1]


def test_a_prompt_counts_as_a_token_when_it_ends() -> None:
    """4 prompt rows; a step of 5 rows takes 1.0 s, of 6 rows 1.4 s; the draft is worth half a token.

    1.5 / 1.4 beats 1 / 1. With the first token of the prompt in it, 2.5 / 1.4 does not beat 2 / 1.
    """
    survival, cost = np.array([[0.5]]), ThroughputCurve([5, 6], [1, 1 / 1.4])
    assert decide(VLLM(), survival, Batch(cost, 0.0, 4, survival, prompts_ending=0)) == [1]
    assert decide(VLLM(), survival, Batch(cost, 0.0, 4, survival, prompts_ending=1)) == [0]


def test_tensorrt_llm_chooses_among_captured_lengths_and_promises_a_draft() -> None:
    """Tiers 1, 3, 7: 7.15 tokens in 2.2 ms, 12.88 in 2.6, 16.35 in 9.0: 3 a request, 12 in all."""
    assert decide(TensorRTLLM(tiers=(1, 3, 7)), GOLDEN) == [5, 1, 5, 1]
    # By default 1, 4 and 7. Of 4, 16 drafts in 20 rows: .53, .49, .48 and .47 more, 14.85 in 4.2 ms, 3.54.
    assert TensorRTLLM().tiers_of(7) == [1, 4, 7]
    assert TensorRTLLM().tiers_of(1) == [1]
    assert decide(TensorRTLLM(), GOLDEN) == [6, 1, 7, 2]


def test_the_promised_draft_displaces_a_likelier_one() -> None:
    """One draft each, although the second of row 0 is ten times as likely as the first of row 1."""
    survival = np.array([[0.9, 0.8], [0.08, 0.0]])
    steep = ThroughputCurve([4, 5], [1.0, 0.1])
    assert decide(TensorRTLLM(), survival, Batch(steep, lagged=survival)) == [1, 1]
    assert decide(SGLang(), survival, Batch(steep, lagged=survival)) == [2, 0]


def test_the_smaller_tier_wins_a_tie() -> None:
    """Drafts that are never accepted, in rows that cost nothing: each tier is worth the same."""
    free = ThroughputCurve([1], [100.0])
    assert decide(TensorRTLLM(), np.zeros((2, 4)), Batch(free, lagged=np.zeros((2, 4)))) == [1, 1]


def test_steps_run_padded_to_the_graphs_and_the_search_of_sglang_does_not_know() -> None:
    bench = deploy("deepseek-v4-flash")
    plain, padded = bench.plan("sglang"), bench.plan("sglang:tiers=64/128")
    assert padded.cost.step_time_s(20, 70) == plain.cost.step_time_s(20, 128)
    assert padded.believed.step_time_s(20, 70) == plain.cost.step_time_s(20, 70)
    assert padded.cost.step_time_s(20, 129) == plain.cost.step_time_s(20, 129)  # above the last graph
    assert_array_equal(
        padded.cost.step_time_s(20, range(60, 130)), [padded.cost.step_time_s(20, n) for n in range(60, 130)]
    )
    run = bench.plan("vllm:captured=64/128").cost
    assert run.step_time_s(20, 70) == plain.cost.step_time_s(20, 128)
    assert not run.outside(20, 70)


def test_a_size_is_padded_to_the_first_that_holds_it() -> None:
    assert [padded_rows(n, (8, 16)) for n in (1, 8, 9, 16, 17)] == [8, 8, 16, 16, 17]


ENGINES = (
    SGLang(), SGLang(probes=(4, 8, 16)), SGLang(tiers=(4, 10, 18), reinflate=True), SGLang(min_gain=0.2),
    SGLang(ranks=2), SGLang(ranks=2, tiers=(3, 6, 9), reinflate=True), VLLM(), VLLM(captured=(4, 9, 16)),
    TensorRTLLM(), TensorRTLLM(tiers=(1, 2)),
)  # fmt: skip


@settings(max_examples=60)
@given(survivals(3, 3))
def test_the_searches_are_the_best_by_brute_force(survival: NDArray[np.float32]) -> None:
    """No vector of lengths (for TensorRT-LLM: with a draft each and a tier's sum) promises more."""
    batch = Batch(LINEAR, lagged=survival)

    def theta(lengths: tuple[int, ...]) -> float:
        gained = sum(float(row[:length].sum()) for row, length in zip(survival, lengths, strict=True))
        return (3 + gained) / LINEAR.step_time_s(3, 3 + sum(lengths))

    every = list(product(range(4), repeat=3))
    for policy in (SGLang(), VLLM()):
        chosen = tuple(policy.schedule(survival, batch).tolist())
        assert theta(chosen) >= max(map(theta, every)) * (1 - 1e-5)
    allowed = [each for each in every if min(each) >= 1 and sum(each) in (3, 6, 9)]
    chosen = tuple(TensorRTLLM().schedule(survival, batch).tolist())
    assert chosen in allowed
    assert theta(chosen) >= max(map(theta, allowed)) * (1 - 1e-5)


@pytest.mark.parametrize("policy", ENGINES, ids=repr)
def test_torch_decides_as_numpy_does(policy: Scheduler) -> None:
    torch = pytest.importorskip("torch", reason="the [live] extra is not installed")
    draw = np.random.default_rng(5)
    for trial in range(30):
        requests = int(draw.integers(1, 9))
        confidence = draw.random((2, requests, 4))
        if trial % 2:
            confidence = np.round(confidence * 3) / 3
        now, past = np.cumprod(confidence, axis=2).astype(np.float32)
        batch = Batch(golden_cost("ceil"), 0.0, trial % 3, past)
        ours = policy.schedule(now, batch)
        theirs = policy.schedule(
            torch.from_numpy(now), Batch(batch.cost, 0.0, trial % 3, torch.from_numpy(past))
        )
        assert ours.dtype == np.int64
        assert theirs.dtype == torch.int64
        assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("policy", ENGINES, ids=repr)
def test_a_live_step_has_its_history_on_the_host(policy: Scheduler) -> None:
    """Survival of now is on the device, that of earlier steps in NumPy: the lengths are the device's."""
    torch = pytest.importorskip("torch", reason="the [live] extra is not installed")
    past = GOLDEN[[2, 0, 1, 3]].astype(np.float32)
    ours = policy.schedule(GOLDEN.astype(np.float32), Batch(LINEAR, lagged=past))
    theirs = policy.schedule(torch.from_numpy(GOLDEN.astype(np.float32)), Batch(LINEAR, lagged=past))
    assert theirs.dtype == torch.int64
    assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("policy", [SGLang(lag=1), VLLM(), TensorRTLLM(tiers=(1, 2))], ids=repr)
def test_an_engine_s_schedule_recovers_the_target(policy: Scheduler) -> None:
    """The simulation of appendix A: (0.70, 0.30) lies inside the 99.9% interval and 0.75 outside."""
    assert policy.lossless
    decoder = Decoder(policy, seed=3).run(6000)
    for tokens in (decoder.first, decoder.stream):
        low, high = interval(tokens)
        assert low < 0.70 < high < 0.75


def test_tiers_that_no_block_holds_are_refused() -> None:
    with pytest.raises(BadInputError) as caught:
        decide(TensorRTLLM(tiers=(8,)), GOLDEN)
    assert str(caught.value) == (
        "tiers: are all longer than the block of 7 tokens (got (8,)); give one of at most 7"
    )


def test_sizes_are_looked_up_at_or_below_a_probe_and_at_or_above_a_captured_size() -> None:
    """1 ms a row: below the first probe that one, above the last captured size the size itself."""
    rows = ThroughputCurve([1, 100], [1000.0, 10.0])
    sizes = range(3, 13)
    floor = floor_times(Batch(rows), sizes, (4, 8, 12), 4)
    assert (floor * 1000).round().tolist() == [4, 4, 4, 4, 4, 8, 8, 8, 8, 12]
    ceiling = ceil_times(Batch(rows), 2, sizes, (4, 8), 0)
    assert (ceiling * 1000).round().tolist() == [4, 4, 8, 8, 8, 8, 9, 10, 11, 12]


def test_a_graph_is_filled_with_no_more_drafts_than_there_are() -> None:
    """3 requests with blocks of 2 have 9 rows at most."""
    assert filled(5, 3, 2, (4, 8, 16)) == 5
    assert filled(9, 3, 2, (4, 8, 16)) == 6
    assert filled(20, 3, 2, (4, 8, 16)) == 6


def test_a_prompt_that_ends_counts_as_a_request_that_samples_where_prompts_count() -> None:
    """One draft of survival 0.5 at 1 ms a step of 1 row and 1.4 ms of 2: 1.5 tokens / 1.4 beats 1 / 1, but
    with another token in both steps 2.5 / 1.4 is below 2 / 1."""
    survival, curve = np.full((1, 1), 0.5), ThroughputCurve([1, 2], [1000.0, 1000 / 1.4])
    batch = Batch(curve, lagged=survival, prompts_ending=1)
    assert decide(VLLM(), survival, batch) == [0]
    assert decide(VLLM(prefill=False), survival, batch) == [1]
