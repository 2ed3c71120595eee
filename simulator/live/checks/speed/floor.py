"""A step of one request against the time that reading its weights and its keys takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from simulator.live.checks.speed.engines import executor_for, one_step
from simulator.live.checks.speed.scale import Best, SpeedScale, cell, interleaved
from simulator.live.device import Tell
from simulator.live.engine.executor import LiveExecutor
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.device_ceilings import measure_ceilings
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True)
class FloorRow:
    """A step of one request beside the least time that reading takes.

    kind: ``autoregressive``, or ``verify`` of a whole block, without its draft. read_MB: weights once, and
    the keys and values of the context. floor_ms: to read that at copy bandwidth. over_floor: step over
    floor, less 1. The spreads are ``Best``'s.
    """

    kind: str
    context: int
    batch_tokens: int
    step_ms: float
    read_MB: float
    copy_GB_per_s: float
    floor_ms: float
    over_floor: float
    step_spread: float
    copy_spread: float

    @classmethod
    def of(cls, kind: str, context: int, batch_tokens: int, step: Best, copy: Best, read: float) -> FloorRow:
        """Compare a step with copying; copy: seconds a byte. read: bytes."""
        floor_s = read * copy.seconds
        return cls(
            kind=kind,
            context=context,
            batch_tokens=batch_tokens,
            step_ms=1e3 * step.seconds,
            read_MB=read / 1e6,
            copy_GB_per_s=1e-9 / copy.seconds,
            floor_ms=1e3 * floor_s,
            over_floor=step.seconds / floor_s - 1,
            step_spread=step.spread,
            copy_spread=copy.spread,
        )

    def __str__(self) -> str:
        return (
            f"{self.kind} at context {self.context}: {self.step_ms:.3f} ms, "
            f"{self.over_floor:+.0%} over the floor of {self.floor_ms:.3f} ms"
        )


def bandwidth_floor(target: Target, draft: Draft, scale: SpeedScale, tell: Tell) -> pd.DataFrame:
    """Compare a step of one request with the least time that reading takes, at each context.

    Columns: those of ``FloorRow``.
    """
    rows: list[FloorRow] = []
    for context in scale.contexts:
        with cell(f"steps at context {context}", target, tell):
            found = _floor_rows(target, draft, context, scale)
            rows += found
            for row in found:
                tell(str(row))
    return pd.DataFrame(rows)


def _floor_rows(target: Target, draft: Draft, context: int, scale: SpeedScale) -> list[FloorRow]:
    load = Workload.single_class(None, [context + 1], [1])
    executors = {
        "autoregressive": executor_for(target, None, load, 1),
        "verify": executor_for(target, draft, load, 1),
    }
    sides: dict[str, Callable[[], float]] = {
        name: partial(_typical_step_s, executor, context, scale.steps) for name, executor in executors.items()
    }
    taken = interleaved(sides | {"copy": partial(_copy_s_per_byte, target, scale.copy_bytes)}, scale.repeats)
    copy, read = Best.of(taken["copy"]), target.bytes_read(context)
    return [
        FloorRow.of(name, context, 1 + executor.gamma, Best.of(taken[name]), copy, read)
        for name, executor in executors.items()
    ]


def _typical_step_s(executor: LiveExecutor, context: int, steps: int) -> float:
    """Median over so many steps of one request that verifies its whole block; the draft is not counted."""
    timings = [one_step(executor, 1, context, executor.gamma) for _ in range(steps)]
    return float(np.median([timing.duration_s - timing.draft_s for timing in timings]))


def _copy_s_per_byte(target: Target, copy_bytes: int | None) -> float:
    measured = measure_ceilings(target.device, target.dtype, copy_bytes=copy_bytes, matmul_size=64)
    return 1 / measured.bytes_per_s
