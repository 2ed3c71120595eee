"""Mutate packages with mutmut and name the survivors: ``scripts/mutmut PACKAGE [...]``.

The mutants live in a copy of the project, so that the working tree stays as it is. A package is tested by the
folder of tests of the same name, and by what ``ALSO`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.mutants import COPIED, ROOT, copy_project

PACKAGES = ("sla", "cost", "fleet", "schedulers", "engine")
"""What answers rest on; run without a name."""

ALSO = {
    "sla": ("tests/fleet/test_verdict.py",),
    "fleet": (
        "tests/sweeps/test_leads.py",
        "tests/engine/test_prefill_pool.py",
        "tests/cli/test_fleet_says.py",
    ),
}
"""Tests of a package that lie outside its folder."""

LEFT_OUT = "not benchmark and not gpu and not slow"
"""As in the normal run of the tests."""

PATIENCE_S = 20.0
"""Seconds that a run may take to end after it was asked to. A choice."""

MOST_BYTES = 9_000_000_000
"""Memory that a process may address: a mutant that takes more without end fails, instead of all of them. A
choice: the tests need a third of it."""

ENDLESS = 4
"""Times as long as without a mutant, after which a test is taken to run for ever. A choice."""

UNREACHED = "not checked"
"""What mutmut calls a mutant that it has not tried."""

FOUND = ("killed", "timeout", "segfault", "caught by type check")
"""What mutmut calls a mutant that the tests noticed."""


def configuration(parts: Sequence[str]) -> str:
    """Return the settings of mutmut that mutate a package, or files and folders of one."""
    package = _package(parts[0])
    settings = {
        "source_paths": ["simulator"],
        "only_mutate": [f"simulator/{part}" + ("" if part.endswith(".py") else "/*") for part in parts],
        "also_copy": [name for name in COPIED if name not in ("simulator", "tests")],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist", "-m", LEFT_OUT],
        "pytest_add_cli_args_test_selection": [f"tests/{package}", *ALSO.get(package, ())],
        "timeout_multiplier": ENDLESS,
    }
    lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
    return "\n".join(("", "[tool.mutmut]", *lines, ""))


def _package(part: str) -> str:
    return part.split("/")[0]


def mutate(parts: Sequence[str], folder: Path, minutes: float) -> dict[str, str]:
    """Run the mutants of parts of one package in ``folder``; returns by name what became of each.

    Mutants that were not reached within ``minutes`` are ``not checked``. A run that fails goes on.
    Raises ``RuntimeError`` where mutmut cannot go on, as where the tests fail without a mutant.
    """
    copy_project(folder)
    (folder / "mutants").mkdir()  # on the path from the start, else its modules are not found later
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(configuration(parts))
    ends = time.monotonic() + 60 * minutes
    reached = -1
    while True:
        complete = _run(folder, ends - time.monotonic())
        became = dict(_results(folder))
        before, reached = reached, sum(status != UNREACHED for status in became.values())
        if complete:
            return became
        if reached <= before or not reached:
            raise RuntimeError(f"mutmut could not run on {', '.join(parts)}: {_tail(folder / 'mutmut.log')}")


def _run(folder: Path, seconds: float) -> bool:
    """Let mutmut go on where it was; returns False where it failed before its work or its time was done.

    mutmut 3.8 fails when a process ends that it did not start itself, as a process tracker of joblib's.
    """
    running = subprocess.Popen(
        ["mutmut", "run", "--max-children", "1"], cwd=folder, env=_environment(folder), preexec_fn=_bounded,
        start_new_session=True, stdout=(folder / "mutmut.log").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        return running.wait(timeout=max(seconds, 0.0)) == 0
    except subprocess.TimeoutExpired:
        _end(running)
        return True


def _bounded() -> None:
    """Bound the memory of this process and of those that it starts."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def _end(running: subprocess.Popen[bytes]) -> None:
    """End mutmut, which keeps each result as it comes; a shell's background job does not hear SIGINT."""
    os.killpg(running.pid, signal.SIGINT)
    try:
        running.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(folder / "mutants"), "OMP_NUM_THREADS": "1"}


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _results(folder: Path) -> list[tuple[str, str]]:
    pairs = (line.strip().rsplit(": ", 1) for line in _printed(folder, "mutmut", "results", "--all", "true"))
    return [(name, status) for name, status in pairs]


def _diffs(folder: Path, names: list[str]) -> list[str]:
    """Return lines of ``# NAME: STATUS``, each followed by the diff of that mutant."""
    return _printed(folder, sys.executable, "-c", _SHOW, *names)


_SHOW = """
import sys
from mutmut.__main__ import cli
for name in sys.argv[1:]:
    cli(["show", name], standalone_mode=False)
"""
"""``mutmut show`` for many names in one process, which takes a second to start."""


def _printed(folder: Path, *command: str) -> list[str]:
    environment = _environment(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def report(parts: Sequence[str], folder: Path, became: dict[str, str]) -> int:
    """Print the counts and each survivor with the lines that it changes; returns the number of survivors."""
    counts = Counter(became.values())
    found = sum(counts[status] for status in FOUND)
    print(f"{', '.join(parts)}: {found} of {len(became)} mutants found; {dict(counts)}", flush=True)
    survived = [name for name, status in became.items() if status in ("survived", "no tests")]
    for line in _diffs(folder, survived) if survived else ():
        if line.startswith("# ") or (line[:1] in "+-" and line[:3] not in ("+++", "---")):
            print(f"  {line}", flush=True)
    return len(survived)


def main() -> int:
    """Mutate the parts named, or all; 1 where a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PACKAGE[/FILE.py]", help=f"default: {' '.join(PACKAGES)}"
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="at most so long for a package (default 60)"
    )
    asked = parser.parse_args()
    missing = [part for part in asked.parts if not (ROOT / "simulator" / part).exists()]
    if missing:
        parser.error(f"simulator/ has no {', '.join(missing)}")
    survivors = 0
    for _, named in groupby(sorted(asked.parts or PACKAGES, key=_package), key=_package):
        parts = list(named)  # of one package: finding which tests run which lines takes minutes, once
        with TemporaryDirectory(prefix="mutmut-") as folder:
            survivors += report(parts, Path(folder), mutate(parts, Path(folder), asked.minutes))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
