"""The engine's own drafting and sampling: what ``generate`` drafts, and the target's distribution.

Losslessness is shown on what the engine commits. Each token is a draw from the target's distribution given
all tokens before it, so sums of (indicator - probability) are martingales, for every event fixed before the
draw. A wrong acceptance rule first shifts the event "a token that the draft likes more than the target does".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from simulator.cost.models import ThroughputCurve
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.models import sampling
from simulator.live.models.pairs import new_dspark
from simulator.live.tracing.generate import generate
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Threshold, Tiered
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget, randomise

VOCABULARY, GAMMA = 4, 3
CURVE = ThroughputCurve([1, 64, 65, 300, 301, 2048], [100.0, 99.0, 70.0, 69.0, 40.0, 20.0])


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(
        vocab_size=VOCABULARY, num_hidden_layers=2, spread=0.2, seed=5, max_position_embeddings=512
    )


@pytest.fixture(scope="module")
def draft(target: Any) -> Any:
    draft = new_dspark(target, mask_token_id=1, block_size=GAMMA, num_layers=2, markov_rank=3)
    randomise(draft, seed=2, spread=0.3)
    return draft


def prompts(request: int, tokens: int) -> Any:
    return np.random.default_rng(request).integers(0, VOCABULARY, tokens)


@pytest.fixture(scope="module")
def wordy_target(make_target: MakeTarget) -> Any:
    """Its greedy output does not settle on one token."""
    return make_target(vocab_size=16, num_hidden_layers=2, spread=0.4, seed=3)


@pytest.fixture(scope="module")
def wordy_draft(wordy_target: Any) -> Any:
    draft = new_dspark(wordy_target, mask_token_id=1, block_size=GAMMA, num_layers=2, markov_rank=3)
    randomise(draft, seed=2, spread=0.3)
    return draft


@pytest.fixture(scope="module")
def alone(wordy_target: Any, wordy_draft: Any) -> Callable[[int, int, int, int], Any]:
    """What ``generate`` does for a request by itself: by request, prompt, output and drafts, each once."""

    @cache
    def generated(request: int, prompt: int, output: int, length: int) -> Any:
        ids = prompts(request, prompt).tolist()
        return generate(wordy_target, wordy_draft, ids, max_new_tokens=output, scheduler=Fixed(length))

    return generated


@dataclass
class Witness:
    """A draft that keeps what it proposed: first-draft distributions [R, V] of each pass over the batch."""

    inner: Any
    first: list[torch.Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def propose(self, features: Any, tokens: Any, counts: Any, cache: Any, **options: Any) -> Any:
        proposal = self.inner.propose(features, tokens, counts, cache, **options)
        if options.get("uniforms") is not None:  # not the passes that only fill the cache
            self.first.append(torch.softmax(proposal.logits[:, 0].float(), dim=-1).clone())
        return proposal


POLICIES: dict[str, Callable[[], Any]] = {
    "whole block": lambda: Fixed(GAMMA),
    "one": lambda: Fixed(1),
    "threshold": lambda: Threshold(0.5),
    "dspark": DSpark,
    "async": DSparkAsync,
    "tiered": lambda: Tiered((0, 1, 3)),
}


def sampled(target: Any, draft: Any, policy: Any, requests: int, tokens: int) -> tuple[float, float]:
    """Standard score of tokens the draft prefers, and chi-square p-value of (token before, token) counts."""
    witness: Any = Witness(draft)
    short = Workload.single_class(None, np.full(requests, 3), np.full(requests, tokens + 2 * GAMMA + 2))
    executor = LiveExecutor(
        target, witness, short, concurrency=requests, prompts=prompts,
        options=LiveOptions(temperature=1.0, seed=7, keep_tokens=True),
    )  # fmt: skip
    rows = np.arange(requests)
    executor.place(rows, rows, np.full(requests, 4))
    scheduler = executor.observe(policy)
    lagged = [torch.ones(requests, GAMMA) for _ in range(policy.lag)]
    committed = [np.ones(requests, dtype=np.int64)]
    while committed[-1].min() < tokens:
        survival = executor.draft(requests)
        batch = Batch(CURVE, lagged=lagged[0] if policy.lag else None)
        accepted = executor.verify(scheduler.schedule(survival, batch), 0.0).accepted
        lagged = [*lagged[1:], survival.clone()][-policy.lag :] if policy.lag else []
        committed.append(committed[-1] + accepted + 1)
        if committed[-1].max() >= tokens + GAMMA + 1:
            break
    return judged(target, executor.outputs, witness.first, committed)


def judged(
    target: Any, outputs: dict[int, list[int]], first: list[torch.Tensor], committed: list[Any]
) -> tuple[float, float]:
    requests = len(outputs)
    length = min(map(len, outputs.values()))
    whole = torch.tensor([[*prompts(r, 3).tolist(), *outputs[r][:length]] for r in range(requests)])
    p_target = torch.softmax(target.forward(whole).logits[:, 2:-1].double(), dim=-1)  # [R, length, V]
    said = torch.nn.functional.one_hot(whole[:, 3:], VOCABULARY).double()
    surplus = variance = 0.0
    for preferred, at in zip(first, committed, strict=False):
        inside = np.flatnonzero(at < length)
        p, x = p_target[inside, at[inside]], said[inside, at[inside]]
        likes = preferred[:requests].double()[inside] > p
        share = (p * likes).sum(-1)
        surplus += float((x * likes).sum(-1).sum() - share.sum())
        variance += float((share * (1 - share)).sum())
    before = whole[:, 2:-1]
    statistic = 0.0
    for token in range(VOCABULARY):
        mine = (before == token)[..., None]
        drift = ((said - p_target) * mine).sum((0, 1))[:-1]
        p = (p_target * mine).reshape(-1, VOCABULARY)[:, :-1]
        spread = torch.diag(p.sum(0)) - p.T @ p
        statistic += float(drift @ torch.linalg.solve(spread, drift))
    return surplus / variance**0.5, float(chi2.sf(statistic, VOCABULARY * (VOCABULARY - 1)))


@pytest.mark.parametrize("name", POLICIES)
def test_the_engines_sampled_output_has_the_targets_distribution(target: Any, draft: Any, name: str) -> None:
    score, p_value = sampled(target, draft, POLICIES[name](), requests=128, tokens=80)
    assert abs(score) < 4
    assert p_value > 1e-4


@pytest.mark.parametrize(
    ("lenience", "seen"), [(1.0, False), pytest.param(1.02, True, marks=pytest.mark.slow)]
)
def test_acceptance_that_is_two_percent_lenient_is_seen(
    target: Any, draft: Any, lenience: float, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many tokens that it would be; ``scripts/mutants`` puts the fault into the source itself."""
    exact = sampling.verify

    def lenient(logits: Any, tokens: Any, lengths: Any, **given: Any) -> Any:
        uniforms = given["accept_uniforms"] / lenience
        return exact(logits, tokens, lengths, **given | {"accept_uniforms": uniforms})

    monkeypatch.setattr(sampling, "verify", lenient)
    score, _ = sampled(target, draft, Fixed(GAMMA), requests=256, tokens=440)
    assert (score > 4) == seen
    assert seen or score > -4


@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("length", [1, GAMMA])
def test_drafts_rounds_and_verdicts_are_those_of_generate(
    wordy_target: Any, wordy_draft: Any, alone: Any, concurrency: int, length: int
) -> None:
    """Every request drafts, verifies and commits what it does alone, through joins, moves and leaves."""
    target, draft, draw = wordy_target, wordy_draft, np.random.default_rng(1)
    load = Workload.single_class(np.zeros(14), draw.integers(1, 12, 14), draw.integers(2, 30, 14))
    executor = LiveExecutor(
        target, draft, load, concurrency=concurrency, prompts=prompts, options=LiveOptions(keep_tokens=True)
    )
    rounds: dict[int, list[tuple[Any, ...]]] = {request: [] for request in range(14)}
    verify = executor.verify

    def recorded(lengths: Any, *rest: Any) -> Any:
        count = len(lengths)
        drafts, survival = executor.state.drafts[:count].tolist(), executor.state.survival[:count].clone()
        requests = executor._request[:count].tolist()
        result = verify(lengths, *rest)
        for row, request in enumerate(requests):
            rounds[request].append((drafts[row], survival[row], int(result.accepted[row])))
        return result

    executor.verify = recorded  # type: ignore[method-assign]
    run_engine(load, executor, executor.observe(Fixed(length)), CURVE, EngineLimits(concurrency))
    accepted, drafted = 0, set[int]()
    for request, mine in rounds.items():
        sizes = int(load.prompt_tokens[request]), int(load.output_tokens[request])
        rounds_alone = alone(request, *sizes, length).rounds
        # As the reference, ``generate`` runs one more round where the output is complete without its bonus.
        assert len(rounds_alone) - len(mine) in (0, 1)
        for (drafts, survival, took), item in zip(mine, rounds_alone, strict=False):
            assert drafts == list(item.draft_tokens)
            assert took == item.accepted
            assert item.confidence_logits is not None
            expected = torch.sigmoid(torch.tensor(item.confidence_logits)).cumprod(0)
            torch.testing.assert_close(survival, expected, atol=1e-5, rtol=1e-4)
            accepted += took
            drafted |= set(drafts)
    assert accepted > 5
    assert len(drafted) > 6


class Lagging:
    """Verifies everything and keeps what it was shown."""

    lag, lossless, reason, reads_outcome, draft_tokens = 2, True, "fixed", False, None

    def __init__(self) -> None:
        self.now: list[torch.Tensor] = []
        self.then: list[torch.Tensor] = []

    def schedule(self, survival: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.lagged is not None
        self.now.append(survival.clone())
        self.then.append(batch.lagged.clone())
        return torch.full((len(survival),), survival.shape[1])


def test_generate_hands_over_survival_of_the_rounds_before_and_never_this_ones(
    target: Any, draft: Any
) -> None:
    scheduler = Lagging()
    generate(target, draft, [0, 2, 1], max_new_tokens=20, scheduler=scheduler, temperature=1.0)
    assert len(scheduler.now) > 4
    for round_number, lagged in enumerate(scheduler.then):
        if round_number < 2:
            assert torch.all(lagged == 1)
        else:
            assert torch.equal(lagged, scheduler.now[round_number - 2])
            assert not torch.equal(lagged, scheduler.now[round_number])
