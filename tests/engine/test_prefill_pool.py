"""A pool that prefills elsewhere: what it adds to each time, and that it hides no queue behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from numpy.testing import assert_allclose

from simulator.capacity.search import Search, find_rate
from simulator.capacity.server import Server
from simulator.capacity.trials import Trial, try_rate
from simulator.core.errors import BadInputError
from simulator.cost.models import AdditiveCost, ThroughputCurve
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import load_profile
from simulator.deployment.setup import Setup
from simulator.engine.batch import WAITS
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits, PrefillPool
from simulator.engine.measures.recorded import requests_frame, steps_frame
from simulator.engine.run import advance, simulate
from simulator.engine.simulated import SimulatedExecutor
from simulator.fleet.fleet import simulate_fleet
from simulator.fleet.layout import Fleet
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.policies import Fixed
from simulator.sla.terms import parse_sla
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from simulator.traffic.workload import Workload
from tests.support.engines import TICK, constant_cost, constant_replay, open_loop, run, tokens_cost

QUICK = 1e6
"""Prompt tokens per second of a pool that adds next to nothing: 0.5 ms for a prompt of 500."""


def flash_server(**limits: Any) -> Server:
    """V4-Flash with MTP-1, at most 32 requests at once, prompts of 500 and outputs of 300 tokens."""
    profile = load_profile("deepseek-v4-flash")
    plan = Deployment(profile, profile.acceptance_models()).plan(parse_policy("mtp1"))
    process = SyntheticTraffic(
        PoissonArrivals(60.0), (TrafficClass("default", parse_lengths("fixed:500/300")),)
    )
    sla = parse_sla(["ttft_p99<=2s", "itl_p99<=60ms"])
    return Server((plan,), EngineLimits(32, **limits), sla, process, 1500, 0)


def test_a_quick_pool_changes_nothing_of_what_a_replica_carries() -> None:
    """The full batch bounds it: 32 requests at a time, each as long as a closed loop of 32 takes for one."""
    server = flash_server(prefill_tokens_per_s=QUICK)
    found, plain = (find_rate(Search(each, 0.05)) for each in (server, flash_server()))
    load = server.traffic.workload(0, requests=400)
    plan = server.plans[0]
    full = simulate(
        Workload.single_class(None, load.prompt_tokens, load.output_tokens),
        [plan.replay(0)], plan.scheduler, plan.cost, EngineLimits(32), steps=4000,
    ).metrics  # fmt: skip
    most_per_s = full.throughput_tok_per_s / 299
    assert most_per_s == pytest.approx(11.5, rel=0.02)
    # Without the pool TTFT ends it at 11.1/s, with it the queue alone, seen once it grows by over 5%.
    assert plain.rate_per_s == pytest.approx(11.1, rel=0.03)
    assert found.rate_per_s == pytest.approx(most_per_s, rel=0.07)


def test_overload_behind_a_quick_pool_is_saturation() -> None:
    row = try_rate(Trial(flash_server(prefill_tokens_per_s=QUICK), 60.0))
    assert row.saturated
    assert not row.met
    assert max(WAITS, key=lambda name: row.waits[name]) == "waited_slot_s"


def test_the_wait_for_a_slot_is_in_the_gap_after_the_first_token() -> None:
    """Two requests at once, one slot, a tick per prompt token and worker, a tick per step, in ticks.

    Prompts of 4 and 6, one token and two steps each. The pool is ready with request 0 at 4 and with request 1
    at 10 (one worker) or 6 (two). Request 0 decodes 4 to 6; request 1 then starts when both are there.
    """
    load = open_loop([0.0, 0.0], [3, 3], [4, 6])
    for workers, ready, start in ((1, 10, 10), (2, 6, 6), (None, 6, 6)):
        limits = EngineLimits(1, prefill_tokens_per_s=1 / TICK, prefill_workers=workers)
        engine, _ = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits)
        frame = requests_frame(engine).set_index("request")
        assert (frame["ttft_s"] / TICK).tolist() == [4, ready]
        assert (frame["finished_s"] / TICK).tolist() == [6, start + 2]
        assert (frame["waited_pool_s"] / TICK).tolist() == [0, ready - 6]
    load = open_loop([0.0, 0.0], [6, 3], [4, 6])  # request 0 decodes 4 to 9, request 1 waits 3 of them
    limits = EngineLimits(1, prefill_tokens_per_s=1 / TICK, prefill_workers=2)
    engine, _ = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits)
    frame = requests_frame(engine).set_index("request")
    assert (frame["ttft_s"] / TICK).tolist() == [4, 6]
    assert (frame["first_gap_s"] / TICK).tolist() == [1, 4]
    assert (frame["waited_slot_s"] / TICK).tolist() == [0, 3]
    assert (frame["tpot_s"] / TICK).tolist() == [1, 5 / 2]
    steps = steps_frame(engine)
    assert (steps["handover_s"].sum() / TICK, steps["decoding_s"].sum() / TICK) == (3, 7)


def test_one_token_outputs_are_done_where_the_pool_is_done() -> None:
    """No slot and no KV cache of the decoding engine is needed for them."""
    load = open_loop([0.0, 0.0], [50, 1], [4, 6])
    limits = EngineLimits(1, kv_tokens=60, prefill_tokens_per_s=1 / TICK)
    engine, _ = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits)
    assert (requests_frame(engine).set_index("request")["finished_s"].sort_index() / TICK).tolist() == [
        53,
        10,
    ]


def test_a_prompt_in_the_pool_is_served_once_a_worker_takes_it() -> None:
    """One worker has request 0 from 0 to 4 and request 1 from 4 to 10; request 0's first step ends at 5."""
    load = open_loop([0.0, 0.0], [50, 3], [4, 6])
    limits = EngineLimits(2, prefill_tokens_per_s=1 / TICK)
    engine, _ = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits, steps=1)
    arrived_s, served_s = engine.served_s()
    assert (arrived_s / TICK).tolist() == [0, 0]
    assert (served_s / TICK).tolist() == [0, 4]


def test_the_line_of_the_pool_is_part_of_the_queue() -> None:
    """Four prompts of 5 ticks at once wait 0, 5, 10 and 15 for the only worker: 30 request-ticks."""
    load = open_loop([0.0] * 4, [9] * 4, [5] * 4)
    limits = EngineLimits(4, prefill_tokens_per_s=1 / TICK)
    engine, _ = run(load, constant_replay(2, 0), Fixed(0), constant_cost(), limits)
    steps = steps_frame(engine)
    assert steps["queued_s"].sum() / TICK == 30
    assert steps["waiting"].iloc[0] == 2  # at 6: prompts 2 and 3


def test_an_engine_takes_the_pool_that_it_is_given() -> None:
    """Three workers where its limits say one: prompts of 6 are ready after 6 ticks each, not 6, 12 and 18."""
    load = open_loop([0.0] * 3, [3] * 3, [6] * 3)
    limits = EngineLimits(3, prefill_tokens_per_s=1 / TICK)
    executor = SimulatedExecutor([constant_replay(2, 0)], load, constant_cost(), capacity=3, seed=0)
    engine = Engine(
        simpy.Environment(), load, executor, Fixed(0), constant_cost(), limits, pool=PrefillPool(1 / TICK, 3)
    )
    advance(engine, None)
    assert (requests_frame(engine)["ttft_s"] / TICK).tolist() == [6, 6, 6]


# --- a pool for several replicas -----------------------------------------------------------------


def chat(rate_per_s: float, lengths: str = "fixed:100/20") -> Workload:
    process = SyntheticTraffic(
        PoissonArrivals(rate_per_s), (TrafficClass("default", parse_lengths(lengths)),)
    )
    return process.workload(0, requests=800)


def chat_fleet(**options: Any) -> Any:
    cost = ThroughputCurve([1, 64, 512], [100.0, 70.0, 25.0])
    plan = Setup(parse_policy("autoregressive"), "none", None, cost, cost)
    speed = options.pop("speed", 1000.0)
    workers = options.pop("each", 1)
    limits = EngineLimits(64, prefill_tokens_per_s=speed, prefill_workers=workers)
    sla = parse_sla(["ttft_p99<=10s"])
    return simulate_fleet(options.pop("load"), [plan], Fleet(4, limits, **options), sla)


def first_tokens(run: Any) -> np.ndarray:
    requests = run.observed.requests
    return np.asarray(requests["ttft_s"][np.argsort(requests["queued_s"])])


@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
def test_a_shared_pool_is_one_line_before_all_its_workers(router: str) -> None:
    """TTFT follows the recursion of a queue with three workers, whatever replica a request was dealt to."""
    load = chat(24.0)  # three workers can do 30
    run = chat_fleet(load=load, router=router, prefill_workers=3)
    assert load.arrival_s is not None
    free, expected = [0.0] * 3, []
    for arrival in load.arrival_s.tolist():
        worker = free.index(min(free))
        free[worker] = max(arrival, free[worker]) + 0.1
        expected.append(free[worker] - arrival)
    seen = np.searchsorted(load.arrival_s, run.observed.requests["queued_s"])
    assert_allclose(first_tokens(run), np.array(expected)[np.sort(seen)], rtol=1e-9)


def test_sharing_shortens_the_line() -> None:
    """Four workers in one pool against one each, dealt to in turn: nobody waits beside an idle one."""
    load = chat(28.0, "lognormal:100,cv=1,max=1000/fixed:20")
    shared, apart = (first_tokens(chat_fleet(load=load, prefill_workers=w)).mean() for w in (4, None))
    assert 0.1 < shared < 0.7 * apart


def test_a_shared_pool_that_is_too_small_saturates_the_fleet() -> None:
    assert chat_fleet(load=chat(24.0), prefill_workers=2).assessment.saturated  # 20/s
    assert chat_fleet(load=chat(24.0), prefill_workers=3).assessment.met


def test_every_pod_has_its_share_of_the_pool() -> None:
    limits = EngineLimits(4, prefill_tokens_per_s=1000.0)
    fleet = Fleet(8, limits, router="least-loaded", pods=2, prefill_workers=6)
    assert fleet.pod_count == 2
    pool = fleet.pod_pool()
    assert pool is not None
    assert [pool.take(1000, 0.0)[0] for _ in range(4)] == [0, 0, 0, 1]
    assert Fleet(8, limits, prefill_workers=6).pod_count == 1  # round robin, but with something to share
    with pytest.raises(BadInputError, match="divide evenly among 2 pods"):
        Fleet(8, limits, router="least-loaded", pods=2, prefill_workers=5)


def test_a_pool_without_end_queues_nobody() -> None:
    run = chat_fleet(load=chat(200.0), each=None)
    assert_allclose(first_tokens(run), 0.1, rtol=1e-9)
    assert EngineLimits(4, prefill_tokens_per_s=10.0, prefill_workers=3).pool_tokens_per_s == 30
    assert EngineLimits(4, prefill_tokens_per_s=10.0, prefill_workers=None).pool_tokens_per_s == np.inf
    assert EngineLimits(4, prefill="whole", prefill_tokens_per_s=10.0).pool() is None


def test_inter_token_latencies_are_each_requests_own() -> None:
    """Prompts of 2000 in whole steps, outputs of 76, always in pairs: 75 gaps each, of 10 ms.

    The first of a pair has its first token at 200 ms and waits for the other's prefill: one gap of 210 ms in
    150, which is within the best 99.4%. The second has none.
    """
    pairs = 30
    cost = tokens_cost(1e-4)  # 2000 rows take 0.2 s ...
    load = open_loop(np.repeat(np.arange(pairs) * 2.0, 2), [76] * 2 * pairs, [2000] * 2 * pairs)
    limits = EngineLimits(2, prefill="whole")
    run = simulate(load, [constant_replay(2, 0)], Fixed(0), cost, limits, warmup=0.0)
    first = run.requests.sort_values("request")["first_gap_s"].to_numpy()
    assert_allclose(first[0::2], 0.2002, rtol=1e-9)
    assert_allclose(first[1::2], 0.0002, rtol=1e-9)  # ... and two rows 0.2 ms
    assert run.metrics.itl_p50_s == pytest.approx(0.0002, rel=1e-6)
    assert run.metrics.itl_p99_s == pytest.approx(0.0002, rel=1e-6)


# --- one run of one engine, overloaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "rate_per_s", "cause"),
    [
        (EngineLimits(8), 40.0, "waited_slot_s"),
        (EngineLimits(64, kv_tokens=8 * 130), 40.0, "waited_kv_s"),
        (EngineLimits(8, prefill_tokens_per_s=1e6), 40.0, "waited_slot_s"),
        (EngineLimits(64, prefill_tokens_per_s=1000.0), 20.0, "waited_pool_s"),
        (EngineLimits(999, prefill="chunked", chunk_tokens=50), 20.0, "waited_prefill_s"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_an_overloaded_run_says_so_and_gives_no_latency(
    limits: EngineLimits, rate_per_s: float, cause: str, cut: bool
) -> None:
    """Eight at a time of 20 steps of 20 ms are 20 requests/s, the pool does 10/s, chunks of 50 about 14/s."""
    cost = AdditiveCost(0.02, [1, 2], [0, 0], [50, 100], [0, 0.08], beyond="last-slope")
    load = chat(rate_per_s, "fixed:100/21")
    steps = 150 if cut else None
    run = simulate(load, [constant_replay(2, 0)], Fixed(0), cost, limits, steps=steps)
    assert run.saturated
    assert len(run.requests) < len(load) if cut else len(run.requests) == len(load)
    assert run.requests[list(WAITS)].sum().idxmax() == cause
    row = run.metrics.as_row()
    waiting = {name for name in row if "ttft" in name} | {"queue_mean"}
    if limits.has_pool:
        waiting |= {name for name in row if name.startswith(("tps", "itl", "tpot"))}
    assert {name for name, value in row.items() if np.isnan(value)} == waiting


def test_a_stable_run_a_burst_and_a_closed_loop_are_not_saturated() -> None:
    cost = constant_cost(0.02)
    for load, limits, steps in (
        (chat(10.0, "fixed:100/21"), EngineLimits(8), None),
        (open_loop([0.0] * 200, [21] * 200), EngineLimits(8), None),
        (open_loop([0.0] * 200, [21] * 200), EngineLimits(8), 100),
        (Workload.single_class(None, [1] * 20, [21] * 20), EngineLimits(8), 100),
    ):
        run = simulate(load, [constant_replay(2, 0)], Fixed(0), cost, limits, steps=steps)
        assert not run.saturated
        assert np.isnan(run.metrics.ttft_mean_s) == load.is_closed_loop
