"""Acceptance models with more or fewer accepted draft tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from simulator.acceptance.fitted import FittedModel
from simulator.acceptance.rates import Mix, Rates
from simulator.acceptance.trace import AcceptanceModel, Replay, anchor_rows
from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.core.statistics import root

Lengths = NDArray[np.uint8]


def with_difficulty(model: AcceptanceModel, request_share: float) -> AcceptanceModel | None:
    """Change how much of the difficulty lasts a whole request; None for a model without difficulty.

    request_share: share of the shared variance, 0 (all requests alike) to 1. Fitted models assume 0.3,
    because no publication gives the share. The mean difficulty of blocks does not change.
    """
    if isinstance(model, FittedModel):
        difficulty = model.predictability.model_copy(update={"request_share": request_share})
        return replace(model, predictability=difficulty)
    if isinstance(model, Mix):
        parts = [with_difficulty(each, request_share) or each for each in model.components]
        changed = any(new is not old for new, old in zip(parts, model.components, strict=True))
        return replace(model, components=tuple(parts)) if changed else None
    return None


Levels = Mapping[tuple[FittedModel, float], float]
"""Solved levels: of a fitted model with a factor on its accepted draft tokens."""


def fitted_in(model: AcceptanceModel | None) -> tuple[FittedModel, ...]:
    """Return the fitted models that a model consists of: scaling it takes a solve for each."""
    if isinstance(model, Mix):
        return tuple(part for each in model.components for part in fitted_in(each))
    return (model,) if isinstance(model, FittedModel) else ()


def scaled_level(model: FittedModel, factor: float) -> float:
    """Solve for the level at which a fitted model accepts ``factor`` times as many draft tokens."""
    return model.with_accepted_length(_target(model.accepted_length(), model.gamma, factor)).level


def scaled_acceptance(
    model: AcceptanceModel, factor: float, levels: Levels = MappingProxyType({})
) -> AcceptanceModel:
    """Make a model that accepts ``factor`` times as many draft tokens per step under full verification.

    Accepted draft tokens, tau - 1, are scaled: the bonus token comes whatever the drafts are worth. The
    result never exceeds 99.9% of the block. Fitted models and plain rates shift the log-odds of
    every acceptance, a mix each of its components; a recorded trace is altered draft by draft
    (``ScaledTrace``). levels: what has been solved before.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise BadInputError("must be positive", field="acceptance factor", value=factor)
    if isinstance(model, FittedModel):
        known = levels.get((model, factor))
        return replace(model, level=scaled_level(model, factor) if known is None else known)
    if isinstance(model, Rates):
        return _shifted_rates(model, factor)
    if isinstance(model, Mix):
        return replace(
            model, components=tuple(scaled_acceptance(c, factor, levels) for c in model.components)
        )
    return ScaledTrace(model, factor)


@dataclass(frozen=True, slots=True, eq=False)
class ScaledTrace:
    """A recorded trace with more or fewer drafts accepted.

    Fewer: every accepted draft is rejected with one probability, independently. More: every draft at
    which a block was rejected is accepted with one probability, and so on to the end of the block.
    The probability is solved for on the trace; survival is raised to the power that makes its mean follow.
    """

    base: AcceptanceModel
    factor: float

    @property
    def name(self) -> str:
        """The name of the trace and the factor."""
        return f"{self.base.name} x{self.factor:g}"

    @property
    def gamma(self) -> int:
        """Block size."""
        return self.base.gamma

    @property
    def has_confidence(self) -> bool:
        """Whether the trace has confidences."""
        return self.base.has_confidence

    @property
    def provenance(self) -> Provenance:
        """Origin of the trace."""
        return self.base.provenance

    def truncated(self, gamma: int) -> ScaledTrace:
        """Return the same with blocks cut to ``gamma``."""
        return replace(self, base=self.base.truncated(gamma))

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Realise the trace's replay, altered."""
        replay = self.base.replay(seed, raw=raw)
        now = float(replay.accepted[anchor_rows(replay)].mean())
        goal = min(now * self.factor, 0.999 * self.gamma)
        uniform = random_stream(seed, "altered drafts").random((replay.rows, self.gamma))
        alter = _with_rejections if goal < now else _with_acceptances

        def excess(chance: float) -> float:
            altered = replace(replay, accepted=alter(replay.accepted, uniform, chance))
            return float(altered.accepted[anchor_rows(altered)].mean()) - goal  # steps move too

        if now in (0.0, goal):
            return replay
        accepted = alter(replay.accepted, uniform, root(excess, 0.0, 1.0, xtol=1e-5))
        return replace(replay, accepted=accepted, survival=_following(replay, accepted))


def _with_rejections(accepted: Lengths, uniform: Floats, chance: float) -> Lengths:
    # np.argmax finds the first lost draft; a last column of True means that no draft is lost.
    lost: NDArray[np.bool_] = np.hstack([uniform < chance, np.ones((len(uniform), 1), dtype=bool)])
    kept: Lengths = np.minimum(accepted, np.argmax(lost, axis=1)).astype(np.uint8)
    return kept


def _with_acceptances(accepted: Lengths, uniform: Floats, chance: float) -> Lengths:
    longer = accepted.astype(np.int64)
    rows = np.arange(len(longer))
    for _ in range(uniform.shape[1]):
        short = rows[longer[rows] < uniform.shape[1]]
        rows = short[uniform[short, longer[short]] < chance]
        longer[rows] += 1
    return longer.astype(np.uint8)


def _following(replay: Replay, accepted: Lengths) -> NDArray[np.float32]:
    """Survival ** power with the mean per block that the altered outcomes have."""
    goal = float(accepted.mean())

    def excess(log_power: float) -> float:
        return float((replay.survival ** np.exp(log_power)).sum(axis=1).mean()) - goal

    low, high = -8.0, 8.0
    if excess(low) * excess(high) >= 0:
        return replay.survival  # survival of 0 or 1 everywhere, which no power changes
    power = np.exp(root(excess, low, high, xtol=1e-6))
    survival: NDArray[np.float32] = (replay.survival**power).astype(np.float32)
    return survival


def _shifted_rates(model: Rates, factor: float) -> Rates:
    inner = np.clip(model.conditional, 1e-9, 1 - 1e-9)
    goal = _target(model.accepted_length, model.gamma, factor)

    def length(shift: float) -> float:
        return 1.0 + float(np.cumprod(expit(logit(inner) + shift)).sum())

    shift = root(lambda s: length(s) - goal, -30.0, 30.0, xtol=1e-9)
    rates: Sequence[float] = expit(logit(inner) + shift).tolist()
    return replace(model, name=f"{model.name} x{factor:g}", conditional=tuple(rates))


def _target(accepted_length: float, gamma: int, factor: float) -> float:
    return 1.0 + min((accepted_length - 1.0) * factor, 0.999 * gamma)
