"""One server and one browser for all tests of the pages; lines that pages ask for are known already."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.ui.app import Served
from simulator.ui.check.work import CLAIMED, claim_lines
from simulator.ui.explore.asked import Deployed
from simulator.ui.explore.work import CurveTask, LineTask
from simulator.ui.running.jobs import Jobs
from tests.support.browsers import chromium

KNOWN = ("autoregressive", "mtp1")
"""Policies whose lines are simulated once, coarsely, and stand for the refined ones too; as do those of the
page Check."""


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    made = Served(0, Jobs())
    on = Deployed()
    made.jobs.keep(CurveTask(on), CurveTask(on).run(str))
    for policy in KNOWN:
        line = LineTask(on, policy, "coarse").run(str)
        made.jobs.keep(LineTask(on, policy, "coarse"), line)
        made.jobs.keep(LineTask(on, policy, "usual"), line)
    for policy, task in zip(CLAIMED, claim_lines("deepseek-v4-flash"), strict=True):
        made.jobs.keep(task, LineTask(on, policy, "coarse").run(str))
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.close()
    thread.join()


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = chromium(tmp_path_factory.mktemp("chromium"))
    yield session
    session.quit()
