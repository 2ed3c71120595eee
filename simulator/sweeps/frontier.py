"""Sweeps over policies, concurrency and seeds: the throughput-latency frontier as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError, refuse_repeats
from simulator.core.statistics import mean_interval
from simulator.deployment.deployment import Deployment
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits, check_every_request_fits
from simulator.engine.run import enough_requests, require_steps, simulate
from simulator.parallel.backends import Backend
from simulator.parallel.cells import run_cells
from simulator.schedulers.parse import NamedPolicy, as_policy
from simulator.schedulers.protocol import Scheduler
from simulator.sweeps.comparison import Bound
from simulator.sweeps.refine import loads_to_add
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import Lengths, as_lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from simulator.traffic.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

MEASURED = (
    "throughput_tok_per_s", "tps_mean", "tps_p10", "tps_p50", "verification_budget_mean",
    "accepted_length_mean", "acceptance_rate", "batch_tokens_mean", "step_time_mean_s", "wasted_fraction",
    "itl_p50_s", "itl_p99_s", "tpot_p50_s", "tpot_p99_s", "steps_outside_fraction",
    "early_stop_loss",
)  # fmt: skip
"""Columns of a frontier that are means over seeds."""

REQUEST_STEPS = 60_000
"""Request-steps a cell simulates at least unless told otherwise: equal precision at every concurrency, and
an accepted length of spread 1.6 known to well under a percent over three seeds."""

GUESSES, MOST_TURNS = 3, 30
"""Times that loads are added where answers are interpolated, and in all: after the guesses, which do for a
smooth curve, ranges are halved, the baseline's first and then those that depend on it."""

MOST_SEEDS = 100_000
"""Most replications of a sweep. A choice, far above the need of any answer."""

FEW_TURNOVERS = 3.0
"""Finished requests per slot below which quantiles of speed are those of short outputs. A choice."""


@dataclass(frozen=True, slots=True)
class FrontierRun:
    """One policy at one concurrency with one seed: a cell of a sweep.

    steps: engine steps. None runs the steps of ``steps_for``, and continues until every slot has finished
    some requests (``engine.run.enough_requests``).
    """

    plan: Setup
    limits: EngineLimits
    lengths: Lengths
    steps: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class MixCell:
    """A policy with several classes of requests at one concurrency.

    plans: one per class, of one policy.
    """

    plans: tuple[Setup, ...]
    limits: EngineLimits
    classes: tuple[TrafficClass, ...]
    steps: int | None
    seed: int


def sweep_frontier(
    deployment: Deployment,
    policies: Sequence[str | NamedPolicy | Scheduler] | str,
    concurrency: Sequence[int] | int,
    *,
    seeds: int = 3,
    lengths: Lengths | str | None = None,
    steps: int | None = None,
    workers: int = 1,
    slas: Sequence[Bound] = (),
    progress: bool = False,
    backend: Backend = "loky",
    address: str | None = None,
    directory: Path | None = None,
) -> pd.DataFrame:
    """Run every policy at every concurrency in a closed loop, with prefill elsewhere.

    Policies meet common random numbers: the same seeds give the same requests and drafts.

    Parameters
    ----------
    deployment
        What is simulated.
    policies
        One or several, as texts or objects.
    concurrency
        Loads: requests that run at once.
    seeds
        Runs of each cell.
    lengths
        Prompt and output tokens, as in ``"fixed:1024/256"``.
    steps
        Engine steps of a run; by default they follow from ``REQUEST_STEPS`` and from how long requests live.
    slas
        Speed SLAs around whose answers loads are added to those given, policy by policy, until the answers
        depend on the given ones no more; ``added`` marks their rows.
    workers, progress, backend, address, directory
        How the cells run and where they are kept; see ``parallel.cells.run_cells``.

    Returns
    -------
    DataFrame
        A row per policy and load. Means are over seeds. throughput_ci95: half-width over seeds, or the run's
        own for a single one. tps_p10_ci95: over seeds alone. finished_per_slot: requests finished in the
        measured window of a run per slot, the fewest over seeds; below ``FEW_TURNOVERS`` the quantiles of
        speed are those of short outputs. early_stop_loss: see ``schedulers.early_stop``, 0 for policies that
        do not stop early. replica_gpus: GPUs that throughput and concurrency are of; NaN where the profile
        does not say.

    Raises
    ------
    BadInputError
        If a policy or a load is given twice (it would count as new data), or every load of a policy lies far
        beyond the rows measured (``Setup.extrapolates``). Where only some do, those above the last answerable
        one are left out with a warning.
    """
    import pandas as pd

    named = [as_policy(each) for each in ([policies] if isinstance(policies, str) else policies)]
    concurrency = [concurrency] if isinstance(concurrency, int) else concurrency
    refuse_repeats((policy.name for policy in named), "policies")
    _check(concurrency, seeds, steps)
    plans = [deployment.plan(policy) for policy in named]
    given = _answerable(deployment, plans, concurrency)
    drawn = as_lengths(lengths)
    by_name = {plan.policy.name: plan for plan in plans}

    def simulated(wanted: Sequence[tuple[str, int]], label: str, place: Path | None) -> pd.DataFrame:
        cells = [
            FrontierRun(by_name[policy], deployment.limits(load), drawn, steps, seed)
            for seed in range(seeds)  # outermost, so that workers use one realised trace after the other
            for policy, load in wanted
        ]
        check_requests_fit(cells)
        rows = run_cells(
            run_cell, cells, workers=workers, progress=progress, label=label,
            backend=backend, address=address, directory=place, study=(deployment, drawn),
        )  # fmt: skip
        return pd.DataFrame(rows)

    rows = simulated(given, "Frontier", directory)
    table = _over_seeds(rows, list(by_name), seeds)
    for turn in range(MOST_TURNS if slas else 0):
        wanted = loads_to_add(table, slas, halve=turn >= GUESSES)
        if not wanted:
            break
        place = None if directory is None else directory / f"added-{turn + 1}"
        rows = pd.concat([rows, simulated(wanted, "Around the SLA", place)])
        table = _over_seeds(rows, list(by_name), seeds)
    table = _measured(deployment, by_name, table)
    table["added"] = [(row.policy, row.concurrency) not in set(given) for row in table.itertuples()]
    gpus = deployment.profile.replica_gpus
    table["replica_gpus"] = math.nan if gpus is None else gpus
    return table


def _answerable(
    deployment: Deployment, plans: Sequence[Setup], concurrency: Sequence[int]
) -> list[tuple[str, int]]:
    """Pair policies with loads. Unanswerable loads give a warning; a policy with no others is refused."""
    pairs = []
    for plan in plans:
        whys = {load: plan.extrapolates(load) for load in concurrency}
        pairs += [(plan.policy.name, load) for load in _kept(deployment, whys)]
    return pairs


def _measured(deployment: Deployment, by_name: Mapping[str, Setup], table: pd.DataFrame) -> pd.DataFrame:
    """Leave out loads at which a policy chose rows far beyond the measured ones, as ``_answerable`` does."""
    kept = set()
    for name, plan in by_name.items():
        mine = table[table["policy"] == name]
        rows = zip(mine["concurrency"].tolist(), mine["batch_tokens_mean"].tolist(), strict=True)
        whys = {load: plan.extrapolated(tokens, load) for load, tokens in rows}
        kept |= {(name, load) for load in _kept(deployment, whys)}
    of = zip(table["policy"], table["concurrency"], strict=True)
    return table[[pair in kept for pair in of]].reset_index(drop=True)


def _kept(deployment: Deployment, whys: Mapping[int, BadInputError | None]) -> list[int]:
    """Return the loads below the first refused one: answers never interpolate over a gap."""
    refused = [load for load, why in whys.items() if why is not None and not deployment.extrapolate_rows]
    end = min(refused, default=math.inf)
    kept = [load for load in whys if load < end]
    if refused and (why := whys[min(refused)]) is not None:
        if not kept:
            raise why
        warn(f"loads above {max(kept)} are left out: {why}", UserWarning, stacklevel=4)
    return kept


def steps_for(concurrency: int) -> int:
    """Return the least engine steps for ``REQUEST_STEPS`` at this concurrency, within 400 to 3,000."""
    return int(np.clip(REQUEST_STEPS // concurrency, 400, 3000))


def check_requests_fit(cells: Sequence[FrontierRun]) -> None:
    """Refuse before the first cell runs what a cell would refuse: a request beyond the KV cache.

    The requests of a load are the first of those of a higher one, so that one draw of each seed tells.
    """
    most: dict[int, FrontierRun] = {}
    for cell in cells:
        if cell.seed not in most or cell.limits.concurrency > most[cell.seed].limits.concurrency:
            most[cell.seed] = cell
    gamma = max((cell.plan.acceptance.gamma for cell in cells if cell.plan.acceptance), default=0)
    for seed, cell in most.items():
        if cell.limits.kv_tokens is not None:
            drawn = _requests((TrafficClass("default", cell.lengths),), seed, cell.limits.concurrency)
            check_every_request_fits(drawn, cell.limits, gamma)


def _requests(classes: tuple[TrafficClass, ...], seed: int, concurrency: int) -> Workload:
    """Draw far more requests than slots, so that repeating them shows no pattern."""
    count = max(2048, 8 * concurrency)
    return SyntheticTraffic(ClosedLoop(), classes).workload(seed, requests=count)


def run_cell(cell: FrontierRun) -> dict[str, object]:
    """Simulate one cell; the row names its policy, concurrency and seed."""
    classes = (TrafficClass("default", cell.lengths),)
    return run_mix(MixCell((cell.plan,), cell.limits, classes, cell.steps, cell.seed))


def run_mix(cell: MixCell) -> dict[str, object]:
    """Simulate a mix of classes in a closed loop; the row is that of ``run_cell``."""
    load = cell.limits.concurrency
    plan = cell.plans[0]
    run = simulate(
        _requests(cell.classes, cell.seed, load),
        [each.replay(cell.seed) for each in cell.plans],
        plan.scheduler,
        plan.cost,
        cell.limits,
        believed=plan.believed,
        seed=cell.seed,
        steps=cell.steps or steps_for(load),
        finish=enough_requests(load) if cell.steps is None else 0,
    )
    key = {"policy": plan.policy.name, "concurrency": load, "seed": cell.seed, "drafter": plan.drafter}
    return key | run.metrics.as_row() | {"early_stop_loss": run.early_stop_loss or 0.0}


def _over_seeds(rows: pd.DataFrame, policies: Sequence[str], seeds: int) -> pd.DataFrame:
    table = []
    columns = {str(name): column.to_numpy() for name, column in rows.items()}  # frames would take longer
    cells: Mapping[Any, Any] = rows.groupby(["policy", "concurrency"], sort=False).indices
    for (policy, load), places in cells.items():
        group = {name: column[places] for name, column in columns.items()}
        _, half = mean_interval(group["throughput_tok_per_s"])
        row = {"policy": policy, "concurrency": load, "drafter": group["drafter"][0]}
        row |= {name: _known_mean(group[name]) for name in MEASURED}
        row |= {
            "throughput_ci95": half if seeds > 1 else float(group["throughput_ci95"][0]),
            "tps_p10_ci95": mean_interval(group["tps_p10"])[1],
            "finished_per_slot": float((group["requests_finished"] / group["concurrency"]).min()),
            "seeds": seeds,
            "steps": int(group["steps"].sum()),
        }
        table.append(row)
    first = ["policy", "concurrency", "throughput_tok_per_s", "throughput_ci95"]
    import pandas as pd

    frame = pd.DataFrame(table)
    frame = frame[first + [name for name in frame.columns if name not in first]]
    rank = {policy: position for position, policy in enumerate(policies)}
    return frame.sort_values(
        ["policy", "concurrency"],
        key=lambda column: column.map(rank) if column.name == "policy" else column,
        ignore_index=True,
    )


def _known_mean(values: NDArray[Any]) -> float:
    """Return the mean of the values that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _check(concurrency: Sequence[int], seeds: int, steps: int | None) -> None:
    if not concurrency:
        raise BadInputError("names no load", field="concurrency", remedy="as in 10,20,50")
    for load in concurrency:
        if load < 1:
            raise BadInputError("must be at least 1", field="concurrency", value=load)
    refuse_repeats(concurrency, "concurrency")
    if not 1 <= seeds <= MOST_SEEDS:
        raise BadInputError(f"must lie in 1..{MOST_SEEDS:,}", field="seeds", value=seeds)
    require_steps(steps)
