"""What recorded traces say of their drafts, as tables: those of the paper's figures 2, 5 and 6 among them.

Accepted lengths and conditional acceptance are of rounds under full verification: each sequence walked
from its first row, as the paper's evaluation does. Calibration is of every recorded position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.acceptance.calibration import (
    REFERENCE,
    Convention,
    TemperatureFit,
    expected_calibration_error,
    fit_temperatures,
    prefix_survival,
    reliability,
    roc_auc,
)
from simulator.acceptance.trace import AcceptanceTrace, anchor_rows
from simulator.core.files import write_csv
from simulator.core.statistics import t_quantile
from simulator.live.tracing.record import Kind, prefix_outcomes
from simulator.sweeps.thresholds import threshold_sweep

REPLAYS = range(8)
"""Seeds over which the outcomes of sampled traces are averaged."""

_THRESHOLDS = tuple(np.round(np.linspace(0, 0.95, 20), 2).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One trace and what it is of."""

    draft: str
    domain: str
    kind: Kind
    trace: AcceptanceTrace


def accepted_length_table(recorded: Iterable[Recorded]) -> pd.DataFrame:
    """Columns draft, domain, kind, sequences, rounds, accepted_length, half_width, novelty.

    accepted_length is tau, bonus included; half_width that of its 95% t interval, sequences being the
    independent samples of a ratio of tokens to rounds. novelty: see ``novelty``.
    """
    rows = []
    for item in recorded:
        tokens, rounds = _tokens_and_rounds(item.trace)
        tau = tokens.sum() / rounds.sum()
        count = len(tokens)
        spread = (tokens - tau * rounds).std(ddof=1) * np.sqrt(count) / rounds.sum()
        rows.append(
            {
                "draft": item.draft,
                "domain": item.domain,
                "kind": item.kind,
                "sequences": count,
                "rounds": round(float(rounds.sum())),
                "accepted_length": tau,
                "half_width": spread * t_quantile(0.975, count - 1),
                "novelty": novelty(item.trace),
            }
        )
    return pd.DataFrame(rows)


def novelty(trace: AcceptanceTrace) -> float:
    """Share of 4-grams that are new to their output: near 0 where the target repeats itself."""
    if trace.target_tokens is None:
        return float("nan")
    outputs = np.split(trace.target_tokens, trace.sequence_start[1:-1])
    grams = [np.lib.stride_tricks.sliding_window_view(output, 4) for output in outputs if len(output) >= 4]
    total = sum(len(gram) for gram in grams)
    return sum(len(np.unique(gram, axis=0)) for gram in grams) / total if total else float("nan")


def conditional_table(recorded: Iterable[Recorded]) -> pd.DataFrame:
    """P(draft k accepted | those before it accepted): columns draft, domain, kind, position, rate, rounds.

    rounds: those that came as far as position k, per replay.
    """
    rows = []
    for item in recorded:
        trace = item.trace
        reached, passed = np.zeros(trace.gamma), np.zeros(trace.gamma)
        judged = (
            np.full(trace.rows, trace.gamma) if trace.effective_length is None else trace.effective_length
        )
        position = np.arange(1, trace.gamma + 1)
        seeds = _seeds(trace)
        for seed in seeds:
            replay = trace.replay(seed)
            at = anchor_rows(replay)
            accepted, limit = replay.accepted[at][:, None], judged[at][:, None]
            reached += ((accepted >= position - 1) & (limit >= position)).sum(axis=0)
            passed += (accepted >= position).sum(axis=0)
        for k in range(trace.gamma):
            rate = passed[k] / reached[k] if reached[k] else float("nan")
            rows.append(
                {
                    "draft": item.draft,
                    "domain": item.domain,
                    "kind": item.kind,
                    "position": k + 1,
                    "rate": rate,
                    "rounds": reached[k] / len(seeds),
                }
            )
    return pd.DataFrame(rows)


def calibration_report(
    recorded: Iterable[Recorded], fits: Mapping[str, Sequence[TemperatureFit]]
) -> pd.DataFrame:
    """Calibration error of prefix survival before and after each fit, and AUC, by domain and position.

    fits: for each kind, the fits to apply, one per convention; each error is measured in the bins of its
    convention. Columns kind, domain, convention, position, ece_before, ece_after, auc.
    """
    rows = []
    for item in recorded:
        if item.trace.confidence_logits is None or item.kind not in fits:
            continue
        observed, judged = prefix_outcomes(item.trace)
        raw = prefix_survival(item.trace.confidence_logits)
        for fit in fits[item.kind]:
            scaled = prefix_survival(item.trace.confidence_logits, fit.temperatures)
            for k in range(item.trace.gamma):
                counted: dict[str, Any] = {"weight": judged[:, k], "bins": fit.convention.bins}
                rows.append(
                    {
                        "kind": item.kind,
                        "domain": item.domain,
                        "convention": fit.convention.name,
                        "position": k + 1,
                        "ece_before": expected_calibration_error(raw[:, k], observed[:, k], **counted),
                        "ece_after": expected_calibration_error(scaled[:, k], observed[:, k], **counted),
                        "auc": roc_auc(raw[:, k], observed[:, k], weight=judged[:, k]),
                    }
                )
    return pd.DataFrame(rows)


def threshold_table(recorded: Iterable[Recorded]) -> pd.DataFrame:
    """Tokens per round when blocks end at the first low confidence, sampled outputs, means over replays.

    Columns domain, threshold, verified, accepted (both with the bonus token), rate: accepted / verified.
    """
    tables = []
    for item in recorded:
        if item.trace.has_confidence and item.kind == "expected":
            sweeps = [threshold_sweep(item.trace, _THRESHOLDS, seed).to_numpy() for seed in REPLAYS]
            columns = ["threshold", "verified", "accepted", "rate"]
            table = pd.DataFrame(np.mean(sweeps, axis=0), columns=columns)
            table.insert(0, "domain", item.domain)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def reliability_table(
    recorded: Sequence[Recorded], fits: Mapping[str, Sequence[TemperatureFit]]
) -> pd.DataFrame:
    """Observed against predicted prefix survival in bins of the prediction, all domains together.

    Columns kind, position, survival (raw, or calibrated by the reference convention's temperatures),
    predicted and observed (means of the bin), weight (rounds in it), ece (of the whole curve).
    """
    tables = []
    for kind, several in fits.items():
        pooled = pool(item for item in recorded if item.trace.has_confidence and item.kind == kind)
        fit = next(fit for fit in several if fit.convention is REFERENCE)
        raw, scaled = prefix_survival(pooled.logits), prefix_survival(pooled.logits, fit.temperatures)
        for k in range(pooled.logits.shape[1]):
            for survival, predicted in (("raw", raw), ("calibrated", scaled)):
                curve = reliability(predicted[:, k], pooled.observed[:, k], weight=pooled.judged[:, k])
                tables.append(
                    pd.DataFrame(
                        {
                            "kind": kind,
                            "position": k + 1,
                            "survival": survival,
                            "predicted": curve.predicted,
                            "observed": curve.observed,
                            "weight": curve.weight,
                            "ece": curve.ece,
                        }
                    )
                )
    return pd.concat(tables, ignore_index=True)


def fit_on(recorded: Iterable[Recorded], convention: Convention) -> TemperatureFit:
    """Sequential temperatures from the positions of several traces together."""
    pooled = pool(recorded)
    return fit_temperatures(pooled.logits, pooled.observed, weight=pooled.judged, convention=convention)


def write_tables(
    recorded: Sequence[Recorded], fits: Mapping[str, Sequence[TemperatureFit]], folder: Path
) -> None:
    """Write the tables into a folder.

    accepted_length.csv, conditional.csv, calibration.csv, temperatures.csv, thresholds.csv, reliability.csv.
    """
    temperatures = pd.DataFrame(
        {"kind": kind, "convention": fit.convention.name, "position": k + 1, "temperature": value}
        for kind, several in fits.items()
        for fit in several
        for k, value in enumerate(fit.temperatures)
    )
    for name, table in (
        ("accepted_length", accepted_length_table(recorded)),
        ("conditional", conditional_table(recorded)),
        ("calibration", calibration_report(recorded, fits)),
        ("temperatures", temperatures),
        ("thresholds", threshold_table(recorded)),
        ("reliability", reliability_table(recorded, fits)),
    ):
        write_csv(folder / f"{name}.csv", table, "%.5g")


def write_pair_tables(recorded: Sequence[Recorded], rounds: pd.DataFrame, folder: Path) -> None:
    """Write rounds.csv, accepted_length.csv and conditional.csv of a pair that was traced over prompts."""
    for name, table in (
        ("rounds", rounds),
        ("accepted_length", accepted_length_table(recorded)),
        ("conditional", conditional_table(recorded)),
    ):
        write_csv(folder / f"{name}.csv", table, "%.5g")


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    logits: NDArray[np.float32]
    observed: NDArray[np.float64]
    judged: NDArray[np.float64]


def pool(recorded: Iterable[Recorded]) -> _Pool:
    """Put the positions of several traces together."""
    traces = [item.trace for item in recorded]
    outcomes = [prefix_outcomes(trace) for trace in traces]
    logits = [trace.confidence_logits for trace in traces if trace.confidence_logits is not None]
    return _Pool(
        np.concatenate(logits),
        np.concatenate([observed for observed, _ in outcomes]),
        np.concatenate([judged for _, judged in outcomes]),
    )


def _seeds(trace: AcceptanceTrace) -> Sequence[int]:
    return REPLAYS if trace.kind == "sampled" else (0,)


def _tokens_and_rounds(trace: AcceptanceTrace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens committed and rounds taken by each sequence, means over the replays: [S] each."""
    sequences = len(trace.sequence_start) - 1
    tokens, rounds = np.zeros(sequences), np.zeros(sequences)
    seeds = _seeds(trace)
    for seed in seeds:
        replay = trace.replay(seed)
        at = anchor_rows(replay)
        owner = np.searchsorted(trace.sequence_start, at, side="right") - 1
        rounds += np.bincount(owner, minlength=sequences)
        tokens += np.bincount(owner, replay.accepted[at] + 1.0, minlength=sequences)
    return tokens / len(seeds), rounds / len(seeds)
