"""Where numbers come from, in one line, and as part of what is cached by value."""

from __future__ import annotations

import pytest

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.reading import checked


def test_one_line_says_kind_device_date_and_source() -> None:
    plain = Provenance(kind="modelled", source="a formula", date="2026-01-02")
    assert plain.line() == "modelled, 2026-01-02: a formula"
    there = plain.model_copy(update={"device": "NVIDIA H200"})
    assert there.line() == "modelled on NVIDIA H200, 2026-01-02: a formula"


def test_equal_origins_are_one_key() -> None:
    one, other = (
        Provenance(kind="measured", source="s", date="d", software={"torch": version}) for version in "12"
    )
    again = Provenance(kind="measured", source="s", date="d", software={"torch": "1"})
    assert hash(one) == hash(again)
    assert len({one, other, again}) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sort": "x"}, "profile.json: sort: unknown key; remove it or correct its spelling"),
        ({"date": None}, r"profile.json: date: .*valid string; correct it"),
        ({"kind": "guessed"}, r"profile.json: kind: .*'measured'.*\(got 'guessed'\); correct it"),
    ],
)
def test_an_origin_is_read_strictly(change: dict[str, object], said: str) -> None:
    given = {"kind": "measured", "source": "s", "date": "d"}
    with pytest.raises(BadInputError, match=said):
        checked(Provenance, given | change, "profile.json")
    with pytest.raises(BadInputError, match=r"^profile.json: source: is missing; add it$"):
        checked(Provenance, {"kind": "measured", "date": "d"}, "profile.json")
