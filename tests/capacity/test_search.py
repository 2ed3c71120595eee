"""Sustainable rates against closed forms, hand calculations and long runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.capacity.bounds import capacity
from simulator.capacity.search import Search, find_rate, find_rates, interpolated_rate
from simulator.capacity.server import Server, replication_seed, share_at_rate
from simulator.capacity.trials import Trial, binding, try_rate
from simulator.cost.models import ThroughputCurve
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.parallel.cells import Sweeping
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass
from simulator.traffic.workload import Workload


def constant_step(
    traffic: Traffic, *terms: str, limits: EngineLimits, step_s: float = 0.05, requests: int = 2000
) -> Server:
    """Autoregressive decoding in steps of one length, whatever the batch."""
    cost = ThroughputCurve([1.0], [1 / step_s])
    only = Setup(parse_policy("autoregressive"), "none", None, cost, cost)
    return Server((only,), limits, parse_sla(terms), traffic, requests, 0)


def poisson(lengths: str) -> SyntheticTraffic:
    return SyntheticTraffic(PoissonArrivals(1.0), (TrafficClass("default", parse_lengths(lengths)),))


# --- physical capacity --------------------------------------------------------------------------------------


def pooled_server(workers: int = 1) -> Server:
    """Prompts of 1,000 tokens before a pool of 40,000 tokens/s, decoding that never waits."""
    limits = EngineLimits(64, prefill_tokens_per_s=40_000.0, prefill_workers=workers)
    return constant_step(poisson("fixed:1000/5"), "tps_p10>=10", limits=limits, step_s=0.005, requests=1500)


def test_no_rate_is_above_what_the_prefill_pool_can_do() -> None:
    """40,000 / 1,000 = 40/s for one worker: an M/D/1 queue that is stable below and grows at and above."""
    assert capacity(pooled_server()).pool_per_s == 40.0
    assert capacity(pooled_server(2)).pool_per_s == 80.0
    found = find_rate(Search(pooled_server(), 0.02))
    assert 37 <= found.rate_per_s <= 40
    assert found.beyond.saturated
    assert try_rate(Trial(pooled_server(), 40.5)).saturated


def test_the_answer_stands_a_long_run() -> None:
    """Eight times the trial, below the bound: the queue has no trend. Above it, the same run shows one."""
    server = pooled_server()
    rate = find_rate(Search(server, 0.02)).rate_per_s
    longer = replace(server, requests=12_000, seed=9)
    assert try_rate(Trial(longer, 0.97 * rate)).met
    beyond = try_rate(
        Trial(replace(longer, limits=replace(server.limits, prefill_workers=None)), 0.97 * rate)
    )
    assert abs(beyond.queue_trend_per_s) < 1e-3  # as many workers as prompts: nothing waits
    grows = try_rate(Trial(longer, 43.6))
    assert grows.saturated
    # What arrives beyond the 40 that leave: about 3.6/s.
    excess = share_at_rate(longer.traffic, 43.6, longer.requests, longer.seed).rate_per_s - 40
    assert grows.queue_trend_per_s == pytest.approx(excess, abs=0.4)
    assert grows.queue_trend_per_s - grows.queue_trend_ci95 > 0


@pytest.mark.parametrize(
    ("limits", "per_s"),
    [
        # Four slots at 20 steps/s, ten tokens decoded a request: 8/s.
        (EngineLimits(4), 8.0),
        # 66 tokens of KV cache hold three requests of 10 + 11 tokens (no drafts): 6/s.
        (EngineLimits(64, kv_tokens=66), 6.0),
        # Whole prompts take a step each, in which decoding waits. Sixteen requests in step: 16 steps of
        # prefill and 10 of decoding for each round, at 20 steps/s: 16 / 1.3 s.
        (EngineLimits(16, prefill="whole", chunk_tokens=10), 16 / 1.3),
    ],
)
def test_capacity_of_the_engine(limits: EngineLimits, per_s: float) -> None:
    server = constant_step(poisson("fixed:10/11"), "tps_p10>=0.1", limits=limits, requests=800)
    assert capacity(server).decode_per_s == pytest.approx(per_s, rel=0.02)


def test_an_sla_out_of_reach_is_found_in_few_requests() -> None:
    """20 tokens/s is all that this engine gives to anyone: two trials say so, one of them of 200 requests."""
    server = constant_step(poisson("fixed:10/11"), "tps_p10>=21", limits=EngineLimits(64), requests=2000)
    found = find_rate(Search(server, 0.02, replications=5))
    assert found.rate_per_s == 0
    assert len(found.trials) == 2
    assert found.beyond.terms[0].estimate == pytest.approx(20, rel=0.01)


# --- replications -------------------------------------------------------------------------------------------


def test_replications_are_independent_and_repeatable() -> None:
    assert len({replication_seed(seed, index) for seed in range(20) for index in range(5)}) == 100
    server = pooled_server()
    assert server.replication(0) == server
    row = try_rate(Trial(server, 30.0, replications=3))
    assert row.replications == 3
    assert len(set(row.seed_tps)) <= 3
    again = try_rate(Trial(server, 30.0, replications=3))
    assert row.terms == again.terms


def test_a_rate_comes_with_an_interval_that_holds_the_truth() -> None:
    """M/D/1 with service 0.2 s: the mean wait is 0.2 s at rho = 2/3, 3.33 requests/s."""
    limits = EngineLimits(1)
    server = constant_step(poisson("fixed:10/5"), "ttft_mean<=200ms", limits=limits, requests=2000)
    found = find_rate(Search(server, 0.03, replications=5))
    assert found.rate_low_per_s <= 10 / 3 <= found.rate_high_per_s
    assert found.rate_high_per_s / found.rate_low_per_s < 1.25
    assert found.rate_low_per_s <= found.rate_per_s <= found.rate_high_per_s
    assert len(found.seed_rates) == 5
    assert found.at_rate is not None
    assert found.at_rate.met
    assert not found.beyond.met


def test_searches_side_by_side_find_what_each_finds_alone(tmp_path: Path) -> None:
    """One holds, one is out of reach, one has a single replication; kept cells give the same again."""
    limits = EngineLimits(1)
    holds, out_of_reach = (
        constant_step(poisson("fixed:10/5"), sla, limits=limits, requests=300)
        for sla in ("ttft_mean<=200ms", "tps_p10>=21")
    )
    searches = [
        Search(holds, 0.1, "first", replications=2), Search(out_of_reach, 0.1, replications=3),
        Search(holds, 0.1), Search(holds, 0.4, replications=2),
    ]  # fmt: skip
    found = find_rates(searches, Sweeping(tmp_path, study="rates").run)
    assert [each.rate_per_s > 0 for each in found] == [True, False, True, True]
    assert [repr(each) for each in found] == [repr(find_rate(each)) for each in searches]
    again = find_rates(searches, Sweeping(tmp_path, study="rates").run)
    assert [repr(each) for each in again] == [repr(each) for each in found]


def test_failures_too_rare_to_be_seen_leave_an_interval() -> None:
    """All of 3 x 1,125 judged requests kept it: at most 3 in 3,375 failed unseen."""
    server = constant_step(poisson("fixed:10/5"), "ttft_p90<=60s", limits=EngineLimits(8), requests=1500)
    row = try_rate(Trial(server, 4.0, replications=3))
    assert row.attainment == 1
    assert row.attainment_ci95 == pytest.approx(3 / row.requests)


def test_rates_read_off_trials_are_no_higher_than_those_searched() -> None:
    server = constant_step(poisson("fixed:10/5"), "ttft_mean<=200ms", limits=EngineLimits(1), requests=2000)
    trials = [try_rate(Trial(server, rate)) for rate in (2.0, 2.6, 3.2, 3.8, 4.4, 5.2)]
    assert interpolated_rate(trials, server.sla) == pytest.approx(10 / 3, rel=0.08)
    # A saturated trial fails, and says nothing of where before it the bound is reached.
    loose = parse_sla(["ttft_mean<=1000s"])
    assert interpolated_rate(trials, loose) == 4.4


# --- recordings ---------------------------------------------------------------------------------------------


def short_head() -> Workload:
    """2,000 requests at 2/s; the first 150 decode one token, the others forty."""
    outputs = np.where(np.arange(2000) < 150, 2, 41)
    return Workload.single_class(np.arange(2000) / 2, np.full(2000, 10), outputs)


def test_a_recording_with_a_short_head_is_not_taken_for_its_head() -> None:
    """Four slots at 20 steps/s deliver 80 tokens/s; a request decodes (150 + 1,850 * 40) / 2,000 = 37.1."""
    server = constant_step(ReplayTraffic(short_head()), "tps_p10>=10", limits=EngineLimits(4))
    found = find_rate(Search(server, 0.02))
    assert found.rate_per_s == pytest.approx(80 / 37.075, rel=0.03)


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
    assert rates[0].rate_per_s == pytest.approx(16, rel=0.03)
    assert rates[1].rate_per_s == pytest.approx(rates[0].rate_per_s, rel=0.04)


# --- what binds ---------------------------------------------------------------------------------------------


def test_the_largest_wait_is_named() -> None:
    """Two slots and room for more; one slot's worth of KV cache and slots to spare; a slow pool."""
    for limits, text in (
        (EngineLimits(2), "the concurrency limit of 2"),
        (EngineLimits(64, kv_tokens=45), "the KV capacity of 45 tokens"),
        (EngineLimits(64, prefill_tokens_per_s=50.0), "the prefill pool"),
        (EngineLimits(64, prefill="whole", chunk_tokens=10), "the prefill of prompts before theirs"),
    ):
        server = constant_step(poisson("fixed:10/11"), "ttft_p90<=500ms", limits=limits, requests=600)
        assert text in binding(find_rate(Search(server, 0.1)), limits)


def test_steps_that_take_too_long_are_not_blamed_on_a_line() -> None:
    """20 tokens/s whatever the load, 21 promised: nobody waits long for the step under way."""
    limits = EngineLimits(64)
    server = constant_step(poisson("fixed:10/11"), "tps_p10>=21", limits=limits, requests=600)
    assert binding(find_rate(Search(server, 0.1)), limits) == "tps_p10>=21; step time"


def test_a_minority_of_growing_queues_counts_against_waiting_alone() -> None:
    """At 93% of capacity two of five short trials grow: together they hold what promises no wait."""
    server = constant_step(
        poisson("fixed:10/geometric:20"), "tps_p10>=10", limits=EngineLimits(8), requests=600
    )
    most = np.mean([capacity(server.replication(index)).ceiling_per_s for index in range(5)])
    assert try_rate(Trial(server, 0.93 * most, 5)).met
    assert try_rate(Trial(server, 1.01 * most, 5)).saturated
    waits = replace(server, sla=parse_sla(["ttft_p90<=1s"]))
    assert not try_rate(Trial(waits, 0.93 * most, 5)).met
