"""Position-indexed acceptance traces, and the replay that schedulers run on.

Speculative decoding is lossless, so the output of a sequence does not depend on how far each block was
verified. A trace therefore records, for every position as anchor, the confidences of the block drafted there
and how many drafts the target would accept under full verification. A scheduler that verifies ``l`` tokens
commits ``min(accepted, l) + 1`` tokens, and its next anchor is that many rows on. One trace thus replays
every policy exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream

TraceKind = Literal["greedy", "sampled"]

MAX_GAMMA = 255
"""Accepted lengths are stored in one byte."""


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A realised trace for the step loop: confidences and outcomes.

    Rows are anchor positions of all sequences, one sequence after the other (N rows). A request moves forward
    from its first row, and continues at row 0 after the last row.

    survival: float32 [N, gamma], cumulative product of the (calibrated) confidences.
    accepted: uint8 [N], draft tokens the target accepts under full verification, 0..gamma.
    sequence_start: int64 [S + 1], first row of each sequence, then N.
    drawn: True for outcomes drawn with a seed; False for a recording, whose outcomes are the same for all
        seeds.
    """

    survival: NDArray[np.float32]
    accepted: NDArray[np.uint8]
    sequence_start: NDArray[np.int64]
    drawn: bool = True

    @property
    def gamma(self) -> int:
        """Block size."""
        return int(self.survival.shape[1])

    @property
    def rows(self) -> int:
        """Number of anchor positions."""
        return int(self.survival.shape[0])


class AcceptanceModel(Protocol):
    """A model that can be realised as a replay: a recorded trace, a fitted model, plain rates, a mix."""

    @property
    def name(self) -> str:
        """Name of the model, as outputs show it."""

    @property
    def gamma(self) -> int:
        """Draft tokens in a block."""

    @property
    def has_confidence(self) -> bool:
        """False for drafters without a confidence head, which allow only fixed lengths."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Origin of the model's numbers."""

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Realise outcomes: the same seed gives the same bytes.

        Parameters
        ----------
        seed
            Of the draws; each traffic class of a run gets its own.
        raw
            Whether confidences stay as the head gave them, uncalibrated.

        Returns
        -------
        Replay
            Survival and accepted length of every block.
        """
        ...

    def truncated(self, gamma: int) -> AcceptanceModel:
        """Cut the drafter's blocks.

        Parameters
        ----------
        gamma
            Draft tokens that remain of each block.

        Returns
        -------
        AcceptanceModel
            The same model with blocks of ``gamma``.

        Raises
        ------
        BadInputError
            If ``gamma`` is below 1 or more than was drafted.
        """
        ...


@runtime_checkable
class Shiftable(Protocol):
    """An acceptance model whose drafts become better or worse by one number."""

    def shifted(self, level: float) -> AcceptanceModel:
        """Return the same model with ``level`` added to the log-odds of every acceptance."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AcceptanceTrace:
    """For each of N output positions as anchor: the confidences of its block and the target's verdict.

    Row i of a sequence is the block drafted with its output token i as anchor; draft k of that row
    (k = 1..gamma) stands for output token i + k.

    confidence_logits: float32 [N, gamma], raw head output; None for a drafter without a head.
    sequence_start: int64 [S + 1], first row of each sequence, then N; no sequence is empty.
    accepted: uint8 [N], accepted length under full verification (greedy kind).
    acceptance_probability: float32 [N, gamma], P(draft k accepted | drafts 1..k-1 accepted), which is
        1 - 0.5 * ||p_target - q_draft||_1 (paper, eq. 7); one uniform per (sequence, position, k)
        decides (sampled kind). Exactly one of these two is given.
    effective_length: uint8 [N], drafts of the block with a recorded verdict: less than gamma where the
        sequence ends inside the block, so that ``accepted`` there is a lower bound. Statistics skip the
        drafts beyond it; a replay rejects them. None where every block is judged whole.
    target_tokens: int64 [N], the output token of each row, when known.
    temperatures: float64 [gamma], sequential calibration temperatures, when fitted.
    """

    name: str
    confidence_logits: NDArray[np.float32] | None
    sequence_start: NDArray[np.int64]
    provenance: Provenance
    accepted: NDArray[np.uint8] | None = None
    acceptance_probability: NDArray[np.float32] | None = None
    effective_length: NDArray[np.uint8] | None = None
    target_tokens: NDArray[np.int64] | None = None
    temperatures: NDArray[np.float64] | None = None
    block_size: int | None = None
    """Needed only where neither confidences nor probabilities show it: greedy, without a head."""
    stream: str = "outcomes"
    """Role of the uniforms that decide (sampled kind). Models that share it meet common random numbers."""

    def __post_init__(self) -> None:
        if (self.accepted is None) == (self.acceptance_probability is None):
            raise self._error(
                "exactly one of accepted (greedy) and acceptance_probability (sampled) is needed"
            )
        gamma = self._declared_gamma()
        self._settle("sequence_start", np.int64, None)
        start = self.sequence_start
        if len(start) < 2 or start[0] != 0 or np.any(np.diff(start) < 1):
            raise self._error(
                "must start at 0, strictly increase and end with the row count", "sequence_start"
            )
        rows = int(start[-1])
        self._settle("confidence_logits", np.float32, (rows, gamma))
        self._settle("acceptance_probability", np.float32, (rows, gamma), 0, 1)
        self._settle("accepted", np.uint8, (rows,), 0, gamma)
        self._settle("effective_length", np.uint8, (rows,), 0, gamma)
        self._settle("target_tokens", np.int64, (rows,), 0, None)
        self._settle("temperatures", np.float64, (gamma,), float(np.finfo(np.float32).tiny), None)
        if self.temperatures is not None and self.confidence_logits is None:
            raise self._error("are given but there are no confidences to calibrate", "temperatures")

    @property
    def gamma(self) -> int:
        """Block size."""
        assert self.block_size is not None  # computed on construction
        return self.block_size

    @property
    def rows(self) -> int:
        """Number of anchor positions, N."""
        return int(self.sequence_start[-1])

    @property
    def kind(self) -> TraceKind:
        """Whether outcomes are recorded (greedy) or drawn from recorded probabilities (sampled)."""
        return "sampled" if self.accepted is None else "greedy"

    @property
    def has_confidence(self) -> bool:
        """Whether the drafter has a confidence head."""
        return self.confidence_logits is not None

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Realise outcomes: the same seed gives the same bytes.

        Without a head every row has the mean survival of the trace. That is right for fixed lengths, and does
        not tell blocks apart.

        Parameters
        ----------
        seed
            Of the draws. It matters only to the sampled kind.
        raw
            Whether confidences stay as the head gave them. Otherwise they are calibrated where the trace has
            temperatures.

        Returns
        -------
        Replay
            Survival [N, gamma] and accepted length [N] of every block.
        """
        accepted = self._outcomes(seed)
        if self.confidence_logits is None:
            survival = self._mean_survival(accepted)
        else:
            scale = 1.0 if raw or self.temperatures is None else self.temperatures.astype(np.float32)
            survival = np.cumprod(expit(self.confidence_logits / np.float32(scale)), axis=1, dtype=np.float32)
        return Replay(survival, accepted, self.sequence_start, drawn=self.accepted is None)

    def truncated(self, gamma: int) -> AcceptanceTrace:
        """Cut the trace's blocks.

        Parameters
        ----------
        gamma
            Draft tokens that remain of each block.

        Returns
        -------
        AcceptanceTrace
            The same rows with blocks of ``gamma``.

        Raises
        ------
        BadInputError
            If ``gamma`` is below 1 or more than was drafted.
        """
        check_truncation(self.name, self.gamma, gamma)
        return replace(
            self,
            block_size=gamma,
            confidence_logits=None if self.confidence_logits is None else self.confidence_logits[:, :gamma],
            acceptance_probability=(
                None if self.acceptance_probability is None else self.acceptance_probability[:, :gamma]
            ),
            accepted=None if self.accepted is None else np.minimum(self.accepted, gamma),
            effective_length=None
            if self.effective_length is None
            else np.minimum(self.effective_length, gamma),
            temperatures=None if self.temperatures is None else self.temperatures[:gamma],
        )

    def _outcomes(self, seed: int) -> NDArray[np.uint8]:
        if self.accepted is None:
            assert self.acceptance_probability is not None
            accepted = draw_accepted(self.acceptance_probability, random_stream(seed, self.stream))
        else:
            accepted = self.accepted
        return accepted if self.effective_length is None else np.minimum(accepted, self.effective_length)

    def _mean_survival(self, accepted: NDArray[np.uint8]) -> NDArray[np.float32]:
        judged = np.full(self.rows, self.gamma) if self.effective_length is None else self.effective_length
        position = np.arange(1, self.gamma + 1)
        counted = np.maximum((judged[:, None] >= position).sum(axis=0), 1)
        survival = (accepted[:, None] >= position).sum(axis=0) / counted
        # Where blocks are cut the counts differ by position; survival must not rise for that.
        return constant_rows(np.minimum.accumulate(survival), self.rows)

    def _declared_gamma(self) -> int:
        for field in ("confidence_logits", "acceptance_probability"):
            array = getattr(self, field)
            if array is not None:
                shape = np.shape(array)
                if len(shape) != 2:
                    raise self._error("must have two axes, [rows, gamma]", field, shape)
                object.__setattr__(self, "block_size", self.block_size or shape[1])
        if self.block_size is None:
            raise self._error("is missing and cannot be read off accepted alone", "block_size")
        if not 1 <= self.block_size <= MAX_GAMMA:
            raise self._error(f"must be 1 to {MAX_GAMMA}", "block_size", self.block_size)
        return self.block_size

    def _settle(
        self,
        field: str,
        dtype: type[np.generic],
        shape: tuple[int, ...] | None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Replace a field by a checked array of its type; the range is checked before the cast can wrap."""
        value = getattr(self, field)
        if value is None:
            return
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise self._error("must be finite numbers", field, _first(array, ~_finite(array)))
        if shape is not None and array.shape != shape:
            raise self._error(f"must have shape {list(shape)}", field, list(array.shape))
        outside = np.zeros(array.shape, dtype=bool)
        if low is not None:
            outside |= array < low
        if high is not None:
            outside |= array > high
        if outside.any():
            bounds = f"at least {low}" if high is None else f"within {low}..{high}"
            raise self._error(f"must be {bounds}", field, _first(array, outside))
        object.__setattr__(self, field, array.astype(dtype, copy=False))

    def _error(self, problem: str, field: str | None = None, value: object = None) -> BadInputError:
        return BadInputError(
            problem, source=self.name, field=field, value=value, remedy="mend or record the trace again"
        )


def anchor_rows(replay: Replay, gain: NDArray[np.integer[Any]] | None = None) -> NDArray[np.int64]:
    """Rows at which steps begin when every sequence is walked from its first row to its last.

    gain: tokens committed by a step at each row, [N]; full verification where not given.
    """
    gain = replay.accepted.astype(np.int64) + 1 if gain is None else gain
    row, end = replay.sequence_start[:-1], replay.sequence_start[1:]
    anchors = []
    while row.size:
        anchors.append(row)
        row = row + gain[row]
        going = row < end
        row, end = row[going], end[going]
    return np.concatenate(anchors)


def derived_seed(seed: int, name: str) -> int:
    """Derive the seed of a part, so that several parts of a stream are independent."""
    return int(random_stream(seed, name).integers(2**63))


def draw_accepted(probability: ArrayLike, stream: np.random.Generator) -> NDArray[np.uint8]:
    """Draw accepted lengths, uint8 [N], from P(draft k accepted | those before it), [N, gamma].

    Uniforms are drawn position by position, so a block cut to fewer drafts keeps its outcomes.
    """
    by_position = np.asarray(probability, dtype=np.float32).T
    alive = np.ones(by_position.shape[1], dtype=bool)
    accepted = np.zeros(by_position.shape[1], dtype=np.uint8)
    for chance in by_position:
        alive &= stream.random(alive.size, dtype=np.float32) < chance
        accepted += alive
    return accepted


def constant_rows(row: Sequence[float] | NDArray[Any], rows: int) -> NDArray[np.float32]:
    """Repeat a float32 row ``rows`` times, in memory of its own."""
    return np.tile(np.asarray(row, dtype=np.float32), (rows, 1))


def check_truncation(name: str, have: int, want: int) -> None:
    """Refuse to lengthen a block: the trace has no drafts beyond the block."""
    if not 1 <= want <= have:
        raise BadInputError(
            f"block size must be 1 to {have}, the block size of the data",
            source=name,
            field="gamma",
            value=want,
            remedy="choose a smaller block, or acceptance data of a larger one",
        )


def _finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(array) if array.dtype.kind in "iuf" else np.zeros(array.shape, dtype=bool)


def _first(array: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    index = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    return f"{array[index]} at {list(index)}"


SEQUENCES, SEQUENCE_ROWS = 256, 512
"""Size of a generated pool: 131,072 anchor positions."""
