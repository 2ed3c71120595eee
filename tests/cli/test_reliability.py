"""What may break a run: flipped bits, kills, signals, full disks. docs/reliability.md states the promises."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from simulator.acceptance.trace import AcceptanceTrace
from simulator.acceptance.trace_file import load_trace
from simulator.cli import app as cli
from simulator.core.errors import BadInputError, InfeasibleError, Interrupted, UnwritableError
from simulator.core.files import data_directory
from simulator.core.interruption import interruptible
from simulator.parallel.backends import WorkerDiedError
from simulator.parallel.cells import run_cells
from simulator.parallel.hashing import content_hash
from tests.support.command_line import run
from tests.support.sweep_cells import Draw, growing, times_computed
from tests.support.sweep_cells import draw as sweep_draw

HERE = Path(__file__).parents[1]

SHIPPED = sorted((data_directory("traces") / "acceptance").glob("*.parquet"))


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def trace_content(trace: AcceptanceTrace) -> str:
    return content_hash(trace, trace.name, trace.provenance)


def flip_traces(directory: Path, flips: int) -> dict[str, int]:
    """Flip one bit at a time in shipped traces, in all of the smallest and at random in the others."""
    draw, counts = np.random.default_rng(11), {"refused": 0, "same": 0, "other": 0, "unnamed": 0}
    paths = sorted(SHIPPED, key=lambda path: path.stat().st_size)[:8]
    for number in range(flips):
        source = paths[number % len(paths)]
        content, right = source.read_bytes(), trace_content(load_trace(source))
        path = directory / "flipped.parquet"
        path.write_bytes(flipped(content, int(draw.integers(8 * len(content)))))
        try:
            found = trace_content(load_trace(path))
        except BadInputError as error:
            counts["refused" if error.source == str(path) else "unnamed"] += 1
        else:
            counts["same" if found == right else "other"] += 1
    return counts


@pytest.mark.parametrize("flips", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_flipped_bit_makes_a_trace_other_data(flips: int, tmp_path: Path) -> None:
    counts = flip_traces(tmp_path, flips)
    print(counts)
    assert counts["other"] == counts["unnamed"] == 0
    assert counts["refused"] > 0.8 * flips


# --- kills and signals --------------------------------------------------------------------------------------

FRONTIER = (
    "frontier", "--profile", "deepseek-v4-flash", "--policy", "mtp1", "--policy", "dspark-async",
    "--concurrency", "20,60", "--workers", "2", "--seeds",
)  # fmt: skip
LONG, SHORT = (*FRONTIER, "6", "--steps", "1200"), (*FRONTIER, "4", "--steps", "300")
"""Sweeps of 24 cells that are under way for a while, and of 16 that are not."""
SWEEP = """
from pathlib import Path
from simulator.parallel.cells import run_cells
from tests.support.sweep_cells import Draw, draw
cells = [Draw(number, {log!r}, pause_s=0.05) for number in range({count})]
rows = run_cells(draw, cells, workers=2, directory=Path({run!r}))
Path({out!r}).write_text(repr(rows))
"""


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def finished(cells: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cells.glob("cells/[!.]*")}


def start(*command: object, **options: Any) -> subprocess.Popen[str]:
    """A child in a session of its own, for which no signal is ignored."""

    def hear() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=HERE.parent, start_new_session=True, preexec_fn=hear,
        stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("SIGTERM", "SIGKILL"),
        pytest.param(("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"), marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_a_run_that_is_ended_takes_its_workers_along_and_resumes(
    names: Sequence[str], tmp_path: Path
) -> None:
    """Ended by one signal after another, the same command at last writes what nothing disturbed."""
    cells, out = tmp_path / "cells", tmp_path / "frontier.csv"
    for name in names:
        before = finished(cells)
        said = ended_by(name, start("-m", "simulator", *LONG, "--cells", cells, "--out", out), cells)
        assert name == "SIGKILL" or re.fullmatch(
            rf"interrupted by {name}; \d+ of 24 cells are finished and kept in {cells}: the same command "
            r"resumes\n", said,
        ), said  # fmt: skip
        assert before.items() < finished(cells).items()
        assert len(finished(cells)) < 24
        assert not out.exists()
    before = finished(cells)
    assert run(*LONG, "--workers", 1, "--cells", cells, "--out", out) == 0
    assert before.items() <= finished(cells).items()
    undisturbed = tmp_path / "undisturbed.csv"
    assert run(*LONG, "--workers", 1, "--out", undisturbed) == 0
    assert out.read_bytes() == undisturbed.read_bytes()


def ended_by(name: str, child: subprocess.Popen[str], cells: Path) -> str:
    """Send a signal once another cell is finished, see all processes end, and return what was said."""
    already = len(finished(cells))
    wait_for(lambda: len(finished(cells)) > already or child.poll() is not None)
    assert child.poll() is None, "the sweep ended before it was interrupted"
    workers = psutil.Process(child.pid).children(recursive=True)
    assert len(workers) >= 2
    ended = time.monotonic()
    os.kill(child.pid, getattr(signal, name))
    child.wait(60)
    _, alive = psutil.wait_procs(workers, timeout=60)
    seconds = time.monotonic() - ended
    print(f"{name}: {len(workers)} processes ended within {seconds:.1f} s")
    assert not alive
    assert seconds < 10  # 5 s are promised; a loaded machine is given twice that
    assert child.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130)
    return child.communicate()[1]


@pytest.mark.slow
def test_random_kills_lose_no_finished_cell(tmp_path: Path) -> None:
    """SIGKILL to the parent, or to all at once, at random moments; then the sweep is finished.

    One kill of each kind: tests/parallel/test_cells.py.
    """
    draw, run, log = np.random.default_rng(5), tmp_path / "run", tmp_path / "log"
    log.mkdir()
    kills, count = 40, 1000
    code = SWEEP.format(log=str(log), count=count, run=str(run), out=str(tmp_path / "killed"))
    kept: dict[str, bytes] = {}
    killed, workers = 0, list[psutil.Process]()
    while killed < kills:
        child = start("-c", code)
        before = len(finished(run))
        wait_for(lambda: len(finished(run)) > before or child.poll() is not None)  # noqa: B023  # called at once
        time.sleep(float(draw.uniform(0, 0.5)))
        if child.poll() is not None:
            break
        workers = psutil.Process(child.pid).children(recursive=True)
        (os.kill if draw.integers(2) else os.killpg)(child.pid, signal.SIGKILL)
        child.communicate()
        killed += 1
        time.sleep(0.5 * float(draw.integers(2)))  # sometimes while workers of the last run still write
        kept |= finished(run)
    assert killed == kills
    assert not psutil.wait_procs(workers, timeout=60)[1]
    computed = len(list(log.iterdir()))
    subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, check=True, capture_output=True)
    assert kept.items() <= finished(run).items()
    assert len(finished(run)) == count
    again = len(list(log.iterdir())) - computed
    print(
        f"{killed} kills, {len(kept)} of {count} cells finished before the last run, {again} computed in it"
    )
    assert again <= count - len(kept)
    quiet = [Draw(number, str(log)) for number in range(count)]
    assert (tmp_path / "killed").read_text() == repr(
        run_cells(sweep_draw, quiet, directory=tmp_path / "quiet")
    )


def test_ignored_signals_stay_ignored_and_handlers_are_put_back() -> None:
    def hang_up_and_end() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    def mine(*_: object) -> None:
        raise AssertionError("not put back")

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, mine)
        with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
            hang_up_and_end()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_local_ray_cluster_listens_to_this_machine_only_and_ends_with_its_parent(
    name: str, tmp_path: Path
) -> None:
    cells = tmp_path / "cells"
    child = start(
        "-m", "simulator", *SHORT, "--backend", "ray", "--cells", cells, "--out", tmp_path / "a.csv"
    )
    wait_for(lambda: len(finished(cells)) >= 1)
    started = psutil.Process(child.pid).children(recursive=True)
    addresses = {
        each.laddr.ip
        for process in started
        for each in process.net_connections()
        if each.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    ended = time.monotonic()
    os.kill(child.pid, getattr(signal, name))
    child.wait(60)
    assert child.stderr is not None
    child.stderr.close()
    _, alive = psutil.wait_procs(started, timeout=60)
    print(f"{name}: {len(started)} processes of Ray ended within {time.monotonic() - ended:.1f} s")
    assert not alive
    assert time.monotonic() - ended < 20  # agents alone stay for more than a minute
    assert child.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130)


# --- disks that fill up -------------------------------------------------------------------------------------


def test_a_limit_on_file_sizes_in_a_sweep_loses_no_finished_cell(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    log.mkdir()
    cells = [Draw(number, str(log)) for number in range(20)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(UnwritableError, match=r"\.parquet: cannot be written: File too large") as caught:
            run_cells(growing, cells, directory=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done = len(finished(run))
    assert 0 < done < 20
    assert caught.value.__notes__ == [
        f"{done} of 20 cells are finished and kept in {run}: the same command resumes"
    ]
    assert not list(run.glob("cells/.*"))
    assert [row["number"] for row in run_cells(growing, cells, directory=run)] == list(range(20))
    # Only the cell that did not fit runs twice.
    assert [times_computed(log, number) for number in range(20)] == [2 if n == done else 1 for n in range(20)]


def test_a_full_disk_in_a_sweep_is_one_line_and_loses_no_finished_cell(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        command = (*SHORT, "--cells", disk / "cells", "--out", tmp_path / "frontier.csv")
        full = start("-m", "simulator", *command)
        said = full.communicate(timeout=300)[1]
        assert full.returncode == 2
        assert re.fullmatch(
            r"error: \S+\.parquet: cannot be written: No space left on device; make room, then run the same "
            rf"command again; \d+ of 16 cells are finished and kept in {disk / 'cells'}: the same command "
            r"resumes\n", said,
        )  # fmt: skip
        before = finished(disk / "cells")
        assert 0 < len(before) < 16
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert run(*command, "--workers", 1) == 0
        assert before.items() <= finished(disk / "cells").items()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- how a command ends -------------------------------------------------------------------------------------


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a command in which ``error`` is raised."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("simulator.cli.listing.print_listing", fail)
    monkeypatch.setattr(sys, "argv", ["dspark-sim", "list"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InfeasibleError("cannot be kept"), 1, "error: cannot be kept\n"),
        (BadInputError("is bad", field="a"), 2, "error: a: is bad\n"),
        (WorkerDiedError("workers died"), 2, "error: workers died\n"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            2,
            "error: out of memory (Unable to allocate 9 TiB); ask for",
        ),
        (
            Interrupted("SIGTERM"),
            130,
            "interrupted by SIGTERM; nothing is half-written: the same command starts",
        ),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(monkeypatch, error) == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert shown.count("\n") == 1


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_the_program_is_one_line_with_details_in_a_file(
    debug: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("DSPARK_DEBUG", "1" if debug else "")
    assert ended(monkeypatch, KeyError("gamma\nmore")) == 70
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith(
        "error: this is a fault of dspark-sim, please report it: KeyError: 'gamma\\nmore'; details in "
    )
    assert ("Traceback" in shown) == debug
    details = Path(last.rpartition(" ")[2]).read_text()
    assert details.startswith("dspark-sim list\nTraceback")
    assert "print_listing" in details


def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = start("-m", "simulator", "list", stdout=full)
        said = done.communicate(timeout=120)[1]
    assert done.returncode == 2
    assert said == "error: standard output: cannot be written: No space left on device\n"
