"""DSpark simulator: what confidence-scheduled speculative decoding is worth, before you deploy it.

The public API in one place; names load on first use, so that importing the package is instant::

    import simulator as sim

    profile = sim.load_profile("deepseek-v4-flash")
    deployment = sim.Deployment(profile, profile.acceptance_models())
    table = sim.sweep_frontier(deployment, [sim.parse_policy("dspark-async")], [10, 100])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.acceptance import (
        AcceptanceModel,
        AcceptanceTrace,
        Replay,
        load_trace,
        parse_acceptance,
    )
    from simulator.comparison import at_slas, load_bands
    from simulator.cost import AdditiveCost, CostModel, DraftCost, StepCost, ThroughputCurve
    from simulator.deployment import Deployment, parse_acceptances
    from simulator.errors import BadInputError, InfeasibleError, SimulatorError
    from simulator.frontier import sweep_frontier
    from simulator.lengths import parse_lengths
    from simulator.plots import plot_frontier, plot_load
    from simulator.profiles import Profile, load_profile, shipped_profiles
    from simulator.schedulers import Batch, Policy, Scheduler, parse_policy
    from simulator.serving import EngineLimits
    from simulator.simulation import Run, simulate
    from simulator.traffic import parse_traffic
    from simulator.traffic_files import read_workload
    from simulator.workload import Workload

_HOMES = {
    "acceptance": ("AcceptanceModel", "AcceptanceTrace", "Replay", "load_trace", "parse_acceptance"),
    "comparison": ("at_slas", "load_bands"),
    "cost": ("AdditiveCost", "CostModel", "DraftCost", "StepCost", "ThroughputCurve"),
    "deployment": ("Deployment", "parse_acceptances"),
    "errors": ("BadInputError", "InfeasibleError", "SimulatorError"),
    "frontier": ("sweep_frontier",),
    "lengths": ("parse_lengths",),
    "plots": ("plot_frontier", "plot_load"),
    "profiles": ("Profile", "load_profile", "shipped_profiles"),
    "schedulers": ("Batch", "Policy", "Scheduler", "parse_policy"),
    "serving": ("EngineLimits",),
    "simulation": ("Run", "simulate"),
    "traffic": ("parse_traffic",),
    "traffic_files": ("read_workload",),
    "workload": ("Workload",),
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
