"""Fleets: every request served once, routers that do what they say, saturation that is called so."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.core.errors import BadInputError
from simulator.cost.models import AdditiveCost, ThroughputCurve
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.setup import Setup
from simulator.engine.batch import WAITS
from simulator.engine.limits import EngineLimits
from simulator.fleet.fleet import simulate_fleet
from simulator.fleet.layout import Fleet
from simulator.fleet.pod import Pod, run_pod
from simulator.fleet.routers import Board, LeastLoaded, PowerOfTwo, PrefixAware
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from simulator.traffic.workload import PrefixBlocks, Workload

SLA = parse_sla(["tps_p10>=20", "ttft_p99<=2s"])
CURVE = ThroughputCurve([1, 64, 512], [100.0, 70.0, 25.0])


def plan(policy: str = "dspark-async", cost: object = CURVE) -> Setup:
    parsed = parse_policy(policy)
    model = parse_acceptance("length:3@4")
    return Setup(parsed, "dspark", model, cost, cost)  # type: ignore[arg-type]


def traffic(rate: float, requests: int = 600, lengths: str = "fixed:50/60") -> Workload:
    process = SyntheticTraffic(PoissonArrivals(rate), (TrafficClass("default", parse_lengths(lengths)),))
    return process.workload(0, requests=requests)


@pytest.mark.parametrize("router", ["round-robin", "least-loaded", "power-of-two"])
def test_every_request_is_served_once(router: str) -> None:
    run = simulate_fleet(traffic(20), [plan()], Fleet(4, EngineLimits(16), router=router), SLA)  # type: ignore[arg-type]
    assert run.replicas["requests"].sum() == 600
    assert run.observed is not None
    assert (np.diff(run.observed.requests["queued_s"]) >= 0).all()
    assert run.assessment.met
    # Warm-up and cool-down are served and not judged.
    assert run.assessment.requests == pytest.approx(450, abs=40)


def test_round_robin_deals_in_turn() -> None:
    run = simulate_fleet(traffic(20), [plan()], Fleet(4, EngineLimits(16)), SLA)
    assert list(run.replicas["requests"]) == [150] * 4


def test_results_do_not_depend_on_workers() -> None:
    fleet = Fleet(4, EngineLimits(16), "power-of-two", pods=2)
    one = simulate_fleet(traffic(20), [plan()], fleet, SLA)
    two = simulate_fleet(traffic(20), [plan()], fleet, SLA, workers=2)
    assert one.assessment == two.assessment
    assert one.replicas.equals(two.replicas)


@pytest.mark.parametrize("router", ["least-loaded", "power-of-two"])
def test_a_pod_is_the_same_whichever_loop_runs_it(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled engines run ahead of the clock, up to the next arrival; no router may notice."""
    cluster = Fleet(3, EngineLimits(6, prefill_tokens_per_s=4e3), router=router)  # type: ignore[arg-type]
    compiled = simulate_fleet(traffic(30, 300), [plan("dspark")], cluster, SLA)
    monkeypatch.setattr("simulator.engine.strides.serving._striding", lambda: None)
    plain = simulate_fleet(traffic(30, 300), [plan("dspark")], cluster, SLA)
    assert compiled.assessment == plain.assessment
    pd.testing.assert_frame_equal(compiled.replicas, plain.replicas, check_exact=True)


def test_balancing_shortens_the_tail() -> None:
    """Uneven requests pile up behind a blind router; knowing the loads avoids it."""
    uneven = traffic(20, 500, "fixed:50/lognormal:150,cv=2.5,max=4000")
    tails = {}
    for router in ("round-robin", "power-of-two", "least-loaded"):
        run = simulate_fleet(uneven, [plan()], Fleet(8, EngineLimits(8), router=router), SLA)  # type: ignore[arg-type]
        assert run.observed is not None
        tails[router] = float(np.quantile(run.observed.requests["ttft_s"], 0.99))
    assert tails["least-loaded"] < tails["power-of-two"] < tails["round-robin"]


def test_saturation_is_said_and_not_measured() -> None:
    run = simulate_fleet(traffic(300, 2000, "fixed:50/200"), [plan()], Fleet(2, EngineLimits(8)), SLA)
    assert run.assessment.saturated
    assert not run.assessment.met
    assert math.isnan(run.assessment.attainment)
    assert run.observed is None
    waits = run.replicas[list(WAITS)]
    assert set(waits.idxmax(axis=1)) == {"waited_slot_s"}
    assert waits["waited_slot_s"].min() > 5


def test_the_trend_of_the_queue_is_arrivals_less_service() -> None:
    """10/s for each replica, of which 8 slots serve 4: 200 tokens take 2 s of steps of 10 ms."""
    steady = Workload.single_class(np.arange(1000) / 20, np.full(1000, 50), np.full(1000, 200))
    ticks = ThroughputCurve([1, 1000], [100.0, 100.0])
    fleet = Fleet(2, EngineLimits(8), router="least-loaded")
    run = simulate_fleet(steady, [plan("autoregressive", ticks)], fleet, SLA)
    assert run.assessment.saturated
    assert run.replicas["queue_trend_per_s"].tolist() == pytest.approx([6.0, 6.0], rel=0.02)


def test_requests_are_judged_from_the_end_of_the_warm_up_to_the_cool_down() -> None:
    """One a second from 0 to 100: those at 20 to 94 s; the one at 95 is of the cool-down."""
    steady = Workload.single_class(np.arange(101.0), np.full(101, 50), np.full(101, 20))
    run = simulate_fleet(steady, [plan()], Fleet(1, EngineLimits(8)), SLA)
    assert run.observed is not None
    assert run.observed.requests["queued_s"].tolist() == list(range(20, 95))


@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
def test_a_replica_without_requests_has_zeros(router: str) -> None:
    """Three requests for four replicas, dealt in turn or to the least loaded."""
    few = Workload.single_class(np.arange(3) / 1000, np.full(3, 50), np.full(3, 20))
    run = simulate_fleet(few, [plan()], Fleet(4, EngineLimits(8), router=router), SLA)  # type: ignore[arg-type]
    assert run.replicas["requests"].sum() == 3
    idle = run.replicas[run.replicas["requests"] == 0]
    assert len(idle) == 1
    assert (idle[["steps", "rows_mean", "steps_outside_fraction", *WAITS]] == 0).all(axis=None)
    assert idle["queue_trend_per_s"].iloc[0] == pytest.approx(0, abs=1e-9)


def test_kv_capacity_is_named_as_what_requests_wait_for() -> None:
    limits = EngineLimits(64, kv_tokens=1000)
    run = simulate_fleet(traffic(200, 1000), [plan()], Fleet(1, limits), SLA)
    assert run.replicas["waited_kv_s"].iloc[0] > 0.5
    assert run.replicas["waited_slot_s"].iloc[0] == 0


def shared_prefixes(requests: int = 400) -> Workload:
    """Twenty conversations of one system prompt each: 8 common blocks of 16 tokens, then their own."""
    rng = np.random.default_rng(3)
    rows = [
        [100 * topic + block for block in range(8)] + [10_000 + i]
        for i, topic in enumerate(rng.integers(20, size=requests))
    ]
    arrival = np.cumsum(rng.exponential(0.1, requests))
    prefix = PrefixBlocks.from_rows(rows, 16)
    return Workload.single_class(arrival, np.full(requests, 144), np.full(requests, 20), prefix=prefix)


def test_prefix_reuse_saves_prefill_and_awareness_saves_more() -> None:
    slow_prefill = EngineLimits(16, prefill="elsewhere", prefill_tokens_per_s=1500.0)
    ttft, hits = {}, {}
    for name, router, cache in (
        ("none", "round-robin", None), ("blind", "round-robin", 400), ("aware", "prefix-aware", 400),
    ):  # fmt: skip
        fleet = Fleet(4, slow_prefill, router=router, prefix_cache_tokens=cache)  # type: ignore[arg-type]
        run = simulate_fleet(shared_prefixes(), [plan()], fleet, SLA)
        assert run.observed is not None
        ttft[name] = float(run.observed.requests["ttft_s"].mean())
        hits[name] = float(run.replicas["prefix_hit_share"].mean())
    assert hits["none"] == 0 < hits["blind"] < hits["aware"] < 128 / 144
    assert ttft["aware"] < ttft["blind"] < ttft["none"]


def test_a_prompt_held_whole_still_prefills_one_token() -> None:
    same = PrefixBlocks.from_rows([[1, 2]] * 50, 16)
    arrival = np.arange(50) * 0.2
    workload = Workload.single_class(arrival, np.full(50, 32), np.full(50, 20), prefix=same)
    limits = EngineLimits(8, prefill="chunked", chunk_tokens=64)
    run = simulate_fleet(workload, [plan()], Fleet(1, limits, prefix_cache_tokens=64), SLA)
    assert run.replicas["prefix_hit_share"].iloc[0] == pytest.approx(49 * 31 / (50 * 32))


def test_steps_beyond_the_cost_table_are_counted() -> None:
    short = AdditiveCost(0.01, [1, 4], [0.0, 0.001], [1, 8], [0.0, 0.002], beyond="last-slope")
    run = simulate_fleet(traffic(15), [plan(cost=short)], Fleet(1, EngineLimits(32)), SLA)
    share = run.replicas["steps_outside_fraction"].iloc[0]
    assert 0.5 < share < 1  # the first steps have a request or two
    assert run.metrics is not None
    assert run.metrics.steps_outside_fraction == pytest.approx(share, abs=0.1)  # without the warm-up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "must lie in 1"),
        ({"replicas": 4, "router": "magic"}, "is not known"),
        ({"replicas": 4, "router": "least-loaded", "pods": 3}, "divide"),
        ({"replicas": 4, "router": "prefix-aware"}, "needs a prefix cache"),
        ({"replicas": 4, "prefix_cache_tokens": 0}, "at least 1"),
        ({"replicas": 4, "prefill_workers": 2}, "needs the speed of prefill"),
    ],
)
def test_bad_fleets_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Fleet(limits=EngineLimits(4), **options)  # type: ignore[arg-type]


def test_prefix_cache_needs_traffic_with_prefixes() -> None:
    with pytest.raises(BadInputError) as caught:
        simulate_fleet(traffic(20), [plan()], Fleet(1, EngineLimits(4), prefix_cache_tokens=100), SLA)
    assert str(caught.value) == (
        "prefix_cache_tokens: the traffic does not say which prefixes are common (got 100); "
        "replay a file with hash_ids, or leave it out"
    )


def test_closed_loops_are_refused() -> None:
    closed = Workload.single_class(None, np.full(5, 10), np.full(5, 10))
    with pytest.raises(BadInputError, match="arrival times"):
        simulate_fleet(closed, [plan()], Fleet(1, EngineLimits(4)), SLA)


def test_routers_choose_by_load() -> None:
    loads = np.array([3, 1, 2])
    assert LeastLoaded(loads, np.random.default_rng(0)).choose(0) == 1
    router = PowerOfTwo(loads, np.random.default_rng(0))
    chosen = np.bincount([router.choose(i) for i in range(3000)], minlength=3) / 3000
    # With replacement: the busiest wins only against itself, the idlest in 5 of 9 pairs.
    assert chosen == pytest.approx([1 / 9, 5 / 9, 3 / 9], abs=0.03)


def test_a_fleet_resumes_from_its_finished_pods(tmp_path: Path) -> None:
    fleet = Fleet(4, EngineLimits(16), pods=2)
    whole = simulate_fleet(traffic(20), [plan()], fleet, SLA)
    kept = simulate_fleet(traffic(20), [plan()], fleet, SLA, directory=tmp_path)
    pods = sorted((tmp_path / "cells").glob("*.parquet"))
    assert len(pods) == 2
    pods[0].unlink()  # as if killed before its end
    left = pods[1].stat().st_mtime_ns
    resumed = simulate_fleet(traffic(20), [plan()], fleet, SLA, directory=tmp_path)
    assert pods[1].stat().st_mtime_ns == left
    for run in (kept, resumed):
        pd.testing.assert_frame_equal(run.replicas, whole.replicas)
        assert run.assessment == whole.assessment
        assert run.metrics == whole.metrics


@pytest.mark.parametrize(("load", "chosen"), [(3, 0), (4, 1)])
def test_a_prefix_is_left_alone_where_its_holder_is_much_busier(load: int, chosen: int) -> None:
    """Loads of (3, 1, 2) have a mean of 2: up to 1.25 * 2 + 1 = 3.5 the holder is kept. (4, 0, 2): not."""
    loads = np.array([load, 4 - load, 2])
    board = Board(loads, {7: {0}})
    prefix = PrefixBlocks.from_rows([[7]], 16)
    router = PrefixAware(board, prefix, LeastLoaded(loads, np.random.default_rng(0)))
    assert router.choose(0) == chosen


@pytest.mark.parametrize(("growing", "saturated"), [(1, False), (2, True)])
def test_a_fleet_is_saturated_when_more_than_a_hundredth_of_it_is(
    growing: int, saturated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pod of a hundred may look saturated by chance; two are no accident."""
    kept = run_pod(Pod(traffic(20, 100), (plan(),), Fleet(1, EngineLimits(16)), 1, SLA, (0.0, 5.0), seed=0))
    grew = replace(kept, saturated=True, observed=None)
    runs = [kept] * (100 - growing) + [grew] * growing
    monkeypatch.setattr("simulator.fleet.fleet.run_cells", lambda *_, **__: runs)
    run = simulate_fleet(traffic(20), [plan()], Fleet(100, EngineLimits(16)), SLA)
    assert run.assessment.saturated is saturated
