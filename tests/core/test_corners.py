"""Corners of ``core`` that no command reaches in a test of its own."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simulator.core import files, reading
from simulator.core.errors import BadInputError, naming
from simulator.core.files import (
    STANDARD_OUTPUT,
    UnwritableError,
    beside,
    check_writable_file,
    is_standard_output,
    slug,
    without_nan,
    write_text,
)
from simulator.core.interruption import interruptible
from simulator.core.random import random_stream
from simulator.core.units import numbers


def test_a_file_is_named_once() -> None:
    with pytest.raises(BadInputError, match=r"^plan.yaml: sla: is wrong$"), naming("plan.yaml"):
        raise BadInputError("is wrong", field="sla")
    with pytest.raises(BadInputError, match=r"^plan.yaml: line 3: is wrong$"), naming("plan.yaml"):
        raise BadInputError("is wrong", source="plan.yaml: line 3")


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(tmp_path / "again")
    (tmp_path / "again").symlink_to(loop)
    for name in (loop, tmp_path / ("x" * 300), tmp_path / "new" / ("x" * 300), Path("bad\0name")):
        with pytest.raises(UnwritableError):
            check_writable_file(name)
        with pytest.raises(UnwritableError):
            write_text(name, "text")


def test_a_device_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UnwritableError, match="/dev/null: cannot be written"):
        check_writable_file(Path("/dev/null"))


def test_a_notebook_takes_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    write_text(STANDARD_OUTPUT, "a table\n")
    assert shown.getvalue() == "a table\n"


def test_standard_output_has_more_names(capfd: pytest.CaptureFixture[str]) -> None:
    write_text(Path("/dev/stdout"), "one\n")
    assert capfd.readouterr().out == "one\n"


def test_a_second_file_lies_beside_a_regular_one_only(tmp_path: Path) -> None:
    assert beside(tmp_path / "a.csv", ".png") == tmp_path / "a.png"
    assert beside(STANDARD_OUTPUT, ".png") is None
    assert beside(Path("/dev/null"), ".png") is None
    assert is_standard_output(STANDARD_OUTPUT)
    assert is_standard_output(Path("/dev/stdout"))
    assert is_standard_output(Path("/dev/fd/1"))
    assert not is_standard_output(Path("/dev/stderr"))
    assert not is_standard_output(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "name"),
    [("NVIDIA H200 141GB", "nvidia-h200-141gb"), ("fixed:3@dspark", "fixed-3-dspark"), ("--a..B--", "a..b")],
)
def test_names_for_files(text: str, name: str) -> None:
    assert slug(text) == name


def test_a_fault_of_ones_own_is_not_taken_for_the_systems() -> None:
    with pytest.raises(ValueError, match="mine"), files._faults_named(Path("x")):
        raise ValueError("mine")


def test_an_open_file_is_written_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with path.open("wb") as opened:
        write_text(Path(f"/dev/fd/{opened.fileno()}"), "by number")
    assert path.read_text() == "by number"


def test_numpys_numbers_become_pythons() -> None:
    assert without_nan({"a": np.float64("nan"), "b": [np.int64(3), np.float32(0.5)]}) == {
        "a": None,
        "b": [3, 0.5],
    }


def test_only_the_main_thread_is_interruptible() -> None:
    entered = []

    def work() -> None:
        with interruptible():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


def test_seeds_and_steps_have_an_end() -> None:
    with pytest.raises(BadInputError, match="seed: must be a whole number"):
        random_stream(-1, "x")
    with pytest.raises(BadInputError, match="is not a list of numbers"):
        numbers("0,0.2,...,0.9", float, "thresholds")


def test_what_the_system_refuses_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadInputError, match="cannot be read: Input/output error"):
        reading.read_bounded(path)
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(BadInputError):
        reading.read_bounded(Path("bad\0name"))
    assert not reading.is_there(path)


def test_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert reading.is_file(tmp_path / "file")
    assert reading.is_there(tmp_path)
    assert not reading.is_file(tmp_path)
    for impossible in (tmp_path / "none", tmp_path / ("x" * 300), Path("bad\0name")):
        assert not reading.is_file(impossible)
        assert not reading.is_there(impossible)


def test_plain_values_stay_as_they_are() -> None:
    assert without_nan({"a": 1.5, "b": "x", "c": None, "d": float("inf")}) == {
        "a": 1.5,
        "b": "x",
        "c": None,
        "d": None,
    }


@pytest.mark.parametrize(
    ("content", "read", "said"),
    [
        (r'{"a": "\u0000"}', reading.read_json, "a: holds half a character or a zero byte"),
        (r'["\ud800"]', reading.read_json, r"\[0\]: holds half a character"),
        ("a: \x01", reading.read_yaml, "is not YAML"),
    ],
)
def test_text_that_no_file_can_hold_is_refused(
    content: str, read: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(BadInputError, match=said):
        read(path)


def test_a_file_may_hold_a_single_value(tmp_path: Path) -> None:
    (tmp_path / "three.json").write_text("3")
    assert reading.read_json(tmp_path / "three.json") == 3
    (tmp_path / "word.json").write_text(r'"caf\u00e9"')
    assert reading.read_json(tmp_path / "word.json") == "café"
    with pytest.raises(BadInputError, match="is not a file's name"):
        reading.read_bounded(Path("bad\0name"))
