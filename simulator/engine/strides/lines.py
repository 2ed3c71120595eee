"""Admission, compiled: from the line into the batch and out of it. ``engine.engine`` tells the rules."""

from __future__ import annotations

import math

from simulator.engine.strides.jit import compiled, inner, zero
from simulator.engine.strides.memory import ELSEWHERE, WHOLE, Memory
from simulator.schedulers.search import GRID

SLOT, KV, STEP = range(3)


@compiled
def enqueue(
    memory: Memory,
    now_s: float,
    request: int,
    queued_s: float,
    left: int,
    pool_s: float,
    first_token_s: float,
) -> None:
    """Put a request at the end of the line, whose ring has room. pool_s: how long a pool kept it waiting."""
    state, ring = memory.state[0], memory.waiting
    state.now_s = now_s
    watch_queue(memory)
    place = (state.waiting_first + state.waiting) % ring.size
    state.waiting += 1
    if state.waiting == 1:
        state.cause = what_keeps_out(memory, request)
    prompt = ring[place]
    prompt.request, prompt.queued_s, prompt.left, prompt.started = request, queued_s, left, 0
    prompt.admitted_s, prompt.first_token_s = math.nan, first_token_s
    prompt.waited_pool_s, prompt.waited_prefill_s = pool_s, 0.0
    prompt.waited_slot_s, prompt.waited_kv_s = memory.kept_out_s[SLOT], memory.kept_out_s[KV]
    prompt.waited_step_s = memory.kept_out_s[STEP]


@inner
def next_arrival_s(memory: Memory) -> float:
    """When the next request arrives by the clock, which adds delays to itself: ``engine.run.arrivals``."""
    state, at = memory.state[0], memory.arrival_s[memory.state[0].next_arrival]
    if at > state.reached_s:
        return state.arrived_s + max(0.0, at - state.arrived_s)
    return state.arrived_s


@inner
def take_arrivals(memory: Memory, until_s: float) -> bool:
    """Put requests in line that arrive during the step under way, which ends at ``until_s``.

    At that very instant they come first, as events do in the order in which they were planned, unless others
    came since the step began. False where the line has no room: make it longer and call again.
    """
    state = memory.state[0]
    while state.next_arrival < state.arrivals:
        now_s = next_arrival_s(memory)
        if now_s > until_s or (now_s == until_s and state.interrupted):
            return True
        if not take_together(memory, now_s):
            return False
        state.interrupted = 1
    return True


@inner
def take_together(memory: Memory, now_s: float) -> bool:
    """Put in line the requests that arrive next, all at once; False where the line has no room for them."""
    state, arrival_s = memory.state[0], memory.arrival_s
    reached_s = max(state.reached_s, arrival_s[state.next_arrival])
    end = state.next_arrival
    while end < state.arrivals and arrival_s[end] <= reached_s:
        end += 1
    if state.waiting + end - state.next_arrival > memory.waiting.size:
        return False
    for request in range(state.next_arrival, end):
        enqueue(memory, now_s, request, now_s, memory.prompt_tokens[request], 0.0, math.nan)
    state.next_arrival, state.arrived_s, state.reached_s = end, now_s, reached_s
    return True


@compiled
def watch_queue(memory: Memory) -> None:
    """Add up the time in line so far; called before the line changes."""
    state = memory.state[0]
    seen_s, state.seen_s = state.seen_s, state.now_s
    if not (state.waiting or state.starts or state.unstarted):
        return
    if state.waiting:
        memory.kept_out_s[state.cause] += state.now_s - seen_s
    ring = memory.starts
    while state.starts and ring[state.starts_first] <= state.now_s:
        state.queued_s += ring[state.starts_first] - seen_s
        state.starts_first = (state.starts_first + 1) % ring.size
        state.starts -= 1
    state.queued_s += (state.waiting + state.unstarted + state.starts) * (state.now_s - seen_s)


@inner
def what_keeps_out(memory: Memory, request: int) -> int:
    """Name what the request at the head of the line waits for."""
    if free_slots(memory) == 0:
        return SLOT
    return STEP if fits(memory, request) else KV


@inner
def free_slots(memory: Memory) -> int:
    """Count the requests that could be admitted if their keys and values fit."""
    state = memory.state[0]
    return state.concurrency - (state.count - state.holes) - state.prefilling - state.completing


@inner
def kv_need(memory: Memory, request: int) -> int:
    """Count the tokens that a request will ever have in the KV cache, and one block."""
    return memory.prompt_tokens[request] + memory.output_tokens[request] + memory.state[0].gamma


@inner
def fits(memory: Memory, request: int) -> bool:
    """Whether the KV cache has room for all that a request will ever need."""
    state = memory.state[0]
    return state.kv_tokens < 0 or state.kv_reserved + kv_need(memory, request) <= state.kv_tokens


@inner
def admit_waiting(memory: Memory) -> bool:
    """Fill free slots from the head of the line, then close the holes that are left.

    False where a record became full on the way: call it again once there is room.
    """
    state = memory.state[0]
    elsewhere = state.prefill == ELSEWHERE
    again = True
    while again:  # as outputs of one token leave when they join
        if max(state.joined, state.finished) + state.concurrency > memory.joined.shape[0]:
            return False
        joining = zero()
        for already in range(free_slots(memory)):
            if not take_next(memory, elsewhere, already):
                break
            joining = already + 1
        again = joining > 0
        if elsewhere and joining:
            join(memory, joining)
        elif joining:
            state.prefilling += joining
            state.unstarted += joining
    if state.waiting:
        state.cause = what_keeps_out(memory, memory.waiting[state.waiting_first].request)
    if state.holes:
        close_holes(memory)
    return True


@inner
def take_next(memory: Memory, elsewhere: bool, already: int) -> bool:
    """Take the request at the head of the line if its KV cache fits; nobody overtakes it.

    It goes behind the ``already`` before it: those that join at once, or the prompts to prefill.
    """
    state = memory.state[0]
    if not state.closed and state.waiting == 0:
        return False
    request = state.next_closed if state.closed else memory.waiting[state.waiting_first].request
    if not fits(memory, request):
        return False
    state.kv_reserved += kv_need(memory, request)
    if elsewhere:
        prompt = memory.completing[state.completing + already]
    else:
        ring = memory.prefilling
        prompt = ring[(state.prefilling_first + state.prefilling + already) % ring.size]
    prompt.started, prompt.waited_prefill_s = 0, 0.0
    if state.closed:
        state.next_closed = (request + 1) % memory.prompt_tokens.size
        prompt.request, prompt.left = request, memory.prompt_tokens[request]
        prompt.queued_s, prompt.admitted_s, prompt.first_token_s = state.now_s, state.now_s, math.nan
        prompt.waited_pool_s, prompt.waited_slot_s, prompt.waited_kv_s = 0.0, 0.0, 0.0
        prompt.waited_step_s = 0.0
        return True
    watch_queue(memory)
    line, kept = memory.waiting[state.waiting_first], memory.kept_out_s
    state.waiting_first = (state.waiting_first + 1) % memory.waiting.size
    state.waiting -= 1
    prompt.request, prompt.left, prompt.queued_s = line.request, line.left, line.queued_s
    prompt.admitted_s, prompt.first_token_s = state.now_s, line.first_token_s
    prompt.waited_pool_s = line.waited_pool_s
    prompt.waited_slot_s = kept[SLOT] - line.waited_slot_s
    prompt.waited_kv_s = kept[KV] - line.waited_kv_s
    prompt.waited_step_s = kept[STEP] - line.waited_step_s
    return True


@compiled
def join(memory: Memory, joining: int) -> None:
    """Give prefilled requests batch rows: those behind the ``completing``.

    Prefill has given each its first token.
    """
    state = memory.state[0]
    first = state.completing
    placed, late_from = 0, state.delivered_s
    hole_from = 0
    for index in range(first, first + joining):
        prompt = memory.completing[index]
        request = prompt.request
        tokens = memory.output_tokens[request] - 1
        if state.phases:
            state.phases -= 1
            tokens = math.ceil(tokens * memory.phase[state.phases])
        held = kv_need(memory, request) - state.gamma - tokens
        state.context_tokens += held
        first_token_s = state.now_s if math.isnan(prompt.first_token_s) else prompt.first_token_s
        _record_joined(memory, index, first_token_s, tokens)
        if tokens == 0:
            leave(memory, state.entries - 1, request)
            continue
        state.handover_s += state.now_s - first_token_s
        if hole_from < state.holes:
            row = memory.batch[hole_from].hole
            memory.batch[row].is_hole = False
            hole_from += 1
        else:
            row = state.count
            state.count += 1
        place(memory, row, state.entries - 1, request, tokens)
        placed += 1
    for index in range(hole_from, state.holes):
        memory.batch[index - hole_from].hole = memory.batch[index].hole
    state.holes -= hole_from
    if placed:
        late_from = state.now_s if math.isnan(late_from) else late_from
        state.delivered_s = late_from
        state.joined_late_s += placed * (state.now_s - late_from)


@inner
def _record_joined(memory: Memory, index: int, first_token_s: float, tokens: int) -> None:
    """Record what is known of a request that joins: ``engine.batch.ADMITTED``."""
    state, prompt = memory.state[0], memory.completing[index]
    row = memory.joined[state.joined]
    row[0], row[1], row[2], row[3] = prompt.request, prompt.queued_s, prompt.admitted_s, first_token_s
    row[4], row[5], row[6] = prompt.waited_pool_s, prompt.waited_slot_s, prompt.waited_kv_s
    row[7], row[8] = prompt.waited_step_s, prompt.waited_prefill_s
    row[9], row[10] = state.decode_steps, tokens
    state.joined += 1
    state.entries += 1


@inner
def place(memory: Memory, row: int, entry: int, request: int, tokens: int) -> None:
    """Put a request into a row of the batch, at the start of its sequence; its past counts as certain."""
    gamma = memory.state[0].gamma
    memory.batch[row].entry, memory.batch[row].request, memory.batch[row].remaining = entry, request, tokens
    walked = memory.class_index[request]
    memory.batch[row].cursor = memory.first_row[request]
    memory.batch[row].begins, memory.batch[row].rows = memory.traces[0, walked], memory.traces[1, walked]
    for step in range(memory.history.shape[0]):
        for position in range(row * gamma, (row + 1) * gamma):
            memory.history[step, position] = GRID


@inner
def leave(memory: Memory, entry: int, request: int) -> None:
    """Let a request whose output is complete leave: give its KV cache back and record when."""
    state = memory.state[0]
    row = memory.finished[state.finished]
    row[0], row[1], row[2], row[3], row[4] = entry, request, 0.0, state.now_s, state.decode_steps
    state.finished += 1
    state.completed += 1
    needed = kv_need(memory, request)
    state.kv_reserved -= needed
    state.context_tokens -= needed - state.gamma


@inner
def close_holes(memory: Memory) -> None:
    """Move rows from the end of the batch into its holes."""
    state, gamma = memory.state[0], memory.state[0].gamma
    count = state.count - state.holes
    source = count
    for index in range(state.holes):
        target = memory.batch[index].hole
        if target < count:
            while memory.batch[source].is_hole:
                source += 1
            _move(memory, source, target, gamma)
            source += 1
    for index in range(state.holes):
        memory.batch[memory.batch[index].hole].is_hole = False
    state.count, state.holes = count, 0


@inner
def _move(memory: Memory, source: int, target: int, gamma: int) -> None:
    memory.batch[target].entry, memory.batch[target].request = (
        memory.batch[source].entry,
        memory.batch[source].request,
    )
    memory.batch[target].remaining, memory.batch[target].cursor = (
        memory.batch[source].remaining,
        memory.batch[source].cursor,
    )
    memory.batch[target].begins, memory.batch[target].rows = (
        memory.batch[source].begins,
        memory.batch[source].rows,
    )
    for step in range(memory.history.shape[0]):
        for position in range(gamma):
            past = memory.history[step, source * gamma + position]
            memory.history[step, target * gamma + position] = past


@inner
def next_prefill(memory: Memory) -> int:
    """Take prompt rows of the next step, first come first served; returns how many.

    Prompts that they complete are moved to ``completing``.
    """
    state, ring = memory.state[0], memory.prefilling
    whole, tokens = state.prefill == WHOLE, 0
    while state.prefilling and tokens < state.chunk_tokens:
        prompt = ring[state.prefilling_first]
        take = prompt.left if whole else min(prompt.left, state.chunk_tokens - tokens)
        if whole and tokens and tokens + take > state.chunk_tokens:
            break
        if not prompt.started:
            prompt.started, prompt.waited_prefill_s = 1, state.now_s - prompt.admitted_s
            state.unstarted -= 1
        tokens += take
        prompt.left -= take
        if prompt.left == 0:
            memory.completing[state.completing] = prompt
            state.completing += 1
            state.prefilling_first = (state.prefilling_first + 1) % ring.size
            state.prefilling -= 1
    return tokens
