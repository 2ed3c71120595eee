"""Acceptance from SGLang's record of decode steps (``/server_info``, ``dspark_info_record``).

Such a record has one row per request and *round*, not per position, so it cannot be replayed under
another policy as an acceptance trace can. It yields acceptance statistics:

- mode ``cap-accept`` verifies the whole block and caps afterwards, so that the full acceptance is known,
  ``correct_drafts + cap_trim``;
- mode ``compact`` verifies ``verify_len - 1`` drafts, so that a block accepted to the end is censored on
  the right: it might have gone further. The Kaplan-Meier estimate counts each position over the rounds in
  which it was verified and everything before it accepted.

A server under data-parallel attention answers with one record per rank. The rounds of all ranks are put
together; that the ranks wait for each other in every step is no matter of acceptance, and is said beside it.

Kaplan-Meier assumes that cutting a block says nothing of what was cut. A scheduler cuts where confidence is
low, so the estimate at deep positions describes the blocks it trusted and is optimistic for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.rates import Rates, conditional_rates
from simulator.acceptance.trace import MAX_GAMMA
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.interop.forms import refuse_unreal
from simulator.interop.records import Record, read_record

UNCENSORED_MODES = ("cap-accept",)

CENSORED_MODES = ("compact", "static")
"""``static`` verifies whole blocks and is read by the same rule; nothing is censored then."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundAcceptance:
    """Acceptance per draft position, counted over rounds (Kaplan-Meier where rounds are censored).

    at_risk: int64 [gamma], rounds in which draft k was verified and 1..k-1 were accepted.
    accepted: int64 [gamma], those of them in which draft k was accepted too.
    notes: what the dump leaves out or puts together.
    """

    indexed_by: ClassVar[str] = "round"

    source: str
    rounds: int
    censored_rounds: int
    at_risk: NDArray[np.int64]
    accepted: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @property
    def gamma(self) -> int:
        """Block size."""
        return self.at_risk.size

    @property
    def is_censored(self) -> bool:
        """Whether some round was accepted to the end of what was verified, short of the block."""
        return self.censored_rounds > 0

    @property
    def conditional(self) -> NDArray[np.float64]:
        """P(draft k accepted | 1..k-1 accepted), [gamma]; NaN where no round tells."""
        return _ratio(self.accepted, self.at_risk)

    @property
    def survival(self) -> NDArray[np.float64]:
        """P(drafts 1..k all accepted), [gamma]; NaN from the first position on that no round tells."""
        survival = np.cumprod(self.conditional, dtype=np.float64)
        extinct = np.maximum.accumulate((self.accepted == 0) & (self.at_risk > 0))
        return np.where(extinct, 0.0, survival)

    @property
    def survival_standard_error(self) -> NDArray[np.float64]:
        """Greenwood's formula, [gamma]; 0 where nothing or everything survived."""
        rejected = self.at_risk - self.accepted
        variance = np.cumsum(_ratio(rejected, self.at_risk * self.accepted))
        return np.where(self.survival == 0, 0.0, self.survival * np.sqrt(variance))

    @property
    def accepted_length(self) -> float:
        """Mean accepted length under full verification, bonus included; NaN if a position is unknown."""
        return 1.0 + float(self.survival.sum())

    def rates(self) -> Rates:
        """Make conditional rates an acceptance model; an error where a position was never verified."""
        unknown = np.flatnonzero(np.isnan(self.survival))
        if unknown.size:
            raise BadInputError(
                f"tells nothing of draft {unknown[0] + 1}, which was never verified after accepted drafts",
                source=self.source,
                remedy="record in cap-accept mode, or use a smaller block size",
            )
        counted = f"counted over {self.rounds} rounds, {self.censored_rounds} of them censored"
        return replace(
            conditional_rates(np.nan_to_num(self.conditional).tolist()),
            provenance=Provenance(
                kind="measured", source=self.source, date="undated", notes="; ".join((counted, *self.notes))
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class StepDump:
    """Rounds of all requests and ranks, n rows in the order of the dump.

    verified: int64 [n], draft tokens whose verdict is known, anchor not counted.
    accepted: int64 [n], how many of them were accepted.
    confidence: float64 [n, gamma], NaN where a round has none; calibrated, as the scheduler saw it.
    request: n request ids, ``None`` where the dump has none. forward_ct: int64 [n], the engine's step.
    """

    source: str
    mode: str
    gamma: int
    verified: NDArray[np.int64]
    accepted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    request: tuple[str | None, ...]
    forward_ct: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def acceptance(self) -> RoundAcceptance:
        """Return acceptance per position."""
        position = np.arange(1, self.gamma + 1)
        reached = (self.verified[:, None] >= position) & (self.accepted[:, None] >= position - 1)
        accepted = reached & (self.accepted[:, None] >= position)
        censored = (self.accepted == self.verified) & (self.verified < self.gamma)
        return RoundAcceptance(
            self.source, len(self.verified), int(censored.sum()), reached.sum(axis=0), accepted.sum(axis=0),
            self.notes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dump:
    """A record of decode steps, opened and checked: the file's top level and one record per rank."""

    top: Record
    ranks: tuple[Record, ...]
    mode: str
    gamma: int

    @property
    def source(self) -> str:
        """The file."""
        return self.top.source


def open_dump(path: Path | str) -> Dump:
    """Open a saved ``/server_info`` answer, or one record out of it; raises as ``load_step_dump`` does."""
    top = read_record(Path(path))
    refuse_unreal(top.values, top.source)
    dumps = [top] if "records" in top.values else _rank_dumps(top)
    mode, gamma = dumps[0].text("mode"), dumps[0].whole("gamma")
    if not 1 <= gamma <= MAX_GAMMA:
        raise dumps[0].error("gamma", f"must be 1 to {MAX_GAMMA}", gamma, "export the file again")
    if mode not in UNCENSORED_MODES + CENSORED_MODES:
        raise dumps[0].error("mode", "is not known", mode, f"one of {UNCENSORED_MODES + CENSORED_MODES}")
    for dump in dumps:
        if (dump.text("mode"), dump.whole("gamma")) != (mode, gamma):
            raise dump.error("mode", "or gamma differs from that of the first rank")
    return Dump(top, tuple(dumps), mode, gamma)


def load_step_dump(path: Path | str) -> StepDump:
    """Read a saved ``/server_info`` answer, or one ``dspark_info_record`` out of it.

    All ranks are put together. Raises ``BadInputError`` for a dump without requests (the server must
    record the component ``reqs``), ranks that differ in mode or block size, impossible counts, simulated
    acceptance (``simulate_acc_len``) and drafts in trees (``speculative_eagle_topk`` above 1).
    """
    dump = open_dump(path)
    mode, gamma = dump.mode, dump.gamma
    rows = [
        (step.whole("forward_ct"), request)
        for rank in dump.ranks
        for step in rank.records("records")
        if step.has("reqs")
        for request in step.records("reqs")
    ]
    if not rows:
        raise dump.top.error("records", "hold no requests", remedy="record the component reqs")
    verdicts = np.array([verdict(request, mode, gamma) for _, request in rows], dtype=np.int64)
    return StepDump(
        dump.source,
        mode,
        gamma,
        verdicts[:, 0],
        verdicts[:, 1],
        np.array([_confidence(request, gamma) for _, request in rows]),
        tuple(request.text("rid") if request.has("rid") else None for _, request in rows),
        np.array([forward_ct for forward_ct, _ in rows], dtype=np.int64),
        _rank_notes(dump.top, len(dump.ranks)),
    )


def _rank_notes(top: Record, recorded: int) -> tuple[str, ...]:
    """Say what several data-parallel ranks mean, as far as the server's settings in the file tell."""
    ranks = max(recorded, top.whole("dp_size") if top.has("dp_size") else 1)
    if ranks == 1:
        return ()
    held = f"records of {recorded} of {ranks} data-parallel ranks"
    shared = top.flag("enable_dp_attention") if top.has("enable_dp_attention") else None
    if shared is False:
        return (f"{held}, each with steps of its own",)
    known = (
        "with data-parallel attention" if shared else "the file does not say whether with shared attention"
    )
    return (f"{held}, {known}: ranks that share a step wait for the slowest, which acceptance does not show",)


def _rank_dumps(top: Record) -> list[Record]:
    dumps = [
        state.record("dspark_info_record")
        for state in top.records("internal_states")
        if state.has("dspark_info_record")
    ]
    if not dumps:
        raise top.error("internal_states", "hold no dspark_info_record", remedy="switch the recorder on")
    return dumps


def verdict(request: Record, mode: str, gamma: int) -> tuple[int, int]:
    """Return drafts with a known verdict and drafts accepted of one round."""
    correct = request.whole("correct_drafts")
    if mode in UNCENSORED_MODES:
        verified, accepted = gamma, correct + request.whole("cap_trim")
    else:
        verified, accepted = request.whole("verify_len") - 1, correct
    if not 0 <= verified <= gamma:
        raise request.error("verify_len", f"must lie in 1..{gamma + 1}, the anchor included", verified + 1)
    if not 0 <= accepted <= verified:
        raise request.error("correct_drafts", f"must lie in 0..{verified}, what was verified", accepted)
    return verified, accepted


def _confidence(request: Record, gamma: int) -> list[float]:
    if not request.has("confidence"):
        return [float("nan")] * gamma
    confidence = request.numbers("confidence")
    if len(confidence) != gamma or not all(0 <= value <= 1 for value in confidence):
        raise request.error("confidence", f"must be {gamma} values within 0..1", confidence)
    return confidence


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Elementwise quotient, NaN where the denominator is 0."""
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient
