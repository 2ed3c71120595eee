"""Measured gains of drafters that nothing here was fitted to, beside what curves of kernels predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.core.files import data_directory
from simulator.core.reading import read_json
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import Profile
from simulator.hardware.choose import Hardware, profile_for
from simulator.hardware.engines import BLOCKING_STEP_S, HOSTS, kind_of
from simulator.hardware.models import load_model
from simulator.sweeps.frontier import sweep_frontier

if TYPE_CHECKING:
    import pandas as pd


class HeldOut(NamedTuple):
    """One measured gain: where, of which drafter, and throughput with it over that without."""

    where: str
    drafter: str
    requests: int
    drafts: int
    accepted_length: float
    measured: float
    predicted: float


def held_out_gains(seeds: int = 3) -> pd.DataFrame:
    """Return every gain of ``profiles/sources/held-out-speculation.json`` beside its prediction.

    Columns are those of ``HeldOut``, and error: predicted over measured, less 1.
    """
    import pandas as pd  # slow to import

    table = pd.DataFrame(_predicted(seeds), columns=HeldOut._fields)
    return table.assign(error=table["predicted"] / table["measured"] - 1)


def _predicted(seeds: int) -> Iterator[HeldOut]:
    content: Any = read_json(data_directory("profiles") / "sources" / "held-out-speculation.json")
    for each in content["sets"]:
        hardware = each["hardware"]
        where = f"{hardware['model']}, {hardware['tp']} x {hardware['gpu']}, {hardware['engine']}"
        for row in each["rows"]:
            run = (row["requests"], row["drafts"], row["accepted_length"])
            yield HeldOut(where, row["drafter"], *run, row["speedup"], _gain(hardware, *run, seeds))


def _gain(hardware: Mapping[str, Any], requests: int, drafts: int, accepted: float, seeds: int) -> float:
    """Return throughput with an EAGLE drafter of one layer over that without."""
    profile = _composed(tuple(hardware.items()), drafts)
    deployment = deploy(profile, [f"eagle3=length:{accepted}@{drafts}"])
    table = sweep_frontier(deployment, ["autoregressive", f"fixed:{drafts}@eagle3"], requests, seeds=seeds)
    plain, drafted = table["throughput_tok_per_s"]
    return float(drafted / plain)


@lru_cache(maxsize=16)
def _composed(hardware: tuple[tuple[str, Any], ...], drafts: int) -> Profile:
    """Return the curve with so many draft passes: drafters that differ in acceptance alone share it.

    The host's time of a pass of vLLM's drafter is left out: ``hardware.engines`` has it from these very
    gains, which were measured in July 2025, before 0.14.
    """
    named = dict(hardware)
    kind = kind_of(load_model(named["model"]), named["precision"])
    host = HOSTS[named["engine"]][kind]
    step_s, pass_s = (BLOCKING_STEP_S, 0.0) if named["engine"] == "vllm" else (host.step_s, host.pass_s)
    host_time = f"{1e3 * step_s:g}ms,{1e3 * pass_s:g}ms"
    return profile_for(Hardware(**named, drafters=(f"eagle3@{drafts}",), host_time=host_time)).profile
