"""Read a scenario from its YAML file; what is wrong is said in the words of a scenario."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simulator.core.errors import BadInputError
from simulator.core.reading import complain, is_there, read_yaml, strictly
from simulator.core.units import parse_percent, percent_meant
from simulator.planning.scenario.scenario import Scenario
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_term
from simulator.traffic.parse import parse_arrivals


def load_scenario(path: Path | str) -> Scenario:
    """Read a scenario; errors name the file, the key, and for an unknown key the nearest known one."""
    path = Path(path)
    if not is_there(path):
        raise BadInputError(
            "no such file", source=str(path), remedy="`dspark-sim plan --init FILE` writes one"
        )
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise BadInputError(
            "is not a mapping of keys", source=str(path), remedy="see `dspark-sim plan --init`"
        )
    try:
        scenario = strictly(Scenario, raw)
    except ValidationError as error:
        raise _explain(error, str(path)) from error
    _check_texts(scenario, str(path))
    return scenario


def _check_texts(scenario: Scenario, path: str) -> None:
    """Parse each text that stands for a number, a policy or a promise: errors name the file and the key."""
    search, traffic = scenario.search, scenario.traffic
    if scenario.profile is None and scenario.hardware is None:
        raise BadInputError(
            "is missing", source=path, field="profile",
            remedy="name a profile, or hardware: {model: ..., gpu: ...} (`dspark-sim list`)",
        )  # fmt: skip
    with _naming(path, "fleet.headroom"):
        parse_percent(scenario.fleet.headroom, "fleet.headroom")
    with _naming(path, "search.precision"):
        parse_percent(search.precision, "search.precision")
    with _naming(path, "steps.slow_path"):
        scenario.steps.parsed_slow_path()
    with _naming(path, "steps.row_cost"):
        scenario.steps.row_cost_s()
    for index, text in enumerate(traffic.growth):
        with _naming(path, f"traffic.growth.{index}"):
            parse_percent(text, "traffic.growth")
    for index, text in enumerate(scenario.sla):
        with _naming(path, f"sla.{index}"):
            parse_term(text)
    for index, text in enumerate(scenario.policies):
        with _naming(path, f"policies.{index}"):
            parse_policy(text)
    with _naming(path, "sla"):
        sla = scenario.parsed_sla()
        if traffic.arrivals is not None:
            sla.check_classes(sorted(traffic.classes) or ["default"])
    with _naming(path, "traffic.arrivals"):
        if traffic.arrivals is not None:
            parse_arrivals(traffic.arrivals)


@contextmanager
def _naming(path: str, field: str) -> Iterator[None]:
    """Name the file and the key in whatever complaint a parser raises."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(
            error.problem, source=path, field=field, value=error.value, remedy=error.remedy
        ) from error


def _explain(error: ValidationError, path: str) -> BadInputError:
    """One error for what the schema refuses, in the words of a scenario."""
    first = next((each for each in error.errors() if each["type"] == "extra_forbidden"), error.errors()[0])
    place, value = first["loc"], first.get("input")
    field = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return BadInputError("unknown key", source=path, field=field, remedy=remedy)
    if first["type"] != "missing" and value is None:
        return BadInputError("is empty", source=path, field=field, remedy=_how_to_fill(place))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if {"headroom", "growth", "precision"} & set(place) and number:
        return BadInputError(
            "needs a percent sign", source=path, field=field, value=value, remedy=percent_meant(value)
        )
    if first["type"] == "tuple_type":
        remedy = f"write [{value}]" if isinstance(value, str) or number else _how_to_fill(place)
        if place[-1] == "sla" and not isinstance(value, str):
            remedy = _how_to_fill(place)
        return BadInputError("is not a list", source=path, field=field, value=value, remedy=remedy)
    if first["type"] == "string_type":
        return BadInputError(
            "is not text", source=path, field=field, value=value, remedy=_as_text(place, value)
        )
    return complain(error, path)


_EXAMPLES = {
    "sla": "as in sla: [tps_mean>=80, ttft_p99<=2s]",
    "policies": "as in policies: [mtp1, dspark]",
}


def _how_to_fill(place: tuple[int | str, ...]) -> str:
    return _EXAMPLES.get(str(place[-1]), "give it a value or leave the key out")


def _as_text(place: tuple[int | str, ...], value: object) -> str:
    """Say how to write as text what YAML took for a number, a list or a mapping."""
    if place[0] == "sla":
        return _EXAMPLES["sla"]
    if isinstance(value, list):
        return "write it without brackets" if len(value) == 1 else "write one text"
    if isinstance(value, dict) and len(value) == 1:
        ((key, inner),) = value.items()
        joint = "=" if "acceptance" in place else ":"
        return f'write "{key}{joint}{inner}", in quotes and without the blank'
    return f'write "{value}", in quotes' if isinstance(value, int | float) else "write one text"


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    """Keys that the scenario's schema knows at a place such as ('traffic', 'classes', 'chat')."""
    schema = Scenario.model_json_schema()
    node = schema
    for part in place:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
        for option in node.get("anyOf", [node]):
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rpartition("/")[2]]
    return list(node.get("properties", {}))
