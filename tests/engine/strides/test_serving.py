"""Which loop runs: the compiled one where it can be had and pays, the one in Python everywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simpy
from numpy.testing import assert_array_equal

from simulator.engine import strides
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.engine.simulated import SimulatedExecutor
from simulator.engine.strides import jit, serving
from simulator.engine.strides.engine import StridingEngine
from simulator.engine.strides.serving import SHORT, ServingEngine, serving_engine
from simulator.schedulers.policies import DSparkAsync
from tests.support.engines import closed_loop, constant_cost, random_replay


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As far as this choice goes."""
    monkeypatch.setattr(serving, "_known_steps", 0)
    serving._striding.cache_clear()
    yield
    serving._striding.cache_clear()


def engine(steps: int | None = None, **options: bool) -> ServingEngine:
    load, cost = closed_loop(np.full(8, 20)), constant_cost()
    executor = SimulatedExecutor([random_replay(5, rows=64)], load, cost, capacity=2, seed=0)
    return serving_engine(
        simpy.Environment(), load, executor, DSparkAsync(), cost, EngineLimits(2), steps=steps, **options
    )


def run(steps: int) -> ServingEngine:
    load, cost = closed_loop(np.full(8, 20)), constant_cost()
    executor = SimulatedExecutor([random_replay(5, rows=64)], load, cost, capacity=2, seed=0)
    return run_engine(load, executor, DSparkAsync(), cost, EngineLimits(2), steps=steps)


def test_without_numba_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "simulator.engine.strides.jit")
    monkeypatch.delattr(strides, "jit")
    assert type(engine()) is Engine


def test_where_compiled_code_cannot_be_kept_python_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert jit._writable(tmp_path / "new" / "folder")
    assert not jit._writable(file / "folder")
    monkeypatch.setattr(jit, "KEPT", False)
    assert type(engine()) is Engine


def test_the_first_compilation_is_announced_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jit, "CACHE", tmp_path)
    monkeypatch.setattr(serving._LOG, "disabled", False)  # a cluster's package may have silenced all loggers
    with caplog.at_level(logging.WARNING):
        assert type(engine()) is StridingEngine
    assert "compiling the step loop" in caplog.text
    caplog.clear()
    (tmp_path / "kept").touch()
    serving._striding.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert type(engine()) is StridingEngine
    assert not caplog.text


def test_short_runs_stay_with_python_until_they_add_up() -> None:
    assert type(engine(SHORT // 2)) is Engine
    assert type(engine(SHORT // 2 - 1)) is Engine
    assert type(engine(1)) is StridingEngine
    assert type(engine(1)) is StridingEngine  # from then on it is loaded


def test_a_run_of_unknown_length_is_compiled_at_once() -> None:
    assert type(engine()) is StridingEngine


def test_short_and_long_runs_take_the_same_steps() -> None:
    short, long = run(SHORT - 1), run(SHORT)
    assert (type(short), type(long)) == (Engine, StridingEngine)
    assert_array_equal(long.steps.table()[: SHORT - 1], short.steps.table())
