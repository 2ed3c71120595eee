"""Sweeps: the same bytes everywhere, nothing done twice, no death unnoticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from simulator.cost import ThroughputCurve
from simulator.errors import BadInputError
from simulator.schedulers import parse_policy
from simulator.sweep import MANIFEST, WorkerDiedError, content_hash, run_cells
from tests.sweep_cells import Draw, always_fatal, draw, times_computed

HERE = Path(__file__).parent


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def importable_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))


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


def test_dask_gives_the_same_bytes_as_loky(tmp_path: Path, log: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    cells = cells_of(log)
    loky = run_cells(draw, cells, directory=tmp_path / "loky")
    dask = run_cells(draw, cells, workers=2, backend="dask", directory=tmp_path / "dask")
    assert repr(loky) == repr(dask)
    assert files_of(tmp_path / "loky") == files_of(tmp_path / "dask")


def test_dask_cluster_by_address_survives_a_killed_worker(tmp_path: Path, log: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    cells = [*cells_of(log, 4), Draw(4, str(log), fatal=True)]
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        rows = run_cells(
            draw, cells, backend="dask", address=cluster.scheduler_address, directory=tmp_path / "run"
        )
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert times_computed(log, 4) == 2


def test_ray_gives_the_same_results(log: Path) -> None:
    pytest.importorskip("ray", reason="ray is optional")
    cells = cells_of(log)
    assert repr(run_cells(draw, cells, workers=2, backend="ray")) == repr(run_cells(draw, cells))


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


def test_a_killed_sweep_resumes_where_it_was(tmp_path: Path, log: Path) -> None:
    """SIGKILL to the whole process group in the middle, as the kernel or a batch system would."""
    run, cells = tmp_path / "run", cells_of(log, 8, pause_s=0.2)
    code = (
        "from pathlib import Path; from simulator.sweep import run_cells; from tests.sweep_cells import *; "
        f"run_cells(draw, [Draw(i, {str(log)!r}, pause_s=0.2) for i in range(8)], workers=2, "
        f"directory=Path({str(run)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(run.glob("cells/[!.]*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    finished = len(list(run.glob("cells/[!.]*.parquet")))
    assert 2 <= finished < 8
    before = {number: times_computed(log, number) for number in range(8)}
    rows = run_cells(draw, cells, directory=run)
    assert [row["number"] for row in rows] == list(range(8))
    repeated = sum(times_computed(log, number) > before[number] for number in range(8))
    assert repeated == 8 - finished


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
    with pytest.raises(BadInputError, match=r"sweep\.json: is not JSON"):
        run_cells(draw, cells_of(log), directory=run)


def test_unwritable_directory(log: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be written"):
        run_cells(draw, cells_of(log), directory=Path("/proc/nowhere"))


def test_bad_options(log: Path) -> None:
    with pytest.raises(BadInputError, match="backend: is not known"):
        run_cells(draw, cells_of(log), backend="slurm")  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="workers: must be at least 1"):
        run_cells(draw, cells_of(log), workers=0)
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
