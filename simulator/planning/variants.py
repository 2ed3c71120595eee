"""What if the inputs are wrong: better or worse drafts, slower or faster steps, harder requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from simulator.acceptance.fitted import FittedModel
from simulator.acceptance.scaled import Levels, fitted_in, scaled_acceptance, scaled_level, with_difficulty
from simulator.capacity.server import Server, share_at_rate
from simulator.cost.scaled import ScaledCost
from simulator.deployment.setup import Setup
from simulator.planning.scenario.scenario import Scenario
from simulator.sla.terms import Sla
from simulator.traffic.sources import ReplayTraffic, Traffic


def with_acceptance(plan: Setup, factor: float, levels: Levels) -> Setup:
    """Return the policy with ``factor`` times as many draft tokens accepted; its scheduler knows.

    levels: those that are solved already.
    """
    if plan.acceptance is None or factor == 1:
        return plan
    return replace(plan, acceptance=scaled_acceptance(plan.acceptance, factor, levels))


def levels_to_solve(servers: Sequence[Server]) -> list[tuple[FittedModel, float]]:
    """Return each fitted model of any policy, once, with every factor that ``variants_of`` puts on it."""
    models = (model for server in servers for plan in server.plans for model in fitted_in(plan.acceptance))
    return [(model, factor) for model in dict.fromkeys(models) for factor in (1 - OFF, 1 + OFF)]


def solve_level_row(asked: tuple[FittedModel, float]) -> dict[str, float]:
    """Run ``scaled_level`` as a cell of a sweep."""
    return {"level": scaled_level(*asked)}


def with_cost(plan: Setup, factor: float) -> Setup:
    """Return the policy with every step taking ``factor`` times as long; its scheduler knows."""
    if factor == 1:
        return plan
    return replace(plan, cost=ScaledCost(plan.cost, factor), believed=ScaledCost(plan.believed, factor))


OFF = 0.1
"""Share by which inputs are off in the sensitivity analysis where nobody knows better. A choice."""

DIFFICULTY = (0.0, 0.6)
"""Parts of difficulty that last a whole request, around the 0.3 that fitted models assume: a choice."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which inputs may be wrong.

    acceptance: factor on accepted draft tokens. step_time: factor on every step. difficulty: part of it that
    lasts a whole request (``acceptance.scaled.with_difficulty``), None as the model assumes.
    """

    acceptance: float = 1.0
    step_time: float = 1.0
    difficulty: float | None = None

    def applied(self, server: Server, levels: Levels = MappingProxyType({})) -> Server | None:
        """Return the server as it would be, or None where this cannot be wrong; levels: solved already."""
        plans = server.plans
        if self.difficulty is not None:
            plans = tuple(with_difficulty_of(plan, self.difficulty) for plan in plans)
            if plans == server.plans:
                return None
        plans = tuple(
            with_cost(with_acceptance(plan, self.acceptance, levels), self.step_time) for plan in plans
        )
        return replace(server, plans=plans)


def variants_of(step_time_band: float | None) -> dict[str, Variant]:
    """Return what the sensitivity analysis changes, by name.

    step_time_band: by which share step times may be off, as the profile knows it.
    """
    steps = OFF if step_time_band is None else step_time_band
    return {
        f"acceptance -{OFF:.0%}": Variant(acceptance=1 - OFF),
        f"acceptance +{OFF:.0%}": Variant(acceptance=1 + OFF),
        f"step time -{steps:.0%}": Variant(step_time=1 - steps),
        f"step time +{steps:.0%}": Variant(step_time=1 + steps),
        **{f"difficulty by request {share:g}": Variant(difficulty=share) for share in DIFFICULTY},
    }


def with_difficulty_of(plan: Setup, request_share: float) -> Setup:
    """Return the policy on text whose difficulty lasts a whole request to that part."""
    changed = None if plan.acceptance is None else with_difficulty(plan.acceptance, request_share)
    return plan if changed is None else replace(plan, acceptance=changed)


REQUESTS_PER_SLOT = 10
"""Least requests of a trial per request that may run at once. By Little's law a replica that is full turns
its requests over ten times then, twice of them within warm-up: the system is seen full, not filling."""


def servers_of(scenario: Scenario, traffic: Traffic, sla: Sla) -> list[Server]:
    """Return a server per policy, as the scenario asks for them."""
    # The prefill pool is sized by itself: here every prompt takes its time, and none waits for a worker.
    limits, seed = replace(scenario.limits(), prefill_workers=None), scenario.search.seed
    requests = max(scenario.search.requests, REQUESTS_PER_SLOT * limits.concurrency)
    if isinstance(traffic, ReplayTraffic) and scenario.fleet.prefix_cache_tokens is None:
        traffic = traffic.without_prefix()  # nobody looks at a prefix, and every cell holds the traffic
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


def study_of(scenario: Scenario, server: Server) -> tuple[object, ...]:
    """Return what all cells of a plan have in common, so that its directory may take more of them.

    Policies, precision and numbers of requests are left out: these may be added. All else is another study.
    """
    acceptance = {name: each.acceptance for name, each in scenario.traffic.classes.items()}
    return (
        scenario.deployment(), acceptance, server.limits, server.sla, server.traffic, server.seed,
        server.prefix_cache_tokens,
    )  # fmt: skip
