"""Graph memory, on a device that only counts: what is recorded, forgotten and given back."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
import torch

from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Captured, Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.models.pairs import new_dspark
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget

CPU = torch.device("cpu")


class Device:
    """A device of 1000 bytes. A graph keeps 10; its pool is as large as the largest pass ever recorded in it.

    A pool is given back when the last of its graphs is: PyTorch's rule.
    """

    def __init__(self) -> None:
        self.pools: dict[int, int] = {}
        self.alive: list[FakeGraph] = []
        self.pools_made = self.now_recording = 0
        self.recorded: list[int] = []

    def record(self, work: Callable[[], None], pool: Any) -> FakeGraph:
        work()
        self.recorded.append(self.now_recording)
        self.pools[pool] = max(self.pools.get(pool, 0), self.now_recording)
        graph = FakeGraph(self, work, pool)
        self.alive.append(graph)
        return graph

    def new_pool(self) -> int:
        self.pools_made += 1
        return self.pools_made

    def free_bytes(self) -> int:
        used = {graph.pool for graph in self.alive}
        return 1000 - 10 * len(self.alive) - sum(self.pools[pool] for pool in used)

    def passing(self, size: int) -> Callable[[], None]:
        """A pass that needs so many bytes while it runs."""

        def work() -> None:
            self.now_recording = size

        return work


class FakeGraph:
    def __init__(self, device: Device, work: Callable[[], None], pool: Any) -> None:
        self.device, self.work, self.pool = device, work, pool

    def replay(self) -> None:
        assert self in self.device.alive, "replayed after it was given back"
        self.work()

    def reset(self) -> None:
        self.device.alive.remove(self)


def run(captured: Captured, device: Device, *sizes: int) -> None:
    for size in sizes:
        captured.run(size, device.passing(size))
        assert device.now_recording == size


def test_a_shared_pool_is_as_large_as_its_largest_pass() -> None:
    device = Device()
    captured = Captured(CPU, recorder=device, limit_bytes=500)
    run(captured, device, 200, 100, 50, 100, 200)
    assert device.recorded == [200, 100, 50]
    assert captured.held_bytes == 1000 - device.free_bytes() == 200 + 3 * 10
    assert captured.recorded == 3


def test_what_was_run_least_recently_is_forgotten_and_recorded_again() -> None:
    device = Device()
    captured = Captured(CPU, recorder=device, limit_bytes=135)
    run(captured, device, 100, 1, 2, 1)  # 130 bytes held
    run(captured, device, 3)  # forgets 100, whose pool the others still use
    assert captured.recorded == 3
    assert captured.held_bytes == 1000 - device.free_bytes() == 130
    run(captured, device, 2, 1, 3)
    assert device.recorded == [100, 1, 2, 3]
    run(captured, device, 100)
    assert device.recorded == [100, 1, 2, 3, 100]
    assert captured.held_bytes <= 135


def test_a_pool_that_others_made_too_large_is_left_behind() -> None:
    device = Device()
    captured = Captured(CPU, recorder=device, limit_bytes=60)
    run(captured, device, 40)
    captured.limit_bytes = 45
    run(captured, device, 5)
    assert device.pools_made == 2
    assert captured.held_bytes == 1000 - device.free_bytes() == 15
    run(captured, device, 5, 6)
    assert captured.held_bytes == 26


def test_one_pass_larger_than_all_is_kept_alone_and_not_recorded_at_every_run() -> None:
    device = Device()
    captured = Captured(CPU, recorder=device, limit_bytes=60)
    run(captured, device, 300, 300, 300)
    assert device.recorded == [300]
    run(captured, device, 20, 20)
    assert captured.held_bytes == 1000 - device.free_bytes() == 30


@pytest.mark.parametrize("sizes", [range(1, 30), range(29, 0, -1), [7, 29, 3, 29, 7, 11, 3] * 4])
def test_held_bytes_are_bounded_whatever_comes(sizes: Any) -> None:
    device = Device()
    captured = Captured(CPU, recorder=device, limit_bytes=80)
    for size in sizes:
        run(captured, device, size)
        assert captured.held_bytes == 1000 - device.free_bytes() <= 80


def test_a_cpu_records_nothing() -> None:
    captured, ran = Captured(CPU), list[Hashable]()
    captured.run("a", lambda: ran.append("a"))
    captured.run("a", lambda: ran.append("a"))
    assert (captured.records, captured.recorded, ran) == (False, 0, ["a", "a"])


def test_the_engine_records_its_largest_passes_first(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target()
    draft: Any = new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=4)
    keys: list[Any] = []

    def recorded(captured: Captured, key: Any, work: Callable[[], None]) -> None:
        keys.append(key)
        work()

    monkeypatch.setattr(Captured, "run", recorded)
    monkeypatch.setattr(Captured, "records", True)
    load = Workload.single_class(None, np.full(8, 100), np.full(8, 20))
    tiers = Tiers(rows=(8, 16, 32), requests=(2, 4, 8), context=(64, 128))
    executor = LiveExecutor(
        target, draft, load, concurrency=5, prompts=lambda request, n: np.full(n, 3),
        options=LiveOptions(tiers=tiers),
    )  # fmt: skip
    capacity = executor.passes.cache.capacity
    # Eight requests hold the five asked for, in blocks of five rows; no tier holds 40 rows.
    assert keys == [("verify", 8, 40, capacity, 5), ("draft", 8, 40, capacity)]
