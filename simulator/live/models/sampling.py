"""Drawing tokens, and deciding which draft tokens the target accepts (DSpark section 2.1).

Randomness is an input: every decision takes its uniforms in [0, 1) as a tensor, so a recorded run
replays exactly and different policies can be compared under common random numbers.

A batch of verifications is ragged: request r sends 1 + lengths[r] rows to the target. The target's
logits stay flattened, one row per token it really processed, because at a vocabulary of 150 000 they
are the largest tensors of a step and padding would compute softmaxes that nobody reads. What has one
number per draft token is padded to [R, gamma] and masked by the lengths, because it is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this the distribution is treated as one-hot at the argmax, as the reference does.
GREEDY_TEMPERATURE = 1e-5

_SMALLEST_PROBABILITY = 1e-8

_CHUNK = 512
"""Tokens that ``draw`` sums at a time. A choice: a vocabulary of 152 000 has 297 such chunks."""

_BELOW_ONE = 1 - 2**-50


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What the target said of a batch of proposals.

    accepted: int64 [R], draft tokens accepted, 0..lengths[r].
    next_tokens: int64 [R], the target's own token after them: the correction or the bonus.
    stopped: bool [R], the last accepted token is a stop token, and the next token is to be discarded.
    """

    accepted: Tensor
    next_tokens: Tensor
    stopped: Tensor


def is_greedy(temperature: float) -> bool:
    """Whether decoding at this temperature is argmax."""
    return temperature < GREEDY_TEMPERATURE


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float32, [..., V]; the temperature must not be greedy."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draws from unnormalised weights [..., V] with one uniform each, [...] -> indices [...].

    Takes the smallest index whose cumulative sum exceeds uniform * total. The vocabulary is summed once, in
    float32, by chunks; only the chunks' sums and the one chunk that is drawn from are accumulated in float64.
    So a running sum never spans a vocabulary of 152 000, where float32 would misplace rare tokens, and an
    index of weight zero is never drawn.
    """
    size = min(_CHUNK, weights.shape[-1])
    padded = torch.nn.functional.pad(weights.float(), (0, -weights.shape[-1] % size))
    chunks = torch.unflatten(padded, -1, (-1, size))
    sums = chunks.sum(dim=-1).double().cumsum(dim=-1)
    thresholds = uniforms.double()[..., None] * sums[..., -1:]
    chunk = torch.searchsorted(sums, thresholds, right=True).clamp(max=sums.shape[-1] - 1)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(-1, torch.cat((chunk, chunk + 1), dim=-1))
    share = (thresholds - before[..., :1]) / (before[..., 1:] - before[..., :1])
    inside = chunks.take_along_dim(chunk[..., None], dim=-2)[..., 0, :].double().cumsum(dim=-1)
    # The two sums of a chunk differ by rounding: its share of them is kept below all of it.
    within = torch.searchsorted(inside, share.clamp(max=_BELOW_ONE) * inside[..., -1:], right=True)
    return (chunk * size + within)[..., 0]


def choose(logits: Tensor, temperature: float, uniforms: Tensor | None) -> Tensor:
    """Sample the next token of each row: argmax of [..., V] when greedy, else a draw with uniforms [...]."""
    if is_greedy(temperature):
        return logits.argmax(dim=-1)
    if uniforms is None:
        raise ValueError("sampling at a temperature above 0 needs uniforms")
    return draw(distribution(logits, temperature), uniforms)


def verify(
    target_logits: Tensor,
    draft_tokens: Tensor,
    lengths: Tensor,
    *,
    temperature: float = 0.0,
    q_draft: Tensor | None = None,
    accept_uniforms: Tensor | None = None,
    next_uniforms: Tensor | None = None,
    stop_token_ids: Tensor | None = None,
) -> Verdict:
    """Accept a prefix of each request's draft tokens and name the token that follows it; lossless.

    target_logits: [sum(lengths + 1), V], for each request its anchor's row and one per verified draft.
    draft_tokens: int64 [R, gamma]; lengths: int64 [R], each 0..gamma; both on the logits' device.
    q_draft: [R, gamma, V], the distributions the draft tokens were drawn from; accept_uniforms:
    [R, gamma]; next_uniforms: [R]. These three are needed only at a temperature above 0.
    stop_token_ids: int64 [n]; acceptance ends with the first of them.

    Greedy: accept while the draft equals the target's argmax. Sampled: accept token x with probability
    min(1, p_target(x) / q_draft(x)), left to right; after a rejection the next token is drawn from
    max(0, p_target - q_draft), otherwise from p_target.
    """
    first_rows = torch.cumsum(lengths + 1, dim=0) - (lengths + 1)
    k = torch.arange(draft_tokens.shape[1], device=lengths.device)
    verified = k < lengths[:, None]
    rows = first_rows[:, None] + torch.where(verified, k, 0)
    if is_greedy(temperature):
        choices = target_logits.argmax(dim=-1)
        passed = verified & (choices[rows] == draft_tokens)
        accepted, stopped = _accepted_length(passed, draft_tokens, stop_token_ids)
        return Verdict(accepted, choices[first_rows + accepted], stopped)
    if q_draft is None or accept_uniforms is None or next_uniforms is None:
        raise ValueError(
            "verifying at a temperature above 0 needs q_draft, accept_uniforms and next_uniforms"
        )
    p_target = distribution(target_logits, temperature)
    p_of_token = p_target[rows, draft_tokens]
    q_of_token = q_draft.gather(-1, draft_tokens[..., None])[..., 0]
    ratio = (p_of_token / q_of_token.clamp(min=_SMALLEST_PROBABILITY)).clamp(max=1.0)
    passed = verified & (accept_uniforms < ratio)
    accepted, stopped = _accepted_length(passed, draft_tokens, stop_token_ids)
    p_next = p_target[first_rows + accepted]
    # Only a rejection leaves a residual; behind the last verified draft the bonus comes from p_target.
    rejected = accepted < lengths
    q_next = q_draft[torch.arange(len(lengths), device=lengths.device), accepted.clamp(max=len(k) - 1)]
    weights = torch.where(rejected[:, None], residual(p_next, q_next), p_next)
    return Verdict(accepted, draw(weights, next_uniforms), stopped)


def residual(p_target: Tensor, q_draft: Tensor) -> Tensor:
    """max(0, p_target - q_draft), unnormalised, [..., V]; p_target where rounding left nothing of it."""
    surplus = (p_target - q_draft).clamp(min=0.0)
    return torch.where(surplus.sum(dim=-1, keepdim=True) > _SMALLEST_PROBABILITY, surplus, p_target)


def _accepted_length(
    passed: Tensor, draft_tokens: Tensor, stop_token_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Leading tokens that passed, up to the first stop token, and whether there was one: [R] each."""
    prefix = passed.long().cumprod(dim=-1)
    if stop_token_ids is None:
        return prefix.sum(dim=-1), torch.zeros_like(passed[:, 0])
    stops = torch.isin(draft_tokens, stop_token_ids) & prefix.bool()
    before_first_stop = (stops.long().cumsum(dim=-1) - stops.long()) == 0
    return (prefix * before_first_stop).sum(dim=-1), stops.any(dim=-1)
