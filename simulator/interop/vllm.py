"""vLLM's log: the acceptance rates it prints every few seconds. vLLM reads and writes no cost table.

The printed rates are marginal, P(drafts 1..k all accepted) over all drafts of the interval, rounded to
three decimals; one plus their sum is the printed mean acceptance length. An interval in which nothing was
drafted prints nan and is left out, and so is a last line that was cut off under way. Where vLLM shortened
some drafts itself, positions beyond the cut count as not accepted: the rates then understate the drafter and
are not pooled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from simulator.acceptance.rates import Rates, marginal_rates
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.interop.forms import CUT_OFF, VLLM_LOG, known_form, refuse_unreal
from simulator.interop.records import read_text

_MARK = "SpecDecoding metrics:"

SHORTENED = 0.03
"""Share of the block by which the mean draft may fall short before rates count as biased: drafts end with
their request, and counts are printed in whole tokens."""

_NUMBER = r"\d+(?:\.\d+)?"

_LENGTH = re.compile(rf"Mean acceptance length: ({_NUMBER})")

_ACCEPTED = re.compile(r"Accepted: (\d+) tokens")

_DRAFTED = re.compile(r"Drafted: (\d+) tokens")

_NAN = re.compile(r"Mean acceptance length: nan\b")

_RATES = re.compile(rf"Per-position acceptance rate: ({_NUMBER}(?:, {_NUMBER})*)")

_RATES_END = re.compile(rf"{_RATES.pattern}(?:,\s*)?$")


@dataclass(frozen=True, slots=True)
class LoggedAcceptance:
    """One printed interval.

    Marginal rates per position, how many drafts they stand for, and how many tokens were drafted, if printed.
    """

    line: int
    accepted_length: float
    marginal: tuple[float, ...]
    drafts: float | None
    drafted: int | None = None


@dataclass(frozen=True, slots=True)
class VllmLog:
    """The printed intervals, the lines of those in which nothing was drafted, and a last line cut off."""

    intervals: tuple[LoggedAcceptance, ...]
    without_drafts: tuple[int, ...] = ()
    cut_off: int | None = None

    def summary(self) -> str:
        """Return what was read and what was left out."""
        left_out = f", {len(self.without_drafts)} without drafts left out" if self.without_drafts else ""
        counted = "" if all(each.drafts is not None for each in self.intervals) else ", not all with counts"
        cut = "" if self.cut_off is None else f", {CUT_OFF}"
        return f"{len(self.intervals)} intervals{counted}{left_out}{cut}"


def read_log(path: Path | str) -> VllmLog:
    """Every interval printed in a log file; lines of other kinds are passed over.

    A last line without an end that does not hold a whole interval was cut off under way and is left out.
    Raises ``BadInputError`` when there is none, for any other that is cut off or contradicts itself, and for
    a log that says its acceptance is simulated.
    """
    text = read_text(Path(path))
    refuse_unreal(text, str(path))
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if _MARK in line]
    without = tuple(number for number, line in lines if _NAN.search(line))
    intervals = [(number, line) for number, line in lines if number not in without]
    cut_off = _cut_off(intervals, 1 + text.count("\n"), str(path))
    found = tuple(_parse(line, number, str(path)) for number, line in intervals if number != cut_off)
    if not found:
        raise _no_interval(text, str(path), len(without))
    return VllmLog(found, without, cut_off)


def _cut_off(intervals: Sequence[tuple[int, str]], unended: int, path: str) -> int | None:
    """Return the number of a last line that was cut off, if it is one of several; the file ends in it.

    unended: number of the line that no line end follows.
    """
    if len(intervals) < 2 or intervals[-1][0] != unended:
        return None
    number, line = intervals[-1]
    if _RATES_END.search(line):
        return number  # of the last rate digits may be missing, and others behind it
    try:
        _parse(line, number, path)
    except BadInputError:
        return number
    return None


def load_log(path: Path | str) -> tuple[LoggedAcceptance, ...]:
    """Return the intervals of ``read_log``."""
    return read_log(path).intervals


def refuse_shortened(drafted: float, drafts: float, block: int, source: str) -> None:
    """Raise ``BadInputError`` where drafts were on average shorter than the block that rates are for.

    drafted: draft tokens of ``drafts`` drafts. Positions that a draft did not reach count as rejected.
    """
    if drafts > 0 and drafted < (1 - SHORTENED) * block * drafts:
        raise BadInputError(
            f"drafts of {block} tokens were shortened to {drafted / drafts:.2f} on average, and what was cut "
            "counts as rejected",
            source=source, field="drafted tokens", value=round(drafted, 1),
            remedy="log a run that always drafts the whole block",
        )  # fmt: skip


def _no_interval(text: str, path: str, without_drafts: int) -> BadInputError:
    form = known_form(text)
    if without_drafts:
        return BadInputError(
            f"has {without_drafts} intervals and drafted in none",
            source=path, field=_MARK.rstrip(":"), remedy="log for longer",
        )  # fmt: skip
    if form is not None and form != VLLM_LOG:
        return BadInputError(f"is {form.title}: no line has {_MARK!r}", source=path, remedy=form.remedy)
    return BadInputError(
        f"has no line with {_MARK!r}", source=path, remedy="run vLLM with log statistics enabled"
    )


def pooled_rates(intervals: Sequence[LoggedAcceptance], *, source: str = "vLLM log") -> Rates:
    """Rates over all intervals, each weighted by its drafts, or all alike where some print no counts."""
    if not intervals or len({len(interval.marginal) for interval in intervals}) != 1:
        raise BadInputError(
            "must be at least one interval, all of one block size",
            source=source,
            field="rates",
            value=sorted({len(interval.marginal) for interval in intervals}),
            remedy="split the log by block size",
        )
    for each in intervals:
        if each.drafted is not None and each.drafts:
            refuse_shortened(each.drafted, each.drafts, len(each.marginal), f"{source}: line {each.line}")
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
            "has no acceptance length and per-position rates",
            source=place, field=_MARK.rstrip(":"), remedy="remove a cut-off line",
        )  # fmt: skip
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
    drafted = _DRAFTED.search(line)
    return LoggedAcceptance(
        number, accepted_length, marginal, _drafts(line, marginal), int(drafted[1]) if drafted else None
    )


def _drafts(line: str, marginal: tuple[float, ...]) -> float | None:
    """Drafts of the interval: accepted tokens over accepted per draft, which holds for shortened ones too."""
    accepted, drafted = _ACCEPTED.search(line), _DRAFTED.search(line)
    if accepted and sum(marginal) > 0:
        return int(accepted[1]) / sum(marginal)
    return int(drafted[1]) / len(marginal) if drafted else None
