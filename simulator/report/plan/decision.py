"""What a plan decides, in the order in which a reader asks; one text for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulator.capacity.trials import REPLICATIONS
from simulator.core.units import counted, ranged, readable, signed_share
from simulator.planning.notes import ends_of
from simulator.planning.plan import CapacityPlan

_FOUNDATIONS = ("Cost of a step", "Error of that cost", "Acceptance", "Traffic", "Prefill", "Price")
"""Beginnings of the topics of ``notes.list_assumptions`` that a decision rests on; others are settings."""

_MOST_CHANGES = 4
"""Most inputs that are named one by one; the report has a table of all. A choice."""


def decision(result: CapacityPlan) -> dict[str, tuple[str, ...]]:
    """Answer each question in sentences: what to run, on what, for how much, how sure, why, what if."""
    return {
        "Run": tuple(_policy(result)),
        "On": (_fleet(result),),
        "Costs": tuple(_costs(result)),
        "How sure": tuple(_certainty(result)),
        "Rests on": tuple(_foundations(result)),
        "Would change it": tuple(_changes(result)),
    }


def period(result: CapacityPlan) -> str:
    """Name the time that GPU hours are counted over: that of the demand."""
    hours = result.money["hours"]
    return "day" if hours == 24 else f"{readable(hours)} h of traffic"


def recommended_row(result: CapacityPlan) -> dict[str, Any]:
    """Return the recommended policy's row of ``plans``."""
    mine = result.plans[result.plans["policy"] == result.recommended]
    return {str(name): value for name, value in mine.iloc[0].items()}


def _policy(result: CapacityPlan) -> Iterator[str]:
    yield result.recommended
    if result.tied:
        yield f"A tie with {listed(result.tied)}: chance explains the difference."
    yield from _as_many(result)


def _as_many(result: CapacityPlan) -> Iterator[str]:
    """Say why this policy and not another that takes as many GPUs: it is faster for sure."""
    row = recommended_row(result)
    speed = readable(row["tps_mean_at_peak"])
    others = [
        each
        for each in result.plans.to_dict("records")
        if each["feasible"] and each["decode_gpus"] == row["decode_gpus"]
        and each["policy"] not in (result.recommended, "oracle", *result.tied)
    ]  # fmt: skip
    speeds = {str(each["policy"]): readable(each["tps_mean_at_peak"]) for each in others}
    slower = {policy: other for policy, other in speeds.items() if other != speed}
    alike = [policy for policy, other in speeds.items() if other == speed]
    if alike:
        yield (
            f"{listed(alike)} would need as many GPUs, and serve users as fast to the digits that are shown: "
            f"{speed} tokens/s on average at the peak."
        )
    if slower:
        yield (
            f"{listed(list(slower))} would need as many GPUs, and serve users slower at the peak: "
            f"{listed(list(slower.values()))} tokens/s on average instead of {speed}."
        )


def listed(names: Sequence[str]) -> str:
    """Write a list in words.

    >>> listed(["mtp1", "fixed:3", "dspark"])
    'mtp1, fixed:3 and dspark'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _fleet(result: CapacityPlan) -> str:
    row, gpus = recommended_row(result), int(result.money["gpus_per_replica"])
    replicas = ranged(*ends_of(row, "replicas"))
    decode = f"{replicas} replica{'' if replicas == '1' else 's'} of {counted(gpus, 'GPU')}"
    if math.isnan(row["prefill_gpus"]):
        return f"{row['decode_gpus']:,.0f} GPUs for decoding: {decode}; the GPUs for prefill are not known"
    if not row["prefill_workers"]:
        return f"{counted(row['gpus'], 'GPU')}: {decode}; the replicas prefill, too"
    workers, each = row["prefill_workers"], row["prefill_gpus"] / row["prefill_workers"]
    pool = f"{counted(workers, 'prefill worker')} of {counted(each, 'GPU')}"
    return f"{counted(row['gpus'], 'GPU')}: {decode} and {pool}"


def _costs(result: CapacityPlan) -> Iterator[str]:
    row, price = recommended_row(result), result.scenario.price
    if math.isnan(row["gpus"]):
        yield "Not known: the speed of prefill is not stated (replica.prefill_tokens_per_s)."
        return
    name = "cost_per_million_output_tokens"
    yield (
        f"{ranged(*ends_of(row, name))} {price.currency} per million output tokens: "
        f"{readable(row['gpu_hours'])} GPU hours per {period(result)} at {price.gpu_hour:g} {price.currency} "
        "each, all GPUs kept all the time"
    )
    following = row["cost_per_million_following_demand"]
    if following < row[name]:
        yield (
            f"{readable(following)} {price.currency} where the fleet follows the demand: in each of the "
            f"{len(result.day)} intervals of day.csv only the GPUs that it needs, changed without delay"
        )


def _certainty(result: CapacityPlan) -> Iterator[str]:
    yield f"Numbers in brackets: 95% intervals over {REPLICATIONS} independent searches."
    yield f"Simulated whole: {result.confirmation.sentence}."


def _foundations(result: CapacityPlan) -> Iterator[str]:
    for topic, text in result.assumptions:
        if topic.startswith(_FOUNDATIONS):
            yield f"{topic}: {text}"


def _changes(result: CapacityPlan) -> Iterator[str]:
    row = recommended_row(result)
    gpus = "decode_gpus" if math.isnan(row["gpus"]) else "gpus"
    inputs = result.sensitivity.to_dict("records") if len(result.sensitivity) else []
    mine = [each for each in inputs if each["policy"] == result.recommended]
    moved = [each for each in mine if each[gpus] != row[gpus]]
    # The largest change first; a policy that keeps the SLA no more is the largest of all.
    moved.sort(key=lambda each: -abs(each[gpus] - row[gpus]) if each[gpus] == each[gpus] else -math.inf)
    for each in moved[:_MOST_CHANGES]:
        yield f"{each['variant']}: {_moved(each, row[gpus], gpus, result.scenario.price.currency)}"
    if rest := [each["variant"] for each in moved[_MOST_CHANGES:]]:
        yield f"No larger change of the number of GPUs with {', '.join(rest)}"
    if len(mine) > len(moved):
        same = ", ".join(each["variant"] for each in mine if each[gpus] == row[gpus])
        yield f"The same number of GPUs with {same}"
    yield from _other_policies(result, inputs, mine, gpus)
    yield from _growth(result, row, gpus)
    yield f"What stops a replica from carrying more: {row['binding']}"


def _moved(variant: Mapping[Any, Any], planned: float, gpus: str, currency: str) -> str:
    """Say what an input that is off does to the fleet and to its cost."""
    if math.isnan(variant[gpus]):
        return "no rate keeps the SLA"
    text = f"{variant[gpus]:,.0f} GPUs ({variant[gpus] - planned:+,.0f})"
    cost = variant["cost_per_million_output_tokens"]
    return text if math.isnan(cost) else f"{text}, {readable(cost)} {currency}"


def _other_policies(
    result: CapacityPlan, inputs: list[dict[Any, Any]], mine: list[dict[Any, Any]], gpus: str
) -> Iterator[str]:
    """Say where another policy is the one to run: under another input, or at a lighter load."""
    for own in mine:
        rivals = [
            each for each in inputs
            if each["variant"] == own["variant"] and each["policy"] != "oracle" and each[gpus] < own[gpus]
        ]  # fmt: skip
        if rivals:
            best = min(rivals, key=lambda each: float(each[gpus]))
            yield f"{own['variant']}: {best['policy']} needs fewer GPUs, {best[gpus]:,.0f}"
    for band in result.switches.to_dict("records"):
        if band["policy"] != result.recommended:
            first, last = (readable(band[end]) for end in ("from_per_s", "to_per_s"))
            yield f"{first} to {last} requests/s per replica: {band['policy']} serves users faster"


def _growth(result: CapacityPlan, row: Mapping[str, Any], gpus: str) -> Iterator[str]:
    """Say what the first growth of the scenario takes."""
    grown = result.growth[(result.growth["policy"] == result.recommended) & (result.growth["growth"] > 0)]
    if len(grown):
        first = grown.sort_values("growth").iloc[0]
        more = f"({first[gpus] - row[gpus]:+,.0f})"
        yield f"traffic {signed_share(first['growth'], 0)}: {first[gpus]:,.0f} GPUs {more}"
