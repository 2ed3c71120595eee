"""The engine that is measured, and one step of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.cost.models import ThroughputCurve
from simulator.live.checks.speed.scale import SEED
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.observed import StepTiming
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.schedulers.policies import Fixed
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload

ANY_COST = ThroughputCurve([1], [1.0])
"""For schedulers that do not ask."""


def executor_for(
    target: Target, draft: Draft | None, load: Workload, requests: int, *, padded: bool = False,
    keep_tokens: bool = False, **options: Any,
) -> LiveExecutor:  # fmt: skip
    """Build an engine for this load; ``padded`` verifies as many rows as whole blocks have in any case."""
    block = 1 + (0 if draft is None else draft.gamma)
    tiers = Tiers()
    if target.device.type == "cuda":
        longest = int((load.prompt_tokens + load.output_tokens).max()) + 2 * block
        tiers = Tiers.for_cuda(requests * block, requests, longest)
    if padded:
        tiers = replace(tiers, rows=(block * Tiers.fit(tiers.requests, requests),))
    return LiveExecutor(
        target, draft, load, concurrency=requests, prompts=random_prompts(target.vocab_size, SEED),
        options=LiveOptions(tiers=tiers, keep_tokens=keep_tokens, seed=SEED), **options,
    )  # fmt: skip


def one_step(executor: LiveExecutor, requests: int, context: int, drafts: int) -> StepTiming:
    """One step of so many requests at this context, each verifying ``drafts`` tokens, known beforehand."""
    scheduler = executor.observe(Fixed(drafts))
    executor.pretend(requests, context)
    survival = executor.draft(requests)
    executor.verify(scheduler.schedule(survival, Batch(ANY_COST)), 0.0)
    return executor.timings[-1]
