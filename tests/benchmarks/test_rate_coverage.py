"""How often the intervals of a sustainable rate and of an attainment hold the truth, known in closed form.

`scripts/bench -k rate_coverage` prints the table of docs/planning.md; COVERAGE_SEEDS sets how many seeds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from simulator.capacity.search import Search, find_rate
from simulator.capacity.server import Server
from simulator.capacity.trials import REPLICATIONS, Trial, try_rate
from simulator.engine.limits import EngineLimits
from tests.capacity.test_search import constant_step, poisson

SEEDS = int(os.environ.get("COVERAGE_SEEDS", "100"))
REQUIRED = 0.90
SERVICE_S = 0.2

_TABLE: list[str] = []


def within(load: float, wait_s: float) -> float:
    """P(wait <= wait_s) in an M/D/1 queue (Erlang), with service of ``SERVICE_S`` and a load below 1."""
    x = wait_s / SERVICE_S
    terms = ((load * (k - x)) ** k / math.factorial(k) * math.exp(-load * (k - x)) for k in range(int(x) + 1))
    return (1 - load) * sum(terms)


def queue(term: str) -> Server:
    """M/D/1: one slot, one step of decoding a request."""
    limits = EngineLimits(1)
    return constant_step(poisson("fixed:10/2"), term, limits=limits, step_s=SERVICE_S, requests=1000)


def slots() -> Server:
    """Eight slots of 20 steps/s; a request decodes 19 tokens on average: 160 / 19 requests/s at most."""
    limits = EngineLimits(8)
    return constant_step(poisson("fixed:10/geometric:20"), "tps_p10>=1", limits=limits, requests=1000)


RATES: dict[str, Callable[[], tuple[Server, float]]] = {
    # Mean wait load * SERVICE_S / (2 * (1 - load)) = SERVICE_S at a load of 2/3.
    "rate, mean wait of an M/D/1 queue": lambda: (queue("ttft_mean<=200ms"), 2 / 3 / SERVICE_S),
    "rate, 90% of waits within 0.5 s": lambda: (
        queue("ttft_p90<=500ms"), float(brentq(lambda load: within(load, 0.5) - 0.9, 0.1, 0.95)) / SERVICE_S,
    ),
    "rate, eight slots, random lengths": lambda: (slots(), 160 / 19),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def printed() -> Iterator[None]:
    """The table, when all is measured."""
    yield
    print(f"\n| interval | truth | mean | covered, of {SEEDS} | mean half-width |")
    print("| --- | ---: | ---: | ---: | ---: |\n" + "\n".join(_TABLE))


def judge(name: str, truth: float, mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    covered = float(np.mean((low <= truth) & (truth <= high)))
    half = float(np.mean(high - low)) / 2
    _TABLE.append(f"| {name} | {truth:.4g} | {mean.mean():.4g} | {covered:.0%} | {half / truth:.1%} |")
    assert covered >= REQUIRED


@pytest.mark.benchmark
@pytest.mark.parametrize("name", RATES)
def test_rate_coverage(name: str) -> None:
    server, truth = RATES[name]()
    found = [
        find_rate(Search(replace(server, seed=seed), 0.03, replications=REPLICATIONS))
        for seed in range(SEEDS)
    ]
    mean, low, high = (
        np.array([getattr(each, key) for each in found])
        for key in ("rate_per_s", "rate_low_per_s", "rate_high_per_s")
    )
    judge(name, truth, mean, low, high)


@pytest.mark.benchmark
@pytest.mark.parametrize("load", [0.5, 0.7, 0.8])
def test_attainment_rate_coverage(load: float) -> None:
    server, truth = queue("ttft_p90<=500ms"), within(load, 0.5)
    rows = [
        try_rate(Trial(replace(server, seed=seed), load / SERVICE_S, REPLICATIONS)) for seed in range(SEEDS)
    ]
    mean, half = (np.array([getattr(row, key) for row in rows]) for key in ("attainment", "attainment_ci95"))
    judge(f"attainment of an M/D/1 queue at load {load}", truth, mean, mean - half, mean + half)
