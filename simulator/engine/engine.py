"""The serving model: requests wait, are admitted, prefill, decode step by step, and leave.

One ``Engine`` is one replica. It is a simpy process with a single event per engine step; the work
inside a step is vectorised over dense batch rows. Whether a step's duration was looked up or
measured on a GPU is the executor's affair, so a live run and a simulated one are this same code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from simulator.core.arrays import Floats, Rows
from simulator.core.random import random_stream
from simulator.cost.models import CostModel
from simulator.engine.batch import (
    BATCH_ROW,
    FINISHED_S,
    LAST_STEP,
    REMAINING,
    REQUEST,
    BatchRows,
    Described,
    History,
    Prompt,
    StepLog,
    arrived_and_waited,
    finished_log,
    joined_log,
)
from simulator.engine.executor import (
    NO_PROMPTS,
    Chunk,
    Executor,
    PromptRows,
    SchedulerError,
    Verified,
    learner_of,
)
from simulator.engine.limits import (
    EngineLimits,
    PrefillPool,
    check_closed_loop_advances,
    check_every_request_fits,
)
from simulator.schedulers.beyond.memory import Seen
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.traffic.workload import Workload

_SLOT, _KV, _STEP = range(3)


class Engine:
    """One replica: a queue, a batch, and the loop draft, schedule, verify, commit.

    Requests are indices into ``workload``; whoever routes them calls ``submit``. In a closed loop the
    engine itself takes the next request whenever a slot frees, starting over at the end, and the
    first ones are caught at a random point of their output, as if it had always been running.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        workload: Workload,
        executor: Executor,
        scheduler: Scheduler,
        believed: CostModel,
        limits: EngineLimits,
        *,
        seed: int = 0,
        pool: PrefillPool | None = None,
        on_leave: Callable[[int], None] | None = None,
    ) -> None:
        """Set up one replica.

        pool: a prefill pool shared with other engines, by default one of its own by ``limits``. on_leave: is
        told how many requests have just finished.
        """
        self.environment, self.workload, self.executor = environment, workload, executor
        self._on_leave = on_leave
        self.believed, self.limits = believed, limits
        self.learner = learner_of(scheduler, executor, workload, limits)
        self.scheduler = self.learner or scheduler
        self._lengths: Rows = np.zeros(0, dtype=np.int64)  # of the step under way, for a learner
        self.steps = StepLog()
        self._joined, self._finished = joined_log(workload, self.steps), finished_log(self.steps)
        self.completed = 0
        self.kv_reserved = 0
        self._kv_need = workload.prompt_tokens + workload.output_tokens + executor.gamma
        check_every_request_fits(workload, limits, executor.gamma)
        check_closed_loop_advances(workload, limits)
        self._waiting: deque[Prompt] = deque()
        self._prefilling: deque[Prompt] = deque()
        self._completing: list[Prompt] = []  # prompts whose prefill ends with the step under way
        self._unstarted = 0  # admitted, their prefill not begun
        self._pool = limits.pool() if pool is None else pool
        self._pool_starts: deque[float] = deque()  # of prompts in the pool's line: when they leave it
        self._in_pool: dict[int, Prompt] = {}  # by request: queued or prefilled there
        self._rows = BatchRows(limits.concurrency)
        self._history = History(scheduler.lag, limits.concurrency, executor.gamma)
        self._context_tokens = 0
        self._decode_steps = 0
        self._delivered_s = np.nan  # when the requests now in the batch last received tokens
        self._joined_late_s = 0.0  # how much later newcomers got their first, summed over them
        self._handover_s = 0.0
        self._queued_s, self._queue_seen_s = 0.0, environment.now
        self._kept_out_s = [0.0, 0.0, 0.0]  # time for which a slot, KV or the step kept the head of the line
        self._cause = _STEP
        self._next_closed = 0
        self._phase: list[float] = []
        if workload.is_closed_loop:
            self._phase = random_stream(seed, "closed-loop phase").random(limits.concurrency).tolist()
        self._wake: simpy.Event | None = None
        self.process = environment.process(self._run())

    @property
    def now_s(self) -> float:
        """The clock."""
        return float(self.environment.now)

    def expect(self, least_steps: int | None, finish: int, most_steps: int) -> None:
        """Take note of how far it will be run; this loop goes step by step and need not know."""

    def takes_arrivals(self) -> bool:
        """Return False: this loop is told of each request."""
        return False

    @property
    def load(self) -> int:
        """Requests on this replica, waiting or running: what a router balances."""
        admitted = len(self._prefilling) + len(self._completing) + self._rows.occupied
        return len(self._in_pool) + len(self._waiting) + admitted

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        """Submit a request that has arrived now; with a prefill pool it first queues there.

        ``cached_tokens`` of its prompt are in the prefix cache already: they fill the KV cache like any
        others but need no prefill.
        """
        now = self.environment.now
        prompt = Prompt(request, now, int(self.workload.prompt_tokens[request]) - cached_tokens)
        if self._pool is None:
            self._enqueue(prompt)
            return
        start_s, end_s = self._pool.take(prompt.left, now)
        prompt.left, prompt.waited_pool_s = 0, start_s - now
        self._in_pool[request] = prompt
        if start_s > now:
            self._watch_queue()
            self._pool_starts.append(start_s)
        event = self.environment.timeout(end_s - now)
        event.callbacks.append(lambda _: self._hand_over(prompt))

    def _hand_over(self, prompt: Prompt) -> None:
        """Take a request over from the pool with its first token: queue it, or finish it."""
        del self._in_pool[prompt.request]
        prompt.first_token_s = self.environment.now
        if int(self.workload.output_tokens[prompt.request]) > 1:
            self._enqueue(prompt)
            return
        prompt.admitted_s = self.environment.now
        self.kv_reserved += int(self._kv_need[prompt.request])  # given back at once: it has no place here
        self._join([prompt])

    def _enqueue(self, prompt: Prompt) -> None:
        self._watch_queue()
        self._waiting.append(prompt)
        if len(self._waiting) == 1:
            self._cause = self._what_keeps_out(prompt.request)
        prompt.kept_out_s = tuple(self._kept_out_s)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _what_keeps_out(self, request: int) -> int:
        """Name what the request at the head of the line waits for."""
        if not self._free_slots:
            return _SLOT
        return _STEP if self._fits(request) else _KV

    @property
    def _free_slots(self) -> int:
        taken = self._rows.occupied + len(self._prefilling) + len(self._completing)
        return self.limits.concurrency - taken

    def _fits(self, request: int) -> bool:
        capacity = self.limits.kv_tokens
        return capacity is None or self.kv_reserved + int(self._kv_need[request]) <= capacity

    def _watch_queue(self) -> None:
        """Add up the time in line so far; called before the line changes."""
        seen_s, now = self._queue_seen_s, self.environment.now
        self._queue_seen_s = now
        in_line, starts = len(self._waiting), self._pool_starts
        if not (in_line or starts or self._unstarted):
            return
        if in_line:
            self._kept_out_s[self._cause] += now - seen_s
        while starts and starts[0] <= now:
            self._queued_s += starts.popleft() - seen_s
        self._queued_s += (in_line + self._unstarted + len(starts)) * (now - seen_s)

    def delivery_s(self) -> Floats:
        """When each decode step so far delivered its tokens, [decode steps]."""
        return self.steps.delivery_s()

    def finished(self) -> Described:
        """Finished requests, in that order."""
        return Described(self._joined, self._finished.column)

    def decoding(self) -> Described:
        """Return the same of requests now in the batch, which have not finished."""
        rows = np.delete(self._rows.table[:, : self._rows.count], self._rows.holes, axis=1)
        return Described(self._joined, lambda name: rows[BATCH_ROW.index(name)].copy())

    def served_s(self) -> tuple[Floats, Floats]:
        """Of each request that has arrived, [n]: when, and when all that it waited for was over.

        As if all of it had come in one piece: arrival plus the sum of ``WAITS``; infinite for those who wait
        now. This is what ``engine.measures.saturation.is_saturated`` reads.
        """
        joined_s, joined_waited_s = arrived_and_waited(self._joined)
        started = [prompt for prompt in self._prefilling if prompt.started]
        served = [*self._in_pool.values(), *self._completing, *started]
        waiting = [*self._waiting, *(prompt for prompt in self._prefilling if not prompt.started)]
        under_way = [prompt.queued_s for prompt in (*served, *waiting)]
        arrived_s = np.concatenate([joined_s, under_way])
        waited = [prompt.waited_s for prompt in served] + [np.inf] * len(waiting)
        return arrived_s, arrived_s + np.concatenate([joined_waited_s, waited])

    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Run the step loop: one event a step."""
        environment, rows = self.environment, self._rows
        while True:
            self._admit()
            if not rows.count and not self._prefilling:
                self._wake = environment.event()
                yield self._wake
                continue
            prompts = self._next_prefill()
            if rows.count and (not prompts.tokens or self.limits.prefill == "chunked"):
                verified = self._decode(prompts)
                yield environment.timeout(verified.duration_s)
                self._commit(verified, prompts.tokens)
            else:
                duration_s = self.executor.prefill(prompts)
                yield environment.timeout(duration_s)
                self._record(duration_s, duration_s, 0, 0, 0, 0, prompts.tokens, 0.0)
            if self._completing:
                prefilled, self._completing = self._completing, []
                self._join(prefilled)

    # ---------------------------------------------------------------- one step

    def _decode(self, prompts: PromptRows) -> Verified:
        """Draft, schedule and verify one block for every row of the batch."""
        executor, history, count = self.executor, self._history, self._rows.count
        ending = sum(chunk.last for chunk in prompts.chunks) if prompts.tokens else 0
        batch = Batch(self.believed, self._context_tokens, prompts.tokens, history.lagged(count), ending)
        if self.learner is not None:
            executor.ask(self.learner.asks(count, batch))  # type: ignore[attr-defined]  # learner_of checked
        survival = executor.draft(count)
        if self.scheduler.reads_outcome:
            survival = executor.outcome()
        lengths = self.scheduler.schedule(survival, batch)
        try:
            verified = executor.verify(lengths, self._context_tokens, prompts)
        except SchedulerError as error:
            raise SchedulerError(f"decode step {self._decode_steps}: {error}") from error
        history.push(executor.snapshot())
        self._lengths = lengths
        return verified

    def _commit(self, verified: Verified, prefill_tokens: int) -> None:
        """Deliver the tokens of a finished step; a request's last block may overshoot its output."""
        self._decode_steps += 1
        count, now, duration_s = self._rows.count, self.environment.now, verified.duration_s
        gap_s = now - self._delivered_s
        if self.learner is not None:
            self.learner.observe(Seen(self._lengths, verified.accepted, duration_s, gap_s))
        decoding_s, self._joined_late_s = count * gap_s - self._joined_late_s, 0.0
        remaining = self._rows.table[REMAINING, :count]
        remaining -= verified.accepted + 1
        accepted, overshoot = int(np.add.reduce(verified.accepted)), 0
        done = (remaining <= 0).nonzero()[0]
        if done.size:
            overshoot = -int(np.add.reduce(remaining[done]))
            remaining[done] = 0
        delivered = accepted + count - overshoot
        self._context_tokens += delivered
        drafts = verified.draft_tokens
        self._record(duration_s, gap_s, count, drafts, accepted, delivered, prefill_tokens, decoding_s)
        if done.size:
            self._leave(self._rows.release(done))
        self._delivered_s = now if self._rows.occupied else math.nan

    def _record(
        self,
        duration_s: float,
        gap_s: float,
        count: int,
        drafts: int,
        accepted: int,
        committed: int,
        prefill: int,
        decoding_s: float,
    ) -> None:
        self._watch_queue()
        queued_s, self._queued_s = self._queued_s, 0.0
        handover_s = 0.0
        if count:
            handover_s, self._handover_s = self._handover_s, 0.0
        now = self.environment.now
        waiting = len(self._waiting) + self._unstarted + len(self._pool_starts)
        tokens = (count, drafts, accepted, committed, prefill)
        self.steps.append(now, duration_s, gap_s, *tokens, waiting, decoding_s, queued_s, handover_s)

    def _leave(self, left: Floats) -> None:
        """Let requests whose output is complete leave, with their batch rows ([columns, n])."""
        left[FINISHED_S] = self.environment.now
        left[LAST_STEP] = self._decode_steps
        self._finished.extend(left.T)
        self.completed += left.shape[1]
        needed = int(np.add.reduce(self._kv_need[left[REQUEST].astype(np.int64)]))
        self.kv_reserved -= needed
        self._context_tokens -= needed - left.shape[1] * self.executor.gamma
        if self._on_leave is not None:
            self._on_leave(left.shape[1])

    # ---------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Fill free slots from the head of the line, then close the holes that are left."""
        while admitted := self._admissible():  # again, as outputs of one token leave when they join
            if self.limits.prefill == "elsewhere":
                self._join(admitted)
            else:
                self._prefilling.extend(admitted)
                self._unstarted += len(admitted)
        if self._waiting:
            self._cause = self._what_keeps_out(self._waiting[0].request)
        if self._rows.holes.size:
            source, target = self._rows.close_holes()
            self._history.move(source, target)
            if self.learner is not None:
                self.learner.move(source, target)
            self.executor.move(source, target)

    def _admissible(self) -> list[Prompt]:
        """As many from the head of the line as there are free slots and room in the KV cache."""
        free = self._free_slots
        admitted: list[Prompt] = []
        while len(admitted) < free and (prompt := self._next_in_line()) is not None:
            admitted.append(prompt)
        return admitted

    def _next_in_line(self) -> Prompt | None:
        """Return the request at the head of the line if its KV cache fits; nobody overtakes it."""
        closed, now = self.workload.is_closed_loop, self.environment.now
        if not closed and not self._waiting:
            return None
        request = self._next_closed if closed else self._waiting[0].request
        if not self._fits(request):
            return None
        self.kv_reserved += int(self._kv_need[request])
        if closed:
            self._next_closed = (request + 1) % len(self._kv_need)
            return Prompt(request, now, int(self.workload.prompt_tokens[request]), now)
        self._watch_queue()
        prompt = self._waiting.popleft()
        prompt.admit(now, self._kept_out_s)
        return prompt

    def _next_prefill(self) -> PromptRows:
        """Prompt rows of the next step, first come first served; those they complete are ``_completing``."""
        if not self._prefilling:
            return NO_PROMPTS
        budget, whole = self.limits.chunk_tokens, self.limits.prefill == "whole"
        tokens, chunks = 0, list[Chunk]()
        while self._prefilling and tokens < budget:
            prompt = self._prefilling[0]
            take = prompt.left if whole else min(prompt.left, budget - tokens)
            if whole and tokens and tokens + take > budget:
                break
            start = int(self.workload.prompt_tokens[prompt.request]) - prompt.left
            if not prompt.started:
                prompt.started, prompt.waited_prefill_s = True, self.environment.now - prompt.admitted_s
                self._unstarted -= 1
            tokens += take
            prompt.left -= take
            chunks.append(Chunk(prompt.request, start, take, not prompt.left))
            if not prompt.left:
                self._completing.append(self._prefilling.popleft())
        return PromptRows(tokens, tuple(chunks))

    def _join(self, prompts: list[Prompt]) -> None:
        """Prefilled requests get batch rows; prefill has given each its first output token."""
        now, step, outputs = self.environment.now, self._decode_steps, self.workload.output_tokens
        rows_held, context = [], []
        for prompt in prompts:  # one or two as a rule: plain numbers beat arrays
            tokens = int(outputs[prompt.request]) - 1
            if self._phase:
                tokens = math.ceil(tokens * self._phase.pop())
            held = int(self._kv_need[prompt.request]) - self.executor.gamma - tokens
            self._context_tokens += held
            first_token_s = now if math.isnan(prompt.first_token_s) else prompt.first_token_s
            entry = len(self._joined)
            self._joined.append(*prompt.described(first_token_s, step, tokens))
            if tokens:
                self._handover_s += now - first_token_s
                rows_held.append((entry, prompt.request, tokens, 0.0, 0.0))
                context.append(held)
            else:
                self._leave(np.array((entry, prompt.request, 0.0, 0.0, 0.0))[:, None])
        if not rows_held:
            return
        self._delivered_s = now if math.isnan(self._delivered_s) else self._delivered_s
        self._joined_late_s += len(rows_held) * (now - self._delivered_s)
        table = np.array(rows_held).T
        rows = self._rows.take(table)
        self._history.place(rows)
        if self.learner is not None:
            self.learner.place(rows, self.workload.class_index[table[REQUEST].astype(np.int64)])
        self.executor.place(rows, table[REQUEST].astype(np.int64), np.array(context))
