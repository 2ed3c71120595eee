"""DSpark simulator: what confidence-scheduled speculative decoding is worth, before you deploy it.

The public API in one place; names load on first use, so that importing the package is instant::

    import simulator as sim

    profile = sim.load_profile("deepseek-v4-flash")
    deployment = sim.Deployment(profile, profile.acceptance_models())
    table = sim.sweep_frontier(deployment, [sim.parse_policy("dspark-async")], [10, 100])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "acceptance.trace": (
        "AcceptanceModel",
        "AcceptanceTrace",
        "Replay",
    ),
    "acceptance.trace_file": ("load_trace",),
    "core.errors": (
        "BadInputError",
        "InfeasibleError",
        "SimulatorError",
    ),
    "cost.draft": ("DraftCost",),
    "cost.models": (
        "AdditiveCost",
        "CostModel",
        "StepCost",
        "ThroughputCurve",
    ),
    "deployment.acceptance_text": (
        "parse_acceptance",
        "parse_acceptances",
    ),
    "deployment.deployment": ("Deployment",),
    "deployment.profile": (
        "Profile",
        "load_profile",
        "shipped_profiles",
    ),
    "engine.limits": ("EngineLimits",),
    "engine.run": (
        "Run",
        "simulate",
    ),
    "report.frontier": (
        "plot_frontier",
        "plot_load",
    ),
    "schedulers.parse": (
        "Policy",
        "parse_policy",
    ),
    "schedulers.protocol": (
        "Batch",
        "Scheduler",
    ),
    "sweeps.bands": ("load_bands",),
    "sweeps.comparison": ("at_slas",),
    "sweeps.frontier": ("sweep_frontier",),
    "traffic.lengths": ("parse_lengths",),
    "traffic.parse": ("parse_traffic",),
    "traffic.recorded.files": ("read_workload",),
    "traffic.workload": ("Workload",),
}

_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AcceptanceModel",
    "AcceptanceTrace",
    "AdditiveCost",
    "BadInputError",
    "Batch",
    "CostModel",
    "Deployment",
    "DraftCost",
    "EngineLimits",
    "InfeasibleError",
    "Policy",
    "Profile",
    "Replay",
    "Run",
    "Scheduler",
    "SimulatorError",
    "StepCost",
    "ThroughputCurve",
    "Workload",
    "at_slas",
    "load_bands",
    "load_profile",
    "load_trace",
    "parse_acceptance",
    "parse_acceptances",
    "parse_lengths",
    "parse_policy",
    "parse_traffic",
    "plot_frontier",
    "plot_load",
    "read_workload",
    "shipped_profiles",
    "simulate",
    "sweep_frontier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
