"""Sweeps: independent cells, run in parallel on one machine or a cluster, with results in order.

A cell is a plain value, and its result depends only on the cell and the code. A sweep therefore gives the
same bytes on every backend and with any number of workers. With a run directory, each worker writes its
finished cells under names derived from their content and the code, so that finished cells survive every
failure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from simulator.core.errors import BadInputError, UnwritableError
from simulator.core.interruption import noting
from simulator.parallel.backends import (
    RETRIES,
    Backend,
    Run,
    WorkerDiedError,
    WorkersLost,
    check,
    runner,
)
from simulator.parallel.batches import Task
from simulator.parallel.hashing import Arrays, code_digest, content_hash
from simulator.parallel.progress import counting
from simulator.parallel.store import CellStore, open_store

Cell = TypeVar("Cell")

Result = TypeVar("Result")


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
    study: object = None,
) -> list[Result]:
    """``[function(cell) for cell in cells]`` on ``workers`` processes, however many.

    function: importable, and depending on nothing but its cell. backend: ``loky`` (processes here),
    ``dask`` or ``ray``, on the cluster at ``address`` or on a local one of ``workers`` where that is
    None. directory: where finished cells are kept as parquet, so that the same sweep resumes; results
    must then be dicts of numbers, text, and lists or dicts of these, and come back as such. It is for one
    process at a time. Cells that other code computed are not used; a cell that cannot be identified by its
    content runs every time; both are warned about. study: what all cells have in common. A directory of the
    same study takes further cells and keeps those it holds; without it, only the very same cells resume.

    A worker that dies is reported as a warning and its unfinished cells run again, ``RETRIES`` times in a
    row at most without a finished cell. Raises ``BadInputError`` for a directory that is not writable,
    holds another sweep or is in use.
    """
    check(backend, address, workers)
    with ExitStack() as stack:
        plan = _Plan(function, [None] * len(cells), None)
        if directory is not None:
            plan = _Plan.kept(function, cells, Path(directory), stack, study)
        found = plan.finished()
        pending = [(i, (plan.keys[i], cell)) for i, cell in enumerate(cells) if i not in found]
        if pending:
            plan.check_writable(sum(key is not None for _, (key, _) in pending))
            advance = stack.enter_context(counting(label, len(cells), len(found), wanted=progress))
            stack.enter_context(
                noting(lambda: _kept(len(found), len(cells), directory), WorkerDiedError, UnwritableError)
            )
            run = stack.enter_context(runner(backend, address, workers))
            for position, result in _surviving(run, plan.task, pending):
                found[position] = result
                advance()
    return [found[i] for i in range(len(cells))]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A function, the key under which each cell is kept (None: the cell is not kept), and the directory."""

    function: Callable[[Any], Any]
    keys: list[str | None]
    store: CellStore | None

    @classmethod
    def kept(
        cls,
        function: Callable[[Any], Any],
        cells: Sequence[Any],
        directory: Path,
        stack: ExitStack,
        study: object,
    ) -> _Plan:
        """Return the plan with keys, and its run directory, which is locked until ``stack`` closes."""
        identities: list[str | None] = []
        reasons: list[str] = []
        read: Arrays = {}
        for cell in cells:
            try:
                identities.append(content_hash(function, cell, arrays=read))
            except TypeError as error:
                identities.append(None)
                reasons.append(str(error))
        if reasons:
            warnings.warn(
                f"{len(reasons)} of {len(cells)} cells are not kept and run every time: {reasons[0]}",
                stacklevel=4,
            )
        sweep = content_hash([each or f"cell {place}" for place, each in enumerate(identities)])
        if study is not None:
            sweep = content_hash("study", function, study)
        store = stack.enter_context(open_store(directory, sweep, len(cells)))
        return cls(function, [each and content_hash(code_digest(), each) for each in identities], store)

    def finished(self) -> dict[int, Any]:
        """Return the results on disk, by position."""
        if self.store is None:
            return {}
        rows = {i: self.store.read(key) for i, key in enumerate(self.keys) if key is not None}
        return {i: row for i, row in rows.items() if row is not None}

    def check_writable(self, pending: int) -> None:
        """Refuse to compute results that could not be kept."""
        if self.store is not None and pending and not self.store.writable:
            raise UnwritableError(
                f"is read-only and lacks {pending} of {len(self.keys)} cells",
                source=str(self.store.directory), remedy="make it writable, or copy it to where it is",
            )  # fmt: skip

    @property
    def task(self) -> Task:
        """Return what a worker runs on a cell and its key."""
        return _Work(self.function, self.store, code_digest() if self.store else "")


@dataclass(frozen=True, slots=True)
class _Work:
    """Runs a cell in the worker, and keeps its result before returning it."""

    function: Callable[[Any], Any]
    store: CellStore | None
    code: str

    def __call__(self, keyed: tuple[str | None, Any]) -> Any:
        key, cell = keyed
        if self.store is None or key is None:
            return self.function(cell)
        if code_digest() != self.code:
            raise BadInputError(
                f"runs other code ({code_digest()}) than what asked it ({self.code})", source="worker",
                remedy="install one version everywhere and start the cluster again",
            )  # fmt: skip
        row = self.store.read(key)  # kept by a worker that died before it returned the result
        return self.store.write(key, self.function(cell)) if row is None else row


def _surviving(run: Run, task: Task, pending: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield results in order of arrival; cells lost with a worker run again."""
    failures = 0
    while pending:
        done: set[int] = set()
        try:
            for position, result in run(task, pending):
                done.add(position)
                yield position, result
            return
        except WorkersLost as error:
            pending = [each for each in pending if each[0] not in done]
            failures = 1 if done else failures + 1
            left = f"{len(pending)} cells were unfinished"
            if failures > RETRIES:
                raise WorkerDiedError(
                    f"workers died {failures} times in a row and {left}: use fewer workers or more memory"
                ) from error
            warnings.warn(f"a worker died ({error}); {left} and run again", stacklevel=3)


def _kept(finished: int, total: int, directory: Path | None) -> str:
    """Say which cells of an ended sweep are kept."""
    if directory is None:
        return f"the {total} cells under way are not kept and run again with the same command"
    return f"{finished} of {total} cells are finished and kept in {directory}: the same command resumes"


@dataclass(frozen=True, slots=True)
class Sweeping:
    """How the cells of a plan run, and the directory that keeps them.

    study: what all cells of the directory have in common; see ``run_cells``.
    """

    directory: Path | None = None
    workers: int = 1
    backend: Backend = "loky"
    address: str | None = None
    progress: bool = False
    study: object = None

    def run(self, function: Any, cells: Sequence[Any], label: str) -> list[dict[str, Any]]:
        """Run one sweep, or resume it."""
        return run_cells(
            function,
            cells,
            workers=self.workers,
            label=label,
            progress=self.progress,
            backend=self.backend,
            address=self.address,
            directory=None if self.directory is None else self.directory / label.lower().replace(" ", "-"),
            study=self.study,
        )
