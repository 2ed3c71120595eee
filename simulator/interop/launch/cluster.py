"""Replicas by the hour for what scales them: KEDA's cron scaler, Dynamo's planner, llm-d's autoscaler.

Formats, each read in its project's own repository on 2026-11-30:

- KEDA: ScaledObject v1alpha1 and its cron trigger, content/docs/2.20/scalers/cron.md and
  reference/scaledobject-spec.md (kedacore/keda-docs a55c5d345e2c). Cron takes hours of a time zone.
- Dynamo: PlannerConfig, docs/components/planner/planner-config-reference.mdx (ai-dynamo/dynamo 08db9ac2a682).
  It has no schedule of replicas: it takes targets of latency, limits of GPUs and engines, and predicts.
- llm-d: VariantAutoscaling v1alpha1, docs/user-guide/crd-reference.md
  (llm-d/llm-d-workload-variant-autoscaler b08b1c77c89d). It has no schedule either: it takes what a replica
  costs and scales by saturation; cron triggers in the same ScaledObject keep a floor under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

HOURS = 24


@dataclass(frozen=True, slots=True)
class Band:
    """Hours first..last-1 with one number of replicas; last is up to 24, or less than first over midnight."""

    first: int
    last: int
    replicas: int


def bands_above(replicas: Sequence[int], floor: int) -> list[Band]:
    """Join equal hours of a day into bands, those at the floor left out; a band may run over midnight.

    replicas: [24].
    """
    bands: list[Band] = []
    for hour, count in enumerate(replicas):
        if bands and bands[-1].last == hour and bands[-1].replicas == count:
            bands[-1] = Band(bands[-1].first, hour + 1, count)
        elif count > floor:
            bands.append(Band(hour, hour + 1, count))
    whole = bands and bands[0].first == 0 and bands[-1].last == HOURS
    if whole and len(bands) > 1 and bands[0].replicas == bands[-1].replicas:
        bands = [*bands[1:-1], Band(bands[-1].first, bands[0].last, bands[0].replicas)]
    return bands


def scaled_object(name: str, replicas: Sequence[int], timezone: str = "Etc/UTC") -> dict[str, object]:
    """Return KEDA's ScaledObject that keeps a Deployment of this name at its replicas by the hour, [24].

    KEDA takes the largest of all triggers and ``minReplicaCount``, which is the least of the day. A day
    without change needs a trigger all the same: the whole of it.
    """
    least, most = min(replicas), max(replicas)
    bands = bands_above(replicas, least) or [Band(0, HOURS, least)]
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "triggers": [
                {
                    "type": "cron",
                    "metadata": {
                        "timezone": timezone,
                        "start": f"0 {band.first} * * *",
                        "end": _end(band),
                        "desiredReplicas": str(band.replicas),
                    },
                }
                for band in bands
            ],
        },
    }


def keda(replicas: Mapping[str, Sequence[int]], timezone: str = "Etc/UTC") -> str:
    """Return a ScaledObject for each Deployment, as YAML."""
    head = "# KEDA 2.20. Change the names to those of your Deployments, and the time zone.\n"
    documents = [scaled_object(name, hours, timezone) for name, hours in replicas.items()]
    return head + yaml.safe_dump_all(documents, sort_keys=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamoTargets:
    """What Dynamo's planner is told. Times in milliseconds, None where the SLA does not promise them."""

    backend: str
    disaggregated: bool
    ttft_ms: float | None
    itl_ms: float | None
    most_gpus: int
    fewest_replicas: int
    replica_gpus: int
    prefill_gpus: int | None
    drafts: int


def dynamo(targets: DynamoTargets) -> str:
    """Return a PlannerConfig as YAML, for ``python -m dynamo.planner --config``."""
    config: dict[str, object] = {
        "mode": "disagg" if targets.disaggregated else "agg",
        "backend": targets.backend,
        "optimization_target": "sla",
        "max_gpu_budget": targets.most_gpus,
        "min_endpoint": targets.fewest_replicas,
        "decode_engine_num_gpu": targets.replica_gpus,
        "speculative_nextn": targets.drafts,
    }
    known = {
        "ttft_ms": targets.ttft_ms,
        "itl_ms": targets.itl_ms,
        "prefill_engine_num_gpu": targets.prefill_gpus,
    }
    config |= {key: value for key, value in known.items() if value is not None}
    head = (
        "# Dynamo's planner takes no schedule of replicas: these are its targets and limits.\n"
        "# It predicts load; load_predictor_warmup_trace takes a recording of requests (Mooncake's form).\n"
    )
    missing = [key for key in ("ttft_ms", "itl_ms") if known[key] is None]
    head += "".join(
        f"# {key}: the SLA does not promise it; the planner's default stands.\n" for key in missing
    )
    return head + yaml.safe_dump(config, sort_keys=False)


def llm_d(name: str, model: str, cost_per_hour: float) -> str:
    """Return llm-d's VariantAutoscaling as YAML. cost_per_hour: of a replica."""
    document = {
        "apiVersion": "llmd.ai/v1alpha1",
        "kind": "VariantAutoscaling",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "modelID": model,
            "variantCost": f"{cost_per_hour:.2f}",
        },
    }
    head = (
        "# llm-d's autoscaler takes no schedule of replicas: it takes a replica's cost and scales by load.\n"
        "# Cron triggers of keda.yaml in the ScaledObject that reads wva_desired_replicas keep a floor.\n"
    )
    return head + yaml.safe_dump(document, sort_keys=False)


def _end(band: Band) -> str:
    """Cron of the end of a band; a whole day ends a minute early, as KEDA refuses equal start and end."""
    return "59 23 * * *" if (band.first, band.last) == (0, HOURS) else f"0 {band.last % HOURS} * * *"
