"""Draft models: what every draft can do, and DSpark's semi-autoregressive draft (DSpark section 3.1).

A DSpark draft proposes gamma tokens from one forward pass: a parallel backbone over [anchor, mask, ...]
that reads the target's hidden states through injected keys and values, then a cheap sequential head
that draws the tokens left to right. Without the head (Markov rank 0) it is DFlash. Checkpoints have
DeepSpec's config fields and state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.models import sampling
from simulator.live.models.checkpoints import Fields
from simulator.live.models.draft import DraftModule, PackedBlocks, Proposal
from simulator.live.models.drafts.blocks.gemma4 import GemmaBlock, GemmaTraits, read_gemma
from simulator.live.models.drafts.blocks.streams import StreamBlock
from simulator.live.models.drafts.heads import HEADS, ConfidenceHead, MarkovHead
from simulator.live.models.kv_cache import DraftContext
from simulator.live.models.layers import BackboneConfig, Block, KeysValues, Rotary

ARCHITECTURE, GEMMA4 = "Qwen3DSparkModel", "Gemma4DSparkModel"
"""As DeepSpec names DSpark and DFlash drafts in config.json."""


@dataclass(frozen=True, slots=True)
class DSparkConfig:
    """A DSpark (or DFlash) draft, in the field names of its config.json. gemma: of one for Gemma 4."""

    shape: BackboneConfig
    block_size: int
    mask_token_id: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    markov_rank: int
    markov_head_type: str
    enable_confidence_head: bool
    confidence_head_with_markov: bool
    num_anchors: int
    gemma: GemmaTraits | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> DSparkConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        is_gemma = GEMMA4 in (fields.raw.get("architectures") or ())
        shape, gemma = read_gemma(fields) if is_gemma else (BackboneConfig.from_fields(fields), None)
        rank = fields.integer("markov_rank", 0)
        confidence = fields.flag("enable_confidence_head", False)
        config = cls(
            shape=shape,
            block_size=fields.integer("block_size", minimum=1),
            mask_token_id=fields.integer("mask_token_id"),
            num_target_layers=fields.integer("num_target_layers", minimum=1),
            target_layer_ids=fields.integers("target_layer_ids"),
            markov_rank=rank,
            markov_head_type=fields.raw.get("markov_head_type") or "vanilla",
            enable_confidence_head=confidence,
            confidence_head_with_markov=confidence and fields.flag("confidence_head_with_markov", False),
            num_anchors=fields.integer("num_anchors", 512, minimum=1),
            gemma=gemma,
        )
        if config.mask_token_id >= shape.vocab_size:
            raise fields.error("mask_token_id", f"must be below the vocabulary size {shape.vocab_size}")
        if config.markov_head_type not in HEADS:
            raise fields.error("markov_head_type", f"must be one of {', '.join(HEADS)}")
        if config.confidence_head_with_markov and rank == 0:
            raise fields.error("confidence_head_with_markov", "needs a Markov head, and markov_rank is 0")
        config._check_layer_ids(fields)
        return config

    def _check_layer_ids(self, fields: Fields) -> None:
        ids, last = self.target_layer_ids, self.num_target_layers - 2
        if not ids or sorted(set(ids)) != list(ids) or ids[0] < -1:
            raise fields.error("target_layer_ids", "must be strictly increasing, from -1 (the embeddings) on")
        if ids[-1] > last:
            raise fields.error(
                "target_layer_ids",
                f"may go up to {last}: of the target's last layer, training data hold the raw state and "
                "transformers the normed one",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the config.json that DeepSpec would write for this draft."""
        layers = self.shape.to_dict() if self.gemma is None else self.gemma.to_dict(self.shape)
        fields: dict[str, Any] = layers | {
            "architectures": [ARCHITECTURE if self.gemma is None else GEMMA4],
            "block_size": self.block_size,
            "enable_confidence_head": self.enable_confidence_head,
            "markov_rank": self.markov_rank,
            "mask_token_id": self.mask_token_id,
            "num_anchors": self.num_anchors,
            "num_target_layers": self.num_target_layers,
            "target_layer_ids": list(self.target_layer_ids),
        }
        if self.markov_rank:
            fields["markov_head_type"] = self.markov_head_type
        if self.enable_confidence_head:
            fields["confidence_head_with_markov"] = self.confidence_head_with_markov
        return fields


class DSparkDraft(DraftModule):
    """The DSpark draft; with ``markov_rank`` 0 and no confidence head it is DFlash."""

    config: DSparkConfig
    window: int | None = None
    """Positions of its context that a block sees, the last ones; None: all."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__()
        shape, rank = config.shape, config.markov_rank
        d, width = shape.hidden_size, shape.hidden_size * len(config.target_layer_ids)
        self.config = config
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        self.layers = nn.ModuleList(self._new_block() for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.fc = nn.Linear(width, d, bias=False)
        self.hidden_norm = nn.RMSNorm(d, eps=shape.rms_norm_eps)
        self.lm_head = nn.Linear(d, shape.vocab_size, bias=False)
        self.rotary = Rotary(shape)
        self.markov_head: MarkovHead | None = (
            HEADS[config.markov_head_type](shape.vocab_size, d, rank) if rank else None
        )
        self.confidence_head = (
            ConfidenceHead(d, rank if config.confidence_head_with_markov else 0)
            if config.enable_confidence_head
            else None
        )

    def _new_block(self) -> Block | StreamBlock:
        shape, gemma = self.config.shape, self.config.gemma
        return Block(shape) if gemma is None else GemmaBlock(shape, gemma)

    @property
    def gamma(self) -> int:
        """Block size: draft tokens per proposal."""
        return self.config.block_size

    @property
    def has_confidence(self) -> bool:
        """Whether there is a confidence head."""
        return self.confidence_head is not None

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
        """See ``Draft.propose``."""
        context, anchors, hidden = self._parallel_stage(features, tokens, counts, cache)
        drafted, logits, q_draft = self.draw(hidden, anchors, temperature=temperature, uniforms=uniforms)
        previous = torch.cat((anchors[:, None], drafted[:, :-1]), dim=1)
        return Proposal(drafted, logits, self.confidence_logits(hidden, previous), q_draft, hidden, context)

    def propose_in_parallel(
        self,
        features: Tensor,
        tokens: Tensor,
        counts: Tensor,
        cache: DraftContext,
        *,
        temperature: float = 0.0,
        uniforms: Tensor | None = None,
    ) -> Proposal:
        """Propose without the heads, each position by itself: what ``propose`` takes longer is theirs."""
        context, _, hidden = self._parallel_stage(features, tokens, counts, cache)
        logits = self.base_logits(hidden)
        drafted = sampling.choose(logits, temperature, uniforms)
        q_draft = None if sampling.is_greedy(temperature) else sampling.distribution(logits, temperature)
        return Proposal(drafted, logits, None, q_draft, hidden, context)

    def _parallel_stage(
        self, features: Tensor, tokens: Tensor, counts: Tensor, cache: DraftContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected context [N, d], anchors [R] and the backbone's output [R, gamma, d]."""
        context = self.project(features)
        self.remember(context, counts, cache)
        anchors = tokens[counts.cumsum(0).to(tokens.device) - 1]
        return context, anchors, self.block_hidden(anchors, cache)

    def project(self, features: Tensor) -> Tensor:
        """Project the target's states for every layer (equation 2): [..., width] -> [..., d]."""
        context: Tensor = self.hidden_norm(self.fc(features))
        return context

    def remember(self, context: Tensor, counts: Tensor, cache: DraftContext) -> None:
        """Append context [N, d], ``counts`` entries for each request, to the cache of every layer."""
        rows, positions = cache.claim(counts)
        rope = self.rotary(positions, context.dtype)
        for index, layer in enumerate(self._blocks()):
            cache.write(index, rows, positions, *layer.self_attn.keys_values(context, rope))

    def block_hidden(self, anchors: Tensor, cache: DraftContext) -> Tensor:
        """One backbone pass over [anchor, mask, ...] of each request: anchors [R] -> [R, gamma, d].

        Slot k stands at the position of draft token k and predicts the one after it. The block's own
        keys and values go into the cache behind the context, where the next context overwrites them.
        """
        rows = torch.arange(cache.rows, device=anchors.device)[:, None]
        positions = cache.lengths.to(anchors.device)[:, None] + torch.arange(
            self.gamma, device=anchors.device
        )
        rope = self.rotary(positions, self.fc.weight.dtype)
        mask = cache.mask(beyond=self.gamma, window=self.window)
        hidden = self._embed_blocks(anchors)
        for index, layer in enumerate(self._blocks()):

            def reach(keys: Tensor, values: Tensor, index: int = index) -> KeysValues:
                cache.write(index, rows, positions, keys, values)
                return cache.read(index, beyond=self.gamma, window=self.window)

            hidden = layer(hidden, rope, reach, mask)
        return self._left(hidden)

    def packed_hidden(self, features: Tensor, tokens: Tensor, anchors: Tensor) -> Tensor:
        """Run the backbone over many blocks of the same sequences in one pass (training, tracing).

        features: [S, n, width], up to the last anchor or further; tokens: [S, T]; anchors: int64 [S, A],
        positions in the sequence.
        Block a attends to the context before its anchor and to itself. Returns [S, A, gamma, d].
        """
        sequences, length = features.shape[:2]
        context = self.project(features)
        context_rope = self.rotary(torch.arange(length, device=tokens.device), context.dtype)
        positions = anchors[..., None] + torch.arange(self.gamma, device=anchors.device)
        rope = self.rotary(positions.flatten(1), context.dtype)
        mask = packed_mask(anchors, length, self.gamma, self.window)
        hidden = self._embed_blocks(tokens.gather(1, anchors)).flatten(1, 2)
        for layer in self._blocks():
            past = layer.self_attn.keys_values(context, context_rope)

            def reach(keys: Tensor, values: Tensor, past: KeysValues = past) -> KeysValues:
                joined = torch.cat((past[0], keys), dim=1), torch.cat((past[1], values), dim=1)
                return joined[0].transpose(1, 2), joined[1].transpose(1, 2)

            hidden = layer(hidden, rope, reach, mask)
        return self._left(hidden).view(sequences, anchors.shape[1], self.gamma, -1)

    def packed_blocks(
        self, features: Tensor, tokens: Tensor, anchors: Tensor, *, follow: bool
    ) -> PackedBlocks:
        """See ``Draft.packed_blocks``."""
        hidden = self.packed_hidden(features, tokens, anchors)
        if follow:
            slots = anchors[..., None] + torch.arange(self.gamma, device=anchors.device)
            previous = tokens.gather(1, slots.flatten(1)).view(slots.shape)
            logits = self.teacher_forced_logits(hidden, previous)
            drafted = logits.argmax(dim=-1)
        else:
            anchored = tokens.gather(1, anchors)
            drafted, logits, _ = self.draw(hidden, anchored)
            previous = torch.cat((anchored[..., None], drafted[..., :-1]), dim=-1)
        return PackedBlocks(drafted, logits, self.confidence_logits(hidden, previous))

    def base_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of the backbone's output [..., d], before the sequential head."""
        logits: Tensor = self.lm_head(hidden)
        return logits if self.config.gemma is None else self.config.gemma.capped(logits)

    def draw(
        self, hidden: Tensor, anchors: Tensor, *, temperature: float = 0.0, uniforms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw the sequential stage (equation 4): draft tokens one by one, each seeing those before it.

        hidden: [..., gamma, d]; anchors: [...]; uniforms: [..., gamma]. Returns the tokens [..., gamma],
        the corrected logits [..., gamma, V] and, unless greedy, q_draft [..., gamma, V].
        """
        logits = self.base_logits(hidden)
        greedy = sampling.is_greedy(temperature)
        previous, state, tokens = anchors, None, []
        for k in range(self.gamma):
            if self.markov_head is not None:
                embedding = self.markov_head.markov_w1(previous)
                row, state = self.markov_head.step(embedding, hidden[..., k, :], state)
                logits[..., k, :] += self.markov_head.markov_w2(row)
            uniform = None if uniforms is None else uniforms[..., k]
            previous = sampling.choose(logits[..., k, :], temperature, uniform)
            tokens.append(previous)
        q_draft = None if greedy else sampling.distribution(logits, temperature)
        return torch.stack(tokens, dim=-1), logits, q_draft

    def teacher_forced_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Corrected logits [..., gamma, V] of known tokens: hidden [..., gamma, d], previous [..., gamma]."""
        logits = self.base_logits(hidden)
        return logits if self.markov_head is None else logits + self.markov_head(previous, hidden)

    def confidence_logits(self, hidden: Tensor, previous: Tensor) -> Tensor | None:
        """Confidence logits [..., gamma], from h_k and the token before (equation 7), or None."""
        if self.confidence_head is None:
            return None
        embedding = None
        if self.config.confidence_head_with_markov and self.markov_head is not None:
            embedding = self.markov_head.markov_w1(previous)
        logits: Tensor = self.confidence_head(hidden, embedding)
        return logits

    def _embed_blocks(self, anchor_tokens: Tensor) -> Tensor:
        blocks = anchor_tokens.new_full((*anchor_tokens.shape, self.gamma), self.config.mask_token_id)
        blocks[..., 0] = anchor_tokens
        embedded: Tensor = self.embed_tokens(blocks)
        gemma = self.config.gemma
        return embedded if gemma is None else embedded * gemma.embed_scale(self.shape, embedded.dtype)

    def _left(self, hidden: Tensor) -> Tensor:
        """Turn the last layer's output into what the heads read."""
        normed: Tensor = self.norm(hidden)
        return normed

    def _blocks(self) -> list[Block | StreamBlock]:
        return [layer for layer in self.layers if isinstance(layer, (Block, StreamBlock))]


def packed_mask(anchors: Tensor, length: int, gamma: int, window: int | None = None) -> Tensor:
    """Who sees what when blocks are packed: bool [S, A * gamma, T + A * gamma].

    A block sees the context strictly before its anchor, whose features the target has not computed
    when the block is drafted, and all of itself. window: of the context only the last so many positions.
    """
    sequences, blocks = anchors.shape
    position = torch.arange(length, device=anchors.device)
    context = position < anchors[..., None]
    if window is not None:
        context &= position >= anchors[..., None] - window
    owner = torch.arange(blocks, device=anchors.device).repeat_interleave(gamma)
    own = (owner[:, None] == owner).expand(sequences, -1, -1)
    return torch.cat((context.repeat_interleave(gamma, dim=1), own), dim=2)
