"""Draft models: what every draft can do, and DSpark's semi-autoregressive draft (DSpark section 3.1).

A DSpark draft proposes gamma tokens from one forward pass: a parallel backbone over [anchor, mask, ...]
that reads the target's hidden states through injected keys and values, then a cheap sequential head
that draws the tokens left to right. Without the head (Markov rank 0) it is DFlash. Checkpoints have
DeepSpec's config fields and state-dict keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simulator.errors import BadInputError
from simulator.live import checkpoints, sampling
from simulator.live.checkpoints import Fields
from simulator.live.heads import HEADS, ConfidenceHead, MarkovHead
from simulator.live.kv_cache import DraftContext
from simulator.live.layers import BackboneConfig, Block, DraftCache, KeysValues, Rotary


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
        """The same with sequential temperatures [gamma] (paper, section 3.2.1); None leaves it as it is."""
        if self.confidence_logits is None:
            return torch.ones(self.tokens.shape, device=self.tokens.device)
        logits = self.confidence_logits.float()
        if temperatures is not None:
            logits = logits / temperatures
        return torch.sigmoid(logits).cumprod(dim=-1)


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
    def embed_tokens(self) -> nn.Embedding:
        """The target's embedding, frozen; its weight tells dtype and device."""
        ...

    def new_cache(self, rows: int, capacity: int) -> DraftCache:
        """An empty cache for ``rows`` requests of up to ``capacity`` positions, drafted block included."""
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


ARCHITECTURE = "Qwen3DSparkModel"
"""As DeepSpec names DSpark and DFlash drafts in config.json."""

_PACKAGINGS = {
    "Eagle": "an Eagle drafter",
    "DFlash": "z-lab's DFlash packaging",
    "Deepseek": "DeepSeek's own packaging of MTP or V4 drafts",
    "DeepSeek": "DeepSeek's own packaging of MTP or V4 drafts",
    "ForCausalLM": "a whole language model, not a draft",
}
"""What an architecture's name gives away about checkpoints that share DeepSpec's field names."""


@dataclass(frozen=True, slots=True)
class DSparkConfig:
    """A DSpark (or DFlash) draft, in the field names of its config.json."""

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

    @classmethod
    def from_fields(cls, fields: Fields) -> DSparkConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        shape = BackboneConfig.from_fields(fields)
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
        """The config.json that DeepSpec would write for this draft."""
        fields: dict[str, Any] = self.shape.to_dict() | {
            "architectures": [ARCHITECTURE],
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


class DSparkDraft(nn.Module):
    """The DSpark draft; with ``markov_rank`` 0 and no confidence head it is DFlash."""

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__()
        shape, rank = config.shape, config.markov_rank
        d, width = shape.hidden_size, shape.hidden_size * len(config.target_layer_ids)
        self.config = config
        self.source: str | None = None
        self.embed_tokens = nn.Embedding(shape.vocab_size, d)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
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

    @property
    def gamma(self) -> int:
        """Block size: draft tokens per proposal."""
        return self.config.block_size

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the backbone."""
        return self.config.shape

    @property
    def num_target_layers(self) -> int:
        """Decoder layers of the target it was trained with."""
        return self.config.num_target_layers

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Target layers whose outputs are its context; -1 is the embedding output."""
        return self.config.target_layer_ids

    @property
    def has_confidence(self) -> bool:
        """Whether there is a confidence head."""
        return self.confidence_head is not None

    def new_cache(self, rows: int, capacity: int) -> DraftCache:
        """See ``Draft.new_cache``."""
        weight = self.fc.weight
        return DraftCache(self.shape, rows, capacity, dtype=weight.dtype, device=weight.device)

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
        context = self.project(features)
        self.remember(context, counts, cache)
        anchors = tokens[counts.cumsum(0).to(tokens.device) - 1]
        hidden = self.block_hidden(anchors, cache)
        drafted, logits, q_draft = self.draw(hidden, anchors, temperature=temperature, uniforms=uniforms)
        previous = torch.cat((anchors[:, None], drafted[:, :-1]), dim=1)
        return Proposal(drafted, logits, self.confidence_logits(hidden, previous), q_draft, hidden, context)

    def project(self, features: Tensor) -> Tensor:
        """What every layer attends to, from the target's states (equation 2): [..., width] -> [..., d]."""
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
        mask = cache.mask(beyond=self.gamma)
        hidden = self._embed_blocks(anchors)
        for index, layer in enumerate(self._blocks()):

            def reach(keys: Tensor, values: Tensor, index: int = index) -> KeysValues:
                cache.write(index, rows, positions, keys, values)
                return cache.read(index, beyond=self.gamma)

            hidden = layer(hidden, rope, reach, mask)
        normed: Tensor = self.norm(hidden)
        return normed

    def packed_hidden(self, features: Tensor, tokens: Tensor, anchors: Tensor) -> Tensor:
        """The backbone over many blocks of the same sequences in one pass (training, tracing).

        features: [S, T, width]; tokens: [S, T]; anchors: int64 [S, A], positions in the sequence.
        Block a attends to the context before its anchor and to itself. Returns [S, A, gamma, d].
        """
        sequences, length = tokens.shape
        context = self.project(features)
        context_rope = self.rotary(torch.arange(length, device=tokens.device), context.dtype)
        positions = anchors[..., None] + torch.arange(self.gamma, device=anchors.device)
        rope = self.rotary(positions.flatten(1), context.dtype)
        mask = packed_mask(anchors, length, self.gamma)
        hidden = self._embed_blocks(tokens.gather(1, anchors)).flatten(1, 2)
        for layer in self._blocks():
            past = layer.self_attn.keys_values(context, context_rope)

            def reach(keys: Tensor, values: Tensor, past: KeysValues = past) -> KeysValues:
                joined = torch.cat((past[0], keys), dim=1), torch.cat((past[1], values), dim=1)
                return joined[0].transpose(1, 2), joined[1].transpose(1, 2)

            hidden = layer(hidden, rope, reach, mask)
        normed: Tensor = self.norm(hidden)
        return normed.view(sequences, anchors.shape[1], self.gamma, -1)

    def draw(
        self, hidden: Tensor, anchors: Tensor, *, temperature: float = 0.0, uniforms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sequential stage (equation 4): draft tokens one by one, each seeing those before it.

        hidden: [..., gamma, d]; anchors: [...]; uniforms: [..., gamma]. Returns the tokens [..., gamma],
        the corrected logits [..., gamma, V] and, unless greedy, q_draft [..., gamma, V].
        """
        logits: Tensor = self.lm_head(hidden)
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
        logits: Tensor = self.lm_head(hidden)
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
        return embedded

    def _blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]


def packed_mask(anchors: Tensor, length: int, gamma: int) -> Tensor:
    """Who sees what when blocks are packed: bool [S, A * gamma, T + A * gamma].

    A block sees the context strictly before its anchor, whose features the target has not computed
    when the block is drafted, and all of itself.
    """
    sequences, blocks = anchors.shape
    context = torch.arange(length, device=anchors.device) < anchors[..., None]
    owner = torch.arange(blocks, device=anchors.device).repeat_interleave(gamma)
    own = (owner[:, None] == owner).expand(sequences, -1, -1)
    return torch.cat((context.repeat_interleave(gamma, dim=1), own), dim=2)


def load_draft(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    gamma: int | None = None,
) -> Draft:
    """Load a DSpark, DFlash or MTP-1 draft from a folder or a hub repository.

    ``dtype`` None keeps the checkpoint's. ``gamma``, where given, must be the block size that the
    draft was trained with. Raises ``BadInputError`` for a config, keys, shapes, dtypes or a file
    that are not what they should be, and before loading when memory does not suffice.
    """
    from simulator.live.mtp import ARCHITECTURE as MTP_ARCHITECTURE
    from simulator.live.mtp import MTPConfig, MTPDraft

    folder = checkpoints.model_folder(path)
    fields = checkpoints.read_fields(folder)
    is_mtp = _architecture(fields, (ARCHITECTURE, MTP_ARCHITECTURE)) == MTP_ARCHITECTURE
    with torch.device("meta"):  # no storage and no random numbers spent: every weight comes from the file
        draft: DSparkDraft | MTPDraft = (
            MTPDraft(MTPConfig.from_fields(fields))
            if is_mtp
            else DSparkDraft(DSparkConfig.from_fields(fields))
        )
    if gamma is not None and gamma != draft.gamma:
        raise BadInputError(
            f"the draft was trained for block size {draft.gamma}, not {gamma}",
            source=fields.source,
            field="block_size",
            value=gamma,
            remedy="verify fewer tokens with a scheduler, or train a draft for that block size",
        )
    device = torch.device(device)
    tensors = checkpoints.read_tensors(folder, device)
    checkpoints.require_same_tensors(tensors, draft.state_dict(), str(folder))
    dtype = dtype or checkpoints.one_dtype(tensors, str(folder))
    draft.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    draft.source = str(folder)
    return draft.to(device).eval().requires_grad_(False)


def _architecture(fields: Fields, known: Sequence[str]) -> str:
    """The architecture that a draft's config names; other packagings share field names and differ inside."""
    named = fields.raw.get("architectures")
    if isinstance(named, list) and len(named) == 1 and named[0] in known:
        return str(named[0])
    text = str(named[0]) if isinstance(named, list) and named else ""
    packaging = next((what for mark, what in _PACKAGINGS.items() if mark in text), None)
    if "speculators_config" in fields.raw or "speculators_model_type" in fields.raw:
        packaging = "vLLM's speculators format"
    problem = f"is {packaging}, which is not read here" if packaging else "names no draft that is read here"
    raise fields.error("architectures", problem, f"convert it to DeepSpec's {' or '.join(known)}")


def save_draft(draft: Draft, path: str | Path) -> None:
    """Write model.safetensors and config.json into a folder, each atomically, for ``load_draft``."""
    from simulator.live.mtp import MTPDraft

    if not isinstance(draft, (DSparkDraft, MTPDraft)):
        raise TypeError(f"cannot save a {type(draft).__name__}")
    dtype = str(draft.embed_tokens.weight.dtype).removeprefix("torch.")
    checkpoints.save_model(Path(path), draft.config.to_dict() | {"dtype": dtype}, draft.state_dict())
