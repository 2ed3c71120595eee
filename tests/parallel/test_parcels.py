"""Cells on their way to workers: small, and what is large travels once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from simulator.acceptance.trace import AcceptanceTrace
from simulator.capacity.search import Search
from simulator.capacity.server import Server
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.fleet.layout import Fleet
from simulator.fleet.pod import FleetPart
from simulator.parallel import parcels
from simulator.parallel.batches import BATCH_S, Batches
from simulator.parallel.cells import run_cells
from simulator.parallel.hashing import content_hash
from simulator.parallel.parcels import Packer
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.sweeps.frontier import FrontierRun
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.sources import ReplayTraffic
from simulator.traffic.workload import PrefixBlocks, Workload
from tests.support.engines import constant_cost
from tests.support.recorded_cells import seen_of, trace_of

ROWS = 20_000


@pytest.fixture(autouse=True)
def importable_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    parcels._held.clear()
    yield
    parcels._held.clear()


def setup(acceptance: AcceptanceTrace) -> Setup:
    return Setup(parse_policy("dspark-async"), "drafter", acceptance, constant_cost(), constant_cost())


def recording(requests: int = 5000) -> Workload:
    """A recorded workload with prefixes, as Mooncake's."""
    tokens = np.full(requests, 512)
    prefix = PrefixBlocks.from_rows([[request] * 8 for request in range(requests)], 64)
    return Workload.single_class(np.arange(requests) / 3, tokens, tokens, prefix=prefix)


def cells() -> list[object]:
    """A cell of each kind, over a recorded trace and recorded traffic."""
    plan, sla, load = setup(trace_of(ROWS)), parse_sla(["tps_p10>=50"]), recording()
    server = Server((plan,), EngineLimits(64), sla, ReplayTraffic(load), 500, 0)
    return [
        FrontierRun(plan, EngineLimits(64), parse_lengths("default"), None, 0),
        Search(server, 0.05),
        FleetPart(load, (plan,), Fleet(4, EngineLimits(64)), sla, (0.0, 9.0), 0, 1),
    ]


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: type(cell).__name__)
def test_a_cell_is_10_kB_at_most_whatever_it_is_about(cell: object) -> None:
    sent: dict[str, bytes] = {}
    parcel = Packer(sent.__setitem__).pack(cell)
    assert len(parcel.content) <= 10_000 < len(pickle.dumps(cell))
    assert set(parcel.digests) == set(sent)
    assert content_hash(parcel.opened(sent.__getitem__)) == content_hash(cell)


def test_cells_share_what_is_equal_and_ask_for_it_once() -> None:
    sent: list[str] = []
    kept: dict[str, bytes] = {}

    def send(digest: str, pickled: bytes) -> None:
        sent.append(digest)
        kept[digest] = pickled

    packer = Packer(send)
    packed = [packer.pack(("cell", number, trace_of(ROWS))) for number in range(3)]  # equal, and not the same
    packed.append(packer.pack(("cell", 3, trace_of(ROWS, seed=1))))
    assert len(sent) == len(set(sent)) == 2
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return kept[digest]

    opened = [parcel.opened(fetch) for parcel in packed]
    assert sorted(asked) == sorted(sent)
    assert [number for _, number, _ in opened] == [0, 1, 2, 3]
    assert opened[0][2] is opened[1][2] is opened[2][2]
    assert opened[3][2] is not opened[0][2]


def test_a_worker_forgets_what_has_not_been_used_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, bytes] = {}
    packer = Packer(kept.__setitem__)
    packed = [packer.pack(np.full(1000, number)) for number in range(3)]
    monkeypatch.setattr(parcels, "KEPT", 2 * max(map(len, kept.values())))
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return kept[digest]

    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1
        assert packed[index].opened(fetch)[0] == index
    assert asked == [packed[index].digests[0] for index in (0, 1, 2, 1)]


def test_cells_of_a_worker_meet_the_same_object() -> None:
    """So a replay that is kept by the identity of its trace is realised once in each worker."""
    recorded = trace_of(ROWS)
    rows = run_cells(seen_of, [(number, setup(recorded)) for number in range(12)], workers=2)
    workers = {row["process"] for row in rows}
    assert len({(row["process"], row["model"]) for row in rows}) == len(workers)
    realised = [row["realised"] for row in rows]
    assert max(realised) <= 1


def test_batches_grow_with_what_cells_take_and_shrink_towards_the_end() -> None:
    packer = Packer(lambda digest, pickled: None)
    batches = Batches(len, [(number, ()) for number in range(1000)], 4, packer)
    sizes = []
    while (batch := batches.next()) is not None:
        sizes.append(len(batch[0]))
        batches.learn(sizes[-1], sizes[-1] * BATCH_S / 40)
    assert sizes[:6] == [1, 2, 4, 8, 16, 32]
    assert max(sizes) == 40  # so many take the time of a batch
    assert sizes[-8:] == [1] * 8
    assert sum(sizes) == 1000


def test_slow_cells_stay_alone() -> None:
    batches = Batches(len, [(number, ()) for number in range(9)], 2, Packer(lambda digest, pickled: None))
    while (batch := batches.next()) is not None:
        assert len(batch[0]) == 1
        batches.learn(1, 60.0)
