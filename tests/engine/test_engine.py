"""The serving model against closed forms, queueing theory, timelines by hand and its own invariants."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from simulator.acceptance.trace import Replay
from simulator.core.arrays import PACKED_ROWS
from simulator.core.errors import BadInputError
from simulator.core.statistics import mean_interval
from simulator.cost.models import AdditiveCost, StepCost, ThroughputCurve
from simulator.engine.batch import WAITS, Step, StepLog
from simulator.engine.cursors import LONG_TRACE
from simulator.engine.engine import Engine
from simulator.engine.executor import SchedulerError
from simulator.engine.limits import MOST_REQUESTS, EngineLimits, Prefill, check_every_request_fits
from simulator.engine.measures.recorded import requests_frame, steps_frame
from simulator.engine.run import (
    FEWEST_FINISHED,
    TURNOVERS,
    Run,
    advance,
    enough_requests,
    require_steps,
    run_engine,
    simulate,
    write_run,
    write_unfinished,
)
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Batch, Policy, Scheduler
from simulator.traffic.workload import Workload
from tests.support.engines import (
    TICK,
    Bookkeeper,
    Witness,
    closed_loop,
    constant_cost,
    constant_replay,
    open_loop,
    queue_waits,
    random_replay,
    rising_cost,
    run,
    tokens_cost,
)

ENDLESS = 10**9  # output tokens that no run here reaches

# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("verified", [0, 1, 3, 5])
@pytest.mark.parametrize("accepted", [0, 2, 5])
@pytest.mark.parametrize("concurrency", [1, 7])
def test_constant_acceptance_and_cost_give_the_closed_form_exactly(
    concurrency: int, accepted: int, verified: int
) -> None:
    """R requests commit tau = min(accepted, verified) + 1 tokens each in every step of T seconds."""
    metrics = simulate(
        closed_loop([ENDLESS] * concurrency),
        [constant_replay(5, accepted)],
        Fixed(verified),
        constant_cost(),
        EngineLimits(concurrency),
        steps=100,
    ).metrics
    tau = min(accepted, verified) + 1
    assert metrics.throughput_tok_per_s == concurrency * tau / TICK
    assert metrics.throughput_ci95 == 0
    assert metrics.tps_mean == tau / TICK
    assert metrics.accepted_length_mean == tau
    assert metrics.verification_budget_mean == 1 + verified
    assert metrics.acceptance_rate == tau / (1 + verified)
    assert metrics.wasted_fraction == ((verified - tau + 1) / verified if verified else 0)
    assert metrics.batch_tokens_mean == concurrency * (1 + verified)
    assert metrics.step_time_mean_s == metrics.itl_p50_s == metrics.itl_p99_s == TICK
    assert metrics.concurrency_mean == concurrency


def test_every_request_has_the_closed_form_of_its_own() -> None:
    """Outputs of 1 + 12 tokens, 3 a step: 4 steps each, admitted in waves of R."""
    engine, _ = run(
        open_loop([0.0] * 10, [13] * 10), constant_replay(5, 2), Fixed(4), constant_cost(), EngineLimits(4)
    )
    requests = requests_frame(engine)
    assert_array_equal(requests["decode_steps"], 4)
    assert_array_equal(requests["accepted_length"], 3)
    assert_array_equal(requests["tps"], 3 / TICK)
    assert_array_equal(requests["tpot_s"], TICK / 3)
    assert_array_equal(
        requests.sort_values("request")["first_token_s"], TICK * np.repeat([0, 4, 8], [4, 4, 2])
    )


def test_a_last_block_that_overshoots_delivers_only_what_was_asked_for() -> None:
    engine, _ = run(
        open_loop([0.0], [1 + 7]), constant_replay(5, 5), Fixed(5), constant_cost(), EngineLimits(1)
    )
    steps = steps_frame(engine)
    assert steps["committed_tokens"].tolist() == [6, 1]
    assert steps["accepted_tokens"].tolist() == [5, 5]


def test_requests_of_one_instant_start_together_whatever_rounding_does_to_the_clock() -> None:
    """0.2 + (0.9 - 0.2) falls short of 0.9: the clock reads less than the arrival that it has reached."""
    assert 0.2 + (0.9 - 0.2) < 0.9
    load = open_loop([0.2, 0.9, 0.9], [2, 2, 2])
    engine, _ = run(load, constant_replay(1, 0), Fixed(0), constant_cost(), EngineLimits(4))
    assert steps_frame(engine)["requests"].tolist() == [1, 2]


# ---------------------------------------------------------------- queueing theory


def poisson_arrivals(rate_per_s: float, requests: int, seed: int) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, requests))


def waits_of(
    workload: Workload, cost: ThroughputCurve, limits: EngineLimits
) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Waiting times in order of arrival, of autoregressive decoding, and the steps."""
    executor = SimulatedExecutor([constant_replay(1, 0)], workload, cost, capacity=1, seed=0)
    engine = run_engine(workload, executor, Fixed(0), cost, limits)
    requests = requests_frame(engine).sort_values("request")
    return (requests["admitted_s"] - requests["queued_s"]).to_numpy(), steps_frame(engine)


def deterministic_service(utilisation: float, seed: int) -> tuple[Any, ...]:
    """M/D/1: outputs of two tokens are one decode step of a constant time."""
    requests = 1200
    arrival_s = poisson_arrivals(utilisation / TICK, requests, seed)
    workload = open_loop(arrival_s, np.full(requests, 2))
    return arrival_s, np.full(requests, TICK), workload, constant_cost(), EngineLimits(1)


def exponential_service(utilisation: float, seed: int) -> tuple[Any, ...]:
    """M/M/1: one-token outputs are one whole prefill, as long as the prompt, which is exponential.

    Prompts of a million tokens on average: rounding to whole tokens changes nothing that is measured.
    """
    requests, mean_tokens = 1200, 1_000_000
    arrival_s = poisson_arrivals(utilisation / TICK, requests, seed)
    prompts = np.ceil(np.random.default_rng(seed + 10_000).exponential(mean_tokens, requests)).astype(
        np.int64
    )
    workload = open_loop(arrival_s, np.full(requests, 1), prompts)
    limits = EngineLimits(1, prefill="whole")
    return arrival_s, prompts * TICK / mean_tokens, workload, tokens_cost(TICK / mean_tokens), limits


@pytest.mark.parametrize("service", [deterministic_service, exponential_service])
def test_every_wait_follows_lindleys_recursion(service: Callable[..., tuple[Any, ...]]) -> None:
    arrival_s, service_s, *engine = service(0.8, seed=1)
    assert_allclose(waits_of(*engine)[0], queue_waits(arrival_s, service_s), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("service", "squared_variation"), [(deterministic_service, 0.0), (exponential_service, 1.0)]
)
def test_mean_wait_is_that_of_pollaczek_and_khinchine(
    service: Callable[..., tuple[Any, ...]], squared_variation: float
) -> None:
    """E[W] = rho / (1 - rho) * (1 + cv^2) / 2 * E[S], inside the 99% interval of 24 replications.

    At rho = 0.5 a queue forgets its empty start within some ten services; 200 arrivals are dropped.
    The interval must also be narrow enough to tell M/D/1 from M/M/1, whose waits differ twofold.
    """
    rho = 0.5
    means = [waits_of(*service(rho, seed)[2:])[0][200:].mean() for seed in range(24)]
    expected = rho / (1 - rho) * (1 + squared_variation) / 2 * TICK
    mean, half = mean_interval(np.array(means), confidence=0.99)
    assert abs(mean - expected) < half < expected / 6


def test_littles_law_for_the_queue() -> None:
    """Mean queue length, from the engine's own integral over time, is arrival rate times mean wait."""
    _, _, *engine = deterministic_service(0.8, seed=3)
    waits, steps = waits_of(*engine)
    assert steps["queued_s"].sum() == pytest.approx(waits.sum(), rel=1e-9)


def test_littles_law_for_the_batch() -> None:
    """Mean requests decoding is completion rate times mean decoding time, in every prefill mode."""
    for limits in (
        EngineLimits(6),
        EngineLimits(6, prefill="chunked", chunk_tokens=16),
        EngineLimits(6, prefill="whole"),
    ):
        workload = random_workload(np.random.default_rng(5), requests=80, rate_per_s=12.0)
        engine, _ = run(workload, random_replay(5), DSpark(), rising_cost(), limits)
        requests, steps = requests_frame(engine), steps_frame(engine)
        residence_s = (requests["finished_s"] - requests["first_token_s"]).sum()
        assert steps["decoding_s"].sum() == pytest.approx(residence_s, rel=1e-9)


# ---------------------------------------------------------------- prefill, by hand

# One tick per row of a step. Request 0 arrives at 0 with 4 prompt tokens and 1 + 8 to decode, request 1
# at 5.5 with 8 and 1 + 2, both autoregressive.
TWO = {"arrival_s": np.array([0, 5.5]) * TICK, "output_tokens": [9, 3], "prompt_tokens": [4, 8]}


def timeline(**limits: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and steps of those two, times in ticks."""
    engine, _ = run(
        open_loop(**TWO), constant_replay(2, 0), Fixed(0), tokens_cost(), EngineLimits(2, **limits)
    )
    requests, steps = requests_frame(engine).sort_values("request"), steps_frame(engine)
    times = [name for name in requests if str(name).endswith("_s")]
    requests[times] /= TICK
    steps[[name for name in steps if str(name).endswith("_s")]] /= TICK
    return requests.reset_index(drop=True), steps


def test_whole_prefill_stalls_decoding() -> None:
    """0-4 prefill 0; tokens at 5, 6; 6-14 prefill 1; tokens of both at 16, 18; then of 0 alone."""
    requests, steps = timeline(prefill="whole")
    assert steps["end_s"].tolist() == [4, 5, 6, 14, 16, 18, 19, 20, 21, 22]
    assert steps["prefill_tokens"].tolist() == [4, 0, 0, 8, 0, 0, 0, 0, 0, 0]
    assert steps["gap_s"].max() == 10  # request 0 waits from 6 to 16
    assert requests["ttft_s"].tolist() == [4, 8.5]
    assert requests["finished_s"].tolist() == [22, 18]


def test_chunked_prefill_rides_along() -> None:
    """Chunks of 4: 6-11 and 11-16 carry request 1's prompt beside one token of request 0."""
    requests, steps = timeline(prefill="chunked", chunk_tokens=4)
    assert steps["end_s"].tolist() == [4, 5, 6, 11, 16, 18, 20, 21, 22]
    assert steps["prefill_tokens"].tolist() == [4, 0, 0, 4, 4, 0, 0, 0, 0]
    assert steps["requests"].tolist() == [0, 1, 1, 1, 1, 2, 2, 1, 1]
    assert steps["gap_s"].max() == 5
    assert requests["ttft_s"].tolist() == [4, 10.5]
    assert requests["finished_s"].tolist() == [22, 20]


class _Told(Policy):
    """Verifies nothing, and keeps what it is told of prompts: their rows, and how many end."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, int]] = []

    def schedule(self, survival: NDArray[np.float32], batch: Batch) -> NDArray[np.int64]:
        self.prompts.append((batch.prefill_tokens, batch.prompts_ending))
        return np.zeros(len(survival), dtype=np.int64)


@pytest.mark.parametrize(
    ("arriving", "told"),
    [
        ([3, 3], [(0, 0), (4, 1), (2, 1), (0, 0)]),  # the second one is cut: 1 of its rows, then 2
        ([2, 2], [(0, 0), (4, 2), (0, 0)]),
        ([9], [(0, 0), (4, 0), (4, 0), (1, 1), (0, 0)]),
    ],
)
def test_a_policy_is_told_which_prompts_a_step_ends(arriving: list[int], told: list[tuple[int, int]]) -> None:
    """Chunks of 4 beside request 0, which decodes from the first tick on; the others arrive at 1.5 ticks."""
    policy, others = _Told(), len(arriving)
    load = open_loop([0.0] + [1.5 * TICK] * others, [50] + [9] * others, [2, *arriving])
    limits = EngineLimits(3, prefill="chunked", chunk_tokens=4)
    run(load, constant_replay(2, 0), policy, constant_cost(), limits, steps=1 + len(told))
    assert policy.prompts[: len(told)] == told


def test_prefill_elsewhere_never_touches_a_step() -> None:
    requests, steps = timeline(prefill="elsewhere")
    assert steps["prefill_tokens"].sum() == 0
    assert requests["ttft_s"].tolist() == [0, 0.5]  # until the running step ends
    assert requests["finished_s"].tolist() == [10, 10]


def test_a_prefill_pool_works_one_prompt_at_a_time() -> None:
    """A pool at one tick per token: request 0 is ready at 4 and request 1 at 13.5."""
    requests, steps = timeline(prefill="elsewhere", prefill_tokens_per_s=1 / TICK)
    assert requests["ttft_s"].tolist() == [4, 8]
    assert requests["finished_s"].tolist() == [12, 15.5]
    assert steps["prefill_tokens"].sum() == 0
    both = open_loop([0.0, 0.0], [2, 2], [4, 8])
    limits = EngineLimits(2, prefill_tokens_per_s=1 / TICK)
    engine, _ = run(both, constant_replay(2, 0), Fixed(0), tokens_cost(), limits)
    assert (requests_frame(engine)["ttft_s"] / TICK).tolist() == [4, 12]


def test_whole_prefill_takes_as_many_prompts_as_fit_and_one_if_none_does() -> None:
    engine, _ = run(
        open_loop([0.0] * 4, [1] * 4, [5, 4, 1, 30]),
        constant_replay(2, 0),
        Fixed(0),
        tokens_cost(),
        EngineLimits(4, prefill="whole", chunk_tokens=9),
    )
    assert steps_frame(engine)["prefill_tokens"].tolist() == [9, 1, 30]


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("prefill", ["elsewhere", "chunked", "whole"])
def test_one_token_outputs_need_no_decoding(prefill: Any) -> None:
    """They leave as their prefill ends, however long the line behind the only slot."""
    limits = EngineLimits(1, prefill=prefill)
    engine, executor = run(
        open_loop([0.0] * 5, [1, 1, 3, 1, 1]), constant_replay(2, 0), Fixed(0), tokens_cost(), limits
    )
    requests = requests_frame(engine)
    assert sorted(requests["request"]) == [0, 1, 2, 3, 4]
    assert set(executor.seen) == {2}
    assert_array_equal(requests["tps"].isna(), requests["output_tokens"] == 1)


def test_a_closed_loop_of_one_token_outputs_would_never_advance() -> None:
    with pytest.raises(BadInputError) as caught:
        run(closed_loop([1, 1]), constant_replay(2, 0), Fixed(0), constant_cost(), EngineLimits(1), steps=5)
    assert str(caught.value) == (
        "output_tokens: of 1 everywhere leave nothing to decode, and a closed loop no reason to advance; "
        "give longer outputs, or prefill on the engine"
    )
    limits = EngineLimits(1, prefill="whole")
    engine, _ = run(closed_loop([1, 1]), constant_replay(2, 0), Fixed(0), constant_cost(), limits, steps=5)
    assert engine.completed >= 4


def test_a_request_larger_than_the_cache_is_named_with_what_it_needs() -> None:
    """1 token of prompt, 5 and 9 of output, and a block of 2: request 1 needs 12."""
    workload = closed_loop([5, 9])
    check_every_request_fits(workload, EngineLimits(1, kv_tokens=12), 2)
    with pytest.raises(BadInputError) as caught:
        check_every_request_fits(workload, EngineLimits(1, kv_tokens=11), 2)
    assert str(caught.value) == (
        "kv_tokens: request 1 needs 12 tokens of KV cache and could never run (got 11); "
        "raise it (more GPUs hold more: `tp`), cap the lengths with max=, or drop the request"
    )


def test_a_closed_loop_keeps_its_concurrency_and_starts_over() -> None:
    workload = closed_loop(np.full(3, 20))
    engine, executor = run(workload, random_replay(3), Fixed(2), constant_cost(), EngineLimits(5), steps=200)
    assert set(steps_frame(engine)["requests"]) == {5}
    assert all(len(accounts) > 1 for accounts in executor.seen.values())


def test_a_closed_loop_starts_in_mid_flight() -> None:
    """The first requests are caught at a random point of their output, later ones start at its start."""
    engine, _ = run(
        closed_loop(np.full(400, 201)),
        constant_replay(1, 0),
        Fixed(0),
        constant_cost(),
        EngineLimits(200),
        steps=402,
    )
    tokens = requests_frame(engine)["decode_tokens"].to_numpy()
    first, later = tokens[:200], tokens[200:]
    assert abs(first.mean() - 100) < 4 * 200 / np.sqrt(12 * 200)  # uniform on 1..200, four standard errors
    assert set(later) == {200}


def test_nobody_overtakes_a_request_that_does_not_fit_yet() -> None:
    """Needs of 10, 17 and 10 tokens (prompt, output and one block) in a cache of 20: strictly one by one."""
    workload = open_loop([0.0, 0.0, 0.0], [4, 8, 4], [4, 7, 4])
    engine, _ = run(workload, constant_replay(2, 0), Fixed(0), constant_cost(), EngineLimits(3, kv_tokens=20))
    requests = requests_frame(engine)
    assert requests["request"].tolist() == [0, 1, 2]
    assert_array_equal(requests["admitted_s"][1:], requests["finished_s"][:-1])


def test_a_request_that_could_never_run_is_refused_at_the_start() -> None:
    workload = open_loop([0.0, 0.0], [4, 8], [4, 7])
    with pytest.raises(BadInputError, match=r"kv_tokens: request 1 needs 17 tokens of KV cache.*got 16"):
        run(workload, constant_replay(2, 0), Fixed(0), constant_cost(), EngineLimits(3, kv_tokens=16))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"concurrency": 0}, r"concurrency: must be positive \(got 0\); give at least 1"),
        ({"concurrency": -3}, "concurrency: must be positive"),
        ({"concurrency": 2.5}, "concurrency: must be a whole number"),
        ({"concurrency": float("nan")}, "concurrency: must be"),
        ({"concurrency": 1, "kv_tokens": 0}, "kv_tokens: must be positive"),
        ({"concurrency": 1, "chunk_tokens": 0}, "chunk_tokens: must be positive"),
        ({"concurrency": 1, "prefill_tokens_per_s": 0.0}, "prefill_tokens_per_s: must be positive"),
        ({"concurrency": 1, "prefill_tokens_per_s": float("nan")}, "prefill_tokens_per_s: must be"),
        ({"concurrency": 1, "prefill": "sometimes"}, "prefill: is not known"),
        ({"concurrency": 1, "prefill_workers": 0}, "prefill_workers: must be positive"),
        ({"concurrency": MOST_REQUESTS + 1}, r"concurrency: must be at most .* \(got 1000001\)"),
        ({"concurrency": 1, "prefill_workers": MOST_REQUESTS + 1}, "prefill_workers: must be at most"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        EngineLimits(**limits)


def test_the_largest_limits_are_allowed() -> None:
    assert EngineLimits(MOST_REQUESTS, prefill_workers=MOST_REQUESTS).concurrency == MOST_REQUESTS


def test_steps_scatter_as_the_cost_says_and_alike_for_every_policy() -> None:
    cost = StepCost(constant_cost(), jitter=(0.5, 1.0, 1.0, 1.5))

    def ticks(policy: Scheduler, seed: int = 0) -> NDArray[np.float64]:
        load, limits = closed_loop([ENDLESS] * 2), EngineLimits(2)
        run = simulate(load, [constant_replay(3, 1)], policy, cost, limits, steps=4000, seed=seed)
        return run.steps["duration_s"].to_numpy() / TICK

    first = ticks(Fixed(0))
    assert_array_equal(first, ticks(Fixed(3)))
    assert_array_equal(first, ticks(DSpark()))
    assert (first != ticks(Fixed(0), seed=1)).any()
    values, counts = np.unique(first, return_counts=True)
    assert values.tolist() == [0.5, 1.0, 1.5]
    assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.04)  # five standard errors


def test_a_closed_loop_needs_a_number_of_steps() -> None:
    with pytest.raises(BadInputError, match="steps: is needed: a closed loop never ends"):
        run(closed_loop([5]), constant_replay(2, 0), Fixed(0), constant_cost(), EngineLimits(1))


def test_replays_must_match_the_classes_and_each_other() -> None:
    workload = closed_loop([5])
    for replays in ([], [constant_replay(2, 0)] * 2):
        with pytest.raises(BadInputError, match=r"one replay per traffic class \(1\)"):
            SimulatedExecutor(replays, workload, constant_cost(), capacity=1, seed=0)
    two = Workload(None, np.ones(2, int), np.ones(2, int), np.array([0, 1]), ("chat", "code"))
    with pytest.raises(BadInputError) as caught:
        SimulatedExecutor(
            [constant_replay(3, 0), constant_replay(2, 0)], two, constant_cost(), capacity=1, seed=0
        )
    assert str(caught.value) == (
        "replays: needs one replay per traffic class (2), all of one block size (got [2, 3])"
    )


class Broken:
    """Returns nothing good at its fourth step."""

    lag, lossless, reason, reads_outcome, draft_tokens = 0, True, "", False, None

    def __init__(self, spoil: Callable[[NDArray[np.int64]], Any]) -> None:
        self.spoil, self.calls = spoil, 0

    def schedule(self, survival: NDArray[np.float32], batch: Batch) -> Any:
        self.calls += 1
        good = np.full(len(survival), 2, dtype=np.int64)
        return self.spoil(good) if self.calls == 4 else good


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda good: good - np.array([0, 3, 0]), "row 1 length -1, outside 0..3"),
        (lambda good: good + np.array([0, 0, 2]), "row 2 length 4, outside 0..3"),
        (lambda good: good[:2], r"int64 \(2,\) where int64 \(3,\) is due"),
        (lambda good: good[:, None], r"int64 \(3, 1\) where int64 \(3,\) is due"),
        (lambda good: good.astype(np.float64), "float64"),
        (lambda good: good.astype(np.int32), "int32"),
        (lambda good: good.tolist(), "list"),
        (lambda good: None, "NoneType"),
    ],
)
def test_a_scheduler_that_breaks_its_contract_is_named_with_its_step(
    spoil: Callable[[NDArray[np.int64]], Any], message: str
) -> None:
    with pytest.raises(SchedulerError, match=f"^decode step 3: the scheduler .*{message}"):
        run(
            closed_loop([ENDLESS] * 3),
            constant_replay(3, 1),
            Broken(spoil),
            constant_cost(),
            EngineLimits(3),
            steps=9,
        )


# ---------------------------------------------------------------- rows, history, streams


def random_workload(draw: np.random.Generator, requests: int, rate_per_s: float) -> Workload:
    """Poisson arrivals, geometric outputs with many of one token, prompts of all sizes."""
    return open_loop(
        np.cumsum(draw.exponential(1 / rate_per_s, requests)),
        draw.geometric(0.08, requests),
        draw.integers(1, 60, requests),
    )


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("limits", [EngineLimits(6), EngineLimits(6, prefill="chunked", chunk_tokens=16)])
def test_history_follows_each_request_and_is_certain_for_newcomers(limits: EngineLimits, lag: int) -> None:
    workload = random_workload(np.random.default_rng(lag), requests=120, rate_per_s=30.0)
    witness = Witness(DSparkAsync(lag))
    run(workload, random_replay(4), witness, rising_cost(), limits)
    assert witness.mismatches == []
    assert witness.newcomers > 100
    assert witness.veterans > 100


def test_history_survives_a_closed_loop() -> None:
    witness = Witness(DSparkAsync())
    workload = closed_loop(np.random.default_rng(0).geometric(0.1, 50) + 1)
    run(workload, random_replay(4), witness, constant_cost(), EngineLimits(7), steps=300)
    assert witness.mismatches == []
    assert witness.newcomers > 100
    assert witness.veterans > 100


def test_policies_meet_the_same_sequences_and_commit_the_same_tokens() -> None:
    """Common random numbers: each request commits the same trace rows whatever was verified, and when."""
    workload = random_workload(np.random.default_rng(2), requests=60, rate_per_s=20.0)
    tokens = workload.output_tokens - 1

    def committed(policy: Scheduler, concurrency: int, seed: int) -> dict[int, list[int]]:
        replay = random_replay(5)
        _, executor = run(workload, replay, policy, rising_cost(), EngineLimits(concurrency), seed=seed)
        rows = {}
        for request, (account,) in executor.seen.items():
            follow = [
                a + 1 + i for a, n in zip(account.anchors, account.committed, strict=True) for i in range(n)
            ]
            rows[request] = [row % replay.rows for row in follow][: tokens[request]]
        return rows

    reference = committed(Fixed(0), 1, seed=1)
    assert committed(Fixed(5), 8, seed=1) == reference
    assert committed(DSparkAsync(), 3, seed=1) == reference
    assert committed(Oracle(), 4, seed=1) == reference
    assert committed(Fixed(0), 1, seed=2) != reference


def test_classes_keep_to_their_own_traces() -> None:
    """Long outputs run past the end of a short trace and start over in it, not in the next class's."""
    chat, code = (
        random_replay(3, rows=40, sequences=4, seed=1),
        random_replay(3, rows=64, sequences=4, seed=2),
    )
    classes = np.array([0, 1] * 5, dtype=np.int16)
    workload = Workload(np.zeros(10), np.ones(10, int), np.full(10, 150), classes, ("chat", "code"))
    _, executor = run(workload, [chat, code], Fixed(3), constant_cost(), EngineLimits(4))
    for request, (account,) in executor.seen.items():
        anchors = np.array(account.anchors)
        first, rows = (0, 40) if classes[request] == 0 else (40, 64)
        assert np.all((anchors >= first) & (anchors < first + rows))
        assert_array_equal(np.diff(anchors) % rows, np.array(account.committed[:-1]) % rows)


@pytest.mark.parametrize("rows", [5, 640, LONG_TRACE])
def test_an_output_longer_than_the_trace_starts_it_over(rows: int) -> None:
    replay = random_replay(4, rows=rows, sequences=2)
    _, executor = run(open_loop([0.0], [3 * rows]), replay, Fixed(4), constant_cost(), EngineLimits(1))
    (account,) = executor.seen[0]
    assert_array_equal(np.diff(account.anchors) % rows, np.array(account.committed[:-1]) % rows)
    assert sum(account.committed) >= 3 * rows - 1


def test_without_a_drafter_blocks_are_empty_and_every_step_commits_one_token() -> None:
    nothing = Replay(np.zeros((1, 0), np.float32), np.zeros(1, np.uint8), np.array([0, 1]))
    engine, executor = run(
        open_loop([0.0] * 5, range(2, 7)), nothing, Fixed(0), tokens_cost(), EngineLimits(3)
    )
    assert all(account.committed == [1] * (request + 1) for request, (account,) in executor.seen.items())
    assert steps_frame(engine)["draft_tokens"].sum() == 0


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    def once(seed: int) -> Run:
        workload = closed_loop(np.random.default_rng(9).geometric(0.02, 40) + 1)
        return simulate(
            workload, [random_replay(5)], DSparkAsync(), rising_cost(), EngineLimits(8), seed=seed, steps=300
        )

    first, again, other = once(4), once(4), once(5)
    pd.testing.assert_frame_equal(first.steps, again.steps, check_exact=True)
    pd.testing.assert_frame_equal(first.requests, again.requests, check_exact=True)
    assert first.steps.to_numpy().tobytes() == again.steps.to_numpy().tobytes()
    assert repr(first.metrics) == repr(again.metrics)
    assert first.steps.to_numpy().tobytes() != other.steps.to_numpy().tobytes()


def test_the_clock_runs_on_the_true_cost_and_the_scheduler_on_the_believed() -> None:
    flat = constant_cost()
    engine, _ = run(
        closed_loop([ENDLESS] * 3),
        random_replay(4),
        DSpark(),
        tokens_cost(),
        EngineLimits(3),
        steps=50,
        believed=flat,
    )
    steps = steps_frame(engine)
    assert set(steps["draft_tokens"]) == {12}  # tokens are free in the flat table: verify everything
    assert_array_equal(steps["duration_s"], 15 * TICK)


def test_steps_beyond_the_measured_points_are_counted() -> None:
    """Three requests fit the curve until a fourth row is verified; every step of Fixed(1) is outside."""
    curve = ThroughputCurve([1, 4], [100.0, 50.0])
    for policy, fraction in ((Fixed(0), 0.0), (Fixed(1), 1.0)):
        workload, limits = closed_loop([ENDLESS] * 3), EngineLimits(3)
        metrics = simulate(workload, [constant_replay(2, 1)], policy, curve, limits, steps=50).metrics
        assert metrics.steps_outside_fraction == fraction


# ---------------------------------------------------------------- invariants under anything

LOSSLESS = (
    Fixed(0),
    Fixed(2),
    Fixed(4),
    Threshold(0.7),
    DSpark(),
    DSparkAsync(),
    DSparkAsync(3),
    Tiered((0, 2, 4)),
)
POLICIES = st.sampled_from([*LOSSLESS, Oracle()])


@st.composite
def limits(draw: st.DrawFn, largest_need: int) -> EngineLimits:
    """Any limits under which every request can run."""
    prefill = draw(st.sampled_from(["elsewhere", "chunked", "whole"]))
    return EngineLimits(
        draw(st.integers(1, 8)),
        kv_tokens=draw(st.none() | st.integers(largest_need, 4 * largest_need)),
        prefill=prefill,
        chunk_tokens=draw(st.integers(1, 50)),
        prefill_tokens_per_s=draw(st.none() | st.sampled_from([50.0, 5000.0])),
        prefill_workers=draw(st.none() | st.integers(1, 3)),
    )


@settings(max_examples=120)
@given(st.data(), st.integers(0, 2**32 - 1), POLICIES)
def test_invariants_hold_for_any_load_limits_and_policy(
    data: st.DataObject, seed: int, policy: Scheduler
) -> None:
    draw = np.random.default_rng(seed)
    workload = random_workload(
        draw, requests=int(draw.integers(1, 30)), rate_per_s=float(draw.uniform(1, 200))
    )
    need = workload.prompt_tokens + workload.output_tokens + 4
    limit = data.draw(limits(int(need.max())))
    replay = random_replay(4, rows=512, seed=seed)
    cost = AdditiveCost(TICK, [1, 4], [0, TICK], [1, 64], [0, TICK], context_s_per_token=1e-6)
    engine, executor = run(workload, replay, policy, cost, limit, seed=seed)
    requests, steps = requests_frame(engine).set_index("request").sort_index(), steps_frame(engine)
    assert_requests_are_conserved(workload, requests)
    assert_tokens_are_committed_once(workload, requests, steps, executor, replay.rows)
    assert_time_never_goes_back(workload, requests, steps, limit)
    assert_waits_are_accounted(workload, requests, steps, limit)
    assert_batches_are_what_was_run(workload, steps, executor, limit)
    assert_limits_are_kept(requests, need, limit)
    assert (engine.load, engine.kv_reserved) == (0, 0)


def assert_requests_are_conserved(workload: Workload, requests: pd.DataFrame) -> None:
    assert_array_equal(requests.index, range(len(workload)))
    assert_array_equal(requests["output_tokens"], workload.output_tokens)


def assert_tokens_are_committed_once(
    workload: Workload, requests: pd.DataFrame, steps: pd.DataFrame, executor: Bookkeeper, rows: int
) -> None:
    """Each next anchor is the last token committed, and the output is full exactly at the last step."""
    tokens = workload.output_tokens - 1
    assert steps["committed_tokens"].sum() == tokens.sum()
    assert_array_equal(requests["decode_tokens"], tokens)
    assert set(executor.seen) == set(np.flatnonzero(tokens))
    for request, (account,) in executor.seen.items():
        assert_array_equal(np.diff(account.anchors) % rows, account.committed[:-1])
        assert sum(account.committed[:-1]) < tokens[request] <= sum(account.committed)
        assert requests["decode_steps"][request] == len(account.committed)


def assert_time_never_goes_back(
    workload: Workload, requests: pd.DataFrame, steps: pd.DataFrame, limit: EngineLimits
) -> None:
    assert np.all(np.diff(steps["end_s"]) > 0)
    assert np.all(np.diff(steps["end_s"]) >= steps["duration_s"][1:] * (1 - 1e-9))
    assert np.all(steps["gap_s"] >= steps["duration_s"] * (1 - 1e-9))
    assert_array_equal(requests["queued_s"], workload.arrival_s)
    order = ["queued_s", "admitted_s", "first_token_s"]
    if limit.has_pool:
        order = ["queued_s", "first_token_s", "admitted_s"]
    assert np.all(np.diff(requests[[*order, "finished_s"]], axis=1) >= 0)
    # First come first served; what a pool has served to its end, or sooner than others, never stands in line.
    in_line = requests[requests["output_tokens"] > 1] if limit.has_pool else requests
    assert np.all(
        np.diff(in_line.sort_values("first_token_s" if limit.has_pool else "queued_s")["admitted_s"]) >= 0
    )


def assert_waits_are_accounted(
    workload: Workload, requests: pd.DataFrame, steps: pd.DataFrame, limit: EngineLimits
) -> None:
    """What a request waited for by cause is all of its time from arrival to service, and of the queue's."""
    waits = requests[list(WAITS)]
    assert np.all(waits >= 0)
    waited = waits.sum(axis=1)
    outside = requests["admitted_s"] - requests["queued_s"]
    if limit.has_pool:
        assert limit.prefill_tokens_per_s is not None
        service_s = requests["prompt_tokens"] / limit.prefill_tokens_per_s
        assert_allclose(waits["waited_pool_s"] + service_s, requests["ttft_s"], rtol=1e-9, atol=1e-9)
        assert_allclose(waited + service_s, outside, rtol=1e-9, atol=1e-9)
        decoding = requests[requests["output_tokens"] > 1]
        handed_over = (decoding["admitted_s"] - decoding["first_token_s"]).sum()
        assert steps["handover_s"].sum() == pytest.approx(handed_over, rel=1e-9, abs=1e-9)
    else:
        assert_allclose(waited - waits["waited_prefill_s"], outside, rtol=1e-9, atol=1e-9)
        assert steps["handover_s"].sum() == 0
    if limit.prefill == "elsewhere":
        assert not waits["waited_prefill_s"].any()
    if limit.kv_tokens is None:
        assert not waits["waited_kv_s"].any()
    after = requests["finished_s"].max() - steps["end_s"].iloc[-1] if len(steps) else np.inf
    if after <= 0:  # else the pool served the last ones after the last step
        assert steps["queued_s"].sum() == pytest.approx(waited.sum(), rel=1e-9, abs=1e-9)


def assert_batches_are_what_was_run(
    workload: Workload, steps: pd.DataFrame, executor: Bookkeeper, limit: EngineLimits
) -> None:
    columns = ["requests", "draft_tokens", "prefill_tokens"]
    assert list(steps[columns].itertuples(index=False, name=None)) == executor.batches
    assert np.all(steps["draft_tokens"] <= 4 * steps["requests"])
    prompts = 0 if limit.prefill == "elsewhere" else workload.prompt_tokens.sum()
    assert steps["prefill_tokens"].sum() == prompts
    if limit.prefill == "chunked":
        assert steps["prefill_tokens"].max() <= limit.chunk_tokens
    if limit.prefill == "whole":
        assert not np.any((steps["prefill_tokens"] > 0) & (steps["requests"] > 0))
    # Each request's context grows from prompt + 1 by what it was delivered, and is gone when it leaves.
    expected = 0.0
    for account in executor.seen.values():
        assert len(account) == 1
    for request, (account,) in executor.seen.items():
        delivered = np.concatenate([[0], np.cumsum(account.committed[:-1])])
        expected += (workload.prompt_tokens[request] + 1 + delivered).sum()
    assert sum(executor.contexts) == expected


def assert_limits_are_kept(requests: pd.DataFrame, need: NDArray[np.int64], limit: EngineLimits) -> None:
    """At every admission, count and KV need of those admitted and not yet finished."""
    admitted, finished = requests["admitted_s"].to_numpy(), requests["finished_s"].to_numpy()
    inside = (admitted[None, :] <= admitted[:, None]) & (finished[None, :] > admitted[:, None])
    assert inside.sum(axis=1).max() <= limit.concurrency
    if limit.kv_tokens is not None:
        assert (inside @ need).max() <= limit.kv_tokens


# ---------------------------------------------------------------- the bound


@pytest.mark.parametrize("concurrency", [1, 12, 48])
def test_no_policy_passes_the_oracle(concurrency: int) -> None:
    """Throughput under common random numbers, at a light, a middle and a heavy load.

    The oracle maximises each step's realised throughput, which bounds every step; over a whole run
    the order of steps differs between policies, so 1% is allowed. Its own gain is far larger.
    """
    curve = ThroughputCurve([1, 32, 64, 128, 512], 1 / np.array([0.010, 0.011, 0.014, 0.022, 0.080]))
    workload = closed_loop(np.random.default_rng(3).geometric(0.005, 400) + 1)
    replays, engine = [random_replay(5, rows=16_384)], EngineLimits(concurrency)
    throughput = {
        policy: simulate(
            workload, replays, policy, curve, engine, seed=1, steps=1500
        ).metrics.throughput_tok_per_s
        for policy in (*LOSSLESS, DSparkAsync(0), Oracle())
    }
    bound = throughput.pop(Oracle())
    assert max(throughput.values()) < 1.01 * bound
    assert max(throughput.values()) > throughput[Fixed(0)]


def test_the_oracle_bounds_every_single_step() -> None:
    """Exactly: against every length vector, given the outcome it was shown."""
    curve = ThroughputCurve([1, 4, 8, 16], [100.0, 90.0, 50.0, 20.0])
    draw = np.random.default_rng(6)
    for _ in range(200):
        accepted = draw.integers(0, 4, 3)
        outcome = (np.arange(3) < accepted[:, None]).astype(np.float32)
        chosen = Oracle().schedule(outcome, Batch(curve))
        lengths = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)
        tokens = (np.minimum(lengths, accepted) + 1).sum(axis=1)
        rates = tokens / np.array([curve.step_time_s(3, int(3 + k)) for k in lengths.sum(axis=1)])
        best = (np.minimum(chosen, accepted) + 1).sum() / curve.step_time_s(3, int(3 + chosen.sum()))
        assert best == pytest.approx(rates.max(), rel=1e-12)
        assert np.all(chosen <= accepted)  # nothing is verified in vain


# ---------------------------------------------------------------- what is kept of a run


@pytest.mark.parametrize("packed_rows", [2, PACKED_ROWS])
def test_a_log_reads_the_same_however_it_is_packed(packed_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps are folded; of the other two nothing is packed, or both are."""
    log, packed = StepLog(), StepLog()
    monkeypatch.setattr("simulator.core.arrays.PACKED_ROWS", packed_rows)
    rows = np.arange(6 * len(Step._fields), dtype=np.float64).reshape(6, -1)
    for at, row in enumerate(rows):
        log.append(*row)
        packed.append(*row)
        if at == 3:
            packed.fold()
    assert len(log) == len(packed) == 6
    assert list(log) == list(packed)
    assert [packed[index] for index in (0, 4, -1)] == [log[index] for index in (0, 4, -1)]
    with pytest.raises(IndexError):
        log[6]
    packed.clear()
    assert len(packed) == 0


def test_a_run_is_written_and_a_broken_one_has_no_metrics(tmp_path: Path) -> None:
    load, limits = open_loop([0.0, 0.5], [200, 200]), EngineLimits(2)
    done = simulate(load, [constant_replay(2, 1)], Fixed(2), constant_cost(), limits)
    unknown = replace(done.metrics, ttft_p99_s=float("nan"))
    written = replace(done, metrics=unknown, early_stop_loss=0.01)
    write_run(written, tmp_path / "done", {"policy": "fixed:2"})
    said = json.loads((tmp_path / "done" / "run.json").read_text())
    assert (said["schema"], said["policy"], said["saturated"]) == (1, "fixed:2", False)
    assert said["early_stop_loss"] == 0.01
    assert said["metrics"]["throughput_tok_per_s"] == done.metrics.throughput_tok_per_s
    assert said["metrics"]["ttft_p99_s"] is None  # JSON has no NaN
    write_run(done, tmp_path / "unwatched", {})
    assert "early_stop_loss" not in json.loads((tmp_path / "unwatched" / "run.json").read_text())
    assert pd.read_parquet(tmp_path / "done" / "requests.parquet").equals(done.requests)
    assert pd.read_parquet(tmp_path / "done" / "steps.parquet").equals(done.steps)
    engine, _ = run(load, constant_replay(2, 1), Fixed(2), constant_cost(), limits)
    write_unfinished(engine, tmp_path / "broken", "the device was lost")
    assert json.loads((tmp_path / "broken" / "unfinished.json").read_text()) == {
        "schema": 1, "reason": "the device was lost", "steps": len(engine.steps),
    }  # fmt: skip
    assert not (tmp_path / "broken" / "run.json").exists()
    assert len(pd.read_parquet(tmp_path / "broken" / "steps.parquet")) == len(engine.steps)
    assert len(pd.read_parquet(tmp_path / "broken" / "requests.parquet")) == len(requests_frame(engine))


def test_files_of_a_run_say_their_units_and_take_more_tables(tmp_path: Path) -> None:
    """A step's ``queued_s`` adds up the waiting of all requests; a request's is when it came."""
    done = simulate(
        open_loop([0.0, 1.0], [99, 99]), [constant_replay(2, 1)], Fixed(2), constant_cost(), EngineLimits(2)
    )
    write_run(done, tmp_path, {}, classes=pd.DataFrame({"ttft_s": [1.0]}))
    units = {
        name: {field.name: (field.metadata or {}).get(b"unit") for field in pq.read_schema(tmp_path / name)}
        for name in ("steps.parquet", "requests.parquet", "classes.parquet")
    }
    assert units["steps.parquet"]["queued_s"] == b"requests*s"
    assert units["requests.parquet"]["queued_s"] == b"s"
    assert units["classes.parquet"] == {"ttft_s": b"s"}


def test_a_pod_hears_of_every_request_that_leaves() -> None:
    load, left = open_loop([0.0, 0.0, 1.0], [4, 4, 6]), []
    executor = SimulatedExecutor([constant_replay(2, 1)], load, constant_cost(), capacity=2, seed=0)
    engine = Engine(
        simpy.Environment(), load, executor, Fixed(1), constant_cost(), EngineLimits(2), on_leave=left.append
    )
    advance(engine, None)
    assert left == [2, 1]


def test_a_closed_loop_goes_on_until_its_quantiles_rest_on_enough() -> None:
    assert enough_requests(1) == FEWEST_FINISHED
    assert enough_requests(1000) == 1000 * TURNOVERS > FEWEST_FINISHED


@pytest.mark.parametrize(("steps", "said"), [(0, "at least 1"), (10**12, "at most")])
def test_a_number_of_steps_has_an_end(steps: int, said: str) -> None:
    with pytest.raises(BadInputError, match=rf"--steps: steps: must be {said}"):
        require_steps(steps, source="--steps")


@pytest.mark.parametrize(
    ("prefill", "expected"),
    [
        ("chunked", [[(0, 0, 4, False)], [(0, 4, 2, True), (1, 0, 2, False)], [(1, 2, 3, True)]]),
        ("whole", [[(0, 0, 6, True)], [(1, 0, 5, True)]]),
    ],
)
def test_an_executor_is_told_which_rows_of_whose_prompt_it_runs(
    prefill: Prefill, expected: list[list[tuple[int, int, int, bool]]]
) -> None:
    """Prompts of 6 and 5 tokens, four rows a step: request, first row, rows, and whether it is complete."""
    load = open_loop([0.0, 0.0], [3, 3], [6, 5])
    limits = EngineLimits(2, prefill=prefill, chunk_tokens=4)
    _, executor = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits)
    assert [[tuple(chunk) for chunk in step] for step in executor.prompts] == expected
    assert executor.held == {0: 7, 1: 6}  # the prompt and its first output token
