"""How much is measured, and the fastest of several runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from simulator.core.errors import BadInputError
from simulator.live.device import OutOfMemoryError, Tell, synchronise
from simulator.live.models.targets import Target
from simulator.schedulers.parse import parse_policy

SETTLED = 8
"""Output tokens of every request before decoding is timed against ``generate``."""

SEED = 0
"""Of prompts, draws and replays: every side of a comparison meets the same."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedScale:
    """How much is measured; the defaults are for a GPU.

    concurrency: requests of the closed loops. batches: requests decoded against ``generate``. contexts:
    positions of the single request of ``bandwidth_floor``. prompt_tokens, output_tokens: of every request.
    steps: of each run. repeats: runs of each side. policies: verified ragged and padded. copy_bytes: of the
    bandwidth measurement, None for what leaves caches behind. Raises ``BadInputError`` that names the field.
    """

    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    batches: tuple[int, ...] = (1, 8)
    contexts: tuple[int, ...] = (512, 2048, 8192)
    prompt_tokens: int = 512
    output_tokens: int = 256
    steps: int = 100
    repeats: int = 5
    policies: tuple[str, ...] = ("dspark-async", "threshold:0.5")
    copy_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "batches", "contexts"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise BadInputError(
                    "must be increasing sizes from 1 up", field=name, value=sizes, remedy="as in (1, 8)"
                )
        least = {"prompt_tokens": 1, "output_tokens": 2 * SETTLED, "steps": 1, "repeats": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise BadInputError(
                    "is too small", field=name, value=getattr(self, name), remedy=f"at least {smallest}"
                )
        for policy in self.policies:
            parse_policy(policy)

    @classmethod
    def for_cpu(cls) -> SpeedScale:
        """Choose what a tiny pair gets through on a CPU in a minute or two."""
        return cls(
            concurrency=(1, 4, 16), contexts=(64, 256, 640), prompt_tokens=64, output_tokens=64, steps=40,
            repeats=5,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest of several runs in seconds; spread: how much slower the slowest was, relative to it."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Best:
        """Of at least one run."""
        return cls(min(seconds), max(seconds) / min(seconds) - 1)


def interleaved(sides: Mapping[str, Callable[[], _Result]], repeats: int) -> dict[str, list[_Result]]:
    """Results of each side, called in turn, after one round that does not count."""
    for run in sides.values():
        run()
    taken: dict[str, list[_Result]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            taken[name].append(run())
    return taken


@contextmanager
def cell(what: str, target: Target, tell: Tell) -> Iterator[None]:
    """Run a part of a measurement: left out where memory does not suffice, and its memory freed behind it."""
    try:
        yield
    except OutOfMemoryError as error:
        tell(f"left out {what}: {error}")
    finally:
        gc.collect()
        if target.device.type == "cuda":
            torch.cuda.empty_cache()
            synchronise(target.device)
