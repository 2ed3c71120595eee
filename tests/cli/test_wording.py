"""What the library says of its arguments, the command line says of its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cli.app import commands
from simulator.cli.wording import in_options, options_of
from tests.support.command_line import run


def test_names_of_arguments_become_options() -> None:
    options = {"extrapolate_rows": "--extrapolate-rows", "sla": "--sla"}
    said = in_options(
        "sla: is missing (got `sla`); pass `extrapolate_rows` or read `dspark-sim list`", options
    )
    assert said == "--sla: is missing (got --sla); pass --extrapolate-rows or read `dspark-sim list`"
    assert in_options("file.yaml: sla: no", options) == "file.yaml: sla: no"


@pytest.mark.parametrize(
    ("words", "argument", "option"),
    [
        (["frontier"], "concurrency", "--concurrency"),
        (["import", "vllm-log"], "block", "--block"),
        (["profile", "--target", "x"], "drafts", "--drafts"),
        (["profile", "fit"], "gpus", "--gpus"),
    ],
)
def test_options_are_those_of_the_command(words: list[str], argument: str, option: str) -> None:
    assert options_of(commands(), words)[argument] == option


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--acceptance", "dspark=length:3@5", "--acceptance", "dspark=length:2@5"],
            "--acceptance: two models",
        ),
        (["--seeds", "0"], "--seeds: must lie in 1.."),
        (["--concurrency", "0"], "--concurrency: must be at least 1"),
        (["--policy", "nonsense"], "--policy: nonsense: is not a policy"),
    ],
)
def test_an_error_of_the_library_names_the_option(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "x.csv"), "--workers", "1"]
    assert run("frontier", "--profile", "deepseek-v4-flash", *words, *out) == 2
    assert f"error: {said}" in capsys.readouterr().err
