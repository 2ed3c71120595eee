"""What the compiled loop works on: one record of plain numbers, and arrays."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats, Rows
from simulator.engine.batch import ADMITTED, BATCH_ROW, Step
from simulator.engine.cursors import TraceCursors
from simulator.engine.limits import EngineLimits
from simulator.engine.strides.flat_cost import FlatCost
from simulator.engine.strides.jit import record
from simulator.engine.strides.policies import FlatPolicy
from simulator.engine.strides.search import Grid, Scratch, scratch
from simulator.schedulers.search import GRID
from simulator.traffic.workload import Workload

_Number = TypeVar("_Number", bound=np.generic)

ELSEWHERE, CHUNKED, WHOLE = range(3)
PREFILL = {"elsewhere": ELSEWHERE, "chunked": CHUNKED, "whole": WHOLE}

NOTHING, DECODING, PREFILLING = range(3)
"""What is under way: no step, a decode step, or a step of prompt rows alone."""

STEPS_KEPT = 1024
"""Steps, and multiples of it joined and finished requests, that one stride can record: a choice."""

_TIMES = (
    "now_s", "ends_s", "duration_s", "delivered_s", "joined_late_s", "handover_s", "queued_s", "seen_s",
    "lost",
    # by the clock and by the workload, the last arrivals
    "arrived_s", "reached_s",
)  # fmt: skip
_COUNTS = (
    # limits
    "concurrency", "kv_tokens", "prefill", "chunk_tokens", "closed", "gamma",
    # when a stride ends
    "least_steps", "finish", "most_steps",
    # the step under way
    "under_way", "drafts", "prompt_rows",
    # the batch
    "count", "holes", "context_tokens", "decode_steps", "steps", "completed", "kv_reserved", "oldest",
    "watched", "outside", "scattered",
    # lines: the first and how many; prompts of the step under way that end with it
    "waiting_first", "waiting", "prefilling_first", "prefilling", "starts_first", "starts", "completing",
    "unstarted", "cause", "next_closed", "phases",
    # requests that the engine takes at their time by itself: the next one, how many; whether one came since
    # the step under way began
    "next_arrival", "arrivals", "interrupted",
    # records since they were last taken over, and requests that ever joined
    "logged", "joined", "finished", "entries",
)  # fmt: skip
STATE = record([(name, np.float64) for name in _TIMES] + [(name, np.int64) for name in _COUNTS])
"""Everything about an engine that is a single number. Times in seconds."""

PROMPT = record(
    [("request", np.int64), ("left", np.int64), ("started", np.int64)]
    + [
        (name, np.float64)
        for name in (
            "queued_s", "admitted_s", "first_token_s", "waited_pool_s", "waited_slot_s", "waited_kv_s",
            "waited_step_s", "waited_prefill_s",
        )
    ]
)  # fmt: skip
"""A request on its way into the batch, as ``engine.batch.Prompt``."""

ROW = record(
    [
        (name, np.int64)
        for name in (
            "entry", "request", "remaining", "cursor", "begins", "rows", "accepted", "hole", "is_hole",
        )
    ]
)  # fmt: skip
"""A row of the batch: whose it is, tokens left, its place in its trace, where that begins and how long it is.

accepted: drafts of the step under way. hole, by place in the list and not by row: rows that are free now.
"""

JOINED, FINISHED, STEP = len(ADMITTED), len(BATCH_ROW), len(Step._fields)

Records = NDArray[Any]


class Memory(NamedTuple):
    """The arrays of one engine; ``c`` is its concurrency, ``n`` the requests of its workload.

    Compiling is slow in the number of arrays, so columns share one where they can. kept_out_s: [3], see
    ``engine.engine``. batch: [c]. prompt_tokens, output_tokens, class_index, arrival_s: of the workload, [n],
    the last one empty in a closed loop. first_row: int32 [n], of the recorded outcomes, which fill no memory
    with 2^31 rows. history: int32 [lag + 1, c * gamma], a ring of survivals, those of this step among them.
    lengths: int64 [c]. waiting, starts: rings, which Python makes longer. prefilling: a ring, and completing,
    [c + 1]. log, joined, finished: what was recorded since it was last taken over. scatter: multiples of the
    mean step time. survival: float32 [trace rows, gamma]; outcome: uint8 [trace rows]; traces: int64
    [2, classes], the first row and the rows of each.
    """

    state: Records
    kept_out_s: Floats
    batch: Records
    prompt_tokens: Rows
    output_tokens: Rows
    class_index: NDArray[np.int16]
    first_row: NDArray[np.int32]
    arrival_s: Floats
    history: Grid
    lengths: Rows
    waiting: Records
    starts: Floats
    prefilling: Records
    completing: Records
    log: Floats
    joined: Floats
    finished: Floats
    phase: Floats
    scatter: Floats
    survival: NDArray[np.float32]
    outcome: NDArray[np.uint8]
    traces: Rows
    policy: FlatPolicy
    cost: FlatCost
    believed: FlatCost
    search: Scratch


def allocate(
    workload: Workload,
    cursors: TraceCursors,
    limits: EngineLimits,
    policy: FlatPolicy,
    cost: FlatCost,
    believed: FlatCost,
    phase: Floats,
) -> Memory:
    """Return the memory of an engine that has not begun; its clock stands at 0."""
    most, gamma = limits.concurrency, cursors.gamma
    survival, outcome, first_row, traces = cursors.arrays()
    recorded = STEPS_KEPT + 2 * most
    return Memory(
        state=_state(limits, workload, gamma, phase.size),
        kept_out_s=np.zeros(3),
        batch=np.zeros(most, dtype=ROW),
        prompt_tokens=_read_only(workload.prompt_tokens),
        output_tokens=_read_only(workload.output_tokens),
        class_index=_read_only(workload.class_index),
        first_row=_read_only(first_row),
        arrival_s=_read_only(np.empty(0) if workload.arrival_s is None else workload.arrival_s),
        history=np.full((policy.lag + 1, most * gamma), GRID, dtype=np.int32),
        lengths=np.zeros(most, dtype=np.int64),
        waiting=np.zeros(16, dtype=PROMPT),
        starts=np.zeros(16),
        prefilling=np.zeros(most + 1, dtype=PROMPT),
        completing=np.zeros(most + 1, dtype=PROMPT),
        log=np.zeros((STEPS_KEPT, STEP)),
        joined=np.zeros((recorded, JOINED)),
        finished=np.zeros((recorded, FINISHED)),
        phase=phase,
        scatter=np.zeros(0),
        survival=survival,
        outcome=outcome,
        traces=traces,
        policy=policy,
        cost=cost,
        believed=believed,
        search=scratch(most * gamma),
    )


def _read_only(values: NDArray[_Number]) -> NDArray[_Number]:
    """Return the same numbers as the one kind of array that the loop is compiled for."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view


def _state(limits: EngineLimits, workload: Workload, gamma: int, phases: int) -> Records:
    state = np.zeros(1, dtype=STATE)
    first = state[0]
    first["delivered_s"] = np.nan
    first["concurrency"], first["gamma"], first["phases"] = limits.concurrency, gamma, phases
    first["kv_tokens"] = -1 if limits.kv_tokens is None else limits.kv_tokens
    first["prefill"], first["chunk_tokens"] = PREFILL[limits.prefill], limits.chunk_tokens
    first["closed"] = workload.is_closed_loop
    first["cause"] = 2
    first["least_steps"] = first["most_steps"] = np.iinfo(np.int64).max
    return state
