"""What a draft is trained on: anchors, packed blocks, and the three losses (DSpark section 3.3).

Blocks of one sequence are packed into a single forward pass and teacher-forced. All sums are kept as
numerators with one shared denominator, so that they add up over micro-batches and devices before the
division. Symbols: S sequences of T tokens, A anchors each, block size gamma, vocabulary V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from simulator.live.models.drafts.dspark import DSparkDraft

# Keeps a batch without a single supervised token from dividing by zero, as in the reference.
_DENOMINATOR_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How the losses are mixed (equations 9-12); DFlash trains with (1, 0, 0).

    ``decay`` is the scale over which later positions of a block count less: w_k = exp(-k / decay),
    k from 0. The paper sets it to the block size, the reference's configurations to 4.
    """

    cross_entropy: float = 0.1
    l1: float = 0.9
    confidence: float = 1.0
    decay: float = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Supervised blocks: anchors [S, A]; previous, labels (int64) and mask (bool), each [S, A, gamma].

    previous: the token before each slot's label, the anchor first. The mask keeps a contiguous prefix
    of each block: labels inside the sequence and in its loss mask, of anchors that are not padding.
    """

    anchors: Tensor
    previous: Tensor
    labels: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class BlockOutput:
    """The teacher-forced draft: hidden [S, A, gamma, d], logits [..., V], confidence_logits [...] or None."""

    hidden: Tensor
    logits: Tensor
    confidence_logits: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class LossSums:
    """Weighted sums of the three losses and of the weights; they add over batches.

    acceptance: [S, A, gamma], 1 - L1 / 2, the probability that the target accepts a token drawn from
    the draft there (equation 8), detached.
    """

    cross_entropy: Tensor
    l1: Tensor
    confidence: Tensor
    weight: Tensor
    acceptance: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Return the loss to minimise, a scalar (equation 12)."""
        mixed = (
            weights.cross_entropy * self.cross_entropy
            + weights.l1 * self.l1
            + weights.confidence * self.confidence
        )
        return mixed / (self.weight + _DENOMINATOR_FLOOR)


def anchor_candidates(loss_mask: Tensor) -> Tensor:
    """Where an anchor may stand: bool [S, T - 1], itself and the token after it supervised."""
    supervised = loss_mask.bool()
    return supervised[:, :-1] & supervised[:, 1:]


def sample_anchors(
    loss_mask: Tensor, count: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw up to ``count`` anchors per sequence without replacement, in order.

    Returns anchors int64 [S, count] and keep bool [S, count]; a sequence with fewer candidates is
    filled up with anchors at 0 that ``keep`` marks as padding.
    """
    candidates = anchor_candidates(loss_mask)
    scores = torch.rand(candidates.shape, generator=generator, device=loss_mask.device)
    scores = scores.masked_fill(~candidates, 2.0)  # behind every candidate
    drawn = scores.argsort(dim=1)[:, :count]
    keep = candidates.gather(1, drawn)
    anchors = torch.where(keep, drawn, candidates.shape[1]).sort(dim=1).values
    missing = (0, count - drawn.shape[1])
    keep = torch.nn.functional.pad(anchors < candidates.shape[1], missing)
    return torch.nn.functional.pad(anchors, missing).masked_fill(~keep, 0), keep


def make_blocks(tokens: Tensor, loss_mask: Tensor, anchors: Tensor, keep: Tensor, gamma: int) -> Blocks:
    """Cut the blocks behind the anchors: tokens and loss_mask [S, T]; anchors and keep [S, A]."""
    length = tokens.shape[1]
    slots = anchors[..., None] + torch.arange(gamma, device=tokens.device)
    inside = slots + 1 < length
    before, after = slots.clamp(max=length - 1).flatten(1), (slots + 1).clamp(max=length - 1).flatten(1)
    supervised = loss_mask.bool().gather(1, after).view(slots.shape) & inside & keep[..., None]
    return Blocks(
        anchors=anchors,
        previous=tokens.gather(1, before).view(slots.shape),
        labels=tokens.gather(1, after).view(slots.shape),
        mask=supervised.long().cumprod(dim=-1).bool(),
    )


def forward_blocks(draft: DSparkDraft, features: Tensor, tokens: Tensor, blocks: Blocks) -> BlockOutput:
    """Run the draft over all blocks at once, teacher-forced: features [S, T, width], tokens [S, T]."""
    hidden = draft.packed_hidden(features, tokens, blocks.anchors)
    logits = draft.teacher_forced_logits(hidden, blocks.previous)
    return BlockOutput(hidden, logits, draft.confidence_logits(hidden, blocks.previous))


def target_logits(last_hidden: Tensor, head: Tensor, blocks: Blocks) -> Tensor:
    """Compute the target's logits for every label, [S, A, gamma, V], from final-normed states [S, T, d].

    Passing states instead of logits keeps training data small; the label at j was predicted at j - 1.
    """
    slots = blocks.anchors[..., None] + torch.arange(blocks.labels.shape[-1], device=last_hidden.device)
    rows = slots.clamp(max=last_hidden.shape[1] - 1).flatten(1)
    states = last_hidden.gather(1, rows[..., None].expand(-1, -1, last_hidden.shape[-1]))
    return torch.nn.functional.linear(states, head).view(*slots.shape, -1)


def loss_sums(output: BlockOutput, target: Tensor, blocks: Blocks, weights: LossWeights) -> LossSums:
    """Weighted sums of cross-entropy, L1 distance and confidence BCE over the supervised slots.

    target: the target's logits [S, A, gamma, V]. A draft without confidences has a BCE of zero.
    """
    gamma = blocks.labels.shape[-1]
    decay = torch.exp(-torch.arange(gamma, device=target.device, dtype=torch.float32) / weights.decay)
    weight = decay * blocks.mask
    logits = output.logits.float()
    p_target = torch.softmax(target.float(), dim=-1)
    distance = (torch.softmax(logits, dim=-1) - p_target).abs().sum(dim=-1)
    acceptance = (1 - distance.detach() / 2).clamp(0.0, 1.0)
    ce = cross_entropy(logits.flatten(0, -2), blocks.labels.flatten(), reduction="none").view(weight.shape)
    bce = torch.zeros_like(weight)
    if output.confidence_logits is not None:
        bce = binary_cross_entropy_with_logits(output.confidence_logits.float(), acceptance, reduction="none")
    return LossSums(
        cross_entropy=(weight * ce).sum(),
        l1=(weight * distance).sum(),
        confidence=(weight * bce).sum(),
        weight=weight.sum(),
        acceptance=acceptance,
    )


def probabilistic_tau(acceptance: Tensor, mask: Tensor) -> Tensor:
    """Compute the expected accepted length under sampling, bonus included, over the blocks with any label.

    tau = 1 + sum_k prod_(i<=k) (1 - L1_i / 2); acceptance and mask [S, A, gamma].
    """
    survival = (acceptance * mask).cumprod(dim=-1)
    return 1 + survival.sum(dim=-1)[mask.any(dim=-1)].mean()
