"""One small plan for all tests of what people see; its texts try to become markup."""

from __future__ import annotations

import pytest

from simulator.planning.plan import CapacityPlan, plan
from simulator.planning.scenario.scenario import Scenario

EVIL = 'Plan </script><script>document.title="owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="session")
def result() -> CapacityPlan:
    return plan(
        Scenario.model_validate(
            {
                "name": EVIL,
                "profile": "deepseek-v4-flash",
                "policies": ["mtp1", "dspark-async"],
                "traffic": {
                    "arrivals": "diurnal:60/s,peak=1.5",
                    "classes": {"<b>chat</b>": {"lengths": "fixed:100/100"}},
                },
                "sla": ["tps_p10>=90"],
                "replica": {"concurrency": 40, "prefill_tokens_per_s": 10_000},
                "price": {"gpu_hour": 2.0, "currency": "<i>$</i>"},
                "search": {"precision": "20%", "requests": 200, "concurrency": [1, 10, 40]},
            }
        )
    )
