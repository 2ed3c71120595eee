"""The live engine: lossless under every scheduler, through joins, moves and leaves; trace-driven; faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from simulator.acceptance.trace import Replay
from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.engine.executor import Chunk, PromptRows, SchedulerError
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine, simulate
from simulator.live.device import OutOfMemoryError
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompt_rows import prompt_rows_for
from simulator.live.models.pairs import new_dspark, new_mtp
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget, randomise

STAIRCASE = ThroughputCurve([1, 8, 9, 20, 21, 64], [100.0, 99.0, 80.0, 79.0, 50.0, 40.0])
POLICIES: dict[str, Callable[[], Any]] = {
    "fixed 3": lambda: Fixed(3),
    "threshold": lambda: Threshold(0.4),
    "dspark": DSpark,
    "async": DSparkAsync,
    "tiered": lambda: Tiered((0, 2, 4)),
}


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(num_hidden_layers=2, spread=0.1)


@pytest.fixture(scope="module")
def draft(target: Any) -> Any:
    draft = new_dspark(target, mask_token_id=5, block_size=4, num_layers=2, markov_rank=4)
    randomise(draft, seed=3, spread=0.2)
    return draft


def workload(requests: int, seed: int = 0, closed: bool = False) -> Workload:
    draw = np.random.default_rng(seed)
    arrival = None if closed else np.sort(draw.uniform(0, 1e-3, requests))
    return Workload.single_class(arrival, draw.integers(1, 12, requests), draw.integers(1, 30, requests))


def prompts(request: int, tokens: int) -> Any:
    return np.random.default_rng(request).integers(0, 64, tokens)


def own_greedy(target: Any, prompt: list[int], tokens: int) -> list[int]:
    """The target's own output, one token at a time over its own cache."""
    cache, ids, last = target.new_cache(), [], torch.tensor([prompt])
    for _ in range(tokens):
        last = target.forward(last, cache=cache).logits[:, -1:].argmax(-1)
        ids.append(int(last))
    return ids


@pytest.fixture(scope="module")
def own(target: Any) -> Callable[[int, int, int], list[int]]:
    """``own_greedy`` by request, prompt tokens and output tokens, each once."""
    return cache(
        lambda request, prompt, output: own_greedy(target, prompts(request, prompt).tolist(), output)
    )


class Prophet:
    """A draft that says what usually follows a token in these outputs: right often, but not always.

    Acceptance then varies from none to the whole block, which random weights would never show.
    """

    def __init__(self, inner: Any, outputs: Iterable[list[int]]) -> None:
        self.inner, self.after = inner, torch.arange(64)
        for tokens in outputs:
            self.after[tokens[:-1]] = torch.tensor(tokens[1:], dtype=torch.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def propose(self, features: Any, tokens: Any, counts: Any, cache: Any, **options: Any) -> Any:
        proposal = self.inner.propose(features, tokens, counts, cache, **options)
        guesses = [self.after[tokens[counts.cumsum(0) - 1]]]
        for _ in range(self.gamma - 1):
            guesses.append(self.after[guesses[-1]])
        return replace(proposal, tokens=torch.stack(guesses, dim=1))


def serve(
    executor: LiveExecutor, scheduler: Any, load: Workload, limits: EngineLimits, **options: Any
) -> Any:
    return run_engine(
        load, executor, executor.observe(scheduler, keep_records=True), STAIRCASE, limits, **options
    )


@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_greedy_output_is_the_targets_own(
    target: Any, draft: Any, own: Any, policy: Callable[[], Any], concurrency: int
) -> None:
    load = workload(6 + concurrency)
    sizes = zip(load.prompt_tokens.tolist(), load.output_tokens.tolist(), strict=True)
    expected = {request: own(request, *size) for request, size in enumerate(sizes)}
    prophet: Any = Prophet(draft, expected.values())
    tiers = (
        Tiers(rows=(4, 8, 16, 32, 64), requests=(2, 4, 8), context=(16, 64)) if concurrency == 3 else Tiers()
    )
    executor = LiveExecutor(
        target, prophet, load, concurrency=concurrency, prompts=prompts,
        options=LiveOptions(keep_tokens=True, tiers=tiers),
    )  # fmt: skip
    engine = serve(executor, policy(), load, EngineLimits(concurrency))
    assert engine.completed == len(load)
    for request, tokens in expected.items():
        if len(tokens) > 1:
            assert executor.outputs[request][: len(tokens)] == tokens
    assert sum(step.accepted_tokens for step in engine.steps) > 10


@pytest.mark.parametrize(
    ("prefill", "chunk"), [("whole", 16), ("chunked", 3), ("chunked", 16), ("chunked", 400)]
)
def test_every_drafter_and_prefill_in_the_engine(
    target: Any, draft: Any, own: Any, prefill: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.live.engine.prompt_rows.PREFILL_ROWS", 5)
    load, limits = workload(9, seed=4), EngineLimits(4, prefill=prefill, chunk_tokens=chunk)
    for drafter, scheduler in ((None, Fixed(0)), (new_mtp(target), Fixed(1)), (draft, DSpark())):
        executor = LiveExecutor(
            target, drafter, load, concurrency=4, prompts=prompts, options=LiveOptions(keep_tokens=True),
            prompt_rows=prompt_rows_for(load, limits),
        )  # fmt: skip
        engine = serve(executor, scheduler, load, limits)
        assert engine.completed == len(load)
        assert sum(step.prefill_tokens for step in engine.steps) == load.prompt_tokens.sum()
        mixed = [step for step in engine.steps if step.prefill_tokens and step.requests]
        assert bool(mixed) == (prefill == "chunked")
        for request, tokens in executor.outputs.items():
            wanted = int(load.output_tokens[request])
            assert tokens[:wanted] == own(request, int(load.prompt_tokens[request]), wanted)


def test_sampled_runs_repeat_and_differ_by_seed(target: Any, draft: Any) -> None:
    load = workload(6, seed=1)

    def outputs(seed: int) -> dict[int, list[int]]:
        options = LiveOptions(temperature=1.0, seed=seed, keep_tokens=True)
        executor = LiveExecutor(target, draft, load, concurrency=3, prompts=prompts, options=options)
        serve(executor, Fixed(4), load, EngineLimits(3))
        return executor.outputs

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


def make_replay(gamma: int, seed: int = 0) -> Replay:
    draw = np.random.default_rng(seed)
    survival = np.cumprod(draw.beta(6, 1.5, (500, gamma)), axis=1).astype(np.float32)
    accepted = (draw.random((500, 1)) < survival).sum(axis=1).astype(np.uint8)
    return Replay(survival, accepted, np.arange(0, 501, 50))


def two_classes() -> Workload:
    load = workload(12, closed=True)
    return replace(load, class_index=np.arange(12) % 2, classes=("chat", "code"))


@pytest.mark.parametrize("policy", [*POLICIES.values(), Oracle], ids=[*POLICIES, "oracle"])
@pytest.mark.parametrize("load", [workload(12, closed=True), two_classes()], ids=["one", "two classes"])
@pytest.mark.parametrize("prefill", ["elsewhere", "chunked"])
def test_trace_driven_decisions_are_the_simulators(
    target: Any, draft: Any, policy: Callable[[], Any], load: Workload, prefill: Any
) -> None:
    """One closed loop, simulated and live: the same decision in every step, whatever the steps took."""
    replays = [make_replay(4, seed) for seed in range(len(load.classes))]
    limits = EngineLimits(5, prefill=prefill, chunk_tokens=8)
    executor = LiveExecutor(
        target, draft, load, concurrency=5, prompts=prompts, replays=replays,
        prompt_rows=prompt_rows_for(load, limits),
    )  # fmt: skip
    live = serve(executor, policy(), load, limits, steps=25)
    steps = len(live.steps)
    assert steps >= 25
    # A simulated run is measured, for which 40 steps are needed; the first of them are compared.
    simulated = simulate(load, replays, policy(), STAIRCASE, limits, steps=50).steps
    for name in ("requests", "draft_tokens", "accepted_tokens", "committed_tokens"):
        assert [getattr(step, name) for step in live.steps] == simulated[name].tolist()[:steps]
    observed: Any = executor._observed
    decided = sum(step.requests > 0 for step in live.steps)
    assert len(observed.records) in (decided, decided + 1)  # one may be under way when the clock stops
    for record in observed.records:
        batch = Batch(STAIRCASE, record.context_tokens, record.prefill_tokens, record.lagged)
        assert policy().schedule(record.survival.numpy(), batch).tolist() == record.lengths.tolist()


def test_confidences_are_calibrated_before_they_are_scheduled(target: Any, draft: Any) -> None:
    load, temperatures = workload(6, closed=True), (0.5, 1.0, 2.0, 4.0)

    def first_survival(calibration: Any) -> torch.Tensor:
        executor = LiveExecutor(target, draft, load, concurrency=3, prompts=prompts, calibration=calibration)
        serve(executor, Fixed(1), load, EngineLimits(3), steps=3)
        observed: Any = executor._observed
        survival: torch.Tensor = observed.records[0].survival
        return survival

    raw, calibrated = first_survival(None).double(), first_survival(temperatures).double()
    confidence = raw / torch.nn.functional.pad(raw, (1, 0), value=1.0)[:, :-1]
    expected = torch.sigmoid(torch.logit(confidence) / torch.tensor(temperatures)).cumprod(dim=1)
    torch.testing.assert_close(calibrated, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInputError, match="one temperature per drafted token, 4"):
        first_survival((1.0, 2.0))


def test_timings_add_up_and_count_padding(target: Any, draft: Any) -> None:
    load = workload(5, closed=True)
    tiers = Tiers(rows=(8, 64), requests=(4,))
    executor = LiveExecutor(
        target, draft, load, concurrency=3, prompts=prompts, options=LiveOptions(tiers=tiers)
    )
    engine = serve(executor, DSparkAsync(), load, EngineLimits(3), steps=10)
    for step, timing in zip(engine.steps, executor.timings, strict=False):
        assert timing.draft_s + timing.visible_schedule_s + timing.verify_s <= timing.duration_s
        assert timing.duration_s == step.duration_s
        assert (timing.padded_requests, timing.requests) == (4, step.requests)
        assert timing.padded_tokens in (8, 64)
        assert timing.batch_tokens == step.requests + step.draft_tokens < timing.padded_tokens


def test_kv_capacity_makes_requests_queue_and_none_is_lost(target: Any, draft: Any) -> None:
    load = workload(10, seed=2)
    executor = LiveExecutor(target, draft, load, concurrency=8, prompts=prompts)
    engine = serve(executor, DSpark(), load, EngineLimits(8, kv_tokens=60))
    assert engine.completed == 10
    assert max(step.waiting for step in engine.steps) > 0
    assert max(step.requests for step in engine.steps) < 8


class Broken:
    lag, lossless, reason, reads_outcome, draft_tokens = 0, False, "broken on purpose", False, None

    def __init__(self, wrong: Callable[[torch.Tensor], Any]) -> None:
        self.wrong, self.calls = wrong, 0

    def schedule(self, survival: torch.Tensor, batch: Batch) -> Any:
        self.calls += 1
        lengths = torch.zeros(len(survival), dtype=torch.int64)
        return lengths if self.calls <= 2 else self.wrong(lengths)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda lengths: lengths - 1, r"decode step 2: .* row 0 length -1, outside 0\.\.4"),
        (lambda lengths: lengths + 5, r"decode step 2: .* length 5, outside 0\.\.4"),
        (lambda lengths: lengths.float(), r"decode step 2: .*float32 \(2,\) where int64 \(2,\)"),
        (lambda lengths: lengths[:1], r"decode step 2: .*int64 \(1,\) where int64 \(2,\)"),
        (lambda lengths: None, r"decode step 2: .*NoneType"),
    ],
)
def test_invalid_lengths_are_named_with_their_step(
    target: Any, draft: Any, wrong: Callable[..., Any], says: str
) -> None:
    load = workload(6, closed=True)
    executor = LiveExecutor(target, draft, load, concurrency=2, prompts=prompts)
    with pytest.raises(SchedulerError, match=says):
        serve(executor, Broken(wrong), load, EngineLimits(2), steps=10)


def test_what_cannot_run_live_is_refused(target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = workload(6, closed=True)
    executor = LiveExecutor(target, draft, load, concurrency=2, prompts=prompts)
    with pytest.raises(BadInputError, match="knows the outcome"):
        serve(executor, Oracle(), load, EngineLimits(2), steps=3)
    with pytest.raises(BadInputError, match="prompt_rows_for"):
        serve(
            LiveExecutor(target, draft, load, concurrency=6, prompts=prompts), DSpark(), load,
            EngineLimits(6, prefill="chunked", chunk_tokens=12), steps=30,
        )  # fmt: skip
    with pytest.raises(BadInputError, match="cached prefix"):
        executor.prefill(PromptRows(1, (Chunk(0, 3, 1, False),)))
    with pytest.raises(BadInputError, match="block size 4"):
        LiveExecutor(target, draft, load, concurrency=2, prompts=prompts, replays=[make_replay(3)])
    monkeypatch.setattr(
        "simulator.live.models.checkpoints.available_bytes",
        lambda device: 10 * executor.passes.row_bytes(256),
    )
    with pytest.raises(OutOfMemoryError, match="8 requests fit"):
        LiveExecutor(target, draft, load, concurrency=50, prompts=prompts)
