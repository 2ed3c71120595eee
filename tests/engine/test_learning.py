"""Policies that remember, in the engine: they are told of their own rows, and pay for what they ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import simulator as sim
from simulator.acceptance.rates import conditional_rates
from simulator.core.arrays import Array, Rows
from simulator.core.errors import BadInputError
from simulator.cost.asked import Asked
from simulator.cost.draft import DraftCost
from simulator.cost.models import AdditiveCost, StepCost, ThroughputCurve
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.engine.executor import Chunk, PromptRows, learner_of
from simulator.engine.limits import EngineLimits
from simulator.engine.run import Run, simulate
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.beyond.memory import Learner, Remembering, Seen
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.policies import Fixed
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload

MODEL = conditional_rates([0.8, 0.7, 0.6])


class Book(Remembering):
    """Keep what every request got: each request is a traffic class of its own."""

    reason = "the length never depends on a token"

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> Learner:
        self.kept = Entries(capacity, len(classes))
        return self.kept


class Entries(Learner):
    def __init__(self, capacity: int, requests: int) -> None:
        self.of_row = np.full(capacity, -1)
        self.tokens, self.seconds = np.zeros(requests), np.zeros(requests)

    def asks(self, requests: int, batch: Batch) -> Asked:
        return Asked(requests, None)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        return np.arange(len(survival), dtype=np.int64) % 4

    def observe(self, seen: Seen) -> None:
        who = self.of_row[: len(seen.accepted)]
        assert (who >= 0).all()
        assert len(set(who.tolist())) == len(who)
        assert (seen.accepted <= seen.lengths).all()
        self.tokens[who] += seen.accepted + 1
        self.seconds[who] += seen.gap_s

    def place(self, rows: Rows, classes: Rows) -> None:
        self.of_row[rows] = classes

    def move(self, source: Rows, target: Rows) -> None:
        self.of_row[target] = self.of_row[source]


def workload(requests: int, outputs: Sequence[int] = (3, 40, 9, 120, 1)) -> Workload:
    return Workload(
        prompt_tokens=np.full(requests, 50), output_tokens=np.resize(outputs, requests),
        class_index=np.arange(requests), classes=tuple(f"r{n}" for n in range(requests)),
        arrival_s=np.linspace(0, 0.4, requests),
    )  # fmt: skip


def serve(policy: Remembering | Fixed, cost: StepCost | ThroughputCurve, requests: int = 60) -> Run:
    work = workload(requests)
    replays = [MODEL.replay(0)] * requests
    return simulate(work, replays, policy, cost, EngineLimits(6), seed=1)


def test_a_policy_is_told_what_each_of_its_requests_got() -> None:
    """Rows open, are filled and closed; still every request's tokens and time come out as recorded."""
    book = Book()
    run = serve(book, ThroughputCurve([1, 30], [400.0, 200.0]))
    done = run.requests.set_index("request")
    decoded = done["decode_tokens"].reindex(range(60)).to_numpy()
    assert len(done) == 60
    over = book.kept.tokens - decoded
    assert ((over >= 0) & (over <= 3)).all()  # a last block may overshoot the output
    spent = (done["finished_s"] - done["first_token_s"]).reindex(range(60)).to_numpy()
    np.testing.assert_allclose(book.kept.seconds, spent, atol=0.006)


def test_a_drafter_that_is_not_asked_costs_nothing() -> None:
    """With a pass of 50 ms beside steps of 2.5 ms, goodput stops drafting and runs as no speculation does."""
    target = ThroughputCurve([1, 30], [400.0, 399.0])
    dear = StepCost(target, DraftCost("parallel", 3, [1], [0.05]))
    goodput = serve(parse_policy("goodput:probe=100000").scheduler, dear)  # type: ignore[arg-type]
    gate = serve(parse_policy("off-gate:probe=100000").scheduler, dear)  # type: ignore[arg-type]
    without = serve(Fixed(0), target)
    assert goodput.steps["draft_tokens"].sum() == 0
    for run in (goodput, gate):
        assert run.metrics.throughput_tok_per_s == pytest.approx(
            without.metrics.throughput_tok_per_s, rel=1e-9
        )


def test_each_run_begins_with_an_empty_memory_and_equal_seeds_give_equal_steps() -> None:
    flash = sim.deployment("deepseek-v4-flash")
    for text in ("bandit", "utility", "goodput", "moving-average", "off-gate", "slo:12ms", "balanced"):
        policy = sim.policy(text)
        first, second = (flash.simulate(policy, concurrency=20, steps=300, seed=4) for _ in range(2))
        assert first.steps.equals(second.steps), text


def test_weights_raise_the_slow_requests_for_little_of_the_mean() -> None:
    """The same budget, spent otherwise: p10 rises by more than 5%, throughput falls by less than 4%."""
    flash = sim.deployment("deepseek-v4-flash")
    runs = {
        policy: flash.simulate(policy, concurrency=150, steps=1500).metrics
        for policy in ("dspark-async", "balanced")
    }
    assert runs["balanced"].tps_p10 > 1.05 * runs["dspark-async"].tps_p10
    assert runs["balanced"].throughput_tok_per_s > 0.96 * runs["dspark-async"].throughput_tok_per_s


def test_a_live_run_refuses_a_policy_that_remembers() -> None:
    pytest.importorskip("torch", reason="the [live] extra is not installed")
    from simulator.live.engine.observed import ObservedScheduler

    with pytest.raises(BadInputError, match="which only a simulated engine tells it"):
        ObservedScheduler(parse_policy("goodput").scheduler)


def test_a_drafter_without_confidence_serves_policies_that_do_not_read_it() -> None:
    bench = sim.deployment("deepseek-v4-flash", {"mtp": conditional_rates([0.7, 0.5])})
    assert bench.plan("goodput@mtp").drafter == "mtp"
    assert bench.simulate("moving-average@mtp", concurrency=8, steps=200).metrics.throughput_tok_per_s > 0


def test_a_drafter_that_drafts_for_everyone_cannot_be_asked_for_less() -> None:
    """A live executor, for one: a policy that remembers would be told of drafts that it did not ask for."""
    load = Workload.single_class(None, [1], [4])
    with pytest.raises(BadInputError):
        learner_of(Book(), object(), load, EngineLimits(1))  # type: ignore[arg-type]
    assert learner_of(Fixed(1), object(), load, EngineLimits(1)) is None  # type: ignore[arg-type]


def test_prompt_rows_are_paid_for_in_a_step_that_drafts_less() -> None:
    """10 ms a step, 1 ms a prompt token, 50 ms the draft of a block: 66 ms, 16 without a draft."""
    target = AdditiveCost(0.01, [1, 8], [0.0, 0.0], [1, 100], [0.0, 0.0], prefill_s_per_token=0.001)
    cost = StepCost(target, DraftCost("parallel", 3, [1], [0.05]))
    load = Workload.single_class(None, [6, 6], [4, 4])
    replay = parse_acceptance("conditional:0.8,0.8,0.8").replay(0)
    executor = SimulatedExecutor([replay], load, cost, capacity=2, seed=0)
    executor.place(np.arange(2), np.arange(2), np.zeros(2, dtype=np.int64))
    prompts = PromptRows(6, (Chunk(1, 0, 6, True),))
    taken = []
    for asked in (None, Asked(2, 0)):
        if asked is not None:
            executor.ask(asked)
        executor.draft(2)
        taken.append(executor.verify(np.zeros(2, dtype=np.int64), 0.0, prompts).duration_s)
    assert taken == pytest.approx([0.066, 0.016])
