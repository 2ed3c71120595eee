"""Ragged verification against padding every request to its whole block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.cost.models import CostModel
from simulator.live.checks.speed.closed_loop import Loop, LoopRun, check_acceptance
from simulator.live.checks.speed.scale import Best, SpeedScale, cell, interleaved
from simulator.live.device import Tell
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.schedulers.parse import parse_policy


@dataclass(frozen=True, slots=True)
class Side:
    """One way of verifying: rows of a pass with its padding, means in ms, tokens/s, and ``Best``'s spread."""

    rows: float
    step_ms: float
    verify_ms: float
    tok_per_s: float
    spread: float

    @classmethod
    def of(cls, runs: Sequence[LoopRun]) -> Side:
        """Of several runs that took the same steps."""
        step = Best.of([run.timings["duration_s"].mean() for run in runs])
        return cls(
            rows=runs[0].timings["padded_tokens"].mean(),
            step_ms=1e3 * step.seconds,
            verify_ms=1e3 * min(run.timings["verify_s"].mean() for run in runs),
            tok_per_s=runs[0].tokens_per_step / step.seconds,
            spread=step.spread,
        )


@dataclass(frozen=True, slots=True)
class PaddingRow:
    """Ragged beside padded verification under one policy.

    verified_rows: mean per step. differing: of the ``decisions``, how many were not the same.
    """

    policy: str
    concurrency: int
    verified_rows: float
    ragged: Side
    padded: Side
    decisions: int
    differing: int

    @property
    def ratio(self) -> float:
        """Tokens/s ragged over padded."""
        return self.ragged.tok_per_s / self.padded.tok_per_s

    def columns(self) -> dict[str, object]:
        """As a row of the table, sides spread out as ``ragged_*`` and ``padded_*``."""
        sides = {"ragged": self.ragged, "padded": self.padded}
        return {
            "policy": self.policy,
            "concurrency": self.concurrency,
            "verified_rows": self.verified_rows,
            **{f"{side}_{name}": value for side, of in sides.items() for name, value in asdict(of).items()},
            "ratio": self.ratio,
            "decisions": self.decisions,
            "differing": self.differing,
        }

    def __str__(self) -> str:
        return (
            f"{self.policy} at {self.concurrency}: {self.ratio:.2f} times padded verification, "
            f"{self.verified_rows:.1f} of {self.padded.rows:.0f} rows verified; "
            f"{self.differing} of {self.decisions} decisions differ"
        )


def ragged_against_padded(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> pd.DataFrame:
    """Ragged verification against passes padded to every request's whole block, with the same decisions.

    Acceptance is replayed and requests come in a closed loop, so no decision depends on time. On a GPU ragged
    passes are padded to the next recorded size. Columns: see ``PaddingRow``.
    """
    check_acceptance(draft, acceptance)
    rows: list[PaddingRow] = []
    for concurrency in scale.concurrency:
        with cell(f"ragged against padded at {concurrency}", target, tell):
            for row in _padding_rows(target, draft, acceptance, concurrency, scale):
                rows.append(row)
                tell(str(row))
    return pd.DataFrame([row.columns() for row in rows])


def _padding_rows(
    target: Target, draft: Draft, acceptance: AcceptanceModel, concurrency: int, scale: SpeedScale
) -> Iterator[PaddingRow]:
    ragged, padded = (
        Loop(target, draft, acceptance, concurrency, scale, padded=padded) for padded in (False, True)
    )
    believed = ragged.measured_cost()
    for policy in scale.policies:
        yield _padding_row(ragged, padded, policy, believed)


def _padding_row(ragged: Loop, padded: Loop, policy: str, believed: CostModel) -> PaddingRow:
    scheduler = parse_policy(policy).scheduler
    decisions = [loop.run(scheduler, believed, keep_lengths=True).lengths for loop in (ragged, padded)]
    taken = interleaved(
        {
            "ragged": partial(ragged.run, scheduler, believed),
            "padded": partial(padded.run, scheduler, believed),
        },
        ragged.scale.repeats,
    )
    return PaddingRow(
        policy=policy,
        concurrency=ragged.concurrency,
        verified_rows=taken["ragged"][0].timings["batch_tokens"].mean(),
        ragged=Side.of(taken["ragged"]),
        padded=Side.of(taken["padded"]),
        decisions=len(decisions[0]),
        differing=sum(not np.array_equal(mine, theirs) for mine, theirs in zip(*decisions, strict=True)),
    )
