"""A closed loop of equal requests that takes the same steps each time it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.cost.models import CostModel, ThroughputCurve
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.live.checks.speed.engines import executor_for, one_step
from simulator.live.checks.speed.scale import SEED, SpeedScale
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class LoopRun:
    """What one run of a loop showed.

    timings: one row per step. lengths: every decision, int64 [R] each, where they were kept.
    """

    timings: pd.DataFrame
    tokens_per_step: float
    lengths: list[NDArray[np.int64]]


class Loop:
    """A closed loop of equal requests on one executor: run again, it takes the same steps again."""

    def __init__(
        self,
        target: Target,
        draft: Draft,
        acceptance: AcceptanceModel,
        concurrency: int,
        scale: SpeedScale,
        *,
        padded: bool = False,
    ) -> None:
        requests = max(256, 8 * concurrency)  # so many more than slots that cycling shows no pattern
        lengths = [[tokens] * requests for tokens in (scale.prompt_tokens, scale.output_tokens)]
        self.load = Workload.single_class(None, *lengths)
        self.concurrency, self.scale = concurrency, scale
        self.executor = executor_for(
            target, draft, self.load, concurrency, padded=padded, replays=[acceptance.replay(SEED)]
        )

    def measured_cost(self) -> ThroughputCurve:
        """Measure steps of this batch in mid-output, by batch tokens: what schedulers are to believe."""
        executor, requests = self.executor, self.concurrency
        context = self.scale.prompt_tokens + self.scale.output_tokens // 2
        executor.place(np.arange(requests), np.arange(requests), np.full(requests, context))
        drafts = sorted({0, executor.gamma // 2, executor.gamma})
        fastest = [
            min(one_step(executor, requests, context, each).duration_s for _ in range(2 * self.scale.repeats))
            for each in drafts
        ]
        # A curve that noise lets fall would not be one.
        return ThroughputCurve([requests * (1 + each) for each in drafts], 1 / np.maximum.accumulate(fastest))

    def run(self, scheduler: Scheduler, believed: CostModel, *, keep_lengths: bool = False) -> LoopRun:
        """``scale.steps`` steps from the beginning."""
        observed = self.executor.observe(scheduler, keep_records=keep_lengths)
        self.executor.timings.clear()
        limits, steps = EngineLimits(self.concurrency), self.scale.steps
        engine = run_engine(self.load, self.executor, observed, believed, limits, seed=SEED, steps=steps)
        committed = sum(step.committed_tokens for step in engine.steps)
        # One more step has run than the loop has delivered.
        return LoopRun(
            pd.DataFrame(self.executor.timings[:steps]),
            committed / steps,
            [record.lengths.cpu().numpy() for record in observed.records],
        )


def check_acceptance(draft: Draft, acceptance: AcceptanceModel) -> None:
    """Refuse acceptance of another block size than the draft's, or without confidences."""
    if acceptance.gamma != draft.gamma:
        raise BadInputError(
            f"has another block size than the draft's {draft.gamma}", source=acceptance.name,
            field="acceptance", value=acceptance.gamma,
            remedy="cut it with truncated(gamma), or take a draft of its block size",
        )  # fmt: skip
    if not acceptance.has_confidence:
        raise BadInputError(
            "has no confidences, which the policies measured here schedule by", source=acceptance.name,
            field="acceptance", remedy="take a model of a drafter with a confidence head",
        )  # fmt: skip
