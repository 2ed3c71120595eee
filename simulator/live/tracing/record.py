"""Recording acceptance traces: drafting at every position of the target's own output.

Greedy: the output is the target's argmax continuation. At every position the draft proposes its greedy
block, and the accepted length is how far that block agrees with the output. Whatever a policy verifies,
it walks along this one output, so a replay gives what running the policy gives.

Sampled: the output is drawn from the target at a temperature. Token k of the block at position i is judged
with the output's own tokens before it, because it is reached only when those were accepted. Two records
of its acceptance are offered, p = p_target and q = q_draft there:

- ``expected``: sum_v min(p(v), q(v)) = 1 - ||p - q||_1 / 2, the acceptance probability that equation 7
  and the confidence head speak of. Exact for the first token of a block, and for each later one given
  the output up to it. The length of a whole block is slightly biased: an accepted prefix is distributed as
  min(p, q) normalised, not as the output, so what follows a token that the draft likes is met too seldom.
- ``coupled``: min(1, q(x) / p(x)) at the output's token x. Emitting x from p and accepting it with this
  probability is rejection sampling seen from its result: both happen with probability min(p(x), q(x)),
  and x without acceptance with max(0, p(x) - q(x)), the residual. Replays of policies that decide before
  they see the tokens (fixed lengths, lagged ones) then have the exact joint law of output and lengths.

In both, confidences behind the first rejected token are those of a block that follows the output instead
of the draft's own rejected token; a policy that reads them schedules from a block which resembles the real
one but is not it. Greedy traces do not have this limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.acceptance.calibration import verdicts
from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.live.models import sampling
from simulator.live.models.draft import Draft
from simulator.live.models.pairs import check_pair
from simulator.live.models.targets import Target

Kind = Literal["greedy", "expected", "coupled"]

_ANCHORS_PER_PASS = 32

_POSITIONS_PER_PASS = 256
"""Positions that the target reads at once, a choice: their logits are the largest tensor of a recording."""

_SMALLEST_PROBABILITY = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Prompts and the target's own continuation of each.

    tokens: int64 [S, P + rows + margin]. Positions P .. P + rows - 1 are the anchors; the ``margin``
    tokens behind them let the last blocks be judged whole. ends: int64 [S], position of the first stop
    token of the output, or the length where there is none.
    """

    tokens: Tensor
    prompt_length: int
    rows: int
    temperature: float
    ends: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What one draft proposed at A anchors of S sequences and what the target says of it.

    outcomes: by kind, accepted lengths int64 [S, A] (greedy) or probabilities float32 [S, A, gamma].
    confidence_logits: float32 [S, A, gamma], None without a confidence head.
    """

    outcomes: Mapping[Kind, Tensor]
    confidence_logits: Tensor | None


@torch.no_grad()
def write_outputs(
    target: Target,
    prompts: Tensor,
    rows: int,
    *,
    margin: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_token_ids: Sequence[int] = (),
) -> Outputs:
    """Let the target continue prompts [S, P] by ``rows + margin`` tokens each.

    Nothing stops early, so that the batch stays rectangular; what follows a stop token is not judged.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = target.new_cache()
    tokens, fresh = [prompts.to(target.device)], prompts.to(target.device)
    for _ in range(rows + margin):
        logits = target.forward(fresh, cache=cache, last_logits_only=True).logits[:, -1]
        uniforms = torch.rand(len(prompts), generator=generator, dtype=torch.float64).to(target.device)
        fresh = sampling.choose(logits, temperature, uniforms)[:, None]
        tokens.append(fresh)
    joined, first = torch.cat(tokens, dim=1), prompts.shape[1]
    stops = torch.isin(joined[:, first:], torch.tensor(list(stop_token_ids), device=joined.device))
    found = torch.where(stops.any(dim=1), stops.long().argmax(dim=1), stops.shape[1])
    return Outputs(joined, first, rows, temperature, first + found)


@torch.no_grad()
def judge(
    target: Target,
    draft: Draft,
    tokens: Tensor,
    anchors: Tensor,
    kinds: Sequence[Kind],
    *,
    temperature: float = 1.0,
) -> Judged:
    """Draft a block at each anchor position [A] of sequences [S, T] and hold it against their tokens.

    anchors: ascending; each needs gamma tokens behind it. kinds: ``greedy``, or those of sampled outputs,
    whose blocks are judged at ``temperature``. Memory is bounded whatever T is, but for the features: the
    target reads some hundred positions at a time, and anchors are packed, some dozens to a pass.
    """
    first = None if tuple(kinds) == ("greedy",) else int(anchors[0])
    reading = _Reading(target, draft, tokens, first)
    return judge_read(reading, draft, tokens, anchors, kinds, temperature=temperature)


class Reading(Protocol):
    """Where a target's states and logits come from: from the target itself, or from what it left."""

    def features_to(self, end: int) -> Tensor:
        """Features [S, end, width] of the positions before ``end``."""
        ...

    def logits_at(self, slots: Tensor) -> Tensor:
        """Logits [S, A, gamma, V] at positions [S, A, gamma]."""
        ...


@torch.no_grad()
def judge_read(
    reading: Reading,
    draft: Draft,
    tokens: Tensor,
    anchors: Tensor,
    kinds: Sequence[Kind],
    *,
    temperature: float = 1.0,
) -> Judged:
    """Do what ``judge`` does with states and logits that are read elsewhere."""
    greedy = tuple(kinds) == ("greedy",)
    found: dict[Kind, list[Tensor]] = {kind: [] for kind in kinds}
    confidences: list[Tensor] = []
    for some in torch.split(anchors, _ANCHORS_PER_PASS):
        at = some.expand(len(tokens), -1)
        slots = at[..., None] + torch.arange(draft.gamma, device=tokens.device)
        following = _at(tokens, slots + 1)
        last = int(some[-1])
        features = reading.features_to(last + (0 if greedy else draft.gamma))[:, :last]
        blocks = draft.packed_blocks(features, tokens, at, follow=not greedy)
        if greedy:
            found["greedy"].append((blocks.tokens == following).long().cumprod(dim=-1).sum(dim=-1))
        else:
            p_target = sampling.distribution(reading.logits_at(slots), temperature)
            q_draft = sampling.distribution(blocks.logits, temperature)
            for kind in kinds:
                found[kind].append(acceptance_probability(p_target, q_draft, following, kind))
        if blocks.confidence_logits is not None:
            confidences.append(blocks.confidence_logits.float())
    outcomes = {kind: torch.cat(parts, dim=1) for kind, parts in found.items()}
    return Judged(outcomes, torch.cat(confidences, dim=1) if confidences else None)


class _Reading:
    """The target's states and logits of sequences [S, T], read piece by piece.

    first: position from which on logits are kept until they are behind those asked for; None for none.
    """

    def __init__(self, target: Target, draft: Draft, tokens: Tensor, first: int | None) -> None:
        self._target, self._tokens, self._layer_ids = target, tokens, draft.target_layer_ids
        self._cache = target.new_cache()
        width = target.hidden_size * len(self._layer_ids)
        self._features = torch.empty((*tokens.shape, width), dtype=target.dtype, device=target.device)
        self._end, self._first = 0, first
        self._logits: list[Tensor] = []

    def features_to(self, end: int) -> Tensor:
        """Features [S, end, width] of the positions before ``end``."""
        while self._end < end:
            self._read()
        return self._features[:, :end]

    def logits_at(self, slots: Tensor) -> Tensor:
        """Logits [S, A, gamma, V] at positions [S, A, gamma] that were read; those before are dropped."""
        assert self._first is not None
        kept, least = torch.cat(self._logits, dim=1), int(slots.min())
        self._logits = [kept[:, least - self._first :]]
        self._first = least
        rows = torch.arange(len(slots), device=slots.device)[:, None, None]
        return self._logits[0][rows, slots - least]

    def _read(self) -> None:
        end = min(self._end + _POSITIONS_PER_PASS, self._tokens.shape[1])
        unwanted = self._first is None or end <= self._first
        output = self._target.forward(
            self._tokens[:, self._end : end], layer_ids=self._layer_ids, cache=self._cache,
            last_logits_only=unwanted,
        )  # fmt: skip
        self._features[:, self._end : end] = output.features
        if not unwanted and self._first is not None:
            self._logits.append(output.logits[:, max(0, self._first - self._end) :])
        self._end = end


def acceptance_probability(p_target: Tensor, q_draft: Tensor, output: Tensor, kind: Kind) -> Tensor:
    """How likely a draft token is accepted: [..., V], [..., V] and the output's tokens [...] -> [...].

    ``expected`` or ``coupled``, as the module's docstring defines them.
    """
    if kind == "expected":
        return (1 - (p_target - q_draft).abs().sum(dim=-1) / 2).clamp(0.0, 1.0)
    p, q = (distribution.gather(-1, output[..., None])[..., 0] for distribution in (p_target, q_draft))
    return (q / p.clamp(min=_SMALLEST_PROBABILITY)).clamp(max=1.0)


def record(
    target: Target,
    draft: Draft,
    outputs: Outputs,
    kind: Kind,
    *,
    name: str,
    provenance: Provenance,
    temperatures: Sequence[float] | None = None,
    sequences_per_pass: int = 8,
) -> AcceptanceTrace:
    """Record one draft over outputs: every position as anchor, up to where a sequence stops.

    Raises ``BadInputError`` for a pair that does not match, outputs of the other temperature, and
    outputs that all stop at once.
    """
    check_pair(target, draft)
    if sampling.is_greedy(outputs.temperature) != (kind == "greedy"):
        raise BadInputError(
            f"does not go with outputs at temperature {outputs.temperature:g}", field="kind", value=kind
        )
    anchors = outputs.prompt_length + torch.arange(outputs.rows, device=target.device)
    chunks = [
        judge(target, draft, tokens, anchors, (kind,))
        for tokens in torch.split(outputs.tokens, sequences_per_pass)
    ]
    outcome = torch.cat([chunk.outcomes[kind] for chunk in chunks]).cpu()
    confidences = [chunk.confidence_logits for chunk in chunks if chunk.confidence_logits is not None]
    # Drafts up to and with the stop token count; the stop token itself is never an anchor.
    judged = (outputs.ends[:, None] - anchors).clamp(0, draft.gamma).cpu()
    kept = judged > 0
    lengths = kept.sum(dim=1)
    if not lengths.any():
        raise BadInputError("every output stops at once", source=name, remedy="choose other prompts")
    return AcceptanceTrace(
        name=name,
        confidence_logits=torch.cat(confidences).cpu()[kept].numpy() if confidences else None,
        sequence_start=np.concatenate([[0], np.cumsum(lengths[lengths > 0].numpy())]),
        provenance=provenance,
        accepted=torch.minimum(outcome, judged)[kept].numpy() if kind == "greedy" else None,
        acceptance_probability=None if kind == "greedy" else outcome.float()[kept].numpy(),
        effective_length=None if bool((judged[kept] == draft.gamma).all()) else judged[kept].numpy(),
        target_tokens=outputs.tokens[:, anchors].cpu()[kept].numpy(),
        temperatures=None if temperatures is None else np.asarray(temperatures),
        block_size=draft.gamma,
    )


def prefix_outcomes(trace: AcceptanceTrace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How likely each prefix of each block is accepted, and 1 where it was judged, else 0: [N, gamma]."""
    if trace.accepted is not None:
        return verdicts(trace.accepted, trace.gamma, trace.effective_length)
    assert trace.acceptance_probability is not None
    whole = np.full(trace.rows, trace.gamma) if trace.effective_length is None else trace.effective_length
    judged = (np.arange(trace.gamma) < whole[:, None]).astype(np.float64)
    return np.cumprod(trace.acceptance_probability, axis=1, dtype=np.float64), judged


def _at(tokens: Tensor, slots: Tensor) -> Tensor:
    return tokens.gather(1, slots.flatten(1)).view(slots.shape)
