"""How often the 95% interval of a single run holds what runs average to, over 200 seeds.

The truth is the mean over all seeds: known to a fourteenth of what one run scatters by. `scripts/bench -k
coverage` prints the table of docs/validation.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from simulator.acceptance.trace import AcceptanceModel
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import load_profile
from simulator.engine.limits import EngineLimits
from simulator.engine.run import simulate
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.frontier import FrontierRun, run_cell, steps_for
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass

SEEDS = int(os.environ.get("COVERAGE_SEEDS", "200"))
REQUIRED = 0.90

Interval = tuple[float, float]
_TABLE: list[str] = []


def classes(
    one: tuple[str, str], other: tuple[str, str], policy: str, concurrency: int, steps: int
) -> Callable[[int], Interval]:
    """Two classes in equal shares, each (lengths, acceptance), in one closed loop."""
    profile = load_profile("deepseek-v4-flash")
    models = [parse_acceptance(acceptance) for _, acceptance in (one, other)]
    plans = [Deployment(profile, {"dspark": model}).plan(parse_policy(policy)) for model in models]
    kinds = tuple(
        TrafficClass(name, parse_lengths(lengths), 0.5)
        for name, (lengths, _) in zip("ab", (one, other), strict=True)
    )

    def measured(seed: int) -> Interval:
        workload = SyntheticTraffic(ClosedLoop(), kinds).workload(seed, requests=2048)
        run = simulate(
            workload, [plan.replay(seed) for plan in plans], plans[0].scheduler, plans[0].cost,
            EngineLimits(concurrency), seed=seed, steps=steps,
        )  # fmt: skip
        return run.metrics.throughput_tok_per_s, run.metrics.throughput_ci95

    return measured


def cell(acceptance: str | None, policy: str, concurrency: int) -> Callable[[int], Interval]:
    """One policy at one load as a frontier runs it with one seed; None: the profile's own acceptance."""
    profile = load_profile("deepseek-v4-flash")
    models: dict[str, AcceptanceModel] = profile.acceptance_models()
    if acceptance is not None:
        models["dspark"] = parse_acceptance(acceptance)
    plan = Deployment(profile, models).plan(parse_policy(policy))

    def measured(seed: int) -> Interval:
        limits = EngineLimits(concurrency)
        row = run_cell(FrontierRun(plan, limits, parse_lengths("default"), steps_for(concurrency), seed))
        return row["throughput_tok_per_s"], row["throughput_ci95"]  # type: ignore[return-value]

    return measured


SHORT_SLOW = ("fixed:100/lognormal:300,cv=1", "length:2@5")
LONG_FAST = ("fixed:100/lognormal:600,cv=1", "length:4.5@5")

CASES: dict[str, Callable[[], Callable[[int], Interval]]] = {
    "two classes, plain rates, fixed:5, 8 concurrent": lambda: classes(
        SHORT_SLOW, LONG_FAST, "fixed:5", 8, 2000
    ),
    "two classes, fitted chat and math, dspark-async, 8 concurrent": lambda: classes(
        ("default", "qwen3-4b-chat@5"), ("default", "qwen3-4b-math@5"), "dspark-async", 8, 2000
    ),
    "fitted chat, fixed:3, 8 concurrent": lambda: cell("qwen3-4b-chat@5", "fixed:3", 8),
    "fitted chat, dspark, 32 concurrent": lambda: cell("qwen3-4b-chat@5", "dspark", 32),
    "frontier, dspark-async, 4 concurrent": lambda: cell(None, "dspark-async", 4),
    "frontier, dspark-async, 20 concurrent": lambda: cell(None, "dspark-async", 20),
    "frontier, dspark-async, 100 concurrent": lambda: cell(None, "dspark-async", 100),
    "frontier, mtp1, 200 concurrent": lambda: cell(None, "mtp1", 200),
    "frontier, dspark-async, 300 concurrent": lambda: cell(None, "dspark-async", 300),
}


@pytest.fixture(scope="module", autouse=True)
def printed() -> Iterator[None]:
    """The table, when all is measured."""
    yield
    print(f"\n| single run | covered, of {SEEDS} | mean half-width | half-width needed |")
    print("| --- | ---: | ---: | ---: |\n" + "\n".join(_TABLE))


@pytest.mark.benchmark
@pytest.mark.parametrize("name", CASES)
def test_coverage(name: str) -> None:
    """Needed: the 95% quantile of the distance from the truth."""
    measure = CASES[name]()
    mean, half = np.array([measure(seed) for seed in range(SEEDS)]).T
    truth, distance = mean.mean(), np.abs(mean - mean.mean())
    covered = float(np.mean(distance <= half))
    needed = float(np.quantile(distance, 0.95))
    _TABLE.append(f"| {name} | {covered:.1%} | {half.mean() / truth:.1%} | {needed / truth:.1%} |")
    assert covered >= REQUIRED
