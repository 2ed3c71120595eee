"""What policies ask the believed cost: this batch, its context, and prompts where they count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from simulator.cost.draft import DraftCost
from simulator.cost.models import CostModel, StepCost, ThroughputCurve
from simulator.schedulers.beyond.averages import Goodput
from simulator.schedulers.beyond.gate import OffGate
from simulator.schedulers.beyond.memory import Remembering, Seen
from simulator.schedulers.beyond.slo import Balanced, SloFirst
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.engines.trtllm import TensorRTLLM
from simulator.schedulers.engines.vllm import VLLM
from simulator.schedulers.policies import DSpark, DSparkAsync, Tiered
from simulator.schedulers.protocol import Batch, Scheduler

REQUESTS, GAMMA, PROMPTS, CONTEXT = 4, 7, 100, 12_000.0
BLOCKS = range(REQUESTS, REQUESTS * (1 + GAMMA) + 1)
"""Batch tokens of every draft budget, without prompts."""


Asked = set[tuple[int, int, float, int]]


def witness() -> tuple[CostModel, Asked]:
    """A cost of 1 us a row and 1 ms a step, and what it was asked: requests, rows, context, prompts."""
    asked: Asked = set()

    class Witness(ThroughputCurve):
        def _time_s(self, requests, rows, context_tokens, prefill_tokens):  # type: ignore[no-untyped-def]
            asked.update(
                (requests, int(each), context_tokens, prefill_tokens) for each in np.atleast_1d(rows)
            )
            return 1e-3 + 1e-6 * np.asarray(rows)

    return Witness([1], [1000.0]), asked


def decide(policy: Scheduler, target: CostModel) -> Any:
    """One step of 4 requests of which everything is likely, with prompts and context in the batch."""
    survival = np.linspace(0.99, 0.7, REQUESTS * GAMMA, dtype=np.float32).reshape(REQUESTS, GAMMA)
    cost = StepCost(target, DraftCost("parallel", GAMMA, [1, 5], [1e-5, 5e-5]))
    batch = Batch(
        cost, context_tokens=CONTEXT, prefill_tokens=PROMPTS, lagged=survival if policy.lag else None
    )
    if not isinstance(policy, Remembering):
        return policy.schedule(survival, batch)
    memory: Any = policy.start(REQUESTS, GAMMA, ["chat"])
    memory.place(np.arange(REQUESTS), np.zeros(REQUESTS, dtype=np.int64))
    for _ in range(2):  # the second time with an outcome to learn from
        memory.asks(REQUESTS, batch)
        lengths = memory.schedule(survival, batch)
        memory.observe(Seen(lengths, lengths // 2, 0.01, 0.01))
    return lengths


@pytest.mark.parametrize(
    ("policy", "prompts", "rows"),
    [
        (DSpark(), PROMPTS, BLOCKS),
        (DSparkAsync(), PROMPTS, BLOCKS),
        (Tiered((1, 7), 1), PROMPTS, BLOCKS),
        (Goodput(), PROMPTS, range(4, 33, 4)),
        (OffGate(), PROMPTS, BLOCKS),
        (SloFirst((("all", 0.005),)), PROMPTS, BLOCKS),
        (Balanced(), PROMPTS, BLOCKS),
        (SGLang(), 0, BLOCKS),
        (SGLang(ranks=2), 0, BLOCKS),
        (SGLang(prefill=True), PROMPTS, BLOCKS),
        (VLLM(), PROMPTS, BLOCKS),
        (VLLM(prefill=False), 0, BLOCKS),
        (VLLM(captured=(110, 128)), PROMPTS, [10, 28, 29, 30, 31, 32]),
        (VLLM(captured=(16, 40), prefill=False), 0, [16, 40]),
        (TensorRTLLM(), 0, [8, 20, 32]),
        (TensorRTLLM(prefill=True), PROMPTS, [8, 20, 32]),
    ],
    ids=repr,
)
def test_the_cost_is_asked_of_this_batch(policy: Scheduler, prompts: int, rows: Iterable[int]) -> None:
    cost, asked = witness()
    assert decide(policy, cost).sum() > 0
    assert asked == {(REQUESTS, each + prompts, CONTEXT, prompts) for each in rows}


@pytest.mark.parametrize("policy", [SGLang(), VLLM(), TensorRTLLM()], ids=repr)
def test_without_survivals_of_the_past_those_of_now_are_used(policy: Any) -> None:
    survival = np.full((REQUESTS, GAMMA), 0.9, dtype=np.float32)
    now = policy.schedule(survival, Batch(witness()[0]))
    assert now.tolist() == policy.schedule(survival, Batch(witness()[0], lagged=survival)).tolist()


@pytest.mark.parametrize("policy", [SloFirst((("all", 0.005),)), Balanced()], ids=repr)
def test_the_same_for_policies_that_remember(policy: Any) -> None:
    survival, taken = np.full((REQUESTS, GAMMA), 0.9, dtype=np.float32), []
    for lagged in (None, survival):
        memory = policy.start(REQUESTS, GAMMA, ["chat"])
        memory.place(np.arange(REQUESTS), np.zeros(REQUESTS, dtype=np.int64))
        taken.append(memory.schedule(survival, Batch(witness()[0], lagged=lagged)).tolist())
    assert taken[0] == taken[1]
