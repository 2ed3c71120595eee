"""Acceptance from published numbers: a latent model of how predictable text is.

Three parts make text easy or hard to draft: the request, the passage within it, and the single token. A whole
block shares the first two, so the blocks whose first drafts survive are easier than average. The third
varies from token to token. Each part is a normal variable, and the shared ones are skewed towards the easy
side; their sum and a level per draft position are the log-odds of acceptance. The confidence head reports
that chance stretched and shifted, so that its ranking is perfect and its calibration is as published.
Outcomes are drawn from the chance.

Parameters are fitted by ``simulator/paper/fit.py`` and shipped in ``traces/fitted.json``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit, ndtri

from simulator.acceptance.trace import SEQUENCE_ROWS, SEQUENCES, AcceptanceTrace, Replay, check_truncation
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.core.reading import checked, read_json
from simulator.core.statistics import root

SOLVING_SEQUENCES = 4 * SEQUENCES
"""Sequences over which expectations are taken when a level is solved for."""

KEPT_TEXTS = 6
"""Texts kept in a process, some 4 MB each: of a mix of three, those of two seeds. A choice."""

LOGIT_LIMIT = 16.0
"""Largest log-odds on either side of 0: beyond it float32 cannot tell the chance from 0 or 1."""

_SKEW_LIMIT = 4.0  # standard deviations, because the skewed tail grows exponentially

_LEVEL_LIMIT = 8.0

_FEW = 64  # sequences: their level lay within 0.05 of that of all in every fourth shipped model

_NEAR = 0.25  # in log-odds

Chances = NDArray[np.float32]


class Predictability(BaseModel):
    """How easily text is drafted, in log-odds of acceptance, before the level of a drafter.

    skew: how much further the easy side of the shared part reaches than the hard side (Tukey's g).
    request_share: part of the shared variance that stays the same throughout a request.
    correlation: of the other part, between one output token and the next.
    passage_scale, token_scale: spread of the shared and of the single-token part, per draft position.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    skew: float = Field(gt=0, le=3)
    request_share: float = Field(ge=0, le=1)
    correlation: float = Field(ge=0, lt=1)
    passage_scale: tuple[float, ...]
    token_scale: tuple[float, ...]

    def of(self, text: Text) -> Predictability:
        """Return the predictability of another kind of text, wider or narrower at every draft position."""
        return self.model_copy(
            update={
                "passage_scale": tuple(scale * text.spread for scale in self.passage_scale),
                "token_scale": tuple(scale * text.spread for scale in self.token_scale),
            }
        )

    def draw(self, stream: np.random.Generator, sequences: int = SEQUENCES) -> Chances:
        """Log-odds at level 0, float32 [sequences, SEQUENCE_ROWS, gamma].

        Draft k at anchor i stands for output token i + k wherever the block begins, so neighbouring blocks
        agree on which tokens are hard.
        """
        gamma = len(self.token_scale)
        # Evenly spaced quantiles: with a few hundred requests, random ones would move the mean.
        request = stream.permutation(ndtri((np.arange(sequences) + 0.5) / sequences)).astype(np.float32)
        passage = _autoregressive(stream, sequences, self.correlation)
        token = stream.standard_normal((sequences, SEQUENCE_ROWS + gamma - 1), dtype=np.float32)
        shared = np.sqrt(self.request_share) * request[:, None] + np.sqrt(1 - self.request_share) * passage
        shared = np.clip(shared, -_SKEW_LIMIT, _SKEW_LIMIT).astype(np.float32)
        eased = np.expm1(np.float32(self.skew) * shared) / np.float32(self.skew)
        of_draft = sliding_window_view(token, gamma, axis=1)
        logits: Chances = eased[:, :, None] * _row(self.passage_scale) + of_draft * _row(self.token_scale)
        return logits


class Text(BaseModel):
    """A kind of text, relative to the Alpaca prompts of figure 6.

    spread: factor on the spread of difficulty. offset: added to the output of the confidence head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spread: float = Field(gt=0)
    offset: float


class Head(BaseModel):
    """Output of the confidence head: ``raw_k = stretch_k * logit(chance_k) + offset_k``.

    temperatures: sequential temperature scaling of the raw output (reference convention). Scaling can undo
    the stretch and not the offset; the remaining calibration error comes from the offset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stretch: tuple[float, ...]
    offset: tuple[float, ...]
    temperatures: tuple[float, ...]

    def raw(self, logits: Chances) -> Chances:
        """Raw confidence logits of true log-odds, [..., gamma]."""
        reported: Chances = logits * _row(self.stretch) + _row(self.offset)
        return reported


@dataclass(frozen=True, slots=True)
class FittedModel:
    """One drafter on one kind of text; realises as a sampled trace, the same for the same seed.

    levels: log-odds added per draft position; fitted so that acceptance is as published.
    level: a further shift of all positions, 0 as fitted (see ``shifted``).
    published_accepted_length: tau of table 1 at its block size of 7, bonus included.
    """

    base: str
    predictability: Predictability
    levels: tuple[float, ...]
    head: Head | None
    provenance: Provenance
    published_accepted_length: float | None = None
    gamma: int = 7
    level: float = 0.0

    @property
    def name(self) -> str:
        """``target/drafter/dataset``, followed by the shift where there is one."""
        return f"{self.base}{self.level:+g}" if self.level else self.base

    @property
    def has_confidence(self) -> bool:
        """Whether the drafter has a confidence head: DSpark does; Eagle3 and DFlash run fixed lengths."""
        return self.head is not None

    def trace(self, seed: int) -> AcceptanceTrace:
        """Draw a pool of blocks with their chances of acceptance and the output of the head.

        All models of a dataset, at any level, have the same text and the same random numbers, so that noise
        does not add to their differences.
        """
        dataset = self.base.rpartition("/")[2]
        logits = self._logits(_text(self.predictability, seed, dataset)).reshape(-1, len(self.levels))
        trace = AcceptanceTrace(
            name=self.name,
            confidence_logits=None if self.head is None else self.head.raw(logits),
            sequence_start=np.arange(SEQUENCES + 1, dtype=np.int64) * SEQUENCE_ROWS,
            provenance=self.provenance,
            acceptance_probability=expit(logits),
            temperatures=None if self.head is None else np.asarray(self.head.temperatures),
            stream=f"outcomes/{dataset}",
        )
        return trace.truncated(self.gamma)

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Realise outcomes; survival is calibrated unless ``raw``."""
        return self.trace(seed).replay(seed, raw=raw)

    def truncated(self, gamma: int) -> FittedModel:
        """Return the same drafter with blocks cut to ``gamma``."""
        check_truncation(self.name, self.gamma, gamma)
        return replace(self, gamma=gamma)

    def shifted(self, level: float) -> FittedModel:
        """Return the drafter on text easier by ``level``, in log-odds of acceptance at every position."""
        if not np.isfinite(level):
            raise BadInputError("must be finite", source=self.name, field="level", value=level)
        return replace(self, level=self.level + level)

    def log_odds(self) -> Chances:
        """Log-odds of acceptance over the pool of expectations, [sequences, rows, gamma]."""
        return self._logits(_solving_pool(self.predictability))[..., : self.gamma]

    def accepted_length(self) -> float:
        """Return the expected accepted length under full verification at this block size, bonus included."""
        return mean_accepted_length(self.log_odds())

    def with_accepted_length(self, accepted_length: float) -> FittedModel:
        """Shift the level so that full verification commits ``accepted_length`` per step, bonus included."""
        try:
            return self.shifted(solve_level(self.log_odds(), accepted_length))
        except ValueError:
            raise BadInputError(
                "cannot be reached by this model",
                source=self.name,
                field="accepted length",
                value=accepted_length,
                remedy=f"choose a value above 1 and below {self.gamma + 1}",
            ) from None

    def _logits(self, text: Chances) -> Chances:
        logits: Chances = np.clip(
            text + _row(self.levels) + np.float32(self.level), -LOGIT_LIMIT, LOGIT_LIMIT
        )
        return logits


@lru_cache(maxsize=KEPT_TEXTS)
def _text(predictability: Predictability, seed: int, dataset: str) -> Chances:
    """Draw a dataset's text, which drafters and levels have in common."""
    return _read_only(predictability.draw(random_stream(seed, f"text/{dataset}")))


@lru_cache(maxsize=1)
def _solving_pool(predictability: Predictability) -> Chances:
    """Draw the text of expectations, which a model is asked for at every level that is solved for."""
    return _read_only(predictability.draw(random_stream(0, "solving pool"), SOLVING_SEQUENCES))


def _read_only(values: Chances) -> Chances:
    values.flags.writeable = False
    return values


def mean_accepted_length(logits: Chances) -> float:
    """Tokens committed per step by requests that verify every block whole, from log-odds [S, rows, gamma]."""
    return _mean_length(_by_row(logits))


def solve_level(logits: Chances, accepted_length: float) -> float:
    """Find the shift of all log-odds that gives a ``mean_accepted_length``; ``ValueError`` if none does.

    A few of the sequences say about where it lies, so that all of them are asked a few times only.
    """
    by_row = _by_row(logits)
    few = by_row[..., :: max(1, len(logits) // _FEW)]

    def excess(of: Chances) -> Callable[[float], float]:
        return lambda level: _mean_length(of + np.float32(level)) - accepted_length

    try:
        near = root(excess(few), -_LEVEL_LIMIT, _LEVEL_LIMIT, xtol=1e-3)
        return root(excess(by_row), near - _NEAR, near + _NEAR, xtol=1e-4)
    except ValueError:  # the few are not like all
        return root(excess(by_row), -_LEVEL_LIMIT, _LEVEL_LIMIT, xtol=1e-4)


def expected_walk(chances: Chances) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(visits, prefix)`` of requests that verify every block whole.

    chances: [sequences, rows, gamma], P(draft k accepted | those before it).
    visits: [sequences, rows], P(the row is an anchor): a request starts at row 0 and an anchor that accepts
        a drafts leads to the one a + 1 rows on. Hard passages take more steps, so their rows count for more
        in any average over steps, as in the paper's measurements.
    prefix: [sequences, rows, gamma], P(drafts 1..k all accepted).
    """
    prefix = _prefix(_by_row(chances))
    return _visits(prefix).T, prefix.transpose(2, 0, 1)


def _by_row(values: Chances) -> Chances:
    """[sequences, rows, gamma] as [rows, gamma, sequences]: a walk goes through all sequences at once."""
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _mean_length(logits: Chances) -> float:
    """``mean_accepted_length`` of log-odds [rows, gamma, sequences]."""
    prefix = _prefix(expit(logits))
    visits = _visits(prefix)
    return 1.0 + float(np.einsum("rs,rks->", visits, prefix) / visits.sum())


def _prefix(chances: Chances) -> NDArray[np.float64]:
    """P(drafts 1..k all accepted) of chances [rows, gamma, sequences]."""
    prefix = np.empty(chances.shape)
    prefix[:, 0] = chances[:, 0]
    for k in range(1, chances.shape[1]):
        np.multiply(prefix[:, k - 1], chances[:, k], out=prefix[:, k])
    return prefix


def _visits(prefix: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(the row is an anchor), [rows, sequences]."""
    rows, gamma, sequences = prefix.shape
    jump = np.empty((rows, gamma + 1, sequences))
    np.subtract(1, prefix[:, 0], out=jump[:, 0])
    np.subtract(prefix[:, :-1], prefix[:, 1:], out=jump[:, 1:gamma])
    jump[:, gamma] = prefix[:, -1]
    visits = np.zeros((rows + gamma + 1, sequences))
    visits[0] = 1
    for row, leap in enumerate(jump):
        visits[row + 1 : row + gamma + 2] += leap * visits[row]
    return visits[:rows]


PLAIN_TEXT = Text(spread=1.0, offset=0.0)
"""The text of figure 6."""


class _Shape(BaseModel):
    """Parameters that figure 2 determines, for one drafter and one kind of text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[float, ...]
    temperatures: tuple[float, ...] | None = None


class _Cell(BaseModel):
    """Parameters that table 1 determines, for one target, drafter and dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: str
    shift: float
    published_accepted_length: float


class Parameters(BaseModel):
    """Contents of ``traces/fitted.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["dspark-simulator/fitted-acceptance"] = Field(alias="schema")
    version: Literal[1]
    provenance: Provenance
    predictability: Predictability
    stretch: tuple[float, ...]
    offset: tuple[float, ...]
    texts: Mapping[str, Text]
    shapes: Mapping[str, _Shape]
    models: Mapping[str, _Cell]

    def model(self, name: str) -> FittedModel:
        """Assemble the model of one cell."""
        cell = self.models[name]
        shape = self.shapes[cell.shape]
        target, drafter, _ = name.split("/")
        text = self.texts.get(cell.shape.partition("/")[2], PLAIN_TEXT)
        head = None
        if shape.temperatures is not None:
            offset = tuple(value + text.offset for value in self.offset)
            head = Head(stretch=self.stretch, offset=offset, temperatures=shape.temperatures)
        return FittedModel(
            base=name,
            predictability=self.predictability.of(text),
            levels=tuple(level + cell.shift for level in shape.levels),
            head=head,
            provenance=self.provenance.model_copy(update={"model": target, "draft": drafter}),
            published_accepted_length=cell.published_accepted_length,
            gamma=len(shape.levels),
        )


ALIASES: Mapping[str, str] = {
    f"qwen3-4b-{domain}": f"qwen3-4b/dspark/{domain}" for domain in ("math", "code", "chat")
}
"""Short names of the three models with the most published data."""


def catalogue() -> tuple[FittedModel, ...]:
    """Every fitted model, with its published accepted length and provenance."""
    parameters = _shipped()
    return tuple(parameters.model(name) for name in parameters.models)


def is_fitted(name: str) -> bool:
    """Whether a fitted model has that name or alias."""
    return _full_name(name) in _shipped().models


def _full_name(name: str) -> str:
    return ALIASES.get(name.lower(), name.lower())


def fitted_model(name: str, others: Iterable[str] = ()) -> FittedModel:
    """Find the fitted model of that name or alias; ``BadInputError`` suggests the nearest names.

    others: names of further models that a user may have meant.
    """
    parameters = _shipped()
    if is_fitted(name):
        return parameters.model(_full_name(name))
    nearest = difflib.get_close_matches(
        name.lower(), [*ALIASES, *others, *parameters.models], n=3, cutoff=0.5
    )
    raise BadInputError(
        "is not a known acceptance model",
        source="acceptance",
        value=name,
        remedy=f"did you mean {', '.join(nearest)}?" if nearest else "see `dspark-sim list`",
    )


def read_parameters(path: Path) -> Parameters:
    """Read and check a parameter file."""
    return checked(Parameters, read_json(path), str(path))


@cache
def _shipped() -> Parameters:
    return read_parameters(data_directory("traces") / "fitted.json")


def _autoregressive(stream: np.random.Generator, sequences: int, correlation: float) -> Chances:
    """Stationary standard normal paths, float32 [sequences, SEQUENCE_ROWS]."""
    path = stream.standard_normal((SEQUENCE_ROWS, sequences), dtype=np.float32)
    path[1:] *= np.float32(np.sqrt(1 - correlation**2))
    for earlier, later in pairwise(path):
        later += np.float32(correlation) * earlier
    return path.T


def _row(values: Sequence[float]) -> Chances:
    return np.asarray(values, dtype=np.float32)
