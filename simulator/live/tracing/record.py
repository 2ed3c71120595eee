"""Recording acceptance traces: drafting at every position of the target's own output.

Greedy: the output is the target's argmax continuation. At every position the draft proposes its greedy
block, and the accepted length is how far that block agrees with the output. Whatever a policy verifies,
it walks along this one output, so a replay gives what running the policy gives.

Sampled (temperature 1): the output is drawn from the target. Token k of the block at position i is judged
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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
from simulator.live.models.dspark import DSparkDraft
from simulator.live.models.mtp import MTPDraft
from simulator.live.models.pairs import check_pair
from simulator.live.models.targets import Target

Kind = Literal["greedy", "expected", "coupled"]

_ANCHORS_PER_PASS = 32

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

    outcome: accepted lengths int64 [S, A] (greedy) or probabilities float32 [S, A, gamma].
    confidence_logits: float32 [S, A, gamma], None without a confidence head.
    """

    outcome: Tensor
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
def judge(target: Target, draft: Draft, tokens: Tensor, anchors: Tensor, kind: Kind) -> Judged:
    """Draft a block at each anchor position [A] of sequences [S, T] and hold it against their tokens.

    Every anchor needs gamma tokens behind it. Anchors are packed, some dozens to a pass.
    """
    if not isinstance(draft, (DSparkDraft, MTPDraft)):
        raise TypeError(f"cannot draft many blocks at once with a {type(draft).__name__}")
    output = target.forward(tokens, layer_ids=draft.target_layer_ids, last_logits_only=kind == "greedy")
    parts = []
    for some in torch.split(anchors, _ANCHORS_PER_PASS):
        at = some.expand(len(tokens), -1)
        slots = at[..., None] + torch.arange(draft.gamma, device=tokens.device)
        previous, following = _at(tokens, slots), _at(tokens, slots + 1)
        hidden = _block_hidden(draft, output.features, tokens, at)
        if kind == "greedy":
            drafted = _greedy_block(draft, hidden, previous[..., 0])
            previous = torch.cat((previous[..., :1], drafted[..., :-1]), dim=-1)
            outcome = (drafted == following).long().cumprod(dim=-1).sum(dim=-1)
        else:
            p_target = sampling.distribution(
                output.logits[torch.arange(len(tokens))[:, None, None], slots], 1.0
            )
            q_draft = sampling.distribution(_teacher_forced(draft, hidden, previous), 1.0)
            outcome = acceptance_probability(p_target, q_draft, following, kind)
        confidence = draft.confidence_logits(hidden, previous) if isinstance(draft, DSparkDraft) else None
        parts.append((outcome, confidence))
    outcomes = torch.cat([outcome for outcome, _ in parts], dim=1)
    confidences = [confidence.float() for _, confidence in parts if confidence is not None]
    return Judged(outcomes, torch.cat(confidences, dim=1) if confidences else None)


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
        judge(target, draft, tokens, anchors, kind)
        for tokens in torch.split(outputs.tokens, sequences_per_pass)
    ]
    outcome = torch.cat([chunk.outcome for chunk in chunks]).cpu()
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


def _block_hidden(draft: DSparkDraft | MTPDraft, features: Tensor, tokens: Tensor, anchors: Tensor) -> Tensor:
    """Run the draft at anchors [S, A] of tokens [S, T]: [S, A, gamma, d]."""
    if isinstance(draft, DSparkDraft):
        return draft.packed_hidden(features, tokens, anchors)
    # Output i joins the state at i with token i + 1, which is the anchor.
    hidden = draft.sequence_hidden(features[:, :-1], tokens[:, 1:])
    return hidden[torch.arange(len(tokens), device=tokens.device)[:, None], anchors - 1][:, :, None]


def _greedy_block(draft: DSparkDraft | MTPDraft, hidden: Tensor, anchor_tokens: Tensor) -> Tensor:
    if isinstance(draft, DSparkDraft):
        return draft.draw(hidden, anchor_tokens)[0]
    drafted: Tensor = draft.lm_head(hidden).argmax(dim=-1)
    return drafted


def _teacher_forced(draft: DSparkDraft | MTPDraft, hidden: Tensor, previous: Tensor) -> Tensor:
    if isinstance(draft, DSparkDraft):
        return draft.teacher_forced_logits(hidden, previous)
    logits: Tensor = draft.lm_head(hidden)
    return logits


def _at(tokens: Tensor, slots: Tensor) -> Tensor:
    return tokens.gather(1, slots.flatten(1)).view(slots.shape)
