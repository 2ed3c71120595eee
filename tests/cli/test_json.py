"""``--json``: every command has it, and what it prints is one document that says what the command said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from simulator.cli import app as cli
from simulator.core.files import json_text
from tests.dumps.test_redecide import written_dump
from tests.support.command_line import command_names, run

FLASH = ("--profile", "deepseek-v4-flash")
SHORT = ("--seeds", "2", "--steps", "60", "--workers", "1", "--concurrency", "4,60", "--policy", "mtp1")
LOAD = ("--traffic", "poisson:4/s", "--lengths", "fixed:20/9")
TABLE = {
    "sample_batch_tokens": [8, 16, 32], "sample_steps_per_sec": [10.0, 8.0, 5.0], "max_batch_tokens": 32
}  # fmt: skip


def leaves(command: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from leaves(child, f"{words}{name} ")
        else:
            yield f"{words}{name}", child


def test_every_command_has_it() -> None:
    root: Any = typer.main.get_command(cli.commands())
    found = dict(leaves(root))
    assert {words.removesuffix(" measure") for words in found} == command_names()
    without = {words for words, each in found.items() if ["--json"] not in [p.opts for p in each.params]}
    assert without == set()


def document(streams: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one document on standard output; NaN and infinity are no JSON."""
    text = streams.readouterr().out

    def refused(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refused)  # type: ignore[no-any-return]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "table.json").write_text(json_text(TABLE))
    written_dump(tmp_path / "dump.json")
    steps = [(r, r + k, 0.01 + 1e-4 * r + 2e-5 * (r + k)) for r in (1, 2, 4, 8, 16) for k in (0, 8, 24, 60)]
    rows = "\n".join(f"{r},{b},{t}" for r, b, t in steps)
    (tmp_path / "steps.csv").write_text(f"requests,batch_tokens,step_time_s\n{rows}\n")
    return tmp_path


CHEAP = {
    "list": (),
    "frontier": (*FLASH, *SHORT, "--out", "f.csv"),
    "compare": (*FLASH, *SHORT, "--sla", "60", "--out", "compare"),
    "simulate": (
        *FLASH, *LOAD, "--policy", "mtp1", "--concurrency", "2", "--requests", "20", "--out", "one"
    ),
    "acceptance show": ("qwen3-4b-chat", "--thresholds", "0,0.5", "--out", "a.csv"),
    "regret": (
        *FLASH, "--believed", "flat", "--seeds", "2", "--workers", "1", "--concurrency", "4", "--out", "r.csv"
    ),
    "fleet": (
        *FLASH, *LOAD, "--replicas", "1", "--duration", "30s", "--sla", "ttft_p99<=9s", "--workers", "1",
        "--out", "fleet",
    ),
    "plan": ("--init", "scenario.yaml"),
    "import sglang-table": ("table.json", "--out", "p.json"),
    "import sglang-dump": ("dump.json", "--out", "rates.json"),
    "replay": ("dump.json", "--table", "deepseek-v4-flash", "--out", "again"),
    "export sglang": ("deepseek-v4-flash", "--drafter", "dspark", "--out", "t.json"),
    "export trtllm": ("deepseek-v4-flash", "--drafter", "dspark", "--out", "t2.json"),
    "export launch": ("vllm", *FLASH, "--policy", "mtp1", "--concurrency", "4", "--out", "launch"),
    "profile fit": ("steps.csv", "--out", "fit.json"),
    "profile repair": ("fit.json", "--out", "mended.json"),
}  # fmt: skip


def test_cheap_commands_print_one_document_each(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(inputs)
    said = {}
    for command, words in CHEAP.items():
        assert run(*command.split(), *words, "--json") == 0, command
        said[command] = document(capsys)
        assert said[command]["schema"] == 1
        assert (said[command]["command"], said[command]["exit_code"]) == (command, 0)
        for file in said[command].get("files", []):
            assert Path(file).is_file()
        if "directory" in said[command]:
            assert any(Path(said[command]["directory"]).iterdir())
    assert {row["policy"] for row in said["frontier"]["tables"]["frontier"]} == {"mtp1"}
    assert said["compare"]["tables"].keys() == {"frontier", "sla", "load_bands", "published"}
    assert said["simulate"]["metrics"]["tps_mean"] > 0
    assert said["fleet"]["holds"] is True
    assert said["export launch"]["engine"] == "vLLM"
    assert "deepseek-v4-flash" in said["list"]["profiles"]
    assert said["profile fit"]["notes"]


def test_a_table_for_standard_output_is_in_the_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("frontier", *FLASH, *SHORT, "--out", "-", "--json") == 0
    assert len(document(capsys)["tables"]["frontier"]) == 2


def test_without_it_people_read_what_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--gpus") == 0
    assert "NVIDIA H200" in capsys.readouterr().out
    assert run("list", "--gpus", "--json") == 0
    assert document(capsys)["gpus"]["h200"] == "NVIDIA H200 SXM"


@pytest.mark.parametrize(
    ("words", "code", "field"),
    [
        (("frontier", "--profile", "nothing", "--out", "f.csv"), 2, None),
        (
            ("fleet", *FLASH, *LOAD, "--replicas", "1", "--duration", "30s", "--sla", "ttft_p99<=1us",
             "--workers", "1", "--out", "missed"),
            1, "binds",
        ),
    ],
)  # fmt: skip
def test_an_error_is_a_document_with_the_same_exit_code(
    words: tuple[str, ...], code: int, field: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(*words) == code
    plain = capsys.readouterr().err
    assert run(*words, "--json") == code
    printed = capsys.readouterr()
    assert printed.err == plain
    said = json.loads(printed.out)
    assert said["exit_code"] == code
    assert said["error"] in plain
    assert field is None or said[field] == ["ttft_p99<=1us"]


def test_exit_codes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("list") == 0
    assert run("no-such-command") == 2  # the parser's own
    assert run("simulate", *FLASH) == 2
    assert (
        run("export", "launch", "vllm", *FLASH, "--policy", "oracle", "--concurrency", "4", "--out", "x") == 2
    )

    def broken() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(cli, "commands", lambda: lambda **_: broken())
    assert run("list", "--json") == 70
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exit_code"] == 70
