"""What a plan leaves for engines and clusters."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import yaml

from simulator.api.handover import hours_of, write_handover
from simulator.api.planning import Plan
from simulator.planning.demand import demand_profile
from simulator.planning.plan import CapacityPlan
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.planning.tables.day import day_table
from simulator.sweeps.leads import Recommendation

SCENARIO = {
    "name": "Chat by day", "profile": "deepseek-v4-flash", "policies": ["dspark-async"],
    "sla": ["tps_p10>=20", "ttft_p99<=3s"],
    "replica": {"concurrency": 8, "kv_tokens": 90_000, "prefill_tokens_per_s": 6500},
    "traffic": {"arrivals": "diurnal:24/s,peak=1.8", "lengths": "fixed:100/30"},
}  # fmt: skip

RATE = 5.0
"""Requests/s of a replica, as if a search had found it: nothing here depends on how it was found."""


class Sized(Plan):
    """A plan whose replicas are sized, and nothing else."""

    __slots__ = ()
    answer = "Run dspark-async."


@pytest.fixture(scope="module")
def plan() -> Plan:
    scenario = Scenario.model_validate(SCENARIO)
    traffic, sla = scenario.demand(), scenario.parsed_sla()
    demand = demand_profile(traffic)
    sizing = Sizing.of(scenario, traffic, demand, sla)
    plans = pd.DataFrame([{"policy": "dspark-async", "feasible": True, "rate_per_replica_per_s": RATE}])
    band = pd.DataFrame([{"to_per_s": RATE, "policy": "dspark-async", "tied": ""}])
    day = day_table(demand, sizing, plans, band, sizing.replicas(RATE))
    given = dict.fromkeys(each.name for each in fields(CapacityPlan))
    given |= {"scenario": scenario, "sla": sla, "plans": plans, "day": day}
    given |= {"recommendation": Recommendation("dspark-async", ()), "context_tokens": sizing.context_tokens}
    return Sized(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cluster")
    write_handover(plan, out)
    return out


def test_the_folder_lists_what_is_in_it(plan: Plan, folder: Path) -> None:
    listed = (folder / "README.md").read_text()
    assert listed.startswith(f"# {plan.answer}")
    for engine, version in (("vllm", "0.32.0"), ("sglang", "0.5.16"), ("trtllm", "1.4.0rc4")):
        assert (folder / engine / "launch.sh").stat().st_mode & 0o100
        assert f"| `{engine}/launch.sh` | starts" in listed
        assert version in listed
    names = {path.name for path in folder.iterdir() if path.is_file()} - {"README.md"}
    assert all(f"| `{name}` |" in listed for name in names)


def test_replicas_by_the_hour_are_the_most_of_each_hour(plan: Plan, folder: Path) -> None:
    hours = pd.read_csv(folder / "hours.csv")
    day = plan.day
    for hour, row in hours.iterrows():
        inside = day[(day["start_s"] >= 3600 * hour) & (day["end_s"] <= 3600 * (hour + 1))]
        assert len(inside) == 2  # half hours
        # Headroom is a fifth of the demand.
        assert row["replicas"] == math.ceil(inside["rate_per_s"].max() * 1.2 / RATE)
        assert row["rate_per_s"] == pytest.approx(inside["rate_per_s"].max())
    assert hours["replicas"].nunique() > 1
    pd.testing.assert_frame_equal(plan.replicas(), hours, check_dtype=False)
    said = json.loads((folder / "replicas.json").read_text())
    assert [each["replicas"] for each in said["hours"]] == hours["replicas"].tolist()
    assert len(said["intervals"]) == len(day)
    assert all(type(each["gpus"]) is int for each in said["hours"])  # counts are whole: 19 and not 19.0


def test_keda_scales_decode_and_prefill(folder: Path) -> None:
    decode, prefill = yaml.safe_load_all((folder / "keda.yaml").read_text())
    hours = pd.read_csv(folder / "hours.csv")
    assert decode["spec"]["maxReplicaCount"] == hours["replicas"].max()
    assert prefill["spec"]["maxReplicaCount"] == math.ceil(hours["prefill_workers"].max())
    assert (decode["metadata"]["name"], prefill["metadata"]["name"]) == ("chat-by-day", "chat-by-day-prefill")


def test_targets_and_prices_are_the_plan_s(plan: Plan, folder: Path) -> None:
    planner = yaml.safe_load((folder / "dynamo.yaml").read_text())
    assert (planner["ttft_ms"], planner["itl_ms"]) == (3000.0, 50.0)  # 20 tokens/s
    assert planner["max_gpu_budget"] == plan.day[f"gpus {plan.recommended}"].max()
    assert planner["mode"] == "disagg"
    variant = yaml.safe_load((folder / "llm-d.yaml").read_text())
    assert float(variant["spec"]["variantCost"]) == plan.scenario.replica_gpus() * 2.0
    rules = yaml.safe_load((folder / "rules-vllm.yaml").read_text())["spec"]["groups"][0]["rules"]
    assert {each["labels"]["term"] for each in rules if "alert" in each} == {"tps_p10", "ttft_p99"}


def test_the_launch_is_of_the_plan_s_replica(plan: Plan) -> None:
    made = plan.launch("sglang", "dspark-async")
    words = made.arguments
    assert words[words.index("--max-running-requests") + 1] == "8"
    assert words[words.index("--max-total-tokens") + 1] == "90000"
    assert words[words.index("--disaggregation-mode") + 1] == "decode"
    # 100 prompt tokens and half of 30 output tokens, the same for every request.
    assert plan.context_tokens == pytest.approx(115.0)


def test_a_recording_that_is_no_day_has_no_hours() -> None:
    spans = pd.DataFrame(
        {"start_s": [0.0, 1800.0], "end_s": [1800.0, 3600.0], "rate_per_s": [1.0, 2.0], "replicas": [1, 2],
         "prefill_workers": [0.0, 0.0], "gpus": [1.0, 2.0]}
    )  # fmt: skip
    assert hours_of(spans) is None
    constant = spans.head(1).assign(end_s=86400.0)
    assert hours_of(constant)["replicas"].tolist() == [1] * 24  # type: ignore[index]
