"""What if the inputs are wrong by a tenth: better or worse drafts, slower or faster steps."""

from __future__ import annotations

from dataclasses import replace

from simulator.acceptance.scaled import scaled_acceptance
from simulator.capacity.server import Server, share_at_rate
from simulator.cost.scaled import ScaledCost
from simulator.deployment.setup import Setup
from simulator.planning.scenario import Scenario
from simulator.sla.terms import Sla
from simulator.traffic.sources import Traffic


def with_acceptance(plan: Setup, factor: float) -> Setup:
    """Return the policy with ``factor`` times as many draft tokens accepted; its scheduler knows."""
    if plan.acceptance is None or factor == 1:
        return plan
    return replace(plan, acceptance=scaled_acceptance(plan.acceptance, factor))


def with_cost(plan: Setup, factor: float) -> Setup:
    """Return the policy with every step taking ``factor`` times as long; its scheduler knows."""
    if factor == 1:
        return plan
    return replace(plan, cost=ScaledCost(plan.cost, factor), believed=ScaledCost(plan.believed, factor))


REQUESTS_PER_SLOT = 10
"""Least requests of a trial per request that may run at once. By Little's law a replica that is full turns
its requests over ten times then, twice of them within warm-up: the system is seen full, not filling."""


def servers_of(scenario: Scenario, traffic: Traffic, sla: Sla) -> list[Server]:
    """Return a server per policy, as the scenario asks for them."""
    # The prefill pool is sized by itself: here every prompt takes its time, and none waits for a worker.
    limits, seed = replace(scenario.limits(), prefill_workers=None), scenario.search.seed
    requests = max(scenario.search.requests, REQUESTS_PER_SLOT * limits.concurrency)
    classes = share_at_rate(traffic, 1.0, requests, seed).classes
    sla.check_classes(classes)
    deployments = scenario.class_deployments(classes)
    return [
        Server(
            tuple(each.answerable(each.plan(policy), limits.concurrency) for each in deployments),
            limits, sla, traffic,
            requests, seed, scenario.fleet.prefix_cache_tokens,
        )
        for policy in scenario.parsed_policies()
    ]  # fmt: skip
