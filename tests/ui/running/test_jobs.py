"""Runs of several pages: found, kept, cancelled, ended by what they do, each without touching the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from simulator.core.errors import BadInputError
from simulator.ui.running import jobs as jobs_module
from simulator.ui.running.jobs import FaultError, Jobs, Seen, Task
from tests.support.ui_tasks import Break, Die, Double, Refuse, Wait


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.close()


def until(jobs: Jobs, session: str, tasks: Sequence[Task], said: str | None = None) -> Seen:
    """Look until all has ended, or until something is said to be under way."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        seen = jobs.look(session, tasks)
        if not seen.running if said is None else seen.said == said:
            return seen
        time.sleep(0.02)
    raise AssertionError("nothing was found in four minutes")


def test_results_come_in_turn_and_are_kept_for_all(jobs: Jobs) -> None:
    tasks = [Double(1), Double(2), Double(3)]
    jobs.ask("one", tasks)
    assert until(jobs, "one", tasks).found == {Double(1): 2, Double(2): 4, Double(3): 6}
    before = jobs.processes()
    jobs.ask("another", tasks)  # nothing is left to do, so no worker is started
    assert jobs.look("another", tasks).found[Double(3)] == 6
    assert jobs.processes() == before


def test_a_change_ends_what_ran_and_keeps_what_was_found(jobs: Jobs) -> None:
    jobs.ask("change", [Double(4), Wait()])
    until(jobs, "change", [Wait()], "waiting")
    jobs.ask("change", [Double(4), Double(5)])
    seen = until(jobs, "change", [Double(4), Double(5), Wait()])
    assert seen.found == {Double(4): 8, Double(5): 10}


def test_two_sessions_run_at_once_and_cancel_apart(jobs: Jobs) -> None:
    jobs.ask("left", [Wait("left")])
    jobs.ask("right", [Wait("right")])
    until(jobs, "left", [Wait("left")], "waiting")
    until(jobs, "right", [Wait("right")], "waiting")
    count = len(jobs.processes())
    jobs.cancel("left")
    assert len(jobs.processes()) == count - 1
    assert not jobs.look("left", [Wait("left")]).running
    assert jobs.look("right", [Wait("right")]).running
    jobs.cancel("right")


def test_errors_are_results_and_the_worker_goes_on(jobs: Jobs, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = [Refuse(), Break(), Double(6)]
    jobs.ask("errors", tasks)
    found = until(jobs, "errors", tasks).found
    refused, fault = found[Refuse()], found[Break()]
    assert isinstance(refused, BadInputError)
    assert (refused.source, refused.value, refused.remedy) == ("policy", 7, "mend it")
    assert isinstance(fault, FaultError)
    assert "RuntimeError: not meant" in str(fault)
    assert found[Double(6)] == 12


def test_a_worker_that_dies_is_said_and_replaced(jobs: Jobs) -> None:
    jobs.ask("death", [Die(), Double(7)])
    died = until(jobs, "death", [Die(), Double(7)]).found
    assert "the worker died" in str(died[Die()])
    assert Double(7) not in died
    jobs.ask("death", [Double(7)])
    assert until(jobs, "death", [Double(7)]).found == {Double(7): 14}


def test_workers_are_bounded_and_abandoned_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MOST_WORKERS", 1)
    own = Jobs()
    try:
        own.ask("first", [Wait()])
        with pytest.raises(BadInputError, match=r"1 runs are under way in other pages.*cancel one"):
            own.ask("second", [Double(8)])
        monkeypatch.setattr(jobs_module, "ABANDONED_S", 0.0)
        time.sleep(0.01)
        own.ask("second", [Double(8)])
        assert until(own, "second", [Double(8)]).found == {Double(8): 16}
        assert len(own.processes()) == 1
    finally:
        own.close()
    assert own.processes() == []


def test_few_results_are_kept_and_the_oldest_goes(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MOST_RESULTS", 2)
    small = Jobs()
    for number in (1, 2, 3):
        small.keep(Double(number), number)
    assert small.look("any", [Double(n) for n in (1, 2, 3)]).found == {Double(2): 2, Double(3): 3}
