"""What the page Explore asks, as a value: to and from the address of the page, as a command, as Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, cast, get_args
from urllib.parse import parse_qs, urlencode

from simulator.core.errors import BadInputError
from simulator.core.units import parse_number

Statistic = Literal["mean", "p10"]

Effort = Literal["usual", "full"]
"""usual: nine loads, once each. full: what ``compare`` does unless told otherwise."""

MOST_POLICIES = 12
"""Policies side by side at most: more lines than that cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What runs: a shipped profile, or a model on a GPU where ``profile`` is empty, and its acceptance.

    All words are names of the catalogues. engine, precision, acceptance: empty takes what the model, the
    kernels or the profile say. layout: widths such as ``tp8``; empty takes the fewest GPUs that fit.
    """

    profile: str = "deepseek-v4-flash"
    model: str = ""
    gpu: str = ""
    engine: str = ""
    precision: str = ""
    acceptance: str = ""
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Explored:
    """All that the page shows depends on this. sla: least speed, tokens/s per user."""

    on: Deployed = Deployed()
    policies: tuple[str, ...] = ("mtp1", "fixed:3", "dspark-async")
    effort: Effort = "usual"
    sla: float = 80.0
    statistic: Statistic = "mean"

    @property
    def term(self) -> str:
        """The SLA as the library reads it."""
        return f"tps_{self.statistic}>={self.sla:g}"


def to_query(state: Explored) -> str:
    """Write a state as the query of an address; what is as by default is left out.

    >>> to_query(Explored(sla=60.0))
    'sla=60'
    """
    usual = Explored()
    words: list[tuple[str, str]] = [
        (each.name, getattr(state.on, each.name))
        for each in fields(Deployed)
        if getattr(state.on, each.name) != getattr(usual.on, each.name)
    ]
    if state.policies != usual.policies:
        words += [("policy", policy) for policy in state.policies] or [("policy", "")]
    if state.effort != usual.effort:
        words.append(("effort", state.effort))
    if state.sla != usual.sla:
        words.append(("sla", f"{state.sla:g}"))
    if state.statistic != usual.statistic:
        words.append(("statistic", state.statistic))
    return urlencode(words)


def from_query(query: str) -> Explored:
    """Read a state out of an address. Raises ``BadInputError`` that names the word and what it may be."""
    given = parse_qs(query.removeprefix("?"), keep_blank_values=True)
    last = {name: values[-1].strip() for name, values in given.items()}
    state = Explored(
        Deployed(**{each.name: last[each.name] for each in fields(Deployed) if each.name in last})
    )
    if "policy" in given:
        state = replace(state, policies=tuple(filter(None, given["policy"]))[:MOST_POLICIES])
    if "effort" in last:
        state = replace(state, effort=cast(Effort, _one_of(last, "effort", get_args(Effort))))
    if "statistic" in last:
        statistic = cast(Statistic, _one_of(last, "statistic", get_args(Statistic)))
        state = replace(state, statistic=statistic)
    if "sla" in last:
        speed = parse_number(last["sla"], field="sla")
        if not 0 < speed < 1e6:
            raise BadInputError("must be a speed in tokens/s per user", field="sla", value=last["sla"])
        state = replace(state, sla=speed)
    return state


def _one_of(given: Mapping[str, str], name: str, known: Sequence[str]) -> str:
    if given[name] not in known:
        raise BadInputError("is not known", field=name, value=given[name], remedy=", ".join(known))
    return given[name]


def as_commands(state: Explored, loads: Sequence[int], seeds: int) -> list[str]:
    """Write the commands that give the same table, and the same answer with loads added around the SLA."""
    words = _deployed_options(state.on)
    words += [word for policy in state.policies for word in ("--policy", policy)]
    words += ["--concurrency", ",".join(map(str, loads)), "--seeds", str(seeds)]
    frontier = ["dspark-sim", "frontier", *words, "--out", "frontier.csv", "--plot", "frontier.png"]
    compare = ["dspark-sim", "compare", *words, "--sla", state.term, "--out", "runs/compared"]
    return [shlex.join(frontier), shlex.join(compare)]


def _deployed_options(on: Deployed) -> list[str]:
    """Return the options that choose what runs, those of the layout behind the GPU."""
    if on.profile:
        words: dict[str, object] = {"profile": on.profile}
    else:
        further = {"engine": on.engine, "precision": on.precision}
        words = {"model": on.model, "gpu": on.gpu, **widths_of(on.layout), **further}
    words["acceptance"] = on.acceptance
    return [word for name, value in words.items() if value for word in (f"--{name}", str(value))]


def widths_of(label: str) -> dict[str, int]:
    """Return the widths that the label of a layout names, none for an empty one.

    >>> widths_of("tp8")
    {'tp': 8}
    """
    return {name: int(size) for name, size in re.findall(r"([a-z]+)(\d+)", label)}


def as_python(state: Explored, loads: Sequence[int], seeds: int) -> str:
    """Write the same in Python."""
    on = state.on
    what = repr(on.profile)
    if not on.profile:
        further = {name: getattr(on, name) for name in ("engine", "precision") if getattr(on, name)}
        named = widths_of(on.layout) | further
        more = "".join(f", {name}={value!r}" for name, value in named.items())
        what = f"sim.hardware({on.model!r}, {on.gpu!r}{more})"
    acceptance = f", {on.acceptance!r}" if on.acceptance else ""
    return (
        "import simulator as sim\n\n"
        f"bench = sim.deployment({what}{acceptance})\n"
        f"line = bench.frontier({list(state.policies)!r}, {list(loads)!r}, seeds={seeds})\n"
        f"print(line.at_sla({state.term!r}))\n"
    )
