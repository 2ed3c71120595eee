"""From measured cells to a profile."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from simulator.core.files import slug
from simulator.core.provenance import Provenance
from simulator.cost.fit import AdditiveFit, fit_additive, spread_token_probes
from simulator.cost.models import AdditiveCost
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.live.device import device_name, software
from simulator.live.models.draft import Draft
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.sampling import is_greedy
from simulator.live.models.targets import Target
from simulator.live.profiling.cells import CellLog
from simulator.live.profiling.conditions import conditions_of, digests_of
from simulator.live.profiling.counted import Counted, experts_of
from simulator.live.profiling.grid import Grid, ProfileOptions

FLAT = 0.05
"""A curve that rises by less than this share from its fewest to its most batch tokens is flat."""


@dataclass(frozen=True, slots=True, eq=False)
class Profiled:
    """A finished measurement. drift: how far the first cell had moved when measured again at the end."""

    profile: Profile
    fit: AdditiveFit
    cells: CellLog
    drift: float


def settings_of(target: Target, drafters: dict[str, Draft], options: ProfileOptions) -> dict[str, Any]:
    """Return what cells depend on: a log of other settings is not resumed.

    Target and drafts are told by digests of their config and weights, so that their paths do not matter.
    """
    return {
        "device": device_name(target.device),
        "drafters": {name: draft.digest for name, draft in drafters.items()},
        "grid": {name: list(getattr(options.grid, name)) for name in Grid.__dataclass_fields__},
        **_conditions(target, options),
    }


def _conditions(target: Target, options: ProfileOptions) -> dict[str, str]:
    return conditions_of(
        target,
        attention=options.attention,
        graphs=options.graphs,
        temperature=options.temperature,
        fuse=options.fuse,
    )


def profile_from(
    log: CellLog,
    target: Target,
    drafters: dict[str, Draft],
    options: ProfileOptions,
    drift: float,
    counted: Sequence[Counted] = (),
) -> Profiled:
    """Fit the additive model to the step cells and put everything into a profile, ``counted`` in words."""
    prices = _prices(log, list(drafters))
    steps = log.of("step").rename(columns={"seconds": "step_time_s"})
    steps["step_time_s"] -= steps["requests"].map(prices[next(iter(drafters))])
    sensible = steps["step_time_s"] > 0
    left_out, steps = int((~sensible).sum()), steps[sensible].reset_index(drop=True)
    contexts = (steps["context_tokens"] / steps["requests"]).nunique()
    cells = len(steps[["requests", "batch_tokens", "context_tokens"]].drop_duplicates())
    fit = fit_additive(
        steps,
        token_probes=spread_token_probes(steps),
        terms=("context",) if contexts > 1 else (),
        folds=min(5, cells),
    )
    cost = fit.cost
    device = device_name(target.device)
    conditions = _conditions(target, options)
    names = "+".join(drafters)
    prefill = log.of("prefill").sort_values("batch_tokens")
    fastest = float((prefill["batch_tokens"] / prefill["seconds"]).max())
    notes = (
        f"held-out error: median {fit.held_out.median:.1%}, p90 {fit.held_out.p90:.1%}, "
        f"max {fit.held_out.max:.1%}; "
        f"first cell measured again at the end: {drift:.1%} off; {options.rounds} round(s), apart by "
        f"{log.disagreement():.1%} (median over step cells); dtype {conditions['dtype']}; attention "
        f"{conditions['attention']} (drafts: {conditions['draft_attention']}); fused "
        f"{conditions['fused']}; CUDA graphs {conditions['graphs']}; tokens {conditions['sampling']}"
        + _noisy(log, options)
        + (f"; {left_out} step(s) left out: shorter than what a drafter was found to add" if left_out else "")
        + _contents(target, counted)
        + (f"; {conditions['threads']} CPU thread(s)" if "threads" in conditions else "")
    )
    step = AdditiveSpec.of(cost)
    profile = Profile(
        name=f"{slug(device)}/{file_name(target, drafters, options)}",
        title=f"{target.name} with {names} on {device}",
        provenance=Provenance(
            kind="measured",
            source="dspark-sim profile",
            date=datetime.now(UTC).date().isoformat(),
            command=options.command,
            device=device,
            driver=_driver(target.device),
            software=software() | conditions | digests_of(drafters),
            model=target.name,
            draft=names,
            notes=notes,
        ),
        step=step.model_copy(update={"prefill_s_per_token": _prefill_s_per_token(prefill, cost)}),
        replica_gpus=1 if target.device.type == "cuda" else None,
        drafters={name: _draft_spec(log, name, draft, prices[name]) for name, draft in drafters.items()},
        jitter=_jitter(log),
        prefill_tokens_per_s=fastest,
    )
    return Profiled(profile, fit, log, drift)


def _contents(target: Target, counted: Sequence[Counted]) -> str:
    """Say what steps consist of: how many operations, and how many experts they reach."""
    if not counted:
        return ""
    first = counted[0]
    said = (
        f"; a step of {first.batch_tokens} token(s) is {first.target_operations} operations of the target "
        f"({first.target_operations / target.num_layers:.0f} a layer) and {first.draft_operations} of its "
        "draft, compilers and Triton apart"
    )
    total = experts_of(target)
    if total is None:
        return said
    by_size = ", ".join(f"{step.experts:.1f} by {step.batch_tokens}" for step in counted)
    return f"{said}; of {total} experts a layer, tokens reach: {by_size}"


def _noisy(log: CellLog, options: ProfileOptions) -> str:
    """Say which cells were noisier than asked for: those left out, and those kept for want of others."""
    asked = options.repeats.relative
    kept = [cell for cell in log.cells.values() if cell.relative > asked]
    said = [
        f"; {len(cells)} cell(s) noisier than {asked:.1%} {what}: "
        + ", ".join(f"{cell} ({cell.relative:.1%})" for cell in cells)
        for cells, what in ((log.aside, "left out"), (kept, "kept for want of others"))
        if cells
    ]
    return "".join(said)


def _prices(log: CellLog, drafters: list[str]) -> dict[str, pd.Series[float]]:
    """Seconds that a step takes longer for having a drafter, its own pass apart: by drafter and requests.

    Steps have the same sizes with and without it, at the shortest context. 0 where no bare step was
    measured.
    """
    steps, bare = log.of("step"), log.of("bare").set_index("requests")["seconds"]
    with_it = {name: log.of("idle", name).set_index("requests")["seconds"] for name in drafters}
    shortest = (steps["context_tokens"] / steps["requests"]).min()
    undrafted = (steps["batch_tokens"] == steps["requests"]) & (
        steps["context_tokens"] == shortest * steps["requests"]
    )
    with_it[drafters[0]] = steps[undrafted].set_index("requests")["seconds"]
    sizes = pd.Index(sorted(set(steps["requests"])))
    return {
        name: (seconds - bare).clip(lower=0.0).reindex(sizes).interpolate(limit_direction="both").fillna(0.0)
        for name, seconds in with_it.items()
    }


def _draft_spec(log: CellLog, name: str, draft: Draft, price: pd.Series[float]) -> DraftSpec:
    """Cost of a drafter by requests, non-decreasing, and what each token of context adds to its pass."""
    cells = log.of("draft", name)
    context = _slope(cells["context_tokens"], cells["seconds"], cells["requests"])
    alone = cells["seconds"] - context * cells["context_tokens"]
    passes = alone.groupby(cells["requests"]).mean()
    total = (passes + _at(passes.index, price)).to_numpy()
    whole = np.maximum.accumulate(np.maximum(total, 0.0))
    semi = isinstance(draft, DSparkDraft) and draft.markov_head is not None
    head = np.zeros_like(whole)
    if semi:
        heads = log.of("head", name).groupby("requests")["seconds"].mean()
        head = part_of(whole, _at(passes.index, heads).to_numpy())
    structure: Any = "parallel" if isinstance(draft, DSparkDraft) else "autoregressive"
    runs = draft.gamma if structure == "autoregressive" else 1
    return DraftSpec(
        structure="semi-autoregressive" if semi else structure,
        block_size=draft.gamma,
        requests=tuple(float(r) for r in passes.index),
        pass_s=tuple(((whole - head) / runs).tolist()),
        sequential_s=tuple((head / draft.gamma).tolist()) if semi else None,
        context_s_per_token=context,
    )


def part_of(whole: NDArray[np.floating[Any]], part: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Fit a measured part into non-decreasing totals so that it and the rest are non-decreasing too.

    whole, part: seconds [n], by requests. The part may rise from size to size by what the whole rises.
    """
    fitted = np.empty_like(whole)
    least, room = 0.0, 0.0
    for at, (total, measured) in enumerate(zip(whole, part, strict=True)):
        fitted[at] = min(max(measured, least), least + total - room)
        least, room = fitted[at], total
    return fitted


def _at(sizes: pd.Index[int], known: pd.Series[float]) -> pd.Series[float]:
    """Values at these sizes, straight between known ones and level beyond them."""
    together = known.reindex(known.index.union(sizes)).interpolate("index", limit_direction="both")
    return together.reindex(sizes)


def _slope(x: pd.Series[float], y: pd.Series[float], group: pd.Series[int]) -> float:
    """Least-squares slope of y over x within groups, not negative; 0 where no group has two x."""
    dx, dy = x - x.groupby(group).transform("mean"), y - y.groupby(group).transform("mean")
    spread = float((dx**2).sum())
    return max(0.0, float((dx * dy).sum()) / spread) if spread else 0.0


def _prefill_s_per_token(prompts: pd.DataFrame, cost: AdditiveCost) -> float:
    """Fit what prompt rows cost beyond the rows they are: least squares over whole prompts."""
    tokens = prompts["batch_tokens"].to_numpy(dtype=float)
    rows_s = np.array([cost.step_time_s(0, int(n)) for n in tokens])
    return max(0.0, float(tokens @ (prompts["seconds"].to_numpy() - rows_s) / (tokens @ tokens)))


def _jitter(log: CellLog) -> tuple[float, ...]:
    """How single steps scatter about their mean, every size alike: 64 equally likely multiples of it."""
    pooled = np.concatenate([cell.scatter for cell in log.cells.values() if cell.kind == "step"])
    places = (np.arange(64) + 0.5) / 64
    drawn = np.quantile(pooled, places)
    return tuple((drawn / drawn.mean()).round(4).tolist())


def schedule_s(log: CellLog, policy: str) -> float:
    """Seconds that a policy's decision adds to a step, mean over batch sizes; 0 where none was measured."""
    cells = log.of("schedule", policy)
    return float(cells["seconds"].mean()) if len(cells) else 0.0


def efficiency(log: CellLog, target: Target, bytes_per_s: float, flop_per_s: float) -> pd.DataFrame:
    """Bandwidth and matmul rate of the smallest and the largest step, and their share of the device's.

    A step reads every weight but the embedding once, and its requests' keys and values; it multiplies
    every row with every weight.
    """
    steps = log.of("step").sort_values(["batch_tokens", "context_tokens"])
    rows = []
    for step in (steps.iloc[0], steps.iloc[-1]):
        read = target.bytes_read(int(step["context_tokens"]))
        flops = 2.0 * target.weights_read * step["batch_tokens"]
        rows.append(
            {
                "batch_tokens": int(step["batch_tokens"]),
                "step_ms": step["seconds"] * 1e3,
                "GB_per_s": read / step["seconds"] / 1e9,
                "of_copy_bandwidth": read / step["seconds"] / bytes_per_s,
                "TFLOP_per_s": flops / step["seconds"] / 1e12,
                "of_matmul_rate": flops / step["seconds"] / flop_per_s,
            }
        )
    return pd.DataFrame(rows)


def file_name(target: Target, drafters: Iterable[str], options: ProfileOptions) -> str:
    """Return what a profile is called inside its device's folder; drawn tokens make another profile."""
    drawn = "" if is_greedy(options.temperature) else "--drawn"
    return f"{label(target)}--{'+'.join(drafters)}{drawn}"


def label(target: Target) -> str:
    """Return a target's short name: its own, or of its pair's folder where that merely says ``target``."""
    path = Path(target.name)
    return slug(path.parent.name if path.name == "target" and path.parent.name else path.name)


def _driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return platform.system()
    return f"CUDA {torch.version.cuda}"
