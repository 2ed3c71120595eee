"""vLLM's log: the acceptance rates it prints every few seconds. vLLM reads and writes no cost table.

The printed rates are marginal, P(drafts 1..k all accepted) over all drafts of the interval, rounded to
three decimals; one plus their sum is the printed mean acceptance length. Where vLLM shortened some drafts
itself, positions beyond the cut count as not accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from simulator.acceptance_inputs import Rates, marginal_rates
from simulator.errors import BadInputError
from simulator.interop.records import read_text
from simulator.provenance import Provenance

_MARK = "SpecDecoding metrics:"
_NUMBER = r"\d+(?:\.\d+)?"
_LENGTH = re.compile(rf"Mean acceptance length: ({_NUMBER})")
_ACCEPTED = re.compile(r"Accepted: (\d+) tokens")
_DRAFTED = re.compile(r"Drafted: (\d+) tokens")
_RATES = re.compile(rf"Per-position acceptance rate: ({_NUMBER}(?:, {_NUMBER})*)")


@dataclass(frozen=True, slots=True)
class LoggedAcceptance:
    """One printed interval: marginal rates per position, and how many drafts they stand for, if printed."""

    line: int
    accepted_length: float
    marginal: tuple[float, ...]
    drafts: float | None


def load_log(path: Path | str) -> tuple[LoggedAcceptance, ...]:
    """Every interval printed in a log file; lines of other kinds are passed over.

    Raises ``BadInputError`` when there is none, and for one that is cut off or contradicts itself.
    """
    lines = read_text(Path(path)).split("\n")
    found = [_parse(line, number, str(path)) for number, line in enumerate(lines, start=1) if _MARK in line]
    if not found:
        raise BadInputError(
            f"has no line with {_MARK!r}", source=str(path), remedy="run vLLM with log statistics enabled"
        )
    return tuple(found)


def pooled_rates(intervals: Sequence[LoggedAcceptance], *, source: str = "vLLM log") -> Rates:
    """Rates over all intervals, each weighted by its drafts, or all alike where some print no counts."""
    if not intervals or len({len(interval.marginal) for interval in intervals}) != 1:
        raise BadInputError(
            "must be at least one interval, all of one block size", source=source, remedy="split the log"
        )
    drafts = [interval.drafts or 0.0 for interval in intervals]
    weights = np.array(drafts) if all(drafts) else np.ones(len(intervals))
    marginal = weights @ np.array([interval.marginal for interval in intervals]) / weights.sum()
    provenance = Provenance(
        kind="measured", source=source, date="undated", notes=f"{len(intervals)} intervals, rounded to 0.001"
    )
    return replace(marginal_rates(marginal.tolist()), provenance=provenance)


def _parse(line: str, number: int, path: str) -> LoggedAcceptance:
    place = f"{path}: line {number}"
    length, rates = _LENGTH.search(line), _RATES.search(line)
    if length is None or rates is None:
        raise BadInputError(
            "has no acceptance length and per-position rates", source=place, remedy="remove a cut-off line"
        )
    accepted_length = float(length[1])
    marginal = tuple(float(rate) for rate in rates[1].split(", "))
    if max(marginal) > 1 or any(later > earlier for earlier, later in pairwise(marginal)):
        raise BadInputError("must be within 0..1 and never rise", source=place, field="rates", value=marginal)
    rounding = 0.005 + 0.0005 * len(marginal) + 1e-9
    if abs(1 + sum(marginal) - accepted_length) > rounding:
        raise BadInputError(
            f"differs from one plus the sum of the rates, {1 + sum(marginal):.3f}",
            source=place,
            field="mean acceptance length",
            value=accepted_length,
            remedy="remove a cut-off line",
        )
    return LoggedAcceptance(number, accepted_length, marginal, _drafts(line, marginal))


def _drafts(line: str, marginal: tuple[float, ...]) -> float | None:
    """Drafts of the interval: accepted tokens over accepted per draft, which holds for shortened ones too."""
    accepted, drafted = _ACCEPTED.search(line), _DRAFTED.search(line)
    if accepted and sum(marginal) > 0:
        return int(accepted[1]) / sum(marginal)
    return int(drafted[1]) / len(marginal) if drafted else None
