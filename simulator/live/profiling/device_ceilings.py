"""What a device can do at best: copy bandwidth and matmul rate, the reference for what is measured on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simulator.live.device import now_s, synchronise


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best of several runs. bytes_per_s counts what a copy reads and what it writes."""

    bytes_per_s: float
    flop_per_s: float
    dtype: str

    @property
    def line(self) -> str:
        """Both, for a person."""
        rate = f"{self.dtype} matmul {self.flop_per_s / 1e12:.3f} TFLOP/s"
        return f"copies {self.bytes_per_s / 1e9:.1f} GB/s, {rate}"


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, *, copy_bytes: int | None = None, matmul_size: int | None = None
) -> Ceilings:
    """Copy bandwidth of large buffers and matmul rate of large square matrices at ``dtype``.

    Sizes default to what leaves caches behind: 4 GiB and 8192 on a GPU, 256 MiB and 1024 on a CPU.
    """
    on_gpu = device.type == "cuda"
    copy_bytes = copy_bytes or (2**32 if on_gpu else 2**28)
    size = matmul_size or (8192 if on_gpu else 1024)
    source = torch.ones(copy_bytes // 2, dtype=torch.uint8, device=device)
    copied = torch.empty_like(source)
    copy_s = best_s(lambda: copied.copy_(source), device)
    left = torch.randn((size, size), device=device).to(dtype)
    right = torch.randn((size, size), device=device).to(dtype)
    product = torch.empty_like(left)
    matmul_s = best_s(lambda: torch.mm(left, right, out=product), device)
    name = str(dtype).removeprefix("torch.")
    return Ceilings(2 * source.numel() / copy_s, 2 * size**3 / matmul_s, name)


def best_s(work: Callable[[], object], device: torch.device, *, repeats: int = 10) -> float:
    """Time several runs, after two that do not count: the shortest in seconds."""
    times = []
    for _ in range(repeats + 2):
        synchronise(device)
        start_s = now_s()
        work()
        synchronise(device)
        times.append(now_s() - start_s)
    return min(times[2:])
