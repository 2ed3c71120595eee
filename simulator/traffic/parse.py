"""Traffic from text, such as poisson:12/s or a recorded file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulator.core.errors import BadInputError
from simulator.core.reading import is_there
from simulator.core.units import parse_duration_s, parse_number, parse_rate_per_s, parse_whole
from simulator.traffic.arrivals import Arrivals, ClosedLoop, DiurnalArrivals, GammaArrivals, PoissonArrivals
from simulator.traffic.lengths import DEFAULT_LENGTHS, parse_lengths
from simulator.traffic.recorded.files import read_workload
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass
from simulator.traffic.workload import Workload

_FORMS = (
    "closed, poisson:12/s, gamma:12/s,cv=3, diurnal:12/s,peak=2,period=24h or a file such as trace.jsonl, "
    "trace.jsonl@2x, trace.jsonl@speed=10, trace.csv.gz@unit=ms"
)


def parse_traffic(spec: str, lengths: str | None = None) -> Traffic:
    """Parse traffic: an arrival process (``parse_arrivals``) with lengths, or a workload file.

    A file may have options after an ``@`` (``parse_recording``). ``lengths`` (``parse_lengths``) belongs to a
    process and defaults to ``default``.
    """
    if names_process(spec):
        each = TrafficClass("default", parse_lengths(lengths or DEFAULT_LENGTHS))
        return SyntheticTraffic(parse_arrivals(spec), (each,))
    path, options = split_file_spec(spec)
    if not Path(path).suffix and not (path and is_there(Path(path))):
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
    """Draw the requests of a run: a whole recording, or a process up to ``generated`` or ``generated_s``.

    requests, duration_s: limits that the user gave, for a process and a recording alike. Raises
    ``BadInputError`` where a recording holds less.
    """
    if requests is None and duration_s is None and not isinstance(traffic, ReplayTraffic):
        requests, duration_s = generated, generated_s
    return traffic.workload(seed, requests=requests, duration_s=duration_s)


def parse_arrivals(spec: str) -> Arrivals | ClosedLoop:
    """Parse an arrival process; rates and times need units.

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
    """Read a workload file with its options, separated by commas.

    Options of playing: ``2x`` doubles the requests per second on the recorded clock; ``speed=10`` plays the
    clock ten times as fast. Options of reading (``read_workload``): ``unit=s`` (or ms, us, ns) of the
    arrivals; ``time=COLUMN`` of the arrivals; ``sort`` for rows out of order; ``skip-malformed``;
    ``block=16`` tokens per hash id; ``turn-speed=50`` tokens/s, the assumed speed of generating the turns of
    sessions.
    """
    rate_scale, speed, reading, taken = 1.0, 1.0, dict[str, Any](), set[str]()
    for text in filter(None, (text.strip() for text in options.split(","))):
        key, _, value = text.partition("=")
        is_scale = re.fullmatch(r"[0-9.eE+-]+x", text) is not None
        name = "x" if is_scale else key
        if name in taken:
            raise BadInputError(
                "gives an option twice", source=str(path), field=name, value=text, remedy="keep one"
            )
        taken.add(name)
        if text in ("sort", "skip-malformed"):
            reading[text.replace("-", "_")] = True
        elif is_scale:
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
    """Return path and options of ``FILE[@OPTIONS]``; an existing file may have an @ in its name."""
    if "@" not in spec or is_there(Path(spec)):
        return spec, ""
    path, _, options = spec.rpartition("@")
    return path, options


def _factor(text: str, name: str) -> float:
    """Parse a factor on rate or speed, at most a million, because copies take memory."""
    value = parse_number(text, field=name)
    if not 0 < value <= 1e6:
        raise BadInputError("must lie above 0 and at most 1e6", field=name, value=value)
    return value


def names_process(spec: str) -> bool:
    """Whether a traffic text names an arrival process or a closed loop, and no file."""
    return spec == "closed" or spec.partition(":")[0] in ("closed", "poisson", "gamma", "diurnal")


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise BadInputError("is not of the form name=value", field="traffic option", value=text)
    return key.strip(), value.strip()
