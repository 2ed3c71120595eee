"""From a scenario to a plan: replicas, GPU hours, cost, who wins when, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.capacity import (
    REPLICATIONS,
    Search,
    Server,
    Trial,
    binding,
    find_rate,
    interpolated_rate,
    share_at_rate,
    try_rate,
)
from simulator.cost import Floats
from simulator.errors import BadInputError, InfeasibleError
from simulator.files import write_csv, write_json
from simulator.fleet import Fleet, FleetRun, simulate_fleet
from simulator.frontier import MixCell, run_mix, steps_for
from simulator.leads import Recommendation, ahead, recommend
from simulator.lengths import EmpiricalLengths
from simulator.replay import replay_notes
from simulator.scenario import Scenario, parse_percent
from simulator.sensitivity import with_acceptance, with_cost
from simulator.sizing import NO_SPEED, Sizing
from simulator.sla import Sla, Term
from simulator.sweep import Backend, run_cells
from simulator.traffic import DiurnalArrivals, ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass
from simulator.workload import Workload

DAY_S = 86400.0
VARIANTS = {
    "acceptance -10%": (0.9, 1.0),
    "acceptance +10%": (1.1, 1.0),
    "step time -10%": (1.0, 0.9),
    "step time +10%": (1.0, 1.1),
}
"""What the sensitivity analysis changes: factors on accepted draft tokens and on step time."""

GRID = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.1, 1.25, 1.5)
"""Rates at which every policy is tried, as shares of the best policy's sustainable rate."""

GRID_REQUESTS = 400
"""Least requests of each: a p10 rests on thirty of them."""

GRID_REPLICATIONS = 3
"""Replications of each: enough to tell a lead in speed from chance, as speeds of a pair scatter little."""

REQUESTS_PER_SLOT = 10
"""Least requests of a trial per request that may run at once. By Little's law a replica that is full turns
its requests over ten times then, twice of them within warm-up: the system is seen full, not filling."""

CONFIRMED_REPLICAS = 16
"""Largest fleet simulated to confirm a plan; a larger one is confirmed by a part of it with its share."""


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer, as tables. Rates are requests per second; costs in the scenario's currency.

    plans: a row per policy. trials: every trial at a rate. sensitivity, growth, day, switches, cost: what
    their columns say. frontier: the scenario's mix and limits in a closed loop, columns of
    ``frontier.sweep_frontier`` and the plan's own cost. money: what turns a rate per replica into that cost.
    confirmation: the recommended fleet simulated whole behind its router at the peak.
    """

    scenario: Scenario
    recommended: str
    tied: tuple[str, ...]
    plans: pd.DataFrame
    trials: pd.DataFrame
    sensitivity: pd.DataFrame
    growth: pd.DataFrame
    day: pd.DataFrame
    switches: pd.DataFrame
    cost: pd.DataFrame
    frontier: pd.DataFrame
    money: Mapping[str, float]
    confirmation: Mapping[str, Any]
    assumptions: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Name to table, as written to CSV."""
        names = ("plans", "trials", "sensitivity", "growth", "day", "switches", "cost", "frontier")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Sweeping:
    """How the cells of a plan are run, and the directory that keeps them."""

    directory: Path | None = None
    workers: int = 1
    backend: Backend = "loky"
    address: str | None = None
    progress: bool = False

    def run(self, function: Any, cells: Sequence[Any], label: str) -> list[dict[str, Any]]:
        """One sweep, resumed where it was."""
        return run_cells(
            function,
            cells,
            workers=self.workers,
            label=label,
            progress=self.progress,
            backend=self.backend,
            address=self.address,
            directory=None if self.directory is None else self.directory / label.lower().replace(" ", "-"),
        )


def plan(scenario: Scenario, *, base: Path = Path(), sweeping: Sweeping | None = None) -> CapacityPlan:
    """Plan a scenario whose files lie relative to ``base``.

    Raises ``InfeasibleError`` with the nearest feasible SLA when no policy can keep it at any rate.
    """
    sweep = sweeping or Sweeping()
    traffic, sla = scenario.demand(base), scenario.parsed_sla()
    check_inputs(scenario, traffic, sla)
    demand = demand_profile(traffic)
    sizing = Sizing.of(scenario, traffic, demand)
    if sizing.pool is not None:
        sizing.pool.check()
    servers = _servers(scenario, traffic, sla)
    precision = parse_percent(scenario.search.precision, "search.precision")
    searches = [Search(each, precision, replications=REPLICATIONS) for each in servers]
    found = sweep.run(find_rate, searches, "Sustainable rates")
    if not any(each["rate_per_s"] > 0 for each in found):
        raise InfeasibleError(_nearest_feasible(sla, found))
    _check_fleet_size(scenario, sizing, found)
    variants = sweep.run(find_rate, _variants(servers, found, precision), "Sensitivity")
    best = max(each["rate_per_s"] for each in found)
    cells = [_grid_trial(server, best, share) for server in servers for share in GRID]
    trials = sweep.run(try_rate, cells, "Rates")
    peaks = sweep.run(try_rate, _at_peak(servers, found, sizing), "Peak")
    plans = _plan_table(scenario, sizing, found, {each["policy"]: each for each in peaks})
    best_policy = _recommend(plans, found, peaks)
    recommended = best_policy.policy
    plans["tied"] = plans["policy"].isin(best_policy.tied)
    everything = trials + peaks + [trial for each in found for trial in each["trials"]]
    switches = _switches(trials, [s.policy for s in servers if s.policy != "oracle"], recommended)
    chosen = next(server for server in servers if server.policy == recommended)
    replicas = int(plans.loc[plans["policy"] == recommended, "replicas"].iloc[0])
    confirmed, confirmation = _confirm(scenario, chosen, replicas, sizing, sweep)
    return CapacityPlan(
        scenario=scenario,
        recommended=recommended,
        tied=best_policy.tied,
        plans=plans,
        trials=_trial_table(everything),
        sensitivity=_sensitivity(sizing, found, variants),
        growth=_growth(scenario, sizing, plans),
        day=_day(demand, sizing, plans, switches, replicas),
        switches=switches,
        cost=_cost_against_sla(sizing, sla, everything, [server.policy for server in servers]),
        frontier=_frontier(scenario, traffic, sizing, sweep),
        money=_money(sizing),
        confirmation=confirmation,
        assumptions=tuple(_assumptions(scenario, servers, traffic, sizing)),
        warnings=tuple(_warnings(scenario, servers, traffic, found, plans, confirmed)),
    )


def write_tables(result: CapacityPlan, out: Path) -> None:
    """CSV of every table, and ``plan.json`` with what a program would want of the answer."""
    for name, table in result.tables().items():
        write_csv(out / f"{name}.csv", table)
    summary = {
        "schema": 1,
        "scenario": result.scenario.model_dump(mode="json"),
        "recommended": result.recommended,
        "tied": list(result.tied),
        "money": _without_nan([dict(result.money)])[0],
        "plans": _without_nan(result.plans.to_dict(orient="records")),
        "confirmation": _without_nan([dict(result.confirmation)])[0],
        "warnings": list(result.warnings),
        "assumptions": dict(result.assumptions),
    }
    write_json(out / "plan.json", summary)


def check_inputs(scenario: Scenario, traffic: Traffic, sla: Sla) -> None:
    """Refuse before the first simulation what would be refused after hours of them."""
    scenario.growth()
    parse_percent(scenario.fleet.headroom, "fleet.headroom")
    _check_loads(scenario)
    limits, replica = scenario.limits(), scenario.replica
    for name in ("prefill_tokens_per_s", "prefill_gpus"):
        if limits.prefill != "elsewhere" and getattr(replica, name) is not None:
            raise BadInputError(
                f"is given, but there is no prefill pool with prefill: {limits.prefill}", source="scenario",
                field=f"replica.{name}", value=getattr(replica, name), remedy="leave it out",
            )  # fmt: skip
    Fleet(1, limits, scenario.fleet.router, prefix_cache_tokens=scenario.fleet.prefix_cache_tokens)
    servers = _servers(scenario, traffic, sla)
    Search(servers[0], parse_percent(scenario.search.precision, "search.precision"))
    # The confirmation draws the most requests of all, and draws them anew.
    sample = share_at_rate(traffic, 1.0, servers[0].requests * CONFIRMED_REPLICAS, scenario.search.seed + 1)
    if scenario.fleet.prefix_cache_tokens is not None and sample.prefix is None:
        raise BadInputError(
            "the traffic does not say which prefixes are common", source="scenario",
            field="fleet.prefix_cache_tokens", value=scenario.fleet.prefix_cache_tokens,
            remedy="replay a file with hash_ids, or leave it out",
        )  # fmt: skip
    for server in servers:
        gamma = max(plan.acceptance.gamma if plan.acceptance else 0 for plan in server.plans)
        _check_fits(sample, limits.kv_tokens, gamma)


def _check_loads(scenario: Scenario) -> None:
    loads = scenario.search.concurrency
    for load in loads:
        if load < 1 or loads.count(load) > 1:
            problem = "must be at least 1" if load < 1 else "names a load twice"
            raise BadInputError(problem, source="scenario", field="search.concurrency", value=load)


def _check_fits(workload: Workload, kv_tokens: int | None, gamma: int) -> None:
    """Every request needs its prompt, its output and one block at once."""
    need = workload.prompt_tokens + workload.output_tokens + gamma
    if kv_tokens is not None and need.max() > kv_tokens:
        raise BadInputError(
            f"a request of {int(workload.prompt_tokens[need.argmax()])} prompt and "
            f"{int(workload.output_tokens[need.argmax()])} output tokens could never run",
            source="scenario", field="replica.kv_tokens", value=kv_tokens,
            remedy=f"raise it to {int(need.max())} or cap the lengths with max=",
        )  # fmt: skip


# --- demand and size ----------------------------------------------------------------------------------------


def demand_profile(traffic: Traffic) -> pd.DataFrame:
    """Demanded rate over a day, or over a recording: start_s, end_s, rate_per_s."""
    if isinstance(traffic, ReplayTraffic):
        workload = traffic.workload(0)
        assert workload.arrival_s is not None
        count, edges = np.histogram(workload.arrival_s, bins=12)
        rates = count / np.diff(edges)
    elif isinstance(traffic, SyntheticTraffic) and isinstance(traffic.arrivals, DiurnalArrivals):
        edges = np.linspace(0, traffic.arrivals.period_s, 49)
        rates = traffic.arrivals.rate_at((edges[1:] + edges[:-1]) / 2)
    else:
        edges, rates = np.array([0.0, DAY_S]), np.array([traffic.rate_per_s])
    return pd.DataFrame({"start_s": edges[:-1], "end_s": edges[1:], "rate_per_s": rates})


def _check_fleet_size(scenario: Scenario, sizing: Sizing, found: Sequence[dict[str, Any]]) -> None:
    """``InfeasibleError`` where every policy needs more replicas than the scenario allows."""
    fewest, policy = min(
        (sizing.replicas(each["rate_per_s"]), each["policy"]) for each in found if each["rate_per_s"] > 0
    )
    allowed = scenario.fleet.max_replicas
    if fewest > allowed:
        rate = next(each["rate_per_s"] for each in found if each["policy"] == policy)
        raise InfeasibleError(
            f"every policy needs more than the {allowed:,} replicas allowed; the fewest is {fewest:,} "
            f"({policy}). The nearest feasible: fleet.max_replicas: {fewest}, or a peak of "
            f"{allowed * rate / (1 + sizing.headroom):.4g} requests/s instead of {sizing.peak_per_s:.4g}"
        )


def _grid_trial(server: Server, best_per_s: float, share: float) -> Trial:
    """A trial at a share of the best rate. A lighter load holds fewer requests at once, and needs fewer for
    as many turns (``REQUESTS_PER_SLOT``); alone, they would take the longest of all trials."""
    requests = max(math.ceil(min(share, 1.0) * server.requests), min(GRID_REQUESTS, server.requests))
    return Trial(server, best_per_s * share, GRID_REPLICATIONS, requests)


def _at_peak(servers: Sequence[Server], found: Sequence[dict[str, Any]], sizing: Sizing) -> list[Trial]:
    """One replica of each policy's planned fleet with its share of the peak: the load that will be run."""
    return [
        Trial(server, sizing.peak_per_s / sizing.replicas(each["rate_per_s"]), REPLICATIONS)
        for server, each in zip(servers, found, strict=True)
        if each["rate_per_s"] > 0
    ]


def _plan_table(
    scenario: Scenario,
    sizing: Sizing,
    found: Sequence[dict[str, Any]],
    peaks: Mapping[str, dict[str, Any]],
) -> pd.DataFrame:
    """A row per policy: its fleet, what that costs, and how it fares at the peak and at a replica's limit."""
    limits, rows = scenario.limits(), []
    for each in found:
        rate = each["rate_per_s"]
        row: dict[str, Any] = {
            "policy": each["policy"],
            "feasible": rate > 0,
            "rate_per_replica_per_s": rate,
            "fails_at_per_s": each["failing_rate_per_s"],
        }
        if rate > 0:
            peak, limit = peaks[each["policy"]], each["at_rate"]
            row |= sizing.fleet(rate) | sizing.costs(rate) | _ranges(sizing, each)
            row |= {"rate_at_peak_per_s": peak["rate_per_s"]}
            row |= {f"{name}_at_peak": value for name, value in _fared(peak).items()}
            row |= {f"{name}_at_limit": value for name, value in _fared(limit).items()}
            row["steps_outside_fraction"] = limit["steps_outside_fraction"]
        rows.append(row | {"binding": binding(each, limits)})
    return pd.DataFrame(rows)


def _ranges(sizing: Sizing, found: dict[str, Any]) -> dict[str, float]:
    """What the 95% interval of the rate per replica means for replicas and money: fewest with the highest."""
    low, high = found["rate_low_per_s"], found["rate_high_per_s"]
    return {
        "rate_low_per_s": low,
        "rate_high_per_s": high,
        "replicas_low": sizing.fleet(high)["replicas"],
        "replicas_high": sizing.fleet(low)["replicas"],
        "cost_per_million_output_tokens_low": sizing.cost(high),
        "cost_per_million_output_tokens_high": sizing.cost(low),
    }


def _fared(trial: dict[str, Any]) -> dict[str, Any]:
    """What users get in a trial. attained: every term holds, means included. kept_share: of the requests,
    those that kept every term that promises something to each, NaN where none does."""
    metrics = trial["metrics"] or {}
    per_request = any(not math.isnan(term["share"]) for term in trial["terms"].values())
    row: dict[str, Any] = {
        "attained": trial["met"],
        "kept_share": trial["attainment"] if per_request else math.nan,
        "kept_share_ci95": trial["attainment_ci95"] if per_request else math.nan,
        "goodput_per_s": trial["goodput_per_s"],
    }
    names = ("tps_mean", "tps_p10", "concurrency_mean", "verification_budget_mean")
    known = {} if trial["saturated"] else metrics
    return row | {name: known.get(name, math.nan) for name in names}


def _recommend(
    plans: pd.DataFrame, found: Sequence[dict[str, Any]], peaks: Sequence[dict[str, Any]]
) -> Recommendation:
    """By ``leads.recommend``. The oracle cannot be deployed."""
    candidates = plans[plans["feasible"] & (plans["policy"] != "oracle")]
    if candidates.empty:
        raise InfeasibleError("only the oracle keeps this SLA, and it cannot be deployed")
    rates = {each["policy"]: each["seed_rates"] for each in found}
    speeds = {each["policy"]: each["seed_tps"] for each in peaks}
    # Without a prefill speed the prefill GPUs are not known; they are the same for every policy.
    return recommend(
        [
            {
                "policy": each["policy"],
                "gpus": each["decode_gpus"],
                "seed_rates": rates[each["policy"]],
                "seed_tps": speeds[each["policy"]],
            }
            for each in candidates.to_dict(orient="records")
        ]
    )


# --- searches -----------------------------------------------------------------------------------------------


def _servers(scenario: Scenario, traffic: Traffic, sla: Sla) -> list[Server]:
    # The prefill pool is sized by itself: here every prompt takes its time, and none waits for a worker.
    limits, seed = replace(scenario.limits(), prefill_workers=None), scenario.search.seed
    requests = max(scenario.search.requests, REQUESTS_PER_SLOT * limits.concurrency)
    classes = share_at_rate(traffic, 1.0, requests, seed).classes
    sla.check_classes(classes)
    deployments = scenario.class_deployments(classes)
    return [
        Server(
            tuple(each.plan(policy) for each in deployments), limits, sla, traffic,
            requests, seed, scenario.fleet.prefix_cache_tokens,
        )
        for policy in scenario.parsed_policies()
    ]  # fmt: skip


def _variants(servers: Sequence[Server], found: Sequence[dict[str, Any]], precision: float) -> list[Search]:
    cells = []
    for server, base in zip(servers, found, strict=True):
        for name, (acceptance, cost) in VARIANTS.items():
            if base["rate_per_s"] > 0:
                plans = tuple(with_cost(with_acceptance(p, acceptance), cost) for p in server.plans)
                guess = base["rate_per_s"] / cost
                cells.append(Search(replace(server, plans=plans), precision, name, guess))
    return cells


def _nearest_feasible(sla: Sla, found: Sequence[dict[str, Any]]) -> str:
    """What the policy that comes nearest gives to requests served alone."""
    deployable = [each for each in found if each["policy"] != "oracle"] or list(found)

    def failing(each: dict[str, Any]) -> list[Term]:
        return [term for term in sla.terms if not each["beyond"]["terms"][term.text]["met"]]

    def shortfall(each: dict[str, Any]) -> float:
        estimates = [(term.bound, each["beyond"]["terms"][term.text]["estimate"]) for term in failing(each)]
        return sum(abs(math.log(estimate / bound)) for bound, estimate in estimates)

    nearest = min(deployable, key=lambda each: (each["beyond"]["saturated"], shortfall(each)))
    if nearest["beyond"]["saturated"]:
        return "no policy keeps this SLA at any rate: the queue grows without bound even at the lightest load"
    terms = []
    for term in sla.terms:
        estimate = nearest["beyond"]["terms"][term.text]["estimate"]
        terms.append(
            term.at(_rounded_inwards(term, estimate)).text if term in failing(nearest) else term.text
        )
    return (
        f"no policy keeps {sla} at any rate; the nearest feasible SLA is {', '.join(terms)} "
        f"({nearest['policy']} at the lightest load, {nearest['beyond']['rate_per_s']:.3g}/s per replica)"
    )


def _rounded_inwards(term: Term, estimate: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(estimate)) - 2)
    rounded = math.floor(estimate / unit) if term.comparison == ">=" else math.ceil(estimate / unit)
    return rounded * unit


# --- tables -------------------------------------------------------------------------------------------------


def _trial_table(trials: Sequence[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for trial in trials:
        row = {key: trial[key] for key in trial if key not in ("terms", "metrics", "seed_tps")}
        row |= {f"term {name}": term["estimate"] for name, term in trial["terms"].items()}
        saturated, metrics = trial["saturated"], trial["metrics"] or {}
        row |= {
            key: math.nan if saturated and key != "throughput_tok_per_s" else metrics.get(key, math.nan)
            for key in ("throughput_tok_per_s", "tps_mean", "verification_budget_mean", "concurrency_mean")
        }
        rows.append(row)
    table = pd.DataFrame(rows).drop_duplicates(["policy", "rate_per_s"])
    return table.sort_values(["policy", "rate_per_s"], ignore_index=True)


def _sensitivity(
    sizing: Sizing, found: Sequence[dict[str, Any]], variants: Sequence[dict[str, Any]]
) -> pd.DataFrame:
    base = {each["policy"]: each["rate_per_s"] for each in found}
    first = {each["policy"]: each["seed_rates"][0] for each in found}
    # A variant is searched on the first replication alone, so its change is against that one.
    changed = [(each, each["seed_rates"][0] / first[each["policy"]]) for each in variants]
    cases = [
        (each["policy"], each["variant"], base[each["policy"]] * ratio, sizing) for each, ratio in changed
    ]
    if sizing.pool is not None:  # prefill is a queue of its own: decoding does not change with its speed
        faster = {f"prefill speed {change:+.0%}": 1 + change for change in (-0.1, 0.1)}
        for name, factor in faster.items():
            varied = sizing.with_prefill_speed(factor)
            cases += [(policy, name, rate, varied) for policy, rate in base.items() if rate > 0]
    rows: list[dict[str, Any]] = []
    for policy, variant, rate, priced in cases:
        row = {"policy": policy, "variant": variant, "rate_per_replica_per_s": rate}
        row |= {"change": rate / base[policy] - 1, **priced.fleet(rate)}
        rows.append(row | {"cost_per_million_output_tokens": priced.cost(rate)})
    order = {policy: position for position, policy in enumerate(base)}
    rows.sort(key=lambda row: order[row["policy"]])
    return pd.DataFrame(rows)


def _growth(scenario: Scenario, sizing: Sizing, plans: pd.DataFrame) -> pd.DataFrame:
    """The fleet when traffic grows: the rate per replica does not change, the number of them does."""
    rows: list[dict[str, Any]] = []
    for each in plans[plans["feasible"]].to_dict(orient="records"):
        for growth in scenario.growth():
            fleet = sizing.fleet(each["rate_per_replica_per_s"], sizing.peak_per_s * (1 + growth))
            rows.append({"policy": each["policy"], "growth": growth, **fleet})
    return pd.DataFrame(rows)


def _switches(trials: Sequence[dict[str, Any]], policies: Sequence[str], recommended: str) -> pd.DataFrame:
    """Which policy to run at which rate per replica, among those that keep the SLA there.

    The recommended one, unless another serves users faster for sure and by ``SWITCH_LEAD``
    (``leads.ahead``); that one then keeps its band until it is overtaken in the same way. Speeds (mean TPS)
    are interpolated linearly between trials, replication by replication. margin: its smallest lead over the
    next policy in the band, negative where that one is ahead by less than a switch is worth; NaN where no
    other keeps the SLA.
    """
    top = max((t["rate_per_s"] for t in trials if t["met"]), default=0.0)
    rates = np.linspace(min(t["rate_per_s"] for t in trials), top, 400)
    speed = {policy: _speeds_at(rates, trials, policy) for policy in policies}
    bands: list[dict[str, Any]] = []
    for column, rate in enumerate(rates):
        here = {
            policy: values[column] for policy, values in speed.items() if not np.isnan(values[column]).all()
        }
        if not here:
            continue
        running = next((p for p in ([bands[-1]["policy"]] if bands else []) + [recommended] if p in here), "")
        policy = _to_run(here, running)
        others = [float(np.nanmean(values)) for name, values in here.items() if name != policy]
        margin = float(np.nanmean(here[policy])) / max(others) - 1 if others else math.nan
        if bands and bands[-1]["policy"] == policy:
            bands[-1]["to_per_s"] = float(rate)
            bands[-1]["margin"] = float(np.fmin(bands[-1]["margin"], margin))
        else:
            bands.append(
                {"from_per_s": float(rate), "to_per_s": float(rate), "policy": policy, "margin": margin}
            )
    return pd.DataFrame(bands, columns=["from_per_s", "to_per_s", "policy", "margin"])


def _to_run(speeds: Mapping[str, Floats], running: str) -> str:
    """The policy that runs, or the fastest of those that are ahead of it."""
    better = [name for name in speeds if not running or ahead(speeds[name], speeds[running])]
    return max(better, key=lambda name: float(np.nanmean(speeds[name])), default=running)


def _speeds_at(rates: Floats, trials: Sequence[dict[str, Any]], policy: str) -> Floats:
    """Mean speed of every replication at each rate, [rates, replications]; NaN above the last that held."""
    mine = [t for t in trials if t["policy"] == policy and t["met"]]
    if not mine:
        return np.full((rates.size, 1), np.nan)
    mine.sort(key=lambda t: float(t["rate_per_s"]))
    at, speeds = np.array([t["rate_per_s"] for t in mine]), np.array([t["seed_tps"] for t in mine])
    return np.stack(
        [np.interp(rates, at, column, left=column[0], right=np.nan) for column in speeds.T], axis=1
    )


def _day(
    demand: pd.DataFrame, sizing: Sizing, plans: pd.DataFrame, switches: pd.DataFrame, replicas: int
) -> pd.DataFrame:
    """Over the day: the rate on each replica of the planned fleet, the policy to run then, prefill GPUs, and
    each policy's decode replicas and GPUs of both kinds."""
    table = demand.assign(rate_per_replica_per_s=demand["rate_per_s"] / replicas)
    table["policy"] = [_policy_at(switches, rate) for rate in table["rate_per_replica_per_s"]]
    for each in plans[plans["feasible"]].to_dict(orient="records"):
        fleets = [sizing.fleet(each["rate_per_replica_per_s"], rate) for rate in demand["rate_per_s"]]
        table["prefill_gpus"] = [fleet["prefill_gpus"] for fleet in fleets]
        table[f"replicas {each['policy']}"] = [fleet["replicas"] for fleet in fleets]
        table[f"gpus {each['policy']}"] = [fleet["gpus"] for fleet in fleets]
    return table


def _policy_at(switches: pd.DataFrame, rate: float) -> str:
    bands = switches[switches["to_per_s"] >= rate]
    return str((bands if len(bands) else switches.tail(1))["policy"].iloc[0]) if len(switches) else ""


def _cost_against_sla(
    sizing: Sizing, sla: Sla, trials: Sequence[dict[str, Any]], policies: Sequence[str]
) -> pd.DataFrame:
    """Replicas and cost when the first term is tightened or relaxed, read off the trials made."""
    rows: list[dict[str, Any]] = []
    first = sla.terms[0]
    for bound in first.bound * np.linspace(0.5, 1.6, 45):
        varied = Sla((first.at(float(bound)), *sla.terms[1:]))
        for policy in policies:
            rate = interpolated_rate([t for t in trials if t["policy"] == policy], varied)
            row = {"term": first.key, "bound": float(bound), "policy": policy}
            row |= {"rate_per_replica_per_s": rate, **sizing.fleet(rate, None, varied.terms)}
            rows.append(row | {"cost_per_million_output_tokens": sizing.cost(rate, varied.terms)})
    return pd.DataFrame(rows)


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


def mix_of(traffic: Traffic, seed: int) -> tuple[TrafficClass, ...]:
    """The classes of a traffic with their lengths and shares; of a recording, those observed in it."""
    if isinstance(traffic, SyntheticTraffic):
        return traffic.classes
    sample = traffic.workload(seed)
    parts = [sample.class_index == index for index in range(len(sample.classes))]
    return tuple(
        TrafficClass(
            name,
            EmpiricalLengths(sample.prompt_tokens[mine], sample.output_tokens[mine]),
            float(mine.mean()),
        )
        for name, mine in zip(sample.classes, parts, strict=True)
        if mine.any()
    )


def _money(sizing: Sizing) -> dict[str, float]:
    """What the report needs to price a throughput exactly as ``Sizing.cost_at_throughput`` does."""
    fleet = sizing.fleet(1.0)
    return {
        "demanded_per_s": sizing.peak_per_s * (1 + sizing.headroom),
        "decoded_per_request": max(sizing.tokens_per_request - 1, 1.0),
        "gpus_per_replica": sizing.gpus,
        "prefill_gpus": fleet["prefill_gpus"],
        "gpu_hour": sizing.gpu_hour,
        "hours_per_million_output_tokens": sizing.hours / (sizing.output_tokens / 1e6),
    }


def frontier_loads(scenario: Scenario) -> list[int]:
    """Concurrent requests of the frontier: those of the search that a replica admits, and its limit."""
    most = scenario.replica.concurrency
    return sorted({load for load in scenario.search.concurrency if load < most} | {most})


def _confirm(
    scenario: Scenario, server: Server, replicas: int, sizing: Sizing, sweep: Sweeping
) -> tuple[FleetRun, dict[str, Any]]:
    """The recommended fleet at the peak behind its router, or a part of it with its share of the traffic
    and of the prefill pool, which these replicas then share."""
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
    judged = run.assessment
    per_request = any(term.per_request for term in server.sla.terms)
    return run, {
        "policy": server.policy,
        "replicas_simulated": count,
        "replicas_planned": replicas,
        "prefill_workers_simulated": prefill or 0,
        "router": scenario.fleet.router,
        "rate_per_s": rate,
        "requests": judged.requests,
        "attained": judged.met,
        "saturated": judged.saturated,
        "kept_share": judged.attainment if per_request else math.nan,
        "kept_share_ci95": judged.attainment_ci95 if per_request else math.nan,
        "prefix_hit_share": float(run.replicas["prefix_hit_share"].mean()),
        **{each.term.text: each.estimate for each in judged.terms},
    }


# --- what a reader must know --------------------------------------------------------------------------------


def _assumptions(
    scenario: Scenario, servers: Sequence[Server], traffic: Traffic, sizing: Sizing
) -> list[tuple[str, str]]:
    from simulator.profiles import load_profile

    profile, limits = load_profile(scenario.profile), scenario.limits()
    facts = [("Cost of a step", f"{profile.title}: {profile.provenance.line()}")]
    seen: dict[str, str] = {}
    for model in (plan.acceptance for server in servers for plan in server.plans):
        if model is not None:
            seen.setdefault(model.name, model.provenance.line())
    if not scenario.acceptance:  # the profile says more of its own models than their parts do
        own = {spec.build().name: spec.provenance.line() for spec in profile.acceptance.values()}
        seen |= {name: own[name] for name in seen if name in own}
    facts += [(f"Acceptance {name}", line) for name, line in seen.items()]
    if isinstance(traffic, ReplayTraffic) and traffic.report is not None:
        facts.append(("Traffic", traffic.report.summary()))
    else:
        facts.append(("Traffic", f"synthetic: {scenario.traffic.arrivals}"))
    for name, each in scenario.traffic.classes.items():
        facts.append((f"Lengths of class {name}", each.lengths))
    capacity = "not limited" if limits.kv_tokens is None else f"{limits.kv_tokens:,} tokens"
    facts += [
        ("Replica", f"{sizing.gpus} GPU, at most {limits.concurrency} requests, KV cache {capacity}"),
        ("Prefill", _prefill_line(scenario, sizing)),
        ("Peak demand", f"{sizing.peak_per_s:.4g} requests/s, headroom {sizing.headroom:.0%}"),
        ("Search", f"precision {scenario.search.precision}, {servers[0].requests:,} requests a trial, "
         f"seed {scenario.search.seed}"),
        ("Price", f"{sizing.gpu_hour:g} {scenario.price.currency} per GPU hour"),
    ]  # fmt: skip
    return facts


def _prefill_line(scenario: Scenario, sizing: Sizing) -> str:
    """Where prompts are prefilled, by how many workers of which speed, and who says so."""
    if sizing.pool is None:
        places = {"chunked": "in decode steps", "whole": "between decode steps"}
        return places.get(scenario.limits().prefill, "elsewhere, at no stated speed")
    pool, origin = sizing.pool, "the scenario" if scenario.replica.prefill_tokens_per_s else "the profile"
    workers = int(sizing.prefill_workers())
    busy = pool.utilisation(sizing.peak_per_s * (1 + sizing.headroom), workers)
    return (
        f"elsewhere: {workers:,} workers of {pool.gpus} GPU, {pool.tokens_per_s:,.0f} tokens/s each as "
        f"{origin} says; busy {busy:.0%} of the time at the peak with its headroom"
    )


def _warnings(
    scenario: Scenario,
    servers: Sequence[Server],
    traffic: Traffic,
    found: Sequence[dict[str, Any]],
    plans: pd.DataFrame,
    confirmed: FleetRun,
) -> list[str]:
    notes = [plan.note for server in servers for plan in server.plans if plan.note]
    warnings = list(dict.fromkeys(notes))
    judged = confirmed.assessment
    if not judged.met:
        why = "is saturated" if judged.saturated else f"misses {', '.join(t.text for t in judged.failing)}"
        warnings.insert(
            0, f"the recommended fleet {why} when it is simulated whole at the peak: add headroom"
        )
    for each in plans.to_dict(orient="records"):
        if not each["feasible"]:
            warnings.append(f"{each['policy']} cannot keep the SLA at any rate ({each['binding']})")
        elif each["steps_outside_fraction"] > 0:
            share = each["steps_outside_fraction"]
            warnings.append(
                f"{each['policy']}: {share:.1%} of the steps at its rate lie beyond the measured cost table, "
                "where times are extrapolated"
            )
    limits = scenario.limits()
    if limits.prefill == "elsewhere" and limits.prefill_tokens_per_s is None:
        warnings.insert(0, NO_SPEED)
    if isinstance(traffic, ReplayTraffic):
        if traffic.report is not None and (traffic.report.malformed or traffic.report.assumed):
            warnings.append(traffic.report.summary())
        warnings += replay_notes(traffic.recorded, servers[0].requests)
    quantiles = [t for t in servers[0].sla.terms if t.quantile is not None and t.metric != "itl"]
    tails = [
        t.text
        for t in quantiles
        if (1 - max(t.quantile or 0, 1 - (t.quantile or 0))) * servers[0].requests < 20
    ]
    if tails:
        warnings.append(f"{', '.join(tails)} rests on fewer than 20 requests a trial: raise search.requests")
    return warnings


def _without_nan(rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """JSON has no NaN: null stands for it."""
    return [
        {
            str(k): None if isinstance(v, float) and not math.isfinite(v) else _python(v)
            for k, v in row.items()
        }
        for row in rows
    ]


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
