"""One small plan for all tests of what people see; its texts try to become markup."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.planning.plan import CapacityPlan, plan
from simulator.planning.scenario.scenario import Scenario
from tests.support.plans import rough_plans

EVIL = 'Plan </script><script>document.title="owned"</script><img src=x onerror="document.title=1">'

SCENARIO: dict[str, Any] = {
    "name": EVIL,
    "profile": "deepseek-v4-flash",
    "policies": ["mtp1", "dspark-async"],
    "acceptance": ["conditional:0.9,0.8,0.7,0.6,0.5"],  # a fitted model takes seconds to be made worse
    "traffic": {
        "arrivals": "diurnal:60/s,peak=1.5",
        "classes": {"<b>chat</b>": {"lengths": "fixed:100/100"}},
    },
    "sla": ["tps_p10>=90"],
    "replica": {"concurrency": 16, "prefill_tokens_per_s": 10_000},
    "price": {"gpu_hour": 2.0, "currency": "<i>$</i>"},
    "search": {"precision": "20%", "requests": 200, "concurrency": [1, 4, 16]},
}


@pytest.fixture(scope="session")
def result() -> CapacityPlan:
    with rough_plans():
        return plan(Scenario.model_validate(SCENARIO))
