"""What a plan checks before its first simulation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from simulator.capacity.results import RateSearch
from simulator.capacity.search import Search
from simulator.capacity.server import Server, share_at_rate
from simulator.core.errors import BadInputError, InfeasibleError, naming
from simulator.core.units import parse_percent
from simulator.fleet.layout import Fleet
from simulator.planning.scenario.reading import load_scenario
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.planning.variants import servers_of
from simulator.sla.terms import Sla
from simulator.traffic.sources import Traffic, longest_in

CONFIRMED_REPLICAS = 16
"""Largest fleet simulated to confirm a plan; a larger one is confirmed by a part of it with its share."""


def checked_scenario(path: Path) -> Scenario:
    """Read a scenario and check it as a plan does before its first simulation; errors name the file."""
    scenario = load_scenario(path)
    with naming(str(path)):
        check_inputs(scenario, scenario.demand(path.parent), scenario.parsed_sla())
    return scenario


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
    servers = servers_of(scenario, traffic, sla)
    Search(servers[0], parse_percent(scenario.search.precision, "search.precision"))
    # The confirmation draws the most requests of all, and draws them anew.
    sample = share_at_rate(traffic, 1.0, servers[0].requests * CONFIRMED_REPLICAS, scenario.search.seed + 1)
    if scenario.fleet.prefix_cache_tokens is not None and sample.prefix is None:
        raise BadInputError(
            "the traffic does not say which prefixes are common", source="scenario",
            field="fleet.prefix_cache_tokens", value=scenario.fleet.prefix_cache_tokens,
            remedy="replay a file with hash_ids, or leave it out",
        )  # fmt: skip
    blocks = (plan.acceptance.gamma for each in servers for plan in each.plans if plan.acceptance)
    _check_fits(scenario, traffic, limits.kv_tokens, max(blocks, default=0))


def _check_loads(scenario: Scenario) -> None:
    loads = scenario.search.concurrency
    for load in loads:
        if load < 1 or loads.count(load) > 1:
            problem = "must be at least 1" if load < 1 else "names a load twice"
            raise BadInputError(problem, source="scenario", field="search.concurrency", value=load)


def _check_fits(scenario: Scenario, traffic: Traffic, kv_tokens: int | None, gamma: int) -> None:
    """Every request needs its prompt, its output and one block at once, within one group."""
    prompt, output = longest_in(traffic)
    need, groups = prompt + output + gamma, scenario.attention_groups()
    if kv_tokens is None or need <= kv_tokens // groups:
        return
    more, on = f"raise it to {need * groups}", scenario.hardware
    if on is not None and scenario.replica.kv_tokens is None and scenario.replica.kv_memory is None:
        more = f"give a replica more GPUs (hardware.tp, or another GPU than {on.gpu})"
        if on.tp is None:
            with suppress(InfeasibleError):
                more = f"write hardware.tp: {on.layout(need).tp}"
    raise BadInputError(
        f"a request of {prompt} prompt and {output} output tokens could never run"
        + (f" in one of {groups} groups" if groups > 1 else ""),
        source="scenario", field="replica.kv_tokens", value=kv_tokens,
        remedy=f"{more} or cap the lengths with max=",
    )  # fmt: skip


def refuse_extrapolated(scenario: Scenario, servers: Sequence[Server], found: Sequence[RateSearch]) -> None:
    """Refuse a plan whose policy, at the rate found, chose rows far beyond those measured."""
    for server, search in zip(servers, found, strict=True):
        if search.at_rate is not None:
            setup, requests = server.plans[0], server.limits.concurrency
            scenario.deployment().judge_rows(setup, search.at_rate.rows_mean, requests)


def check_fleet_size(scenario: Scenario, sizing: Sizing, found: Sequence[RateSearch]) -> None:
    """``InfeasibleError`` where every policy needs more replicas than the scenario allows."""
    fewest, policy, rate = min(
        (sizing.replicas(each.rate_per_s), each.policy, each.rate_per_s) for each in found if each.feasible
    )
    allowed = scenario.fleet.max_replicas
    if fewest > allowed:
        peak_per_s = allowed * rate / (1 + sizing.headroom)
        raise InfeasibleError(
            f"every policy needs more than the {allowed:,} replicas allowed; the fewest is {fewest:,} "
            f"({policy}). The nearest feasible: fleet.max_replicas: {fewest}, or a peak of "
            f"{peak_per_s:.4g} requests/s instead of {sizing.peak_per_s:.4g}",
            binds=[f"fleet.max_replicas: {allowed}"],
            changes=[
                f"fleet.max_replicas: {fewest} instead of {allowed} ({policy})",
                f"a peak of {peak_per_s:.4g} requests/s instead of {sizing.peak_per_s:.4g} ({policy})",
            ],
        )
