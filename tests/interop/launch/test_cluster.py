"""Manifests for what scales replicas, held against the fields of their references and the hours."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.interop.launch.cluster import (
    DynamoTargets,
    bands_above,
    dynamo,
    keda,
    llm_d,
    scaled_object,
)

DAYS = st.lists(st.integers(1, 5), min_size=24, max_size=24)


def at_hour(manifest: dict, hour: int) -> int:
    """What KEDA asks for in the middle of an hour: the largest of the active triggers and the minimum."""
    wanted = manifest["spec"]["minReplicaCount"]
    for trigger in manifest["spec"]["triggers"]:
        start, end = (int(trigger["metadata"][key].split()[1]) for key in ("start", "end"))
        minute = int(trigger["metadata"]["end"].split()[0])
        end += minute == 59
        inside = start <= hour < end if start < end else hour >= start or hour < end
        if inside:
            wanted = max(wanted, int(trigger["metadata"]["desiredReplicas"]))
    return wanted


@given(DAYS)
def test_cron_triggers_give_the_replicas_of_each_hour(replicas: list[int]) -> None:
    manifest = scaled_object("chat", replicas)
    assert [at_hour(manifest, hour) for hour in range(24)] == replicas
    for trigger in manifest["spec"]["triggers"]:  # type: ignore[index]
        assert trigger["metadata"]["start"] != trigger["metadata"]["end"]  # which KEDA refuses


@given(DAYS, st.integers(0, 5))
def test_bands_are_as_few_as_changes(replicas: list[int], floor: int) -> None:
    bands = bands_above(replicas, floor)
    around = [replicas[hour] != replicas[hour - 1] and replicas[hour] > floor for hour in range(24)]
    whole_day = len(set(replicas)) == 1 and replicas[0] > floor
    assert len(bands) == sum(around) + whole_day


def test_a_scaled_object_has_the_fields_of_keda() -> None:
    """Fields and required ones: kedacore/keda-docs a55c5d345e2c, 2.20 scaledobject-spec.md and cron.md."""
    text = keda({"chat": [2] * 8 + [5] * 10 + [3] * 6, "chat-prefill": [1] * 24}, "Europe/Berlin")
    decode, prefill = yaml.safe_load_all(text)
    assert (decode["apiVersion"], decode["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert decode["spec"].keys() <= {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount",
        "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
    }  # fmt: skip
    assert decode["spec"]["scaleTargetRef"] == {"name": "chat"}
    assert [trigger["metadata"] for trigger in decode["spec"]["triggers"]] == [
        {"timezone": "Europe/Berlin", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "5"},
        {"timezone": "Europe/Berlin", "start": "0 18 * * *", "end": "0 0 * * *", "desiredReplicas": "3"},
    ]
    assert (decode["spec"]["minReplicaCount"], decode["spec"]["maxReplicaCount"]) == (2, 5)
    assert prefill["spec"]["triggers"][0]["metadata"]["end"] == "59 23 * * *"
    assert prefill["metadata"]["name"] == "chat-prefill"


PLANNER = {
    "mode": {"disagg", "prefill", "decode", "agg"}, "backend": {"vllm", "sglang", "trtllm", "mocker"},
    "optimization_target": {"throughput", "latency", "load", "sla"}, "ttft_ms": float, "itl_ms": float,
    "max_gpu_budget": int, "min_endpoint": int, "decode_engine_num_gpu": int, "prefill_engine_num_gpu": int,
    "speculative_nextn": int,
}  # fmt: skip
"""Fields of PlannerConfig: ai-dynamo/dynamo 08db9ac2a682, planner-config-reference.mdx."""

TARGETS = DynamoTargets(
    backend="sglang", disaggregated=True, ttft_ms=2000.0, itl_ms=None, most_gpus=96, fewest_replicas=3,
    replica_gpus=8, prefill_gpus=8, drafts=5,
)  # fmt: skip


def test_dynamo_s_planner_gets_targets_and_limits() -> None:
    text = dynamo(TARGETS)
    config = yaml.safe_load(text)
    for key, value in config.items():
        rule = PLANNER[key]
        assert value in rule if isinstance(rule, set) else isinstance(value, rule)
    assert (config["mode"], config["ttft_ms"], config["max_gpu_budget"]) == ("disagg", 2000.0, 96)
    assert "itl_ms" not in config
    assert "# itl_ms: the SLA does not promise it" in text
    assert "takes no schedule" in text


def test_llm_d_gets_the_cost_of_a_replica() -> None:
    """Fields: llm-d/llm-d-workload-variant-autoscaler b08b1c77c89d, docs/user-guide/crd-reference.md."""
    document = yaml.safe_load(llm_d("chat", "Qwen/Qwen3-32B", 16.0))
    assert document["apiVersion"] == "llmd.ai/v1alpha1"
    assert document["spec"].keys() == {"scaleTargetRef", "modelID", "variantCost"}
    assert re.fullmatch(r"^\d+(\.\d+)?$", document["spec"]["variantCost"])
    assert document["spec"]["scaleTargetRef"]["name"] == document["metadata"]["name"] == "chat"


@pytest.mark.parametrize("hours", [[1] * 24, [4] * 24])
def test_a_day_without_change_has_one_trigger(hours: list[int]) -> None:
    (trigger,) = scaled_object("a", hours)["spec"]["triggers"]  # type: ignore[index]
    assert trigger["metadata"]["desiredReplicas"] == str(hours[0])
