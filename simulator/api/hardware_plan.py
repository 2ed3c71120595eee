"""The planner's first question: a model, some GPUs, traffic and promises; no scenario, profile or device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import yaml

from simulator.api.planning import Plan
from simulator.api.planning import plan as make_plan
from simulator.core.errors import BadInputError, InfeasibleError, refuse_repeats
from simulator.core.files import write_text
from simulator.hardware.choose import Hardware, profile_for, require_acceptance
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import Layout
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.scenario.sections import HardwareSpec, PriceSpec
from simulator.traffic.lengths import longest_request, parse_lengths

POLICIES = ("autoregressive", "dspark-async")
"""Without speculation, and with it: what the answer compares unless other policies are named."""

COARSE = {"precision": "10%", "requests": 400, "concurrency": [4, 16, 64]}
"""Search of a first answer: seconds for each GPU. The scenario that is written searches as finely as any."""

MOST_CONCURRENT = 256
"""Requests at once of a group with attention of its own, as engines have it. A choice."""

CONTEXT_TOKENS = 2048
"""Tokens of a request in the cache, for choosing how many may run at once. A choice."""


@dataclass(frozen=True, slots=True)
class HardwareAnswer:
    """One layout's answer: its plan, or why there is none.

    name: of the GPU, and of the layout where several are compared. why: the reason where there is none.
    notes: which curve it rests on. asked: what was planned. scenario: the one to refine, as YAML; empty where
    the model does not fit on the GPU.
    """

    name: str
    gpu: str
    plan: Plan | None
    why: InfeasibleError | None
    notes: tuple[str, ...]
    asked: Scenario
    scenario: str

    @property
    def why_not(self) -> str | None:
        """Say why there is no plan."""
        return None if self.why is None else str(self.why)


def plan_hardware(
    asked: Hardware,
    gpus: Sequence[str],
    *,
    traffic: str,
    lengths: str,
    sla: Sequence[str],
    acceptance: Sequence[str],
    policies: Sequence[str] = POLICIES,
    all_layouts: bool = False,
    workers: int = 1,
    directory: Path | None = None,
) -> Iterator[HardwareAnswer]:
    """Plan the same traffic on each GPU, one after the other.

    asked: the model, and how it is laid out; its own GPU is not looked at. all_layouts: every layout of a
    node that fits, instead of the smallest or of the one asked for. directory: keeps finished searches, a
    folder for each answer. Raises ``BadInputError`` for words that are not known and for a GPU named twice.
    """
    refuse_repeats(gpus, "gpu")
    require_acceptance(asked.model, acceptance)
    for gpu in gpus:
        load_gpu(gpu)
    fitting = replace(asked, longest=sum(longest_request(parse_lengths(lengths))))
    for name, here in _each(fitting, gpus, all_layouts):
        gpu = here.gpu
        try:
            chosen = profile_for(here)
        except InfeasibleError as error:
            words = _words(
                here, MOST_CONCURRENT * CONTEXT_TOKENS, traffic, lengths, sla, acceptance, policies
            )
            yield HardwareAnswer(name, gpu, None, error, (), Scenario.model_validate(words), "")
            continue
        here = _as_written(here, chosen.layout)
        words = _words(here, chosen.layout.kv_tokens, traffic, lengths, sla, acceptance, policies)
        text = yaml.safe_dump(words, sort_keys=False, allow_unicode=True, width=110)
        coarse = Scenario.model_validate(words | {"search": COARSE})
        kept = None if directory is None else directory / name / "cells"
        notes = (*chosen.notes, _price_line(gpu, name))
        try:
            found = make_plan(coarse, workers=workers, directory=kept, progress=True)
            yield HardwareAnswer(name, gpu, found, None, notes, coarse, text)
        except InfeasibleError as error:
            yield HardwareAnswer(name, gpu, None, error, notes, coarse, text)


def _as_written(here: Hardware, chosen: Layout) -> Hardware:
    """Name the width that lengths ask for where a scenario, which leaves it out, would take a smaller one."""
    if here.tp is not None or replace(here, longest=0).layout() == chosen:
        return here
    return replace(here, tp=chosen.tp)


def _each(asked: Hardware, gpus: Sequence[str], all_layouts: bool) -> Iterator[tuple[str, Hardware]]:
    """Name and words of each answer; a GPU that holds the model in no layout keeps its own name."""
    for gpu in gpus:
        here = replace(asked, gpu=gpu)
        found: tuple[Layout, ...] = ()
        if all_layouts:
            with suppress(InfeasibleError):  # the answer says why
                found = here.layouts()
        for layout in found:
            yield f"{gpu}-{layout.label}", replace(here, tp=layout.tp, dp=layout.dp, ep=layout.ep)
        if not found:
            yield gpu, here


def comparison(answers: Sequence[HardwareAnswer]) -> pd.DataFrame:
    """Tabulate the answers, cheapest first: a row for each layout and policy that keeps the SLA.

    Columns: gpu, replica_gpus, policy, recommended, curve, step_time_band, replicas, gpus,
    cost_per_million_output_tokens, and rate_per_replica_per_s.
    """
    rows = []
    for answer in answers:
        if answer.plan is None:
            continue
        profile = answer.plan.scenario.loaded_profile()
        for each in answer.plan.plans[answer.plan.plans["feasible"]].to_dict("records"):
            rows.append(
                {
                    "gpu": answer.gpu, "replica_gpus": profile.replica_gpus, "policy": each["policy"],
                    "recommended": each["policy"] == answer.plan.recommended,
                    "curve": profile.provenance.kind, "step_time_band": profile.step_time_band,
                    "replicas": each["replicas"], "gpus": each["gpus"],
                    "cost_per_million_output_tokens": each["cost_per_million_output_tokens"],
                    "rate_per_replica_per_s": each["rate_per_replica_per_s"],
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    return table if table.empty else table.sort_values(
        ["cost_per_million_output_tokens", "gpus"], ignore_index=True
    )  # fmt: skip


def write_scenarios(answers: Sequence[HardwareAnswer], out: Path) -> list[Path]:
    """Write each answer's scenario, the one to refine; returns the files."""
    paths = []
    for answer in answers:
        if answer.scenario:
            path = out / f"{answer.name}.yaml"
            write_text(
                path, f"# Refine it: dspark-sim plan {path} --out {out / answer.name}\n{answer.scenario}"
            )
            paths.append(path)
    return paths


def _price_line(gpu: str, name: str) -> str:
    record = load_gpu(gpu)
    if record.price_per_hour is None:
        assumed = f"{PriceSpec().gpu_hour:.2f} {PriceSpec().currency} an hour is assumed"
        return f"warning: nobody's price of {record.title} is known here: {assumed}; set price in {name}.yaml"
    return f"{record.title} at {record.price_per_hour:.2f} USD an hour: {record.price_source}"


def _words(
    asked: Hardware, kv_tokens: int, traffic: str, lengths: str, sla: Sequence[str],
    acceptance: Sequence[str], policies: Sequence[str],
) -> dict[str, object]:  # fmt: skip
    """Return a scenario as it is written: only what differs from the defaults."""
    if not sla:
        raise BadInputError("is missing", source="sla", remedy="as in 'ttft_p99<=2s' or 'tps_p10>=60'")
    price = load_gpu(asked.gpu).price_per_hour
    hardware = HardwareSpec(
        model=asked.model, gpu=asked.gpu, tp=asked.tp, dp=asked.dp, ep=asked.ep, engine=asked.engine,
        precision=asked.precision, drafters=tuple(asked.drafters), host_time=asked.host_time,
    )  # fmt: skip
    return {
        "name": f"{asked.model} on {asked.gpu}",
        "hardware": hardware.model_dump(exclude_defaults=True, mode="json"),
        "policies": list(policies),
        "acceptance": list(acceptance),
        "traffic": {"arrivals": traffic, "lengths": lengths},
        "sla": list(sla),
        "replica": {"concurrency": max(1, min(MOST_CONCURRENT * asked.dp, kv_tokens // CONTEXT_TOKENS))},
        "price": {"gpu_hour": PriceSpec().gpu_hour if price is None else price},
    }
