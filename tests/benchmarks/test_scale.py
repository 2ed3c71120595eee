"""How cost grows, in processor time: concurrency, blocks, requests, cells. ``scripts/bench -k scale``.

A slope is that of a straight line through the logarithms: 1 is linear, 0 is no growth.
"""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.engine.run import advance, simulate
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides.serving import serving_engine
from simulator.parallel.cells import Sweeping, run_cells
from simulator.planning import plan as planning
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.reading import load_scenario
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.policies import DSparkAsync
from simulator.sweeps.frontier import FrontierRun, run_cell
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.workload import Workload
from tests.benchmarks.test_simulator_speed import COST, TRACE_ROWS, workload
from tests.support.engines import random_replay
from tests.support.recorded_cells import trace_of

pytestmark = pytest.mark.benchmark

MOST_S = 60.0
"""Processor seconds that one size may take at most: it stops before it takes the whole afternoon."""


@pytest.fixture(scope="module")
def report() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    print("\n\n" + "\n".join(lines))


def slope(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def line(what: str, unit: str, sizes: list[int], values: list[float]) -> str:
    shown = "  ".join(f"{size:,}: {value:.3g}" for size, value in zip(sizes, values, strict=True))
    return f"{what:<28} {unit:<14} slope {slope(sizes, values):5.2f}   {shown}"


def step_us(concurrency: int, gamma: int) -> float:
    """Microseconds a step, the cheaper of two runs."""
    load, limits = workload(max(4096, 2 * concurrency)), EngineLimits(concurrency)
    replay, taken = random_replay(gamma, rows=TRACE_ROWS, sequences=256), []
    steps = int(np.clip(400_000 // (concurrency * gamma), 100, 20_000))
    for _ in range(3):  # the first one loads or compiles
        executor = SimulatedExecutor([replay], load, COST, capacity=concurrency, seed=0)
        engine = serving_engine(simpy.Environment(), load, executor, DSparkAsync(), COST, limits)
        start = time.process_time()
        advance(engine, steps)
        taken.append((time.process_time() - start) / steps)
    return 1e6 * min(taken[1:])


def test_scale_of_a_step(report: list[str]) -> None:
    loads = [1, 4, 16, 64, 256, 1024, 4096]
    report.append(line("concurrency, blocks of 5", "us a step", loads, [step_us(each, 5) for each in loads]))
    report.append(line("  from 64 on", "us a step", loads[3:], [step_us(each, 5) for each in loads[3:]]))
    blocks = [5, 7, 10, 15]
    report.append(
        line("blocks, 256 concurrent", "us a step", blocks, [step_us(256, each) for each in blocks])
    )


def test_scale_of_requests(report: list[str]) -> None:
    """An open loop at 60 requests a second, outputs of 100 tokens, from workload to metrics."""
    sizes, seconds = [10_000, 100_000, 1_000_000], []
    draw, replay = np.random.default_rng(0), random_replay(5, rows=TRACE_ROWS, sequences=256)
    step_us(8, 5)  # loads, or compiles
    for size in sizes:
        arrival_s = np.cumsum(draw.exponential(1 / 60, size))
        prompts, outputs = draw.integers(100, 2000, size), draw.geometric(0.01, size)
        load = Workload.single_class(arrival_s, prompts, outputs)
        start = time.process_time()
        simulate(load, [replay], DSparkAsync(), COST, EngineLimits(256))
        seconds.append(time.process_time() - start)
        assert seconds[-1] < MOST_S
    report.append(line("requests, open loop", "s", sizes, seconds))


MILLION = """
import resource, sys
import numpy as np
from simulator.cost.models import ThroughputCurve
from simulator.engine.limits import EngineLimits
from simulator.engine.run import simulate
from simulator.schedulers.policies import DSparkAsync
from simulator.traffic.workload import Workload
from tests.support.engines import random_replay
draw, size = np.random.default_rng(0), int(sys.argv[1])
arrival_s = np.cumsum(draw.exponential(1 / 60, size))
load = Workload.single_class(arrival_s, draw.integers(100, 2000, size), draw.geometric(0.01, size))
cost = ThroughputCurve([1, 64, 512, 2048], [133.0, 125.0, 82.0, 28.0])
run = simulate(load, [random_replay(5, rows=131_072)], DSparkAsync(), cost, EngineLimits(256))
if sys.platform == "linux":  # where a new process's ru_maxrss begins with that of the process that started it
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(line.split()[1]) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_of_a_million_requests(report: list[str]) -> None:
    """The largest resident set of a process that simulates so many open-loop requests and measures them."""
    for size in (1_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, "-c", MILLION, str(size)], capture_output=True, text=True, check=True
        )
        report.append(
            f"requests, open loop  {size:9,}: {int(done.stdout) / 1e6:5.0f} MB (aim: 300 for a million)"
        )


WORKERS = 16


@dataclass(frozen=True, slots=True)
class Timed(Sweeping):
    """Runs each cell in turn and takes the processor time of each, sweep by sweep."""

    taken: list[tuple[str, list[float]]] = field(default_factory=list)

    def run(self, function: Any, cells: Sequence[Any], label: str) -> list[Any]:
        self.taken.append((label, []))
        return [self.timed(function, cell) for cell in cells]

    def timed(self, function: Any, cell: Any) -> Any:
        start = time.process_time()
        result = function(cell)
        self.taken[-1][1].append(time.process_time() - start)
        return result


def on_workers(seconds: list[float], workers: int) -> float:
    """When the last cell ends: each worker takes the next cell as soon as it is free."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def test_scale_of_a_plan(report: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan's critical path on 16 workers: its cells' own times, dealt out, and what is not in cells."""
    step_us(8, 5)  # loads, or compiles
    (tmp_path / "scenario.yaml").write_text(EXAMPLE)
    scenario, sweep = load_scenario(tmp_path / "scenario.yaml"), Timed()
    monkeypatch.setattr(
        planning, "run_cells", lambda function, cells, label, **_: sweep.run(function, cells, label)
    )
    start = time.process_time()
    planning.plan(scenario, sweeping=sweep)
    whole = time.process_time() - start
    serial = whole - sum(sum(seconds) for _, seconds in sweep.taken)
    critical = serial + sum(on_workers(seconds, WORKERS) for _, seconds in sweep.taken)
    for label, seconds in sweep.taken:
        on = on_workers(seconds, WORKERS)
        report.append(
            f"  {label.lower():<26} {len(seconds):3d} cells, {sum(seconds):6.2f} s, {on:.2f} s on {WORKERS}"
        )
    report.append(
        f"plan, {WORKERS} workers            {whole:.1f} s, not in cells {serial:.2f} s, critical path "
        f"{critical:.2f} s: {whole / critical:.1f} times (aim: 8)"
    )


def timed_cell(cell: FrontierRun) -> dict[str, float]:
    """Run a cell; returns where, and the processor time that it took."""
    start = time.process_time()
    run_cell(cell)
    return {"process": float(os.getpid()), "seconds": time.process_time() - start}


@pytest.mark.parametrize("workers", [1, 2])
def test_scale_of_cells(workers: int, report: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 400 steps at 64 concurrent requests over a trace of a million rows: the critical path.

    That is the processor time of this process and of its busiest worker: what a quiet machine would take.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    plan = Setup(parse_policy("dspark-async"), "drafter", trace_of(1_000_000), COST, COST)
    sizes, seconds = [10, 100, 1000], []
    for size in sizes:
        cells = [
            FrontierRun(plan, EngineLimits(64), parse_lengths("fixed:512/200"), 400, 3 * number // size)
            for number in range(size)
        ]
        start = time.process_time()
        rows = run_cells(timed_cell, cells, workers=workers)
        here = time.process_time() - start
        busy = dict[float, float]()
        for row in rows:
            busy[row["process"]] = busy.get(row["process"], 0.0) + row["seconds"]
        busy.pop(float(os.getpid()), None)  # is in ``here``
        seconds.append(here + max(busy.values(), default=0.0))
    report.append(line(f"cells, {workers} worker{'s' if workers > 1 else ''}", "s, critical", sizes, seconds))
