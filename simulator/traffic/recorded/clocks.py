"""The column of a recording that holds the arrivals, and its unit.

A clock that is a thousand times too fast gives a plausible and wrong answer. A unit therefore comes from the
file (the name of a column, dates, Unix times), from the user (``unit``), or from a published layout whose
marks and rate agree. Otherwise the file is refused, and the error asks for the unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.core.units import number_or_nan
from simulator.traffic.recorded.tables import Table

CLOCK_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds per unit of a recorded clock."""

PLAUSIBLE_RATE_PER_S = (0.005, 500.0)
"""Mean rates that a recording of one service may have: 18 requests an hour to 500 a second. Published ones
have 0.3 to 60. Only used to tell seconds from milliseconds where nothing else does."""

UNIX_TIMES_S = (1.4e9, 2.5e9)
"""Unix times of the years 2014 to 2049: values in this range, in one unit, are clock times in that unit."""

_SUFFIXES = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"),
    "us": ("us", "usec", "usecs", "micro", "micros", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nsecs", "nano", "nanos", "nanosecond", "nanoseconds"),
}

_UNIT_OF = {word: unit for unit, words in _SUFFIXES.items() for word in words}

_ARRIVAL_STEMS = (
    ("arrival", "arrivals", "arrival_time", "arrival_timestamp", "timestamp", "time", "arrived_at", "ts"),
    (
        "created", "created_time", "created_at", "start", "start_time", "start_timestamp", "started_at",
        "request_time", "request_timestamp", "request_start", "request_start_time", "requested_at",
        "received_at", "sent_at", "submit_time", "submitted_at", "date", "datetime", "date_time", "utc_time",
    ),
)  # fmt: skip
"""Stems of column names that mean the arrival; those of the second row where none of the first occurs."""

_INSTANT_WORDS = {
    "at", "timestamp", "ts", "date", "datetime", "clock", "epoch", "arrival", "arrived", "created", "start",
    "started", "sent", "submitted", "submit", "received", "issued", "finished", "ended",
}  # fmt: skip

_DURATION_WORDS = {
    "duration", "elapsed", "latency", "delay", "ttft", "tpot", "itl", "first", "per", "response", "queue",
    "queued", "wait", "waiting", "processing", "generation", "inference", "run", "total", "prefill", "decode",
    "think", "service", "execution", "compute",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clock:
    """The arrival column.

    ``unit``: of ``CLOCK_UNITS``; ``None`` where the name has no unit. A column of dates needs none.
    """

    column: str
    unit: str | None
    is_dates: bool


def find_clock(table: Table, wanted: str | None = None) -> Clock | None:
    """Return the arrival column, or the one named ``wanted``; ``None`` where no column holds times.

    Raises ``BadInputError`` for several possible columns, and for a time that cannot be read: without the
    time, a recording would become a closed loop.
    """
    if wanted is not None:
        if wanted not in table.columns:
            raise BadInputError(
                "has no such column",
                source=table.path,
                field="time",
                value=wanted,
                remedy=f"one of {', '.join(table.columns)}",
            )
        return _clock(table, wanted)
    for stems in _ARRIVAL_STEMS:
        found = [name for name in table.columns if _stem_and_unit(name)[0] in stems]
        if len(found) > 1:
            raise BadInputError(
                f"has several columns that mean the same: {', '.join(found)}",
                source=table.path,
                field="columns",
                remedy=f"keep one of them, or name it: FILE@time={found[0]}",
            )
        if found:
            return _clock(table, found[0])
    for name in table.columns:
        if _looks_like_time(name, table.columns[name]):
            raise BadInputError(
                "looks like a time, but not clearly that of the arrival",
                source=table.path,
                field=name,
                remedy=f"rename it arrival_s, arrival_ms or timestamp, name it with FILE@time={name}, "
                "or remove it for a closed loop",
            )
    return None


def clock_without_unit(path: str, column: str, problem: str = "has no unit") -> BadInputError:
    """Make the error that asks for the unit, with both ways to give it."""
    return BadInputError(
        problem,
        source=path,
        field=column,
        remedy=f"rename it {column}_s, {column}_ms or {column}_us, or say FILE@unit=s or FILE@unit=ms",
    )


def unix_unit(times: NDArray[np.float64]) -> str | None:
    """Tell the unit in which all of these are Unix times of our years; ``None`` where there is none."""
    if not times.size:
        return None
    for unit, scale in CLOCK_UNITS.items():
        if times.min() * scale >= UNIX_TIMES_S[0] and times.max() * scale <= UNIX_TIMES_S[1]:
            return unit
    return None


def published_unit(
    times: NDArray[np.float64], marked: str | None, marks: str, path: str, column: str
) -> tuple[str, str]:
    """Return seconds or milliseconds for ``timestamp, input_length, output_length``, and the reason.

    Mooncake, Dynamo and AIPerf write milliseconds under these names, Bailian and GuideLLM seconds.

    times: raw. marked: the unit of the layout whose marks (block size of hash_ids, columns) the file has, if
    any; ``marks`` names them. The unit is the marked one if its rate is plausible, or the only plausible one;
    milliseconds must be whole. Otherwise ``BadInputError`` asks for the unit.
    """
    span = float(np.ptp(times)) if times.size else 0.0
    if span == 0:
        if marked is None and times.size and times[0] != 0:
            raise clock_without_unit(path, column, "could be in seconds or in milliseconds")
        return marked or "s", marks or "one time only"
    rates = {unit: (times.size - 1) / (span * CLOCK_UNITS[unit]) for unit in ("s", "ms")}
    low, high = PLAUSIBLE_RATE_PER_S
    plausible = [unit for unit, rate in rates.items() if low <= rate <= high]
    shown = f"{rates['s']:.3g} requests/s if in seconds, {rates['ms']:.3g} if in milliseconds"
    if marked is not None:
        if marked in plausible:
            return marked, marks
        problem = f"is in {marked} by its {marks}, but {rates[marked]:.3g} requests/s are not plausible"
        raise clock_without_unit(path, column, f"{problem} ({shown})")
    if plausible == ["s"] or (plausible == ["ms"] and not (times % 1).any()):
        return plausible[0], shown
    raise clock_without_unit(path, column, f"could be in seconds or in milliseconds ({shown})")


# --- names and looks ----------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """Return a column name in lower case with underscores."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _stem_and_unit(name: str) -> tuple[str, str | None]:
    """``timestamp [UTC]`` is timestamp, ``Start time (ms)`` and ``start_time_ms`` are start_time in ms."""
    plain = plain_name(name)
    if plain in _ARRIVAL_STEMS[0] or plain in _ARRIVAL_STEMS[1]:
        return plain, None
    bracket = re.fullmatch(r"(.*?)_*[\[(](.*)[\])]", plain)
    if bracket:
        return bracket[1], _UNIT_OF.get(bracket[2])
    stem, _, last = plain.rpartition("_")
    return (stem, _UNIT_OF[last]) if last in _UNIT_OF else (plain, None)


def _clock(table: Table, column: str) -> Clock:
    unit = _stem_and_unit(column)[1]
    return Clock(column, unit, _holds_dates(table.columns[column], table.is_text))


def _looks_like_time(name: str, values: Sequence[object]) -> bool:
    words = set(re.findall(r"[a-z0-9]+", plain_name(name)))
    if words & _INSTANT_WORDS or _holds_dates(values, is_text=True):
        return True
    if words & _DURATION_WORDS:
        return False
    if "time" in words:
        return True
    if any(word in ("id", "ids", "hash", "key", "seed") for word in words):
        return False
    numbers = np.array([_as_number(value) for value in values])
    return bool(numbers.size > 1 and unix_unit(numbers) is not None and (np.diff(numbers) >= 0).all())


def _as_number(value: object) -> float:
    if isinstance(value, str):
        return number_or_nan(value)
    return float(value) if type(value) in (int, float) else float("nan")  # type: ignore[arg-type]


def _holds_dates(values: Sequence[object], is_text: bool) -> bool:
    """Whether more of the first values are dates than numbers."""
    first = [value for value in values if isinstance(value, str) and value.strip()][:200]
    numeric = [value for value in first if is_text and not np.isnan(number_or_nan(value))]
    known = sum(time is not None for time in dates_and_times(first))
    return known > len(numeric)


# --- dates --------------------------------------------------------------------------------------------------

_SLASHES = re.compile(
    r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})[ ,T]+([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?"
    r"\s*(AM|PM|am|pm)?"
)


def dates_and_times(values: Iterable[object]) -> list[datetime | None]:
    """Parse dates with times, in UTC unless they say otherwise; ``None`` for other text.

    ISO 8601, with digits beyond microseconds cut; or 8/18/2025, 12:00:00.941 AM with the month or the day
    first, as one of the values shows (13 and more is a day). Where no value shows the order, all must lie on
    one day, so that the order does not matter.
    """
    texts = [str(value).strip() for value in values]
    times = [_iso(text) for text in texts]
    if all(time is None for time in times):
        slashed = [_SLASHES.fullmatch(text) for text in texts]
        days = {match.group(1, 2, 3) for match in slashed if match}
        month_first = not any(int(first) > 12 for first, _, _ in days)
        if month_first and len(days) > 1 and not any(int(second) > 12 for _, second, _ in days):
            return times
        times = [_slashed(match, month_first) if match else None for match in slashed]
    return times


def _iso(value: str) -> datetime | None:
    if not value.isascii():
        return None
    try:
        time = datetime.fromisoformat(re.sub(r" (UTC|GMT|Z)$", "+00:00", value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _slashed(match: re.Match[str], month_first: bool) -> datetime | None:
    first, second, year, hour = (int(match[group]) for group in (1, 2, 3, 4))
    month, day = (first, second) if month_first else (second, first)
    if match[8] is not None:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (match[8].upper() == "PM")
    try:
        time = datetime(year, month, day, hour, int(match[5]), int(match[6] or 0), tzinfo=UTC)
    except ValueError:
        return None
    return time + timedelta(microseconds=int((match[7] or "0").ljust(6, "0")[:6]))
