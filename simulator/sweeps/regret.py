"""Regret: the throughput that a scheduler loses because the cost table it believes is wrong.

The clock always uses the true cost; only the scheduler's table changes. Every belief serves the same
requests and drafts, so that the loss is a difference of pairs and small losses exceed the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.core.errors import BadInputError, refuse_repeats
from simulator.core.statistics import mean_interval
from simulator.cost.believed import table_warnings
from simulator.deployment.beliefs import believe, load_table
from simulator.deployment.deployment import Deployment
from simulator.engine.run import require_steps
from simulator.parallel.backends import Backend
from simulator.parallel.cells import run_cells
from simulator.schedulers.parse import NamedPolicy
from simulator.schedulers.protocol import Scheduler
from simulator.sweeps.frontier import MOST_SEEDS, FrontierRun, check_requests_fit, run_cell
from simulator.traffic.lengths import Lengths, as_lengths

if TYPE_CHECKING:
    import pandas as pd


def regret(
    deployment: Deployment,
    policy: str | NamedPolicy | Scheduler,
    beliefs: Sequence[str],
    concurrency: Sequence[int],
    *,
    seeds: int = 3,
    lengths: Lengths | str | None = None,
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
    Raises ``BadInputError`` for a belief or a load given twice: it would count as new data; and where the
    rows chosen under any belief lie far beyond those measured: what they cost is then not known.
    """
    if not beliefs or not concurrency or min(concurrency) < 1 or seeds < 2:
        raise BadInputError(
            "needs beliefs, loads of at least 1 and at least 2 seeds", source="regret",
            remedy="as in `believed` floor:4, `concurrency` 20,100 and `seeds` 3",
        )  # fmt: skip
    require_steps(steps)
    if seeds > MOST_SEEDS:
        raise BadInputError(f"must be at most {MOST_SEEDS:,}", field="seeds", value=seeds)
    refuse_repeats(beliefs, "beliefs")
    refuse_repeats(concurrency, "concurrency")
    limits = {load: deployment.limits(load) for load in concurrency}
    true, most = deployment.plan(policy), max(concurrency)
    plans = {"true": replace(true, believed=true.cost)}
    plans |= {text: replace(true, believed=believe(text, true, most)) for text in beliefs}
    drawn = as_lengths(lengths)
    for plan in plans.values():
        deployment.answerable(plan, most)
    cells = [
        FrontierRun(plan, limits[load], drawn, steps, seed)
        for seed in range(seeds)
        for plan in plans.values()
        for load in concurrency
    ]
    check_requests_fit(cells)
    import pandas as pd

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
    for load in concurrency:
        for _, mine in rows[rows["concurrency"] == load].groupby("belief", sort=False):
            deployment.judge_rows(true, float(mine["batch_tokens_mean"].mean()), load)
    return _compared(rows, list(beliefs))


def belief_warnings(beliefs: Sequence[str]) -> list[str]:
    """Return warnings about the believed tables, which are used as they are."""
    files = [text for text in beliefs if text.endswith(".json")]
    return [f"{text}: {warning}" for text in files for warning in table_warnings(load_table(Path(text)))]


@dataclass(frozen=True, slots=True)
class _Pair:
    """One belief and the truth at one load, seed by seed."""

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
    import pandas as pd

    return pd.DataFrame(
        [
            {"belief": belief, "concurrency": int(load)}
            | _Pair(groups[belief, load], groups["true", load]).row()
            for belief in beliefs
            for load in loads
        ]
    )
