"""Speculative decoding of one prompt, round by round (DSpark section 2.1, figure 1).

A round drafts gamma tokens behind the anchor, asks a scheduler how many of them to verify, runs the
target over the anchor and those, and commits what it accepts plus one token of its own. The anchor is
the last committed token; the target has not processed it yet, so it has neither features nor keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from simulator.core.errors import BadInputError
from simulator.cost.models import CostModel, ThroughputCurve
from simulator.live.models import sampling
from simulator.live.models.draft import Draft, Proposal
from simulator.live.models.pairs import check_pair
from simulator.live.models.targets import Target
from simulator.schedulers.protocol import Batch

SAME_TIME = ThroughputCurve((1.0,), (1.0,), beyond="clamp")
"""A step time that does not depend on the batch, with which verifying more never costs anything."""


class VerificationScheduler(Protocol):
    """Decides how much of each block is verified; every deployable one of ``simulator.schedulers`` fits.

    One with a ``lag`` also gets the survivals of so many rounds before, in ``batch.lagged``.
    """

    def schedule(self, survival: Any, batch: Batch) -> Any:
        """Survival [R, gamma] and what else is known of the step -> lengths [R] in 0..gamma."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RoundTensors:
    """What a round computed, on request: float tensors on the model's device, n new context positions.

    features [n, width]; context [n, d], as the draft's layers saw it; hidden [gamma, d]; logits
    [gamma, V], corrected by the sequential head; target_logits [m + 1, V] for m verified tokens.
    """

    features: Tensor
    context: Tensor
    hidden: Tensor
    logits: Tensor
    target_logits: Tensor


@dataclass(frozen=True, slots=True)
class Round:
    """One round: drafted, scheduled, verified, committed.

    start: position of the anchor in prompt + output. context_length: positions new to the draft.
    verification_length: draft tokens the target processed. proposal_length: those that count, which
    is fewer only when a stop token was accepted before the last of them. accepted: draft tokens
    committed. acceptance_length: tokens committed, the target's own included (not drawn after a stop
    token among the drafts). next_token: the target's own, also where a stop token discarded it.
    """

    start: int
    anchor_token: int
    context_length: int
    draft_tokens: tuple[int, ...]
    confidence_logits: tuple[float, ...] | None
    verification_length: int
    proposal_length: int
    accepted: int
    acceptance_length: int
    next_token: int
    stopped_in_draft: bool
    tensors: RoundTensors | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """The output of one prompt, cut at the requested length or after the first stop token, and its rounds."""

    output_ids: list[int]
    rounds: list[Round]

    @property
    def accepted_length(self) -> float:
        """tau, tokens committed per round; NaN without rounds."""
        total = sum(item.acceptance_length for item in self.rounds)
        return total / len(self.rounds) if self.rounds else float("nan")


def random_uniforms(seed: int) -> Iterator[float]:
    """Return an endless stream of uniforms in [0, 1) that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.rand(1024, dtype=torch.float64, generator=generator).tolist()


def stop_ids(target: Target) -> list[int]:
    """Tokens that end an output: those of the generation config, or else of the config."""
    text = target.config.get_text_config()
    for stated in (getattr(target.model, "generation_config", None), text):
        found = getattr(stated, "eos_token_id", None)
        if found is not None:
            return list(found) if isinstance(found, (list, tuple)) else [int(found)]
    return []


@torch.no_grad()
def generate(
    target: Target,
    draft: Draft,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    stop_token_ids: Iterable[int] = (),
    scheduler: VerificationScheduler | None = None,
    cost: CostModel = SAME_TIME,
    uniforms: Iterable[float] | None = None,
    seed: int = 0,
    keep_tensors: bool = False,
) -> Generation:
    """Generate speculatively; the output has the target's own distribution (its own argmax below T = 1e-5).

    scheduler: decides each round's verification length from the survival [1, gamma]; None verifies
    everything. cost: the step time that it believes in; by default all steps take the same. uniforms:
    the random numbers, consumed in order: one for the first token, then per round gamma draft draws,
    one per verified token and one for the target's own; None takes a stream from ``seed``.
    keep_tensors: keep every round's ``RoundTensors``.

    The last round may commit tokens beyond ``max_new_tokens``; they count in the round and are cut
    from the output. Raises ``BadInputError`` for a pair that does not match, a prompt outside the
    vocabulary, a schedule outside 0..gamma, and a stream of uniforms that is too short.
    """
    check_pair(target, draft)
    request = _Request(list(prompt_ids), max_new_tokens, temperature, frozenset(stop_token_ids), keep_tensors)
    _check_request(request, target.vocab_size)
    if getattr(scheduler, "reads_outcome", False):
        raise BadInputError(
            "knows the outcome before the target has run",
            source=type(scheduler).__name__,
            field="scheduler",
            remedy="it is a bound for simulations; choose a policy that can be deployed",
        )
    sequence = _Sequence(
        target, draft, request, random_uniforms(seed) if uniforms is None else iter(uniforms)
    )
    rounds: list[Round] = []
    while sequence.start < request.limit and sequence.tokens[-1] not in request.stops:
        proposal = sequence.propose()
        length = draft.gamma if scheduler is None else sequence.schedule(proposal, scheduler, cost)
        rounds.append(sequence.verify(proposal, length))
    return Generation(sequence.tokens[len(request.prompt_ids) : request.limit], rounds)


@dataclass(frozen=True, slots=True)
class _Request:
    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float
    stops: frozenset[int]
    keep_tensors: bool

    @property
    def limit(self) -> int:
        """Length of prompt and output together."""
        return len(self.prompt_ids) + self.max_new_tokens


class _Sequence:
    """One request in flight: its tokens, both caches, and the features the draft has not seen yet."""

    def __init__(self, target: Target, draft: Draft, request: _Request, stream: Iterator[float]) -> None:
        self.target, self.draft, self.request, self.stream = target, draft, request, stream
        self.stops = torch.tensor(sorted(request.stops), dtype=torch.int64, device=target.device)
        self.survivals: list[Tensor] = []
        self.cache = target.new_cache()
        self.draft_cache = draft.new_cache(1, request.limit + draft.gamma)
        prompt = torch.tensor([request.prompt_ids], device=target.device)
        output = target.forward(
            prompt, layer_ids=draft.target_layer_ids, cache=self.cache, last_logits_only=True
        )
        self.features = output.features[0]
        first = sampling.choose(output.logits[:, -1], request.temperature, self._uniforms(1))
        self.tokens = [*request.prompt_ids, int(first)]

    @property
    def start(self) -> int:
        """Position of the anchor."""
        return len(self.tokens) - 1

    def propose(self) -> Proposal:
        """Draft a block behind the anchor."""
        count = len(self.features)
        following = torch.tensor(self.tokens[-count:], device=self.target.device)
        uniforms = self._uniforms(self.draft.gamma)
        return self.draft.propose(
            self.features,
            following,
            torch.tensor([count]),
            self.draft_cache,
            temperature=self.request.temperature,
            uniforms=None if uniforms is None else uniforms[None],
        )

    def schedule(self, proposal: Proposal, scheduler: VerificationScheduler, cost: CostModel) -> int:
        """Ask the scheduler for this round's verification length, as a batch of one."""
        lag = getattr(scheduler, "lag", 0)  # a plain object with ``schedule`` need not have one
        self.survivals.append(proposal.survival)
        seen = len(self.survivals)
        past = self.survivals[-1 - lag] if seen > lag else torch.ones_like(proposal.survival)
        batch = Batch(cost, context_tokens=self.start, lagged=past if lag else None)
        length = int(scheduler.schedule(proposal.survival, batch)[0])
        if not 0 <= length <= self.draft.gamma:
            raise BadInputError(
                f"a verification length must lie in 0..{self.draft.gamma}, the block size of the draft",
                source=type(scheduler).__name__,
                field="length",
                value=length,
                remedy="use a scheduler for this block size",
            )
        return length

    def verify(self, proposal: Proposal, length: int) -> Round:
        """Run the target over the anchor and ``length`` draft tokens and commit what it accepts."""
        start, anchor, context_length = self.start, self.tokens[-1], len(self.features)
        seen_features = self.features
        drafted = proposal.tokens[0].tolist()
        inputs = torch.tensor([[anchor, *drafted[:length]]], device=self.target.device)
        output = self.target.forward(inputs, layer_ids=self.draft.target_layer_ids, cache=self.cache)
        verdict = self._judge(output.logits[0], proposal, length)
        accepted, next_token, stopped = int(verdict.accepted), int(verdict.next_tokens), bool(verdict.stopped)
        committed = drafted[:accepted] + ([] if stopped else [next_token])
        self.tokens += committed
        self.target.crop(self.cache, start + accepted + 1)
        self.features = output.features[0, : accepted + 1]
        confidences = proposal.confidence_logits
        return Round(
            start=start,
            anchor_token=anchor,
            context_length=context_length,
            draft_tokens=tuple(drafted),
            confidence_logits=None if confidences is None else tuple(confidences[0].tolist()),
            verification_length=length,
            proposal_length=accepted if stopped else length,
            accepted=accepted,
            acceptance_length=len(committed),
            next_token=next_token,
            stopped_in_draft=stopped,
            tensors=self._tensors(proposal, seen_features, output.logits[0])
            if self.request.keep_tensors
            else None,
        )

    def _judge(self, target_logits: Tensor, proposal: Proposal, length: int) -> sampling.Verdict:
        lengths = torch.tensor([length], device=target_logits.device)
        accept, following = self._uniforms(length), self._uniforms(1)
        if accept is not None:
            accept = torch.nn.functional.pad(accept, (0, self.draft.gamma - length))[None]
        return sampling.verify(
            target_logits,
            proposal.tokens,
            lengths,
            temperature=self.request.temperature,
            q_draft=proposal.q_draft,
            accept_uniforms=accept,
            next_uniforms=following,
            stop_token_ids=self.stops,
        )

    def _uniforms(self, count: int) -> Tensor | None:
        if sampling.is_greedy(self.request.temperature):
            return None
        drawn = list(islice(self.stream, count))
        if len(drawn) < count:
            raise BadInputError(
                "ran out of random numbers", field="uniforms", remedy="record a longer stream"
            )
        return torch.tensor(drawn, dtype=torch.float64, device=self.target.device)

    @staticmethod
    def _tensors(proposal: Proposal, features: Tensor, target_logits: Tensor) -> RoundTensors:
        return RoundTensors(features, proposal.context, proposal.hidden[0], proposal.logits[0], target_logits)


def _check_request(request: _Request, vocabulary: int) -> None:
    prompt = request.prompt_ids
    outside = [token for token in prompt if not 0 <= token < vocabulary]
    for wrong, field, value, problem in (
        (not prompt, "prompt_ids", prompt, "must hold at least one token"),
        (outside, "prompt_ids", outside[:1], f"must lie in the vocabulary 0..{vocabulary - 1}"),
        (request.max_new_tokens < 1, "max_new_tokens", request.max_new_tokens, "must be at least 1"),
        (not request.temperature >= 0, "temperature", request.temperature, "must be 0 (greedy) or above"),
    ):
        if wrong:
            raise BadInputError(problem, field=field, value=value, remedy="correct the request")
