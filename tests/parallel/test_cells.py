"""Sweeps: the same bytes everywhere, nothing done twice, no death unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from simulator.core.errors import BadInputError, UnwritableError
from simulator.cost.models import ThroughputCurve
from simulator.parallel.backends import RETRIES, Backend, WorkerDiedError, WorkersLost, runner
from simulator.parallel.cells import _surviving, run_cells
from simulator.parallel.hashing import content_hash
from simulator.parallel.store import LOCK, MANIFEST, CellStore
from simulator.schedulers.parse import parse_policy
from tests.support.sweep_cells import Draw, always_fatal, draw, refuse, times_computed

HERE = Path(__file__).parents[1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.mkdir()
    return path


@pytest.fixture(scope="module", autouse=True)
def importable_in_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE.parent))
        yield


@pytest.fixture(scope="module")
def dask_address(importable_in_workers: None) -> Iterator[str]:
    """The address of one cluster for all tests that need Dask, as it takes seconds to start."""
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def ray_started(importable_in_workers: None) -> Iterator[None]:
    """Ray of this machine, started once; a sweep takes what runs already."""
    with runner("ray", None, 2):
        yield


def cells_of(log: Path, count: int = 6, **options: object) -> list[Draw]:
    return [Draw(number, str(log), **options) for number in range(count)]  # type: ignore[arg-type]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "cells").iterdir())}


def test_same_bytes_with_any_number_of_workers(tmp_path: Path, log: Path) -> None:
    cells = cells_of(log)
    one = run_cells(draw, cells, directory=tmp_path / "one")
    two = run_cells(draw, cells, workers=2, directory=tmp_path / "two")
    assert [row["number"] for row in two] == list(range(6))
    assert repr(one) == repr(two)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert repr(run_cells(draw, cells)) == repr(one)  # and without a directory


def test_a_dask_cluster_survives_a_killed_worker_and_gives_the_same_bytes_as_loky(
    dask_address: str, tmp_path: Path, log: Path
) -> None:
    cells = [*cells_of(log, 4), Draw(4, str(log), fatal=True)]
    dask = run_cells(draw, cells, backend="dask", address=dask_address, directory=tmp_path / "dask")
    assert [row["number"] for row in dask] == [0, 1, 2, 3, 4]
    assert times_computed(log, 4) == 2
    loky = run_cells(draw, cells, directory=tmp_path / "loky")
    assert repr(loky) == repr(dask)
    assert files_of(tmp_path / "loky") == files_of(tmp_path / "dask")


def test_finished_cells_are_not_repeated(tmp_path: Path, log: Path) -> None:
    cells = cells_of(log)
    first = run_cells(draw, cells, directory=tmp_path / "run")
    again = run_cells(draw, cells, directory=tmp_path / "run")
    assert repr(first) == repr(again)
    assert all(times_computed(log, number) == 1 for number in range(6))


def test_a_killed_worker_is_reported_and_only_its_cells_repeat(tmp_path: Path, log: Path) -> None:
    cells = [*cells_of(log, 4), Draw(4, str(log), fatal=True)]
    with pytest.warns(UserWarning, match="a worker died .* run again"):
        rows = run_cells(draw, cells, workers=2, directory=tmp_path / "run")
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert times_computed(log, 4) == 2


def test_cells_that_kill_every_worker_end_the_sweep(log: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(WorkerDiedError, match="workers died 4 times"):
            run_cells(always_fatal, cells_of(log, 2), workers=2)


@pytest.mark.parametrize("all_at_once", [True, False])
def test_a_killed_sweep_resumes_where_it_was(all_at_once: bool, tmp_path: Path, log: Path) -> None:
    """SIGKILL in the middle to all processes, as a batch system would, or to the parent: workers follow."""
    run, cells = tmp_path / "run", cells_of(log, 10, pause_s=0.4)
    code = (
        "from pathlib import Path; from simulator.parallel.cells import run_cells; "
        "from tests.support.sweep_cells import *; "
        f"run_cells(draw, [Draw(i, {str(log)!r}, pause_s=0.4) for i in range(10)], workers=2, "
        f"directory=Path({str(run)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, start_new_session=True)
    wait_for(lambda: len(list(run.glob("cells/[!.]*.parquet"))) >= 2)
    workers = psutil.Process(child.pid).children(recursive=True)
    assert len(workers) >= 2
    (os.killpg if all_at_once else os.kill)(child.pid, signal.SIGKILL)
    child.wait()
    assert not psutil.wait_procs(workers, timeout=10)[1]  # they look for their parent each second
    finished = len(list(run.glob("cells/[!.]*.parquet")))
    assert 2 <= finished < 10
    before = {number: times_computed(log, number) for number in range(10)}
    (log / "hurry").touch()
    rows = run_cells(draw, cells, directory=run)
    assert [row["number"] for row in rows] == list(range(10))
    repeated = sum(times_computed(log, number) > before[number] for number in range(10))
    assert repeated == 10 - finished


def test_half_written_cells_run_again(tmp_path: Path, log: Path) -> None:
    cells, run = cells_of(log), tmp_path / "run"
    first = run_cells(draw, cells, directory=run)
    torn = sorted((run / "cells").iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:40])
    (run / "cells" / ".leftover.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="is damaged; its cell runs again"):
        again = run_cells(draw, cells, directory=run)
    assert repr(again) == repr(first)
    assert not (run / "cells" / ".leftover.parquet").exists()
    assert sum(times_computed(log, number) for number in range(6)) == 7


def test_directories_of_others_are_refused_and_left_alone(tmp_path: Path, log: Path) -> None:
    run = tmp_path / "run"
    run_cells(draw, cells_of(log), directory=run)
    kept = files_of(run)
    with pytest.raises(BadInputError, match="holds another sweep"):
        run_cells(draw, cells_of(log, 7), directory=run)
    assert files_of(run) == kept
    with pytest.raises(BadInputError, match="neither empty nor a run directory"):
        run_cells(draw, cells_of(log), directory=log)
    assert not (log / MANIFEST).exists()


def test_a_torn_manifest_is_named(tmp_path: Path, log: Path) -> None:
    run = tmp_path / "run"
    run_cells(draw, cells_of(log), directory=run)
    (run / MANIFEST).write_text('{"schema"')
    with pytest.raises(BadInputError, match=r"sweep\.json: line 1: is not JSON"):
        run_cells(draw, cells_of(log), directory=run)


def test_unwritable_directory(log: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be written"):
        run_cells(draw, cells_of(log), directory=Path("/proc/nowhere"))


def test_bad_options(log: Path) -> None:
    with pytest.raises(BadInputError, match="backend: is not known"):
        run_cells(draw, cells_of(log), backend="slurm")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="workers: must be at least 1"):
        run_cells(draw, cells_of(log), workers=0)
    with pytest.raises(BadInputError, match="workers: must be at most"):
        run_cells(draw, cells_of(log), workers=2**31)
    with pytest.raises(BadInputError, match="has no cluster"):
        run_cells(draw, cells_of(log), address="tcp://127.0.0.1:1")


def test_content_hash_sees_values_and_not_caches() -> None:
    curve, same = (ThroughputCurve([1, 8], [100.0, 50.0]) for _ in range(2))
    before = content_hash(curve)
    curve.step_time_s(1, range(1, 8))  # fills a table inside
    assert content_hash(curve) == before == content_hash(same)
    assert content_hash(ThroughputCurve([1, 8], [100.0, 49.0])) != before
    assert content_hash(parse_policy("fixed:2")) != content_hash(parse_policy("fixed:3"))
    assert content_hash(["a", "b"]) != content_hash(["ab"])
    assert content_hash(np.array([1, 2])) != content_hash(np.array([1.0, 2.0]))
    with pytest.raises(TypeError, match="cannot be hashed"):
        content_hash(object())


# --- other code ---------------------------------------------------------------------------------------------


def test_other_code_is_said_once_of_all_directories_of_a_plan(tmp_path: Path, log: Path) -> None:
    sweeps = [tmp_path / "peak", tmp_path / "rates"]
    for directory in sweeps:
        run_cells(draw, cells_of(log, 1), directory=directory)
        manifest = json.loads((directory / MANIFEST).read_text())
        (directory / MANIFEST).write_text(json.dumps(manifest | {"code": "other"}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for directory in sweeps:
            run_cells(draw, cells_of(log, 1), directory=directory)
    assert [str(warning.message).split(" (")[0] for warning in said] == [
        "kept cells were computed by other code"
    ]


def made(text: str) -> Any:
    """The function ``f`` of a module written by a user, as a notebook's would be."""
    module: dict[str, Any] = {"__name__": "__main__"}
    exec(text, module)
    return module["f"]


def test_functions_count_by_what_they_do() -> None:
    """Two lambdas, a changed body, constant, default, closure, global, method: each is another cell."""
    same = "def f(x):\n    return x + 1\n"
    assert content_hash(made(same)) == content_hash(made("# a remark\n\n\ndef f(x):\n\n    return (x + 1)\n"))
    others = [
        same,
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(x, y=1):\n    return x + 1\n",
        "def f(x, y=2):\n    return x + 1\n",
        "f = lambda x: x + 1",
        "f = lambda x: x * 3",
        "f = lambda x: x.real",
        "f = lambda x: x.imag",
        "a = 1\ndef f(x): return x + a",
        "a = 2\ndef f(x): return x + a",
        "def g(a):\n    return lambda x: x + a\nf = g(1)",
        "def g(a):\n    return lambda x: x + a\nf = g(2)",
        "def g(x): return x\ndef f(x): return g(x)",
        "def g(x): return -x\ndef f(x): return g(x)",
        "def g(x): return x\ndef f(x): return [g(y) for y in x]",
        "def f(x): return f(x - 1) if x in {'a', 'b'} else 0",
        "def f(x): return f(x - 1) if x in {'a', 'c'} else 0",
        "import numpy\ndef f(x): return numpy.sin(x)",
        "import functools\nf = functools.partial(lambda x, y: x, y=1)",
        "import functools\nf = functools.partial(lambda x, y: x, y=2)",
        "import functools\n@functools.lru_cache\ndef f(x): return 1",
        "import functools\n@functools.lru_cache\ndef f(x): return 2",
        "class f:\n    def schedule(self): return 1",
        "class f:\n    def schedule(self): return 2",
        "class f:\n    lag = 1",
        "class f:\n    lag = 2",
        "class f:\n    @property\n    def lag(self): return 1",
        "class f:\n    @property\n    def lag(self): return 2",
        "class f:\n    @staticmethod\n    def g(): return 1",
        "class f:\n    @classmethod\n    def g(cls): return 1",
        "class A:\n    def g(self): return 1\nclass f(A): pass",
        "class A:\n    def g(self): return 2\nclass f(A): pass",
        "import dataclasses as d\n@d.dataclass\nclass f:\n    a: list = d.field(default_factory=list)",
        "import dataclasses as d\n@d.dataclass\nclass f:\n    a: list = d.field(default_factory=set)",
        "class A:\n    def __init__(self, a): self.a = a\nf = A(1)",
        "class A:\n    def __init__(self, a): self.a = a\nf = A(2)",
        "class A:\n    def go(self): return 1\nf = A().go",
        "class A:\n    def go(self): return 2\nf = A().go",
    ]
    hashes = [content_hash(made(text)) for text in others]
    assert hashes == [content_hash(made(text)) for text in others]
    assert len(set(hashes)) == len(others)


def test_equal_code_has_equal_hashes_in_other_processes() -> None:
    """Sets of constants have another order in each process; pickling leaves marks in classes."""
    code = (
        "from tests.support.sweep_cells import *; from simulator.parallel.hashing import content_hash; "
        "import pickle, sys; "
        "sys.argv[1:] and pickle.loads(pickle.dumps(Draw(1, 'x'))); "
        "print(content_hash(draw, Draw(1, 'x'), lambda x: x in {'a', 'b', 'c'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, *more], cwd=HERE.parent, check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed, more in (("1", []), ("2", ["pickled"]))
    }  # fmt: skip
    assert len(found) == 1


def test_a_study_takes_more_cells_and_keeps_those_it_holds(tmp_path: Path, log: Path) -> None:
    """Another study is refused, and finds nothing changed; so is the same sweep without its study."""
    run, cells = tmp_path / "run", cells_of(log, 5)
    first = run_cells(draw, cells[:2], directory=run, study="flash")
    kept = files_of(run)
    more = run_cells(draw, cells, directory=run, study="flash")
    assert repr(more[:2]) == repr(first)  # NaN is no number, not even itself
    assert sum(times_computed(log, number) for number in range(5)) == 5
    assert repr(run_cells(draw, cells[4:], directory=run, study="flash")) == repr(more[4:])
    assert kept.items() <= files_of(run).items()
    before = files_of(run)
    for other in ("pro", None):
        with pytest.raises(BadInputError, match=r"holds another sweep.*add policies, loads and precision"):
            run_cells(draw, cells, directory=run, study=other)
    assert files_of(run) == before
    assert sum(times_computed(log, number) for number in range(5)) == 5


def test_a_changed_function_of_the_user_is_refused_not_taken(tmp_path: Path) -> None:
    old, new = made("def f(x):\n    return {'x': x}"), made("def f(x):\n    return {'x': 2 * x}")
    assert run_cells(old, [1, 2], directory=tmp_path / "run") == [{"x": 1}, {"x": 2}]
    with pytest.raises(BadInputError, match=r"holds another sweep, or functions of yours .* have changed"):
        run_cells(new, [1, 2], directory=tmp_path / "run")


def test_results_of_an_edited_package_are_not_used(tmp_path: Path) -> None:
    """Doubling the step time in the source doubles the result of the same command in the same directory."""
    shutil.copytree(
        HERE.parent / "simulator", tmp_path / "simulator", ignore=shutil.ignore_patterns("__pycache__")
    )
    cells = (
        "from simulator.cost.models import ThroughputCurve; from simulator.parallel.cells import run_cells\n"
        "from pathlib import Path\n"
        "from steps import step\n"
        "print(run_cells(step, [ThroughputCurve([1, 8], [100.0, 50.0])], directory=Path('run'))[0]['s'])"
    )
    (tmp_path / "steps.py").write_text("def step(curve): return {'s': float(curve.step_time_s(8, 8))}\n")

    def run() -> tuple[float, str]:
        done = subprocess.run(
            [sys.executable, "-c", cells], cwd=tmp_path, check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path)}, timeout=120,
        )  # fmt: skip
        return float(done.stdout), done.stderr

    assert run() == (1 / 50, "")
    source = tmp_path / "simulator" / "cost" / "models.py"
    before = source.read_text()
    source.write_text(
        before + "\n_once = ThroughputCurve.step_time_s\n"
        "ThroughputCurve.step_time_s = lambda *a, **k: 2 * _once(*a, **k)\n"
    )
    seconds, said = run()
    assert seconds == 2 / 50
    assert "computed by other code" in said
    assert "run again" in said
    source.write_text(before)
    assert run()[0] == 1 / 50  # what the first code computed is still there
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 2


def test_what_cannot_be_identified_runs_every_time_and_is_said(tmp_path: Path) -> None:
    calls = []

    def count(cell: object) -> dict[str, int]:
        calls.append(cell)
        return {"calls": len(calls)}

    cells = [iter("ab"), iter("cd")]
    for expected in (2, 4):
        with pytest.warns(
            UserWarning, match="2 of 2 cells are not kept and run every time: a cell may not hold"
        ):
            assert [row["calls"] for row in run_cells(count, cells, directory=tmp_path / "run")][
                1
            ] == expected
    assert not (tmp_path / "run" / "cells").exists()


# --- damaged cells ------------------------------------------------------------------------------------------


def test_a_swapped_cell_runs_again(tmp_path: Path, log: Path) -> None:
    cells, run = cells_of(log, 2), tmp_path / "run"
    first = run_cells(draw, cells, directory=run)
    one, other = sorted((run / "cells").iterdir())
    one.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="is damaged; its cell runs again: it is another cell's"):
        again = run_cells(draw, cells, directory=run)
    assert repr(again) == repr(first)
    assert one.read_bytes() != other.read_bytes()


def flip_cells(directory: Path, log: Path, flips: int) -> dict[str, int]:
    """Flip one bit of a cell's file at a time, read it, and count what came of it."""
    cells = cells_of(log, 4)
    kept = {row["number"]: repr(row) for row in run_cells(draw, cells, directory=directory)}
    store, number = CellStore(directory), 0
    counts, source = {"refused": 0, "same": 0, "other": 0}, np.random.default_rng(3)
    paths = sorted((directory / "cells").iterdir())
    right = {path: repr(store.read(path.stem)) for path in paths}
    assert set(right.values()) == set(kept.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for number in range(flips):
            path = paths[number % len(paths)]
            whole = path.read_bytes()
            torn = bytearray(whole)
            bit = int(source.integers(8 * len(whole)))
            torn[bit // 8] ^= 1 << bit % 8
            path.write_bytes(torn)
            row = store.read(path.stem)
            counts["refused" if row is None else "same" if repr(row) == right[path] else "other"] += 1
            path.write_bytes(whole)
    return counts


@pytest.mark.parametrize("flips", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_flipped_bit_makes_a_cell_another_result(flips: int, tmp_path: Path, log: Path) -> None:
    counts = flip_cells(tmp_path / "run", log, flips)
    print(counts)
    assert counts["other"] == 0
    assert counts["refused"] > flips / 3


def test_a_directory_in_a_cell_s_place_is_named(tmp_path: Path, log: Path) -> None:
    run_cells(draw, cells_of(log), directory=tmp_path / "run")
    path = sorted((tmp_path / "run" / "cells").iterdir())[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(BadInputError, match=f"{path.name}: is not a file, but has a cell's name; remove it"):
        run_cells(draw, cells_of(log), directory=tmp_path / "run")


# --- one directory, several processes -----------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path, log: Path) -> None:
    run = tmp_path / "run"
    code = (
        "from pathlib import Path; from simulator.parallel.cells import run_cells; "
        "from tests.support.sweep_cells import *; "
        f"run_cells(draw, [Draw(i, {str(log)!r}, pause_s=0.5) for i in range(200)], "
        f"directory=Path({str(run)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent)
    try:
        wait_for(lambda: any(log.iterdir()))
        (run / "cells").mkdir(exist_ok=True)
        flying = run / "cells" / ".partial-of-the-first.parquet"
        flying.write_bytes(b"PAR1")
        with pytest.raises(BadInputError, match=f"run: is in use by process {child.pid} on .* since "):
            run_cells(draw, cells_of(log, 200, pause_s=0.5), directory=run)
        assert flying.exists()
    finally:
        child.kill()
        child.wait()
    with pytest.raises(BadInputError, match="holds another sweep"):  # the lock ended with its holder
        run_cells(draw, cells_of(log, 3), directory=run)
    assert not list((run / "cells").glob("*.lock"))


def test_a_complete_directory_on_a_read_only_medium_is_read(tmp_path: Path, log: Path) -> None:
    run = Path(tempfile.mkdtemp(prefix="dspark-read-only-"))
    try:
        first = run_cells(draw, cells_of(log), directory=run)
        (run / LOCK).unlink()
        before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
        with read_only(run):
            assert repr(run_cells(draw, cells_of(log), directory=run)) == repr(first)
            assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before
        sorted((run / "cells").iterdir())[0].unlink()
        with read_only(run), pytest.raises(UnwritableError, match="is read-only and lacks 1 of 6 cells"):
            run_cells(draw, cells_of(log), directory=run)
    finally:
        shutil.rmtree(run)
    assert all(times_computed(log, number) == 1 for number in range(6))


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nobody may write there, not even root, who becomes a user without rights inside the block."""
    folders = [directory, directory / "cells"]
    for each in folders:
        each.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for each in folders:
            each.chmod(0o755)


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- workers that die ---------------------------------------------------------------------------------------


def test_progress_resets_the_count_of_deaths() -> None:
    """Six deaths, each after a finished cell: more than RETRIES, and yet the sweep ends well."""

    def run(task: Any, pending: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        yield pending[0][0], task(pending[0][1])
        if len(pending) > 1:
            raise WorkersLost("test")

    with pytest.warns(UserWarning, match="a worker died") as said:
        done = dict(_surviving(run, lambda x: 10 * x, list(enumerate(range(7)))))
    assert done == {place: 10 * place for place in range(7)}
    assert len(said) == 6 > RETRIES


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # sockets of a cluster that died
def test_a_dask_worker_killed_while_it_starts_is_said_and_started_again(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "died"
    preload = tmp_path / "dies_once.py"
    preload.write_text(
        f"import os, pathlib, signal\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    import dask
    import distributed  # noqa: F401  # whose settings are added on import, and would be lost with these

    monkeypatch.setattr("simulator.parallel.backends.RETRIES", 1)
    dying = {"distributed.worker.preload": [str(preload)]}
    with (
        dask.config.set(dying),
        pytest.warns(UserWarning, match=r"a Dask worker died while it started .*; starting again"),
    ):
        rows = run_cells(draw, cells_of(log, 3), workers=1, backend="dask")
    assert [row["number"] for row in rows] == [0, 1, 2]
    preload.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with (
        dask.config.set(dying),
        pytest.warns(UserWarning, match="a Dask worker died while it started"),
        pytest.raises(WorkerDiedError, match="the local Dask cluster did not start 2 times in a row: "),
    ):
        run_cells(draw, cells_of(log, 3), workers=1, backend="dask")


def test_a_dask_scheduler_that_is_not_there_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.parallel.backends._ANSWER_S", 1)
    for address in ("foo", "tcp://127.0.0.1:9", "foo://bar"):
        with pytest.raises(BadInputError, match=f"address: no cluster answers: .*got '{address}'"):
            run_cells(draw, cells_of(log), backend="dask", address=address)


def test_ray_survives_a_killed_worker_and_gives_the_same_bytes_as_loky(
    ray_started: None, tmp_path: Path, log: Path
) -> None:
    cells = [*cells_of(log, 4), Draw(4, str(log), fatal=True)]
    with pytest.warns(UserWarning, match=r"a worker died \(WorkerCrashedError\); 1 cells were unfinished"):
        ray = run_cells(draw, cells, workers=2, backend="ray", directory=tmp_path / "ray")
    assert times_computed(log, 4) == 2
    assert all(times_computed(log, number) == 1 for number in range(4))
    loky = run_cells(draw, cells, directory=tmp_path / "loky")
    assert repr(loky) == repr(ray)
    assert files_of(tmp_path / "loky") == files_of(tmp_path / "ray")


def test_an_error_in_a_cell_comes_back_as_it_was(dask_address: str, ray_started: None, log: Path) -> None:
    backends: dict[Backend, str | None] = {"loky": None, "dask": dask_address, "ray": None}
    for backend, address in backends.items():
        with pytest.raises(BadInputError, match=r"^sample: number: is bad \(got 3\); mend it$"):
            run_cells(refuse, cells_of(log, 4)[3:] * 2, workers=2, backend=backend, address=address)
