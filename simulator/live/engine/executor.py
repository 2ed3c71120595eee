"""The live executor: the serving model's steps run by torch, their durations measured.

It fills the seam that ``engine.simulated.SimulatedExecutor`` fills with look-ups, so a live run is the
simulator's own serving model, schedulers, traffic and metrics. A step drafts a block for every request, asks
the scheduler, runs the target over ragged rows, and commits. On a GPU it is two recorded graphs with the
scheduler's allocation between them, and the host waits for the device once, at the end: where the budget is
known before the draft (``dspark-async``, ``tiered``, fixed lengths), nothing else is waited for.

All state of a batch row lies in buffers on the device (``BatchState``); passes read and write them in place.
Between steps a row holds the anchor, how many positions of its context the target has processed, and the
hidden states of those that the draft has not seen yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.acceptance.trace import Replay
from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.engine.cursors import TraceCursors
from simulator.engine.executor import NO_PROMPTS, PromptRows, SchedulerError, Verified, check_lengths
from simulator.live.device import Marks, now_s, synchronise
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.observed import ObservedScheduler, StepTiming
from simulator.live.engine.passes import LiveOptions, Passes
from simulator.live.engine.prompt_rows import PrefilledPrompt
from simulator.live.engine.prompt_runner import PromptRunner
from simulator.live.engine.prompts import Prompts
from simulator.live.models.draft import Draft
from simulator.live.models.kv_cache import whole_pages
from simulator.live.models.pairs import check_pair
from simulator.live.models.targets import Target
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload


class LiveExecutor:
    """Runs the steps of one engine on a device; see ``engine.executor.Executor`` for the protocol.

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
        self.draft_model, self.workload, self.concurrency = draft, workload, concurrency
        rows = Tiers.fit(self.options.tiers.requests, concurrency)
        longest = int((workload.prompt_tokens + workload.output_tokens).max())
        gamma = 0 if draft is None else draft.gamma
        self.passes = Passes(
            target, draft, rows=rows, prompt_rows=prompt_rows, capacity=whole_pages(longest + 2 * gamma + 2),
            replayed=replays is not None, calibration=calibration, options=self.options,
        )  # fmt: skip
        self.gamma, self.device, self.state = gamma, target.device, self.passes.state
        self.prompts = PromptRunner(self.passes, prompts, workload, range(rows, rows + prompt_rows))
        self.timings: list[StepTiming] = []
        self.outputs: dict[int, list[int]] = {}
        self._trace = None if replays is None else self._cursors(replays, rows)
        self._cached = np.zeros(rows, dtype=np.int64)  # the host's own copies: it never asks the device
        self._pending = np.zeros(rows, dtype=np.int64)
        self._request = np.zeros(rows, dtype=np.int64)
        self._observed: ObservedScheduler | None = None
        self._step = _Step(self.device)
        if self.passes.captured.records:
            self._record_largest()

    def _record_largest(self) -> None:
        """Record the largest passes first: they size the memory pool that all graphs share."""
        rows, capacity, block = len(self.state.anchors), self.passes.cache.capacity, self.gamma + 1
        tokens = self._tier("rows", rows * block)
        self.state.lengths[:] = self.gamma
        with self.passes.memory(f"recording passes of {rows} requests"):
            self.passes.captured.run(
                ("verify", rows, tokens, capacity, block),
                lambda: self.passes.verify(rows, tokens, capacity, block),
            )
            if self.draft_model is not None:
                self.passes.captured.run(
                    ("draft", rows, tokens, capacity), lambda: self.passes.draft(rows, tokens, capacity)
                )

    def observe(self, scheduler: Scheduler, *, keep_records: bool = False) -> ObservedScheduler:
        """Return the scheduler for this executor: it passes on the budget where that is known early."""
        self._observed = ObservedScheduler(scheduler, keep_records=keep_records)
        return self._observed

    def forget_scheduler(self) -> None:
        """Forget the scheduler: lengths then come from the caller, and their sum is read off the device."""
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
            # The anchor, the last token of the context, is not processed yet.
            self._install(row, request, self.prompts.take(row, request, context - 1))
        if self._trace is not None:
            self._trace.place(rows, requests)

    def move(self, source: Rows, target: Rows) -> None:
        """Copy rows to where they are now, keys and values included."""
        if not source.size:
            return
        for before, after in zip(source.tolist(), target.tolist(), strict=True):
            used = int(self._cached[before])
            for cache in (self.passes.cache.keys, self.passes.cache.values):
                cache[:, after, :used] = cache[:, before, :used]
            drafted = self.passes.draft_cache
            if drafted is not None:
                for cache in (drafted.keys, drafted.values):
                    cache[:, after, :, :used] = cache[:, before, :, :used]
        self.state.move(source, target)
        for mine in (self._cached, self._pending, self._request):
            mine[target] = mine[source]
        if self._trace is not None:
            self._trace.move(source, target)

    def draft(self, count: int, *, head: bool = True) -> Tensor:
        """Enqueue a draft pass for rows 0..count-1; returns their survival [count, gamma], on the device.

        head: see ``Passes.draft``; False is for timing.
        """
        self._step = step = _Step(self.device, count, self._padded(count))
        step.capture_s = self.passes.captured.capture_s
        step.marks.mark()
        state = self.state
        if step.padded > count:
            for idle in (state.pending_count, state.cached):
                idle[count : step.padded] = 0
        if self.draft_model is not None:
            self.passes.draw_uniforms()
            rows = self._tier("rows", int(self._pending[:count].sum()))
            own = self.passes.ragged.draft_kernel_name == "split"
            context = self._context(int(self._cached[:count].max()), own)
            with self.passes.memory(f"drafting for {count} requests with contexts up to {context}"):
                self.passes.captured.run(
                    ("draft" if head else "draft without head", step.padded, rows, context),
                    lambda: self.passes.draft(step.padded, rows, context, head=head),
                )
        if self._trace is not None:
            state.survival[:count] = self.passes.to_device(
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
        accepted = self.passes.to_device(self._trace.accepted(self._step.count))
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
            self.state.forced[:count] = self.passes.to_device(self._trace.accepted(count))
        block = self._block(safe, draft_tokens)
        rows = self._tier("rows", count + draft_tokens + (step.padded > count))
        own = self.passes.ragged.kernel_name == "split"
        context = self._context(int(self._cached[:count].max()) + block, own)
        step.marks.mark()
        with self.passes.memory(
            f"verifying {count + draft_tokens} rows of {count} requests, contexts to {context}"
        ):
            if prompts.tokens:
                pieces = [piece for chunk in prompts.chunks for piece in self.prompts.pieces(chunk)]
                self.passes.mixed(step.padded, rows, context, block, pieces, self.prompts.finish)
            else:
                self.passes.captured.run(
                    ("verify", step.padded, rows, context, block),
                    lambda: self.passes.verify(step.padded, rows, context, block),
                )
        accepted = self._commit(lengths, safe)
        capture_s = self.passes.captured.capture_s - step.capture_s
        duration_s = now_s() - step.start_s - capture_s
        draft_s, visible_s, verify_s = step.marks.spans_s()
        self.timings.append(
            StepTiming(
                draft_s, step.schedule_s, visible_s, verify_s, duration_s, count,
                count + draft_tokens + prompts.tokens, step.padded, rows + prompts.tokens, capture_s,
            )
        )  # fmt: skip
        fitted = self.passes.largest_batch_tokens
        self.passes.largest_batch_tokens = max(fitted, self.timings[-1].batch_tokens)
        return Verified(accepted, draft_tokens, duration_s)

    def prefill(self, prompts: PromptRows) -> float:
        """Prefill prompts, one after the other, and keep what they leave until they get a row."""
        start_s = now_s()
        self.prompts.prefill(prompts)
        synchronise(self.device)
        return now_s() - start_s

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

    def _install(self, row: int, request: int, ready: PrefilledPrompt) -> None:
        state = self.state
        for cache, axis, content in ready.content:
            cache.select(1, row).narrow(axis, 0, content.shape[axis]).copy_(content)
        state.cached[row], state.pending_count[row] = ready.positions, 1
        state.anchors[row] = state.pending_tokens[row, 0] = ready.anchor
        if self.passes.layer_ids:
            state.pending_features[row, 0] = ready.last_features
        self._cached[row], self._pending[row], self._request[row] = ready.positions, 1, request
        if self.options.keep_tokens:
            self.outputs[request] = [int(ready.anchor)]

    # ---------------------------------------------------------------- sizes

    def _padded(self, count: int) -> int:
        return self._tier("requests", count)

    def _tier(self, axis: str, size: int) -> int:
        return Tiers.fit(getattr(self.options.tiers, axis), size)

    def _context(self, needed: int, own: bool) -> int:
        """Positions that attention is prepared to read; all, where each request reads its ``own`` anyhow."""
        if own:
            return self.passes.cache.capacity
        return min(self._tier("context", needed), self.passes.cache.capacity)

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

    def _require_tensor(self, lengths: Any) -> None:
        count = self._step.count
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != (count,):
            shown = (
                f"{getattr(lengths, 'dtype', type(lengths).__name__)} {tuple(getattr(lengths, 'shape', ()))}"
            )
            raise SchedulerError(f"the scheduler returned {shown} where int64 ({count},) is due")


class _Step:
    """What one step carries from its draft to its commit."""

    def __init__(self, device: torch.device, count: int = 0, padded: int = 0) -> None:
        self.start_s = now_s()
        self.marks = Marks(device)
        self.count, self.padded = count, padded
        self.drafted_s = self.schedule_s = self.capture_s = 0.0
