"""One replica, whichever loop runs it: what others see of it, and which loop that is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Protocol

import simpy

from simulator.core.arrays import Floats
from simulator.cost.models import CostModel
from simulator.engine.batch import Described, StepLog
from simulator.engine.engine import Engine
from simulator.engine.executor import Executor
from simulator.engine.limits import EngineLimits, PrefillPool
from simulator.engine.simulated import SimulatedExecutor
from simulator.schedulers.protocol import Scheduler
from simulator.traffic.workload import Workload

if TYPE_CHECKING:
    from simulator.engine.strides.engine import StridingEngine


_LOG = logging.getLogger(__name__)

SHORT = 5000
"""Steps for which loading compiled code, which takes half a second, does not pay: in Python a step takes 30
to 100 us at up to 200 requests. A choice."""

_known_steps = 0


class ServingEngine(Protocol):
    """What ``engine.engine.Engine`` and ``engine.strides.engine.StridingEngine`` have in common.

    Between events a striding engine is ahead of the environment's clock; ``now_s`` is its own.
    """

    environment: simpy.Environment
    workload: Workload
    limits: EngineLimits
    steps: StepLog

    @property
    def executor(self) -> Executor:
        """What runs, or looks up, its steps."""

    @property
    def scheduler(self) -> Scheduler:
        """Who decides how much is verified."""

    @property
    def now_s(self) -> float:
        """Up to when it has run, seconds."""

    @property
    def completed(self) -> int:
        """Requests that have finished."""

    @property
    def load(self) -> int:
        """Requests waiting or running."""

    def expect(self, least_steps: int | None, finish: int, most_steps: int) -> None:
        """Say how far it will be run.

        It stops after so many steps (None: never) once ``finish`` requests are complete, or after
        ``most_steps``.
        """

    def takes_arrivals(self) -> bool:
        """Whether it takes every request of the workload at its time by itself, from now on.

        False where someone has to ``submit`` each of them.
        """
        ...

    def submit(self, request: int, *, cached_tokens: int = 0) -> None:
        """Submit a request that has arrived now."""

    def delivery_s(self) -> Floats:
        """When each decode step so far delivered its tokens."""
        ...

    def finished(self) -> Described:
        """Return what is known of finished requests."""
        ...

    def decoding(self) -> Described:
        """Return what is known of requests in the batch."""
        ...

    def served_s(self) -> tuple[Floats, Floats]:
        """When each request arrived, and when its waits were over."""
        ...


def serving_engine(
    environment: simpy.Environment,
    workload: Workload,
    executor: Executor,
    scheduler: Scheduler,
    believed: CostModel,
    limits: EngineLimits,
    *,
    seed: int = 0,
    pool: PrefillPool | None = None,
    horizon: Callable[[], float] | None = None,
    on_leave: Callable[[int], None] | None = None,
    steps: int | None = None,
    compiled: bool = True,
) -> ServingEngine:
    """Return an engine whose loop is compiled where it can be: the results are the same, bit for bit.

    The Python loop keeps what Python has to run: a live executor, a policy or a cost model of one's own, a
    policy that remembers; everything where numba is missing. horizon: when something outside this engine
    happens next, by default the environment's next event. steps: how many it will take, where that is known:
    the first ``SHORT`` steps of a process are quicker in Python. compiled: False for the Python loop in any
    case.
    """
    if compiled and type(executor) is SimulatedExecutor and _pays(steps):
        striding = _striding()
        if striding is not None:
            made = striding.of(
                environment, workload, executor, scheduler, believed, limits,
                seed=seed, pool=pool, horizon=horizon, on_leave=on_leave,
            )  # fmt: skip
            if made is not None:
                return made
    return Engine(
        environment, workload, executor, scheduler, believed, limits, seed=seed, pool=pool, on_leave=on_leave
    )


def _pays(steps: int | None) -> bool:
    """Whether the steps asked for so far are worth loading the compiled loop, which is done once."""
    global _known_steps
    _known_steps += SHORT if steps is None else steps
    return _known_steps >= SHORT


@cache
def _striding() -> type[StridingEngine] | None:
    """Import the compiled loop, which takes a third of a second, and only where steps are simulated.

    None without numba, and where compiled code cannot be kept: compiling takes longer than most runs.
    """
    try:
        from simulator.engine.strides import jit
    except ImportError:  # no numba, or one that does not know this NumPy
        return None
    if not jit.KEPT:
        return None
    if not any(jit.CACHE.iterdir()):
        _LOG.warning("compiling the step loop: about ten seconds, once for each version")
    from simulator.engine.strides.engine import StridingEngine

    return StridingEngine
