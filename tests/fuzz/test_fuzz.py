"""A few hundred spoiled inputs of every kind; ``scripts/fuzz`` tries 10,000 and more."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.fuzzing import tried
from tests.fuzz.surfaces import SOUND, SURFACES, TEXTS

INPUTS = {"command": 12, "model": 12, "run": 12, "scenario": 40}


@pytest.mark.parametrize("kind", SURFACES)
def test_spoiled_inputs_are_accepted_or_refused_clearly(kind: str, tmp_path: Path) -> None:
    ended = [
        (outcome, said, number, case.shown)
        for _, number, case, outcome, said in islice(tried(11, [kind], tmp_path), INPUTS.get(kind, 60))
    ]
    assert [each for each in ended if each[0] not in ("accepted", "clear")] == []
    assert any(each[0] == "clear" for each in ended)  # the mutations do spoil


@pytest.mark.parametrize("kind", SURFACES)
def test_one_input_is_tried_again_by_its_number(kind: str, tmp_path: Path) -> None:
    def third(first: int) -> tuple[int, str, str]:
        *_, (_, number, case, ended, _) = islice(tried(5, [kind], tmp_path, first), 3 - first)
        return number, case.shown, ended

    assert third(0) == third(2)


def test_what_is_spoiled_is_sound_before(tmp_path: Path) -> None:
    for seeds, take in SOUND:
        for name, content in seeds.items():
            path = tmp_path / name
            path.write_bytes(content)
            take(path)
    for text, parse in TEXTS.items():
        parse(text)
