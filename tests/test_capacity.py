"""Sustainable rates against closed forms, hand calculations and long runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.capacity import Search, Server, find_rate
from simulator.cost import ThroughputCurve
from simulator.deployment import Plan
from simulator.schedulers import parse_policy
from simulator.serving import EngineLimits
from simulator.sla import parse_sla
from simulator.traffic import ReplayTraffic, Traffic
from simulator.workload import Workload


def constant_step(
    traffic: Traffic, *terms: str, limits: EngineLimits, step_s: float = 0.05, requests: int = 2000
) -> Server:
    """Autoregressive decoding in steps of one length, whatever the batch."""
    cost = ThroughputCurve([1.0], [1 / step_s])
    only = Plan(parse_policy("autoregressive"), "none", None, cost, cost)
    return Server((only,), limits, parse_sla(terms), traffic, requests, 0)


# --- recordings ---------------------------------------------------------------------------------------------


def short_head() -> Workload:
    """2,000 requests at 2/s; the first 150 decode one token, the others forty."""
    outputs = np.where(np.arange(2000) < 150, 2, 41)
    return Workload.single_class(np.arange(2000) / 2, np.full(2000, 10), outputs)


def test_a_recording_with_a_short_head_is_not_taken_for_its_head() -> None:
    """Four slots at 20 steps/s deliver 80 tokens/s; a request decodes (150 + 1,850 * 40) / 2,000 = 37.1."""
    server = constant_step(ReplayTraffic(short_head()), "tps_p10>=10", limits=EngineLimits(4))
    found = find_rate(Search(server, 0.02))
    assert found["rate_per_s"] == pytest.approx(80 / 37.075, rel=0.09)


def test_a_coarse_clock_changes_no_rate() -> None:
    """600 requests, ten every 3 s, or one every 0.3 s: the same load, and the same answer."""
    even = np.arange(600) * 0.3
    ticks = np.floor(even / 3) * 3
    rates = [
        find_rate(Search(constant_step(ReplayTraffic(each), "tps_p10>=10", limits=EngineLimits(8)), 0.02))
        for each in (
            Workload.single_class(even, np.full(600, 10), np.full(600, 11)),
            replace(Workload.single_class(ticks, np.full(600, 10), np.full(600, 11)), clock_tick_s=3.0),
        )
    ]
    # Eight slots at 20 steps/s deliver 160 tokens/s, ten to a request.
    assert rates[0]["rate_per_s"] == pytest.approx(16, rel=0.09)
    assert rates[1]["rate_per_s"] == pytest.approx(rates[0]["rate_per_s"], rel=0.04)
