"""What the live engine captures and times: token tiers, CUDA graphs, and marks on the device's clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from simulator.core.errors import BadInputError
from simulator.live.clock import now_s


@dataclass(frozen=True, slots=True)
class Tiers:
    """Sizes that passes are padded to, so that a CUDA graph recorded for one size serves many batches.

    rows: of a forward pass; requests: of a batch; context: positions of a context that attention is
    prepared to read. Each strictly increasing; empty means that passes run at their exact size.
    """

    rows: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()
    context: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "requests", "context"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)) or any(size < 1 for size in sizes):
                raise BadInputError(
                    "must be increasing sizes of at least 1", field=f"tiers {name}", value=sizes
                )

    @classmethod
    def for_cuda(cls, rows: int, requests: int, context: int) -> Tiers:
        """Tiers up to these sizes: fine where a step is cheap and padding shows, coarse further up."""
        return cls(_spread(rows), _spread(requests), _doubling(512, context))

    @staticmethod
    def fit(tiers: tuple[int, ...], size: int) -> int:
        """Find the smallest tier that holds ``size``, or ``size`` itself where none does."""
        at = bisect_left(tiers, size)
        return tiers[at] if at < len(tiers) else size


def _spread(largest: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then steps of an eighth of the power of two below, ending at ``largest`` or above."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < largest:
        sizes.append(sizes[-1] + max(8, 2 ** (sizes[-1].bit_length() - 1) // 8))
    return tuple(sizes)


def _doubling(first: int, largest: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


class Captured:
    """Runs passes over static buffers: at once on a CPU, as a CUDA graph per key on a GPU.

    A pass must be idempotent (it is run a few times before it is recorded) and leave its results in
    buffers that exist already: all graphs share one memory pool.
    """

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        self.device, self.graphs = device, graphs and device.type == "cuda"
        self.capture_s = 0.0
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.graphs else None

    @property
    def recorded(self) -> int:
        """Graphs recorded so far."""
        return len(self._recorded)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run ``work``, or replay what was recorded of it under ``key``, which must tell its shapes apart."""
        if not self.graphs:
            work()
            return
        if key not in self._recorded:
            self._record(key, work)
        self._recorded[key].replay()

    def _record(self, key: Hashable, work: Callable[[], None]) -> None:
        torch.cuda.synchronize(self.device)
        start_s = now_s()
        side: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        torch.cuda.synchronize(self.device)
        self._recorded[key] = graph
        self.capture_s += now_s() - start_s
