"""Backends that run cells: local processes, Dask, Ray."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from simulator.core.errors import BadInputError, SimulatorError
from simulator.parallel.batches import Batches, Positioned, Task, run_each, run_with
from simulator.parallel.parcels import Packer, Parcel

Backend = Literal["loky", "dask", "ray"]

Run = Callable[[Task, list[Positioned]], Iterator[Positioned]]
"""Runs a task on cells, each with its position; yields results with theirs. Raises ``WorkersLost``."""

MOST_WORKERS = 4096
"""Most workers. A choice: cells of a few seconds keep no larger cluster busy."""

RETRIES = 3
"""Deaths of workers in a row without a finished cell after which the sweep ends. A choice."""

_LOOK_S = 1.0
"""Seconds between two checks of a worker whether its parent lives. A choice."""

_IDLE_S = 30
"""Seconds without work after which a process ends. A choice."""

_ANSWER_S = 10
"""Seconds in which a cluster must answer. A choice."""

_AHEAD = 2
"""Batches given to a cluster per worker thread, so that the next one is there when one ends. A choice."""

_OBJECT_STORE_BYTES = 256 * 2**20


class WorkerDiedError(SimulatorError):
    """Workers died again and again (killed, out of memory); cells in a run directory are kept."""


class WorkersLost(Exception):
    """A worker died and took unfinished cells with it."""


@contextmanager
def runner(backend: Backend, address: str | None, workers: int) -> Iterator[Run]:
    """Yield the function that runs cells on this backend; a cluster started here is closed at the end."""
    check(backend, address, workers)
    count = _processors() if workers == -1 else workers
    if backend == "loky":
        yield _one_after_the_other if count == 1 else _Loky(count)
        return
    with ExitStack() as stack:
        try:
            opened = (_dask if backend == "dask" else _ray)(address, count)
            run = stack.enter_context(opened)
        except ImportError as error:
            raise BadInputError(
                f"needs the package {error.name}", field="backend", value=backend,
                remedy=f"pip install 'dspark-simulator[{'cluster' if backend == 'dask' else 'ray'}]'",
            ) from error  # fmt: skip
        yield run


def check(backend: str, address: str | None, workers: int) -> None:
    """Refuse options with an unknown backend, without workers, or with a cluster that does not answer."""
    if workers == 0 or workers < -1:
        raise BadInputError("must be at least 1, or -1 for all cores", field="workers", value=workers)
    if workers > MOST_WORKERS:
        raise BadInputError(
            f"must be at most {MOST_WORKERS:,}", field="workers", value=workers,
            remedy="give the number of cores, or -1",
        )  # fmt: skip
    if backend not in get_args(Backend):
        raise BadInputError("is not known", field="backend", value=backend, remedy="loky, dask or ray")
    if backend == "loky" and address is not None:
        raise BadInputError("has no cluster", field="backend", value=backend, remedy="use dask or ray")


# --- this machine -------------------------------------------------------------------------------------------


def _one_after_the_other(task: Task, pending: list[Positioned]) -> Iterator[Positioned]:
    for position, cell in pending:
        yield position, task(cell)


def _processors() -> int:
    from joblib import cpu_count

    return int(cpu_count())


class _Loky:
    """Processes of this machine that end within seconds of the process that started them."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __call__(self, task: Task, pending: list[Positioned]) -> Iterator[Positioned]:
        from joblib import Parallel, delayed  # a tenth of a second that one worker need not wait for
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        parallel = Parallel(
            n_jobs=self.workers, backend="loky", return_as="generator_unordered", batch_size="auto",
            initializer=_end_with_parent, initargs=(os.getpid(),), idle_worker_timeout=_IDLE_S,
        )  # fmt: skip
        with TemporaryDirectory(prefix="dspark-sim-", ignore_cleanup_errors=True) as folder:
            packer = Packer(lambda digest, pickled: _file(folder, digest).write_bytes(pickled))
            # All at once: an error in a thread of joblib's, which takes them, would not be seen.
            parcels = [(position, packer.pack((task, (cell,)))) for position, cell in pending]
            try:
                for done, _ in parallel(delayed(_from_folder)(folder, *each) for each in parcels):
                    yield from done
            except TerminatedWorkerError as error:
                raise WorkersLost(type(error).__name__) from error


def _file(folder: str, digest: str) -> Path:
    return Path(folder) / digest


def _from_folder(folder: str, position: int, parcel: Parcel) -> tuple[list[Positioned], float]:
    return run_each([position], parcel, lambda digest: _file(folder, digest).read_bytes())


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent has ended for any reason; only the parent handles signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends signals to the workers too

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


# --- Dask ---------------------------------------------------------------------------------------------------


@contextmanager
def _dask(address: str | None, workers: int) -> Iterator[Run]:
    distributed: Any = import_module("dask.distributed")
    with ExitStack() as stack:
        at = address or stack.enter_context(_local_dask(distributed, workers))
        try:
            client = stack.enter_context(distributed.Client(at, timeout=_ANSWER_S))
        except (OSError, ValueError, TypeError) as error:
            raise _no_answer(address, error) from error

        def run(task: Task, pending: list[Positioned]) -> Iterator[Positioned]:
            return _on_dask(distributed, client, task, pending)

        yield run


def _on_dask(distributed: Any, client: Any, task: Task, pending: list[Positioned]) -> Iterator[Positioned]:
    running, threads = distributed.as_completed(), max(sum(client.nthreads().values()), 1)
    shared: dict[str, Any] = {}  # with the scheduler, so that a worker that dies takes none along
    packer = Packer(lambda digest, pickled: shared.update({digest: _submitted(client, _itself, pickled)}))
    batches = Batches(task, pending, threads, packer)

    def hand_over() -> None:
        if (batch := batches.next()) is not None:
            positions, parcel = batch
            large = [shared[digest] for digest in parcel.digests]
            running.update([_submitted(client, run_with, positions, parcel, *large)])

    for _ in range(_AHEAD * threads):
        hand_over()
    try:
        for future in running:
            done, seconds = future.result()
            batches.learn(len(done), seconds)
            yield from done
            hand_over()
    except distributed.KilledWorker as error:
        raise WorkersLost(type(error).__name__) from error
    except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
        raise WorkerDiedError(f"the Dask scheduler is gone: {error}; start it again") from error
    finally:
        client.cancel(running.futures)


def _submitted(client: Any, function: Callable[..., Any], *values: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # large values: once each
        return client.submit(function, *values, pure=False)


def _itself(pickled: bytes) -> bytes:
    return pickled


@contextmanager
def _local_dask(distributed: Any, workers: int) -> Iterator[Any]:
    """Start a Dask cluster on this machine; start it again if its workers die while starting."""
    dask: Any = import_module("dask")
    # Dask reports a cell lost with a worker at once; this module decides whether the cell runs again.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        for attempt in range(1, RETRIES + 2):
            try:
                cluster = distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",  # without one its pages are on a port that may be taken
                    silence_logs=logging.CRITICAL,
                )  # fmt: skip
                break
            except (RuntimeError, OSError, TimeoutError) as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                if attempt > RETRIES:
                    raise WorkerDiedError(
                        f"the local Dask cluster did not start {attempt} times in a row: {reason}"
                    ) from error
                warnings.warn(f"a Dask worker died while it started ({reason}); starting again", stacklevel=6)
    with cluster:
        yield cluster


# --- Ray ----------------------------------------------------------------------------------------------------


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[Run]:
    with ExitStack() as stack:
        stack.enter_context(_environment(_RAY_EVERYWHERE if address else _RAY_EVERYWHERE | _RAY_HERE))
        ray: Any = import_module("ray")
        if not ray.is_initialized():
            before = _handlers()
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
            here: dict[str, Any] = {
                "num_cpus": workers, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES,
            }  # fmt: skip
            if address is None:
                # Ray read the variable on import, which may have been before this block.
                constants: Any = import_module("ray._private.ray_constants")
                stack.callback(setattr, constants, "ENABLE_RAY_CLUSTER", constants.ENABLE_RAY_CLUSTER)
                constants.ENABLE_RAY_CLUSTER = False
            try:
                ray.init(address=address or "local", **quiet, **({} if address else here))
            except (OSError, ValueError, RuntimeError) as error:
                raise _no_answer(address, error) from error
            stack.callback(ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)
            stack.enter_context(_outlived_by_nothing())
        yield lambda task, pending: _on_ray(ray, task, pending)


_RAY_EVERYWHERE = {"RAY_USAGE_STATS_ENABLED": "0"}

_RAY_HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Where Ray makes no cluster of several machines it binds to the loopback address, on Linux too."""


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set variables for the block; a variable that is already set keeps its value."""
    mine = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def _handlers() -> dict[int, Any]:
    """Restore the signal handlers of this process after the block: Ray ends without a word on SIGTERM."""
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


_GUARD = """
import os, sys
sys.stdin.read()  # ends when whoever holds the other end has ended
for pid in sys.argv[1:]:
    try:
        os.kill(int(pid), 9)
    except OSError:
        pass
"""


@contextmanager
def _outlived_by_nothing() -> Iterator[None]:
    """End the processes of Ray when this process is killed; its agents would live for another minute."""
    pids = _descendants(os.getpid())
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *map(str, pids)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.wait()
        assert guard.stdin is not None
        guard.stdin.close()


def _descendants(pid: int) -> list[int]:
    """Return the processes that ``pid`` started, and theirs; none where there is no /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _on_ray(ray: Any, task: Task, pending: list[Positioned]) -> Iterator[Positioned]:
    threads, lost = max(int(ray.cluster_resources().get("CPU", 1)), 1), None
    shared: dict[str, Any] = {}
    packer = Packer(lambda digest, pickled: shared.update({digest: ray.put(pickled)}))
    batches = Batches(task, pending, threads, packer)
    remote = ray.remote(num_cpus=1, max_retries=0)(run_with)

    def handed_over() -> list[Any]:
        if (batch := batches.next()) is None:
            return []
        positions, parcel = batch
        return [remote.remote(positions, parcel, *(shared[digest] for digest in parcel.digests))]

    running = [each for _ in range(_AHEAD * threads) for each in handed_over()]
    try:
        while running:
            (first, *_), running = ray.wait(running)
            try:
                done, seconds = ray.get(first)
                batches.learn(len(done), seconds)
                yield from done
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                lost = error  # the other cells continue
            running += handed_over()
    finally:
        for each in running:
            ray.cancel(each, force=True)
    if lost is not None:
        raise WorkersLost(type(lost).__name__) from lost


def _no_answer(address: str | None, error: Exception) -> BadInputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return BadInputError(
        f"no cluster answers: {reason}", field="address", value=address, remedy="start one or correct it"
    )
