"""A whole measurement: cells, fit, profile, and how much of the device its steps use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from simulator.core.files import slug
from simulator.core.interruption import noting
from simulator.live.device import Tell
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling import device_ceilings, profile_fit
from simulator.live.profiling.cells import CellLog
from simulator.live.profiling.device_ceilings import Ceilings
from simulator.live.profiling.grid import ProfileOptions
from simulator.live.profiling.profile_fit import Profiled
from simulator.live.profiling.profiler import Profiler


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A profile as it was measured and written.

    path: of the profile; its cells lie beside it. achieved: bandwidth and matmul rate of the smallest and the
    largest step, a row each (``profile_fit.efficiency``).
    """

    profiled: Profiled
    path: Path
    ceilings: Ceilings
    achieved: pd.DataFrame


def measure_profile(
    target: Target, drafters: dict[str, Draft], options: ProfileOptions, out: Path, tell: Tell
) -> Measured:
    """Measure what a target and its drafters cost and write ``out/<device>/<target>--<drafts>.json``.

    Cells that were measured before, with the same settings, are not measured again.
    """
    settings = profile_fit.settings_of(target, drafters, options)
    name = profile_fit.file_name(target, drafters, options)
    folder = out / slug(settings["device"])
    log = CellLog(folder / f"{name}.cells.jsonl", settings)
    if log.resumed:
        tell(f"continuing: {log.resumed} cells are measured already")
    with noting(lambda: f"{len(log.cells)} measured cells are kept in {log.path}: the same command resumes"):
        profiler = Profiler(target, drafters, log, options, tell)
        drift = profiler.run()
    profiled = profile_fit.profile_from(log, target, drafters, options, drift, profiler.counted)
    path = folder / f"{name}.json"
    profiled.profile.save(path)
    ceilings = device_ceilings.measure_ceilings(target.device, target.dtype)
    achieved = profile_fit.efficiency(log, target, ceilings.bytes_per_s, ceilings.flop_per_s)
    return Measured(profiled, path, ceilings, achieved)
