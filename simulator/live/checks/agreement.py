"""Whether schedulers decide alike on NumPy, on torch and on a GPU: many random batches, compared exactly.

A batch follows from (seed, index) alone, its policy included, so that one that differs can be looked at
again: ``draw(seed, index)``. What usually separates two implementations is drawn on purpose: equal
survivals within a block and across requests, certain and impossible tokens, step times with staircases and
plateaus, and lagged snapshots in which newcomers count with survival 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.random import random_stream
from simulator.cost import models as cost
from simulator.cost.models import AdditiveCost, CostModel, ThroughputCurve
from simulator.parallel.cells import run_cells
from simulator.parallel.hashing import content_hash
from simulator.schedulers import policies, search
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Batch, Scheduler

MOST_REQUESTS, MOST_DRAFTS, MOST_PREFILL = 256, 8, 512

CHUNK = 2_000
"""Batches that are drawn, decided and compared together: a device is waited for once per chunk."""

CHUNKS_PER_GROUP = 25
"""Chunks between two reports; finished chunks are kept one by one."""

_COSTS = 1024

_LARGEST = MOST_REQUESTS * (1 + MOST_DRAFTS) + MOST_PREFILL

_SCHEDULERS: tuple[Callable[[np.random.Generator, int], Scheduler], ...] = (
    lambda draw, gamma: DSpark(),
    lambda draw, gamma: DSparkAsync(int(draw.integers(0, 4))),
    lambda draw, gamma: Threshold(float(draw.choice([0.0, 0.25, 0.5, 0.7, 0.9, 1.0]))),
    lambda draw, gamma: Tiered(tuple(range(int(draw.integers(0, 2)), gamma + 1, int(draw.integers(1, 3))))),
    lambda draw, gamma: Fixed(int(draw.integers(0, gamma + 1))),
    lambda draw, gamma: Oracle(),
)


@dataclass(frozen=True, slots=True, eq=False)
class RandomBatch:
    """What one decision is made from. survival, lagged: float32 [R, gamma]; lagged may be None."""

    scheduler: Scheduler
    survival: NDArray[np.float32]
    lagged: NDArray[np.float32] | None
    cost: CostModel
    context_tokens: float
    prefill_tokens: int

    def decide(self, survival: Any, lagged: Any) -> Any:
        """Verification lengths int64 [R] from the same numbers as arrays of any namespace."""
        batch = Batch(self.cost, self.context_tokens, self.prefill_tokens, lagged)
        return self.scheduler.schedule(survival, batch)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared with NumPy. differing: batch indices, by torch device."""

    seed: int
    batches: int
    devices: tuple[str, ...]
    differing: dict[str, list[int]] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The result for a person, with what repeats a batch that differed."""
        found = {device: indices for device, indices in self.differing.items() if indices}
        where = ", ".join(f"torch on {device}" for device in self.devices)
        said = f"{self.batches:,} random batches of seed {self.seed}, NumPy against {where}: "
        if not found:
            return said + "every decision is the same"
        return said + "; ".join(
            f"{len(indices):,} differ on {device}, the first is draw({self.seed}, {indices[0]})"
            for device, indices in found.items()
        )

    def check(self) -> None:
        """Raise ``InfeasibleError`` if any decision differed."""
        if any(self.differing.values()):
            raise InfeasibleError(self.line)


def compare(
    *,
    seed: int,
    batches: int,
    devices: Sequence[str],
    workers: int,
    directory: Path,
    tell: Callable[[str], None],
) -> Agreement:
    """Decide ``batches`` random batches on NumPy and on each torch device and compare every length.

    devices: of torch, such as ``cpu`` and ``cuda``. workers: processes, each of which uses every device.
    directory: finished chunks are kept there, so that the same call continues an interrupted one.
    """
    if batches < 1 or not devices:
        raise BadInputError(
            "needs at least one batch and one device", field="batches, devices", value=(batches, devices),
            remedy="as in batches=1000, devices=('cpu',)",
        )  # fmt: skip
    chunks = [
        Chunk(seed, first, min(CHUNK, batches - first), tuple(devices)) for first in range(0, batches, CHUNK)
    ]
    differing: dict[str, list[int]] = {device: [] for device in devices}
    for start in range(0, len(chunks), CHUNKS_PER_GROUP):
        group = chunks[start : start + CHUNKS_PER_GROUP]
        kept = directory / f"{'-'.join(devices)}-{seed}-{group[0].first}-{group[-1].stop}-{_fingerprint()}"
        for row in run_cells(compare_chunk, group, workers=workers, directory=kept):
            for device in devices:
                differing[device] += row[device]
        tell(f"{group[-1].stop:,} of {batches:,} compared, {sum(map(len, differing.values()))} differ")
    return Agreement(seed, batches, tuple(devices), differing)


def _fingerprint() -> str:
    """Of the code on trial: what an earlier version decided is not taken for this one's."""
    return content_hash(*(Path(str(module.__file__)).read_bytes() for module in (search, policies, cost)))[:8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive batches, by index, and the devices that decide them."""

    seed: int
    first: int
    batches: int
    devices: tuple[str, ...]

    @property
    def stop(self) -> int:
        """The index behind the last batch."""
        return self.first + self.batches


def compare_chunk(chunk: Chunk) -> dict[str, list[int]]:
    """Find the batches that a device decides otherwise than NumPy: indices by device."""
    torch.set_num_threads(1)  # arrays are small: threads would only wait for one another
    batches = [draw(chunk.seed, index) for index in range(chunk.first, chunk.stop)]
    expected = np.concatenate([batch.decide(batch.survival, batch.lagged) for batch in batches])
    owner = np.repeat(np.arange(chunk.first, chunk.stop), [len(batch.survival) for batch in batches])
    return {
        device: np.unique(owner[expected != _decided_on(device, batches)]).tolist()
        for device in chunk.devices
    }


def _decided_on(device: str, batches: Sequence[RandomBatch]) -> NDArray[np.int64]:
    """Every batch's lengths one after the other, decided by torch on a device and fetched together."""
    survivals = _moved([batch.survival for batch in batches], device)
    pasts = _moved([batch.lagged for batch in batches if batch.lagged is not None], device)
    decided = [
        batch.decide(survival, None if batch.lagged is None else next(pasts))
        for batch, survival in zip(batches, survivals, strict=True)
    ]
    lengths: NDArray[np.int64] = torch.cat(decided).cpu().numpy()
    return lengths


def _moved(arrays: Sequence[NDArray[np.float32]], device: str) -> Iterator[torch.Tensor]:
    """Arrays [R, gamma] as tensors on a device, all of them copied at once."""
    if not arrays:
        return
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    ends = accumulate(array.size for array in arrays)
    for array, end in zip(arrays, ends, strict=True):
        yield flat[end - array.size : end].view(array.shape)


def draw(seed: int, index: int) -> RandomBatch:
    """Draw the batch of this index: 1 to 256 requests, blocks of 1 to 8 drafts, any policy and step cost."""
    stream = random_stream(seed, f"agreement/{index}")
    requests = int(np.exp(stream.uniform(0.0, np.log(MOST_REQUESTS + 1))))
    gamma = int(stream.integers(1, MOST_DRAFTS + 1))
    scheduler = _SCHEDULERS[index % len(_SCHEDULERS)](stream, gamma)
    survival = _survival(stream, requests, gamma)
    if scheduler.reads_outcome:
        survival = (survival > stream.random((requests, 1), dtype=np.float32)).astype(np.float32)
    return RandomBatch(
        scheduler, survival, _lagged(stream, scheduler, requests, gamma),
        cost=_cost(seed, int(stream.integers(_COSTS))),
        context_tokens=float(requests * stream.integers(0, 8192)),
        prefill_tokens=int(stream.integers(0, MOST_PREFILL)) if stream.random() < 0.3 else 0,
    )  # fmt: skip


def _lagged(
    stream: np.random.Generator, scheduler: Scheduler, requests: int, gamma: int
) -> NDArray[np.float32] | None:
    """Draw an earlier snapshot for policies that read one; now and then none at all, as in a first step."""
    if not scheduler.lag or stream.random() < 0.1:
        return None
    lagged = _survival(stream, requests, gamma)
    lagged[stream.random(requests) < 0.2] = 1.0
    return lagged


def _survival(stream: np.random.Generator, requests: int, gamma: int) -> NDArray[np.float32]:
    """Survival [R, gamma]: any numbers, or confidences on a coarse grid, or requests that resemble others."""
    confidence: NDArray[Any] = stream.random((requests, gamma), dtype=np.float32)
    kind = stream.integers(4)
    if kind == 1:
        confidence = np.round(confidence * 4) / 4  # 0 and 1 among them
    elif kind == 2:
        confidence = confidence[stream.integers(0, max(1, requests // 4), requests)]
    elif kind == 3:
        confidence = 1 - confidence**4 / 2  # mostly sure: deep budgets
    return np.cumprod(confidence, axis=1, dtype=np.float32)


@lru_cache(maxsize=_COSTS)
def _cost(seed: int, number: int) -> CostModel:
    """One of ``_COSTS`` step costs: a line, stairs of two makes, plateaus, or the additive model."""
    stream = random_stream(seed, f"agreement/cost/{number}")
    tile = int(stream.choice([8, 16, 64, 128, 256]))
    tokens = np.arange(1, _LARGEST + tile, tile)
    rise = float(stream.uniform(1e-6, 1e-4))
    stairs = 0.01 + rise * tile * np.arange(len(tokens))
    kind = number % 5
    if kind == 0:
        return ThroughputCurve([1, _LARGEST], [100.0, 1 / (0.01 + rise * _LARGEST)])
    if kind == 1:
        return ThroughputCurve(tokens, 1 / stairs, lookup="ceil")
    if kind == 2:
        return ThroughputCurve(tokens, 1 / stairs, lookup="floor")
    if kind == 3:
        plateaus = 0.01 + rise * tile * np.cumsum(stream.integers(0, 2, len(tokens)))
        return ThroughputCurve(tokens, 1 / plateaus)
    return AdditiveCost(
        0.01, [1, MOST_REQUESTS], [0.0, rise * 10], tokens, stairs - 0.01, context_s_per_token=1e-9,
        row_context_s_per_token=float(stream.choice([0.0, 1e-10])), prefill_s_per_token=1e-6,
    )  # fmt: skip
