"""Settings for mutmut and what is said of its results; mutating is ``scripts/mutmut``."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import mutation
from tools.mutants import COPIED, ROOT


@pytest.mark.parametrize("part", [*mutation.PACKAGES, "cost/curve.py"])
def test_the_settings_name_what_is_there(part: str) -> None:
    settings = tomllib.loads(mutation.configuration([part]))["tool"]["mutmut"]
    (only,) = settings["only_mutate"]
    assert list(ROOT.glob(only.removesuffix("/*")))
    tests = settings["pytest_add_cli_args_test_selection"]
    assert tests[0] == f"tests/{part.split('/')[0]}"
    assert all((ROOT / test).exists() for test in tests)
    assert {"simulator", "tests", *settings["also_copy"]} == set(COPIED)


def test_parts_of_a_package_share_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(mutation, "mutate", lambda parts, folder, minutes: ran.append(parts) or {})
    monkeypatch.setattr("sys.argv", ["mutation", "engine/run.py", "sla", "engine/strides"])
    assert mutation.main() == 0
    assert ran == [["engine/run.py", "engine/strides"], ["sla"]]
    only = tomllib.loads(mutation.configuration(ran[0]))["tool"]["mutmut"]["only_mutate"]
    assert only == ["simulator/engine/run.py", "simulator/engine/strides/*"]


def test_survivors_are_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four kinds count as found; a mutant that no test reaches is a survivor, one not reached is not."""
    diff = ["--- a.py", "+++ a.py", "@@ -1 +1 @@", " def f():", "-    return 1", "+    return 2"]
    monkeypatch.setattr(
        mutation, "_diffs", lambda _, names: [line for name in names for line in (f"# {name}: x", *diff)]
    )
    became = {
        "a": "killed", "b": "timeout", "c": "segfault", "d": "caught by type check", "e": "survived",
        "f": "no tests", "g": "not checked",
    }  # fmt: skip
    assert mutation.report(["cost"], Path(), became) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("cost: 4 of 7 mutants found; ")
    assert said[1:] == [
        "  # e: x", "  -    return 1", "  +    return 2",
        "  # f: x", "  -    return 1", "  +    return 2",
    ]  # fmt: skip


def test_a_name_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mutation", "costs"])
    with pytest.raises(SystemExit):
        mutation.main()


def test_a_run_that_does_not_hear_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a shell started it in the background, which ignores SIGINT."""
    monkeypatch.setattr(mutation, "PATIENCE_S", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    running = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    mutation._end(running)
    assert running.returncode == -signal.SIGKILL
    running.stdout.close()


def test_a_mutant_that_takes_memory_without_end_fails() -> None:
    """A run can address 9 GB: 8 are there, 10 are not, and nobody else is asked to make room."""
    for many, ends in ((8, 0), (10, 1)):
        code = f"import mmap; mmap.mmap(-1, {many} * 10**9)"
        ran = subprocess.run([sys.executable, "-c", code], preexec_fn=mutation._bounded, capture_output=True)
        assert ran.returncode == ends, ran.stderr


def test_a_run_that_fails_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """mutmut fails twice; both times one more mutant was tried, so it may go on."""
    tried: list[str] = []

    def run(folder: Path, seconds: float) -> bool:
        tried.append("killed")
        return len(tried) == 3

    monkeypatch.setattr(mutation, "copy_project", lambda folder: folder.mkdir())
    monkeypatch.setattr(mutation, "_run", run)
    monkeypatch.setattr(
        mutation, "_results", lambda _: list(zip("abc", [*tried, "not checked", "not checked"], strict=False))
    )
    assert mutation.mutate(["cost"], tmp_path / "copy", 1.0) == {"a": "killed", "b": "killed", "c": "killed"}


def test_a_run_that_gets_nowhere_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(folder: Path, seconds: float) -> bool:
        (folder / "mutmut.log").write_text("the tests fail", encoding="utf-8")
        return False

    monkeypatch.setattr(mutation, "copy_project", lambda folder: folder.mkdir())
    monkeypatch.setattr(mutation, "_run", run)
    monkeypatch.setattr(mutation, "_results", lambda _: [("a", "not checked")])
    with pytest.raises(RuntimeError, match="the tests fail"):
        mutation.mutate(["cost"], tmp_path / "copy", 1.0)
