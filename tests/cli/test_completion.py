"""Completion in a shell: names of what there is to choose from, and commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulator.cli.listing import choices
from simulator.schedulers.parse import parse_policy
from tests.support.command_line import run


def completed(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash offers after these words."""
    monkeypatch.setenv("_DSPARK_SIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert run() == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dspark-sim fron", {"frontier"}),
        ("dspark-sim export tr", {"trtllm"}),
        ("dspark-sim frontier --policy dsp", {"dspark", "dspark-async"}),
        ("dspark-sim compare --policy fixed", {"fixed:", "fixed-budget:"}),
        ("dspark-sim frontier --profile deepseek-v4-f", {"deepseek-v4-flash", "deepseek-v4-flash-figure7"}),
        ("dspark-sim plan --gpu h100,h2", {"h100,h200"}),
        ("dspark-sim compare --acceptance dspark=qwen3-4b/dspark/ch", {"dspark=qwen3-4b/dspark/chat"}),
        ("dspark-sim acceptance show qwen3-4b/dspark/ch", {"qwen3-4b/dspark/chat"}),
        ("dspark-sim export sglang deepseek-v4-pro", {"deepseek-v4-pro", "deepseek-v4-pro-figure7"}),
        ("dspark-sim plan --model nothing-begins-so", set()),
    ],
)
def test_names_are_completed(
    words: str, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(completed(words, monkeypatch, capsys)) == offered


def test_policies_that_take_no_argument_are_offered_whole() -> None:
    whole = [name for name in choices("policies") if not name.endswith(":") and name != "mtp"]
    assert {"mtp1", "dspark-async", "balanced", "oracle"} <= set(whole)
    for name in whole:
        parse_policy(name)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.argv = ['dspark-sim', '--show-completion', sys.argv[1]]\n"
    code += "from simulator.cli.app import main; main()"
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, shell], capture_output=True, text=True, check=True, env=environment
    )
    assert "_DSPARK_SIM_COMPLETE" in done.stdout
