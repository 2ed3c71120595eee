"""The step loop, compiled: commit, admit, draft, schedule, verify, until something outside happens."""

from __future__ import annotations

import math

import numpy as np

from simulator.engine.strides.flat_cost import is_outside, step_times
from simulator.engine.strides.jit import compiled, inner, zero
from simulator.engine.strides.lines import (
    admit_waiting,
    join,
    leave,
    next_arrival_s,
    next_prefill,
    take_arrivals,
    take_together,
    watch_queue,
)
from simulator.engine.strides.memory import CHUNKED, DECODING, NOTHING, PREFILLING, Memory
from simulator.engine.strides.policies import (
    ORACLE,
    THRESHOLD,
    confident_length,
    needs_times,
    schedule,
)
from simulator.schedulers.search import GRID

UNDER_WAY, IDLE, FULL, CROWDED = range(4)


@compiled
def stride(memory: Memory, now_s: float, horizon_s: float) -> int:
    """Run steps from ``now_s`` on, the end of the step under way if there is one; returns why it stopped.

    ``UNDER_WAY``: the last step has begun, or nothing happens before ``ends_s``. ``IDLE``: there is nothing
    to do. ``FULL``: a record is full; take it over. ``CROWDED``: the line is; make it longer. After both,
    call again at once. A step whose end reaches ``horizon_s`` is begun and left under way. So is the next one
    once enough steps and requests are complete, or a record is full.
    """
    state = memory.state[0]
    state.now_s = now_s
    while True:
        if state.under_way != NOTHING:
            if not take_arrivals(memory, state.ends_s):
                return CROWDED
            state.now_s = state.ends_s
        end_step(memory)
        if not admit_waiting(memory):
            return FULL
        if state.count == 0 and state.prefilling == 0:
            if state.next_arrival == state.arrivals:
                return IDLE
            state.ends_s = next_arrival_s(memory)
            if state.ends_s > state.now_s and state.ends_s >= horizon_s:
                return UNDER_WAY
            if not take_together(memory, state.ends_s):
                return CROWDED
            continue
        begin_step(memory)
        state.ends_s, state.interrupted = state.now_s + state.duration_s, 0
        if state.ends_s >= horizon_s or _must_stop(memory):
            return UNDER_WAY


@inner
def _must_stop(memory: Memory) -> bool:
    state = memory.state[0]
    if state.steps >= state.least_steps and (
        state.completed >= state.finish or state.steps >= state.most_steps
    ):
        return True
    room = 2 * state.concurrency + 1  # what a step can add to the records
    return (
        state.logged == memory.log.shape[0]
        or state.joined + room > memory.joined.shape[0]
        or state.finished + room > memory.finished.shape[0]
        or (memory.scatter.size > 0 and state.scattered == memory.scatter.size)
    )


@inner
def end_step(memory: Memory) -> None:
    """Deliver what the step under way has made, and let prompts that end with it join."""
    state = memory.state[0]
    if state.under_way == DECODING:
        _commit(memory)
    elif state.under_way == PREFILLING:
        state.drafts = 0
        none = zero()
        _record(memory, state.duration_s, none, none, none, 0.0)
    state.under_way = NOTHING
    if state.completing:
        joining, state.completing = state.completing, 0
        join(memory, joining)


@inner
def _commit(memory: Memory) -> None:
    """Deliver the tokens of a decode step; a request's last block may overshoot its output."""
    state = memory.state[0]
    state.decode_steps += 1
    count, gap_s = state.count, state.now_s - state.delivered_s
    decoding_s, state.joined_late_s = count * gap_s - state.joined_late_s, 0.0
    accepted, overshoot, done = zero(), 0, 0
    for row in range(count):
        accepted += memory.batch[row].accepted
        left = memory.batch[row].remaining - (memory.batch[row].accepted + 1)
        if left <= 0:
            overshoot -= left
            left = 0
            memory.batch[done].hole = row
            done += 1
        memory.batch[row].remaining = left
    delivered = accepted + count - overshoot
    state.context_tokens += delivered
    _record(memory, gap_s, count, accepted, delivered, decoding_s)
    for index in range(done):
        row = memory.batch[index].hole
        memory.batch[row].is_hole = True
        leave(memory, memory.batch[row].entry, memory.batch[row].request)
    state.holes = done
    state.delivered_s = state.now_s if count > done else math.nan


@inner
def _record(
    memory: Memory, gap_s: float, count: int, accepted: int, committed: int, decoding_s: float
) -> None:
    """Record a step: ``engine.batch.Step``."""
    state = memory.state[0]
    watch_queue(memory)
    row = memory.log[state.logged]
    row[0], row[1], row[2] = state.now_s, state.duration_s, gap_s
    row[3], row[4], row[5], row[6] = count, state.drafts, accepted, committed
    row[7], row[8] = state.prompt_rows, state.waiting + state.unstarted + state.starts
    row[9], row[10], row[11] = decoding_s, state.queued_s, 0.0
    state.queued_s = 0.0
    if count:
        row[11], state.handover_s = state.handover_s, 0.0
    state.logged += 1
    state.steps += 1


@inner
def begin_step(memory: Memory) -> None:
    """Begin a decode step or one of prompt rows alone, whichever is due, and say how long it takes."""
    state = memory.state[0]
    state.prompt_rows = next_prefill(memory)
    requests, rows, context = 0, state.prompt_rows, 0
    state.under_way = PREFILLING
    if state.count and (state.prompt_rows == 0 or state.prefill == CHUNKED):
        state.under_way = DECODING
        _decode(memory)
        requests, context = state.count, state.context_tokens
        rows += requests + state.drafts
    state.duration_s = _duration_s(memory, requests, rows, context)


@inner
def _duration_s(memory: Memory, requests: int, rows: int, context: int) -> float:
    state = memory.state[0]
    if is_outside(memory.cost, requests, rows):
        state.outside += 1
    seconds = memory.search.time_s[:1]
    step_times(memory.cost, requests, rows, context, state.prompt_rows, seconds)
    if memory.scatter.size == 0:
        return seconds[0]
    state.scattered += 1
    return seconds[0] * memory.scatter[state.scattered - 1]


@inner
def _decode(memory: Memory) -> None:
    """Draft, schedule and verify one block for every row of the batch."""
    state, policy = memory.state[0], memory.policy
    count, size = state.count, state.count * state.gamma
    if policy.kind == THRESHOLD:
        for row in range(count):
            memory.lengths[row] = confident_length(memory.survival[memory.batch[row].cursor], policy.least)
    else:
        lagged, grid = memory.history[state.oldest, :size], memory.history[_newest(memory), :size]
        if needs_times(policy):
            _read(memory, grid, policy.kind == ORACLE)
            first = count + state.prompt_rows
            context, prefill = state.context_tokens, state.prompt_rows
            step_times(memory.believed, count, first, context, prefill, memory.search.time_s[: size + 1])
        lost = schedule(policy, grid, lagged, count, memory.lengths, memory.search)
        if policy.watched:
            state.lost += lost
            state.watched += 1
        state.oldest = 0 if state.oldest == policy.lag else state.oldest + 1
    _verify(memory)


@inner
def _newest(memory: Memory) -> int:
    """Where the survivals of this step go: behind those that are ``lag`` steps old, in a ring of one more."""
    oldest = memory.state[0].oldest
    return oldest - 1 if oldest > 0 else memory.policy.lag


@inner
def _read(memory: Memory, grid: np.ndarray, outcome: bool) -> None:
    """Survivals at the cursors in grid units, or what will happen instead."""
    state, gamma = memory.state[0], memory.state[0].gamma
    for row in range(state.count):
        at = memory.batch[row].cursor
        if outcome:
            for position in range(gamma):
                grid[row * gamma + position] = GRID if position < int(memory.outcome[at]) else 0
        else:
            for position in range(gamma):
                grid[row * gamma + position] = np.int32(memory.survival[at, position] * np.float32(GRID))


@inner
def _verify(memory: Memory) -> None:
    """Look the outcome up and move the cursors on by what is committed: accepted drafts and the bonus."""
    state, drafts = memory.state[0], 0
    for row in range(state.count):
        at, length = memory.batch[row].cursor, memory.lengths[row]
        accepted = min(length, int(memory.outcome[at]))
        drafts += length
        memory.batch[row].accepted = accepted
        at += accepted + 1 - memory.batch[row].begins
        if at >= memory.batch[row].rows:
            at %= memory.batch[row].rows
        memory.batch[row].cursor = memory.batch[row].begins + at
    state.drafts = drafts
