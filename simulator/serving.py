"""The serving model: requests wait, are admitted, prefill, decode step by step, and leave.

One ``Engine`` is one replica. It is a simpy process with a single event per engine step; the work
inside a step is vectorised over dense batch rows. Whether a step's duration was looked up or
measured on a GPU is the executor's affair, so a live run and a simulated one are this same code.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.acceptance import random_stream
from simulator.cost import CostModel, Floats
from simulator.errors import BadInputError
from simulator.executors import NO_PROMPTS, Chunk, Executor, PromptRows, Rows, SchedulerError, Verified
from simulator.schedulers import Batch, Scheduler
from simulator.workload import Workload

Prefill = Literal["elsewhere", "chunked", "whole"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine admits and how it prefills.

    concurrency: requests that may be decoding or prefilling at once.
    kv_tokens: KV-cache capacity in tokens. A request reserves prompt + output + one block when it is
        admitted, so an admitted request never runs out. None: not limited.
    prefill: ``elsewhere`` (disaggregated, see below), ``chunked`` (up to ``chunk_tokens`` prompt rows
        ride along in every decode step) or ``whole`` (steps of whole prompts, up to ``chunk_tokens``
        rows or one prompt, during which decoding waits).
    prefill_tokens_per_s: speed of each worker of the pool that prefills elsewhere, first come first
        served. The pool emits the first output token; the wait for a slot and for KV cache comes after
        it, in the gap before the second. None: prefill takes no time and nothing is emitted before a
        slot is free. A closed loop's next request is always ready, whatever the speed.
    prefill_workers: workers of that pool. None: as many as there are prompts, so that none waits.
    """

    concurrency: int
    kv_tokens: int | None = None
    prefill: Prefill = "elsewhere"
    chunk_tokens: int = 2048
    prefill_tokens_per_s: float | None = None
    prefill_workers: int | None = 1

    def __post_init__(self) -> None:
        for name in ("concurrency", "kv_tokens", "chunk_tokens", "prefill_tokens_per_s", "prefill_workers"):
            value = getattr(self, name)
            if value is None:
                continue
            if not value > 0:  # NaN is not, either
                raise BadInputError("must be positive", field=name, value=value, remedy="give at least 1")
            if name != "prefill_tokens_per_s" and value != int(value):
                raise BadInputError("must be a whole number", field=name, value=value)
        if self.prefill not in ("elsewhere", "chunked", "whole"):
            known = "elsewhere, chunked or whole"
            raise BadInputError("is not known", field="prefill", value=self.prefill, remedy=known)

    @property
    def has_pool(self) -> bool:
        """Whether prompts are prefilled elsewhere at a known speed."""
        return self.prefill == "elsewhere" and self.prefill_tokens_per_s is not None

    @property
    def pool_tokens_per_s(self) -> float:
        """Prompt tokens per second of the whole pool; infinite where it has no speed or no end of workers."""
        if not self.has_pool or self.prefill_workers is None:
            return math.inf
        assert self.prefill_tokens_per_s is not None
        return self.prefill_tokens_per_s * self.prefill_workers

    def pool(self) -> PrefillPool | None:
        """A pool of its own for one engine, None without one."""
        if not self.has_pool:
            return None
        assert self.prefill_tokens_per_s is not None
        return PrefillPool(self.prefill_tokens_per_s, self.prefill_workers)


class PrefillPool:
    """Workers that prefill one prompt each at a time, first come first served; engines may share it."""

    def __init__(self, tokens_per_s: float, workers: int | None) -> None:
        self.tokens_per_s = tokens_per_s
        self._free_s = None if workers is None else [-math.inf] * workers  # a heap: when each is free

    def take(self, tokens: int, now: float) -> tuple[float, float]:
        """Queue a prompt that has come now: when its prefill starts and ends."""
        if self._free_s is None:
            return now, now + tokens / self.tokens_per_s
        start_s = max(now, self._free_s[0])
        end_s = start_s + tokens / self.tokens_per_s
        heapq.heapreplace(self._free_s, end_s)
        return start_s, end_s


class Step(NamedTuple):
    """One engine step as recorded. Times in seconds; the rest counts requests or tokens.

    gap_s is the time since the batch last received tokens: the duration, and any prefill in between. A
    newcomer's own gap differs (``metrics.first_gaps``). A step of nothing but prefill has ``requests`` 0.
    waiting: requests that have arrived and are not being served, be it in the pool's line, for a slot,
    for KV cache, or admitted with their prefill not begun. Three sums since the step before, in
    request-seconds: decoding_s is time in the batch, queued_s is time spent so ``waiting``, handover_s is
    what newcomers spent between the first token, from a prefill pool, and their place in the batch.
    """

    end_s: float
    duration_s: float
    gap_s: float
    requests: int
    draft_tokens: int
    accepted_tokens: int
    committed_tokens: int
    prefill_tokens: int
    waiting: int
    decoding_s: float
    queued_s: float
    handover_s: float


WAITS = ("waited_pool_s", "waited_slot_s", "waited_kv_s", "waited_step_s", "waited_prefill_s")
"""What a request waited for, in seconds. Together: all the time in which it had arrived and was not served.

In line it waits for what keeps the head of the line out: a slot, KV cache, or, where both are there, the
end of the step under way. waited_pool_s: for a worker of the prefill pool. waited_prefill_s: admitted,
until the first chunk of its own prompt.
"""
_SLOT, _KV, _STEP = range(3)

ADMITTED = (
    "request", "queued_s", "admitted_s", "first_token_s", *WAITS, "first_step", "decode_tokens"
)  # fmt: skip
"""What is known of a request when it joins the batch."""

# A row of the batch, kept as float64: where ``ADMITTED`` lies, whose it is, and what changes.
_BATCH_ROW = ("entry", "request", "remaining", "finished_s", "last_step")
_REQUEST, _REMAINING, _FINISHED_S, _LAST_STEP = range(1, len(_BATCH_ROW))


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
    ) -> None:
        """pool: a prefill pool shared with other engines, by default one of its own by ``limits``."""
        self.environment, self.workload, self.executor = environment, workload, executor
        self.scheduler, self.believed, self.limits = scheduler, believed, limits
        self.steps: list[Step] = []
        self._joined = array("d")  # ``ADMITTED`` of one request after the other, in order of joining
        self._finished: list[Floats] = []  # each [len(_BATCH_ROW), n], in order of completion
        self.completed = 0
        self.kv_reserved = 0
        self._kv_need = workload.prompt_tokens + workload.output_tokens + executor.gamma
        self._check_every_request_fits()
        self._check_closed_loop_advances()
        self._waiting: deque[_Prompt] = deque()
        self._prefilling: deque[_Prompt] = deque()
        self._completing: list[_Prompt] = []  # prompts whose prefill ends with the step under way
        self._unstarted = 0  # admitted, their prefill not begun
        self._pool = limits.pool() if pool is None else pool
        self._pool_starts: deque[float] = deque()  # of prompts in the pool's line: when they leave it
        self._in_pool: dict[int, _Prompt] = {}  # by request: queued or prefilled there
        self._rows = _BatchRows(limits.concurrency)
        self._history = _History(scheduler.lag, limits.concurrency, executor.gamma)
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
    def load(self) -> int:
        """Requests on this replica, waiting or running: what a router balances."""
        admitted = len(self._prefilling) + len(self._completing) + self._rows.occupied
        return len(self._in_pool) + len(self._waiting) + admitted

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        """A request has arrived now; with a prefill pool it first queues there.

        ``cached_tokens`` of its prompt are in the prefix cache already: they fill the KV cache like any
        others but need no prefill.
        """
        now = self.environment.now
        prompt = _Prompt(request, now, int(self.workload.prompt_tokens[request]) - cached_tokens)
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

    def _hand_over(self, prompt: _Prompt) -> None:
        """The pool has emitted a first token: the request gets in line, or is done if it wanted no more."""
        del self._in_pool[prompt.request]
        prompt.first_token_s = self.environment.now
        if int(self.workload.output_tokens[prompt.request]) > 1:
            self._enqueue(prompt)
            return
        prompt.admitted_s = self.environment.now
        self.kv_reserved += int(self._kv_need[prompt.request])  # given back at once: it has no place here
        self._join([prompt])

    def _enqueue(self, prompt: _Prompt) -> None:
        self._watch_queue()
        self._waiting.append(prompt)
        if len(self._waiting) == 1:
            self._cause = self._what_keeps_out(prompt.request)
        prompt.kept_out_s = tuple(self._kept_out_s)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _what_keeps_out(self, request: int) -> int:
        """What the request at the head of the line waits for."""
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
        return np.array([step.end_s for step in self.steps if step.requests])

    def finished(self) -> dict[str, Floats]:
        """Finished requests, in that order: ``ADMITTED``, ``remaining``, ``finished_s``, ``last_step``."""
        return self._described(np.concatenate([np.empty((len(_BATCH_ROW), 0)), *self._finished], axis=1))

    def decoding(self) -> dict[str, Floats]:
        """The same of requests now in the batch, which have not finished."""
        return self._described(np.delete(self._rows.table[:, : self._rows.count], self._rows.holes, axis=1))

    def served_s(self) -> tuple[Floats, Floats]:
        """Of each request that has arrived, [n]: when, and when all that it waited for was over.

        As if all of it had come in one piece: arrival plus the sum of ``WAITS``; infinite for those who wait
        now. This is what ``sla.is_saturated`` reads.
        """
        joined = np.array(self._joined).reshape(-1, len(ADMITTED))
        waits = [ADMITTED.index(name) for name in WAITS]
        started = [prompt for prompt in self._prefilling if prompt.started]
        served = [*self._in_pool.values(), *self._completing, *started]
        waiting = [*self._waiting, *(prompt for prompt in self._prefilling if not prompt.started)]
        under_way = [prompt.queued_s for prompt in (*served, *waiting)]
        arrived_s = np.concatenate([joined[:, ADMITTED.index("queued_s")], under_way])
        waited = [prompt.waited_s for prompt in served] + [np.inf] * len(waiting)
        return arrived_s, arrived_s + np.concatenate([joined[:, waits].sum(axis=1), waited])

    def _described(self, rows: Floats) -> dict[str, Floats]:
        joined = np.array(self._joined).reshape(-1, len(ADMITTED))[rows[0].astype(np.int64)]
        table = dict(zip(ADMITTED, joined.T, strict=True))
        changing = {"remaining": _REMAINING, "finished_s": _FINISHED_S, "last_step": _LAST_STEP}
        return table | {name: rows[row] for name, row in changing.items()}

    def _run(self) -> Generator[simpy.Event, Any, None]:
        """The step loop: one event a step."""
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
        survival = executor.draft(count)
        batch = Batch(self.believed, self._context_tokens, prompts.tokens, history.lagged(count))
        if self.scheduler.reads_outcome:
            survival = executor.outcome()
        lengths = self.scheduler.schedule(survival, batch)
        try:
            verified = executor.verify(lengths, self._context_tokens, prompts)
        except SchedulerError as error:
            raise SchedulerError(f"decode step {self._decode_steps}: {error}") from error
        history.push(executor.snapshot())
        return verified

    def _commit(self, verified: Verified, prefill_tokens: int) -> None:
        """Deliver the tokens of a finished step; a request's last block may overshoot its output."""
        self._decode_steps += 1
        count, now, duration_s = self._rows.count, self.environment.now, verified.duration_s
        gap_s = now - self._delivered_s
        decoding_s, self._joined_late_s = count * gap_s - self._joined_late_s, 0.0
        remaining = self._rows.table[_REMAINING, :count]
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
        self.steps.append(Step(now, duration_s, gap_s, *tokens, waiting, decoding_s, queued_s, handover_s))

    def _leave(self, left: Floats) -> None:
        """Requests whose output is complete leave, with their batch rows ([columns, n])."""
        left[_FINISHED_S] = self.environment.now
        left[_LAST_STEP] = self._decode_steps
        self._finished.append(left)
        self.completed += left.shape[1]
        needed = int(np.add.reduce(self._kv_need[left[_REQUEST].astype(np.int64)]))
        self.kv_reserved -= needed
        self._context_tokens -= needed - left.shape[1] * self.executor.gamma

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
            self.executor.move(source, target)

    def _admissible(self) -> list[_Prompt]:
        """As many from the head of the line as there are free slots and room in the KV cache."""
        free = self._free_slots
        admitted: list[_Prompt] = []
        while len(admitted) < free and (prompt := self._next_in_line()) is not None:
            admitted.append(prompt)
        return admitted

    def _next_in_line(self) -> _Prompt | None:
        """The request at the head of the line if its KV cache fits; nobody overtakes it."""
        closed, now = self.workload.is_closed_loop, self.environment.now
        if not closed and not self._waiting:
            return None
        request = self._next_closed if closed else self._waiting[0].request
        if not self._fits(request):
            return None
        self.kv_reserved += int(self._kv_need[request])
        if closed:
            self._next_closed = (request + 1) % len(self._kv_need)
            return _Prompt(request, now, int(self.workload.prompt_tokens[request]), now)
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

    def _join(self, prompts: list[_Prompt]) -> None:
        """Prefilled requests get batch rows; prefill has given each its first output token."""
        now, step, outputs = self.environment.now, self._decode_steps, self.workload.output_tokens
        rows_held, context, width = [], [], len(ADMITTED)
        for prompt in prompts:  # one or two as a rule: plain numbers beat arrays
            tokens = int(outputs[prompt.request]) - 1
            if self._phase:
                tokens = math.ceil(tokens * self._phase.pop())
            held = int(self._kv_need[prompt.request]) - self.executor.gamma - tokens
            self._context_tokens += held
            first_token_s = now if math.isnan(prompt.first_token_s) else prompt.first_token_s
            entry = len(self._joined) // width
            self._joined.extend(prompt.described(first_token_s, step, tokens))
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
        self.executor.place(rows, table[_REQUEST].astype(np.int64), np.array(context))

    def _check_closed_loop_advances(self) -> None:
        workload, prefilled = self.workload, self.limits.prefill == "elsewhere"
        if workload.is_closed_loop and prefilled and np.all(workload.output_tokens == 1):
            raise BadInputError(
                "of 1 everywhere leave nothing to decode, and a closed loop no reason to advance",
                field="output_tokens", remedy="give longer outputs, or prefill on the engine",
            )  # fmt: skip

    def _check_every_request_fits(self) -> None:
        capacity = self.limits.kv_tokens
        if capacity is not None and self._kv_need.max(initial=0) > capacity:
            request = int(np.argmax(self._kv_need))
            raise BadInputError(
                f"request {request} needs {self._kv_need[request]} tokens of KV cache and could never run",
                field="kv_tokens", value=capacity, remedy="raise the capacity or drop the request",
            )  # fmt: skip


@dataclass(slots=True)
class _Prompt:
    """A request on its way into the batch; ``left`` counts prompt tokens still to prefill.

    kept_out_s: the engine's counters of what kept the line out, first as they stood when this request got
    in line, then, once it is admitted, what it waited for.
    """

    request: int
    queued_s: float
    left: int
    admitted_s: float = np.nan
    first_token_s: float = np.nan  # known early where a prefill pool emits it
    waited_pool_s: float = 0.0
    kept_out_s: tuple[float, ...] = (0.0, 0.0, 0.0)
    waited_prefill_s: float = 0.0
    started: bool = False

    def admit(self, now: float, kept_out_s: list[float]) -> None:
        """It leaves the line."""
        self.admitted_s = now
        self.kept_out_s = tuple(
            after - before for before, after in zip(self.kept_out_s, kept_out_s, strict=True)
        )

    @property
    def waited_s(self) -> float:
        """All that it has waited for, if it is waiting no more."""
        return self.waited_pool_s + sum(self.kept_out_s) + self.waited_prefill_s

    def described(self, first_token_s: float, first_step: int, tokens: int) -> tuple[float, ...]:
        """``ADMITTED`` of it, now that it joins the batch with so many tokens to decode."""
        return (
            self.request, self.queued_s, self.admitted_s, first_token_s, self.waited_pool_s, *self.kept_out_s,
            self.waited_prefill_s, first_step, tokens,
        )  # fmt: skip


class _BatchRows:
    """The table of requests in flight, one dense column range 0..count-1, holes only between steps."""

    def __init__(self, capacity: int) -> None:
        self.table = np.zeros((len(_BATCH_ROW), capacity))
        self.count = 0
        self.holes: Rows = np.empty(0, dtype=np.int64)

    @property
    def occupied(self) -> int:
        return self.count - self.holes.size

    def release(self, rows: Rows) -> Floats:
        """Open these rows; returns what they held."""
        self.holes = np.concatenate([self.holes, rows]) if self.holes.size else rows
        return self.table[:, rows]

    def take(self, entry: Floats) -> Rows:
        """Rows for newcomers, holes first; stores ``entry`` [columns, n] there."""
        wanted = entry.shape[1]
        rows, self.holes = self.holes[:wanted], self.holes[wanted:]
        if rows.size < wanted:
            added = np.arange(self.count, self.count + wanted - rows.size)
            self.count += added.size
            rows = np.concatenate([rows, added])
        self.table[:, rows] = entry
        return rows

    def close_holes(self) -> tuple[Rows, Rows]:
        """Move rows from the end of the batch into the holes; returns (source, target)."""
        count = self.occupied
        tail = np.arange(count, self.count)
        source = tail[~np.isin(tail, self.holes)]
        target = self.holes[self.holes < count]
        self.table[:, target] = self.table[:, source]
        self.count, self.holes = count, self.holes[:0]
        return source, target


class _History:
    """Survival of the last ``lag`` steps, rows kept aligned with the batch, 1 for newcomers."""

    def __init__(self, lag: int, capacity: int, gamma: int) -> None:
        self._steps = deque(np.ones((capacity, gamma), dtype=np.float32) for _ in range(lag))

    def lagged(self, count: int) -> NDArray[np.float32] | None:
        """Survival [count, gamma] from ``lag`` steps before, None without a lag."""
        return self._steps[0][:count] if self._steps else None

    def push(self, survival: NDArray[np.float32]) -> None:
        """Remember this step's survival, forget the oldest."""
        if self._steps:
            oldest = self._steps.popleft()
            oldest[: len(survival)] = survival
            self._steps.append(oldest)

    def place(self, rows: Rows) -> None:
        """Newcomers have no past: they count as certain."""
        for step in self._steps:
            step[rows] = 1.0

    def move(self, source: Rows, target: Rows) -> None:
        """Rows move within the batch."""
        for step in self._steps:
            step[target] = step[source]
