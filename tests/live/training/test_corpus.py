"""Text is held out by whole files, and the generated domain is right and never repeats."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.live.training.arithmetic import worked_problems
from simulator.live.training.corpus import (
    SPLITS,
    Corpus,
    arithmetic_files,
    folder_files,
    library_files,
    load_corpus,
    split_by_file,
)
from simulator.live.training.tokens import TokenStreams, step_generator, train_tokenizer


@pytest.fixture(scope="module")
def default() -> Corpus:
    return load_corpus()


def test_no_file_and_no_text_is_in_two_splits(default: Corpus) -> None:
    assert default.domains == ("arithmetic", "code", "prose")
    for part in (lambda file: file.name, lambda file: tuple(sorted(file.texts.items()))):
        sets = [{part(file) for file in default.splits[split]} for split in SPLITS]
        assert sum(map(len, sets)) == len(set.union(*sets))
        assert all(sets)


def test_every_domain_is_in_every_split(default: Corpus) -> None:
    for split in SPLITS:
        for domain in default.domains:
            assert sum(map(len, default.texts(split, domain))) > 50_000


def test_problems_do_not_repeat_across_files_not_even_with_operands_swapped() -> None:
    problems = [
        (verb, *sorted((int(a), int(b))))
        for file in arithmetic_files()
        for verb, a, b in re.findall(r"(Add|Multiply) (\d+) (?:and|by) (\d+)\.", file.texts["arithmetic"])
    ]
    assert len(problems) == len(set(problems)) == 12_000


def test_worked_problems_are_worked_right() -> None:
    for text in islice(worked_problems(1), 500):
        for left, right in re.findall(r"([\d+* ]+) = (\d+)", text):
            assert eval(left) == int(right)
        digits = re.findall(r"write (\d)", text)
        carry = re.search(r"carry (\d)$", text.splitlines()[-2])
        assert int((carry[1] if carry else "") + "".join(reversed(digits))) == int(text.split()[-1])


def test_splits_do_not_depend_on_the_order_in_which_files_are_met() -> None:
    files = [*library_files(Path(json.__file__).parent), *islice(arithmetic_files(), 20)]
    corpus, reversed_corpus = split_by_file(files, "x"), split_by_file(reversed(files), "x")
    assert corpus.digest == reversed_corpus.digest
    assert corpus.digest != split_by_file(files[1:], "x").digest


def test_code_loses_its_docstrings_and_prose_is_made_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""About a."""\n\ndef f():\n    """What f does."""\n    return 1\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (file,) = library_files(tmp_path)
    assert file.texts == {"code": "\ndef f():\n    return 1", "prose": "About a.\n\nWhat f does."}


def test_domains_of_a_folder_are_subfolders_and_extensions(tmp_path: Path) -> None:
    (tmp_path / "law" / "old").mkdir(parents=True)
    for name, text in {
        "law/a.txt": "a",
        "law/old/b.md": "b",
        "c.rs": "c",
        "NOTES": "d",
        ".hidden": "e",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    assert {file.name: file.group for file in folder_files(tmp_path)} == {
        "law/a.txt": "law", "law/old/b.md": "law", "c.rs": "rs", "NOTES": "text",
    }  # fmt: skip


def test_copies_count_once_and_too_few_files_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"{index}.txt").write_text("same" if index < 2 else f"text {index}")
    assert sum(map(len, split_by_file(folder_files(tmp_path), "x").splits.values())) == 3
    (tmp_path / "3.txt").unlink()
    with pytest.raises(BadInputError, match=r"txt.*3 text files"):
        load_corpus(tmp_path)
    with pytest.raises(BadInputError, match="is not a folder"):
        load_corpus(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="no text files"):
        load_corpus(tmp_path / "empty")


def test_tokenizer_returns_the_text_and_batches_depend_on_the_step_alone(default: Corpus) -> None:
    corpus = split_by_file(arithmetic_files(), "sums")
    tokenizer = train_tokenizer(corpus.texts("train", "arithmetic"), 300)
    text = "def f(x):\n    return 'Übung 1234'  # déjà vu"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    streams = TokenStreams.of(corpus, "test", tokenizer)
    first = streams.batch(3, 16, step_generator(0, "x", 5))
    assert first.equal(streams.batch(3, 16, step_generator(0, "x", 5)))
    assert not first.equal(streams.batch(3, 16, step_generator(0, "x", 6)))
    with pytest.raises(BadInputError, match=r"arithmetic.*fewer than one window"):
        streams.windows("arithmetic", 1, 10**9, step_generator(0, "x", 0))
