"""The forward passes of a live engine, over buffers that stay on the device.

``Passes`` owns what lies on the device: the caches of the target and the draft, and ``BatchState``. It knows
nothing of the serving model; ``LiveExecutor`` decides which pass runs when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simulator.core.errors import BadInputError
from simulator.live.device import OutOfMemoryError, is_out_of_memory
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows, side_by_side
from simulator.live.engine.batch_state import BatchState
from simulator.live.engine.graphs import Captured, Tiers
from simulator.live.engine.prompt_rows import PromptPiece
from simulator.live.families.architectures import LayerShape
from simulator.live.families.fused import replace
from simulator.live.models import checkpoints, sampling
from simulator.live.models.draft import Draft
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.kv_cache import DraftStep, cache_bytes
from simulator.live.models.targets import Target, TargetOutput

Finish = Callable[[PromptPiece, Tensor, Tensor], None]
"""Takes a piece of a prompt that has been processed, its last logits [V] and its features [n, width]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How a live engine runs, apart from what it runs.

    tiers: sizes that passes are padded to. attention, fuse: see ``RaggedTarget``. graphs: record CUDA graphs.
    keep_tokens: keep every request's output, for tests.
    """

    temperature: float = 0.0
    tiers: Tiers = field(default_factory=Tiers)
    attention: str = "auto"
    fuse: bool | None = None
    graphs: bool = True
    seed: int = 0
    keep_tokens: bool = False


class Passes:
    """Caches and batch state on a device, and the passes over them.

    rows: batch rows. prompt_rows: cache rows beyond them, for prompts that have no batch row yet. capacity:
    positions a row can hold. replayed: whether acceptance comes from a trace rather than from the logits.
    calibration: sequential temperatures [gamma] of the draft's confidences.
    largest_batch_tokens: of the steps so far; errors of memory name it.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None,
        *,
        rows: int,
        prompt_rows: int,
        capacity: int,
        replayed: bool,
        calibration: Sequence[float] | None,
        options: LiveOptions,
    ) -> None:
        self.options, self.target, self.draft_model, self.replayed = options, target, draft, replayed
        self.gamma = 0 if draft is None else draft.gamma
        self.layer_ids = () if draft is None else draft.target_layer_ids
        self.device = target.device
        self.ragged = RaggedTarget(target, options.attention, fuse=options.fuse)
        self._draft_replaced: list[replace.Replacement] = (
            replace.replacements(draft, options.fuse) if isinstance(draft, nn.Module) else []
        )
        self.largest_batch_tokens = 0
        self._temperatures = self._as_temperatures(calibration)
        self._require_memory(rows, prompt_rows, capacity)
        with self.memory(f"caches for {rows} requests of {capacity} positions"):
            self.cache = self.ragged.new_cache(rows + prompt_rows, capacity)
            self.draft_cache = None if draft is None else draft.new_cache(rows + prompt_rows + 1, capacity)
            self.state = BatchState.empty(
                rows,
                gamma=self.gamma,
                feature_width=target.hidden_size * len(self.layer_ids),
                vocab_size=None if sampling.is_greedy(options.temperature) else target.vocab_size,
                dtype=target.dtype,
                device=self.device,
            )
        self.captured = Captured(self.device, graphs=options.graphs)
        self._generator = torch.Generator(self.device).manual_seed(options.seed)

    def draft(self, requests: int, rows: int, context: int, *, head: bool = True) -> None:
        """Draft for the first ``requests`` rows of the batch; idempotent, nothing leaves the device.

        head: False leaves a DSpark draft's heads out, to time them by difference.
        """
        assert self.draft_model is not None
        assert self.draft_cache is not None
        state = self.state
        counts, cached = state.pending_count[:requests], state.cached[:requests]
        request, rank, valid = side_by_side(counts, rows)
        rank = rank.clamp(0, self.gamma)
        view = DraftStep(
            self.draft_cache,
            torch.where(valid, request, self.cache.trash),
            torch.where(valid, (cached - counts)[request] + rank, 0),
            cached,
            context=context,
            attend=self.ragged.draft_attend,
        )
        propose = self.draft_model.propose
        if not head:
            assert isinstance(self.draft_model, DSparkDraft)
            propose = self.draft_model.propose_in_parallel
        with torch.no_grad(), replace.installed(self._draft_replaced):
            proposal = propose(
                state.pending_features[request, rank], state.pending_tokens[request, rank], counts, view,
                temperature=self.options.temperature, uniforms=state.draft_uniforms(requests),
            )  # fmt: skip
        state.drafts[:requests] = proposal.tokens
        state.survival[:requests] = proposal.calibrated_survival(self._temperatures)
        if state.q_draft is not None and proposal.q_draft is not None:
            state.q_draft[:requests] = proposal.q_draft

    def verify(self, requests: int, rows: int, context: int, block: int) -> None:
        """Verify, and leave verdicts and the draft's next context; idempotent, nothing leaves the device."""
        ragged, tokens = self._decode_rows(requests, rows, context, block)
        output = self.ragged.forward(tokens, (ragged,), self.cache, layer_ids=self.layer_ids)
        self._judge(requests, ragged, output)

    def mixed(
        self,
        requests: int,
        rows: int,
        context: int,
        block: int,
        pieces: Sequence[PromptPiece],
        finish: Finish,
    ) -> None:
        """Verify, with prompt rows in the same forward pass; then what ``verify`` leaves, and ``finish``."""
        ragged, tokens = self._decode_rows(requests, rows, context, block)
        sizes = [len(piece.tokens) for piece in pieces]
        ends = rows - 1 + torch.tensor(sizes, device=self.device).cumsum(0)
        output = self.ragged.forward(
            torch.cat([tokens, *(piece.tokens for piece in pieces)]),
            (ragged, *(piece.rows for piece in pieces)),
            self.cache,
            layer_ids=self.layer_ids,
            logits_at=torch.cat((torch.arange(rows, device=self.device), ends)),
        )
        decoded = TargetOutput(output.logits[:rows], output.features[:rows])
        self._judge(requests, ragged, decoded)
        features = torch.split(output.features[rows:], sizes)
        for piece, logits, states in zip(pieces, output.logits[rows:], features, strict=True):
            finish(piece, logits, states)

    def _decode_rows(self, requests: int, rows: int, context: int, block: int) -> tuple[RaggedRows, Tensor]:
        """Anchors and admitted drafts side by side: their layout, and their tokens [rows]."""
        state = self.state
        counts, drafts = state.lengths[:requests] + 1, state.drafts[:requests]
        ragged = RaggedRows.of(counts, state.cached[:requests], rows, block=block, context=context)
        blocks = torch.cat((state.anchors[:requests, None], drafts), dim=1)
        return ragged, blocks[ragged.request, ragged.offset]

    def _judge(self, requests: int, ragged: RaggedRows, output: TargetOutput) -> None:
        """Accept or reject, and leave the verdicts and what the draft has not seen."""
        state, rows = self.state, len(ragged.request)
        lengths, drafts = state.lengths[:requests], state.drafts[:requests]
        verdict = sampling.verify(
            output.logits, drafts, lengths, temperature=self.options.temperature, **state.judging(requests)
        )
        accepted, following = verdict.accepted, verdict.next_tokens
        if self.replayed:
            accepted = torch.minimum(state.forced[:requests], lengths.clamp(min=0))
            last = (ragged.first_rows + accepted).clamp(max=rows - 1)
            following = output.logits[last].argmax(dim=-1)
        state.accepted[:requests], state.following[:requests] = accepted, following
        k = torch.arange(state.pending_tokens.shape[1], device=self.device)
        padded = torch.nn.functional.pad(drafts, (0, 1))[:, : len(k)]
        state.pending_tokens[:requests] = torch.where(k < accepted[:, None], padded, following[:, None])
        if self.layer_ids:
            kept = ragged.first_rows[:, None] + torch.minimum(k, accepted[:, None])
            state.pending_features[:requests] = output.features[kept.clamp(max=rows - 1)]

    # ---------------------------------------------------------------- prompts

    def prompt(self, piece: PromptPiece) -> tuple[Tensor, Tensor]:
        """Prompt rows alone through the target: logits [V] of the last one, features [n, width]."""
        with self.memory(f"prefilling {piece.end} tokens"):
            output = self.ragged.forward(
                piece.tokens, (piece.rows,), self.cache, layer_ids=self.layer_ids,
                logits_at=torch.tensor([len(piece.tokens) - 1], device=self.device),
            )  # fmt: skip
        return output.logits[-1], output.features

    def first_token(self, logits: Tensor) -> Tensor:
        """Choose the token behind a prompt from its last logits [V]."""
        uniform = self._uniforms(1) if self.sampled else None
        return sampling.choose(logits[None], self.options.temperature, uniform)[0]

    def see(self, piece: PromptPiece, features: Tensor) -> None:
        """Let the draft see these positions; of a prompt's last one the following token is not known yet."""
        known = len(piece.following)
        if known:
            self._remember(piece.row, features[:known], piece.following, piece.start)

    def _remember(self, row: int, features: Tensor, following: Tensor, start: int) -> None:
        """Let the draft see states at positions from ``start`` on; its proposal behind them is not used."""
        if self.draft_model is None or self.draft_cache is None:
            return
        count = len(features)
        view = DraftStep(
            self.draft_cache,
            torch.zeros(count, dtype=torch.int64, device=self.device),
            start + torch.arange(count, device=self.device),
            torch.tensor([start + count], device=self.device),
            context=start + count,
            first_row=row,
            attend=self.ragged.draft_attend,
        )
        with torch.no_grad(), replace.installed(self._draft_replaced):
            self.draft_model.propose(features, following, torch.tensor([count]), view)

    # ---------------------------------------------------------------- randomness and memory

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn rather than the most likely ones."""
        return not sampling.is_greedy(self.options.temperature)

    def draw_uniforms(self) -> None:
        """Draw the uniforms that this step's draft and decision consume."""
        if self.sampled:
            self.state.uniforms.uniform_(generator=self._generator)

    def _uniforms(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, device=self.device, generator=self._generator)

    def to_device(self, values: NDArray[Any]) -> Tensor:
        """Copy host values to the device without waiting."""
        host = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def row_bytes(self, capacity: int) -> int:
        """Cache bytes of one request at this capacity, target and draft together."""
        item = self.target.dtype.itemsize
        of_target = cache_bytes(self.target.layer_shapes, 0, capacity, item)
        if self.draft_model is None:
            return of_target
        shape = self.draft_model.shape
        layer = LayerShape(shape.num_key_value_heads, shape.head_dim)
        return of_target + cache_bytes((layer,) * shape.num_hidden_layers, 0, capacity, item)

    @contextmanager
    def memory(self, what: str) -> Iterator[None]:
        """Say what did not fit where memory runs out inside."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"{what} does not fit into the memory of {self.device}; the largest step that did had "
                f"{self.largest_batch_tokens} batch tokens. Lower the concurrency, shorten requests, or use "
                "smaller tiers"
            ) from error

    def _require_memory(self, rows: int, prompt_rows: int, capacity: int) -> None:
        """Refuse a batch whose caches cannot fit, and say how many requests do."""
        available, each = checkpoints.available_bytes(self.device), self.row_bytes(capacity)
        spare = prompt_rows + 1
        if available is not None and (rows + spare) * each > available:
            fits = max(0, available // each - spare)
            raise OutOfMemoryError(
                f"caches for {rows} requests of up to {capacity} positions need "
                f"{(rows + spare) * each / 2**30:.2f} GiB and {self.device} has {available / 2**30:.2f} GiB "
                f"free: {fits} requests fit; lower the concurrency or shorten the longest request"
            )

    def _as_temperatures(self, calibration: Sequence[float] | None) -> Tensor | None:
        if calibration is None:
            return None
        if len(calibration) != self.gamma:
            raise BadInputError(
                f"needs one temperature per drafted token, {self.gamma}", field="calibration",
                value=len(calibration), remedy="cut the trace to the draft's block size",
            )  # fmt: skip
        return torch.tensor(list(calibration), dtype=torch.float32, device=self.device)
