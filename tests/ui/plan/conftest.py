"""A plan that takes seconds, and what a page that asks for it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from simulator.ui.app import Served
from simulator.ui.plan.asked import Planned, to_query, written
from simulator.ui.plan.work import Answer, PlanTask
from tests.support.plans import rough_plans

SCENARIO: dict[str, Any] = {
    "name": "Small",
    "profile": "deepseek-v4-flash",
    "policies": ["autoregressive", "mtp1"],
    "traffic": {"arrivals": "diurnal:60/s,peak=1.5", "lengths": "fixed:20/20"},
    "sla": ["tps_p10>=60"],
    "replica": {"concurrency": 8, "prefill_tokens_per_s": 10000.0},
    "search": {"precision": "20%", "requests": 200, "concurrency": [1, 8]},
}


@dataclass(frozen=True)
class Known:
    """A scenario with its plan. said: what was said while it was made."""

    state: Planned
    answer: Answer
    said: list[str]

    @property
    def query(self) -> str:
        return to_query(self.state)


@pytest.fixture(scope="package")
def known(served: Served) -> Known:
    text, said = written(SCENARIO), list[str]()
    with rough_plans():
        answer = PlanTask(text, "", "scenario").run(said.append)
    served.jobs.keep(PlanTask(text, "", "first"), answer)
    return Known(Planned(text), answer, said)
