"""How numbers are written: the same decimals in a column, and no more digits than say something."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.units import (
    ranged,
    ranged_column,
    readable,
    readable_column,
    share,
    share_within,
    signed_share,
)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.1, 0.0803], ["0.100", "0.080"]),
        ([1.08, 0.984, 1.1, 1], ["1.08", "0.98", "1.10", "1.00"]),
        ([44.5, 5.23, 0.0], ["44.5", "5.2", "0.0"]),
        ([6, 54, 1296], ["6", "54", "1,296"]),
        ([12345.6, 0.003], ["12,346", "0"]),
        ([0.5, 1000], ["0.5", "1,000.0"]),
        ([math.nan, 2.0, 2.5], ["–", "2.00", "2.50"]),
        ([math.nan, math.inf], ["–", "–"]),
        ([-0.0456, 0.1], ["-0.046", "0.100"]),
        ([-0.0004, 12345.6], ["0", "12,346"]),
        ([], []),
    ],
)
def test_a_column_has_the_same_decimals_throughout(values: list[float], shown: list[str]) -> None:
    assert readable_column(values) == shown


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_every_number_is_read_back_to_its_digits(values: list[float]) -> None:
    texts = readable_column(values)
    assert len({len(text.partition(".")[2]) for text in texts}) == 1
    largest = max(values)
    assert float(texts[values.index(largest)].replace(",", "")) == pytest.approx(largest, rel=0.5e-2)


def test_a_number_alone_has_three_digits() -> None:
    assert [readable(each) for each in (0.0456, 1.0801, 44.53, 4453.1, 7, math.nan)] == [
        "0.0456", "1.08", "44.5", "4,453", "7", "–",
    ]  # fmt: skip


def test_an_interval_stands_where_it_says_something() -> None:
    assert ranged(9, 9, 10) == "9 (9 to 10)"
    assert ranged(44.53, 41.4, 47) == "44.5 (41.4 to 47.0)"
    assert ranged(1.0801, 1.0799, 1.0803) == "1.08"
    assert ranged(9) == ranged(9, 9, 9) == ranged(9, 9, math.nan) == "9"
    shown = ["1.06 (1.00 to 1.08)", "1.10 (0.98 to 1.10)"]
    assert ranged_column([1.06, 1.1], [1.0, 0.98], [1.08, 1.1]) == shown


def test_no_change_has_no_minus() -> None:
    assert [signed_share(each) for each in (-0.0001, 0.0, 0.125, -0.2, math.nan)] == [
        "+0.0%", "+0.0%", "+12.5%", "-20.0%", "–",
    ]  # fmt: skip
    assert (share(0.9465), share(math.nan), share(1, 0)) == ("94.7%", "–", "100%")


@pytest.mark.parametrize(
    ("part", "half", "decimals", "said"),
    [
        (0.994, 0.003, 1, "99.4% ± 0.3%"), (1.0, 0.05, 2, "100.00% ± 5.00%"),
        (0.75, math.nan, 1, "75.0%"), (math.nan, math.nan, 1, "–"),
    ],
)  # fmt: skip
def test_a_share_without_an_interval_is_said_without_one(
    part: float, half: float, decimals: int, said: str
) -> None:
    assert share_within(part, half, decimals) == said
