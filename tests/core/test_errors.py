"""What is refused before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError, refuse_repeats


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
