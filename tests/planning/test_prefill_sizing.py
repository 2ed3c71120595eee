"""A prefill pool is a queue: its waits against closed forms, its size against what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.core.errors import InfeasibleError
from simulator.planning.prefill_sizing import PoolSizing, pool_waits_s
from simulator.sla.terms import parse_sla
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass


def traffic(lengths: str = "fixed:12000/300", **more: str) -> SyntheticTraffic:
    classes = {"default": lengths} | more
    return SyntheticTraffic(
        PoissonArrivals(1.0), tuple(TrafficClass(name, parse_lengths(spec)) for name, spec in classes.items())
    )


def sizing(*terms: str, lengths: str = "fixed:12000/300", speed: float = 6500.0, **more: str) -> PoolSizing:
    parsed = parse_sla(terms or ["tps_mean>=80"]).terms
    return PoolSizing(traffic(lengths, **more), speed, 1, parsed)


def erlang_c(load: float, servers: int) -> float:
    """Probability of waiting in M/M/c."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (4, 0.8), (20, 0.9)])
def test_waits_are_those_of_m_m_c(servers: int, utilisation: float) -> None:
    """Erlang C: P(wait) = C, and E(wait) = C / (c mu - lambda), with mu = 1."""
    rng, load = np.random.default_rng(0), servers * utilisation
    arrival_s, service_s = np.cumsum(rng.exponential(1 / load, 300_000)), rng.exponential(1.0, 300_000)
    waits = pool_waits_s(arrival_s, service_s, servers)[50_000:]
    waiting = erlang_c(load, servers)
    assert (waits > 0).mean() == pytest.approx(waiting, rel=0.03)
    assert waits.mean() == pytest.approx(waiting / (servers - load), rel=0.07)


def test_workers_by_the_mean_wait_of_m_d_1() -> None:
    """8/s of 0.1 s each wait 0.8 * 0.1 / (2 * 0.2) = 0.2 s on one worker (Pollaczek and Khinchine)."""
    slack, tight = (sizing(f"ttft_mean<={ms}ms", lengths="fixed:1000/9", speed=1e4) for ms in (330, 270))
    assert slack.workers(8.0) == 1
    assert tight.workers(8.0) == 2


def test_no_fewer_workers_than_the_prompts_keep_busy() -> None:
    """40/s of 12,000 tokens are 480,000 tokens/s; a worker does 6,500: 73.85 busy workers."""
    assert sizing().workers(40.0) == 74
    assert sizing(speed=12_000).workers(40.0) == 41, "forty would be busy all the time, and their queue grow"
    promised = sizing("ttft_p99<=2s").workers(40.0)
    assert promised is not None
    assert 74 < promised <= 90


def test_a_tighter_promise_and_a_higher_rate_take_more_workers() -> None:
    found = [sizing(f"ttft_p99<={bound}").workers(40.0) for bound in ("1850ms", "1.9s", "2.2s", "4s", "60s")]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) >= 3
    pool = sizing("ttft_p99<=2s")
    assert [pool.workers(rate) for rate in (1.0, 10.0, 40.0, 80.0)] == sorted(
        pool.workers(rate) for rate in (1.0, 10.0, 40.0, 80.0)
    )
    assert pool.workers(40.0, parse_sla(["ttft_p99<=1850ms"]).terms) == found[0]


def test_a_class_may_be_promised_more_than_the_rest() -> None:
    """Long prompts alone take 8 s; only the short ones are promised 1 s."""
    mixed = sizing("chat:ttft_p99<=1s", lengths="fixed:40000/9", speed=5e3, chat="fixed:500/9")
    mixed.check()
    assert mixed.workers(10.0) is not None


def test_a_prompt_that_takes_too_long_alone_is_infeasible() -> None:
    """12,000 tokens at 6,500/s are 1.846 s, however many workers there are."""
    pool = sizing("ttft_p99<=1s")
    assert pool.workers(40.0) is None
    with pytest.raises(
        InfeasibleError, match=r"no prefill pool keeps ttft_p99<=1s.*nearest.*ttft_p99<=1850ms"
    ) as caught:
        pool.check()
    sizing("ttft_p99<=1850ms").check()
    assert (caught.value.binds, caught.value.nearest) == (("ttft_p99<=1s",), ("ttft_p99<=1850ms",))
    assert caught.value.changes == ("replica.prefill_tokens_per_s: at least 12000 instead of 6500",)
    sizing("ttft_p99<=1s", speed=12_000).check()
