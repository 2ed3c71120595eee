"""The cells of a traffic file as checked numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.core.units import number_or_nan
from simulator.traffic.recorded.clocks import (
    CLOCK_UNITS,
    Clock,
    clock_without_unit,
    dates_and_times,
    published_unit,
    unix_unit,
)
from simulator.traffic.recorded.layouts import (
    BAILIAN_BLOCK_TOKENS,
    CLOCK_TIME_S,
    MOONCAKE_BLOCK_TOKENS,
    Layout,
    Options,
)
from simulator.traffic.recorded.tables import MalformedRow, Table
from simulator.traffic.workload import MAX_CLASSES, MAX_TOKENS, PrefixBlocks, Workload

MAX_PREFIX_ID = 2**40
"""Larger ids of prefix blocks (hashes) are numbered anew, so that copies can have ids of their own."""


class Fields:
    """Columns as numbers, and the first broken rule of each row."""

    def __init__(self, table: Table, layout: Layout, options: Options) -> None:
        self._table, self._layout, self._options = table, layout, options
        self._reasons: dict[int, str] = {}  # row -> reason
        self.notes: list[str] = []
        self.assumed: list[str] = []
        self.hints: list[str] = []  # remedies for malformed rows
        self.layout_name = layout.name
        self.rows = len(table.lines) + len(table.broken)
        self._prompt_tokens = self._tokens(layout.prompt)
        self._output_tokens = self._tokens(layout.output)
        self._class_names = self._names(layout.class_name) if layout.class_name else None
        self._blocks = self._hash_ids(layout.prefix) if layout.prefix else None
        self._turn_before, self._delay = self._turns()
        self._times = self._arrivals(layout.clock) if layout.clock else None
        self._note_unused_columns()

    def malformed(self) -> tuple[MalformedRow, ...]:
        """Malformed rows in the order of the file."""
        judged = [MalformedRow(self._table.lines[row], reason) for row, reason in self._reasons.items()]
        return tuple(sorted([*judged, *self._table.broken], key=lambda row: row.line))

    def workload(self) -> Workload:
        """Return the well-formed rows."""
        kept = np.flatnonzero(self._well_formed())
        arrival_s = None
        if self._times is not None:
            times_s = self._seconds(kept)
            order = np.argsort(times_s[kept], kind="stable")
            moved = int((order != np.arange(order.size)).sum())
            if moved and self._options.sort:
                self.notes.append(f"{moved:,} rows were out of order and are sorted")
            kept = kept[order]
            arrival_s = self._from_first(times_s[kept])
        names = [self._class_names[row] if self._class_names else "default" for row in kept]
        classes = {name: index for index, name in enumerate(dict.fromkeys(names))}
        if len(classes) > MAX_CLASSES:
            raise BadInputError(
                f"holds {len(classes):,} classes, {MAX_CLASSES:,} are possible",
                source=self._table.path, field=self._layout.class_name, remedy="group them into fewer",
            )  # fmt: skip
        return Workload(
            arrival_s,
            self._prompt_tokens[kept].astype(np.int64),
            self._output_tokens[kept].astype(np.int64),
            np.array([classes[name] for name in names], dtype=np.int16),
            tuple(classes) or ("default",),
            None if self._blocks is None else self._prefix_blocks(kept),
            0.0 if arrival_s is None else _clock_tick_s(arrival_s),
        )

    def _well_formed(self) -> NDArray[np.bool_]:
        well_formed = np.ones(len(self._table.lines), dtype=bool)
        well_formed[list(self._reasons)] = False
        return well_formed

    def _tokens(self, column: str) -> NDArray[np.float64]:
        values = self._numbers(column)
        self._judge(values % 1 != 0, column, "is not a whole number of tokens")
        self._judge(values < 1, column, "must be at least 1")
        self._judge(values > MAX_TOKENS, column, "is too large")
        return values

    def _numbers(self, column: str, wanted: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Values of the ``wanted`` rows (default: all), judged; a placeholder, 1, where there is none."""
        raw = self._table.columns[column]
        missing = np.array([_is_missing(value) for value in raw], dtype=bool)
        values = np.array([_number(value, self._table.is_text) for value in raw], dtype=np.float64)
        unreadable = ~np.isfinite(values)
        asked = np.ones(len(raw), dtype=bool) if wanted is None else wanted
        self._judge(missing & asked, column, "is missing")
        self._judge(unreadable & asked, column, "is not a finite number")
        return np.where(unreadable, 1.0, values)

    # --- arrivals ---

    def _arrivals(self, clock: Clock) -> NDArray[np.float64]:
        """Raw times, [rows]: seconds after the first readable one for dates, else in the column's unit."""
        timed = self._turn_before < 0
        if clock.is_dates:
            times = self._dates(clock.column)
        else:
            times = self._numbers(clock.column, timed)
            self._judge(timed & (times < 0), clock.column, "is negative")
        if not (self._options.sort or self._layout.delay):
            self._judge_order(times, clock.column)
        return times

    def _dates(self, column: str) -> NDArray[np.float64]:
        times = dates_and_times(self._table.columns[column])
        self._judge(np.array([time is None for time in times], dtype=bool), column, "is not a date and time")
        origin = next((time for time in times if time is not None), None)
        # Differences first: seconds since 1970 as a double have no exact microseconds.
        return np.array([(time - origin).total_seconds() if time and origin else 0.0 for time in times])

    def _judge_order(self, times: NDArray[np.float64], column: str) -> None:
        """Time goes back where a well-formed row is earlier than the latest well-formed row before it."""
        well_formed = self._well_formed()
        latest = np.maximum.accumulate(np.where(well_formed, times, -np.inf))
        self._judge(well_formed & (times < latest), column, "goes back in time; sort the file by arrival")

    def _seconds(self, kept: NDArray[np.intp]) -> NDArray[np.float64]:
        """Arrivals in seconds, [rows], from an origin of their own; right for the ``kept`` rows."""
        clock = self._layout.clock
        assert clock is not None
        assert self._times is not None
        if clock.is_dates:
            self.notes.append("arrivals are clock times and count from the first request")
            times_s = self._times
            return times_s - (times_s[kept].min() if kept.size else 0.0)
        timed = kept[self._turn_before[kept] < 0]
        unit = self._unit(clock, self._times[timed])
        scale = CLOCK_UNITS[unit]
        # Differences first, in the file's unit: nanoseconds since 1970 need all bits of a double.
        origin = float(self._times[timed].min()) if timed.size else 0.0
        if origin * scale < CLOCK_TIME_S:
            origin = 0.0
        else:
            self.notes.append("arrivals are clock times and count from the first request")
        times_s = (self._times - origin) * scale
        if timed.size < kept.size:
            self._place_turns(times_s, kept, scale)
        return times_s

    def _unit(self, clock: Clock, times: NDArray[np.float64]) -> str:
        """Find the unit of the clock: said by the user, the name, Unix times, the layout; else asked for."""
        unix = unix_unit(times)
        said = self._options.unit or clock.unit
        if said is not None:
            if unix not in (None, said) and times.min() * CLOCK_UNITS[said] >= CLOCK_TIME_S:
                raise clock_without_unit(
                    self._table.path, clock.column, f"is in {said} by name, but holds Unix times in {unix}"
                )
            return said
        if unix is not None:
            self.assumed.append(f"{clock.column} holds Unix times in {unix}")
            return unix
        if self._layout.unit is not None:
            return self._layout.unit
        if not self._layout.is_published:
            raise clock_without_unit(self._table.path, clock.column)
        marked, marks = self._marks()
        unit, why = published_unit(times, marked, marks, self._table.path, clock.column)
        if unit == "s" and self.layout_name == "Mooncake":
            self.layout_name = "GuideLLM"  # the same names, in seconds
        self.assumed.append(f"{clock.column} read as {unit} ({why})")
        return unit

    def _marks(self) -> tuple[str | None, str]:
        """Return the unit that the columns or block sizes of a published layout stand for, and their name."""
        if self._layout.name == "Bailian":
            return "s", "columns chat_id and parent_chat_id"
        if self._layout.delay is not None:
            return "ms", "columns session_id and delay"
        if self._blocks is not None and self._blocks.is_certain:
            size = self._blocks.block_tokens
            unit = {MOONCAKE_BLOCK_TOKENS: "ms", BAILIAN_BLOCK_TOKENS: "s"}.get(size)
            return unit, f"hash_ids of {size} tokens" if unit else ""
        return None, ""

    def _from_first(self, arrival_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Start times at 0 where the clock began longer before the first request than the recording lasts."""
        span_s = float(np.ptp(arrival_s)) if arrival_s.size else 0.0
        if span_s == 0 or arrival_s[0] <= span_s:
            return arrival_s
        self.notes.append(f"arrivals count from the first request, at {arrival_s[0]:g} s")
        return np.asarray(arrival_s - arrival_s[0])

    # --- sessions ---

    def _turns(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Row of the turn before, -1 where a row has a time of its own, and the delay after it, raw."""
        rows = len(self._table.lines)
        before = np.full(rows, -1, dtype=np.intp)
        layout, clock = self._layout, self._layout.clock
        if layout.session is None or layout.delay is None or clock is None:
            return before, np.zeros(rows)
        times, delays = self._table.columns[clock.column], self._table.columns[layout.delay]
        later = np.array(
            [_is_missing(time) and not _is_missing(delay) for time, delay in zip(times, delays, strict=True)],
            dtype=bool,
        )
        if not later.any():
            return before, np.zeros(rows)
        if self._options.turn_tokens_per_s is None:
            self._refuse_turns(later, clock.column)
            return before, np.zeros(rows)
        delay = self._numbers(layout.delay, later)
        self._judge(later & (delay < 0), layout.delay, "is negative")
        last: dict[object, int] = {}
        for row, session in enumerate(map(str, self._table.columns[layout.session])):
            if later[row]:
                before[row] = last.get(session, -1)
                if before[row] < 0:
                    self._reasons.setdefault(
                        row, f"{layout.delay} follows a turn that is missing or malformed"
                    )
            last[session] = -1 if row in self._reasons else row
        return before, delay

    def _refuse_turns(self, later: NDArray[np.bool_], column: str) -> None:
        """Later turns begin when the turn before has ended, which no file can know."""
        if not self._options.skip_malformed:
            raise BadInputError(
                f"is missing in {int(later.sum()):,} of {later.size:,} rows, later turns of sessions: they "
                "begin a delay after the turn before has ended, which depends on the engine",
                source=self._table.path,
                field=column,
                remedy="state the speed that users see, FILE@turn-speed=50 (tokens/s), to place them by it, "
                "or keep the first turns alone, FILE@skip-malformed",
            )
        for row in np.flatnonzero(later):
            self._reasons.setdefault(int(row), f"{column} is missing (a later turn of a session)")

    def _place_turns(self, times_s: NDArray[np.float64], kept: NDArray[np.intp], scale: float) -> None:
        """Fill in the arrivals of later turns, as if every turn were generated at the assumed speed."""
        speed = self._options.turn_tokens_per_s
        assert speed is not None
        placed = kept[self._turn_before[kept] >= 0]
        for row in placed:
            before = self._turn_before[row]
            generated_s = self._output_tokens[before] / speed
            times_s[row] = times_s[before] + generated_s + self._delay[row] * scale
        self.assumed.append(
            f"{placed.size:,} later turns placed as if turns took no wait and {speed:g} tokens/s"
        )

    # --- the rest ---

    def _names(self, column: str) -> list[str]:
        raw = self._table.columns[column]
        self._judge(
            np.array([not isinstance(name, str) or not name.strip() for name in raw], dtype=bool),
            column,
            "is missing",
        )
        return [name.strip() if isinstance(name, str) else "" for name in raw]

    def _hash_ids(self, column: str) -> _Blocks:
        raw = [as_list(value) if self._table.is_text else value for value in self._table.columns[column]]
        whole = [isinstance(ids, list) and all(type(block) is int for block in ids) for ids in raw]
        self._judge(~np.array(whole, dtype=bool), column, "is not a list of whole numbers")
        rows: list[Sequence[int]] = [ids if good else () for ids, good in zip(raw, whole, strict=True)]  # type: ignore[misc]
        wide = [any(not -(2**63) <= block < 2**64 for block in ids) for ids in rows]
        self._judge(np.array(wide, dtype=bool), column, "has an id beyond 64 bits")
        counts = np.array([len(ids) for ids in rows], dtype=np.int64)
        well_formed = self._well_formed()
        prompts, present = self._prompt_tokens[well_formed], counts[well_formed]
        size, certain = self._block_size(prompts, present)
        fits = _covers(self._prompt_tokens, counts, size)
        self._judge(~fits, column, f"does not cover the prompt in blocks of {size} tokens")
        if not _covers(prompts, present, size).all():
            others = [2**power for power in range(2, 13) if _covers(prompts, present, 2**power).all()]
            self.hints += [f"blocks of {other} tokens would fit: FILE@block={other}" for other in others[:1]]
        return _Blocks(rows, size, certain)

    def _block_size(self, prompts: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[int, bool]:
        """Tokens per hash id, and whether the ids tell it apart from the other published size."""
        if self._options.block_tokens is not None:
            return self._options.block_tokens, True
        sizes = [MOONCAKE_BLOCK_TOKENS, BAILIAN_BLOCK_TOKENS]
        if self._layout.name == "Bailian":
            sizes.reverse()
        usual, other = ((_covers(prompts, counts, size).mean() if counts.size else 0.0) for size in sizes)
        chosen, rest = (sizes[0], other) if usual >= other else (sizes[1], usual)
        return chosen, bool(max(usual, other) >= 0.9 > rest)

    def _prefix_blocks(self, kept: NDArray[np.intp]) -> PrefixBlocks:
        assert self._blocks is not None
        rows = [self._blocks.rows[row] for row in kept]
        if any(not 0 <= block < MAX_PREFIX_ID for row in rows for block in row):
            known: dict[int, int] = {}
            rows = [[known.setdefault(block, len(known)) for block in row] for row in rows]
            self.notes.append("hash_ids are numbered anew, in order of appearance")
        return PrefixBlocks.from_rows(rows, self._blocks.block_tokens)

    def _note_unused_columns(self) -> None:
        layout = self._layout
        used = {layout.prompt, layout.output, layout.class_name, layout.prefix, layout.session, layout.delay}
        used.add(layout.clock.column if layout.clock else None)
        unused = [name or "(without a name)" for name in self._table.columns if name not in used]
        if unused:
            self.notes.append(f"columns not used: {', '.join(unused)}")
        if layout.clock is None:
            self.notes.append("no arrival column: a closed loop")

    def _judge(self, breaks: NDArray[np.bool_], column: str, rule: str) -> None:
        """Mark rows that break a rule, keeping the first reason found for each."""
        for row in np.flatnonzero(breaks):
            value = self._table.columns[column][row]
            self._reasons.setdefault(int(row), f"{column} {rule}{_got(value)}")


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Ids of every row; ``is_certain``: they fit blocks of this size and of no other published size."""

    rows: list[Sequence[int]]
    block_tokens: int
    is_certain: bool


def _covers(
    prompt_tokens: NDArray[np.float64], blocks: NDArray[np.int64], block_tokens: int
) -> NDArray[np.bool_]:
    """Whether so many blocks cover each prompt; writers differ in whether a partly filled last one counts."""
    full = prompt_tokens // block_tokens
    started = -(-prompt_tokens // block_tokens)
    return np.asarray((blocks == full) | (blocks == started))


def as_list(value: object) -> object:
    """Write a list as a table of text writes it."""
    try:
        return json.loads(str(value))
    except (ValueError, RecursionError):
        return value


def _is_missing(value: object) -> bool:
    return value is None or value == ""


def _clock_tick_s(arrival_s: NDArray[np.float64]) -> float:
    """Step of the clock behind non-decreasing times: the longest that divides every gap, to the microsecond.

    A clock may jitter: Mooncake's ticks every 3 s, give or take 3 ms. So a step that divides 95% of 20 and
    more gaps to within a twentieth is taken first. 0 where no two times coincide (the clock tells all of
    them apart) or all of them do (it cannot be known).
    """
    gaps_s = np.diff(arrival_s)
    positive = gaps_s[gaps_s > 0]
    if positive.size in (0, gaps_s.size):
        return 0.0
    shortest = float(np.quantile(positive, 0.05))
    ticks = np.maximum(np.rint(positive / shortest), 1)
    if positive.size >= 20 and np.mean(np.abs(positive / shortest - ticks) < 0.05) >= 0.95:
        return float(np.median(positive / ticks))
    gaps_us = np.rint(np.unique(positive) * 1e6).astype(np.int64)
    return float(np.gcd.reduce(gaps_us)) * 1e-6


def _number(value: object, is_text: bool) -> float:
    """Read the value as a float; NaN for what is none, JSON's true and quoted numbers included."""
    if is_text:
        return number_or_nan(str(value))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _got(value: object) -> str:
    if value is None or value == "":
        return ""
    return f" (got {len(value)} ids)" if isinstance(value, list) else f" (got {value!r})"
