"""Acceptance from rates: per position, from a mean length, or as a mix of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance.trace import (
    MAX_GAMMA,
    SEQUENCE_ROWS,
    SEQUENCES,
    AcceptanceModel,
    Replay,
    Shiftable,
    check_truncation,
    constant_rows,
    derived_seed,
    draw_accepted,
)
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.core.statistics import root

HOW_TO = (
    "pass a name that `dspark-sim list` shows (qwen3-4b-chat, qwen3-8b/dspark/gsm8k), a trace FILE.parquet, "
    "an engine's log FILE[@BLOCK], conditional:0.9,0.88, marginal:0.9,0.8, length:3.5@5, rate:0.34@7, or a "
    "mix 0.6*NAME+0.4*NAME"
)

_GIVEN = Provenance(kind="synthetic", source="given by the user", date="undated")


@dataclass(frozen=True, slots=True)
class Rates:
    """Drafts accepted independently at fixed conditional rates: P(draft k accepted | 1..k-1 accepted).

    Every block has the same confidences, the rates themselves. The confidences are calibrated and do not tell
    one block from another. A scheduler can follow the load with them and cannot prefer a request, so its gain
    here is a lower bound of its gain with a confidence head.
    """

    name: str
    conditional: tuple[float, ...]
    provenance: Provenance = _GIVEN

    def __post_init__(self) -> None:
        if not 1 <= len(self.conditional) <= MAX_GAMMA:
            raise refusal(f"needs 1 to {MAX_GAMMA} rates", self.name, len(self.conditional))
        for rate in self.conditional:
            if not 0 <= rate <= 1:  # also catches NaN
                raise refusal("rates must be within 0..1", self.name, rate)

    @property
    def gamma(self) -> int:
        """Block size: one rate per draft token."""
        return len(self.conditional)

    @property
    def has_confidence(self) -> bool:
        """True: the rates are the confidences."""
        return True

    @property
    def accepted_length(self) -> float:
        """Mean accepted length under full verification, bonus included."""
        return 1.0 + float(np.cumprod(self.conditional).sum())

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Draw the outcomes of a pool of blocks; ``raw`` has no effect, because rates are calibrated."""
        rows = SEQUENCES * SEQUENCE_ROWS
        probability = np.broadcast_to(np.asarray(self.conditional, np.float32), (rows, self.gamma))
        accepted = draw_accepted(probability, random_stream(seed, "outcomes"))
        start = np.arange(SEQUENCES + 1, dtype=np.int64) * SEQUENCE_ROWS
        return Replay(constant_rows(np.cumprod(self.conditional), rows), accepted, start)

    def truncated(self, gamma: int) -> Rates:
        """Return the first ``gamma`` rates."""
        check_truncation(self.name, self.gamma, gamma)
        return replace(self, conditional=self.conditional[:gamma])


def conditional_rates(rates: Sequence[float]) -> Rates:
    """Make a model from P(draft k accepted | drafts before it accepted), one rate per draft token."""
    return Rates(f"conditional:{_listed(rates)}", tuple(map(float, rates)))


def marginal_rates(rates: Sequence[float]) -> Rates:
    """Make a model from P(drafts 1..k all accepted), non-increasing, as vLLM logs them per position."""
    name = f"marginal:{_listed(rates)}"
    previous, conditional = 1.0, []
    for rate in map(float, rates):
        if not 0 <= rate <= previous:
            raise refusal("marginal rates must be within 0..1 and never rise", name, rate)
        conditional.append(rate / previous if previous > 0 else 0.0)
        previous = rate
    return Rates(name, tuple(conditional))


def mean_length(accepted_length: float, gamma: int) -> Rates:
    """Make a model of one rate whose blocks of ``gamma`` commit ``accepted_length``, bonus included."""
    name = f"length:{accepted_length:g}@{gamma}"
    if not 1 <= gamma <= MAX_GAMMA:
        raise refusal(f"block size must be 1 to {MAX_GAMMA}", name, gamma)
    if not 1 <= accepted_length <= gamma + 1:
        raise refusal(f"must be 1 to {gamma + 1}, the bonus included", name, accepted_length)

    def excess(rate: float) -> float:
        return 1.0 + float(np.sum(rate ** np.arange(1, gamma + 1))) - accepted_length

    return Rates(name, (root(excess, 0.0, 1.0, xtol=1e-12),) * gamma)


def mean_rate(rate: float, gamma: int) -> Rates:
    """Make a model of one rate in which a share ``rate`` of all drafted tokens is accepted.

    Engines print this share as "draft acceptance rate": accepted over drafted tokens. Blocks of ``gamma``
    then commit 1 + gamma * rate tokens. The chance that a single draft is accepted is higher than ``rate``.
    """
    name = f"rate:{rate:g}@{gamma}"
    if not 0 <= rate <= 1:
        raise refusal("must be within 0..1, accepted over drafted tokens", name, rate)
    return replace(mean_length(1 + gamma * rate, gamma), name=name)


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests drawn from several models in fixed shares.

    ``weights`` are shares of sequences, which are requests. Shares of tokens and steps follow from the
    lengths and the acceptance of the sequences. The replay consists of whole sequences of the components'
    replays.
    """

    components: tuple[AcceptanceModel, ...]
    weights: tuple[float, ...]
    label: str | None = None

    def __post_init__(self) -> None:
        if len(self.components) != len(self.weights) or not self.components:
            raise refusal("needs one weight per model", self.name, len(self.weights))
        for weight in self.weights:
            if not 0 < weight <= 1:
                raise refusal("weights must be above 0 and at most 1", self.name, weight)
        if abs(sum(self.weights) - 1) > 1e-6:
            raise refusal("weights must sum to 1", self.name, sum(self.weights))
        sizes = {component.name: component.gamma for component in self.components}
        if len(set(sizes.values())) > 1:
            raise refusal("block sizes differ: cut all to the smallest with NAME@GAMMA", self.name, sizes)

    @property
    def name(self) -> str:
        """The label, or the mix as a user would type it."""
        if self.label is not None:
            return self.label
        terms = zip(self.weights, self.components, strict=True)
        return "+".join(f"{weight:g}*{component.name}" for weight, component in terms)

    @property
    def gamma(self) -> int:
        """Block size of every component."""
        return self.components[0].gamma

    @property
    def has_confidence(self) -> bool:
        """True when every component's drafter has a confidence head."""
        return all(component.has_confidence for component in self.components)

    @property
    def provenance(self) -> Provenance:
        """Origins of the components."""
        sources = "; ".join(f"{c.name}: {c.provenance.line()}" for c in self.components)
        return Provenance(kind="mixed", source=sources, date=max(c.provenance.date for c in self.components))

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Draw sequences from the components' replays in the given shares, in random order.

        Each component has a seed of its own, by its place in the mix. A component given twice therefore
        brings twice as much text, and not the same text twice.
        """
        parts = [
            component.replay(derived_seed(seed, f"component {place}"), raw=raw)
            for place, component in enumerate(self.components)
        ]
        count = max(SEQUENCES, *(len(part.sequence_start) - 1 for part in parts))
        stream = random_stream(seed, "mix")
        chosen = [
            (part, sequence)
            for part, share in zip(parts, _apportion(self.weights, count), strict=True)
            for sequence in _draw_sequences(len(part.sequence_start) - 1, share, stream)
        ]
        return _laid_end_to_end([chosen[i] for i in stream.permutation(len(chosen))])

    def truncated(self, gamma: int) -> Mix:
        """Return the same mix with every component's blocks cut to ``gamma``."""
        return replace(self, components=tuple(c.truncated(gamma) for c in self.components))

    def shifted(self, level: float) -> Mix:
        """Add ``level`` to the log-odds of every acceptance of the mix; fitted components only."""
        for component in self.components:
            if not isinstance(component, Shiftable):
                raise refusal("has no level to move", component.name)
        shiftable = (c for c in self.components if isinstance(c, Shiftable))
        return replace(self, components=tuple(c.shifted(level) for c in shiftable), label=None)


def _apportion(weights: Sequence[float], count: int) -> NDArray[np.int64]:
    """Whole sequences per component, by largest remainder, at least one each."""
    exact = np.asarray(weights) * count
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: count - shares.sum()]] += 1
    shares[shares == 0] = 1
    return shares


def _draw_sequences(available: int, wanted: int, stream: np.random.Generator) -> NDArray[np.int64]:
    """Return indices of ``wanted`` sequences; all are used once before any is used again."""
    rounds = -(-wanted // available)
    drawn: NDArray[np.int64] = np.concatenate([stream.permutation(available) for _ in range(rounds)])
    return drawn[:wanted]


def _laid_end_to_end(chosen: Sequence[tuple[Replay, int]]) -> Replay:
    spans = [slice(part.sequence_start[i], part.sequence_start[i + 1]) for part, i in chosen]
    lengths = [span.stop - span.start for span in spans]
    return Replay(
        survival=np.concatenate([part.survival[span] for (part, _), span in zip(chosen, spans, strict=True)]),
        accepted=np.concatenate([part.accepted[span] for (part, _), span in zip(chosen, spans, strict=True)]),
        sequence_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def parse_rate(text: str, where: str) -> float:
    """Parse one rate of a list."""
    try:
        return float(text)
    except ValueError:
        raise refusal("is not a number", where, text) from None


def _listed(rates: Sequence[float]) -> str:
    return ",".join(f"{rate:g}" for rate in rates)


def refusal(problem: str, where: str, value: object = None) -> BadInputError:
    """Make the error of an acceptance text; the remedy shows the correct form."""
    return BadInputError(problem, source="acceptance", field=where, value=value, remedy=HOW_TO)
