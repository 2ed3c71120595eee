"""Rounds measured by SGLang's step-time profiler (``X.rounds.jsonl``) as points of a throughput curve.

A round holds the batch at one size, per data-parallel rank, and reports the median step. With ``frac``
null every draft is verified; otherwise the budget is pinned to that fraction of the drafts, which is
what lets the parts per request and per token be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.cost.believed import FLAT, NEVER_TRIMS
from simulator.cost.curve import Lookup
from simulator.cost.models import ThroughputCurve
from simulator.interop.records import Record, read_records

if TYPE_CHECKING:
    import pandas as pd

RANK_TOLERANCE = 0.1
"""How far a step time may lie outside those of its ranks, as medians of different things."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement. ``requests`` and ``batch_tokens`` are per rank, the latter with anchors."""

    line: int
    requests: int
    fraction: float | None
    batch_tokens: int
    steps_per_s: float
    steady_steps: int
    match_fraction: float
    rank_step_time_s: tuple[float, ...]
    reached_target: bool

    @property
    def rank_imbalance(self) -> float:
        """Slowest over fastest rank's median step time; 1 when they keep pace."""
        return max(self.rank_step_time_s) / min(self.rank_step_time_s)


@dataclass(frozen=True, slots=True)
class RejectedRound:
    """A round whose batch was not steady, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProfilerRounds:
    """The usable rounds of a profile, the block size they imply, and the rounds left out."""

    gamma: int
    usable: tuple[Round, ...]
    rejected: tuple[RejectedRound, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the rounds hold that a curve does not: several ranks share a step and wait for the slowest."""
        ranks = max(len(each.rank_step_time_s) for each in self.usable)
        if ranks == 1:
            return ()
        worst = max(each.rank_imbalance for each in self.usable)
        return (
            f"{ranks} data-parallel ranks share a step that lasts as long as the slowest rank's (up to "
            f"{worst:.2f} times the fastest's): the curve holds at such loads and not for uneven ranks",
        )

    def points(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(batch tokens, steps per second) of rounds that verify everything: the median over repeats."""
        rates: dict[int, list[float]] = {}
        for each in self.usable:
            if each.fraction is None:
                rates.setdefault(each.batch_tokens, []).append(each.steps_per_s)
        if not rates:
            raise BadInputError(
                "has no round that verifies every draft",
                source="profiler rounds",
                field="frac",
                remedy="fit the additive model to cells() instead",
            )
        tokens = sorted(rates)
        return np.array(tokens), np.array([np.median(rates[size]) for size in tokens])

    def curve(self, *, lookup: Lookup = "floor") -> ThroughputCurve:
        """Return the throughput curve through ``points``, by default looked up as SGLang's diagonal table is.

        Raises ``BadInputError`` where a larger batch was faster; ``cost.fit.monotone`` repairs noise.
        """
        return ThroughputCurve(*self.points(), lookup=lookup)

    def cells(self) -> pd.DataFrame:
        """Every usable round as a row of ``requests, batch_tokens, step_time_s`` for an additive fit."""
        import pandas as pd

        rows = [(each.requests, each.batch_tokens, 1 / each.steps_per_s) for each in self.usable]
        return pd.DataFrame(rows, columns=["requests", "batch_tokens", "step_time_s"])


def load_rounds(
    path: Path | str,
    *,
    gamma: int | None = None,
    min_match_fraction: float = 0.9,
    min_steady_steps: int = 32,
    allow_flat: bool = False,
) -> ProfilerRounds:
    """Read profiler rounds, check each against the rules of the format and set unsteady ones aside.

    ``gamma`` is the block size; rounds that verify everything imply it. Unsteady is a round that timed out
    before its target, had fewer than ``min_steady_steps`` steady steps, or ran less than
    ``min_match_fraction`` of them at the batch size it stands for (SGLang itself warns below 0.9).
    Raises ``BadInputError`` for rounds that contradict themselves, when none is usable and, unless
    ``allow_flat``, where no round with fewer draft tokens is faster than one with more at equal requests:
    the pinned budgets then were not honoured, or the batches were too small to tell.
    """
    rounds = [_round(line, record) for line, record in read_records(Path(path))]
    if not rounds:
        raise BadInputError(
            "has no rounds", source=str(path), field="rounds", remedy="run the profiler first"
        )
    gamma = _block_size(rounds, str(path)) if gamma is None else gamma
    usable, rejected = [], []
    for each in rounds:
        _check_batch_tokens(each, gamma, f"{path}: line {each.line}")
        reason = _unsteady(each, min_match_fraction, min_steady_steps)
        if reason is None:
            usable.append(each)
        else:
            rejected.append(RejectedRound(each.line, reason))
    if not usable:
        first = rejected[0]
        raise BadInputError(
            f"has no steady round: line {first.line} {first.reason}", source=str(path), field="rounds",
            remedy="profile for longer, or lower the thresholds",
        )  # fmt: skip
    if not allow_flat:
        _refuse_flat(usable, str(path))
    return ProfilerRounds(gamma, tuple(usable), tuple(rejected))


def _round(line: int, record: Record) -> Round:
    parsed = Round(
        line,
        record.whole("batch_size_per_rank" if record.has("batch_size_per_rank") else "batch_size"),
        record.number("frac") if record.has("frac") else None,
        record.whole("batch_tokens"),
        record.number("steps_per_sec"),
        record.whole("num_steady_steps"),
        record.number("match_fraction"),
        tuple(record.numbers("per_rank_median_step_time")),
        record.record("load_info").flag("reached_target"),
    )
    for key, value, valid in (
        ("batch_size_per_rank", parsed.requests, parsed.requests >= 1),
        ("frac", parsed.fraction, parsed.fraction is None or 0 <= parsed.fraction <= 1),
        ("steps_per_sec", parsed.steps_per_s, parsed.steps_per_s > 0),
        ("match_fraction", parsed.match_fraction, 0 <= parsed.match_fraction <= 1),
        ("per_rank_median_step_time", parsed.rank_step_time_s, min(parsed.rank_step_time_s, default=0) > 0),
    ):
        if not valid:
            raise record.error(key, "is out of range", value)
    return parsed


def _block_size(rounds: list[Round], path: str) -> int:
    """Draft tokens per request, from the first round that verifies all of them."""
    for each in rounds:
        if each.fraction is None:
            return each.batch_tokens // each.requests - 1
    raise BadInputError(
        "does not show the block size, as no round verifies everything",
        source=path, field="frac", remedy="pass gamma",
    )  # fmt: skip


def _check_batch_tokens(each: Round, gamma: int, place: str) -> None:
    drafts = gamma * each.requests if each.fraction is None else int(each.fraction * each.requests * gamma)
    if each.batch_tokens != each.requests + drafts:
        share = "all" if each.fraction is None else f"{each.fraction:g} of all"
        due = each.requests + drafts
        raise BadInputError(
            f"must be {due}: {each.requests} anchors and {share} drafts of block size {gamma}",
            source=place,
            field="batch_tokens",
            value=each.batch_tokens,
            remedy="pass the right gamma, or keep runs of different block sizes apart",
        )


def _refuse_flat(rounds: list[Round], path: str) -> None:
    """Refuse rounds in which draft tokens cost nothing, at any number of requests that has several sizes."""
    times: dict[int, dict[int, list[float]]] = {}
    for each in rounds:
        times.setdefault(each.requests, {}).setdefault(each.batch_tokens, []).append(1 / each.steps_per_s)
    spreads = []
    for sizes in times.values():
        medians = [float(np.median(repeats)) for repeats in sizes.values()]
        if len(medians) > 1:
            spreads.append(max(medians) / min(medians) - 1)
    if spreads and max(spreads) < FLAT:
        raise BadInputError(
            f"changes the step time by at most {max(spreads):.1%} at equal requests: {NEVER_TRIMS}",
            source=path, field="frac", remedy="or pass allow_flat=True to read them nevertheless",
        )  # fmt: skip


def _unsteady(each: Round, min_match_fraction: float, min_steady_steps: int) -> str | None:
    if not each.reached_target:
        return "timed out before its target"
    if each.steady_steps < min_steady_steps:
        return f"has only {each.steady_steps} steady steps"
    if each.match_fraction < min_match_fraction:
        return f"held its batch size in only {each.match_fraction:.0%} of its steps"
    lowest, highest = min(each.rank_step_time_s), max(each.rank_step_time_s)
    if not lowest * (1 - RANK_TOLERANCE) <= 1 / each.steps_per_s <= highest * (1 + RANK_TOLERANCE):
        return f"reports {1 / each.steps_per_s:g} s a step, its ranks {lowest:g} to {highest:g} s"
    return None
