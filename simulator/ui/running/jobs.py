"""Long work in processes of its own: asked for by a session, looked at while it runs, ended at any time.

A session is one open page of a browser. Each has at most one worker, so that two browsers work at once and
cancelling one leaves the other alone. Results are kept by what was asked, not by who asked.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any, Protocol

from simulator.core.errors import BadInputError, SimulatorError

MOST_WORKERS = 4
"""Runs at once: a choice, two browsers with a page to spare each."""

MOST_RESULTS = 512
"""Results that are kept, the least recently used is dropped first. A line of a frontier takes some 10 kB."""

ABANDONED_S = 60.0
"""Seconds after which a worker that no page looks at may be ended: a page looks several times a second."""

PRELOADED = ("simulator.ui.explore.work", "simulator.ui.plan.work", "simulator.ui.check.work")
"""What workers do, with all that it imports: imported once, in the process that workers are forked from."""

Say = Callable[[str], None]


class Task(Protocol):
    """A piece of work. Equal tasks have equal hashes and share one result."""

    def run(self, say: Say) -> object:
        """Do the work inside a worker. say: tells what is under way, for the page."""

    def __hash__(self) -> int:
        """Say which tasks may be equal."""


class FaultError(SimulatorError):
    """A task ended in a way that is the program's own fault."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is of the tasks asked about. found: a result or the error of each that has ended."""

    found: Mapping[Task, object]
    running: bool
    said: str


@dataclass(slots=True)
class _Worker:
    """A process that does one task after the other, and what is known of it on this side."""

    process: Any
    connection: Connection
    pending: list[Task] = field(default_factory=list)
    said: str = ""
    looked_s: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        self.pending = []
        self.process.terminate()
        self.process.join()
        self.connection.close()


class Jobs:
    """The workers of all sessions and the results of what they did. Safe to call from several threads."""

    def __init__(self) -> None:
        """Start no worker yet, but what they are forked from: its imports go on while others do."""
        if "forkserver" in multiprocessing.get_all_start_methods():
            self._context: Any = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(PRELOADED))
            forkserver.ensure_running()
        else:
            self._context = multiprocessing.get_context("spawn")
        self._workers: dict[str, _Worker] = {}
        self._results: OrderedDict[Task, object] = OrderedDict()
        self._lock = threading.RLock()

    def ask(self, session: str, tasks: Sequence[Task]) -> None:
        """Begin what of these tasks has no result; whatever else the session ran is ended.

        Raises ``BadInputError`` where as many workers as may run are busy for pages that look at them.
        """
        with self._lock:
            self._receive_all()
            missing = [task for task in tasks if task not in self._results]
            worker = self._workers.get(session)
            if worker is not None and worker.pending == missing:
                return
            if worker is not None and worker.pending:
                self._workers.pop(session).end()
            if missing:
                worker = self._workers.get(session) or self._new(session)
                worker.pending, worker.said = missing, ""
                worker.connection.send(missing)

    def look(self, session: str, tasks: Sequence[Task]) -> Seen:
        """Return what there is by now."""
        with self._lock:
            self._receive_all()
            found: dict[Task, object] = {}
            for task in tasks:
                if task in self._results:
                    self._results.move_to_end(task)
                    found[task] = self._results[task]
            worker = self._workers.get(session)
            if worker is None:
                return Seen(found, False, "")
            worker.looked_s = time.monotonic()
            running = any(task in worker.pending for task in tasks)
            return Seen(found, running, worker.said if running else "")

    def cancel(self, session: str) -> None:
        """End what the session runs; results that are there stay."""
        with self._lock:
            self._receive_all()
            worker = self._workers.get(session)
            if worker is not None and worker.pending:
                self._workers.pop(session).end()

    def processes(self) -> list[int]:
        """Return the process ids of all workers."""
        with self._lock:
            return [worker.process.pid for worker in self._workers.values()]

    def close(self) -> None:
        """End every worker."""
        with self._lock:
            while self._workers:
                self._workers.popitem()[1].end()

    def _new(self, session: str) -> _Worker:
        if len(self._workers) >= MOST_WORKERS:
            self._make_room()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._workers[session] = _Worker(process, ours)
        return self._workers[session]

    def _make_room(self) -> None:
        """End the worker that is idle, or busy for a page that is gone, and was looked at longest ago."""
        before = time.monotonic() - ABANDONED_S
        free = {
            session: worker.looked_s
            for session, worker in self._workers.items()
            if not worker.pending or worker.looked_s < before
        }
        if not free:
            raise BadInputError(
                f"{MOST_WORKERS} runs are under way in other pages", remedy="wait, or cancel one of them"
            )
        self._workers.pop(min(free, key=lambda session: free[session])).end()

    def _receive_all(self) -> None:
        for session, worker in list(self._workers.items()):
            try:
                while worker.connection.poll():
                    self._receive(worker, *worker.connection.recv())
            except (EOFError, OSError):
                if worker.pending:
                    self.keep(worker.pending[0], FaultError("the worker died; ask for less at once"))
                self._workers.pop(session).end()

    def _receive(self, worker: _Worker, task: Task | None, value: object) -> None:
        if task is None:
            worker.said = str(value)
            return
        worker.pending.remove(task)
        self.keep(task, value)

    def keep(self, task: Task, value: object) -> None:
        """Keep what a task found, as if a worker had."""
        with self._lock:
            self._results[task] = value
            if len(self._results) > MOST_RESULTS:
                self._results.popitem(last=False)


def _serve(connection: Connection) -> None:
    """Do what is asked for, one task after the other, until the other side is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server is told, and ends its workers
    with suppress(EOFError, OSError):
        while True:
            for task in connection.recv():
                connection.send((task, _result(task, lambda text: connection.send((None, text)))))


def _result(task: Task, say: Say) -> object:
    """Return what a task found, or the error that a user can mend."""
    try:
        return task.run(say)
    except SimulatorError as error:
        return error
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return FaultError(f"this is a fault of dspark-sim, please report it: {type(error).__name__}: {error}")
