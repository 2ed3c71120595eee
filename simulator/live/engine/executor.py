"""The live executor: the serving model's steps run by torch, their durations measured.

It fills the seam that ``executors.SimulatedExecutor`` fills with look-ups, so a live run is the simulator's
own serving model, schedulers, traffic and metrics. A step drafts a block for every request, asks the
scheduler, runs the target over ragged rows, and commits. On a GPU it is two recorded graphs with the
scheduler's allocation between them, and the host waits for the device once, at the end: where the budget
is known before the draft (``dspark-async``, ``tiered``, fixed lengths), nothing else is waited for.

All state of a batch row lies in buffers on the device (``BatchState``); passes read and write them in place.
Between steps a row holds the anchor, how many positions of its context the target has processed, and the
hidden states of those that the draft has not seen yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.acceptance.trace import Replay
from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.engine.cursors import TraceCursors
from simulator.engine.executor import NO_PROMPTS, Chunk, PromptRows, SchedulerError, Verified, check_lengths
from simulator.live.clock import now_s
from simulator.live.device import Marks, OutOfMemoryError, is_out_of_memory, synchronise
from simulator.live.engine.batch_state import BatchState
from simulator.live.engine.graphs import Captured, Tiers
from simulator.live.engine.observed import ObservedScheduler
from simulator.live.engine.prompt_rows import PrefilledPrompt, PromptPiece, prompt_slices
from simulator.live.engine.prompts import Prompts
from simulator.live.engine.ragged import RaggedRows, RaggedTarget, side_by_side
from simulator.live.engine.timing import StepTiming
from simulator.live.models import checkpoints, sampling
from simulator.live.models.draft import Draft
from simulator.live.models.kv_cache import DraftStep, cache_bytes, whole_pages
from simulator.live.models.pairs import check_pair
from simulator.live.models.targets import Target, TargetOutput
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How a live engine runs, apart from what it runs.

    tiers: sizes that passes are padded to. attention: a kernel of ``ragged``. graphs: record CUDA graphs.
    keep_tokens: keep every request's output, for tests.
    """

    temperature: float = 0.0
    tiers: Tiers = field(default_factory=Tiers)
    attention: str = "auto"
    graphs: bool = True
    seed: int = 0
    keep_tokens: bool = False


class LiveExecutor:
    """Runs the steps of one engine on a device; see ``executors.Executor`` for the protocol.

    draft: None for autoregressive decoding. replays: with one per traffic class, acceptance and survival
    come from recorded traces while every pass is real; a pair with random weights then costs what a
    trained one does. prompt_rows: prompts that may be prefilled in one step (see ``prompt_rows_for``).
    calibration: sequential temperatures [gamma] of the draft's confidences. timings: one per decode step.
    outputs: by request, when tokens are kept.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | None,
        workload: Workload,
        *,
        concurrency: int,
        prompts: Prompts,
        replays: Sequence[Replay] | None = None,
        prompt_rows: int = 1,
        calibration: Sequence[float] | None = None,
        options: LiveOptions | None = None,
    ) -> None:
        if draft is not None:
            check_pair(target, draft)
        self.options = options or LiveOptions()
        self.target, self.draft_model, self.workload, self.prompts = target, draft, workload, prompts
        self.gamma = 0 if draft is None else draft.gamma
        self.layer_ids = () if draft is None else draft.target_layer_ids
        self.device = target.device
        self.ragged = RaggedTarget(target, self.options.attention)
        self.concurrency = concurrency
        rows = Tiers.fit(self.options.tiers.requests, concurrency)
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        capacity = whole_pages(longest + 2 * self.gamma + 2)
        self._temperatures = self._as_temperatures(calibration)
        self._require_memory(rows, prompt_rows, capacity)
        with self._memory(f"caches for {rows} requests of {capacity} positions"):
            # Some rows more, where prompts are prefilled that have no batch row yet.
            self.cache = self.ragged.new_cache(rows + prompt_rows, capacity)
            self.draft_cache = None if draft is None else draft.new_cache(rows + prompt_rows + 1, capacity)
            self.state = BatchState.empty(
                rows,
                gamma=self.gamma,
                feature_width=target.hidden_size * len(self.layer_ids),
                vocab_size=None if sampling.is_greedy(self.options.temperature) else target.vocab_size,
                dtype=target.dtype,
                device=self.device,
            )
        self.captured = Captured(self.device, graphs=self.options.graphs)
        self.timings: list[StepTiming] = []
        self.outputs: dict[int, list[int]] = {}
        self._free_prompt_rows = list(range(rows, rows + prompt_rows))
        self._prompts_begun: dict[int, tuple[int, Tensor]] = {}  # their cache rows, and their tokens
        self._trace = None if replays is None else self._cursors(replays, rows)
        self._generator = torch.Generator(self.device).manual_seed(self.options.seed)
        self._ready: dict[int, PrefilledPrompt] = {}
        self._cached = np.zeros(rows, dtype=np.int64)  # the host's own copies: it never asks the device
        self._pending = np.zeros(rows, dtype=np.int64)
        self._request = np.zeros(rows, dtype=np.int64)
        self._observed: ObservedScheduler | None = None
        self._step = _Step(self.device)

    def observe(self, scheduler: Scheduler, *, keep_records: bool = False) -> ObservedScheduler:
        """Return the scheduler for this executor: it passes on the budget where that is known early."""
        self._observed = ObservedScheduler(scheduler, keep_records=keep_records)
        return self._observed

    def forget_scheduler(self) -> None:
        """From now on lengths come from anywhere."""
        self._observed = None

    def pretend(self, requests: int, context: int, pending: int = 1) -> None:
        """Put the first rows at this context, ``pending`` positions of it new to the draft: for timing."""
        self._cached[:requests], self._pending[:requests] = context, pending
        self.state.cached[:requests], self.state.pending_count[:requests] = context, pending
        synchronise(self.device)

    @property
    def drafting_s(self) -> float:
        """Seconds that the draft pass of the present step took; the device must be synchronised."""
        return self._step.marks.spans_s()[0]

    # ---------------------------------------------------------------- the protocol

    def place(self, rows: Rows, requests: Rows, context_tokens: Rows) -> None:
        """Prefill where that has not been done (a pool elsewhere would have), untimed, and fill the rows.

        A request that a closed loop catches in mid-output gets a prompt that is so much longer.
        """
        for row, request, context in zip(
            rows.tolist(), requests.tolist(), context_tokens.tolist(), strict=True
        ):
            positions = context - 1  # the anchor is not processed yet
            ready = self._ready.pop(request, None)
            if ready is None or ready.positions != positions:
                ready = self.prefill_row(row, request, positions)
            self._install(row, request, ready)
        if self._trace is not None:
            self._trace.place(rows, requests)

    def move(self, source: Rows, target: Rows) -> None:
        """Copy rows to where they are now, keys and values included."""
        if not source.size:
            return
        for before, after in zip(source.tolist(), target.tolist(), strict=True):
            used = int(self._cached[before])
            for cache in (self.cache.keys, self.cache.values):
                cache[:, after, :used] = cache[:, before, :used]
            if self.draft_cache is not None:
                for cache in (self.draft_cache.keys, self.draft_cache.values):
                    cache[:, after, :, :used] = cache[:, before, :, :used]
        self.state.move(source, target)
        for mine in (self._cached, self._pending, self._request):
            mine[target] = mine[source]
        if self._trace is not None:
            self._trace.move(source, target)

    def draft(self, count: int) -> Tensor:
        """Enqueue a draft pass for rows 0..count-1; returns their survival [count, gamma], on the device."""
        self._step = step = _Step(self.device, count, self._padded(count))
        step.capture_s = self.captured.capture_s
        step.marks.mark()
        state = self.state
        if step.padded > count:
            for idle in (state.pending_count, state.cached):
                idle[count : step.padded] = 0
        if self.draft_model is not None:
            self._draw_uniforms()
            rows = self._tier("rows", int(self._pending[:count].sum()))
            context = self._context(int(self._cached[:count].max()))
            with self._memory(f"drafting for {count} requests with contexts up to {context}"):
                self.captured.run(
                    ("draft", step.padded, rows, context),
                    lambda: self._draft_pass(step.padded, rows, context),
                )
        if self._trace is not None:
            state.survival[:count] = self._to_device(
                self._trace.survival(np.empty((count, self.gamma), np.float32))
            )
        state.survival_host[:count].copy_(state.survival[:count], non_blocking=True)
        step.marks.mark()
        step.drafted_s = now_s()
        return state.survival[:count, : self.gamma]

    def outcome(self) -> Tensor:
        """Known in advance only where acceptance is replayed."""
        if self._trace is None:
            raise BadInputError(
                "knows the outcome before the target has run", field="policy", value="oracle",
                remedy="run it trace-driven, or simulate it: it is a bound, not a policy",
            )  # fmt: skip
        accepted = self._to_device(self._trace.accepted(self._step.count))
        position = torch.arange(self.gamma, device=self.device)
        return (position < accepted[:, None]).to(torch.float32)

    def snapshot(self) -> NDArray[np.float32]:
        """Host copy of the survival just drafted."""
        return np.array(self.state.survival_host[: self._step.count, : self.gamma].numpy())

    def verify(self, lengths: Any, context_tokens: float, prompts: PromptRows = NO_PROMPTS) -> Verified:
        """Run the target over the anchors and so many drafts, commit, and wait for the device.

        A step with prompt rows is never recorded as a graph: no two are alike.
        """
        step, count = self._step, self._step.count
        step.schedule_s = now_s() - step.drafted_s
        self._require_tensor(lengths)
        safe = lengths.clamp(0, self.gamma)  # an invalid length must not become an invalid address
        draft_tokens = self._draft_tokens(safe)
        self.state.lengths[:count] = safe
        self.state.lengths[count : step.padded] = -1
        if self._trace is not None:
            self.state.forced[:count] = self._to_device(self._trace.accepted(count))
        block = self._block(safe, draft_tokens)
        rows = self._tier("rows", count + draft_tokens + (step.padded > count))
        context = self._context(int(self._cached[:count].max()) + block)
        step.marks.mark()
        with self._memory(
            f"verifying {count + draft_tokens} rows of {count} requests, contexts to {context}"
        ):
            if prompts.tokens:
                self._mixed_pass(rows, context, block, prompts.chunks)
            else:
                self.captured.run(
                    ("verify", step.padded, rows, context, block),
                    lambda: self._verify_pass(step.padded, rows, context, block),
                )
        accepted = self._commit(lengths, safe)
        capture_s = self.captured.capture_s - step.capture_s
        duration_s = now_s() - step.start_s - capture_s
        draft_s, visible_s, verify_s = step.marks.spans_s()
        self.timings.append(
            StepTiming(
                draft_s, step.schedule_s, visible_s, verify_s, duration_s, count,
                count + draft_tokens + prompts.tokens, step.padded, rows + prompts.tokens, capture_s,
            )
        )  # fmt: skip
        return Verified(accepted, draft_tokens, duration_s)

    def prefill(self, prompts: PromptRows) -> float:
        """Prefill prompts, one after the other, and keep what they leave until they get a row."""
        start_s = now_s()
        for chunk in prompts.chunks:
            for piece in self._pieces(chunk):
                self._finish(piece, *self._run_piece(piece))
        synchronise(self.device)
        return now_s() - start_s

    # ---------------------------------------------------------------- passes over the state

    def _draft_pass(self, requests: int, rows: int, context: int) -> None:
        """Draft for the first ``requests`` rows of the batch; idempotent, nothing leaves the device."""
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
        )
        with torch.no_grad():
            proposal = self.draft_model.propose(
                state.pending_features[request, rank], state.pending_tokens[request, rank], counts, view,
                temperature=self.options.temperature, uniforms=state.draft_uniforms(requests),
            )  # fmt: skip
        state.drafts[:requests] = proposal.tokens
        state.survival[:requests] = proposal.calibrated_survival(self._temperatures)
        if state.q_draft is not None and proposal.q_draft is not None:
            state.q_draft[:requests] = proposal.q_draft

    def _verify_pass(self, requests: int, rows: int, context: int, block: int) -> None:
        """Verify, and leave verdicts and the draft's next context; idempotent, nothing leaves the device."""
        ragged, tokens = self._decode_rows(requests, rows, context, block)
        output = self.ragged.forward(tokens, (ragged,), self.cache, layer_ids=self.layer_ids)
        self._judge(requests, ragged, output)

    def _mixed_pass(self, rows: int, context: int, block: int, chunks: Sequence[Chunk]) -> None:
        """Verify, with prompt rows in the same forward pass; then what ``_verify_pass`` and prefill leave."""
        pieces = [piece for chunk in chunks for piece in self._pieces(chunk)]
        ragged, tokens = self._decode_rows(self._step.padded, rows, context, block)
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
        self._judge(self._step.padded, ragged, decoded)
        features = torch.split(output.features[rows:], sizes)
        for piece, logits, states in zip(pieces, output.logits[rows:], features, strict=True):
            self._finish(piece, logits, states)

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
        if self._trace is not None:
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

    def _commit(self, lengths: Tensor, safe: Tensor) -> Rows:
        """Advance every row, fetch the verdicts, wait for the device; accepted lengths [count]."""
        state, count = self.state, self._step.count
        state.cached[:count] += state.accepted[:count] + 1
        state.pending_count[:count] = state.accepted[:count] + 1
        state.anchors[:count] = state.following[:count]
        state.accepted_host[:count].copy_(state.accepted[:count], non_blocking=True)
        broken = (safe != lengths).any().to("cpu", non_blocking=True)
        self._step.marks.mark()
        synchronise(self.device)
        if bool(broken):
            check_lengths(lengths.cpu().numpy(), count, self.gamma)
        accepted: Rows = np.array(state.accepted_host[:count].numpy())
        self._cached[:count] += accepted + 1
        self._pending[:count] = accepted + 1
        if self._trace is not None:
            self._trace.advance(accepted)
        if self.options.keep_tokens:
            committed = state.pending_tokens[:count].tolist()
            for row, tokens in enumerate(committed):
                self.outputs[int(self._request[row])] += tokens[: int(accepted[row]) + 1]
        return accepted

    # ---------------------------------------------------------------- prompts

    def prefill_row(self, row: int, request: int, positions: int) -> PrefilledPrompt:
        """Run a prompt through the target into a cache row, and all but its last position into the draft."""
        prompt = self._to_device(self.prompts(request, positions))
        for piece in prompt_slices(row, prompt, Chunk(request, 0, positions, True)):
            logits, features = self._run_piece(piece)
            self._see(piece, features)
        return self._prefilled(positions, logits, features)

    def _pieces(self, chunk: Chunk) -> list[PromptPiece]:
        """Return a chunk in the cache row that its prompt has until it is complete."""
        if chunk.request not in self._prompts_begun:
            self._prompts_begun[chunk.request] = self._begin_prompt(chunk)
        return prompt_slices(*self._prompts_begun[chunk.request], chunk)

    def _begin_prompt(self, chunk: Chunk) -> tuple[int, Tensor]:
        """Return a cache row for a prompt of which this is the first chunk, and its tokens on the device."""
        if chunk.start:
            raise BadInputError(
                "begins behind a cached prefix, which the live engine does not keep", field="prompt",
                value=chunk.request, remedy="run live without a prefix cache",
            )  # fmt: skip
        if not self._free_prompt_rows:
            raise BadInputError(
                "are all in use", field="prompt_rows", value=len(self._prompts_begun),
                remedy="give as many as prompts may share a step: prompt_rows_for(workload, limits)",
            )  # fmt: skip
        positions = int(self.workload.prompt_tokens[chunk.request])
        return self._free_prompt_rows.pop(), self._to_device(self.prompts(chunk.request, positions))

    def _run_piece(self, piece: PromptPiece) -> tuple[Tensor, Tensor]:
        """Prompt rows alone through the target: logits [V] of the last one, features [n, width]."""
        with self._memory(f"prefilling {piece.end} tokens"):
            output = self.ragged.forward(
                piece.tokens, (piece.rows,), self.cache, layer_ids=self.layer_ids,
                logits_at=torch.tensor([len(piece.tokens) - 1], device=self.device),
            )  # fmt: skip
        return output.logits[-1], output.features

    def _finish(self, piece: PromptPiece, logits: Tensor, features: Tensor) -> None:
        """Finish prompt rows that the target has processed."""
        self._see(piece, features)
        if piece.end == piece.positions:
            row, _ = self._prompts_begun.pop(piece.request)
            self._ready[piece.request] = self._stash(row, self._prefilled(piece.end, logits, features))
            self._free_prompt_rows.append(row)

    def _prefilled(self, positions: int, logits: Tensor, features: Tensor) -> PrefilledPrompt:
        uniform = self._uniforms(1) if self._sampled else None
        anchor = sampling.choose(logits[None], self.options.temperature, uniform)[0]
        return PrefilledPrompt(positions, anchor, features[-1])

    def _see(self, piece: PromptPiece, features: Tensor) -> None:
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
        )
        with torch.no_grad():
            self.draft_model.propose(features, following, torch.tensor([count]), view)

    def _install(self, row: int, request: int, ready: PrefilledPrompt) -> None:
        state = self.state
        for cache, axis, content in ready.content:
            cache.select(1, row).narrow(axis, 0, content.shape[axis]).copy_(content)
        state.cached[row], state.pending_count[row] = ready.positions, 1
        state.anchors[row] = state.pending_tokens[row, 0] = ready.anchor
        if self.layer_ids:
            state.pending_features[row, 0] = ready.last_features
        self._cached[row], self._pending[row], self._request[row] = ready.positions, 1, request
        if self.options.keep_tokens:
            self.outputs[request] = [int(ready.anchor)]

    def _stash(self, row: int, ready: PrefilledPrompt) -> PrefilledPrompt:
        """Return the same with copies of the cache row, so that the next prompt can use it."""
        used = ready.positions
        content = [(cache, 1, cache[:, row, :used].clone()) for cache in (self.cache.keys, self.cache.values)]
        if self.draft_cache is not None:
            both = (self.draft_cache.keys, self.draft_cache.values)
            content += [(cache, 2, cache[:, row, :, :used].clone()) for cache in both]
        return PrefilledPrompt(used, ready.anchor, ready.last_features, tuple(content))

    # ---------------------------------------------------------------- sizes

    def _padded(self, count: int) -> int:
        return self._tier("requests", count)

    def _tier(self, axis: str, size: int) -> int:
        return Tiers.fit(getattr(self.options.tiers, axis), size)

    def _context(self, needed: int) -> int:
        return min(self._tier("context", needed), self.cache.capacity)

    def _block(self, lengths: Tensor, draft_tokens: int) -> int:
        """Rows attention reserves per request: the longest, or any where finding out would mean to wait."""
        if not draft_tokens:
            return 1
        return self.gamma + 1 if self.device.type == "cuda" else int(lengths.max()) + 1

    def _draft_tokens(self, lengths: Tensor) -> int:
        """Return the draft budget K: from the scheduler where the host has it, else from the device."""
        early = None if self._observed is None else self._observed.draft_budget
        return int(lengths.sum()) if early is None else early

    def _cursors(self, replays: Sequence[Replay], rows: int) -> TraceCursors:
        """Where each row stands in the traces, which must fit the draft's block."""
        cursors = TraceCursors(replays, self.workload, capacity=rows, seed=self.options.seed)
        if cursors.gamma != self.gamma:
            raise BadInputError(
                f"must have the draft's block size {self.gamma}", field="acceptance", value=cursors.gamma,
                remedy="cut the trace, or take a draft of that block size",
            )  # fmt: skip
        return cursors

    def _as_temperatures(self, calibration: Sequence[float] | None) -> Tensor | None:
        if calibration is None:
            return None
        if len(calibration) != self.gamma:
            raise BadInputError(
                f"needs one temperature per drafted token, {self.gamma}", field="calibration",
                value=len(calibration), remedy="cut the trace to the draft's block size",
            )  # fmt: skip
        return torch.tensor(list(calibration), dtype=torch.float32, device=self.device)

    def _require_tensor(self, lengths: Any) -> None:
        count = self._step.count
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != (count,):
            shown = (
                f"{getattr(lengths, 'dtype', type(lengths).__name__)} {tuple(getattr(lengths, 'shape', ()))}"
            )
            raise SchedulerError(f"the scheduler returned {shown} where int64 ({count},) is due")

    # ---------------------------------------------------------------- randomness and memory

    @property
    def _sampled(self) -> bool:
        return not sampling.is_greedy(self.options.temperature)

    def _draw_uniforms(self) -> None:
        if self._sampled:
            self.state.uniforms.uniform_(generator=self._generator)

    def _uniforms(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, device=self.device, generator=self._generator)

    def _to_device(self, values: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def row_bytes(self, capacity: int) -> int:
        """Cache bytes of one request at this capacity, target and draft together."""
        item, ragged = self.target.dtype.itemsize, self.ragged
        of_target = cache_bytes(self.target.num_layers, 0, capacity, ragged.kv_heads, ragged.head_dim, item)
        if self.draft_model is None:
            return of_target
        shape = self.draft_model.shape
        return of_target + cache_bytes(
            shape.num_hidden_layers, 0, capacity, shape.num_key_value_heads, shape.head_dim, item
        )

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

    @contextmanager
    def _memory(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fitted = max((timing.batch_tokens for timing in self.timings), default=0)
            raise OutOfMemoryError(
                f"{what} does not fit into the memory of {self.device}; the largest step that did had "
                f"{fitted} batch tokens. Lower the concurrency, shorten requests, or use smaller tiers"
            ) from error


class _Step:
    """What one step carries from its draft to its commit."""

    def __init__(self, device: torch.device, count: int = 0, padded: int = 0) -> None:
        self.start_s = now_s()
        self.marks = Marks(device)
        self.count, self.padded = count, padded
        self.drafted_s = self.schedule_s = self.capture_s = 0.0
