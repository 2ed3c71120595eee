"""The engine against a second simulator, ``tests.support.reference_simulator``, on random configurations."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from simulator.acceptance.trace import Replay
from simulator.core.random import random_stream
from simulator.cost.models import AdditiveCost
from simulator.engine.limits import EngineLimits
from simulator.engine.metrics import first_gaps, requests_frame, steps_frame
from simulator.engine.run import run_engine
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.policies import DSpark, Fixed
from simulator.traffic.workload import Workload
from tests.support.reference_simulator import ReferenceSimulator, Setting

MODES = ("none", "pool", "chunked", "whole")
POLICIES = ("mtp1", "fixed", "dspark")
CELLS = [(mode, policy, loop) for mode in MODES for policy in POLICIES for loop in ("open", "closed")]
CLOSED_STEPS = 80


def random_setting(draw: np.random.Generator, mode: str, policy: str, loop: str) -> Setting:
    gamma = int(draw.integers(1, 6))
    concurrency = int(draw.integers(1, 7))
    phase = random_stream(0, "closed-loop phase").random(concurrency).tolist() if loop == "closed" else ()
    length = 1 if policy == "mtp1" else int(draw.integers(0, gamma + 1))
    setting = Setting(
        concurrency, gamma, "dspark" if policy == "dspark" else "fixed", length, phase=tuple(phase),
        kv_tokens=int(draw.integers(160, 400)) if draw.random() < 0.5 else None,
        chunk_tokens=int(draw.integers(8, 90)),
    )  # fmt: skip
    if mode == "pool":
        workers = [1, 2, 3, None][draw.integers(4)]
        return replace(setting, tokens_per_s=float(draw.uniform(1e3, 2e4)), workers=workers)
    return setting if mode == "none" else replace(setting, prefill=mode)


def compare(seed: int, mode: str, policy: str, loop: str) -> int:
    """Run both on one random load; returns how many requests were compared."""
    draw = np.random.default_rng(seed)
    setting = random_setting(draw, mode, policy, loop)
    gamma, count = setting.gamma, int(draw.integers(8, 25))
    prompts, outputs = draw.integers(1, 100, count), draw.integers(1, 40, count)
    outputs[0] = 2  # a closed loop needs something to decode
    arrival_s = np.cumsum(draw.exponential(draw.uniform(0.001, 0.1), count)) if loop == "open" else None
    if arrival_s is not None and draw.random() < 0.3:
        arrival_s[1::2] = arrival_s[: count - count % 2 : 2]  # they come in pairs
    replays = []  # one class and one sequence each, so that the start of a request's rows is not drawn
    for _ in range(count):
        survival = np.cumprod(draw.uniform(0.3, 1.0, (50, gamma)), axis=1).astype(np.float32)
        good = draw.integers(0, gamma + 1, 50).astype(np.uint8)
        replays.append(Replay(survival, good, np.array([0, 50])))
    workload = Workload(
        arrival_s, prompts, outputs, np.arange(count), tuple(f"class {each}" for each in range(count))
    )
    alpha, theta = np.cumsum(draw.uniform(0, 0.002, 3)), np.cumsum(draw.uniform(0, 0.004, 3))
    cost = AdditiveCost(
        0.002, [0, 4, 16], alpha, [0, 16, 90], theta,
        context_s_per_token=1e-6, row_context_s_per_token=0.0, prefill_s_per_token=2e-6, beyond="clamp",
    )  # fmt: skip
    limits = EngineLimits(
        setting.concurrency, kv_tokens=setting.kv_tokens, prefill=setting.prefill,  # type: ignore[arg-type]
        chunk_tokens=setting.chunk_tokens, prefill_tokens_per_s=setting.tokens_per_s,
        prefill_workers=setting.workers,
    )  # fmt: skip
    executor = SimulatedExecutor(replays, workload, cost, capacity=setting.concurrency, seed=0)
    scheduler = DSpark() if policy == "dspark" else Fixed(setting.length)
    steps = CLOSED_STEPS if loop == "closed" else 10**6
    engine = run_engine(workload, executor, scheduler, cost, limits, steps=steps)
    rows = [
        [
            (tuple(map(float, survival)), int(good))
            for survival, good in zip(r.survival, r.accepted, strict=True)
        ]
        for r in replays
    ]
    load = list(zip(prompts.tolist(), outputs.tolist(), rows, strict=True))
    arrivals = None if arrival_s is None else arrival_s.tolist()
    reference = ReferenceSimulator(setting, cost.step_time_s, load, arrivals)
    reference.run(steps)
    if loop == "open":
        assert len(reference.finished) == count
    check(engine, reference)
    return len(reference.finished)


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
    number, gap_s = first_gaps(engine)
    newcomers = np.bincount(number, minlength=int((steps["requests"] > 0).sum()))
    decoding = steps[steps["requests"] > 0]
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
    """72 configurations, or 1,008 with ``-m slow``, over every prefill mode, policy and loop."""
    first = 1000 * CELLS.index((mode, policy, loop))
    assert sum(compare(first + each, mode, policy, loop) for each in range(seeds)) > 0
