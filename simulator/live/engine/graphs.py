"""What the live engine captures and times: token tiers, CUDA graphs, and marks on the device's clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from simulator.core.errors import BadInputError
from simulator.live.device import now_s


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


GRAPH_BYTES = 4 * 2**30
"""What recorded graphs may hold of a device. A choice: a twentieth of an H100's memory."""


class Graph(Protocol):
    """A recorded pass."""

    def replay(self) -> None:
        """Run it."""

    def reset(self) -> None:
        """Give back what it holds."""


class Recorder(Protocol):
    """Records passes on a device. All graphs of one pool share their temporary memory."""

    def record(self, work: Callable[[], None], pool: Any) -> Graph:
        """Run ``work`` a few times and record it."""

    def new_pool(self) -> Any:
        """Return a handle of a pool of memory that no graph uses yet."""

    def free_bytes(self) -> int:
        """Memory of the device that nobody holds, PyTorch's spare memory given back before."""


class CudaRecorder:
    """CUDA graphs of PyTorch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, work: Callable[[], None], pool: Any) -> Graph:
        """See ``Recorder``."""
        torch.cuda.synchronize(self.device)
        side: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        torch.cuda.synchronize(self.device)
        return graph

    def new_pool(self) -> Any:
        """See ``Recorder``."""
        return torch.cuda.graph_pool_handle()

    def free_bytes(self) -> int:
        """See ``Recorder``."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])


class Captured:
    """Runs passes over static buffers: at once on a CPU, as a CUDA graph per key on a GPU.

    A pass must be idempotent (it is run a few times before it is recorded) and leave its results in
    buffers that exist already: all graphs share one memory pool. Graphs hold ``limit_bytes`` at most, but for
    a single one that is larger: beyond it those run least recently are forgotten, and recorded again when
    they are next run. The pool, which the largest pass sizes, is given back when no graph is left; where
    forgetting others does not suffice, a new pool begins. held_bytes: what recording took of the device.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        graphs: bool = True,
        recorder: Recorder | None = None,
        limit_bytes: int = GRAPH_BYTES,
    ) -> None:
        on_gpu = graphs and device.type == "cuda"
        self._recorder = recorder or (CudaRecorder(device) if on_gpu else None)
        self.limit_bytes, self.held_bytes, self.capture_s = limit_bytes, 0, 0.0
        self._recorded: dict[Hashable, Graph] = {}  # in order of their last run
        self._pool = self._recorder.new_pool() if self._recorder else None

    @property
    def records(self) -> bool:
        """Whether passes are recorded at all."""
        return self._recorder is not None

    @property
    def recorded(self) -> int:
        """Graphs that are held."""
        return len(self._recorded)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run ``work``, or replay what was recorded of it under ``key``, which must tell its shapes apart."""
        if self._recorder is None:
            work()
            return
        if key in self._recorded:
            self._recorded[key] = self._recorded.pop(key)
        else:
            self._record(self._recorder, key, work)
        self._recorded[key].replay()

    def _record(self, recorder: Recorder, key: Hashable, work: Callable[[], None]) -> None:
        start_s, others = now_s(), len(self._recorded)
        self._add(recorder, key, work)
        while self.held_bytes > self.limit_bytes and len(self._recorded) > 1:
            self._forget(recorder, next(iter(self._recorded)))
        if self.held_bytes > self.limit_bytes and others:  # what is left is a pool that others made large
            self._forget(recorder, key)
            self._pool = recorder.new_pool()
            self._add(recorder, key, work)
        self.capture_s += now_s() - start_s

    def _add(self, recorder: Recorder, key: Hashable, work: Callable[[], None]) -> None:
        free = recorder.free_bytes()
        self._recorded[key] = recorder.record(work, self._pool)
        self.held_bytes += max(0, free - recorder.free_bytes())

    def _forget(self, recorder: Recorder, key: Hashable) -> None:
        free = recorder.free_bytes()
        self._recorded.pop(key).reset()
        self.held_bytes -= min(self.held_bytes, max(0, recorder.free_bytes() - free))
