"""The serving model with its step loop compiled: ``engine.engine`` again, many steps at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator
from typing import Any, Self

import numpy as np
import simpy

from simulator.core.arrays import Floats
from simulator.core.random import random_stream
from simulator.cost.models import CostModel
from simulator.engine.batch import (
    BATCH_ROW,
    Described,
    Prompt,
    StepLog,
    arrived_and_waited,
    finished_log,
    joined_log,
)
from simulator.engine.limits import (
    EngineLimits,
    PrefillPool,
    check_closed_loop_advances,
    check_every_request_fits,
)
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides import flat_cost, policies
from simulator.engine.strides.jit import direct
from simulator.engine.strides.lines import enqueue, join, watch_queue
from simulator.engine.strides.loop import CROWDED, FULL, UNDER_WAY, stride
from simulator.engine.strides.memory import PROMPT, STATE, STEPS_KEPT, Memory, Records, allocate
from simulator.schedulers.early_stop import WatchedDSpark
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload

_NONE = np.iinfo(np.int64).max

# ``memory.allocate`` makes all arrays, so their types never differ.
_stride, _enqueue, _watch_queue, _join = direct(stride), direct(enqueue), direct(watch_queue), direct(join)

_FIELDS = np.dtype((np.void, STATE))
"""The fields of ``STATE`` read by name alone: as attributes they take Python ten times as long."""


class StridingEngine:
    """One replica whose steps between two outside events run in compiled code.

    It does what ``Engine`` does, bit for bit. Between events its state is ahead of the clock: it has taken
    every step that ends before the next arrival. ``horizon`` says when that is; the default is the next event
    of the environment.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        workload: Workload,
        executor: SimulatedExecutor,
        scheduler: Scheduler,
        limits: EngineLimits,
        memory: Memory,
        *,
        pool: PrefillPool | None = None,
        horizon: Callable[[], float] | None = None,
        on_leave: Callable[[int], None] | None = None,
    ) -> None:
        """Use ``StridingEngine.of``, which lays the memory out."""
        self.environment, self.workload, self.executor = environment, workload, executor
        self.scheduler, self.limits = scheduler, limits
        check_every_request_fits(workload, limits, executor.gamma)
        check_closed_loop_advances(workload, limits)
        self.steps = StepLog()
        self._memory, self._state = memory, memory.state.view(_FIELDS)[0]
        self._joined, self._finished = joined_log(workload, self.steps), finished_log(self.steps)
        self._pool = limits.pool() if pool is None else pool
        self._in_pool: dict[int, Prompt] = {}
        self._handovers: list[float] = []  # a heap: when prompts leave the pool
        self._horizon = environment.peek if horizon is None else horizon
        self._on_leave = on_leave
        self._wake: simpy.Event | None = None
        self.process = environment.process(self._run())

    @classmethod
    def of(
        cls,
        environment: simpy.Environment,
        workload: Workload,
        executor: SimulatedExecutor,
        scheduler: Scheduler,
        believed: CostModel,
        limits: EngineLimits,
        *,
        seed: int = 0,
        **options: Any,
    ) -> Self | None:
        """Lay an engine out; None where the policy or a cost model is one that only Python can run."""
        rows = limits.concurrency * (executor.gamma + 1) + _most_prompt_rows(workload, limits)
        policy = policies.flatten(scheduler, limits.concurrency, executor.gamma)
        cost = flat_cost.flatten(executor.cost, limits.concurrency, rows)
        if policy is None or cost is None:
            return None
        same = believed is executor.cost
        table = cost if same else flat_cost.flatten(believed, limits.concurrency, rows)
        if table is None:
            return None
        phase = np.empty(0)
        if workload.is_closed_loop:
            phase = random_stream(seed, "closed-loop phase").random(limits.concurrency)
        memory = allocate(workload, executor.traces, limits, policy, cost, table, phase)
        return cls(environment, workload, executor, scheduler, limits, memory, **options)

    @property
    def now_s(self) -> float:
        """When the last step ended, or the last request came."""
        return float(self._state["now_s"])

    @property
    def completed(self) -> int:
        """Requests that have finished."""
        return int(self._state["completed"])

    @property
    def kv_reserved(self) -> int:
        """Tokens of KV cache that are promised to requests."""
        return int(self._state["kv_reserved"])

    @property
    def load(self) -> int:
        """Requests on this replica, waiting or running: what a router balances."""
        names = ("waiting", "prefilling", "completing", "count")
        return len(self._in_pool) + sum(int(self._state[name]) for name in names)

    def expect(self, least_steps: int | None, finish: int, most_steps: int) -> None:
        """Say how far it will be run: strides go no further."""
        self._state["least_steps"] = _NONE if least_steps is None else least_steps
        self._state["finish"], self._state["most_steps"] = finish, most_steps

    # ---------------------------------------------------------------- arrivals

    def takes_arrivals(self) -> bool:
        """Take every request of the workload at its time, from now on: see ``ServingEngine``."""
        if self._pool is not None or self.workload.is_closed_loop:
            return False
        self._state["arrivals"] = len(self.workload)
        return True

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        """Submit a request that has arrived now; see ``Engine.submit``."""
        now = float(self.environment.now)
        prompt = Prompt(request, now, int(self.workload.prompt_tokens[request]) - cached_tokens)
        if self._pool is None:
            self._enqueue(prompt)
            return
        start_s, end_s = self._pool.take(prompt.left, now)
        prompt.left, prompt.waited_pool_s = 0, start_s - now
        self._in_pool[request] = prompt
        if start_s > now:
            self._state["now_s"] = now
            _watch_queue(self._memory)
            self._push_start(start_s)
        event = self.environment.timeout(end_s - now)
        heapq.heappush(self._handovers, now + (end_s - now))
        event.callbacks.append(lambda _: self._hand_over(prompt))

    def _hand_over(self, prompt: Prompt) -> None:
        """Take a request over from the pool with its first token: queue it, or finish it."""
        heapq.heappop(self._handovers)
        del self._in_pool[prompt.request]
        now = prompt.first_token_s = float(self.environment.now)
        if int(self.workload.output_tokens[prompt.request]) > 1:
            self._enqueue(prompt)
            return
        memory, state = self._memory, self._state
        prompt.admitted_s = state["now_s"] = now
        load, request = self.workload, prompt.request
        needed = load.prompt_tokens[request] + load.output_tokens[request] + self.executor.gamma
        state["kv_reserved"] += needed  # given back at once by ``join``
        memory.completing[0] = _record(prompt)
        _join(memory, 1)
        self._take_over()

    def _enqueue(self, prompt: Prompt) -> None:
        if self._state["waiting"] == self._memory.waiting.size:
            self._widen_line()
        _enqueue(
            self._memory, float(self.environment.now), prompt.request, prompt.queued_s, prompt.left,
            prompt.waited_pool_s, prompt.first_token_s,
        )  # fmt: skip
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _widen_line(self) -> None:
        wider = _wider(self._memory.waiting, int(self._state["waiting_first"]))
        self._memory, self._state["waiting_first"] = self._memory._replace(waiting=wider), 0

    def _push_start(self, start_s: float) -> None:
        ring, state = self._memory.starts, self._state
        if state["starts"] == ring.size:
            ring = _wider(ring, int(state["starts_first"]))
            self._memory = self._memory._replace(starts=ring)
            state["starts_first"] = 0
        ring[(state["starts_first"] + state["starts"]) % ring.size] = start_s
        state["starts"] += 1

    # ---------------------------------------------------------------- strides

    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Run strides: one event for each."""
        environment = self.environment
        while True:
            if self._stride():
                yield from wait_until(environment, float(self._state["ends_s"]))
            else:
                self._wake = environment.event()
                yield self._wake

    def _stride(self) -> bool:
        """Run to the horizon; whether a step is under way."""
        outcome, now_s = FULL, float(self.environment.now)
        horizon_s = min(float(self._horizon()), self._handovers[0] if self._handovers else math.inf)
        while outcome in (FULL, CROWDED):
            self._draw_scatter()
            outcome = _stride(self._memory, now_s, horizon_s)
            self._take_over()
            now_s = float(self._state["now_s"])
            if outcome == CROWDED:
                self._widen_line()
        return outcome == UNDER_WAY

    def _draw_scatter(self) -> None:
        state, scatter = self._state, self._memory.scatter
        if self.executor.scatters and state["scattered"] == scatter.size:
            self._memory = self._memory._replace(scatter=self.executor.scatter(STEPS_KEPT))
            state["scattered"] = 0

    def _take_over(self) -> None:
        """Keep what a stride has recorded."""
        memory, state = self._memory, self._state
        logged, joined, finished = int(state["logged"]), int(state["joined"]), int(state["finished"])
        if logged:
            self.steps.extend(memory.log[:logged])
            state["logged"] = 0
        if joined:
            self._joined.extend(memory.joined[:joined])
            state["joined"] = 0
        if finished:
            self._finished.extend(memory.finished[:finished])
            state["finished"] = 0
        self.executor.steps_outside = int(state["outside"])
        if isinstance(self.scheduler, WatchedDSpark):
            self.scheduler.lost, self.scheduler.steps = float(state["lost"]), int(state["watched"])
        if finished and self._on_leave is not None:
            self._on_leave(finished)

    # ---------------------------------------------------------------- what happened

    def delivery_s(self) -> Floats:
        """When each decode step so far delivered its tokens, [decode steps]."""
        return self.steps.delivery_s()

    def finished(self) -> Described:
        """Finished requests, in that order."""
        return Described(self._joined, self._finished.column)

    def decoding(self) -> Described:
        """Return the same of requests now in the batch, which have not finished."""
        memory, count = self._memory, int(self._state["count"])
        rows = {name: np.zeros(count) for name in BATCH_ROW}
        rows |= {name: memory.batch[name][:count].astype(np.float64) for name in BATCH_ROW[:3]}
        return Described(self._joined, lambda name: rows[name].copy())

    def served_s(self) -> tuple[Floats, Floats]:
        """Of each request that has arrived, [n]: when, and when all that it waited for was over.

        As ``Engine.served_s``.
        """
        memory, state = self._memory, self._state
        joined_s, joined_waited_s = arrived_and_waited(self._joined)
        prefilling = _in_order(memory.prefilling, state, "prefilling")
        waiting = _in_order(memory.waiting, state, "waiting")
        begun = prefilling["started"] != 0
        served = np.concatenate([memory.completing[: state["completing"]], prefilling[begun]])
        pool = [(prompt.queued_s, prompt.waited_s) for prompt in self._in_pool.values()]
        queued_s: list[Any] = [
            joined_s, [queued for queued, _ in pool], served["queued_s"],
            waiting["queued_s"], prefilling[~begun]["queued_s"],
        ]  # fmt: skip
        unserved = np.full(waiting.size + int((~begun).sum()), np.inf)
        waited_s: list[Any] = [joined_waited_s, [waited for _, waited in pool], _waited(served), unserved]
        arrived_s = np.concatenate(queued_s)
        del joined_s, queued_s  # of a million requests 8 MB
        served_s = np.concatenate(waited_s)
        served_s += arrived_s
        return arrived_s, served_s


def wait_until(environment: simpy.Environment, end_s: float) -> Generator[simpy.Event, Any, None]:
    """Wait until the clock, which adds delays to itself, shows ``end_s`` exactly.

    Where no delay leads there, as the sum is rounded, half the way does: from there the difference is exact
    (Sterbenz, Floating-Point Computation, 1974).
    """
    while environment.now + (end_s - environment.now) != end_s:
        yield environment.timeout((end_s - environment.now) / 2)
    yield environment.timeout(end_s - environment.now)


def _most_prompt_rows(workload: Workload, limits: EngineLimits) -> int:
    if limits.prefill == "elsewhere":
        return 0
    longest = int(workload.prompt_tokens.max(initial=0)) if limits.prefill == "whole" else 0
    return max(limits.chunk_tokens, longest)


def _record(prompt: Prompt) -> Records:
    slot_s, kv_s, step_s = prompt.kept_out_s
    return np.array(
        (
            prompt.request, prompt.left, prompt.started, prompt.queued_s, prompt.admitted_s,
            prompt.first_token_s, prompt.waited_pool_s, slot_s, kv_s, step_s, prompt.waited_prefill_s,
        ),
        dtype=PROMPT,
    )  # fmt: skip


def _wider(ring: Records, first: int) -> Records:
    """Copy a full ring into one of twice its size, its first entry first."""
    wider = np.zeros(2 * ring.size, dtype=ring.dtype)
    wider[: ring.size] = np.roll(ring, -first)
    return wider


def _in_order(ring: Records, state: Any, name: str) -> Records:
    """Return the entries of a ring, the first one first."""
    return ring[(int(state[f"{name}_first"]) + np.arange(int(state[name]))) % ring.size]


def _waited(prompts: Records) -> Floats:
    """All that each has waited for, summed as ``Prompt.waited_s`` sums it."""
    kept_out_s = prompts["waited_slot_s"] + prompts["waited_kv_s"] + prompts["waited_step_s"]
    waited_s: Floats = prompts["waited_pool_s"] + kept_out_s + prompts["waited_prefill_s"]
    return waited_s
