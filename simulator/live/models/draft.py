"""What every drafter offers the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simulator.live.models import checkpoints
from simulator.live.models.kv_cache import DraftContext
from simulator.live.models.layers import BackboneConfig, DraftCache


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """What a draft proposes for R requests in one step.

    tokens: int64 [R, gamma]. logits: [R, gamma, V], the ones the tokens were chosen from.
    confidence_logits: [R, gamma], logit of P(token k is accepted | those before are), or None for a
    draft without a confidence head. q_draft: [R, gamma, V], what the tokens were drawn from, or None
    when greedy. hidden: [R, gamma, d], the backbone's output. context: [N, d], the new context as the
    draft's layers saw it.
    """

    tokens: Tensor
    logits: Tensor
    confidence_logits: Tensor | None
    q_draft: Tensor | None
    hidden: Tensor
    context: Tensor

    @property
    def survival(self) -> Tensor:
        """P(the whole prefix up to k is accepted), [R, gamma]; all ones from a draft that has no opinion."""
        return self.calibrated_survival(None)

    def calibrated_survival(self, temperatures: Tensor | None) -> Tensor:
        """Apply sequential temperatures [gamma] (paper, section 3.2.1); None leaves logits as they are."""
        if self.confidence_logits is None:
            return torch.ones(self.tokens.shape, device=self.tokens.device)
        logits = self.confidence_logits.float()
        if temperatures is not None:
            logits = logits / temperatures
        return torch.sigmoid(logits).cumprod(dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class PackedBlocks:
    """Blocks drafted at A anchors of S sequences at once, for recording.

    tokens: int64 [S, A, gamma]. logits: [S, A, gamma, V], what each token is chosen from.
    confidence_logits: [S, A, gamma], None without a confidence head.
    """

    tokens: Tensor
    logits: Tensor
    confidence_logits: Tensor | None


class Draft(Protocol):
    """A draft model: it turns what the target has newly processed into a proposal."""

    @property
    def gamma(self) -> int:
        """Block size: draft tokens per proposal."""
        ...

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the draft's layers; vocabulary and hidden size are the target's."""
        ...

    @property
    def num_target_layers(self) -> int:
        """Decoder layers of the target it was trained with."""
        ...

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Which of the target's states are its input, in ``Target.forward``'s numbering."""
        ...

    @property
    def has_confidence(self) -> bool:
        """Whether proposals carry confidences."""
        ...

    @property
    def source(self) -> str | None:
        """The folder it was loaded from."""
        ...

    @property
    def digest(self) -> str:
        """Digest of config and weights, as ``Target.digest``; read each time, as training changes them."""
        ...

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The target's embedding, frozen; its weight tells dtype and device."""
        ...

    def new_cache(self, rows: int, capacity: int) -> DraftCache:
        """Make an empty cache for ``rows`` requests of up to ``capacity`` positions, block included."""
        ...

    def propose(
        self,
        features: Tensor,
        tokens: Tensor,
        counts: Tensor,
        cache: DraftContext,
        *,
        temperature: float = 0.0,
        uniforms: Tensor | None = None,
    ) -> Proposal:
        """Draft gamma tokens for each of R requests.

        features: [N, width], the target's states at the N positions newly committed, request after
        request; counts: int64 [R] on the CPU, how many of them each request has (at least 1);
        tokens: int64 [N], the token that follows each of those positions, so that a request's last
        one is its anchor. uniforms: [R, gamma] in [0, 1), at a temperature above 0.
        The cache afterwards covers every committed position before the anchors.
        """
        ...

    def packed_blocks(
        self, features: Tensor, tokens: Tensor, anchors: Tensor, *, follow: bool
    ) -> PackedBlocks:
        """Draft a block at each of many anchors of the same sequences.

        features: [S, n, width], the target's states at the first n positions, which reach to the last
        anchor's; tokens: [S, T], which reach beyond each block; anchors: int64 [S, A], positions, each at
        least 1. follow: each draft token follows the sequence's own tokens, as where those before it
        were accepted; else it follows the block's own greedy ones.
        """
        ...


class DraftConfig(Protocol):
    """What every draft's config.json says."""

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the draft's layers."""
        ...

    @property
    def num_target_layers(self) -> int:
        """Decoder layers of the target it was trained with."""
        ...

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Which of the target's states are the draft's input; see ``Draft.target_layer_ids``."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """Return the config.json."""
        ...


class DraftModule(nn.Module):
    """What all drafts answer from their config and their weights; see ``Draft``."""

    config: DraftConfig
    embed_tokens: nn.Embedding
    lm_head: nn.Linear
    source: str | None = None
    in_float32: tuple[str, ...] = ()
    """How tensors end that stay in float32 whatever the others are."""

    def read(self, folder: Path, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint under the names of this module."""
        return checkpoints.read_tensors(folder, device)

    @property
    def shape(self) -> BackboneConfig:
        """See ``Draft.shape``."""
        return self.config.shape

    @property
    def num_target_layers(self) -> int:
        """See ``Draft.num_target_layers``."""
        return self.config.num_target_layers

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """See ``Draft.target_layer_ids``."""
        return self.config.target_layer_ids

    @property
    def digest(self) -> str:
        """See ``Draft.digest``."""
        return checkpoints.content_digest(self.config.to_dict(), self.state_dict())

    def new_cache(self, rows: int, capacity: int) -> DraftCache:
        """See ``Draft.new_cache``."""
        weight = self.lm_head.weight
        return DraftCache(self.shape, rows, capacity, dtype=weight.dtype, device=weight.device)
