"""Metrics against their definitions, on frames made by hand, and intervals against their coverage."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from simulator.acceptance.rates import mean_length
from simulator.acceptance.trace import Replay
from simulator.core.errors import BadInputError
from simulator.core.statistics import BATCHES, mean_interval, weighted_quantile
from simulator.engine.batch import Step, StepLog
from simulator.engine.cursors import count_visits
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import Metrics, Walks, measure
from simulator.engine.measures.recorded import requests_frame, steps_frame
from simulator.engine.run import simulate
from simulator.schedulers.policies import DSpark, Fixed
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from tests.support.engines import (
    closed_loop,
    constant_cost,
    constant_replay,
    open_loop,
    random_replay,
    rising_cost,
    run,
)

ENDLESS = 10**9


def steps_of(repeats: int = 10, **changes: Any) -> pd.DataFrame:
    """Cycles of four steps: one request, three, nothing but prefill, three with the stall in their gap.

    Durations 1, 2, 3 and 2 s; the third step of decoding follows a stall of 3 s.
    """
    cycle = {
        "duration_s": [1.0, 2.0, 3.0, 2.0],
        "gap_s": [1.0, 2.0, 3.0, 5.0],
        "requests": [1, 3, 0, 3],
        "draft_tokens": [5, 6, 0, 3],
        "accepted_tokens": [4, 3, 0, 0],
        "committed_tokens": [5, 6, 0, 2],
        "prefill_tokens": [0, 10, 40, 0],
        "waiting": [0, 2, 4, 1],
        "decoding_s": [1.0, 6.0, 0.0, 12.0],
        "queued_s": [0.0, 2.0, 9.0, 5.0],
        "handover_s": [0.0, 0.0, 0.0, 0.0],
    }
    frame = pd.DataFrame({name: np.tile(column, repeats) for name, column in cycle.items()}).assign(**changes)
    frame.insert(0, "end_s", frame["duration_s"].cumsum())
    return frame


def requests_of(**columns: list[float]) -> pd.DataFrame:
    """Finished requests; what is not given is 1."""
    given_columns = {"finished_s": [], "decode_tokens": [], "tps": [], "tpot_s": [], "ttft_s": []} | columns
    rows = max(len(column) for column in given_columns.values())
    return pd.DataFrame({name: column or [1.0] * rows for name, column in given_columns.items()})


def test_every_definition_by_hand() -> None:
    """Twenty cycles of 8 s: 13 tokens, 7 request-steps, 14 drafts of which 7 are accepted."""
    finished = requests_of(
        finished_s=[10, 20, 30, 40], ttft_s=[1, 2, 3, 6], decode_tokens=[1, 1, 1, 0],
        tps=[10, 20, 30, np.nan], tpot_s=[0.1, 0.05, 0.03, np.nan],
    )  # fmt: skip
    metrics = measure(steps_of(BATCHES), finished, warmup=0)
    expected = {
        "throughput_tok_per_s": 13 / 8,
        "tps_mean": 13 / 19,  # tokens over request-seconds of decoding
        "tps_p10": 12,  # between 10 and 20, linear
        "tps_p50": 20,
        "verification_budget_mean": 1 + 14 / 7,
        "accepted_length_mean": 1 + 7 / 7,
        "acceptance_rate": 14 / 21,
        "batch_tokens_mean": (6 + 19 + 6) / 3,  # requests + drafts + prefill, over decode steps
        "step_time_mean_s": 5 / 3,
        "wasted_fraction": 7 / 14,
        "itl_p50_s": 2,  # gaps 1, 2, 2, 2, 5, 5, 5
        "itl_p99_s": 5,
        "ttft_mean_s": 3,
        "ttft_p50_s": 2.5,
        "ttft_p99_s": 5.91,
        "tpot_p50_s": 0.05,
        "tpot_p99_s": 0.099,
        "concurrency_mean": 19 / 8,
        "queue_mean": 16 / 8,
        "requests_finished": 4,
        "steps": 80,
        "steps_outside_fraction": 0,
        "window_s": 160,
    }
    measured = metrics.as_row()
    interval = measured.pop("throughput_ci95")
    assert measured == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}
    assert interval == pytest.approx(0, abs=1e-12)  # every batch is one cycle: they are all alike


def test_one_long_stall_is_felt_by_every_request_in_the_batch() -> None:
    """Inter-token latency weighs deliveries, not steps: one stalled step of many requests is a percentile."""
    steps = steps_of(25, gap_s=1.0, requests=1)
    steps.loc[7, ["gap_s", "requests"]] = [9.0, 30]
    metrics = measure(steps, requests_of(), warmup=0)
    assert metrics.itl_p50_s == 1.0
    assert metrics.itl_p99_s == 9.0  # 30 of 129 deliveries, though 1 of 100 steps


def test_the_way_from_a_prefill_pool_counts_as_decoding() -> None:
    """Of each cycle 1 and 2 request-seconds more, in which requests wait to be handed over."""
    steps = steps_of(handover_s=np.tile([0.0, 1.0, 0.0, 2.0], 10))
    assert measure(steps, requests_of(), warmup=0).tps_mean == pytest.approx(13 / (19 + 3))


@pytest.mark.parametrize(("outside", "share"), [(20, 0.5), (41, 1.0)])
def test_steps_beyond_the_table_are_a_share_of_all(outside: int, share: float) -> None:
    """A run of 40 steps may have looked up one more, in flight at its end."""
    assert measure(steps_of(), requests_of(), warmup=0, steps_outside=outside).steps_outside_fraction == share


def test_first_deliveries_have_gaps_of_their_own() -> None:
    """Thirty decode steps before the window and thirty in it; newcomers at its first and at its last one.

    One that came before does not count. Steps take 1, 2 and 5 in turn.
    """
    first = [(np.array([5, 30]), np.array([99.0, 0.25]), np.array([5.0, 1.0]))]
    first += [(np.array([59]), np.array([0.75]), np.array([5.0]))]
    metrics = measure(steps_of(20), requests_of(), first=first, warmup=0.5)
    gaps = [1.0] * (10 - 1) + [2.0] * 30 + [5.0] * (30 - 1) + [0.25, 0.75]
    assert metrics.itl_p50_s == np.quantile(gaps, 0.5)
    assert metrics.itl_p99_s == np.quantile(gaps, 0.99)
    early = [(np.arange(30, 60, 3), np.full(10, 7.0), np.ones(10))]
    metrics = measure(steps_of(20), requests_of(), first=early, warmup=0.5)
    assert metrics.itl_p99_s == 7.0


def test_nothing_drafted_wastes_nothing() -> None:
    metrics = measure(steps_of(draft_tokens=0, accepted_tokens=0), requests_of(), warmup=0)
    assert (metrics.wasted_fraction, metrics.verification_budget_mean) == (0.0, 1.0)


def test_what_was_not_there_to_measure_is_nan() -> None:
    empty = requests_of()
    metrics = measure(
        steps_of(requests=0, draft_tokens=0, committed_tokens=0, decoding_s=0.0), empty, warmup=0
    )
    for name in (
        "tps_mean",
        "tps_p50",
        "ttft_mean_s",
        "tpot_p99_s",
        "batch_tokens_mean",
        "itl_p50_s",
        "step_time_mean_s",
    ):
        assert np.isnan(getattr(metrics, name)), name
    assert metrics.throughput_tok_per_s == 0


def test_warm_up_is_a_share_of_steps_and_of_nothing_else() -> None:
    """The first half is as slow as can be and entirely gone, with the requests that finished in it."""
    steps = steps_of(20)
    slow = steps.index < 40
    steps.loc[slow, ["committed_tokens", "draft_tokens", "accepted_tokens", "queued_s"]] = 0
    middle_s = float(steps["end_s"][39])
    finished = requests_of(finished_s=[middle_s - 1, middle_s, middle_s + 1], ttft_s=[99.0, 99.0, 2.0])
    warm = measure(steps, finished, warmup=0.5)
    assert warm == measure(steps_of(10), requests_of(finished_s=[1.0], ttft_s=[2.0]), warmup=0)
    assert measure(steps, finished, warmup=0).throughput_tok_per_s == pytest.approx(13 / 16)


@pytest.mark.parametrize(
    ("steps", "warmup", "message"),
    [
        (10, 1.0, "warmup: must be at least 0 and below 1 (got 1.0)"),
        (10, -0.1, "warmup: must be at least 0"),
        (10, float("nan"), "warmup: must be at least 0"),
        (9, 0.0, "leaves 36 steps to measure, 40 are needed (got 36); run longer"),
        (12, 0.2, "steps: leaves 39 steps to measure"),
        (0, 0.2, "leaves 0 steps"),
    ],
)
def test_windows_too_short_to_measure_are_refused(steps: int, warmup: float, message: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(message)):
        measure(steps_of(steps), requests_of(), warmup=warmup)


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 9)), min_size=1, max_size=20),
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
)
def test_weighted_quantile_is_the_quantile_of_the_values_written_out(
    pairs: list[tuple[int, int]], percents: list[int]
) -> None:
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    written_out = np.sort(np.repeat(values, weights))
    expected = [written_out[-(-percent * len(written_out) // 100) - 1] for percent in percents]
    found = weighted_quantile(values.astype(float), weights, [percent / 100 for percent in percents])
    assert_array_equal(found, expected)


def test_weighted_quantile_of_nothing_is_nan() -> None:
    assert np.isnan(weighted_quantile(np.empty(0), np.empty(0), [0.5, 0.9])).all()


# ---------------------------------------------------------------- intervals


def coverage(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([abs(mean - truth) <= half for mean, half in intervals]))


def test_mean_interval_covers_as_often_as_it_says() -> None:
    """2000 samples of five: 95% within three binomial standard errors, 1.5 points; 90% likewise."""
    samples = np.random.default_rng(1).normal(3, 2, (2000, 5))
    assert coverage([mean_interval(sample) for sample in samples], 3) == pytest.approx(0.95, abs=0.015)
    assert coverage([mean_interval(sample, 0.9) for sample in samples], 3) == pytest.approx(0.90, abs=0.021)


def test_mean_interval_of_one_sample_is_unknown() -> None:
    mean, half = mean_interval(np.array([2.5]))
    assert mean == 2.5
    assert np.isnan(half)


def test_throughput_interval_covers_as_often_as_it_says() -> None:
    """Independent steps of random tokens and times: true throughput is the ratio of the two means.

    400 runs of 400 steps; three binomial standard errors are 3.3 points.
    """
    draw = np.random.default_rng(2)
    intervals = []
    for _ in range(400):
        tokens, times = draw.poisson(6, 400), draw.gamma(4, 0.25, 400)
        steps = steps_of(100, duration_s=times, committed_tokens=tokens)
        metrics = measure(steps, requests_of(), warmup=0)
        intervals.append((metrics.throughput_tok_per_s, metrics.throughput_ci95))
    assert coverage(intervals, 6.0) == pytest.approx(0.95, abs=0.033)


def test_throughput_interval_does_not_shrink_by_cutting_a_correlated_run_finer() -> None:
    """Every step doubled is the same information: batch means give the same interval, a naive one 0.71."""
    draw = np.random.default_rng(3)
    tokens = draw.poisson(6, 40 * BATCHES)
    once = measure(steps_of(10 * BATCHES, duration_s=1.0, committed_tokens=tokens), requests_of(), warmup=0)
    doubled = steps_of(20 * BATCHES, duration_s=0.5, committed_tokens=np.repeat(tokens / 2, 2))
    assert measure(doubled, requests_of(), warmup=0).throughput_ci95 == pytest.approx(once.throughput_ci95)


def test_runs_agree_with_each_other_within_their_intervals() -> None:
    """Thirty seeds of one simulation, each with its own interval: at least 24 hold the mean of all.

    With true coverage 95% fewer than 24 has probability below 1 in 300; requests share a trace, so
    the runs are not quite independent, which only brings them closer.
    """
    workload = closed_loop(np.random.default_rng(4).geometric(0.02, 200) + 1)
    runs = [
        simulate(
            workload, [random_replay(5)], DSpark(), rising_cost(), EngineLimits(8), seed=seed, steps=600
        ).metrics
        for seed in range(30)
    ]
    mean = float(np.mean([run.throughput_tok_per_s for run in runs]))
    assert sum(abs(run.throughput_tok_per_s - mean) <= run.throughput_ci95 for run in runs) >= 24
    assert all(0 < run.throughput_ci95 < 0.1 * mean for run in runs)


# ---------------------------------------------------------------- frames


def test_frames_of_an_engine_that_has_done_nothing_are_empty_with_all_columns() -> None:
    workload = closed_loop([ENDLESS])
    engine, _ = run(workload, constant_replay(2, 1), Fixed(1), constant_cost(), EngineLimits(1), steps=0)
    steps, requests = steps_frame(engine), requests_frame(engine)
    assert len(steps) == len(requests) == 0
    assert {"end_s", "gap_s", "requests", "queued_s"} <= set(steps)
    assert {"request", "ttft_s", "tpot_s", "tps", "accepted_length"} <= set(requests)


def test_speeds_of_a_request_come_from_its_own_times() -> None:
    workload = open_loop([0.0, 0.001, 0.002], [5, 9, 1], [3, 2, 8])
    engine, _ = run(
        workload, constant_replay(3, 2), Fixed(3), constant_cost(), EngineLimits(2, prefill="whole")
    )
    frame = requests_frame(engine)
    assert_array_equal(frame["decode_tokens"], frame["output_tokens"] - 1)
    decoding = frame[frame["decode_tokens"] > 0]
    decode_s = decoding["finished_s"] - decoding["first_token_s"]
    assert_array_equal(decoding["tps"], decoding["decode_tokens"] / decode_s)
    assert_array_equal(decoding["tpot_s"], decode_s / decoding["decode_tokens"])
    assert_array_equal(frame["ttft_s"], frame["first_token_s"] - frame["queued_s"])
    assert frame["traffic_class"].unique().tolist() == ["default"]


def test_a_row_has_a_column_for_every_metric() -> None:
    metrics = measure(steps_of(), requests_of(finished_s=[1.0]), warmup=0)
    assert Metrics(**metrics.as_row()) == metrics


def test_two_classes_in_few_slots_cover_the_mean_of_all_seeds() -> None:
    """Slow short requests and fast long ones: which of them the 8 slots hold outlasts a twentieth of the run.

    With true coverage 95% fewer than 24 of 30 has probability below 1 in 300; batches of a twentieth of the
    run, shorter than a request's life, covered 21.
    """
    classes = (
        TrafficClass("slow", parse_lengths("fixed:100/lognormal:300,cv=1"), 0.5),
        TrafficClass("fast", parse_lengths("fixed:100/lognormal:600,cv=1"), 0.5),
    )
    models = [mean_length(2.0, 5), mean_length(4.5, 5)]
    intervals = []
    for seed in range(30):
        workload = SyntheticTraffic(ClosedLoop(), classes).workload(seed, requests=2048)
        run = simulate(
            workload, [model.replay(seed) for model in models], Fixed(5), rising_cost(), EngineLimits(8),
            seed=seed, steps=1500,
        )  # fmt: skip
        intervals.append((run.metrics.throughput_tok_per_s, run.metrics.throughput_ci95))
    assert coverage(intervals, float(np.mean([mean for mean, _ in intervals]))) >= 0.8


def test_rereading_a_small_pool_widens_the_interval_as_the_pool_scatters() -> None:
    """A pool of 500 drawn rows read 23 times over scatters as 500 rows do, not as 11,500.

    By hand: steps advance by 1 or 2 rows alike, so a lap takes 500 / 1.5 of them, whose number has relative
    standard deviation 0.5 / 1.5 / sqrt(500 / 1.5) = 1.8%, and with it the rate. 11,500 rows would have 0.4%.
    """
    intervals = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        pool = Replay(
            np.full((500, 1), 0.5, np.float32), draw.integers(0, 2, 500).astype(np.uint8), np.arange(501)
        )
        run = simulate(
            closed_loop([200] * 400),
            [pool],
            Fixed(1),
            constant_cost(),
            EngineLimits(5),
            seed=seed,
            steps=2000,
        )
        intervals.append((run.metrics.throughput_tok_per_s, run.metrics.throughput_ci95))
    means, halves = np.array(intervals).T
    assert coverage(intervals, float(means.mean())) >= 0.85
    assert means.std() / means.mean() == pytest.approx(0.5 / 1.5 / np.sqrt(500 / 1.5), rel=0.35)
    assert 1.5 < halves.mean() / means.std() < 4


def test_residuals_of_requests_by_hand() -> None:
    """Three steps of 1, 1 and 2 s; request 7 in all, 8 in the last two and again, as a new cycle of 7.

    From step 1 on at 3 tokens/s: request 7 has 2/3 of its 6 tokens and shares of 1/2 and 1 s, so
    4 - 3 * 1.5 = -0.5; the second 7 has no step; 8 has 5 tokens, 5 - 4.5 = 0.5.
    """
    walked = Walks(
        np.array([7, 8, 7]), np.array([0, 1, 3]), np.array([3, 3, 3]), np.array([6, 5, 0])
    )  # fmt: skip
    found = walked.residuals(3.0, np.array([1.0, 1.0, 2.0]), np.array([1, 2, 2]), 1)
    np.testing.assert_allclose(found, [-0.5, 0.5])


def test_the_step_log_gives_back_what_was_recorded() -> None:
    steps = [
        Step(0.1 + index, 0.1, 1 / 3, index, 2**40 + index, 7, 2**53 - 1, 0, 3, 1e-300, 5.5, 0.0)
        for index in range(4)
    ]
    log = StepLog()
    for step in steps:
        log.append(*step)
    assert list(log) == steps
    assert [type(number) for number in log[-1]] == [type(number) for number in steps[-1]]
    assert log[-1] == steps[-1]
    assert_array_equal(log.table(), np.array(steps))
    with pytest.raises(IndexError):
        log[4]
    log.clear()
    assert (len(log), list(log), log.table().shape) == (0, [], (0, len(Step._fields)))


def test_visits_are_those_of_walking_row_by_row() -> None:
    draw = np.random.default_rng(0)
    for _ in range(100):
        rows, walks = int(draw.integers(1, 9)), int(draw.integers(0, 7))
        first, tokens = draw.integers(0, rows, walks), draw.integers(0, 25, walks)
        walked = np.zeros(rows, dtype=np.int64)
        for start, far in zip(first.tolist(), tokens.tolist(), strict=True):
            for step in range(far):
                walked[(start + step) % rows] += 1
        np.testing.assert_array_equal(count_visits(first, tokens, rows), walked)
