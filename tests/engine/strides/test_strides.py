"""The compiled loop against the Python loop, bit for bit, on random configurations."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import simpy
from numpy.testing import assert_array_equal

from simulator.acceptance.trace import Replay
from simulator.cost.believed import BelievedTable
from simulator.cost.draft import DraftCost
from simulator.cost.models import (
    AdditiveCost,
    CostModel,
    LengthByRequests,
    StepCost,
    StepTime,
    ThroughputCurve,
)
from simulator.cost.padded import PaddedCost
from simulator.cost.scaled import EnabledCost, RowCost, ScaledCost, SlowPath
from simulator.engine.batch import Prompt
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits
from simulator.engine.run import advance, arrivals
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides.engine import StridingEngine, _record, _waited, wait_until
from simulator.engine.strides.serving import ServingEngine, serving_engine
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.early_stop import WatchedDSpark, watched
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload
from tests.support.engines import (
    TICK,
    closed_loop,
    constant_cost,
    constant_replay,
    random_replay,
    rising_cost,
)

POLICIES = ("fixed", "dspark", "dspark-async", "threshold", "tiered", "batch-table", "oracle")
MODES = ("elsewhere", "pool", "chunked", "whole")
CELLS = [(policy, mode, loop) for policy in POLICIES for mode in MODES for loop in ("open", "closed")]
JITTER = (0.9, 0.95, 1.0, 1.02, 1.13)


def random_policy(draw: np.random.Generator, name: str, gamma: int) -> Scheduler:
    if name == "fixed":
        return Fixed(int(draw.integers(0, gamma + 1)))
    if name == "dspark-async":
        return DSparkAsync(int(draw.integers(0, 4)))
    if name == "threshold":
        return Threshold(float(draw.uniform(0.3, 1.0)))
    if name == "tiered":
        tiers = tuple(np.flatnonzero(draw.random(gamma + 3) < 0.6).tolist())
        return Tiered(tiers if tiers and tiers[0] <= gamma else (0, gamma), int(draw.integers(1, 4)))
    if name == "batch-table":
        lengths = draw.integers(0, gamma + 1, 3).tolist()
        return BatchTable(LengthByRequests((1, 4, 20), tuple(lengths)))
    if name == "dspark":
        return DSpark() if draw.random() < 0.3 else watched(DSpark())
    return Oracle()


def random_cost(draw: np.random.Generator) -> CostModel:
    """A chain of cost models, in the orders in which a deployment builds them and in others."""
    knots = np.concatenate([[1.0], np.cumsum(draw.integers(1, 90, 7)) + 1.0])
    seconds = 0.002 + np.cumsum(draw.choice([0.0, 0.001, 0.004], knots.size))
    kind = draw.integers(4)
    cost: CostModel = ThroughputCurve(
        knots, 1 / seconds, lookup=["linear", "floor", "ceil"][draw.integers(3)]
    )
    if kind == 1:
        cost = BelievedTable(0.004, [1, 9], [0.0, -0.001], knots, draw.uniform(0, 0.004, knots.size))
    elif kind > 1:
        cost = AdditiveCost(
            0.002, [0, 4, 16], np.cumsum(draw.uniform(0, 0.002, 3)), knots, seconds,
            context_s_per_token=1e-7, row_context_s_per_token=draw.choice([0.0, 1e-9]),
            prefill_s_per_token=2e-6, beyond=["clamp", "last-slope"][draw.integers(2)],
        )  # fmt: skip
    changes = draw.permutation(4)[: draw.integers(0, 4)]
    for change in changes:
        cost = _changed(cost, int(change), draw)
    if draw.random() < 0.7:
        cost = StepCost(cost, _draft(draw), _asked(draw), draw.choice([0.0, 1e-4]), ())
    return ScaledCost(cost, 1.1) if draw.random() < 0.3 else cost


def _changed(cost: CostModel, change: int, draw: np.random.Generator) -> CostModel:
    if change == 0:
        return ScaledCost(cost, float(draw.uniform(0.5, 2)))
    if change == 1:
        return EnabledCost(cost, SlowPath((2, 30), (0.05, 0.2)))
    return RowCost(cost, 3e-6) if change == 2 else PaddedCost(cost, (1, 8, 16, 64, 256))


def _draft(draw: np.random.Generator) -> DraftCost | None:
    structure = [None, "autoregressive", "parallel", "semi-autoregressive"][draw.integers(4)]
    if structure is None:
        return None
    turns = [1e-5, 2e-5] if structure == "semi-autoregressive" else None
    return DraftCost(structure, 5, [1, 40], [1e-3, 2e-3], turns, 1e-8)  # type: ignore[arg-type]


def _asked(draw: np.random.Generator) -> int | LengthByRequests | None:
    return [None, 0, 2, LengthByRequests((1, 3, 9), (3, 1, 0))][draw.integers(4)]  # type: ignore[return-value]


def random_load(draw: np.random.Generator, loop: str, gamma: int) -> tuple[Workload, list[Replay]]:
    count, classes = int(draw.integers(30, 220)), int(draw.integers(1, 4))
    prompts, outputs = draw.integers(1, 100, count), draw.integers(1, 60, count)
    outputs[draw.random(count) < draw.choice([0.0, 0.5])] = 1
    outputs[0] = 2  # a closed loop needs something to decode
    arrival_s = None
    if loop == "open":
        arrival_s = np.cumsum(draw.exponential(draw.choice([1e-4, 1e-3, 0.05]), count))
        if draw.random() < 0.3:
            arrival_s[1::2] = arrival_s[: count - count % 2 : 2]  # they come in pairs
    replays = []
    alike = draw.random() < 0.3  # survivals in powers of two: many of them tie, exactly
    for _ in range(classes):
        rows = int(draw.integers(20, 200))
        confidence = (
            draw.choice([0.5, 1.0], (rows, gamma)) if alike else draw.uniform(0.3, 1.0, (rows, gamma))
        )
        survival = np.cumprod(confidence, axis=1).astype(np.float32)
        good = draw.integers(0, gamma + 1, rows).astype(np.uint8)
        replays.append(Replay(survival, good, np.array([0, rows // 2, rows])))
    names = tuple(f"class {index}" for index in range(classes))
    return Workload(arrival_s, prompts, outputs, draw.integers(0, classes, count), names), replays


def random_limits(draw: np.random.Generator, mode: str) -> EngineLimits:
    speed = float(draw.uniform(1e3, 1e5)) if mode == "pool" else None
    return EngineLimits(
        int(draw.choice([1, 2, 5, 17, 60])),
        kv_tokens=int(draw.integers(180, 4000)) if draw.random() < 0.5 else None,
        prefill="elsewhere" if mode in ("elsewhere", "pool") else mode,  # type: ignore[arg-type]
        chunk_tokens=int(draw.integers(8, 200)), prefill_tokens_per_s=speed,
        prefill_workers=[1, 2, 3, None][draw.integers(4)],
    )  # fmt: skip


def both(seed: int, policy: str, mode: str, loop: str) -> tuple[ServingEngine, ServingEngine]:
    """Run the same on both loops: the one in Python, and the compiled one."""
    engines: list[ServingEngine] = []
    for compiled in (False, True):
        draw = np.random.default_rng(seed)
        gamma = int(draw.integers(1, 8))
        scheduler, limits, cost = (
            random_policy(draw, policy, gamma),
            random_limits(draw, mode),
            random_cost(draw),
        )
        believed = cost if draw.random() < 0.6 else random_cost(draw)
        if draw.random() < 0.3:
            cost = StepCost(cost, jitter=JITTER)
        load, replays = random_load(draw, loop, gamma)
        executor = SimulatedExecutor(replays, load, cost, capacity=limits.concurrency, seed=seed)
        engine = serving_engine(
            simpy.Environment(), load, executor, scheduler, believed, limits, seed=seed, compiled=compiled
        )
        steps = None if loop == "open" and draw.random() < 0.7 else int(draw.integers(1, 150))
        advance(engine, steps, finish=int(draw.choice([0, 40])))
        engines.append(engine)
    assert type(engines[0]) is Engine
    return engines[0], engines[1]


def assert_same(expected: ServingEngine, actual: ServingEngine) -> None:
    assert type(actual) is StridingEngine
    assert_array_equal(actual.steps.table(), expected.steps.table())
    for name in ("finished", "decoding"):
        one, other = getattr(expected, name)(), getattr(actual, name)()
        assert list(one) == list(other)
        for column in one:
            assert_array_equal(other[column], one[column], err_msg=f"{name} {column}")
    for one, other in zip(expected.served_s(), actual.served_s(), strict=True):
        assert_array_equal(other, one)
    for name in ("completed", "load", "kv_reserved", "now_s"):
        assert getattr(actual, name) == getattr(expected, name), name
    assert actual.executor.steps_outside == expected.executor.steps_outside  # type: ignore[attr-defined]
    if isinstance(expected.scheduler, WatchedDSpark):
        assert isinstance(actual.scheduler, WatchedDSpark)
        assert (actual.scheduler.lost, actual.scheduler.steps) == (
            expected.scheduler.lost,
            expected.scheduler.steps,
        )


@pytest.mark.parametrize(("policy", "mode", "loop"), CELLS)
def test_the_compiled_loop_takes_the_same_steps(policy: str, mode: str, loop: str) -> None:
    for seed in range(3):
        assert_same(*both(seed, policy, mode, loop))


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "mode", "loop"), CELLS)
def test_the_compiled_loop_takes_the_same_steps_at_length(policy: str, mode: str, loop: str) -> None:
    for seed in range(1000, 1100):
        assert_same(*both(seed, policy, mode, loop))


@pytest.mark.parametrize(("concurrency", "gamma"), [(400, 5), (1500, 7)])
@pytest.mark.parametrize("policy", [DSparkAsync(), WatchedDSpark(), Tiered((1, 3, 5))])
def test_large_batches_take_the_same_steps(policy: Scheduler, concurrency: int, gamma: int) -> None:
    """Thousands of candidates: buckets hold many, and the Python loop does not sort them all, either."""
    load = closed_loop(np.random.default_rng(0).geometric(1 / 40, 4096) + 1)
    tokens = np.array([1, 256, 1024, 4096, 16384])
    cost = ThroughputCurve(tokens, 1 / (0.0075 + 8e-6 * tokens + 3e-9 * tokens**2))
    engines: list[ServingEngine] = []
    for compiled in (False, True):
        replay = random_replay(gamma, rows=9000)  # long: NumPy wraps the cursors of the Python loop
        executor = SimulatedExecutor([replay], load, cost, capacity=concurrency, seed=0)
        scheduler = WatchedDSpark() if isinstance(policy, WatchedDSpark) else policy
        engine = serving_engine(
            simpy.Environment(), load, executor, scheduler, cost, EngineLimits(concurrency), compiled=compiled
        )
        advance(engine, 25)
        engines.append(engine)
    assert_same(engines[0], engines[1])


def in_both_loops(cost: CostModel, limits: EngineLimits, cached: dict[int, int] | None = None) -> None:
    """Some twenty requests, one to twelve at a time, of which tokens of prompts may be cached."""
    arrival_s = np.arange(24) ** 1.5 * 4e-3
    load = Workload.single_class(arrival_s, np.full(24, 40), np.full(24, 30))
    engines: list[ServingEngine] = []
    for compiled in (False, True):
        environment = simpy.Environment()
        executor = SimulatedExecutor([random_replay(5, rows=64)], load, cost, capacity=12, seed=0)
        engine = serving_engine(environment, load, executor, Fixed(2), cost, limits, compiled=compiled)
        for request, at_s in enumerate(arrival_s.tolist()):
            if at_s:
                environment.run(until=at_s)
            engine.submit(request, cached_tokens=(cached or {}).get(request, 0))
        while engine.completed < len(load):
            environment.step()
        engines.append(engine)
    assert_same(engines[0], engines[1])


@pytest.mark.parametrize("structure", ["autoregressive", "parallel", "semi-autoregressive"])
@pytest.mark.parametrize("asked", [None, 0, 2, LengthByRequests((1, 3, 9), (3, 1, 0))])
def test_drafts_and_padded_rows_cost_the_same(structure: str, asked: int | LengthByRequests | None) -> None:
    """With few requests drafts are asked for, with nine and more none; batches outgrow what was captured."""
    turns = [1e-5, 2e-5] if structure == "semi-autoregressive" else None
    draft = DraftCost(structure, 5, [1, 40], [1e-3, 2e-3], turns, 1e-8)  # type: ignore[arg-type]
    in_both_loops(StepCost(PaddedCost(rising_cost(), (1, 4, 8)), draft, asked, 1e-4, ()), EngineLimits(12))


@pytest.mark.parametrize("mode", MODES)
def test_cached_tokens_of_prompts_are_not_prefilled(mode: str) -> None:
    speed, prefill = (2e4, "elsewhere") if mode == "pool" else (None, mode)
    limits = EngineLimits(12, prefill=prefill, chunk_tokens=16, prefill_tokens_per_s=speed)  # type: ignore[arg-type]
    in_both_loops(rising_cost(), limits, {1: 8, 2: 39, 7: 30})


def test_what_prompts_waited_for_is_summed_as_python_sums_it() -> None:
    draw = np.random.default_rng(4)
    prompts = []
    for number in range(50):
        prompt = Prompt(number, float(draw.random()), 3)
        prompt.waited_pool_s, prompt.waited_prefill_s = draw.random(2).tolist()
        prompt.kept_out_s = tuple(draw.random(3).tolist())
        prompts.append(prompt)
    records = np.array([_record(prompt) for prompt in prompts])
    assert _waited(records).tolist() == [prompt.waited_s for prompt in prompts]


def test_a_confidence_at_the_threshold_itself_is_enough() -> None:
    """Every draft is believed in by one half: at a threshold of one half all five are verified."""
    load, drafts = closed_loop(np.full(8, 40)), []
    for compiled in (False, True):
        executor = SimulatedExecutor([constant_replay(5, 2)], load, constant_cost(), capacity=2, seed=0)
        engine = serving_engine(
            simpy.Environment(), load, executor, Threshold(0.5), constant_cost(), EngineLimits(2),
            compiled=compiled,
        )  # fmt: skip
        advance(engine, 30)
        drafts.append(engine.steps.column("draft_tokens").tolist())
    assert drafts[0] == drafts[1] == [10.0] * len(drafts[0])


class Cautious(DSparkAsync):
    """A policy of one's own that happens to derive from one that the compiled loop knows."""


class OfOnesOwn(StepTime):
    """A cost model that only Python can ask."""

    def _time_s(self, requests, batch_tokens, context_tokens, prefill_tokens):  # type: ignore[no-untyped-def]
        return 1e-3 if isinstance(batch_tokens, int) else np.full(len(batch_tokens), 1e-3)

    def outside(self, requests: int, batch_tokens: int) -> bool:
        return False


@pytest.mark.parametrize(
    ("policy", "cost", "believed"),
    [
        (Cautious(), constant_cost(), None),
        (Fixed(9), constant_cost(), None),
        (Fixed(1), OfOnesOwn(), None),
        (Fixed(1), StepCost(OfOnesOwn()), None),
        (Fixed(1), ScaledCost(OfOnesOwn(), 2.0), None),
        (Fixed(1), PaddedCost(RowCost(PaddedCost(constant_cost(), (1, 4)), 1e-6), (1, 8)), None),
        (Fixed(1), constant_cost(), OfOnesOwn()),
    ],
)
def test_what_only_python_can_run_stays_with_it(
    policy: Scheduler, cost: CostModel, believed: CostModel | None
) -> None:
    load = closed_loop(np.full(8, 20))
    executor = SimulatedExecutor([random_replay(5, rows=64)], load, cost, capacity=2, seed=0)
    engine = serving_engine(simpy.Environment(), load, executor, policy, believed or cost, EngineLimits(2))
    assert type(engine) is Engine


@pytest.mark.parametrize("mode", ["elsewhere", "chunked", "whole"])
@pytest.mark.parametrize("seed", range(6))
def test_arrivals_at_the_very_end_of_a_step_come_in_the_same_order(seed: int, mode: str) -> None:
    """Steps last a tick, arrivals stand on half ticks: alone, in pairs, many at once into a short line."""
    draw = np.random.default_rng(seed)
    half_ticks = np.cumsum(draw.choice([0, 1, 2, 3, 40], 150, p=[0.3, 0.2, 0.3, 0.15, 0.05]))
    half_ticks[100:140] = half_ticks[100]  # more than the line has room for
    outputs = draw.integers(1, 9, 150)
    load = Workload.single_class(half_ticks * TICK / 2, draw.integers(1, 30, 150), outputs)
    limits = EngineLimits(int(draw.integers(1, 40)), prefill=mode, chunk_tokens=20)  # type: ignore[arg-type]
    engines = []
    for compiled in (False, True):
        executor = SimulatedExecutor(
            [random_replay(3)], load, constant_cost(), capacity=limits.concurrency, seed=seed
        )
        engine = serving_engine(
            simpy.Environment(), load, executor, DSparkAsync(), constant_cost(), limits, compiled=compiled
        )
        advance(engine, None if seed % 2 else 60)
        engines.append(engine)
    assert_same(*engines)


def test_requests_that_are_told_one_by_one_give_the_same_steps() -> None:
    """The engine takes arrivals by itself where nobody else has a say in them: the steps are the same."""
    told, alone = (engine_over(poisson_load()) for _ in range(2))
    told.environment.process(arrivals(told.environment, told.workload, told))
    told.expect(None, 0, 100_000)
    while told.completed < len(told.workload):
        told.environment.step()
    advance(alone, None)
    assert_same(told, alone)


@pytest.mark.parametrize("gap", [3 * TICK, 300 * TICK])
def test_events_of_others_cut_strides_and_change_nothing(gap: float) -> None:
    """Also where nothing runs and the next request comes long after the event."""

    def ticking(environment: simpy.Environment) -> Generator[simpy.Event, Any, None]:
        while True:
            yield environment.timeout(7.5 * TICK)

    whole, cut = (engine_over(poisson_load(gap)) for _ in range(2))
    cut.environment.process(ticking(cut.environment))
    advance(whole, None)
    advance(cut, None)
    assert_same(whole, cut)


def poisson_load(gap: float = 3 * TICK) -> Workload:
    draw = np.random.default_rng(0)
    outputs = draw.integers(1, 30, 300)
    return Workload.single_class(np.cumsum(draw.exponential(gap, 300)), outputs, outputs)


def engine_over(load: Workload) -> ServingEngine:
    executor = SimulatedExecutor([random_replay(3)], load, rising_cost(), capacity=8, seed=0)
    return serving_engine(simpy.Environment(), load, executor, DSparkAsync(), rising_cost(), EngineLimits(8))


def test_many_outputs_of_one_token_do_not_overrun_the_records() -> None:
    """They join and leave at one instant, however many they are."""
    outputs: Any = np.ones(9000, dtype=np.int64)
    outputs[-1] = 5
    load = Workload.single_class(np.zeros(9000), outputs, outputs)
    engines = []
    for compiled in (False, True):
        executor = SimulatedExecutor([random_replay(2, rows=64)], load, constant_cost(), capacity=3, seed=0)
        engine = serving_engine(
            simpy.Environment(), load, executor, Fixed(1), constant_cost(), EngineLimits(3), compiled=compiled
        )
        advance(engine, None)
        engines.append(engine)
    assert_same(engines[0], engines[1])


@pytest.mark.parametrize(
    ("now_s", "end_s"),
    [(0.0, 0.1), (0.1, 0.3), (3.7, 3.8), (0.5 + 2**-53, 1.75 + 2**-52)],
)
def test_the_clock_reaches_an_instant_exactly(now_s: float, end_s: float) -> None:
    """The last one has no delay that leads there: both sums beside it are ties, rounded away from it."""
    environment = simpy.Environment(now_s)
    environment.run(environment.process(wait_until(environment, end_s)))
    assert environment.now == end_s


def test_some_instants_need_two_delays() -> None:
    now_s, end_s = 0.5 + 2**-53, 1.75 + 2**-52
    delay_s = end_s - now_s
    for each in (np.nextafter(delay_s, 0), delay_s, np.nextafter(delay_s, 9)):
        assert now_s + each != end_s
