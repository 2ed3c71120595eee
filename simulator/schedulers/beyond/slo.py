"""Requests that are behind come first: strictly, by what their target needs, or by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from simulator.core.arrays import Array, Rows
from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s
from simulator.cost.asked import Asked
from simulator.schedulers.beyond.memory import Learner, Remembering, Seen
from simulator.schedulers.options import from_options
from simulator.schedulers.policies import most_productive
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import GRID, admit, on_grid

EVERYONE = "all"

_BONUS = 1.0
"""Tokens that a request gets without a draft."""


@dataclass(frozen=True, slots=True)
class SloFirst(Remembering):
    """The budget of ``dspark-async``, spent first on requests that are behind their TPOT target.

    Rule (AdaServe, arXiv 2501.12162; AdaSpec, arXiv 2503.05096): a request with target t that has n tokens
    after decoding for s seconds needs ceil((s + T) / t) - n tokens of this step of T seconds. Its drafts are
    needed until their expected number reaches that. Needed drafts come before all others; within both, the
    higher survival wins. ``extend``: verify all needed drafts even where they exceed the budget.
    targets: seconds per token by traffic class, ``all`` for the others; a class without one needs nothing.

    Lossless. Draft j of r is needed by survivals before j alone, and where j is not needed none deeper is.
    So no draft of r deeper than j ever precedes j, and what depends on token j cannot decide on it. With
    ``extend`` a needed draft is always verified, and the others by what the shallower ones left.
    It needs survival, T, and the targets.
    """

    targets: tuple[tuple[str, float], ...]
    extend: bool = False
    lag: ClassVar[int] = 2
    reason: ClassVar[str] = "a draft is needed by survivals before it, and the budget is 2 steps old"

    def __post_init__(self) -> None:
        for name, target_s in self.targets:
            if not 0 < target_s < math.inf:
                raise BadInputError(
                    "must be positive", field=f"targets[{name}]", value=target_s, remedy="as in 10ms"
                )

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> SloMemory:
        """Return an empty memory; raises ``BadInputError`` for a target of a class that is not there."""
        return SloMemory(self, capacity, _by_class(self.targets, classes))

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read ``12ms`` or ``chat=20ms,code=10ms``, then ``extend`` if wanted."""
        parts = [each.strip() for each in argument.split(",") if each.strip()]
        targets = _targets([each for each in parts if each != "extend"])
        if not targets:
            raise BadInputError(
                "needs time per output token", remedy="as in slo:12ms or slo:chat=20ms,code=10ms"
            )
        return cls(targets, "extend" in parts)


def _targets(parts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Read seconds per token by class out of ``12ms`` or ``CLASS=12ms``."""
    targets = []
    for part in parts:
        name, equals, value = part.partition("=")
        target_s = parse_duration_s(value if equals else part, field=name if equals else EVERYONE)
        targets.append((name if equals else EVERYONE, target_s))
    if len(dict(targets)) != len(targets):
        raise BadInputError("names a class twice", remedy="leave one out")
    return tuple(targets)


def _by_class(targets: Sequence[tuple[str, float]], classes: Sequence[str]) -> Array:
    """Targets in the order of the classes, infinite for one without."""
    known = dict(targets)
    unknown = known.keys() - set(classes) - {EVERYONE}
    if unknown:
        raise BadInputError(
            "is no traffic class of this run", source="policy", field="slo", value=sorted(unknown)[0],
            remedy=f"one of {', '.join(classes)}, or {EVERYONE}",
        )  # fmt: skip
    usual = known.get(EVERYONE, math.inf)
    return np.array([known.get(name, usual) for name in classes])


class Progress(Learner):
    """Per row: its target, seconds decoded and tokens got. The drafter is asked for everything."""

    lag: ClassVar[int] = 2

    def __init__(self, capacity: int, targets_s: Array) -> None:
        self._targets_s = targets_s
        self.target_s = np.full(capacity, math.inf)
        self.seconds, self.tokens = np.zeros(capacity), np.zeros(capacity)

    def asks(self, requests: int, batch: Batch) -> Asked:
        """Ask for the whole block of everyone."""
        return Asked(requests, None)

    def observe(self, seen: Seen) -> None:
        """Count time and tokens."""
        count = len(seen.accepted)
        self.seconds[:count] += seen.gap_s
        self.tokens[:count] += seen.accepted + 1

    def place(self, rows: Rows, classes: Rows) -> None:
        """Start newcomers at nothing, with the target of their class."""
        self.seconds[rows] = self.tokens[rows] = 0.0
        self.target_s[rows] = self._targets_s[classes]

    def move(self, source: Rows, target: Rows) -> None:
        """Carry rows."""
        for array in (self.target_s, self.seconds, self.tokens):
            array[target] = array[source]


class SloMemory(Progress):
    """Progress of each row against its target."""

    def __init__(self, policy: SloFirst, capacity: int, targets_s: Array) -> None:
        super().__init__(capacity, targets_s)
        self.policy = policy

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Order needed drafts before the others, and verify as many as the budget holds."""
        requests = len(survival)
        past = survival if batch.lagged is None else batch.lagged
        budget = most_productive(on_grid(past), batch)
        rows = requests + budget + batch.prefill_tokens
        time_s = batch.cost.step_time_s(requests, rows, batch.context_tokens, batch.prefill_tokens)
        grid = on_grid(survival).astype(np.int64)
        needed = self.needed(grid, time_s)
        if self.policy.extend:
            budget = max(budget, int(needed.sum()))
        return admit(grid + needed * (GRID + 1), budget)

    def needed(self, grid: Array, time_s: float) -> Array:
        """Tell which drafts are needed of each request in a step of ``time_s``, bool [R, gamma]."""
        count = len(grid)
        due = np.ceil((self.seconds[:count] + time_s) / self.target_s[:count])
        lacking = due - self.tokens[:count] - _BONUS
        before = np.cumsum(grid, axis=1) - grid
        return np.asarray(before < (lacking * GRID)[:, None])


@dataclass(frozen=True, slots=True)
class Balanced(Remembering):
    """The budget of ``dspark-async``, its drafts ranked by survival times how far a request is behind.

    Rule (proportional fairness over survivals, of this project): a request with n tokens after s seconds and
    target t is behind by b = (s + h) / (t * n + h), with h the time of ``_HORIZON`` steps, so that a newcomer
    is neither behind nor ahead, within 1/4 to 4. Drafts with the highest survival * b ** power are verified.
    Without a target t is the mean time per token of the batch. power 0 is ``dspark-async``; the higher, the
    more slow requests get of the same budget: their speed rises, and with it p10, for some of the mean.
    targets: seconds per token by traffic class, ``all`` for the others.

    Lossless: the weights come from earlier steps, and within a request the order stays that of survival, so
    no draft deeper than j ever precedes j. It needs survival and T.
    """

    power: float = 2.0
    targets: tuple[tuple[str, float], ...] = ()
    lag: ClassVar[int] = 2
    reason: ClassVar[str] = (
        "weights and budget come from earlier steps, and the order within a block is its own"
    )

    def __post_init__(self) -> None:
        self.keep_within("power", 0, 100)

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> BalancedMemory:
        """Return an empty memory; raises ``BadInputError`` for a target of a class that is not there."""
        return BalancedMemory(self, capacity, _by_class(self.targets, classes))

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read ``power=2`` and targets as ``slo`` takes them."""
        parts = [each.strip() for each in argument.split(",") if each.strip()]
        powers = [each for each in parts if each.startswith("power=")]
        targets = _targets([each for each in parts if each not in powers])
        return replace(from_options(cls, ",".join(powers)), targets=targets)


_HORIZON = 20
"""Steps whose time a newcomer counts as having kept its target: a choice, about a passage."""

_MOST_BEHIND = 4.0


class BalancedMemory(Progress):
    """Progress of each row against its target, or against the others."""

    def __init__(self, policy: Balanced, capacity: int, targets_s: Array) -> None:
        super().__init__(capacity, targets_s)
        self.policy = policy

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Spend the budget on the drafts with the highest weighted survival."""
        requests = len(survival)
        past = survival if batch.lagged is None else batch.lagged
        budget = most_productive(on_grid(past), batch)
        rows = requests + budget + batch.prefill_tokens
        time_s = batch.cost.step_time_s(requests, rows, batch.context_tokens, batch.prefill_tokens)
        weight = self.behind(requests, _HORIZON * time_s) ** self.policy.power
        return admit((on_grid(survival) * weight[:, None]).astype(np.int64), budget)

    def behind(self, requests: int, horizon_s: float) -> Array:
        """How far each request is behind: 1 on target, [R]."""
        seconds, tokens = self.seconds[:requests], self.tokens[:requests]
        target_s = self.target_s[:requests]
        total = tokens.sum()
        usual = seconds.sum() / total if total else 1.0
        target_s = np.where(np.isinf(target_s), usual, target_s)
        late = (seconds + horizon_s) / (target_s * tokens + horizon_s)
        return np.clip(late, 1 / _MOST_BEHIND, _MOST_BEHIND)
