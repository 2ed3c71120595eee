"""DSpark simulator: what confidence-scheduled speculative decoding is worth, before you deploy it.

The public API in one place; names load on first use, so that importing the package is instant::

    import simulator as sim

    flash = sim.deployment("deepseek-v4-flash")
    run = flash.simulate("dspark-async", traffic="poisson:12/s", concurrency=64)
    line = flash.frontier(["mtp1", "dspark-async"], concurrency=[10, 50, 200])
    line.at_sla(80)
    sim.plan("scenario.yaml").report("out/")
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

_HOMES = {
    "acceptance.trace": ("AcceptanceModel", "AcceptanceTrace", "Replay"),
    "acceptance.trace_file": ("load_trace", "save_trace"),
    "api.frontier": ("Frontier",),
    "api.planning": ("Plan", "plan"),
    "api.replaying": ("replay",),
    "api.texts": ("acceptance", "hardware", "lengths", "policy", "sla", "traffic"),
    "api.workbench": ("Workbench", "deployment"),
    "cli.listing": ("show",),
    "core.errors": ("BadInputError", "InfeasibleError", "SimulatorError"),
    "cost.draft": ("DraftCost",),
    "cost.models": ("AdditiveCost", "CostModel", "StepCost", "ThroughputCurve"),
    "deployment.deployment": ("Deployment",),
    "deployment.profile": ("Profile", "load_profile", "shipped_profiles"),
    "engine.limits": ("EngineLimits",),
    "engine.run": ("Run", "simulate"),
    "report.frontier": ("plot_frontier", "plot_load"),
    "schedulers.parse": ("NamedPolicy", "register_policy"),
    "schedulers.protocol": ("Batch", "Policy", "Scheduler"),
    "sweeps.bands": ("load_bands",),
    "sweeps.comparison": ("at_slas",),
    "sweeps.frontier": ("sweep_frontier",),
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
    "Frontier",
    "InfeasibleError",
    "NamedPolicy",
    "Plan",
    "Policy",
    "Profile",
    "Replay",
    "Run",
    "Scheduler",
    "SimulatorError",
    "StepCost",
    "ThroughputCurve",
    "Workbench",
    "Workload",
    "__version__",
    "acceptance",
    "at_slas",
    "deployment",
    "hardware",
    "interop",
    "lengths",
    "load_bands",
    "load_profile",
    "load_trace",
    "plan",
    "plot_frontier",
    "plot_load",
    "policy",
    "read_workload",
    "register_policy",
    "replay",
    "save_trace",
    "shipped_profiles",
    "show",
    "simulate",
    "sla",
    "sweep_frontier",
    "traffic",
]


class CallablePackage(ModuleType):
    """A package that is also the function of its name: ``sim.traffic("poisson:12/s")``.

    ``acceptance``, ``deployment``, ``hardware``, ``sla`` and ``traffic`` are packages, and Python puts a
    package that was imported in the place of a function of the same name. Their ``__init__`` makes them
    callable.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function of this name."""
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"simulator.{_HOME[name]}"), name)(*arguments, **options)


def __getattr__(name: str) -> Any:
    if name == "interop":
        return import_module(f"{__name__}.interop")
    if name == "__version__":
        from importlib.metadata import version

        return version("dspark-simulator")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
