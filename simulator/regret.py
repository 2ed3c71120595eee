"""Regret: what a scheduler loses because the cost table it believes is not the true one.

The clock always runs on the true cost; only the scheduler's table changes. Every belief meets the
same requests and drafts, so the loss is a difference of pairs and small ones can be told from noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.believed_tables import table_warnings
from simulator.cost import AdditiveCost, CostModel, Lookup, StepCost, ThroughputCurve
from simulator.deployment import Deployment, Plan
from simulator.errors import BadInputError, refuse_repeats
from simulator.files import atomic_path, read_json
from simulator.frontier import Cell, run_cell
from simulator.lengths import Lengths, parse_lengths
from simulator.plots import PALETTE
from simulator.profiles import AdditiveSpec
from simulator.schedulers import Policy
from simulator.statistics import mean_interval
from simulator.sweep import Backend, run_cells
from simulator.units import require_ascii_digits

BELIEFS = {
    "coarse:N": "N probes of full batches, interpolated linearly",
    "floor:N": "the same probes, the last one at or below: tokens look free before a riser",
    "ceil:N": "the same probes, the first one at or above: a batch padded to the captured size",
    "flat": "every step takes as long as one of a single request: verify everything",
    "scaled:F": "every step believed F times as long; changes nothing, as only ratios count",
    "no-context": "the table without its terms in context tokens",
    "FILE.json": "a profile, an SGLang or a TensorRT-LLM table: another engine's",
}
"""Ways in which a table can be wrong, as written on a command line."""


def regret(
    deployment: Deployment,
    policy: Policy,
    beliefs: Sequence[str],
    concurrency: Sequence[int],
    *,
    seeds: int = 3,
    lengths: Lengths | None = None,
    steps: int | None = None,
    workers: int = 1,
    backend: Backend = "loky",
    address: str | None = None,
    directory: Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Throughput lost to each belief at each concurrency, in a closed loop with prefill elsewhere.

    Columns: belief, concurrency, throughput_tok_per_s and true_throughput_tok_per_s, regret (share of the
    latter that is lost, negative where the wrong table happened to do better), regret_ci95 over seeds,
    significant (the interval leaves out 0), verification_budget_mean and true_budget_mean.
    Raises ``BadInputError`` for a belief or a load given twice: it would count as new data.
    """
    if not beliefs or not concurrency or min(concurrency) < 1 or seeds < 2:
        raise BadInputError(
            "needs beliefs, loads of at least 1 and at least 2 seeds", source="regret",
            remedy="as in --believed floor:4 --concurrency 20,100 --seeds 3",
        )  # fmt: skip
    refuse_repeats(beliefs, "beliefs")
    refuse_repeats(concurrency, "concurrency")
    true = deployment.plan(policy)
    most = max(concurrency)
    plans = {"true": replace(true, believed=true.cost)}
    plans |= {text: replace(true, believed=believe(text, true, most)) for text in beliefs}
    drawn = parse_lengths("default") if lengths is None else lengths
    cells = [
        Cell(plan, deployment.limits(load), drawn, steps, seed)
        for seed in range(seeds)
        for plan in plans.values()
        for load in concurrency
    ]
    rows = pd.DataFrame(
        run_cells(
            run_cell,
            cells,
            workers=workers,
            label="Regret",
            progress=progress,
            backend=backend,
            address=address,
            directory=directory,
        )
    )
    rows["belief"] = [name for _ in range(seeds) for name in plans for _ in concurrency]
    return _compared(rows, list(beliefs))


def believe(text: str, plan: Plan, most_requests: int) -> CostModel:
    """The step cost that a belief stands for, drafting and overhead included as in the true one."""
    kind, _, argument = text.partition(":")
    target = plan.cost.target if isinstance(plan.cost, StepCost) else plan.cost
    gamma = plan.acceptance.gamma if plan.acceptance is not None else 0
    wrong: CostModel
    if kind in ("coarse", "floor", "ceil"):
        lookup: Lookup = "linear" if kind == "coarse" else "floor" if kind == "floor" else "ceil"
        wrong = probed(target, _count(argument, text), gamma, most_requests, lookup)
    elif text == "flat":
        wrong = ThroughputCurve([1.0], [1.0 / target.step_time_s(1, 1)], lookup="floor")
    elif kind == "scaled":
        from simulator.sensitivity import ScaledCost

        wrong = ScaledCost(target, _positive(argument, text))
    elif text == "no-context":
        wrong = _without_context(target, text)
    elif text.endswith(".json"):
        wrong = load_table(Path(text))
    else:
        raise BadInputError(
            "is not a belief", source="believed", value=text, remedy=f"one of {', '.join(BELIEFS)}"
        )
    return replace(plan.cost, target=wrong) if isinstance(plan.cost, StepCost) else wrong


def probed(target: CostModel, probes: int, gamma: int, most_requests: int, lookup: Lookup) -> ThroughputCurve:
    """What a profiler finds that runs whole blocks only: ``probes`` batches from one request to the most,
    spread geometrically, each of requests * (gamma + 1) tokens."""
    requests = np.unique(np.geomspace(1, max(most_requests, 2), probes).round().astype(int))
    tokens = requests * (gamma + 1)
    times = [target.step_time_s(int(r), int(b)) for r, b in zip(requests, tokens, strict=True)]
    return ThroughputCurve(tokens, 1 / np.maximum.accumulate(times), lookup=lookup)


def load_table(path: Path) -> CostModel:
    """A profile's, SGLang's or TensorRT-LLM's table as its engine looks it up, right or wrong."""
    from simulator.interop import sglang, tensorrt_llm
    from simulator.profiles import load_profile

    content = read_json(path)
    keys = set(content) if isinstance(content, dict) else set()
    if "provenance" in keys:
        return load_profile(path).target_cost()
    if "token_counts" in keys:
        return tensorrt_llm.load_believed(path)
    if keys & {"sample_batch_tokens", "bias_seconds"}:
        return sglang.load_believed(path)
    raise BadInputError(
        "is no cost table",
        source=str(path),
        field="believed",
        remedy="give a profile, an SGLang or a TensorRT-LLM table",
    )


def belief_warnings(beliefs: Sequence[str]) -> list[str]:
    """What a reader should know of the tables among the beliefs; they are looked up as they are."""
    files = [text for text in beliefs if text.endswith(".json")]
    return [f"{text}: {warning}" for text in files for warning in table_warnings(load_table(Path(text)))]


def plot_regret(table: pd.DataFrame, path: Path) -> None:
    """Regret against concurrency with its intervals, one line per belief."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    styles = zip(cycle(PALETTE), cycle("osD^vpX*"), table["belief"].unique(), strict=False)
    for colour, marker, belief in styles:
        mine = table[table["belief"] == belief]
        loss, half = 100 * mine["regret"], 100 * mine["regret_ci95"]
        drawn = {"color": colour, "marker": marker, "markersize": 5, "capsize": 3, "label": belief}
        axes.errorbar(mine["concurrency"], loss, yerr=half, **drawn)
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(xlabel="concurrent requests", ylabel="throughput lost to the wrong table, %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")


@dataclass(frozen=True, slots=True)
class _Pair:
    """One belief at one load against the truth, seed by seed."""

    wrong: pd.DataFrame
    true: pd.DataFrame

    def row(self) -> dict[str, object]:
        got, possible = (f["throughput_tok_per_s"].to_numpy() for f in (self.wrong, self.true))
        loss, half = mean_interval(1 - got / possible)
        return {
            "throughput_tok_per_s": float(got.mean()),
            "true_throughput_tok_per_s": float(possible.mean()),
            "regret": loss,
            "regret_ci95": half,
            "significant": bool(abs(loss) > half),
            "verification_budget_mean": float(self.wrong["verification_budget_mean"].mean()),
            "true_budget_mean": float(self.true["verification_budget_mean"].mean()),
        }


def _compared(rows: pd.DataFrame, beliefs: Sequence[str]) -> pd.DataFrame:
    groups = {key: group.sort_values("seed") for key, group in rows.groupby(["belief", "concurrency"])}
    loads = rows["concurrency"].unique()
    return pd.DataFrame(
        [
            {"belief": belief, "concurrency": int(load)}
            | _Pair(groups[belief, load], groups["true", load]).row()
            for belief in beliefs
            for load in loads
        ]
    )


def _without_context(target: CostModel, text: str) -> CostModel:
    if not isinstance(target, AdditiveCost):
        raise BadInputError(
            "changes nothing: the true cost has no context axis", source="believed", value=text,
            remedy="use a profile with an additive cost",
        )  # fmt: skip
    blind = {"context_s_per_token": 0.0, "row_context_s_per_token": 0.0}
    return AdditiveSpec.of(target).model_copy(update=blind).build()


def _count(argument: str, text: str) -> int:
    require_ascii_digits(argument, source="believed")
    if not argument.isdigit() or int(argument) < 2:
        raise BadInputError("needs at least 2 probes", source="believed", value=text, remedy="as in floor:4")
    return int(argument)


def _positive(argument: str, text: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not (np.isfinite(value) and value > 0):
        raise BadInputError("needs a positive factor", source="believed", value=text, remedy="scaled:1.2")
    return value
