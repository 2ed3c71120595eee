"""What is refused before anything runs."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError, InfeasibleError, UnwritableError, refuse_repeats


@given(st.lists(st.one_of(st.integers(-3, 3), st.sampled_from(["dspark", "mtp1"])), max_size=6))
def test_a_repeat_is_refused_and_nothing_else(values: list[int | str]) -> None:
    if all(values.count(value) == 1 for value in values):
        refuse_repeats(values, "loads")
    else:
        with pytest.raises(BadInputError, match="more than once"):
            refuse_repeats(values, "loads")


def test_the_message_names_place_field_and_every_repeat_once() -> None:
    with pytest.raises(BadInputError) as error:
        refuse_repeats([5, 9, 5, 7, 9, 9], "--concurrency", source="frontier")
    assert str(error.value) == (
        "frontier: --concurrency: gives 5, 9 more than once, and a repeat is not new data; give each once"
    )


@pytest.mark.parametrize("kind", [BadInputError, UnwritableError])
def test_an_error_of_a_worker_arrives_whole(kind: type[BadInputError]) -> None:
    sent = kind("is wrong", source="file", field="key", value=[1, 2], remedy="mend it")
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is kind
    assert str(arrived) == str(sent) == "file: key: is wrong (got [1, 2]); mend it"
    assert (arrived.source, arrived.field, arrived.value, arrived.remedy) == (
        "file",
        "key",
        [1, 2],
        "mend it",
    )


def test_no_answer_says_why_for_programs_too() -> None:
    plain, full = InfeasibleError("no"), InfeasibleError(
        "no", binds=["a"], nearest=["b"], changes=["c"], attained=[{"policy": "mtp1"}]
    )  # fmt: skip
    assert (plain.binds, plain.nearest, plain.changes, plain.attained) == ((), (), (), ())
    assert (full.binds, full.nearest, full.changes) == (("a",), ("b",), ("c",))
    assert full.attained == ({"policy": "mtp1"},)
    assert full.exit_code == 1


def test_a_value_is_shown_on_one_short_line() -> None:
    shown = str(BadInputError("is wrong", value="a\nb" + "x" * 200))
    assert shown == "is wrong (got 'a\\nb" + "x" * 74 + "…)"
    assert len(shown.split("got ")[1]) == 81  # 80 and the bracket
    assert str(BadInputError("is\x1b[31m wrong")) == "is [31m wrong"
    assert str(BadInputError("is wrong", value=10**5000)) == "is wrong (got a int too large to show)"
