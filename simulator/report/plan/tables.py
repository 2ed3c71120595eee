"""The tables of a plan as text, every column with its definition; for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from simulator.core.units import (
    UNKNOWN,
    decimals_of,
    in_digits,
    ranged_column,
    readable_column,
    share_within,
    signed_share,
)
from simulator.planning.plan import CapacityPlan
from simulator.report.columns import definition
from simulator.report.plan.decision import period
from simulator.sla.terms import Term

COST = "cost_per_million_output_tokens"

LOADS = {"run": "will be run", "limit": "its limit"}
"""What the loads of ``terms.csv`` are called."""


@dataclass(frozen=True, slots=True)
class Head:
    """A column's head. definition: one line. column: its name in the CSV file. is_text: set to the left."""

    text: str
    definition: str
    column: str
    is_text: bool = False

    @classmethod
    def of(cls, text: str, name: str, *, is_text: bool = False) -> Head:
        """Make the head of a column that ``report.columns`` defines."""
        meaning = definition(name)
        if meaning is None:
            raise KeyError(name)
        return cls(text, meaning, name, is_text)


@dataclass(frozen=True, slots=True)
class ShownTable:
    """Cells as text. rows: a cell for each head. best: number of the row to set in bold."""

    heads: tuple[Head, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None

    @classmethod
    def of(cls, columns: Mapping[Head, Sequence[str]], best: int | None = None) -> ShownTable:
        """Put columns side by side."""
        return cls(tuple(columns), tuple(zip(*columns.values(), strict=True)), best)

    def only(self, *columns: str) -> ShownTable:
        """Keep the columns of these names."""
        kept = [place for place, head in enumerate(self.heads) if head.column in columns]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return ShownTable(tuple(self.heads[place] for place in kept), rows, self.best)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def plan_tables(result: CapacityPlan) -> dict[str, ShownTable]:
    """All tables of the report that no control changes, by name."""
    return {
        "plans": fleets(result),
        "fared": fared(result),
        "sensitivity": sensitivity(result),
        "growth": growth(result),
    }


def cost_head(result: CapacityPlan) -> Head:
    """Return the head of the cost, with its currency."""
    return Head.of(f"{result.scenario.price.currency} per M output tokens", COST)


def at_sla_heads(result: CapacityPlan) -> tuple[Head, ...]:
    """Heads of the table that follows the slider of the report."""
    return (
        Head.of("Policy", "policy", is_text=True),
        Head.of("Throughput, tokens/s per replica", "throughput_tok_per_s"),
        Head.of("Requests running", "concurrency_mean"),
        Head.of(f"Gain over {result.plans['policy'].iloc[0]}", "gain"),
        cost_head(result),
    )


def fleets(result: CapacityPlan) -> ShownTable:
    """Tabulate for each policy its fleet and its cost, with 95% intervals."""
    plans = result.plans
    currency = result.scenario.price.currency
    names = [
        f"{policy} (tie)" if tied else str(policy)
        for policy, tied in plans[["policy", "tied"]].itertuples(index=False)
    ]
    rates = _ranged(plans, "rate_per_replica_per_s", "rate_low_per_s", "rate_high_per_s")
    policies = list(plans["policy"])
    return ShownTable.of(
        {
            Head.of("Policy", "policy", is_text=True): names,
            Head.of("Requests/s per replica", "rate_per_replica_per_s"): [
                rate if feasible else "none keeps the SLA"
                for rate, feasible in zip(rates, plans["feasible"], strict=True)
            ],
            Head.of("Replicas", "replicas"): _ranged(plans, "replicas"),
            Head.of("Decode GPUs", "decode_gpus"): _numbers(plans, "decode_gpus"),
            Head.of("Prefill GPUs", "prefill_gpus"): _numbers(plans, "prefill_gpus"),
            Head.of("GPUs", "gpus"): _numbers(plans, "gpus"),
            Head.of(f"GPU hours per {period(result)}", "gpu_hours"): _numbers(plans, "gpu_hours"),
            cost_head(result): _ranged(plans, COST),
            Head.of(f"{currency} per M, following demand", "cost_per_million_following_demand"): _numbers(
                plans, "cost_per_million_following_demand"
            ),
            Head.of("What binds", "binding", is_text=True): list(plans["binding"]),
        },
        policies.index(result.recommended),
    )


def fared(result: CapacityPlan) -> ShownTable:
    """Tabulate what users of each policy get at the load that will be run and at a replica's limit."""
    plans = result.plans[result.plans["feasible"].astype(bool)]
    rows = [
        {name: each[f"{name}_{where}"] for name in _FARED}
        | {"policy": each["policy"], "load": load, "rate": each[rate]}
        for each in plans.to_dict("records")
        for load, where, rate in _LOAD_COLUMNS
    ]
    table = pd.DataFrame(rows)
    kept = [
        share_within(value, half)
        for value, half in zip(table["kept_share"], table["kept_share_ci95"], strict=True)
    ]
    terms = {_term_head(term): _attained(result, term, table) for term in result.sla.terms}
    return ShownTable.of(
        {
            Head.of("Policy", "policy", is_text=True): list(
                table["policy"].where(table["load"] == "run", "")
            ),
            Head.of("Load of a replica", "load", is_text=True): [LOADS[load] for load in table["load"]],
            Head.of("Requests/s", "rate_per_s"): _numbers(table, "rate"),
            Head.of("Mean tokens/s", "tps_mean"): _numbers(table, "tps_mean"),
            Head.of("p10 tokens/s", "tps_p10"): _numbers(table, "tps_p10"),
            Head.of("SLA kept", "attained"): ["yes" if held else "no" for held in table["attained"]],
            Head.of("Requests within their terms", "kept_share"): kept,
        }
        | terms
    )


_LOAD_COLUMNS = (("run", "at_peak", "rate_at_peak_per_s"), ("limit", "at_limit", "rate_per_replica_per_s"))

_FARED = ("attained", "kept_share", "kept_share_ci95", "tps_mean", "tps_p10")


def _term_head(term: Term) -> Head:
    unit = "s" if term.is_time else term.unit_for(term.bound)[1].strip()
    meaning = f"What users get of the term, as {term.statistic}, with its 95% interval."
    if term.per_request:
        meaning = (
            f"The {term.statistic} that users get; in brackets the share of the requests within the bound."
        )
    return Head(f"{term.text}, {unit}" if unit else term.text, meaning, f"term {term.text}")


def _attained(result: CapacityPlan, term: Term, order: pd.DataFrame) -> list[str]:
    """Cells of a term: ``93.0 ± 1.9`` for a mean, ``88.5 (99.9% ± 0.1%)`` for a promise to a share."""
    mine = result.terms[result.terms["term"] == term.text].set_index(["policy", "load"])
    rows = [mine.loc[(policy, load)] for policy, load in order[["policy", "load"]].itertuples(index=False)]
    decimals = decimals_of([float(row[name]) for row in rows for name in ("attained", "attained_ci95")])
    return [_cell(row, decimals) for row in rows]


def _cell(row: Mapping[Any, Any], decimals: int) -> str:
    text = in_digits(row["attained"], decimals)
    if not math.isnan(row["share_kept"]):
        text = f"{text} ({share_within(row['share_kept'], row['share_kept_ci95'])})"
    elif not math.isnan(row["attained_ci95"]):
        text = f"{text} ± {in_digits(row['attained_ci95'], decimals)}"
    return text if row["holds"] else f"missed: {text}"


def sensitivity(result: CapacityPlan) -> ShownTable:
    """Tabulate each policy with each input that is off."""
    table = result.sensitivity
    return ShownTable.of(
        {
            Head.of("Policy", "policy", is_text=True): list(table["policy"]),
            Head.of("Input", "variant", is_text=True): list(table["variant"]),
            Head.of("Requests/s per replica", "rate_per_replica_per_s"): _numbers(
                table, "rate_per_replica_per_s"
            ),
            Head.of("Change", "change"): [signed_share(each) for each in table["change"]],
            Head.of(f"Gain over {result.plans['policy'].iloc[0]}", "gain"): [
                signed_share(each) for each in table["gain"]
            ],
            Head.of("p10, tokens/s", "tps_p10"): _numbers(table, "tps_p10"),
            Head.of("Replicas", "replicas"): _numbers(table, "replicas"),
            Head.of("Decode GPUs", "decode_gpus"): _numbers(table, "decode_gpus"),
            Head.of("Prefill GPUs", "prefill_gpus"): _numbers(table, "prefill_gpus"),
            Head.of("GPUs", "gpus"): _numbers(table, "gpus"),
            cost_head(result): _numbers(table, COST),
        }
    )


def growth(result: CapacityPlan) -> ShownTable:
    """Tabulate for each policy the GPUs at each growth of the traffic."""
    table = result.growth.pivot(index="policy", columns="growth")
    policies = [policy for policy in result.plans["policy"] if policy in table.index]
    meaning = "GPUs together, of decode and prefill, where traffic grows by so much."
    columns = {Head.of("Policy", "policy", is_text=True): policies}
    for grown in table["gpus"].columns:
        parts = table.xs(grown, axis=1, level="growth").loc[policies, ["gpus", "decode_gpus", "prefill_gpus"]]
        head = Head(f"GPUs at {signed_share(grown, 0)} traffic", meaning, f"gpus {grown}")
        columns[head] = [
            f"{in_digits(gpus, 0)} ({in_digits(decode, 0)} + {in_digits(prefill, 0)})"
            for gpus, decode, prefill in parts.itertuples(index=False)
        ]
    return ShownTable.of(columns)


def _numbers(table: pd.DataFrame, name: str) -> list[str]:
    if name not in table:
        return [UNKNOWN] * len(table)
    return readable_column([float(value) for value in table[name]])


def _ranged(table: pd.DataFrame, name: str, low: str = "", high: str = "") -> list[str]:
    if name not in table:
        return [UNKNOWN] * len(table)
    ends = (low or f"{name}_low", high or f"{name}_high")
    return ranged_column(*([float(value) for value in table[each]] for each in (name, *ends)))
