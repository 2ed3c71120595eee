"""The meaning of the columns of a traffic file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.core.errors import BadInputError
from simulator.traffic.recorded.clocks import CLOCK_UNITS, Clock, find_clock, plain_name
from simulator.traffic.recorded.tables import Table

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens per hash id in the published Mooncake traces, and the default of Dynamo and AIPerf."""

BAILIAN_BLOCK_TOKENS = 16
"""Tokens per hash id in the traces of alibaba-edu/qwen-bailian-usagetraces-anon."""

CLOCK_TIME_S = 1e8
"""Least arrival time (three years) that is a clock time; it is counted from the first request. A choice."""

PROMPT_COLUMNS = (
    "prompt_tokens", "input_tokens", "context_tokens", "prefill_tokens", "num_prefill_tokens",
    "prompt_length", "input_length", "prompt_len", "input_len", "contexttokens", "request_tokens",
)  # fmt: skip

OUTPUT_COLUMNS = (
    "output_tokens", "completion_tokens", "generated_tokens", "decode_tokens", "num_decode_tokens",
    "response_tokens", "output_length", "output_len", "response_length", "generatedtokens",
)  # fmt: skip

_MOONCAKE_PROMPTS = ("input_length", "input_tokens")  # the second is Dynamo's alias

_CLASS_COLUMNS = ("class", "class_name", "traffic_class", "request_class")


@dataclass(frozen=True, slots=True)
class Layout:
    """The meaning of columns. ``unit``: of the clock, where the layout's own description states it."""

    name: str
    prompt: str
    output: str
    clock: Clock | None
    unit: str | None = None
    class_name: str | None = None
    prefix: str | None = None
    session: str | None = None  # with delay: later turns start this long after the end of the turn before
    delay: str | None = None
    is_published: bool = False  # timestamp, input_length, output_length: milliseconds or seconds


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the user about a file; see ``read_workload``."""

    sort: bool = False
    unit: str | None = None
    block_tokens: int | None = None
    turn_tokens_per_s: float | None = None
    skip_malformed: bool = False


def recognise(table: Table, time_column: str | None) -> Layout:
    """Recognise the layout of a table by its columns."""
    names = set(table.columns)
    prompt = required(table, "prompt", PROMPT_COLUMNS)
    output = required(table, "output", OUTPUT_COLUMNS)
    clock = find_clock(table, time_column)
    prefix = "hash_ids" if "hash_ids" in names else None
    if {"timestamp", "input_length", "output_length"} <= names or (prefix and prompt in _MOONCAKE_PROMPTS):
        name = "Mooncake"
        if {"chat_id", "parent_chat_id"} <= names:
            name = "Bailian"
        session, delay = ("session_id", "delay") if {"session_id", "delay"} <= names else (None, None)
        if session is not None:
            name = "Dynamo sessions"
        class_name = _find_column(table, _CLASS_COLUMNS)
        return Layout(name, prompt, output, clock, None, class_name, prefix, session, delay, True)
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names:
        return Layout("Azure", prompt, output, Clock("TIMESTAMP", None, is_dates=True))
    if {"Timestamp", "Model", "Request tokens", "Response tokens"} <= names:
        return Layout("BurstGPT", prompt, output, clock, "s", "Model")
    if {"arrived_at", "num_prefill_tokens", "num_decode_tokens"} <= names:
        return Layout("Vidur", prompt, output, clock, "s")
    return Layout("generic", prompt, output, clock, None, _find_column(table, _CLASS_COLUMNS), prefix)


def required(table: Table, role: str, choices: Sequence[str]) -> str:
    """Find the column of a role among its usual names. Raises ``BadInputError`` without one."""
    column = _find_column(table, choices)
    if column is None:
        raise BadInputError(
            f"has no column of {role} lengths",
            source=table.path,
            field="columns",
            value=", ".join(table.columns),
            remedy=f"name one {choices[0]} (or {', '.join(choices[1:4])})",
        )
    return column


def _find_column(table: Table, choices: Sequence[str]) -> str | None:
    found = [name for name in table.columns if plain_name(name) in choices]
    if len(found) > 1:
        raise BadInputError(
            f"has several columns that mean the same: {', '.join(found)}",
            source=table.path,
            field="columns",
            remedy="keep one of them",
        )
    return found[0] if found else None


def check_options(table: Table, layout: Layout, options: Options) -> None:
    """Refuse options that contradict the file, or that nothing in the file belongs to."""
    clock, unit = layout.clock, options.unit
    if unit is not None:
        problem = None
        if unit not in CLOCK_UNITS:
            problem = "is no unit of a clock"
        elif clock is None:
            problem = "is given, but no column holds arrival times"
        elif clock.is_dates:
            problem = f"is given, but {clock.column} holds dates and times"
        elif clock.unit not in (None, unit):
            problem = f"is given, but {clock.column} says {clock.unit}"
        if problem:
            raise BadInputError(
                problem,
                source=table.path,
                field="unit",
                value=unit,
                remedy="use s, ms, us or ns, or leave it out",
            )
    if options.block_tokens is not None:
        if not 1 <= options.block_tokens <= 2**20:
            raise BadInputError(
                "must lie in 1..1,048,576",
                source=table.path,
                field="block_tokens",
                value=options.block_tokens,
            )
        if layout.prefix is None:
            raise BadInputError(
                "is given, but there are no hash_ids", source=table.path, field="block_tokens",
                value=options.block_tokens, remedy="leave it out",
            )  # fmt: skip
    speed = options.turn_tokens_per_s
    if speed is not None:
        if not (math.isfinite(speed) and speed > 0):
            raise BadInputError(
                "must be positive and finite", source=table.path, field="turn_tokens_per_s", value=speed
            )
        if layout.delay is None:
            raise BadInputError(
                "is given, but there are no session_id and delay", source=table.path,
                field="turn_tokens_per_s", value=speed, remedy="leave it out",
            )  # fmt: skip
