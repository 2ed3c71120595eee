"""The share of a step in which the device waits for the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.live.checks.speed.closed_loop import Loop, LoopRun, check_acceptance
from simulator.live.checks.speed.scale import SpeedScale, cell, interleaved
from simulator.live.device import Tell
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.schedulers.parse import parse_policy


@dataclass(frozen=True, slots=True)
class VisibleRow:
    """Scheduling that no pass hides, under one policy.

    steps: in which no CUDA graph was recorded; visible_us and step_ms are means over these. lowest_share,
    highest_share: of single runs.
    """

    policy: str
    concurrency: int
    steps: int
    visible_us: float
    step_ms: float
    visible_share: float
    lowest_share: float
    highest_share: float

    @classmethod
    def of(cls, policy: str, concurrency: int, runs: Sequence[LoopRun]) -> VisibleRow:
        """Of several runs under the policy."""
        timings = [run.timings[run.timings["capture_s"] == 0] for run in runs]
        shares = [one["visible_schedule_s"].sum() / one["duration_s"].sum() for one in timings if len(one)]
        together = pd.concat(timings)
        visible_s, step_s = (float(together[name].mean()) for name in ("visible_schedule_s", "duration_s"))
        return cls(
            policy=policy,
            concurrency=concurrency,
            steps=len(together),
            visible_us=1e6 * visible_s,
            step_ms=1e3 * step_s,
            visible_share=visible_s / step_s,
            lowest_share=min(shares),
            highest_share=max(shares),
        )

    def __str__(self) -> str:
        return f"{self.policy} at {self.concurrency}: {self.visible_share:.2%} of a step"


def visible_scheduling(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> pd.DataFrame:
    """Measure the share of a step between the draft's end and the target's beginning, by the device's clock.

    Columns: those of ``VisibleRow``.
    """
    check_acceptance(draft, acceptance)
    rows: list[VisibleRow] = []
    for concurrency in scale.concurrency:
        with cell(f"scheduling at {concurrency}", target, tell):
            found = _visible_rows(target, draft, acceptance, concurrency, scale)
            rows += found
            for row in found:
                tell(str(row))
    return pd.DataFrame(rows)


def _visible_rows(
    target: Target, draft: Draft, acceptance: AcceptanceModel, concurrency: int, scale: SpeedScale
) -> list[VisibleRow]:
    loop = Loop(target, draft, acceptance, concurrency, scale)
    believed = loop.measured_cost()
    schedulers = {policy: parse_policy(policy).scheduler for policy in ("dspark", "dspark-async")}
    taken = interleaved(
        {policy: partial(loop.run, scheduler, believed) for policy, scheduler in schedulers.items()},
        scale.repeats,
    )
    return [VisibleRow.of(policy, concurrency, runs) for policy, runs in taken.items()]
