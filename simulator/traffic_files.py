"""Workload files: Mooncake, Azure, BurstGPT, and the CSV or JSON-lines table that a user would write.

A file passes through four steps: rows (``_read_table``), what its columns mean (``_recognise``), numbers
and their rules (``_Fields``), a ``Workload``. A row that breaks a rule is malformed: an error by default,
listed in the ``ReadReport`` when asked to skip. No row vanishes unreported.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.errors import BadInputError
from simulator.workload import PrefixBlocks, Workload

MOONCAKE_BLOCK_TOKENS = 512
"""Tokens per hash id in the published Mooncake traces."""

CLOCK_TIME_S = 1e8
"""Arrival times from here on (three years) are taken for clock times and counted from the first request."""

_ARRIVAL_COLUMNS = {
    f"{stem}_{unit}": scale
    for stem in ("arrival", "arrival_time", "timestamp", "time", "arrived_at")
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
}
_PROMPT_COLUMNS = (
    "prompt_tokens", "input_tokens", "context_tokens", "prefill_tokens", "num_prefill_tokens",
    "prompt_length", "input_length", "prompt_len", "input_len",
)  # fmt: skip
_OUTPUT_COLUMNS = (
    "output_tokens", "completion_tokens", "generated_tokens", "decode_tokens", "num_decode_tokens",
    "response_tokens", "output_length", "output_len", "response_length",
)  # fmt: skip
_CLASS_COLUMNS = ("class", "class_name", "traffic_class", "request_class")


@dataclass(frozen=True, slots=True)
class MalformedRow:
    """One row that could not be used: its line in the file, counted from 1, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What became of every row of a file: ``rows == requests + len(malformed)``."""

    path: str
    layout: str
    rows: int
    requests: int
    malformed: tuple[MalformedRow, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for a terminal or a report, the notes and the first malformed rows included."""
        text = f"{self.path}: {self.requests:,} requests ({self.layout})"
        if self.malformed:
            text += f", {len(self.malformed):,} of {self.rows:,} rows malformed and skipped: "
            text += _first_few(self.malformed)
        return "; ".join([text, *self.notes])


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows as they stand: one list of raw values per column, and the line each row came from."""

    path: str
    is_text: bool  # CSV, where every value is text; in JSON a number in quotes is a mistake
    lines: list[int]
    columns: dict[str, list[object]]
    broken: list[MalformedRow]  # rows that are not rows at all


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which column means what. ``arrival_scale`` is seconds per unit, ``None`` for dates and times."""

    name: str
    prompt: str
    output: str
    arrival: str | None
    arrival_scale: float | None = 1.0
    class_name: str | None = None
    prefix: str | None = None


def read_workload(
    path: Path | str, *, skip_malformed: bool = False, block_tokens: int = MOONCAKE_BLOCK_TOKENS
) -> tuple[Workload, ReadReport]:
    """Read a workload file, whose layout is recognised from its columns.

    - Mooncake JSON lines: ``timestamp`` (ms), ``input_length``, ``output_length`` and, optionally,
      ``hash_ids`` of blocks of ``block_tokens`` tokens;
    - Azure CSV of 2023 and 2024: ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``;
    - BurstGPT CSV: ``Timestamp`` (s), ``Model`` (becomes the class), ``Request tokens``, ``Response tokens``;
    - any CSV or JSON lines with ``prompt_tokens`` and ``output_tokens``, an arrival with its unit
      (``arrival_s``, ``arrival_ms``, ``timestamp_s``, ...; without one the workload is a closed loop) and
      optionally ``class``. Usual synonyms (``input_tokens``, ``completion_tokens``, ...) are understood.

    Malformed rows (a missing or unreadable value, NaN, a length below 1, time going back) raise
    ``BadInputError`` naming the first few; with ``skip_malformed`` they are left out and reported.
    """
    table = _read_table(Path(path))
    layout = _recognise(table)
    fields = _Fields(table, layout, block_tokens)
    malformed = fields.malformed()
    if malformed and not skip_malformed:
        raise BadInputError(
            f"{len(malformed):,} of {fields.rows:,} rows are malformed: {_first_few(malformed)}",
            source=table.path,
            remedy="mend them, or skip and report them (skip_malformed=True, FILE@skip-malformed)",
        )
    if len(malformed) == fields.rows:
        raise BadInputError(
            "has no usable row", source=table.path, remedy=_first_few(malformed) or "add requests"
        )
    workload = fields.workload()
    report = ReadReport(table.path, layout.name, fields.rows, len(workload), malformed, tuple(fields.notes))
    return workload, report


def _first_few(malformed: Sequence[MalformedRow], shown: int = 5) -> str:
    more = f"; and {len(malformed) - shown:,} more" if len(malformed) > shown else ""
    return "; ".join(map(str, malformed[:shown])) + more


# --- rows ---------------------------------------------------------------------------------------------------


def _read_table(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            "is not UTF-8 text", source=str(path), remedy="save it as CSV or JSON lines"
        ) from error
    lines = text.split("\n")
    first = next((line.lstrip()[:1] for line in lines if line.strip()), "")
    if not first:
        raise BadInputError("is empty", source=str(path), remedy="add one request per line")
    if first == "[":
        raise BadInputError("is a JSON array", source=str(path), remedy="write one JSON object per line")
    return _read_json_lines(path, lines) if first == "{" else _read_csv(path, lines)


def _read_json_lines(path: Path, text_lines: Sequence[str]) -> _Table:
    lines: list[int] = []
    objects: list[dict[str, object]] = []
    broken: list[MalformedRow] = []
    for number, text in enumerate(text_lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            broken.append(MalformedRow(number, f"is not JSON ({error})"))
            continue
        if isinstance(value, dict):
            lines.append(number)
            objects.append(value)
        else:
            broken.append(MalformedRow(number, "is not a JSON object"))
    names = dict.fromkeys(name for value in objects for name in value)
    columns = {name: [value.get(name) for value in objects] for name in names}
    return _Table(str(path), False, lines, columns, broken)


def _read_csv(path: Path, text_lines: Sequence[str]) -> _Table:
    header: list[str] = []
    lines: list[int] = []
    rows: list[list[str]] = []
    broken: list[MalformedRow] = []
    for number, text in enumerate(text_lines, start=1):
        if not text.strip():
            continue
        row = _split_csv(text)
        if row is None:
            broken.append(MalformedRow(number, "has an unclosed quote"))
        elif not header:
            header = [name.strip() for name in row]
        elif len(row) == len(header):
            lines.append(number)
            rows.append(row)
        else:
            broken.append(MalformedRow(number, f"has {len(row)} fields where the header names {len(header)}"))
    if len(set(header)) != len(header):
        raise BadInputError("names a column twice", source=str(path), field="header", value=header)
    columns: dict[str, list[object]] = {name: [] for name in header}
    if rows:
        columns = {name: list(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
    return _Table(str(path), True, lines, columns, broken)


def _split_csv(text: str) -> list[str] | None:
    """Fields of one line; ``None`` when quoting is broken, which must not swallow the lines after it."""
    if '"' not in text:
        return text.rstrip("\r").split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error:
        return None


# --- what the columns mean ----------------------------------------------------------------------------------


def _recognise(table: _Table) -> _Layout:
    names = set(table.columns)
    if {"timestamp", "input_length", "output_length"} <= names:
        prefix = "hash_ids" if "hash_ids" in names else None
        return _Layout("Mooncake", "input_length", "output_length", "timestamp", 1e-3, prefix=prefix)
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names:
        return _Layout("Azure", "ContextTokens", "GeneratedTokens", "TIMESTAMP", None)
    if {"Timestamp", "Model", "Request tokens", "Response tokens"} <= names:
        return _Layout("BurstGPT", "Request tokens", "Response tokens", "Timestamp", class_name="Model")
    return _recognise_generic(table)


def _recognise_generic(table: _Table) -> _Layout:
    prompt = _find_column(table, _PROMPT_COLUMNS)
    output = _find_column(table, _OUTPUT_COLUMNS)
    for role, column, choices in (("prompt", prompt, _PROMPT_COLUMNS), ("output", output, _OUTPUT_COLUMNS)):
        if column is None:
            raise BadInputError(
                f"has no column of {role} lengths",
                source=table.path,
                field="columns",
                value=", ".join(table.columns),
                remedy=f"name one {choices[0]} (or {', '.join(choices[1:4])})",
            )
    arrival = _find_column(table, tuple(_ARRIVAL_COLUMNS))
    if arrival is None:
        _refuse_time_without_unit(table)
    return _Layout(
        "generic",
        str(prompt),
        str(output),
        arrival,
        1.0 if arrival is None else _ARRIVAL_COLUMNS[_plain(arrival)],
        _find_column(table, _CLASS_COLUMNS),
    )


def _find_column(table: _Table, choices: Sequence[str]) -> str | None:
    found = [name for name in table.columns if _plain(name) in choices]
    if len(found) > 1:
        raise BadInputError(
            f"has several columns that mean the same: {', '.join(found)}",
            source=table.path,
            remedy="keep one of them",
        )
    return found[0] if found else None


def _refuse_time_without_unit(table: _Table) -> None:
    for name in table.columns:
        if _plain(name) in ("arrival", "arrival_time", "timestamp", "time", "arrived_at"):
            raise BadInputError(
                "has no unit",
                source=table.path,
                field=name,
                remedy=f"rename it {name}_s, {name}_ms or {name}_us",
            )


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


# --- numbers and their rules --------------------------------------------------------------------------------


class _Fields:
    """Columns as numbers, and the first rule that each row breaks."""

    def __init__(self, table: _Table, layout: _Layout, block_tokens: int) -> None:
        self._table, self._layout = table, layout
        self._block_tokens = block_tokens
        self._reasons: dict[int, str] = {}  # row -> why it is malformed
        self.notes: list[str] = []
        self.rows = len(table.lines) + len(table.broken)
        self._prompt_tokens = self._tokens(layout.prompt)
        self._output_tokens = self._tokens(layout.output)
        self._class_names = self._names(layout.class_name) if layout.class_name else None
        self._prefix = self._hash_ids(layout.prefix) if layout.prefix else None
        self._arrival_s = self._arrivals(layout.arrival) if layout.arrival else None
        self._note_unused_columns()

    def malformed(self) -> tuple[MalformedRow, ...]:
        """Malformed rows in the order of the file."""
        judged = [MalformedRow(self._table.lines[row], reason) for row, reason in self._reasons.items()]
        return tuple(sorted([*judged, *self._table.broken], key=lambda row: row.line))

    def workload(self) -> Workload:
        """The well-formed rows."""
        rows = range(len(self._table.lines))
        kept = np.array([row for row in rows if row not in self._reasons], dtype=np.intp)
        names = [self._class_names[row] if self._class_names else "default" for row in kept]
        classes = {name: index for index, name in enumerate(dict.fromkeys(names))}
        arrival_s = None if self._arrival_s is None else self._from_first_if_clock(self._arrival_s[kept])
        return Workload(
            arrival_s,
            self._prompt_tokens[kept].astype(np.int64),
            self._output_tokens[kept].astype(np.int64),
            np.array([classes[name] for name in names], dtype=np.int16),
            tuple(classes),
            None if self._prefix is None else self._prefix_blocks(kept),
            0.0 if arrival_s is None else _clock_tick_s(arrival_s),
        )

    def _tokens(self, column: str) -> NDArray[np.float64]:
        values = self._numbers(column)
        self._judge(values % 1 != 0, column, "is not a whole number of tokens")
        self._judge(values < 1, column, "must be at least 1")
        self._judge(values > 2**53, column, "is too large")
        return values

    def _numbers(self, column: str) -> NDArray[np.float64]:
        raw = self._table.columns[column]
        missing = np.array([value is None or value == "" for value in raw], dtype=bool)
        self._judge(missing, column, "is missing")
        values = np.array([_number(value, self._table.is_text) for value in raw], dtype=np.float64)
        self._judge(~np.isfinite(values), column, "is not a finite number")
        return np.where(np.isfinite(values), values, 1.0)  # a placeholder: the row is already malformed

    def _arrivals(self, column: str) -> NDArray[np.float64]:
        if self._layout.arrival_scale is None:
            arrival_s = self._clock_times(column)
        else:
            arrival_s = self._numbers(column) * self._layout.arrival_scale
            self._judge(arrival_s < 0, column, "is negative")
        self._judge_order(arrival_s, column)
        return arrival_s

    def _clock_times(self, column: str) -> NDArray[np.float64]:
        """Seconds after the first readable date and time, which may be negative before ``_judge_order``."""
        times = [_date_and_time(value) for value in self._table.columns[column]]
        self._judge(np.array([time is None for time in times], dtype=bool), column, "is not a date and time")
        origin = next((time for time in times if time is not None), None)
        # Differences first: a double of seconds since 1970 has lost the microseconds.
        return np.array([(time - origin).total_seconds() if time and origin else 0.0 for time in times])

    def _judge_order(self, arrival_s: NDArray[np.float64], column: str) -> None:
        """Time goes back where a well-formed row is earlier than the latest well-formed row before it."""
        well_formed = np.ones(arrival_s.size, dtype=bool)
        well_formed[list(self._reasons)] = False
        latest = np.maximum.accumulate(np.where(well_formed, arrival_s, -np.inf))
        self._judge(well_formed & (arrival_s < latest), column, "goes back in time; sort the file by arrival")

    def _names(self, column: str) -> list[str]:
        raw = self._table.columns[column]
        self._judge(
            np.array([not isinstance(name, str) or not name.strip() for name in raw]), column, "is missing"
        )
        return [name.strip() if isinstance(name, str) else "" for name in raw]

    def _hash_ids(self, column: str) -> list[Sequence[int]]:
        raw = self._table.columns[column]
        whole = np.array([isinstance(ids, list) and all(type(block) is int for block in ids) for ids in raw])
        self._judge(~whole, column, "is not a list of whole numbers")
        rows: list[Sequence[int]] = [ids if isinstance(ids, list) else () for ids in raw]
        blocks = np.array([len(ids) for ids in rows])
        # Writers differ in whether a last, partly filled block has an id.
        full = self._prompt_tokens // self._block_tokens
        started = -(-self._prompt_tokens // self._block_tokens)
        fits = (blocks == full) | (blocks == started)
        self._judge(~fits, column, f"does not cover the prompt in blocks of {self._block_tokens} tokens")
        return rows

    def _prefix_blocks(self, kept: NDArray[np.intp]) -> PrefixBlocks:
        assert self._prefix is not None
        return PrefixBlocks.from_rows([self._prefix[row] for row in kept], self._block_tokens)

    def _from_first_if_clock(self, arrival_s: NDArray[np.float64]) -> NDArray[np.float64]:
        if not arrival_s.size or (self._layout.arrival_scale is not None and arrival_s[0] < CLOCK_TIME_S):
            return arrival_s
        self.notes.append("arrivals are clock times and count from the first request")
        return np.asarray(arrival_s - arrival_s[0])

    def _note_unused_columns(self) -> None:
        layout = self._layout
        used = {layout.prompt, layout.output, layout.arrival, layout.class_name, layout.prefix}
        unused = [name for name in self._table.columns if name not in used]
        if unused:
            self.notes.append(f"columns not used: {', '.join(unused)}")
        if layout.arrival is None:
            self.notes.append("no arrival column: a closed loop")

    def _judge(self, breaks: NDArray[np.bool_], column: str, rule: str) -> None:
        """Mark rows that break a rule, keeping the first reason found for each."""
        for row in np.flatnonzero(breaks):
            value = self._table.columns[column][row]
            self._reasons.setdefault(int(row), f"{column} {rule}{_got(value)}")


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
    """The value as a float; NaN for what is none, JSON's true and quoted numbers included."""
    if not (isinstance(value, str) if is_text else type(value) in (int, float)):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return math.nan


def _date_and_time(value: object) -> datetime | None:
    """An ISO 8601 time, taken for UTC unless it says otherwise; digits beyond microseconds are cut."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _got(value: object) -> str:
    if value is None or value == "":
        return ""
    return f" (got {len(value)} ids)" if isinstance(value, list) else f" (got {value!r})"
