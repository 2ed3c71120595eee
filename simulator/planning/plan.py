"""From a scenario to a plan: replicas, GPU hours, cost, who wins when, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.acceptance.fitted import FittedModel
from simulator.acceptance.scaled import Levels
from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.search import (
    Replication,
    Search,
    find_rate_row,
    finish_rates,
    first_replications,
    replication_row,
)
from simulator.capacity.server import Server, share_at_rate
from simulator.capacity.trials import REPLICATIONS, Trial, try_rate_row
from simulator.core.errors import InfeasibleError
from simulator.core.files import without_nan, write_json, write_table
from simulator.core.units import parse_percent
from simulator.fleet.fleet import simulate_fleet
from simulator.fleet.layout import Fleet
from simulator.parallel.cells import Sweeping, run_cells
from simulator.planning.checks import CONFIRMED_REPLICAS, check_fleet_size, check_inputs, refuse_extrapolated
from simulator.planning.demand import demand_profile, mix_of
from simulator.planning.notes import Confirmation, answer_line, list_assumptions, list_warnings
from simulator.planning.prefill_sizing import TIME_TO_FIRST_TOKEN, PoolAsked, pool_workers_row
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.planning.tables.changes import cost_table, growth_table, money_columns, sensitivity_table
from simulator.planning.tables.day import day_table, switch_table
from simulator.planning.tables.policies import plan_table, recommended_policy, term_table, trial_table
from simulator.planning.variants import levels_to_solve, servers_of, solve_level_row, study_of, variants_of
from simulator.sla.terms import Sla, Term
from simulator.sla.verdict import TermResult
from simulator.sweeps.frontier import MixCell, run_mix, steps_for
from simulator.sweeps.leads import Recommendation
from simulator.traffic.sources import Traffic

GRID = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.1, 1.25, 1.5)
"""Rates at which every policy is tried, as shares of the best policy's sustainable rate."""

GRID_REQUESTS = 400
"""Least requests of each: a p10 rests on thirty of them."""

GRID_REPLICATIONS = 3
"""Replications of each: enough to tell a lead in speed from chance, as speeds of a pair scatter little."""


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer, as tables. Rates are requests per second; costs in the scenario's currency.

    recommendation: the policy to run, and ties. plans: a row per policy. terms: what users get of each term
    (``tables.term_table``). trials: every trial at a rate. sensitivity, growth, day, switches, cost: what
    their columns say. frontier: the scenario's mix and limits in a closed loop, columns of
    ``sweeps.frontier.sweep_frontier`` and the plan's own cost. money: what turns a rate per replica into
    that cost. confirmation: the recommended fleet simulated whole behind its router at the peak.
    context_tokens: of a decoding request, in the mean.
    """

    scenario: Scenario
    sla: Sla
    recommendation: Recommendation
    plans: pd.DataFrame
    terms: pd.DataFrame
    trials: pd.DataFrame
    sensitivity: pd.DataFrame
    growth: pd.DataFrame
    day: pd.DataFrame
    switches: pd.DataFrame
    cost: pd.DataFrame
    frontier: pd.DataFrame
    money: Mapping[str, float]
    confirmation: Confirmation
    context_tokens: float
    assumptions: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    @property
    def recommended(self) -> str:
        """Name of the policy to run."""
        return self.recommendation.policy

    @property
    def tied(self) -> tuple[str, ...]:
        """Policies of which it cannot be said that they are worse."""
        return self.recommendation.tied

    @property
    def answer(self) -> str:
        """What to run on what and at which price, in one sentence."""
        row = self.plans[self.plans["policy"] == self.recommended].to_dict(orient="records")[0]
        return answer_line(self.recommendation, row, self.scenario.price.currency)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name to table, as written to CSV."""
        names = ("plans", "terms", "trials", "sensitivity", "growth", "day", "switches", "cost", "frontier")
        return {name: getattr(self, name) for name in names}


def plan(scenario: Scenario, *, base: Path = Path(), sweeping: Sweeping | None = None) -> CapacityPlan:
    """Plan a scenario whose files lie relative to ``base``.

    Raises ``InfeasibleError`` with the nearest feasible SLA when no policy can keep it at any rate.
    """
    sweep = sweeping or Sweeping()
    traffic, sla = scenario.demand(base), scenario.parsed_sla()
    check_inputs(scenario, traffic, sla)
    demand = demand_profile(traffic)
    sizing = Sizing.of(scenario, traffic, demand, sla)
    if sizing.pool is not None:
        sizing.pool.check()
    servers = servers_of(scenario, traffic, sla)
    sweep = replace(sweep, study=study_of(scenario, servers[0]))
    precision = parse_percent(scenario.search.precision, "search.precision")
    searches = [Search(each, precision, replications=REPLICATIONS) for each in servers]
    begun, unsolved, pools = (
        first_replications(searches),
        levels_to_solve(servers),
        sizing.pools(scenario.growth()),
    )
    rows = sweep.run(_row, [*begun, *unsolved, *pools], "Sustainable rates")
    found = finish_rates(searches, rows[: len(begun)], sweep.run)
    solved = iter(rows[len(begun) :])
    levels = {each: float(next(solved)["level"]) for each in unsolved}
    sizing = sizing.with_pools(pools, [float(row["workers"]) for row in solved])
    if not any(each.feasible for each in found):
        raise _infeasible(sla, found)
    refuse_extrapolated(scenario, servers, found)
    check_fleet_size(scenario, sizing, found)
    band = scenario.loaded_profile().step_time_band
    changed = _variants(servers, found, precision, band, levels)
    best = max(each.rate_per_s for each in found)
    grid = [_grid_trial(server, best, share) for server in servers for share in GRID]
    at_peak = _at_peak(servers, found, sizing)
    # In one sweep, as none of them waits for another, and the longest first.
    left = iter(sweep.run(_row, [*at_peak, *changed, *grid], "Peak, sensitivity, rates"))
    peaks = [TrialResult.from_row(next(left)) for _ in at_peak]
    variants = [RateSearch.from_row(next(left)) for _ in changed]
    trials = [TrialResult.from_row(row) for row in left]
    peaks_by_policy = {each.policy: each for each in peaks}
    plans = plan_table(scenario, sizing, found, peaks_by_policy)
    best_policy = recommended_policy(plans, found, peaks)
    recommended = best_policy.policy
    plans["tied"] = plans["policy"].isin(best_policy.tied)
    everything = trials + peaks + [trial for each in found for trial in each.trials]
    switches = switch_table(trials, [s.policy for s in servers if s.policy != "oracle"], recommended)
    chosen = next(server for server in servers if server.policy == recommended)
    replicas = int(plans.loc[plans["policy"] == recommended, "replicas"].iloc[0])
    confirmation = _confirm(scenario, chosen, replicas, sizing, sweep)
    return CapacityPlan(
        scenario=scenario,
        sla=sla,
        recommendation=best_policy,
        plans=plans,
        terms=term_table(found, peaks_by_policy),
        trials=trial_table(everything),
        sensitivity=sensitivity_table(sizing, found, variants),
        growth=growth_table(scenario, sizing, plans),
        day=day_table(demand, sizing, plans, switches, replicas),
        switches=switches,
        cost=cost_table(sizing, sla, everything, found),
        frontier=_frontier(scenario, traffic, sizing, sweep),
        money=money_columns(sizing),
        confirmation=confirmation,
        context_tokens=sizing.context_tokens,
        assumptions=tuple(list_assumptions(scenario, servers, traffic, sizing)),
        warnings=tuple(list_warnings(scenario, servers, traffic, plans, confirmation)),
    )


def write_tables(result: CapacityPlan, out: Path, form: str = "csv") -> None:
    """Write every table, csv or parquet, and ``plan.json`` with what a program would want of the answer."""
    for name, table in result.tables().items():
        write_table(out / f"{name}.{form}", table)
    write_json(out / "plan.json", summary(result))


def summary(result: CapacityPlan) -> dict[str, object]:
    """Return what ``plan.json`` holds: plain values, null where a number is not known."""
    return {
        "schema": 1,
        "scenario": result.scenario.model_dump(mode="json"),
        "answer": result.answer,
        "recommended": result.recommended,
        "tied": list(result.tied),
        "money": without_nan(result.money),
        "plans": without_nan(result.plans.to_dict(orient="records")),
        "terms": without_nan(result.terms.to_dict(orient="records")),
        "confirmation": without_nan(result.confirmation.as_row()),
        "warnings": list(result.warnings),
        "assumptions": dict(result.assumptions),
    }


def _row(cell: Replication | Search | Trial | PoolAsked | tuple[FittedModel, float]) -> dict[str, Any]:
    """Search for a rate, try one, size a pool, or solve for a level of acceptance: a cell of a sweep."""
    if isinstance(cell, PoolAsked):
        return dict(pool_workers_row(cell))
    if isinstance(cell, tuple):
        return dict(solve_level_row(cell))
    if isinstance(cell, Replication):
        return replication_row(cell)
    return find_rate_row(cell) if isinstance(cell, Search) else try_rate_row(cell)


def _grid_trial(server: Server, best_per_s: float, share: float) -> Trial:
    """Plan a trial at a share of the best rate.

    A lighter load holds fewer requests, and needs fewer for as many turns (``REQUESTS_PER_SLOT``); alone,
    they would take the longest of all trials.
    """
    requests = max(math.ceil(min(share, 1.0) * server.requests), min(GRID_REQUESTS, server.requests))
    return Trial(server, best_per_s * share, GRID_REPLICATIONS, requests)


def _at_peak(servers: Sequence[Server], found: Sequence[RateSearch], sizing: Sizing) -> list[Trial]:
    """One replica of each policy's planned fleet with its share of the peak: the load that will be run."""
    return [
        Trial(server, sizing.peak_per_s / sizing.replicas(each.rate_per_s), REPLICATIONS)
        for server, each in zip(servers, found, strict=True)
        if each.feasible
    ]


def _variants(
    servers: Sequence[Server],
    found: Sequence[RateSearch],
    precision: float,
    step_time_band: float | None,
    levels: Levels,
) -> list[Search]:
    cells = []
    for server, base in zip(servers, found, strict=True):
        for name, variant in variants_of(step_time_band).items():
            changed = variant.applied(server, levels) if base.feasible else None
            if changed is not None:
                guess = base.rate_per_s / variant.step_time
                cells.append(Search(changed, precision, name, guess))
    return cells


def _infeasible(sla: Sla, found: Sequence[RateSearch]) -> InfeasibleError:
    """Say what the policy that comes nearest gives to requests served alone."""
    deployable = [each for each in found if each.policy != "oracle"] or list(found)

    def shortfall(each: RateSearch) -> float:
        missed = [result for result in each.beyond.terms if not result.met]
        return sum(abs(math.log(result.estimate / result.term.bound)) for result in missed)

    nearest = min(deployable, key=lambda each: (each.beyond.saturated, shortfall(each)))
    if nearest.beyond.saturated:
        return InfeasibleError(
            "no policy keeps this SLA at any rate: the queue grows without bound even at the lightest load",
            binds=["the queue of every policy, which grows without bound even at the lightest load"],
        )
    terms = [
        each.term.text if each.met else each.term.at(_rounded_inwards(each.term, each.estimate)).text
        for each in nearest.beyond.terms
    ]
    missed = [each for each in nearest.beyond.terms if not each.met]
    return InfeasibleError(
        f"no policy keeps {sla} at any rate; the nearest feasible SLA is {', '.join(terms)} "
        f"({nearest.policy} at the lightest load, {nearest.beyond.rate_per_s:.3g}/s per replica)",
        binds=[each.term.text for each in missed],
        nearest=terms,
        changes=[_remedy(each, nearest.policy) for each in missed],
        attained=[
            {"policy": each.policy, "rate_per_s": each.beyond.rate_per_s, "saturated": each.beyond.saturated}
            | {"shown": result.shown()}
            | result.verdict()
            for each in deployable
            for result in each.beyond.terms
        ],
    )


def _remedy(missed: TermResult, policy: str) -> str:
    """Say by which factor a term is missed at the lightest load, where only the service itself takes time."""
    term, estimate = missed.term, missed.estimate
    factor = max(term.bound / estimate, estimate / term.bound)
    if term.comparison == ">=":
        need = f"{term.text} needs {factor:.3g} times what {policy} attains at the lightest load"
    else:
        need = f"{term.text} needs 1/{factor:.3g} of the time that {policy} takes at the lightest load"
    if term.metric == TIME_TO_FIRST_TOKEN:
        return f"{need}: faster prefill, or shorter prompts"
    return f"{need}: shorter steps (a faster GPU, more GPUs in a replica) or a higher accepted length"


def _rounded_inwards(term: Term, estimate: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(estimate)) - 2)
    rounded = math.floor(estimate / unit) if term.comparison == ">=" else math.ceil(estimate / unit)
    return rounded * unit


def _frontier(scenario: Scenario, traffic: Traffic, sizing: Sizing, sweep: Sweeping) -> pd.DataFrame:
    """Every policy with the scenario's mix and limits in a closed loop, and the plan's cost there."""
    classes = mix_of(traffic, scenario.search.seed)
    deployments = scenario.class_deployments(tuple(each.name for each in classes))
    limits, seed = scenario.limits(), scenario.search.seed
    cells = [
        MixCell(
            tuple(each.plan(policy) for each in deployments),
            replace(limits, concurrency=load), classes, steps_for(load), seed,
        )
        for policy in scenario.parsed_policies()
        for load in frontier_loads(scenario)
    ]  # fmt: skip
    rows = run_cells(
        run_mix, cells, workers=sweep.workers, progress=sweep.progress, label="Frontier",
        backend=sweep.backend, address=sweep.address,
    )  # fmt: skip
    table = pd.DataFrame(rows)
    costs = [sizing.cost_at_throughput(each) for each in table["throughput_tok_per_s"]]
    return table.assign(cost_per_million_output_tokens=costs)


def frontier_loads(scenario: Scenario) -> list[int]:
    """Concurrent requests of the frontier: those of the search that a replica admits, and its limit."""
    most = scenario.replica.concurrency
    return sorted({load for load in scenario.search.concurrency if load < most} | {most})


def _confirm(
    scenario: Scenario, server: Server, replicas: int, sizing: Sizing, sweep: Sweeping
) -> Confirmation:
    """Serve the recommended fleet at the peak behind its router, or a part of it.

    A part gets its share of the traffic and of the prefill pool, which these replicas then share.
    """
    count = min(replicas, CONFIRMED_REPLICAS)
    rate = sizing.peak_per_s * count / replicas
    workload = share_at_rate(server.traffic, rate, server.requests * count, server.seed + 1)
    pool = sizing.prefill_workers() if sizing.pool is not None else math.nan
    prefill = None if math.isnan(pool) else math.ceil(pool * count / replicas)
    fleet = Fleet(
        count, server.limits, scenario.fleet.router,
        prefix_cache_tokens=server.prefix_cache_tokens, prefill_workers=prefill,
    )  # fmt: skip
    run = simulate_fleet(
        workload,
        server.plans,
        fleet,
        server.sla,
        seed=server.seed + 1,
        workers=sweep.workers,
        progress=sweep.progress,
    )
    return Confirmation(
        policy=server.policy,
        replicas_simulated=count,
        replicas_planned=replicas,
        prefill_workers_simulated=prefill or 0,
        router=scenario.fleet.router,
        rate_per_s=rate,
        assessment=run.assessment,
        prefix_hit_share=float(run.replicas["prefix_hit_share"].mean()),
    )
