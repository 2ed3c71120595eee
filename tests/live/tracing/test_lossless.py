"""Speculation does not change what the target says, whatever is verified; and this test can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from simulator.core.errors import BadInputError
from simulator.cost.models import ThroughputCurve
from simulator.live.models import sampling
from simulator.live.models.draft import Proposal
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.pairs import new_dspark, new_mtp
from simulator.live.tracing.generate import generate, random_uniforms
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed, Oracle, Threshold, Tiered
from simulator.schedulers.protocol import Batch
from tests.live.conftest import MakeTarget, randomise

STAIRCASE = ThroughputCurve([1, 2, 3, 5, 8], [100.0, 90.0, 60.0, 58.0, 40.0])


class RandomLengths:
    """Verifies whatever its generator says: the rudest policy that is still causal."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def schedule(self, survival: torch.Tensor, batch: Batch) -> torch.Tensor:
        return torch.randint(survival.shape[1] + 1, (len(survival),), generator=self.generator)


LOSSLESS: dict[str, Callable[[], Any]] = {
    "none": lambda: Fixed(0),
    "one": lambda: Fixed(1),
    "whole block": lambda: Fixed(5),
    "random": lambda: RandomLengths(0),
    "threshold": lambda: Threshold(0.4),
    "Algorithm 1": DSpark,
    "asynchronous": DSparkAsync,
    "tiers": lambda: Tiered((0, 2, 5)),
}


class Prophet(DSparkDraft):
    """A draft that knows the future but for every fifth token, so that long prefixes are accepted."""

    future: torch.Tensor

    def propose(
        self, features: torch.Tensor, tokens: torch.Tensor, counts: torch.Tensor, cache: Any, **options: Any
    ) -> Proposal:
        proposal = super().propose(features, tokens, counts, cache, **options)
        begin = int(cache.lengths[0]) + 1
        said = self.future[begin : begin + self.gamma][None]
        wrong = torch.arange(begin, begin + self.gamma) % 5 == 0
        said = torch.where(wrong, (said + 1) % self.shape.vocab_size, said)
        return Proposal(
            said, proposal.logits, proposal.confidence_logits, None, proposal.hidden, proposal.context
        )


def own_output(target: Any, prompt: list[int], count: int) -> list[int]:
    """The target's own greedy output, recomputed from nothing for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(target.forward(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


PROMPT = [7, 3, 60, 12]


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target()


@pytest.fixture(scope="module")
def prophet(target: Any) -> Prophet:
    draft = Prophet(new_dspark(target, mask_token_id=5, block_size=5, num_layers=1, markov_rank=4).config)
    randomise(draft, seed=3, spread=0.3)
    draft.future = torch.tensor(PROMPT + own_output(target, PROMPT, 48))
    return draft


@pytest.mark.parametrize("policy", LOSSLESS.values(), ids=LOSSLESS.keys())
def test_greedy_output_is_the_targets_own_under_every_scheduler(
    target: Any, prophet: Prophet, policy: Callable[[], Any]
) -> None:
    generation = generate(target, prophet, PROMPT, max_new_tokens=40, scheduler=policy(), cost=STAIRCASE)
    assert generation.output_ids == prophet.future[4:44].tolist()
    assert sum(item.acceptance_length for item in generation.rounds) >= 39
    if not isinstance(policy(), Fixed):
        assert generation.accepted_length > 1.2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), wanted=st.integers(1, 40), stops=st.lists(st.integers(0, 63), max_size=3))
def test_greedy_output_survives_random_lengths_budgets_and_stops(
    target: Any, prophet: Prophet, seed: int, wanted: int, stops: list[int]
) -> None:
    generation = generate(
        target,
        prophet,
        PROMPT,
        max_new_tokens=wanted,
        stop_token_ids=stops,
        scheduler=RandomLengths(seed),
    )
    expected = prophet.future[4 : 4 + wanted].tolist()
    first_stop = next((i for i, token in enumerate(expected) if token in stops), wanted)
    assert generation.output_ids == expected[: first_stop + 1]
    position = len(PROMPT)
    for item in generation.rounds:
        assert item.start == position
        assert 0 <= item.accepted <= item.verification_length <= 5
        position += item.acceptance_length


SLIDING = ["sliding_attention", "full_attention"] * 2
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3 sliding": {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING},
    "llama": {},
    "gemma2": {"sliding_window": 6, "layer_types": SLIDING, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 6, "layer_types": SLIDING, "query_pre_attn_scalar": 16},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_output_is_the_targets_own_for_every_architecture(make_target: MakeTarget, name: str) -> None:
    target = make_target(name.split()[0], vocab_size=16, **ARCHITECTURES[name])
    prompt = [3, 9, 1]
    for draft in (
        new_dspark(target, mask_token_id=5, block_size=4, markov_rank=4, target_layer_ids=(-1, 1)),
        new_mtp(target),
    ):
        generation = generate(target, draft, prompt, max_new_tokens=24)
        assert generation.output_ids == own_output(target, prompt, 24)


def test_requests_that_make_no_sense_are_refused(target: Any, prophet: Prophet) -> None:
    for wrong, says in (
        ({"prompt_ids": []}, "at least one token"),
        ({"prompt_ids": [64]}, r"vocabulary 0\.\.63"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "0 .greedy. or above"),
        ({"temperature": 1.0, "uniforms": [0.5] * 3}, "ran out of random numbers"),
        ({"scheduler": Fixed(6)}, "longer than the block"),
        ({"scheduler": Oracle()}, "knows the outcome"),
        ({"scheduler": Backwards()}, r"must lie in 0\.\.5"),
    ):
        options: dict[str, Any] = {"prompt_ids": PROMPT, "max_new_tokens": 4} | wrong
        with pytest.raises(BadInputError, match=says):
            generate(target, prophet, options.pop("prompt_ids"), **options)


class Backwards:
    """A scheduler with a bug."""

    def schedule(self, survival: torch.Tensor, batch: Batch) -> torch.Tensor:
        return torch.tensor([-1])


# At temperature 1: output frequencies of many samples against the target's exact distribution.

SMALL_VOCAB = 4
SAMPLES = 40_000


CONTEXT = [2, 0, 3]


def fit(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """Chi-square p-value of counts, given chances that sum to 1 up to rounding."""
    exact = chances.double() / chances.double().sum()
    return float(chisquare(counts.double().numpy(), (exact * counts.sum()).numpy()).pvalue)


@dataclass(frozen=True)
class Experiment:
    """One speculative round of a tiny pair at temperature 1, many times over, before anything is verified.

    target_logits: [SAMPLES, gamma + 1, V] as if every token were verified; first: P(x1) and second:
    P(x2 | x1) as the target alone has them.
    """

    proposal: Proposal
    target_logits: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    def lengths(self, scheduler: Any, cost: ThroughputCurve) -> torch.Tensor:
        """Schedule every sample as a batch of its own; equal samples are asked about once."""
        survival = self.proposal.survival
        if isinstance(scheduler, RandomLengths):
            return scheduler.schedule(survival, Batch(cost))
        earlier = survival[torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))]
        both, sample = torch.cat((survival, earlier), dim=1).unique(dim=0, return_inverse=True)
        gamma = survival.shape[1]
        answers = [
            scheduler.schedule(
                row[None, :gamma], Batch(cost, lagged=row[None, gamma:] if scheduler.lag else None)
            )
            for row in both
        ]
        return torch.cat(answers)[sample]

    def p_value(self, lengths: torch.Tensor) -> float:
        """Chi-square of the frequencies of the first two tokens, all verifications in one ragged batch."""
        generator, tokens = torch.Generator().manual_seed(11), self.proposal.tokens
        verdict = sampling.verify(
            self.target_logits[torch.arange(tokens.shape[1] + 1) <= lengths[:, None]],
            tokens,
            lengths,
            temperature=1.0,
            q_draft=self.proposal.q_draft,
            accept_uniforms=torch.rand(tokens.shape, generator=generator),
            next_uniforms=torch.rand(SAMPLES, generator=generator),
        )
        first = torch.where(verdict.accepted > 0, tokens[:, 0], verdict.next_tokens)
        later = torch.where(verdict.accepted > 1, tokens[:, 1], verdict.next_tokens)
        # A round that committed a single token is followed by plain sampling.
        alone = sampling.draw(self.second[first], torch.rand(SAMPLES, generator=generator))
        second = torch.where(verdict.accepted > 0, later, alone)
        counts = (first * SMALL_VOCAB + second).bincount(minlength=SMALL_VOCAB**2)
        return fit(counts, (self.first[:, None] * self.second).flatten())


@pytest.fixture(scope="module")
def experiment(make_target: MakeTarget) -> Experiment:
    target = make_target(vocab_size=SMALL_VOCAB, num_hidden_layers=2, spread=0.3, seed=5)
    draft = new_dspark(target, mask_token_id=1, block_size=2, num_layers=1, markov_rank=3)
    randomise(draft, seed=2, spread=0.5)
    count, context = len(CONTEXT) - 1, torch.tensor([CONTEXT])
    features = target.forward(context, layer_ids=draft.target_layer_ids).features[0, :count]
    with torch.no_grad():
        proposal = draft.propose(
            features.repeat(SAMPLES, 1),
            context[0, 1:].repeat(SAMPLES),
            torch.full((SAMPLES,), count),
            draft.new_cache(SAMPLES, 8),
            temperature=1.0,
            uniforms=torch.rand(SAMPLES, draft.gamma, generator=torch.Generator().manual_seed(10)),
        )
    whole = torch.cat((context.expand(SAMPLES, -1), proposal.tokens), dim=1)
    extended = torch.tensor([[*CONTEXT, token] for token in range(SMALL_VOCAB)])
    both = torch.softmax(target.forward(extended).logits[:, count:], -1)
    return Experiment(proposal, target.forward(whole).logits[:, count:], both[0, 0], both[:, 1])


@pytest.mark.parametrize(
    "policy",
    [
        Fixed(0),
        Fixed(1),
        Fixed(2),
        RandomLengths(0),
        Threshold(0.87),
        DSpark(),
        DSparkAsync(),
        Tiered((0, 2)),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_sampled_output_has_the_targets_distribution(experiment: Experiment, policy: Any) -> None:
    lengths = experiment.lengths(policy, knife_edge(experiment.proposal.survival))
    assert isinstance(policy, (Fixed, DSpark)) or len(lengths.unique()) > 1
    assert experiment.p_value(lengths) > 1e-3


def knife_edge(survival: torch.Tensor) -> ThroughputCurve:
    """Step times on which verifying one token loses and verifying two wins if the second looks good."""
    first, second = float(survival[0, 0]), float(survival[:, 1].median()) - 1e-5
    both = 1 / (1 + first + second)
    return ThroughputCurve([1, 2, 3], [1.0, (both + 1 / (1 + first)) / 2, both])


def test_leaking_schedulers_fail_the_same_test(experiment: Experiment) -> None:
    """Both decide on token 1 by the confidence of token 2, which depends on token 1 (paper, appendix A)."""
    survival = experiment.proposal.survival
    confidence = survival[:, 1] / survival[:, 0]
    by_hand = torch.where(confidence >= confidence.median(), 2, 0)
    global_search = experiment.lengths(DSparkAsync(lag=0), knife_edge(survival))
    for lengths in (by_hand, global_search):
        assert lengths.unique().tolist() == [0, 2]
        assert experiment.p_value(lengths) < 1e-12


def test_whole_generations_at_temperature_1_have_the_targets_distribution(make_target: MakeTarget) -> None:
    target = make_target(vocab_size=3, num_hidden_layers=1, spread=0.1)
    draft = new_dspark(target, mask_token_id=1, block_size=2, num_layers=1, markov_rank=2)
    randomise(draft, seed=1, spread=0.2)
    sequences = torch.cartesian_prod(*[torch.arange(3)] * 3)
    prompt, samples = [0, 2], 450
    inputs = torch.cat((torch.tensor([prompt]).expand(27, -1), sequences), dim=1)
    probabilities = torch.softmax(target.forward(inputs).logits[:, 1:-1], dim=-1)
    exact = probabilities.gather(-1, sequences[..., None])[..., 0].prod(dim=-1).double()
    assert float(exact.min()) * samples > 2  # too rare a cell spoils the chi-square approximation
    counts = torch.zeros(27)
    # One stream for all: streams of neighbouring seeds, or one shared with the policy, are not independent.
    uniforms, scheduler = random_uniforms(0), RandomLengths(1)
    accepted = 0
    for _ in range(samples):
        generation = generate(
            target,
            draft,
            prompt,
            max_new_tokens=3,
            temperature=1.0,
            uniforms=uniforms,
            scheduler=scheduler,
        )
        accepted += generation.rounds[0].accepted
        counts[
            sum(token * 3**place for token, place in zip(generation.output_ids, (2, 1, 0), strict=True))
        ] += 1
    assert accepted > samples / 2
    assert fit(counts, exact) > 1e-3


def test_the_counterexample_of_appendix_a() -> None:
    """With p_target = (0.7, 0.3) and a global search, token A comes out with probability 0.85."""
    samples = 40_000
    generator = torch.Generator().manual_seed(1)
    p_target = torch.tensor([0.7, 0.3])
    tokens = torch.stack((torch.arange(samples) % 2, torch.zeros(samples, dtype=torch.int64)), dim=1)
    q_draft = torch.full((samples, 2, 2), 0.5)
    # After A the second token looks good (0.9) and the search verifies both; after B it verifies none.
    survival = 0.8 * torch.where(tokens[:, :1] == 0, torch.tensor([1.0, 0.9]), torch.tensor([1.0, 0.0]))
    curve = ThroughputCurve([1, 2, 3], [1.0, 0.5, 0.45])
    for scheduler, expected in ((DSparkAsync(lag=0), 0.85), (DSpark(), 0.7)):
        lengths = torch.cat([scheduler.schedule(row[None], Batch(curve)) for row in survival[:2]])[
            tokens[:, 0]
        ]
        verdict = sampling.verify(
            p_target.log().expand(int(lengths.sum()) + samples, -1),
            tokens,
            lengths,
            temperature=1.0,
            q_draft=q_draft,
            accept_uniforms=torch.rand(samples, 2, generator=generator),
            next_uniforms=torch.rand(samples, generator=generator),
        )
        first = torch.where(verdict.accepted > 0, tokens[:, 0], verdict.next_tokens)
        assert float((first == 0).float().mean()) == pytest.approx(expected, abs=0.01)
