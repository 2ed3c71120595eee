"""What the README shows is what the commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.command_line import run

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    command for command in re.findall(r"`(dspark-sim [^`]+)`", README)
    if len(command.split()) > 2 and not command.startswith("dspark-sim plan scenario.yaml")
]  # fmt: skip
QUICK = {
    "compare": ("--concurrency", "60,120,300", "--seeds", "1", "--steps", "80", "--workers", "1"),
    "frontier": ("--seeds", "1", "--steps", "80", "--workers", "1"),
    "simulate": ("--requests", "100"),
    "fleet": ("--duration", "40s", "--workers", "1"),
    "regret": ("--seeds", "2", "--workers", "1", "--concurrency", "20"),
}
"""What makes a command of the README short enough for a test; the rest of it is run as written."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_written(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    assert run(*words, *QUICK.get(words[0], ())) == 0


def test_there_are_commands_to_try() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {*QUICK, "plan", "acceptance"}


def test_the_table_is_what_the_main_job_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job of ``scripts/quickstart``, whole."""
    monkeypatch.chdir(tmp_path)
    assert (
        run("compare", "--profile", "deepseek-v4-flash", "--sla", "80", "--sla", "120", "--out", "flash") == 0
    )
    printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    block = README[README.index("At least 80") :].split("```")[0]
    shown = [" ".join(line.split()) for line in block.strip().splitlines()]
    assert len(shown) == 8
    assert [line for line in shown if line not in printed] == []


def test_every_script_named_is_there() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"scripts/[a-z_]+", README):
        assert (root / name).is_file(), name
