"""Traffic: which requests arrive, when, and how long they are.

``Traffic`` is anything with ``workload(seed, requests=, duration_s=)``. Two kinds exist: an arrival process
with classes of request lengths (``SyntheticTraffic``), and a recorded workload (``ReplayTraffic``).

Streams are never clamped: no gap has a floor, no rate a ceiling and no length a cap that requests pile up
at, because each of these shifts the load away from the one that was asked for. Arrivals, classes and
lengths draw from streams of their own, derived from (seed, name): request ``i`` keeps its class and its
lengths when the rate, the process or the number of requests changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import i0e

from simulator.acceptance import random_stream
from simulator.errors import BadInputError
from simulator.lengths import DEFAULT_LENGTHS, Lengths, Tokens, parse_lengths
from simulator.replay import copied, resampled, untied
from simulator.traffic_files import ReadReport, read_workload
from simulator.units import parse_duration_s, parse_number, parse_rate_per_s, parse_whole
from simulator.workload import MAX_CLASSES, MAX_REQUESTS, PrefixBlocks, Workload, merge

__all__ = [
    "Arrivals",
    "ClosedLoop",
    "DiurnalArrivals",
    "GammaArrivals",
    "Lengths",
    "PoissonArrivals",
    "PrefixBlocks",
    "ReadReport",
    "ReplayTraffic",
    "SyntheticTraffic",
    "Traffic",
    "TrafficClass",
    "Workload",
    "draw_workload",
    "merge",
    "names_process",
    "parse_arrivals",
    "parse_lengths",
    "parse_recording",
    "parse_traffic",
    "read_workload",
    "split_file_spec",
]

Times = NDArray[np.float64]

RATES_PER_S = (1e-9, 1e9)
"""Mean arrival rates of a process: one in 30 years to a billion a second."""

GAMMA_CVS = (1e-3, 100.0)
"""Coefficients of variation of gamma gaps. Beyond, a double cannot tell gaps apart or from nothing."""

PERIODS_S = (1.0, 1e9)
"""Periods of a diurnal process: one second to 30 years."""

SHARES = (1e-12, 1e12)
"""Shares of a traffic class, relative to one another."""


class Traffic(Protocol):
    """A source of requests."""

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrival rate; ``None`` in a closed loop."""
        ...

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """The first ``requests`` requests, those within ``duration_s``, or whichever ends first."""
        ...

    def scaled(self, factor: float) -> Traffic:
        """The same traffic with ``factor`` times as many requests per second."""
        ...


class Arrivals(Protocol):
    """A point process on [0, infinity)."""

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second."""
        ...

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        """Non-decreasing arrival times until either limit is reached; one of the two is given."""
        ...

    def scaled(self, factor: float) -> Self:
        """The same process at ``factor`` times the rate."""
        ...


@dataclass(frozen=True, slots=True)
class PoissonArrivals:
    """Independent users: exponential gaps."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _require_within(self.rate_per_s, RATES_PER_S, "arrival rate")

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        horizon = None if duration_s is None else duration_s * self.rate_per_s
        return _accumulate(rng.standard_exponential, requests, horizon) / self.rate_per_s

    def scaled(self, factor: float) -> PoissonArrivals:
        return replace(self, rate_per_s=self.rate_per_s * factor)


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Bursty (cv > 1) or regular (cv < 1) traffic: gamma gaps with the given coefficient of variation.

    The process is stationary: time 0 falls at a random moment between arrivals, so that the expected
    number of requests in any window is exactly rate times length.
    """

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _require_within(self.rate_per_s, RATES_PER_S, "arrival rate")
        _require_within(self.cv, GAMMA_CVS, "gamma cv")

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        shape = self.cv**-2
        # The wait from a random moment: a uniform share of a gap drawn in proportion to its length.
        first = rng.random() * rng.standard_gamma(shape + 1) / shape

        def gaps(count: int) -> Times:
            return rng.standard_gamma(shape, count) / shape

        horizon = None if duration_s is None else duration_s * self.rate_per_s
        return _accumulate(gaps, requests, horizon, first) / self.rate_per_s

    def scaled(self, factor: float) -> GammaArrivals:
        return replace(self, rate_per_s=self.rate_per_s * factor)


@dataclass(frozen=True, slots=True)
class DiurnalArrivals:
    """Poisson traffic whose rate swings once per period, mean x exp(k cos(phase)) / I0(k).

    This shape (von Mises) allows any peak-to-mean ratio and never touches zero; the maximum falls at
    ``peak_at_s``, half a period after time 0 unless given. The rate is taken constant over 1/4096 of a
    period, and arrivals come from inverting its integral, which clamps nothing and keeps the order of
    requests when the rate changes.
    """

    rate_per_s: float
    peak_to_mean: float
    period_s: float = 86400.0
    peak_at_s: float | None = None

    def __post_init__(self) -> None:
        _require_within(self.rate_per_s, RATES_PER_S, "arrival rate")
        _require_within(self.period_s, PERIODS_S, "diurnal period")
        if not 1 <= self.peak_to_mean <= 100:
            raise BadInputError("must lie in 1..100", field="diurnal peak to mean", value=self.peak_to_mean)
        if self.peak_at_s is not None and not abs(self.peak_at_s) <= PERIODS_S[1]:
            raise BadInputError(
                f"must lie within {PERIODS_S[1]:g} s of time 0",
                field="diurnal peak time",
                value=self.peak_at_s,
            )

    def rate_at(self, time_s: Times) -> Times:
        """Arrivals per second at the given times."""
        peak_at_s = self.period_s / 2 if self.peak_at_s is None else self.peak_at_s
        concentration = self._concentration()
        swing = np.cos(2 * np.pi * (time_s - peak_at_s) / self.period_s) - 1
        return np.asarray(self.rate_per_s * self.peak_to_mean * np.exp(concentration * swing))

    def times_s(self, rng: np.random.Generator, *, requests: int | None, duration_s: float | None) -> Times:
        edges_s = np.linspace(0, self.period_s, 4097)
        expected = np.concatenate(([0.0], np.cumsum(self.rate_at((edges_s[1:] + edges_s[:-1]) / 2))))
        per_period = self.rate_per_s * self.period_s
        expected *= per_period / expected[-1]
        horizon = None
        if duration_s is not None:
            whole, rest_s = divmod(duration_s, self.period_s)
            horizon = whole * per_period + float(np.interp(rest_s, edges_s, expected))
        whole_periods, rest = np.divmod(_accumulate(rng.standard_exponential, requests, horizon), per_period)
        return whole_periods * self.period_s + np.interp(rest, expected, edges_s)

    def scaled(self, factor: float) -> DiurnalArrivals:
        return replace(self, rate_per_s=self.rate_per_s * factor)

    def _concentration(self) -> float:
        if self.peak_to_mean == 1:
            return 0.0
        # Peak over mean is e^k / I0(k), which grows like sqrt(2 pi k).
        return float(brentq(lambda k: 1 / i0e(k) - self.peak_to_mean, 0, 1 + self.peak_to_mean**2))


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of users, each sending the next request when the last one ends."""


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """Requests of one kind; acceptance and SLA are attached elsewhere by ``name``."""

    name: str
    lengths: Lengths
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise BadInputError("must not be empty", field="traffic class name")
        _require_within(self.share, SHARES, f"share of class {self.name}")


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
        return None if isinstance(self.arrivals, ClosedLoop) else self.arrivals.rate_per_s

    def scaled(self, factor: float) -> SyntheticTraffic:
        """The same traffic at ``factor`` times the rate; a closed loop has none to scale."""
        _require_positive(factor, "rate factor")
        if isinstance(self.arrivals, ClosedLoop):
            raise BadInputError("has no rate to scale", field="closed loop", remedy="change its concurrency")
        return replace(self, arrivals=self.arrivals.scaled(factor))

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """Draw requests; at least one limit is needed, in a closed loop the number of requests."""
        _check_limits(requests, duration_s)
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

    ``speed`` divides the timestamps: the same requests, a day played in half a day.
    ``rate_scale`` changes how many requests arrive while the clock runs as recorded: every request occurs
    floor(rate_scale) times and once more with the remaining probability, lengths and class together, the
    copies spread evenly at random up to the next recorded arrival. Copies get prefix blocks of their own:
    they are other users, and would otherwise be free cache hits. The draws depend on the request
    and the seed only, so a higher scale contains the requests of a lower one. Requests that share a tick of
    a coarse clock are spread over the tick (``replay.untied``).
    """

    recorded: Workload
    rate_scale: float = 1.0
    speed: float = 1.0
    report: ReadReport | None = None

    def __post_init__(self) -> None:
        _require_positive(self.rate_scale, "rate scale")
        _require_positive(self.speed, "replay speed")
        if self.recorded.is_closed_loop and (self.rate_scale, self.speed) != (1, 1):
            raise BadInputError(
                "cannot be scaled without arrival times",
                field="replay",
                remedy="add an arrival column to the file",
            )

    @property
    def rate_per_s(self) -> float | None:
        if self.recorded.is_closed_loop:
            return None
        return self.recorded.rate_per_s * self.rate_scale * self.speed

    def scaled(self, factor: float) -> ReplayTraffic:
        """More requests per second on the same clock."""
        _require_positive(factor, "rate factor")
        return replace(self, rate_scale=self.rate_scale * factor)

    def workload(
        self, seed: int, *, requests: int | None = None, duration_s: float | None = None
    ) -> Workload:
        """The recording, whole unless limited; asking for more than it holds is an error."""
        _check_limits(requests, duration_s)
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
        """So many requests at a steady rate that represent the whole recording (``replay.resampled``)."""
        recorded = self.recorded if self.speed == 1 else self.recorded.at_rate(self.speed)
        return resampled(recorded, rate_per_s, requests, seed)

    def _end_s(self) -> float:
        """Time of the last recorded arrival, as played."""
        if self.recorded.arrival_s is None:
            raise BadInputError(
                "has no clock", field="closed-loop replay", remedy="pass requests, not duration_s"
            )
        return float(self.recorded.arrival_s[-1]) / self.speed

    def _too_short(self, holds: str, value: float) -> BadInputError:
        return BadInputError(
            f"holds only {holds}", field="replay", value=value, remedy="ask for less, or for all of it"
        )


def _accumulate(
    draw_gaps: Callable[[int], Times], requests: int | None, horizon: float | None, first: float | None = None
) -> Times:
    """Event times of a unit-rate renewal process, up to a number of events or to before a horizon.

    Gaps are drawn in blocks of one size, so that a longer run begins with the events of a shorter one.
    """
    expected = min(math.inf if requests is None else requests, math.inf if horizon is None else horizon)
    if expected > MAX_REQUESTS:
        raise BadInputError(
            f"asks for {expected:.3g} requests, {MAX_REQUESTS:g} are possible",
            field="traffic",
            remedy="shorten it or lower its rate",
        )
    block = 4096
    head = [] if first is None else [np.array([first])]
    drawn, reached = len(head), first or 0.0
    while (requests is None or drawn < requests) and (horizon is None or reached < horizon):
        gaps = draw_gaps(block)
        head.append(gaps)
        drawn, reached = drawn + block, reached + float(gaps.sum())
    times = np.cumsum(np.concatenate(head)) if head else np.empty(0)
    if horizon is not None:
        times = times[: np.searchsorted(times, horizon, side="left")]
    return times[:requests]


def _check_limits(requests: int | None, duration_s: float | None) -> None:
    if requests is not None and not 1 <= requests <= MAX_REQUESTS:
        raise BadInputError(f"must lie in 1..{MAX_REQUESTS:,}", field="requests", value=requests)
    if duration_s is not None:
        _require_positive(duration_s, "duration_s")


def _require_within(value: float, bounds: tuple[float, float], name: str) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise BadInputError(f"must lie in {bounds[0]:g}..{bounds[1]:g}", field=name, value=value)


def _require_positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise BadInputError("must be positive and finite", field=name, value=value)


# --- text ---------------------------------------------------------------------------------------------------

_FORMS = (
    "closed, poisson:12/s, gamma:12/s,cv=3, diurnal:12/s,peak=2,period=24h or a file such as trace.jsonl, "
    "trace.jsonl@2x, trace.jsonl@speed=10, trace.csv.gz@unit=ms"
)


def parse_traffic(spec: str, lengths: str | None = None) -> Traffic:
    """Traffic from text: an arrival process (see ``parse_arrivals``) with lengths, or a workload file.

    A file may have options after an ``@``, see ``parse_recording``. ``lengths`` (see ``parse_lengths``) goes
    with a process and defaults to ``default``.
    """
    if names_process(spec):
        each = TrafficClass("default", parse_lengths(lengths or DEFAULT_LENGTHS))
        return SyntheticTraffic(parse_arrivals(spec), (each,))
    path, options = split_file_spec(spec)
    if not Path(path).suffix and not (path and Path(path).exists()):
        raise BadInputError(
            "is neither traffic nor a file", field="traffic", value=spec, remedy=f"use {_FORMS}"
        )
    if lengths is not None:
        raise BadInputError(
            "is given by the file already", field="lengths", value=lengths, remedy="leave it out"
        )
    return parse_recording(path, options)


def draw_workload(
    traffic: Traffic,
    seed: int,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
    generated: int | None = None,
    generated_s: float | None = None,
) -> Workload:
    """A run's requests: a recording whole, a process up to ``generated`` requests or ``generated_s`` seconds.

    requests, duration_s: what the user asked for; they cut a process and a recording alike, and raise
    ``BadInputError`` where a recording holds less.
    """
    if requests is None and duration_s is None and not isinstance(traffic, ReplayTraffic):
        requests, duration_s = generated, generated_s
    return traffic.workload(seed, requests=requests, duration_s=duration_s)


def parse_arrivals(spec: str) -> Arrivals | ClosedLoop:
    """An arrival process from text; rates and times need units.

    ``closed``; ``poisson:12/s``; ``gamma:700/min,cv=3``;
    ``diurnal:12/s,peak=2[,period=24h][,peak_at=14h]`` with the peak rate over the mean.
    """
    kind, _, rest = spec.partition(":")
    if kind == "closed" and not rest:
        return ClosedLoop()
    rate_text, *option_texts = rest.split(",")
    given = [_key_and_value(text) for text in option_texts]
    options = dict(given)
    if len(options) < len(given):
        raise BadInputError("gives an option twice", field="traffic", value=spec, remedy="keep one")
    builders: Mapping[str, Callable[[float, dict[str, str]], Arrivals]] = {
        "poisson": lambda rate_per_s, _: PoissonArrivals(rate_per_s),
        "gamma": lambda rate_per_s, given: GammaArrivals(
            rate_per_s, parse_number(given.pop("cv"), field="cv")
        ),
        "diurnal": _build_diurnal,
    }
    if kind not in builders:
        raise BadInputError("is not an arrival process", field="traffic", value=spec, remedy=f"use {_FORMS}")
    rate_per_s = parse_rate_per_s(rate_text, field=f"{kind} rate")
    try:
        arrivals = builders[kind](rate_per_s, options)
    except KeyError as missing:
        raise BadInputError(
            f"needs {missing.args[0]}", field="traffic", value=spec, remedy=f"use {_FORMS}"
        ) from None
    if options:
        raise BadInputError(
            "is not an option here", field=f"{kind} {next(iter(options))}", remedy=f"use {_FORMS}"
        )
    return arrivals


def _build_diurnal(rate_per_s: float, given: dict[str, str]) -> DiurnalArrivals:
    peak_at = given.pop("peak_at", None)
    return DiurnalArrivals(
        rate_per_s,
        parse_number(given.pop("peak"), field="diurnal peak"),
        parse_duration_s(given.pop("period", "24h"), field="diurnal period"),
        None if peak_at is None else parse_duration_s(peak_at, field="diurnal peak_at"),
    )


def parse_recording(path: str | Path, options: str = "") -> ReplayTraffic:
    """A workload file with its options, separated by commas.

    How it is played: ``2x``, twice the requests per second on the recorded clock; ``speed=10``, the clock ten
    times as fast. How it is read (see ``read_workload``): ``unit=s`` or ms, us, ns, of the arrivals;
    ``time=COLUMN``, which holds them; ``sort``, rows out of order; ``skip-malformed``; ``block=16``, tokens
    per hash id; ``turn-speed=50``, tokens/s at which the turns of sessions are assumed to be generated.
    """
    rate_scale, speed, reading = 1.0, 1.0, dict[str, Any]()
    for text in filter(None, (text.strip() for text in options.split(","))):
        key, _, value = text.partition("=")
        if text in ("sort", "skip-malformed"):
            reading[text.replace("-", "_")] = True
        elif re.fullmatch(r"[0-9.eE+-]+x", text):
            rate_scale = _factor(text[:-1], "rate scale")
        elif key == "speed":
            speed = _factor(value.removesuffix("x"), "replay speed")
        elif key == "block":
            reading["block_tokens"] = parse_whole(value, field="block", most=2**20)
        elif key == "turn-speed":
            reading["turn_tokens_per_s"] = parse_number(value, field="turn-speed")
        elif key in ("unit", "time"):
            reading["unit" if key == "unit" else "time_column"] = value
        else:
            raise BadInputError(
                "is not a replay option", source=str(path), value=text,
                remedy="use 2x, speed=9, unit=ms, time=COLUMN, block=16, turn-speed=50, sort, skip-malformed",
            )  # fmt: skip
    workload, report = read_workload(path, **reading)
    return ReplayTraffic(workload, rate_scale, speed, report)


def split_file_spec(spec: str) -> tuple[str, str]:
    """Path and options of ``FILE[@OPTIONS]``; a path may hold an @ itself where the file exists so named."""
    if "@" not in spec or Path(spec).exists():
        return spec, ""
    path, _, options = spec.rpartition("@")
    return path, options


def _factor(text: str, name: str) -> float:
    """A factor on rate or speed; beyond a million it is a mistake, and copies that fill the memory."""
    value = parse_number(text, field=name)
    if not 0 < value <= 1e6:
        raise BadInputError("must lie above 0 and at most 1e6", field=name, value=value)
    return value


def names_process(spec: str) -> bool:
    """Whether a traffic spec names an arrival process or a closed loop rather than a file."""
    return spec == "closed" or spec.partition(":")[0] in ("closed", "poisson", "gamma", "diurnal")


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise BadInputError("is not of the form name=value", field="traffic option", value=text)
    return key.strip(), value.strip()
