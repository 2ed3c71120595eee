"""Tokens that a request needs for its own target first, the rest by survival."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from simulator.core.arrays import Array, Rows
from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s
from simulator.cost.asked import Asked
from simulator.schedulers.beyond.memory import Learner, Remembering, Seen
from simulator.schedulers.policies import throughputs
from simulator.schedulers.protocol import Batch
from simulator.schedulers.search import GRID, admit, global_maximum, on_grid

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
                    "must be positive", field=f"targets[{name}]", value=target_s, remedy="10ms"
                )

    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> SloMemory:
        """Return an empty memory; raises ``BadInputError`` for a target of a class that is not there."""
        known = dict(self.targets)
        unknown = known.keys() - set(classes) - {EVERYONE}
        if unknown:
            raise BadInputError(
                "is no traffic class of this run", source="policy", field="slo", value=sorted(unknown)[0],
                remedy=f"one of {', '.join(classes)}, or {EVERYONE}",
            )  # fmt: skip
        usual = known.get(EVERYONE, math.inf)
        return SloMemory(self, capacity, np.array([known.get(name, usual) for name in classes]))

    @classmethod
    def parse(cls, argument: str, text: str) -> Self:
        """Read ``12ms`` or ``chat=20ms,code=10ms``, then ``extend`` if wanted."""
        targets: list[tuple[str, float]] = []
        extend = False
        for part in filter(None, (each.strip() for each in argument.split(","))):
            name, equals, value = part.partition("=")
            if part == "extend":
                extend = True
            else:
                target_s = parse_duration_s(value if equals else part, field="slo")
                targets.append((name if equals else EVERYONE, target_s))
        if not targets:
            raise BadInputError(
                "needs time per output token", source="policy", field="slo", value=text,
                remedy="as in slo:12ms or slo:chat=20ms,code=10ms",
            )  # fmt: skip
        if len(dict(targets)) != len(targets):
            raise BadInputError(
                "names a class twice", source="policy", field="slo", value=text, remedy="leave one out"
            )
        return cls(tuple(targets), extend)


class SloMemory(Learner):
    """Per row: its target, seconds decoded and tokens got."""

    lag: ClassVar[int] = SloFirst.lag

    def __init__(self, policy: SloFirst, capacity: int, targets_s: Array) -> None:
        self.policy, self._targets_s = policy, targets_s
        self.target_s = np.full(capacity, math.inf)
        self.seconds, self.tokens = np.zeros(capacity), np.zeros(capacity)

    def asks(self, requests: int, batch: Batch) -> Asked:
        """Ask for the whole block of everyone."""
        return Asked(requests, None)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Order needed drafts before the others, and verify as many as the budget holds."""
        requests = len(survival)
        past = survival if batch.lagged is None else batch.lagged
        budget = global_maximum(throughputs(on_grid(past), batch))
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
