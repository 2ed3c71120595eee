"""Sweeps: independent cells, run in parallel on one machine or a cluster, in order, with progress.

A cell is a plain value; its result depends on nothing else. So a sweep gives the same bytes on every
backend and with any number of workers. With a run directory, each worker writes its own cells as
they finish, under a name derived from their content: whatever dies, what was finished is not done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from pydantic import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simulator.errors import BadInputError, SimulatorError
from simulator.files import atomic_path, read_json, write_json

Cell = TypeVar("Cell")
Result = TypeVar("Result")
Backend = Literal["loky", "dask", "ray"]

RETRIES = 3
"""How often a sweep goes on after workers died, before it concludes that its cells kill them."""

MANIFEST = "sweep.json"


class WorkerDiedError(SimulatorError):
    """Workers died again and again (killed, out of memory); cells in a run directory are kept."""


def run_cells(
    function: Callable[[Cell], Result],
    cells: Sequence[Cell],
    *,
    workers: int = 1,
    label: str = "Simulating",
    progress: bool = False,
    backend: Backend = "loky",
    address: str | None = None,
    directory: Path | None = None,
) -> list[Result]:
    """``[function(cell) for cell in cells]`` on ``workers`` processes, however many.

    function: importable, and depending on nothing but its cell. backend: ``loky`` (processes here),
    ``dask`` or ``ray``, on the cluster at ``address`` or on a local one of ``workers`` where that is
    None. directory: where finished cells are kept as parquet, so that the same sweep resumes; results
    must then be dicts of numbers, text, and lists or dicts of these, and come back as such.

    A worker that dies is reported as a warning and its unfinished cells run again, ``RETRIES`` times at
    most. Raises ``BadInputError`` for a directory that is not writable or holds another sweep.
    """
    _check(workers, backend)
    task: Callable[[Any], Any] = function
    pending: list[tuple[int, Any]] = list(enumerate(cells))
    found: dict[int, Any] = {}
    if directory is not None:
        keys = [content_hash(function, cell) for cell in cells]
        store = _open_store(Path(directory), keys)
        found = {i: row for i, key in enumerate(keys) if (row := store.read(key)) is not None}
        pending = [(i, (keys[i], cells[i])) for i in range(len(cells)) if i not in found]
        task = _Kept(function, store)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not progress) as bar, _cluster(backend, address, workers):
        shown = bar.add_task(label, total=len(cells), completed=len(found))
        for position, result in _surviving(task, pending, workers if backend == "loky" else -1):
            found[position] = result
            bar.advance(shown)
    return [found[i] for i in range(len(cells))]


def content_hash(*parts: object) -> str:
    """32 hex digits that depend on the values within and on nothing else.

    Functions and classes count by name, dataclasses by their compared fields, so that caches which fill
    in passing change nothing. Raises ``TypeError`` for a value whose content cannot be read.
    """
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:32]


def _pieces(value: Any) -> Iterator[bytes]:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError("an array of objects has no content to hash")
        yield f"array {array.dtype.str} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif isinstance(value, Path):
        yield f"path {value}".encode()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=str):
            yield from _pieces((key, value[key]))
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        yield f"name {value.__module__}.{value.__qualname__}".encode()
    elif isinstance(value, BaseModel):
        yield from _pieces((type(value), dict(value)))
    elif dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        yield from _pieces((type(value), fields))
    else:
        raise TypeError(f"a cell may not hold a {type(value).__qualname__}: its content cannot be hashed")


# --- running ------------------------------------------------------------------------------------------------


def _surviving(
    task: Callable[[Any], Any], pending: list[tuple[int, Any]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Results as they come, in any order of arrival; what was lost with a worker runs again."""
    for attempt in range(RETRIES + 1):
        done: set[int] = set()
        try:
            run = Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
            for position, result in run(delayed(_at)(task, each) for each in pending):
                done.add(position)
                yield position, result
            return
        except Exception as error:
            if not _is_death(error):
                raise
            pending = [each for each in pending if each[0] not in done]
            left = f"{len(pending)} cells were unfinished"
            if attempt == RETRIES:
                raise WorkerDiedError(
                    f"workers died {attempt + 1} times and {left}: use fewer workers or more memory"
                ) from error
            warnings.warn(f"a worker died ({type(error).__name__}); {left} and run again", stacklevel=3)


def _at(task: Callable[[Any], Any], positioned: tuple[int, Any]) -> tuple[int, Any]:
    return positioned[0], task(positioned[1])


def _is_death(error: Exception) -> bool:
    # Dask's and Ray's errors go by name: neither library needs to be installed to run elsewhere.
    return isinstance(error, TerminatedWorkerError) or type(error).__name__ in (
        "KilledWorker", "WorkerCrashedError", "OutOfMemoryError",
    )  # fmt: skip


@contextmanager
def _cluster(backend: Backend, address: str | None, workers: int) -> Iterator[None]:
    """joblib configured for the backend; a cluster started here is closed again."""
    if backend == "loky":
        if address is not None:
            raise BadInputError("has no cluster", field="backend", value=backend, remedy="use dask or ray")
        yield
        return
    try:
        with (_dask if backend == "dask" else _ray)(address, workers), parallel_config(backend):
            yield
    except ImportError as error:
        raise BadInputError(
            f"needs the package {error.name}", field="backend", value=backend,
            remedy=f"pip install {'dspark-simulator[cluster]' if backend == 'dask' else 'ray'}",
        ) from error  # fmt: skip


@contextmanager
def _dask(address: str | None, workers: int) -> Iterator[None]:
    distributed: Any = import_module("dask.distributed")
    if address is not None:
        try:
            client = distributed.Client(address, timeout=10)
        except OSError as error:
            raise BadInputError(
                "no scheduler answers", field="address", value=address, remedy="start one or correct it"
            ) from error
        with client:
            yield
        return
    local = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with local as cluster, distributed.Client(cluster):
        yield


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[None]:
    ray: Any = import_module("ray")
    ray.init(address=address, num_cpus=workers if address is None else None, log_to_driver=False)
    import_module("ray.util.joblib").register_ray()
    try:
        yield
    finally:
        ray.shutdown()


def _check(workers: int, backend: str) -> None:
    if workers == 0 or workers < -1:
        raise BadInputError("must be at least 1, or -1 for all cores", field="workers", value=workers)
    if backend not in get_args(Backend):
        raise BadInputError("is not known", field="backend", value=backend, remedy="loky, dask or ray")


# --- the run directory --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Store:
    """Finished cells, one parquet file of one row each, named by the hash of function and cell."""

    directory: Path

    def path(self, key: str) -> Path:
        return self.directory / "cells" / f"{key}.parquet"

    def read(self, key: str) -> dict[str, Any] | None:
        """A finished cell's result; None where there is none, or only an unreadable file."""
        from pyarrow import ArrowException, parquet

        if not self.path(key).exists():
            return None
        try:
            row: dict[str, Any] = parquet.read_table(self.path(key)).to_pylist()[0]
        except (ArrowException, OSError, IndexError):
            warnings.warn(f"{self.path(key)} is damaged; its cell runs again", stacklevel=3)
            return None
        return row

    def write(self, key: str, row: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        with atomic_path(self.path(key)) as temporary:
            parquet.write_table(pa.Table.from_pylist([_plain(row)]), temporary)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Runs a cell and keeps its result before handing it on; runs inside the worker."""

    function: Callable[[Any], Any]
    store: _Store

    def __call__(self, keyed: tuple[str, Any]) -> dict[str, Any]:
        key, cell = keyed
        self.store.write(key, self.function(cell))
        row = self.store.read(key)
        assert row is not None
        return row


def _open_store(directory: Path, keys: Sequence[str]) -> _Store:
    """A new run directory, or the one that holds this very sweep."""
    sweep = {"schema": 1, "cells": len(keys), "sweep": content_hash(tuple(keys))}
    manifest = directory / MANIFEST
    if manifest.exists():
        if read_json(manifest) != sweep:
            raise BadInputError(
                "holds another sweep", source=str(directory),
                remedy="choose another directory, or delete this one to start over",
            )  # fmt: skip
    elif directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir()):
        raise BadInputError(
            f"is neither empty nor a run directory: it has no {MANIFEST}", source=str(directory),
            remedy="choose another directory; what is there was left as it is",
        )  # fmt: skip
    write_json(manifest, sweep)
    for leftover in (directory / "cells").glob(".*.parquet"):
        leftover.unlink(missing_ok=True)  # half-written by a worker that was killed
    return _Store(directory)


def _plain(value: Any) -> Any:
    """Python's own types in place of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
