"""Numbers as people write them, with units; the unit of every column; numbers as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from simulator.core.errors import BadInputError

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_RATE_NAMES = {"rps": "/s", "qps": "/s", "rpm": "/min", "qpm": "/min", "rph": "/h", "qph": "/h"}
"""Usual names of requests and queries per second, minute and hour."""

# [0-9] instead of \d: \d also takes digits of other scripts.
_NUMBER = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


def parse_duration_s(text: str, *, field: str) -> float:
    """Parse seconds from ``24h``, ``90min``, ``2s``, ``50ms``. A number without a unit is refused."""
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
    """Read a number of a table; NaN for text that is no number.

    ``float`` alone also takes ``1_000`` and digits of other scripts, which no exporter writes.
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
"""Most numbers that ``1,2,...,LAST`` may stand for. A choice."""


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Parse numbers separated by commas; ``0,0.1,...,0.9`` continues the step up to the last."""
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
    """Parse a share such as ``20%``. A number without a percent sign is refused: it may mean 20 or 0.2."""
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
    """Return the remedy for a share without a percent sign: 0.2 may mean 0.2% or 20%, 20 means 20%."""
    return f"write {value:g}% or {value:.0%}" if 0 < value < 1 else f"write {value:g}%"


UNITS_OF_COLUMNS = {
    "tokens/s": (
        "throughput_ci95 tps_mean tps_p10 tps_p50 tps sla_tok_per_s tps_p10_ci95 throughput_tok_per_s "
        "true_throughput_tok_per_s throughput_least_tok_per_s throughput_most_tok_per_s "
        "throughput_expected_tok_per_s"
    ),
    "requests/s": (
        "rate_per_replica_per_s fails_at_per_s rate_low_per_s rate_high_per_s rate_at_peak_per_s "
        "goodput_per_s rate_per_s from_per_s to_per_s queue_trend_per_s queue_trend_ci95"
    ),
    "s": (
        "itl_p50_s itl_p99_s tpot_p50_s tpot_p99_s tpot_s ttft_mean_s ttft_p50_s ttft_p99_s ttft_s "
        "first_gap_s step_time_mean_s window_s queued_s admitted_s first_token_s finished_s waited_pool_s "
        "waited_slot_s waited_kv_s waited_step_s waited_prefill_s end_s start_s duration_s gap_s "
        "predicted_step_time_s measured_step_time_s table_step_time_s seconds"
    ),
    "requests*s": "decoding_s handover_s",
    "tokens": (
        "verification_budget_mean true_budget_mean verified_length_mean accepted_length_mean "
        "accepted_length batch_tokens_mean rows_mean prompt_tokens output_tokens decode_tokens "
        "draft_tokens accepted_tokens committed_tokens prefill_tokens engine_drafts decided_drafts "
        "engine_budget tokens_least tokens_most tokens_expected"
    ),
    "requests": (
        "concurrency concurrency_mean queue_mean requests_finished finished_per_slot from_concurrency "
        "to_concurrency waiting requests"
    ),
    "1": (
        "acceptance_rate wasted_fraction early_stop_loss steps_outside_fraction threshold gain speed_gain "
        "margin regret regret_ci95 prefix_hit_share kept_share kept_share_ci95 step_time_band share_asked "
        "share_kept share_kept_ci95 attainment attainment_ci95 growth change differing_share gain_least "
        "gain_most"
    ),
    "steps": "steps first_step decode_steps forward_ct",
    "replicas": "replicas replicas_low replicas_high",
    "GPUs": "decode_gpus prefill_gpus replica_gpus gpus",
    "workers": "prefill_workers",
    "h": "hour",
    "GPU*h": "gpu_hours gpu_hours_following_demand",
    "currency/1e6 tokens": (
        "cost_per_million_output_tokens cost_per_million_following_demand "
        "cost_per_million_output_tokens_low cost_per_million_output_tokens_high"
    ),
    "unit of the row": "published predicted error asked attained attained_ci95 bound",
}
"""Unit to the columns that have it; ``1`` is a share. A term's bound has the unit of its row."""

_UNIT_OF = {column: unit for unit, columns in UNITS_OF_COLUMNS.items() for column in columns.split()}

_OF_A_POLICY = {"replicas ": "replicas", "gpus ": "GPUs", "term ": "unit of the term"}


def unit_of(column: str) -> str | None:
    """Return the unit of a column of any table; None for words, flags and numbers that only name.

    >>> unit_of("ttft_p99_s"), unit_of("tps_p10_at_peak"), unit_of("policy")
    ('s', 'tokens/s', None)
    """
    for start, unit in _OF_A_POLICY.items():
        if column.startswith(start):
            return unit
    for end in ("_at_peak", "_at_limit"):
        column = column.removesuffix(end)
    return _UNIT_OF.get(column)


# --- as people read them ------------------------------------------------------------------------------------

UNKNOWN = "–"
"""What stands in place of a number that is not known."""

_LARGEST = 3
"""Significant digits of the largest number of a column: a choice; rates are known to about 1%."""

_SMALLEST = 2
"""Significant digits of the smallest one where the largest allows it: a choice."""

_TOTAL = 5
"""Most digits that the smallest number may give the largest: a choice."""


def decimals_of(values: Iterable[float]) -> int:
    """Digits behind the point that all numbers of a column get.

    Whole numbers get none. Otherwise the largest has three significant digits at least and the smallest two,
    unless the largest would need more than five for that.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if all(size == math.floor(size) for size in sizes):
        return 0
    largest, smallest = (math.floor(math.log10(size)) for size in (max(sizes), min(sizes)))
    wanted = max(_LARGEST - 1 - largest, _SMALLEST - 1 - smallest)
    return max(0, min(wanted, _TOTAL - 1 - largest) if largest >= 0 else wanted)


def in_digits(value: float, decimals: int) -> str:
    """Write a number with so many decimals and commas between thousands; a dash where it is not known."""
    return _without_minus_zero(f"{value:,.{decimals}f}") if math.isfinite(value) else UNKNOWN


def readable(value: float) -> str:
    """Write a number that stands alone."""
    return in_digits(value, decimals_of([value]))


def readable_column(values: Sequence[float]) -> list[str]:
    """Write the numbers of a column, all with the same decimals."""
    decimals = decimals_of(values)
    return [in_digits(value, decimals) for value in values]


def ranged(value: float, low: float = math.nan, high: float = math.nan, decimals: int | None = None) -> str:
    """Write a value with its interval where that is known and looks different: ``9 (9 to 10)``."""
    if decimals is None:
        decimals = decimals_of([value, low, high])
    shown, *ends = (in_digits(each, decimals) for each in (value, low, high))
    return shown if UNKNOWN in ends or ends == [shown, shown] else f"{shown} ({ends[0]} to {ends[1]})"


def ranged_column(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> list[str]:
    """Write the values of a column with their intervals, all with the same decimals."""
    decimals = decimals_of([*values, *lows, *highs])
    return [ranged(*each, decimals) for each in zip(values, lows, highs, strict=True)]


def counted(number: float, thing: str) -> str:
    """Write so many of a thing.

    >>> counted(1, "GPU"), counted(1200, "prefill worker")
    ('1 GPU', '1,200 prefill workers')
    """
    return f"{number:,.0f} {thing}{'' if number == 1 else 's'}"


def share(value: float, decimals: int = 1) -> str:
    """Write a share in percent; a dash where it is not known."""
    return f"{value:.{decimals}%}" if math.isfinite(value) else UNKNOWN


def share_within(value: float, half: float, decimals: int = 1) -> str:
    """Write a share with the half-width of its interval, where one is known: ``99.4% ± 0.3%``."""
    known = f" ± {share(half, decimals)}" if math.isfinite(half) else ""
    return f"{share(value, decimals)}{known}"


def signed_share(value: float, decimals: int = 1) -> str:
    """Write a change in percent with its sign; none looks like a loss: ``+0.0%`` and never ``-0.0%``."""
    if not math.isfinite(value):
        return UNKNOWN
    text = _without_minus_zero(f"{value:.{decimals}%}")
    return text if text.startswith("-") else f"+{text}"


def _without_minus_zero(text: str) -> str:
    return text if text.strip("-0.,%") else text.removeprefix("-")
