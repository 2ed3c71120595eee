"""The engine against a second simulator, ``tests.support.reference_simulator``, on random configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import simpy
from numpy.testing import assert_allclose

from simulator.acceptance.trace import Replay
from simulator.core.random import random_stream
from simulator.cost.models import AdditiveCost, LengthByRequests, StepCost
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import FirstGaps
from simulator.engine.measures.recorded import requests_frame, steps_frame
from simulator.engine.run import advance
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload
from tests.support import reference_policies as reference
from tests.support.reference_simulator import ReferenceSimulator, Setting

MODES = ("none", "pool", "chunked", "whole")
POLICIES = (
    "mtp1", "fixed", "dspark", "dspark-async", "threshold", "tiered", "batch-table", "oracle",
)  # fmt: skip
CELLS = [(mode, policy, loop) for mode in MODES for policy in POLICIES for loop in ("open", "closed")]
CLOSED_STEPS = 80
JITTER = (0.9, 0.95, 1.0, 1.02, 1.13)


def random_policy(
    draw: np.random.Generator, name: str, gamma: int
) -> tuple[Scheduler, Callable[[reference.Seen], list[int]]]:
    """Draw a policy of that name: the product's, and the reference's of the same parameters."""
    if name in ("mtp1", "fixed"):
        length = 1 if name == "mtp1" else int(draw.integers(0, gamma + 1))
        return Fixed(length), reference.fixed(length)
    if name == "dspark-async":
        return DSparkAsync(int(draw.integers(0, 4))), reference.dspark_async
    if name == "threshold":
        least = float(draw.uniform(0.3, 1.0))
        return Threshold(least), reference.threshold(least)
    if name == "tiered":
        tiers = tuple(np.flatnonzero(draw.random(gamma + 1) < 0.6).tolist()) or (gamma,)
        return Tiered(tiers, int(draw.integers(1, 4))), reference.tiered(tiers)
    if name == "batch-table":
        first = (1, *(1 + np.flatnonzero(draw.random(5) < 0.5) + 1).tolist())
        lengths = draw.integers(0, gamma + 1, len(first)).tolist()
        table = LengthByRequests(first, tuple(lengths))
        return BatchTable(table), reference.batch_table(list(zip(first, lengths, strict=True)))
    return (DSpark(), reference.dspark) if name == "dspark" else (Oracle(), reference.oracle)


def random_setting(draw: np.random.Generator, mode: str, policy: str, loop: str) -> tuple[Scheduler, Setting]:
    gamma = int(draw.integers(1, 6))
    concurrency = int(draw.integers(1, 7))
    phase = random_stream(0, "closed-loop phase").random(concurrency).tolist() if loop == "closed" else ()
    scheduler, again = random_policy(draw, policy, gamma)
    scatter = ()
    if draw.random() < 0.3:  # as the executor draws it, from the seed alone
        stream = random_stream(0, "jitter")
        scatter = tuple(
            np.concatenate([stream.choice(np.array(JITTER), size=1024) for _ in range(4)]).tolist()
        )
    setting = Setting(
        concurrency, gamma, again, scheduler.lag, phase=tuple(phase), scatter=scatter,
        kv_tokens=int(draw.integers(160, 400)) if draw.random() < 0.5 else None,
        chunk_tokens=int(draw.integers(8, 90)),
    )  # fmt: skip
    if mode == "pool":
        workers = [1, 2, 3, None][draw.integers(4)]
        setting = replace(setting, tokens_per_s=float(draw.uniform(1e3, 2e4)), workers=workers)
    return scheduler, setting if mode in ("none", "pool") else replace(setting, prefill=mode)


class CachingEngine(Engine):
    """An engine that finds the first part of some prompts in a cache."""

    cached: Sequence[int] = ()

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        super().submit(request, cached_tokens=self.cached[request])


def compare(seed: int, mode: str, policy: str, loop: str) -> int:
    """Run both on one random load; returns how many requests were compared."""
    draw = np.random.default_rng(seed)
    scheduler, setting = random_setting(draw, mode, policy, loop)
    gamma, count = setting.gamma, int(draw.integers(8, 25))
    prompts, outputs = draw.integers(1, 100, count), draw.integers(1, 40, count)
    outputs[0] = 2  # a closed loop needs something to decode
    arrival_s = np.cumsum(draw.exponential(draw.uniform(0.001, 0.1), count)) if loop == "open" else None
    if arrival_s is not None and draw.random() < 0.3:
        arrival_s[1::2] = arrival_s[: count - count % 2 : 2]  # they come in pairs
    replays = []  # one class and one sequence each, so that the start of a request's rows is not drawn
    alike = draw.random() < 0.3  # survivals in powers of two: many of them tie, exactly
    for _ in range(count):
        confidence = draw.choice([0.5, 1.0], (50, gamma)) if alike else draw.uniform(0.3, 1.0, (50, gamma))
        survival = np.cumprod(confidence, axis=1).astype(np.float32)
        good = draw.integers(0, gamma + 1, 50).astype(np.uint8)
        replays.append(Replay(survival, good, np.array([0, 50])))
    workload = Workload(
        arrival_s, prompts, outputs, np.arange(count), tuple(f"class {each}" for each in range(count))
    )
    alpha, theta = np.cumsum(draw.uniform(0, 0.002, 3)), np.cumsum(draw.choice([0.0, 0.001, 0.004], 8))
    target = AdditiveCost(
        0.002, [0, 4, 16], alpha, [0, 2, 5, 9, 12, 16, 25, 90], theta,
        context_s_per_token=1e-6, row_context_s_per_token=0.0, prefill_s_per_token=2e-6, beyond="clamp",
    )  # fmt: skip
    limits = EngineLimits(
        setting.concurrency, kv_tokens=setting.kv_tokens, prefill=setting.prefill,  # type: ignore[arg-type]
        chunk_tokens=setting.chunk_tokens, prefill_tokens_per_s=setting.tokens_per_s,
        prefill_workers=setting.workers,
    )  # fmt: skip
    cost = StepCost(target, jitter=JITTER if setting.scatter else ())
    cached = (prompts * draw.choice([0.0, 0.0, 0.5, 0.9], count)).astype(int).tolist()
    executor = SimulatedExecutor(replays, workload, cost, capacity=setting.concurrency, seed=0)
    steps = CLOSED_STEPS if loop == "closed" else None
    engine = CachingEngine(simpy.Environment(), workload, executor, scheduler, cost, limits)
    engine.cached = cached
    advance(engine, steps)
    rows = [
        [
            (tuple(map(float, survival)), int(good))
            for survival, good in zip(r.survival, r.accepted, strict=True)
        ]
        for r in replays
    ]
    load = list(zip(prompts.tolist(), outputs.tolist(), rows, strict=True))
    arrivals = None if arrival_s is None else arrival_s.tolist()
    again = ReferenceSimulator(setting, target.step_time_s, load, arrivals, cached if arrivals else None)
    again.run(CLOSED_STEPS if loop == "closed" else 10**6)
    if loop == "open":
        assert len(again.finished) == count
    check(engine, again)
    return len(again.finished)


def check(engine: Any, reference: ReferenceSimulator) -> None:
    def close(actual: Any, expected: Any) -> None:
        assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)

    steps = steps_frame(engine)
    columns = {
        "end_s": "end_s", "duration_s": "duration_s", "requests": "requests", "draft_tokens": "drafts",
        "committed_tokens": "committed", "prefill_tokens": "prefill",
    }  # fmt: skip
    for column, name in columns.items():
        close(steps[column], [getattr(step, name) for step in reference.steps])
    frame = requests_frame(engine)  # requests that finish together come in either order
    frame = frame.iloc[np.lexsort((frame["request"], frame["finished_s"].round(9)))]
    done = sorted(reference.finished, key=lambda each: (round(each.finished_s, 9), each.index))
    assert frame["request"].tolist() == [each.index for each in done]
    close(frame["queued_s"], [each.arrived_s for each in done])
    for name in ("admitted_s", "first_token_s", "finished_s"):
        close(frame[name], [getattr(each, name) for each in done])
    first = [each.deliveries_s[0] - each.first_token_s if each.deliveries_s else np.nan for each in done]
    close(frame["first_gap_s"], first)
    # Every gap between deliveries, of requests under way too: a newcomer's own, the step's for all others.
    number, gap_s, of_step_s = (np.concatenate(column) for column in zip(*FirstGaps(engine), strict=True))
    newcomers = np.bincount(number, minlength=int((steps["requests"] > 0).sum()))
    decoding = steps[steps["requests"] > 0]
    assert np.array_equal(decoding["gap_s"].to_numpy()[number], of_step_s)
    others_s = np.repeat(decoding["gap_s"], decoding["requests"] - newcomers)
    expected_s = [
        after - before
        for each in [*reference.finished, *reference.decoding]
        for before, after in pairwise([each.first_token_s, *each.deliveries_s])
    ]
    close(np.sort(np.concatenate([gap_s, others_s])), np.sort(expected_s))
    for cause in ("pool", "slot", "kv", "step", "prefill"):
        assert_allclose(frame[f"waited_{cause}_s"], [each.waited[cause] for each in done], atol=1e-9)


@pytest.mark.parametrize(("mode", "policy", "loop"), CELLS)
@pytest.mark.parametrize("seeds", [3, pytest.param(42, marks=pytest.mark.slow)])
def test_both_simulators_tell_the_same(mode: str, policy: str, loop: str, seeds: int) -> None:
    """192 configurations, or 2,688 with ``-m slow``, over every prefill mode, policy and loop.

    Drawn for each: KV capacity, scattered steps, cached prefixes, arrivals in pairs, survivals that tie.
    """
    first = 1000 * CELLS.index((mode, policy, loop))
    assert sum(compare(first + each, mode, policy, loop) for each in range(seeds)) > 0
