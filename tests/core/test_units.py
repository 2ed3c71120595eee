"""Numbers with units: what people write is read, what could mean two things is refused with a way out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from simulator.core.errors import BadInputError
from simulator.core.units import (
    counted,
    number_or_nan,
    numbers,
    parse_duration_s,
    parse_number,
    parse_percent,
    parse_rate_per_s,
    parse_whole,
    percent_meant,
    unit_of,
)
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.schedulers.parse import parse_policy


@pytest.mark.parametrize(
    ("text", "per_s"),
    [
        ("600rpm", 10.0), ("600 RPM", 10.0), ("600/min", 10.0), ("10 rps", 10.0), ("10rps", 10.0),
        ("10 qps", 10.0), ("36000 rph", 10.0), ("1.2e3 qpm", 20.0), ("12/s", 12.0),
    ],
)  # fmt: skip
def test_rates_under_their_usual_names(text: str, per_s: float) -> None:
    assert parse_rate_per_s(text, field="rate") == pytest.approx(per_s, rel=1e-12)


@pytest.mark.parametrize("text", ["600", "600 requests", "600s", "600 rpx"])
def test_a_remedy_for_a_rate_offers_both_seconds_and_minutes(text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_rate_per_s(text, field="rate")
    # One example with the wrong period would be sixty times the load that is meant.
    assert "600/s (rps)" in str(caught.value)
    assert "600/min (rpm)" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["\u00b2", "3\u00b2", "\u0661\u0662", "\uff11\uff12", "1_000", "0x10", "nan", "inf", "", "1e999", "--1"],
)
def test_only_ascii_digits_make_a_number(text: str) -> None:
    assert not math.isfinite(number_or_nan(text))
    for parse in (parse_number, parse_rate_per_s, parse_duration_s):
        with pytest.raises(BadInputError):
            parse(text if parse is parse_number else f"{text}/s", field="x")


@pytest.mark.parametrize(
    ("text", "value"), [(" 5 ", 5.0), ("2.5e-01", 0.25), ("-1", -1.0), (".5", 0.5), ("7.", 7.0)]
)
def test_numbers_of_a_table(text: str, value: float) -> None:
    assert number_or_nan(text) == value


def test_whole_numbers_are_bounded() -> None:
    assert parse_whole("1e3", field="block", most=4096) == 1000
    for text in ("0", "2.5", "4097", "-1", "1e300"):
        with pytest.raises(BadInputError, match=r"block: must be a whole number in 1\.\.4,096"):
            parse_whole(text, field="block", most=4096)


@pytest.mark.parametrize(
    "parse",
    [
        lambda: parse_acceptance("length:3.5@\u00b2"),
        lambda: parse_acceptance("conditional:\u0660.\u0669"),
        lambda: parse_acceptance("qwen3-4b-chat@\u00b2"),
        lambda: parse_policy("fixed:\u00b3"),
        lambda: parse_policy("dspark-async:\u0663"),
        lambda: numbers("1,\u00b2", int, "--concurrency"),
    ],
)
def test_no_other_reader_of_numbers_takes_other_digits(parse: Callable[[], object]) -> None:
    with pytest.raises(BadInputError, match=r"no digit here.*use 0 to 9"):
        parse()


def test_a_list_of_numbers_is_bounded() -> None:
    with pytest.raises(BadInputError, match="--concurrency: is not a list of numbers"):
        numbers("1,2,...,1e12", int, "--concurrency")


def test_other_digits_make_no_percentage() -> None:
    with pytest.raises(BadInputError, match="percent"):
        parse_percent("\u0662%", "fleet.headroom")


@pytest.mark.parametrize(
    ("text", "values"),
    [("5", [5]), ("1, 2,40", [1, 2, 40]), ("10,20,...,50", [10, 20, 30, 40, 50]), ("3,2,...,1", [3, 2, 1])],
)
def test_a_list_of_numbers_with_steps(text: str, values: list[int]) -> None:
    assert numbers(text, int, "--concurrency") == values
    assert all(isinstance(value, int) for value in numbers(text, int, "--concurrency"))


def test_steps_are_rounded_where_floating_point_drifts() -> None:
    assert numbers("0,0.1,...,0.3", float, "thresholds") == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("text", ["", "1,x", "1,...,5", "1,2,...,5.5", "1,1,...,5", "1,2,3,...,5", "1,2,..."])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"--loads: is not a list of numbers .*; as in 10,20,50"):
        numbers(text, float, "--loads")


@pytest.mark.parametrize("text", ["0/s", "-3/s", "0 rpm"])
def test_no_traffic_is_no_rate(text: str) -> None:
    with pytest.raises(BadInputError, match=r"traffic: must be positive .*; ask for at least some traffic"):
        parse_rate_per_s(text, field="traffic")


@pytest.mark.parametrize(("text", "share"), [("20%", 0.2), (" 2.5 % ", 0.025), ("0%", 0.0), ("250%", 2.5)])
def test_a_percentage(text: str, share: float) -> None:
    assert parse_percent(text, "fleet.headroom") == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-5%", r"is not a percentage of 0% or more \(got '-5%'\); as in 20%"),
        ("a%", "is not a percentage of 0% or more"),
        ("0.2", r"needs a percent sign \(got '0.2'\); write 0.2% or 20%"),
        ("20", r"needs a percent sign \(got '20'\); write 20%$"),
        ("much", r"needs a percent sign \(got 'much'\); as in 20%"),
    ],
)
def test_what_is_no_percentage_is_refused_with_what_may_be_meant(text: str, said: str) -> None:
    with pytest.raises(BadInputError, match=f"scenario: fleet.headroom: {said}"):
        parse_percent(text, "fleet.headroom")


def test_one_and_nothing_mean_percent() -> None:
    assert [percent_meant(value) for value in (0.0, 0.25, 1.0)] == [
        "write 0%",
        "write 0.25% or 25%",
        "write 1%",
    ]


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("ttft_p99_s", "s"), ("tps_p10_at_peak", "tokens/s"), ("tps_p10_at_limit", "tokens/s"),
        ("policy", None), ("replicas mtp1", "replicas"), ("gpus dspark-async", "GPUs"),
        ("term ttft_p99<=2s", "unit of the term"),
    ],
)  # fmt: skip
def test_every_column_has_one_unit(column: str, unit: str | None) -> None:
    assert unit_of(column) == unit


@pytest.mark.parametrize(
    ("number", "said"), [(1, "1 GPU"), (0, "0 GPUs"), (2, "2 GPUs"), (1200, "1,200 GPUs")]
)
def test_one_is_the_only_singular(number: int, said: str) -> None:
    assert counted(number, "GPU") == said
