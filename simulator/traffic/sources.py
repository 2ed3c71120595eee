"""Traffic: the requests that arrive, with their times and lengths.

``Traffic`` is any object with ``workload(seed, requests=, duration_s=)``. Two kinds exist: an arrival process
with classes of request lengths (``SyntheticTraffic``), and a recorded workload (``ReplayTraffic``).

Streams are never clamped: a floor of gaps, a ceiling of rates or a cap of lengths would change the load that
was asked for. Arrivals, classes and lengths have separate random streams, derived from (seed, name). Request
``i`` therefore keeps its class and its lengths when the rate, the process or the number of requests changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.traffic.arrivals import (
    SHARES,
    Arrivals,
    ClosedLoop,
    Times,
    check_limits,
    require_positive,
    require_within,
)
from simulator.traffic.lengths import Lengths, Tokens, longest_of, longest_request
from simulator.traffic.recorded.files import ReadReport
from simulator.traffic.replay import copied, resampled, untied
from simulator.traffic.workload import MAX_CLASSES, Workload

DRAWN = 4096
"""Requests that are drawn to judge lengths before a simulation. A choice: shares are then within 1.6%."""


class Traffic(Protocol):
    """A source of requests."""

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrival rate; ``None`` in a closed loop."""
        ...

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """Draw the first ``requests`` requests, those within ``duration_s``, or whichever ends first."""
        ...

    def scaled(self, factor: float) -> Traffic:
        """Return the same traffic with ``factor`` times as many requests per second."""
        ...


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """Requests of one kind; acceptance and SLA are attached elsewhere by ``name``."""

    name: str
    lengths: Lengths
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise BadInputError("must not be empty", field="traffic class name")
        require_within(self.share, SHARES, f"share of class {self.name}")


@dataclass(frozen=True, slots=True)
class SyntheticTraffic:
    """An arrival process whose requests belong to classes in proportion to their shares."""

    arrivals: Arrivals | ClosedLoop
    classes: tuple[TrafficClass, ...]

    def __post_init__(self) -> None:
        names = [each.name for each in self.classes]
        if not names or len(set(names)) != len(names):
            raise BadInputError(
                "must be at least one, with distinct names", field="traffic classes", value=names
            )
        if len(names) > MAX_CLASSES:
            raise BadInputError(f"must be at most {MAX_CLASSES:,}", field="traffic classes", value=len(names))

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrival rate, requests/s; None for a closed loop."""
        return None if isinstance(self.arrivals, ClosedLoop) else self.arrivals.rate_per_s

    def scaled(self, factor: float) -> SyntheticTraffic:
        """Return the same traffic at ``factor`` times the rate; a closed loop has no rate."""
        require_positive(factor, "rate factor")
        if isinstance(self.arrivals, ClosedLoop):
            raise BadInputError("has no rate to scale", field="closed loop", remedy="change its concurrency")
        return replace(self, arrivals=self.arrivals.scaled(factor))

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """Draw requests up to a limit; at least one is needed, for a closed loop the number of requests."""
        check_limits(requests, duration_s)
        arrival_s = None
        if not isinstance(self.arrivals, ClosedLoop):
            if requests is None and duration_s is None:
                raise BadInputError("has no end", field="traffic", remedy="pass requests or duration_s")
            rng = random_stream(seed, "traffic/arrivals")
            arrival_s = self.arrivals.times_s(rng, requests=requests, duration_s=duration_s)
        elif requests is None or duration_s is not None:
            raise BadInputError("has no clock", field="closed loop", remedy="pass requests, not duration_s")
        count = requests if arrival_s is None else arrival_s.size
        return self._with_lengths(seed, arrival_s, count or 0)

    def _with_lengths(self, seed: int, arrival_s: Times | None, requests: int) -> Workload:
        shares = np.cumsum([each.share for each in self.classes])
        uniform = random_stream(seed, "traffic/classes").random(requests)
        class_index = np.searchsorted(shares[:-1] / shares[-1], uniform, side="right").astype(np.int16)
        prompts, outputs = np.empty((2, requests), dtype=np.int64)
        for index, each in enumerate(self.classes):
            members = np.flatnonzero(class_index == index)
            drawn: tuple[Tokens, Tokens] = each.lengths.sample(
                seed, f"traffic/lengths/{each.name}", members.size
            )
            prompts[members], outputs[members] = drawn
        return Workload(arrival_s, prompts, outputs, class_index, tuple(each.name for each in self.classes))


@dataclass(frozen=True, slots=True, eq=False)
class ReplayTraffic:
    """A recorded workload, at another speed or with more or fewer requests per second.

    speed: divides the timestamps; 2 plays the same requests of a day in half a day.
    rate_scale: factor on the requests per second of the recorded clock. Every request occurs
        floor(rate_scale) times and once more with the remaining probability, with its lengths and its class;
        copies are spread at random up to the next recorded arrival. Copies are other users and have their own
        prefix blocks; with the same blocks they would hit the cache at no cost. The draws depend only on the
        request and the seed, so a higher scale contains the requests of a lower one.

    Requests within one tick of a coarse clock are spread over the tick (``replay.untied``).

    in_order: trials keep the recorded order; None: where prompts name prefix blocks.
    """

    recorded: Workload
    rate_scale: float = 1.0
    speed: float = 1.0
    report: ReadReport | None = None
    in_order: bool | None = None

    def __post_init__(self) -> None:
        require_positive(self.rate_scale, "rate scale")
        require_positive(self.speed, "replay speed")
        if self.recorded.is_closed_loop and (self.rate_scale, self.speed) != (1, 1):
            raise BadInputError(
                "cannot be scaled without arrival times",
                field="replay",
                remedy="add an arrival column to the file",
            )

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrival rate, requests/s; None for a closed loop."""
        if self.recorded.is_closed_loop:
            return None
        return self.recorded.rate_per_s * self.rate_scale * self.speed

    def scaled(self, factor: float) -> ReplayTraffic:
        """Return the recording with more requests per second on the same clock."""
        require_positive(factor, "rate factor")
        return replace(self, rate_scale=self.rate_scale * factor)

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """Return the recording, whole or up to a limit. Raises ``BadInputError`` where it holds less."""
        check_limits(requests, duration_s)
        played = self.recorded if self.recorded.is_closed_loop else untied(self.recorded, seed)
        if self.rate_scale != 1:
            played = copied(played, seed, self.rate_scale)
        if self.speed != 1:
            played = played.at_rate(self.speed)
        if requests is not None:
            if requests > len(played):
                raise self._too_short(f"{len(played):,} requests", requests)
            played = played.head(requests)
        if duration_s is not None:
            if duration_s > self._end_s():
                raise self._too_short(f"{self._end_s():g} s", duration_s)
            played = played.before(duration_s)
        return played

    def trial(self, rate_per_s: float, requests: int, seed: int) -> Workload:
        """Draw requests at a steady rate that represent the whole recording (``replay.resampled``)."""
        recorded = self.recorded if self.speed == 1 else self.recorded.at_rate(self.speed)
        return resampled(recorded, rate_per_s, requests, seed, in_order=self.in_order)

    def without_prefix(self) -> ReplayTraffic:
        """Return the same requests at the same times without the ids of prefix blocks, most of its bytes."""
        if self.recorded.prefix is None:
            return self
        return replace(self, recorded=replace(self.recorded, prefix=None), in_order=True)

    def _end_s(self) -> float:
        """Time of the last recorded arrival, at the speed played."""
        if self.recorded.arrival_s is None:
            raise BadInputError(
                "has no clock", field="closed-loop replay", remedy="pass requests, not duration_s"
            )
        return float(self.recorded.arrival_s[-1]) / self.speed

    def _too_short(self, holds: str, value: float) -> BadInputError:
        return BadInputError(
            f"holds only {holds}", field="replay", value=value, remedy="ask for less, or for all of it"
        )


def longest_in(traffic: Traffic) -> tuple[int, int]:
    """Return prompt and output tokens that bound the requests of a recording, or of every class.

    A process draws longer ones with a chance of ``lengths.RARE``.
    """
    if isinstance(traffic, SyntheticTraffic):
        return max((longest_request(each.lengths) for each in traffic.classes), key=sum)
    return longest_of(*judged_lengths(traffic))


def judged_lengths(of: Lengths | Traffic) -> tuple[Tokens, Tokens]:
    """Return prompt and output tokens, [requests] each, of ``DRAWN`` requests, or of a whole recording."""
    if isinstance(of, ReplayTraffic):
        return of.recorded.prompt_tokens, of.recorded.output_tokens
    if hasattr(of, "workload"):
        drawn = of.workload(0, requests=DRAWN)
        return drawn.prompt_tokens, drawn.output_tokens
    return of.sample(0, "contexts", DRAWN)
