"""``simulate`` hands on what it is given, and says what it measured."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_equal

from simulator.core import arrays
from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.engine.batch import DESCRIBED, Step, StepLog
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import FirstGaps, Metrics, measure, walks
from simulator.engine.run import STEPS_LIMIT, Run, is_overloaded, require_steps, run_engine, simulate
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides.serving import serving_engine
from simulator.schedulers.policies import DSpark, Fixed
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload
from tests.support.engines import (
    TICK,
    closed_loop,
    constant_cost,
    constant_replay,
    open_loop,
    random_replay,
    rising_cost,
)

LOOP = closed_loop([30, 50, 40, 70] * 8)


def looped(scheduler: Scheduler | None = None, workload: Workload = LOOP, **options: Any) -> Run:
    wanted: dict[str, Any] = {"steps": 200, "limits": EngineLimits(4)} | options
    return simulate(workload, [random_replay(4)], scheduler or DSpark(), rising_cost(), **wanted)


def same(one: Run, other: Run) -> bool:
    return one.steps.equals(other.steps) and one.requests.equals(other.requests)


def test_a_seed_moves_the_phase_of_a_closed_loop_and_the_drafts() -> None:
    """Where each slot stands in its first request is drawn by the engine, the drafts by the executor."""
    assert same(looped(seed=0), looped())
    assert not same(looped(seed=0), looped(seed=1))
    alike = {"seed": 0}, {"seed": 1}
    one, other = (
        simulate(LOOP, [constant_replay(4, 2)], Fixed(2), constant_cost(), EngineLimits(4), steps=200, **seed)
        for seed in alike
    )
    assert not same(one, other), "constant drafts differ by nothing: the phase does"


def test_a_scheduler_believes_what_it_is_told() -> None:
    """One that thinks rows are free verifies every draft."""
    free = ThroughputCurve([1, 1000], [128.0, 128.0])
    assert looped(believed=free).metrics.verification_budget_mean == 5.0
    assert same(looped(believed=rising_cost()), looped())
    assert looped().metrics.verification_budget_mean < 5.0


def test_warm_up_is_left_out_by_the_share_that_is_asked_for() -> None:
    assert (looped(warmup=0.5).metrics.steps, looped().metrics.steps) == (100, 160)


def test_a_loop_goes_on_until_enough_are_complete() -> None:
    assert len(looped(finish=60).requests) >= 60 > len(looped().requests)


def test_what_an_early_stop_lost_is_told() -> None:
    assert looped().early_stop_loss is not None
    assert looped(Fixed(2)).early_stop_loss is None


def test_an_open_loop_is_measured_by_what_arrives() -> None:
    """A closed loop's interval comes from its requests; an open one's from batches of steps."""
    load = open_loop(np.arange(60) * 0.2, [40] * 60)
    run = looped(workload=load, steps=None, warmup=0.25)
    engine = run_engine(
        load, SimulatedExecutor([random_replay(4)], load, rising_cost(), capacity=4, seed=0), DSpark(),
        rising_cost(), EngineLimits(4),
    )  # fmt: skip
    assert len(engine.steps) == len(run.steps)
    assert run.metrics.requests_finished < len(run.requests) == 60
    assert run.metrics.queue_mean == 0.0


@pytest.mark.parametrize("steps", [None, 10_000])
def test_an_open_loop_ends_with_its_last_request_however_many_steps_it_may_take(steps: int | None) -> None:
    load = open_loop([0.0, 0.1], [4, 4])
    executor = SimulatedExecutor([constant_replay(2, 0)], load, constant_cost(), capacity=4, seed=0)
    engine = run_engine(load, executor, Fixed(0), constant_cost(), EngineLimits(4), steps=steps)
    assert engine.completed == 2
    assert len(engine.steps) < 10


def test_limits_that_make_no_sense_are_named_with_their_value() -> None:
    with pytest.raises(BadInputError, match=r"concurrency: must be a whole number \(got 2\.5\)"):
        EngineLimits(2.5)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match=r"prefill: is not known \(got 'magic'\); elsewhere, chunked or"):
        EngineLimits(2, prefill="magic")  # type: ignore[arg-type]


def test_overload_is_looked_for_after_the_warm_up_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def overloaded(engine: object, *, warmup: float = 0.2) -> bool:
        seen.append(warmup)
        return False

    monkeypatch.setattr("simulator.engine.run.is_overloaded", overloaded)
    load = open_loop(np.arange(60) * 0.2, [40] * 60)
    looped(workload=load, steps=None, warmup=0.5)
    assert seen == [0.5]


def test_overload_is_looked_for_after_a_share_of_the_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals from 3 to 11 s: a quarter of the 8 s is left out. A run cut at 7 s is judged up to there."""
    asked: list[tuple[float, float]] = []

    def saturated(arrived_s: object, served_s: object, from_s: float, to_s: float) -> bool:
        asked.append((from_s, to_s))
        return False

    monkeypatch.setattr("simulator.engine.run.is_saturated", saturated)
    load = open_loop([3.0, 5.0, 9.0, 11.0], [400] * 4)
    for steps in (None, 400):
        executor = SimulatedExecutor([constant_replay(2, 0)], load, constant_cost(), capacity=4, seed=0)
        engine = run_engine(load, executor, Fixed(0), constant_cost(), EngineLimits(4), steps=steps)
        is_overloaded(engine, warmup=0.25)
    (whole_from_s, whole_to_s), (from_s, to_s) = asked
    assert (whole_from_s, whole_to_s) == (5.0, 11.0)
    assert to_s == engine.now_s == pytest.approx(3.0 + 400 * TICK, abs=2 * TICK)
    assert from_s == pytest.approx(3.0 + 0.25 * (to_s - 3.0))


def test_a_saturated_run_keeps_its_throughput_alone() -> None:
    load = open_loop(np.arange(400) * 1e-3, [40] * 400)
    run = looped(workload=load, steps=None)
    assert run.saturated
    assert isinstance(run.metrics, Metrics)
    assert np.isnan(run.metrics.ttft_mean_s)
    assert run.metrics.throughput_tok_per_s > 0


def test_the_rows_of_a_run_are_of_its_decode_steps() -> None:
    run, log = looped(), StepLog()
    recorded = replace(run.recorded, log=log)
    assert Run(recorded, run.metrics).rows_mean == 0.0
    for requests, drafts in ((2, 6), (0, 0), (4, 0)):
        log.append(*Step(*[0.0] * 3, requests, drafts, *[0] * 7))
    assert Run(recorded, run.metrics).rows_mean == 6.0


ARRIVING = open_loop(np.arange(90) * 0.2, [40, 1, 60] * 30)

PREFILLS = {
    "none": EngineLimits(4),
    "chunked": EngineLimits(4, prefill="chunked", chunk_tokens=16),
    "whole": EngineLimits(4, prefill="whole", chunk_tokens=16),
    "pool": EngineLimits(4, prefill_tokens_per_s=200.0),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("limits", PREFILLS.values(), ids=PREFILLS)
@pytest.mark.parametrize("workload", [LOOP, ARRIVING, open_loop(np.arange(60) * 3.0, [40] * 60)])
def test_a_run_is_the_same_packed_and_its_metrics_are_those_of_its_frames(
    workload: Workload, limits: EngineLimits, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a closed loop, under load, and where the engine is idle between requests."""
    monkeypatch.setattr("simulator.engine.run.serving_engine", partial(serving_engine, compiled=compiled))
    options: dict[str, Any] = {
        "workload": workload,
        "steps": 400 if workload is LOOP else None,
        "limits": limits,
    }
    whole = looped(**options)
    monkeypatch.setattr("simulator.core.arrays.PACKED_ROWS", 16)
    monkeypatch.setattr("simulator.core.arrays.ROWS_PER_BREAK", 4)
    packed = looped(**options)
    assert_equal(packed.metrics.as_row(), whole.metrics.as_row())
    assert same(packed, whole)
    assert same(pickle.loads(pickle.dumps(packed)), whole)
    executor = SimulatedExecutor([random_replay(4)], workload, rising_cost(), capacity=4, seed=0)
    engine = run_engine(workload, executor, DSpark(), rising_cost(), limits, steps=options["steps"])
    walked = walks(engine) if workload is LOOP else None
    framed = measure(whole.steps, whole.requests, first=FirstGaps(engine), walked=walked)
    if whole.saturated:
        framed = framed.without_waiting(decoding_waits=limits.has_pool)
    assert_equal(framed.as_row(), whole.metrics.as_row())


def test_requests_are_read_beside_steps_that_were_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests refer to when steps ended, which folding keeps."""
    monkeypatch.setattr("simulator.core.arrays.PACKED_ROWS", 16)
    whole, run = looped(workload=ARRIVING, steps=None), looped(workload=ARRIVING, steps=None)
    steps = run.recorded.log
    steps.fold()
    assert run.requests.equals(whole.requests)
    ends = steps.delivery_s()
    number = np.array([-1, 0, 5, 5, 17, ends.size - 1])
    assert steps.of_decode_steps("end_s", number).tolist() == [0.0, *ends[number[1:]]]


def test_what_is_recorded_has_as_many_columns_as_its_frames() -> None:
    run = looped()
    recorded = run.recorded
    assert len(recorded.steps) == len(run.steps.columns) == len(Step._fields)
    assert len(recorded.requests) == len(run.requests.columns)
    assert len(recorded.finished) == len(list(recorded.finished)) == len(DESCRIBED)


def test_a_number_of_steps_has_two_ends() -> None:
    for steps in (None, 1, STEPS_LIMIT):
        require_steps(steps)
    with pytest.raises(BadInputError) as caught:
        looped(steps=0)
    assert str(caught.value) == "steps: must be at least 1 (got 0)"
    with pytest.raises(BadInputError) as caught:
        require_steps(STEPS_LIMIT + 1, source="--steps")
    assert str(caught.value) == (
        "--steps: steps: must be at most 10,000,000 (got 10000001); "
        "give fewer; some thousands are enough for most answers"
    )


EXPECTED = {
    "steps": ("end_s", "gap_s", "decoding_s"),
    "joined": ("request", "queued_s", "admitted_s", "first_token_s", "waited_step_s", "decode_tokens"),
    "finished": ("request", "finished_s"),
}
"""Columns that follow from others and from the workload, by log."""


def test_what_follows_from_the_rest_takes_no_room() -> None:
    """Where no request waits for a slot, and all are prefilled elsewhere, next to nothing is unexpected."""
    count = 3 * arrays.PACKED_ROWS
    load = Workload.single_class(np.arange(count) * 2e-3, np.full(count, 9), np.full(count, 8))
    cost = constant_cost(1e-3)
    executor = SimulatedExecutor([random_replay(5)], load, cost, capacity=64, seed=0)
    engine = run_engine(load, executor, Fixed(2), cost, EngineLimits(64))
    logs = {"steps": engine.steps, "joined": engine._joined, "finished": engine._finished}  # type: ignore[attr-defined]
    for name, columns in EXPECTED.items():
        packed = logs[name]._packed
        assert len(packed) >= 2
        for column in columns:
            taken = sum(chunk[column].nbytes for chunk in packed) / (len(packed) * arrays.PACKED_ROWS)
            assert taken < 0.5, (name, column)  # bytes a row
