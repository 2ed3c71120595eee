"""Policies that remember: a frozen description, and what one replica learned in one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np

from simulator.core.arrays import Array, Rows
from simulator.core.errors import BadInputError
from simulator.cost.asked import Asked
from simulator.schedulers.protocol import Batch


class Seen(NamedTuple):
    """What a step did: drafts verified and accepted, int64 [R]; its time, and that since the last tokens."""

    lengths: Rows
    accepted: Rows
    duration_s: float
    gap_s: float


class Learner(ABC):
    """What a policy keeps of one replica's run; the engine tells it of rows, steps and outcomes.

    A step is ``asks`` (before drafting), ``schedule`` (after), ``observe`` (when tokens are delivered).
    NumPy only: a live run does not tell a policy what its steps did.
    """

    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reason: ClassVar[str] = "see the policy"
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None

    @abstractmethod
    def asks(self, requests: int, batch: Batch) -> Asked:
        """Say what the drafter shall draft in this step."""

    @abstractmethod
    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Turn survival [R, gamma] into verification lengths [R]; what was not drafted gets 0."""

    def observe(self, seen: Seen) -> None:  # noqa: B027  # a default: learns nothing
        """Learn from a finished step."""

    def place(self, rows: Rows, classes: Rows) -> None:  # noqa: B027  # a default: keeps nothing
        """Take newcomers of these traffic classes into these rows."""

    def move(self, source: Rows, target: Rows) -> None:  # noqa: B027  # a default: keeps nothing
        """Carry what is known of rows to where these requests are now."""


class Remembering(ABC):
    """A policy that is started once for each replica, and decides only then."""

    lag: ClassVar[int] = 0
    lossless: ClassVar[bool] = True
    reads_outcome: ClassVar[bool] = False
    draft_tokens: ClassVar[int | None] = None
    __slots__ = ()

    @abstractmethod
    def start(self, capacity: int, gamma: int, classes: Sequence[str]) -> Learner:
        """Return an empty memory for a replica of ``capacity`` rows and blocks of ``gamma``."""

    def schedule(self, survival: Array, batch: Batch) -> NoReturn:
        """Refuse: there is no memory here."""
        raise self.unstarted()

    def keep_within(self, name: str, low: float, high: float) -> None:
        """Refuse a field outside its range, NaN included; the remedy is its default."""
        value = getattr(self, name)
        if not low <= value <= high:
            usual = {each.name: each.default for each in fields(self)}[name]  # type: ignore[arg-type]
            raise BadInputError(
                f"must lie in {low:g}..{high:g}", field=name, value=value, remedy=f"as in {name}={usual}"
            )

    def unstarted(self) -> BadInputError:
        """Return the error of a run that tells a policy nothing."""
        return BadInputError(
            "decides by what its own earlier steps did, which only a simulated engine tells it",
            field="policy", value=type(self).__name__, remedy="simulate it, or run another policy",
        )  # fmt: skip


class OneLength(Learner):
    """One length for the whole batch, chosen before drafting."""

    def __init__(self, gamma: int) -> None:
        self.gamma, self.length = gamma, 0

    @abstractmethod
    def choose(self, requests: int, batch: Batch) -> int:
        """Return the length of this step, 0 to draft nothing."""

    def asks(self, requests: int, batch: Batch) -> Asked:
        """As many tokens as will be verified."""
        self.length = self.choose(requests, batch)
        return Asked(requests, self.length)

    def schedule(self, survival: Array, batch: Batch) -> Array:
        """Return the length for everyone."""
        return np.full(len(survival), self.length, dtype=np.int64)
