"""Live runs beside simulated ones, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.reading import Strict
from simulator.deployment.setup import Setup
from simulator.engine.measures.metrics import Metrics
from simulator.live.checks.validation.live_run import LiveRun
from simulator.live.engine.observed import Decision
from simulator.schedulers.protocol import Batch

COMPARED = (
    "throughput_tok_per_s", "tps_p10", "tps_p50", "itl_p50_s", "itl_p99_s", "accepted_length_mean",
    "verification_budget_mean", "step_time_mean_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CellKey:
    """A policy at a concurrency."""

    policy: str
    concurrency: int


class Outcome(Strict):
    """What is compared of a run.

    metrics: those of ``COMPARED`` that it could measure. lengths: [gamma + 1], share of each.
    """

    metrics: Mapping[str, float]
    lengths: tuple[float, ...]

    @classmethod
    def predicted(cls, metrics: Metrics, lengths: Iterable[NDArray[np.int64]], plan: Setup) -> Self:
        """Of a simulated run, and the lengths of its steps."""
        return cls(metrics=_compared(metrics), lengths=tuple(shares(lengths, _gamma(plan))))


class MeasuredOutcome(Outcome):
    """What is kept of a live run.

    decisions, differing: how many were checked, and how many the simulator makes otherwise. policy_digest:
    of the policy by its content and of its drafter's name.
    """

    decisions: int
    differing: int
    visible_schedule_share: float
    padding_share: float
    policy_digest: str

    @classmethod
    def of(cls, live: LiveRun, plan: Setup, policy_digest: str) -> Self:
        """Of a live run and how its policy runs in the simulator."""
        lengths = (record.lengths.cpu().numpy() for record in live.records)
        return cls(
            metrics=_compared(live.run.metrics),
            lengths=tuple(shares(lengths, _gamma(plan))),
            decisions=len(live.records),
            differing=differing_decisions(live.records, plan),
            visible_schedule_share=live.visible_schedule_share,
            padding_share=live.padding_share,
            policy_digest=policy_digest,
        )


@dataclass(frozen=True, slots=True)
class MetricError:
    """A metric of a cell: measured is the median of the live runs. See ``Validation.errors``."""

    metric: str
    measured: float
    predicted: float
    error: float
    spread: float


@dataclass(frozen=True, slots=True)
class Parity:
    """Decisions of a cell's live runs together, and medians of what scheduling and padding cost."""

    decisions: int
    differing: int
    visible_schedule_share: float
    padding_share: float

    @classmethod
    def of(cls, runs: Sequence[MeasuredOutcome]) -> Parity:
        """Of all live runs of a cell."""
        return cls(
            decisions=sum(run.decisions for run in runs),
            differing=sum(run.differing for run in runs),
            visible_schedule_share=float(np.median([run.visible_schedule_share for run in runs])),
            padding_share=float(np.median([run.padding_share for run in runs])),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Live runs beside simulated ones, as tables.

    errors: policy, concurrency, metric, measured (median of the live runs), predicted, error (relative,
    signed), spread (largest minus smallest of the live runs over their median: what no prediction can beat).

    lengths: policy, concurrency, length, measured, predicted (shares of request-steps).
    parity: policy, concurrency, decisions checked, how many of them differed, and visible scheduling time.
    """

    errors: pd.DataFrame
    lengths: pd.DataFrame
    parity: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """See ``summarise_errors``."""
        return summarise_errors(self.errors)

    def check(self, tolerances: Mapping[str, float]) -> None:
        """Raise ``InfeasibleError`` for a decision that differed or a median error above its tolerance."""
        differing = int(self.parity["differing"].sum())
        if differing:
            raise InfeasibleError(f"{differing} decisions of the live run are not the simulator's")
        summary = self.summary()
        for metric, tolerance in tolerances.items():
            if metric not in summary.index:
                raise BadInputError(
                    "is not compared", field="tolerance", value=metric, remedy=", ".join(summary.index)
                )
            median = float(summary["median"][metric])
            if not median <= tolerance:
                raise InfeasibleError(f"{metric}: median error {median:.1%} exceeds {tolerance:.1%}")


def summarise_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Median and largest absolute error of each metric, and the median spread of the live runs."""
    by_metric = errors.assign(error=errors["error"].abs()).groupby("metric", sort=False)
    return by_metric["error"].agg(["median", "max"]).assign(spread=by_metric["spread"].median())


def combined(
    cells: Sequence[CellKey], measured: Sequence[Sequence[MeasuredOutcome]], predicted: Sequence[Outcome]
) -> Validation:
    """Tables over all cells, the median over each cell's live runs beside its prediction."""
    errors, lengths, parity = [], [], []
    for cell, runs, theirs in zip(cells, measured, predicted, strict=True):
        key = asdict(cell)
        errors += [key | asdict(each) for each in compare([run.metrics for run in runs], theirs.metrics)]
        mine = np.median([run.lengths for run in runs], axis=0)
        lengths += [
            key | {"length": length, "measured": float(ours), "predicted": float(share)}
            for length, (ours, share) in enumerate(zip(mine, theirs.lengths, strict=True))
        ]
        parity.append(key | asdict(Parity.of(runs)))
    return Validation(pd.DataFrame(errors), pd.DataFrame(lengths), pd.DataFrame(parity))


def compare(measured: Sequence[Mapping[str, float]], predicted: Mapping[str, float]) -> list[MetricError]:
    """One row per metric that every run could measure: the median over runs beside the prediction."""
    rows = []
    for name in COMPARED:
        runs = np.array([run.get(name, np.nan) for run in measured], dtype=float)
        theirs = predicted.get(name, np.nan)
        if not np.isfinite([*runs, theirs]).all():
            continue
        ours = float(np.median(runs))
        rows.append(MetricError(name, ours, theirs, theirs / ours - 1, float(np.ptp(runs)) / ours))
    return rows


def _compared(metrics: Metrics) -> dict[str, float]:
    row = metrics.as_row()
    return {name: float(row[name]) for name in COMPARED if np.isfinite(row[name])}


def _gamma(plan: Setup) -> int:
    return 0 if plan.acceptance is None else plan.acceptance.gamma


def differing_decisions(records: Sequence[Decision], plan: Setup) -> int:
    """How many recorded decisions the simulator's scheduler, on NumPy arrays, makes otherwise."""
    differing = 0
    for record in records:
        batch = Batch(plan.believed, record.context_tokens, record.prefill_tokens, record.lagged)
        lengths = plan.scheduler.schedule(record.survival.cpu().numpy(), batch)
        differing += not np.array_equal(lengths, record.lengths.cpu().numpy())
    return differing


def shares(lengths: Iterable[NDArray[np.int64]], gamma: int) -> list[float]:
    """Share of request-steps at each verification length, [gamma + 1]."""
    counts: NDArray[np.float64] = np.zeros(gamma + 1)
    for step in lengths:
        counts += np.bincount(step, minlength=gamma + 1)
    shared: list[float] = (counts / counts.sum()).tolist()
    return shared
