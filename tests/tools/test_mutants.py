"""Mutants fit the source as it is; running them is ``scripts/mutants``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_stands_once_in_the_source_and_names_tests(mutant: Mutant, tmp_path: Path) -> None:
    assert all((ROOT / test).exists() for test in mutant.tests)
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.file).read_text())
    mutant.put_into(tmp_path)
    compile(copy.read_text(), mutant.file, "exec")
    with pytest.raises(ValueError, match="0 times, not once"):
        mutant.put_into(tmp_path)
