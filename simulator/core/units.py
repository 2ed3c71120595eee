"""Numbers with units, as people write them on a command line or in a scenario file."""

from __future__ import annotations

import math
import re
from typing import TypeVar

from simulator.core.errors import BadInputError

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_RATE_NAMES = {"rps": "/s", "qps": "/s", "rpm": "/min", "qpm": "/min", "rph": "/h", "qph": "/h"}
"""Usual names of requests and queries per second, minute and hour."""

# [0-9] and not \d, which takes the digits of every script: a superscript 2 is a mistake here.
_NUMBER = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


def parse_duration_s(text: str, *, field: str) -> float:
    """Seconds from ``24h``, ``90min``, ``2s``, ``50ms``; a bare number is an error, as it could mean any."""
    value, unit = _split(text, field)
    if unit not in SECONDS:
        problem = "has no unit of time" if not unit else f"has an unknown unit of time, {unit!r}"
        raise BadInputError(
            problem, field=field, value=text, remedy=f"write for example {value:g}s or {value:g}h"
        )
    return value * SECONDS[unit]


def parse_rate_per_s(text: str, *, field: str) -> float:
    """Parse requests per second, as in ``12/s``, ``700/min``, ``4e4/h``, ``10 rps``; must be positive."""
    value, unit = _split(text, field)
    per = _RATE_NAMES.get(unit.lower(), unit)
    period = per.removeprefix("/")
    if not per.startswith("/") or period not in SECONDS:
        problem = "has no unit" if not unit else f"has an unknown unit, {unit!r}"
        raise BadInputError(
            problem,
            field=field,
            value=text,
            remedy=f"write requests per time: {value:g}/s (rps) or {value:g}/min (rpm)",
        )
    if value <= 0:
        raise BadInputError(
            "must be positive", field=field, value=text, remedy="ask for at least some traffic"
        )
    return value / SECONDS[period]


def parse_number(text: str, *, field: str) -> float:
    """Parse a plain finite number, for quantities that have no unit."""
    value, unit = _split(text, field)
    if unit:
        raise BadInputError(f"takes a plain number, without {unit!r}", field=field, value=text)
    return value


def parse_whole(text: str, *, field: str, least: int = 1, most: int = 2**53) -> int:
    """Parse a whole number in ``least..most``, ``1e6`` included."""
    value = parse_number(text, field=field)
    if not value.is_integer() or not least <= value <= most:
        raise BadInputError(f"must be a whole number in {least:,}..{most:,}", field=field, value=text)
    return int(value)


def require_ascii_digits(text: str, *, source: str) -> None:
    """Refuse digits of other scripts and superscripts: ``int`` takes some of them and not others."""
    strange = [letter for letter in text if letter.isdigit() and not letter.isascii()]
    if strange:
        raise BadInputError(
            f"holds {strange[0]!r}, which is no digit here", source=source, value=text, remedy="use 0 to 9"
        )


def number_or_nan(text: str) -> float:
    """Read a number in a table; NaN for what is none.

    ``float`` alone also takes ``1_000`` and the digits of other scripts, which no exporter writes.
    """
    if not text.isascii() or "_" in text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return math.nan


def _split(text: str, field: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None or not math.isfinite(float(match[1])):
        raise BadInputError("is not a number", field=field, value=text)
    return float(match[1]), match[2]


Number = TypeVar("Number", int, float)

MOST_NUMBERS = 10_000
"""Numbers that ``1,2,...,LAST`` may stand for."""


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Comma-separated numbers; ``0,0.1,...,0.9`` continues the step up to the last."""
    require_ascii_digits(text, source=option)
    parts = [part.strip() for part in text.split(",")]
    try:
        if "..." in parts:
            first, second, last = (float(parts[i]) for i in (0, 1, -1))
            count = round((last - first) / (second - first))
            if count > MOST_NUMBERS:
                raise ValueError("that many steps end nowhere")
            if len(parts) != 4 or abs(first + count * (second - first) - last) > 1e-9:
                raise ValueError("the steps do not end at the last number")
            return [kind(round(first + i * (second - first), 10)) for i in range(count + 1)]
        return [kind(part) for part in parts]
    except (ValueError, ArithmeticError, IndexError) as error:
        raise BadInputError(
            "is not a list of numbers", source=option, value=text, remedy="as in 10,20,50"
        ) from error


def parse_percent(text: str, field: str) -> float:
    """Parse a share such as ``20%``; a bare number could mean 20 or 0.2 and is refused."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*%\s*", text)
    if match is not None:
        return float(match[1]) / 100
    if "%" in text:
        raise BadInputError(
            "is not a percentage of 0% or more",
            source="scenario",
            field=field,
            value=text,
            remedy="as in 20%",
        )
    bare = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*", text)
    remedy = "as in 20%" if bare is None else percent_meant(float(bare[1]))
    raise BadInputError("needs a percent sign", source="scenario", field=field, value=text, remedy=remedy)


def percent_meant(value: float) -> str:
    """Remedy for a share without a percent sign: 0.2 may mean 0.2% or 20%, 20 means 20%."""
    return f"write {value:g}% or {value:.0%}" if 0 < value < 1 else f"write {value:g}%"
