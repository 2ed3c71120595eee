"""What the page Plan asks: a scenario as text, as a form and in the page's address."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

import yaml

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.reading import MAX_YAML_BYTES, read_yaml
from simulator.hardware.choose import Hardware
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.reading import load_scenario
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.scenario.sections import HardwareSpec
from simulator.ui.security import check_acceptance, check_hardware, check_profile

Effort = Literal["first", "scenario"]
"""first: the coarse search of ``plan --model``. scenario: the search that the scenario asks for."""

Kind = Literal["text", "number", "list"]

FIELDS: Mapping[str, tuple[str, Kind]] = {
    "name": ("name", "text"), "profile": ("profile", "text"), "model": ("hardware.model", "text"),
    "gpu": ("hardware.gpu", "text"), "tp": ("hardware.tp", "number"),
    "policies": ("policies", "list"), "acceptance": ("acceptance", "list"),
    "arrivals": ("traffic.arrivals", "text"), "lengths": ("traffic.lengths", "text"), "sla": ("sla", "list"),
    "concurrency": ("replica.concurrency", "number"),
    "prefill": ("replica.prefill_tokens_per_s", "number"), "headroom": ("fleet.headroom", "text"),
    "price": ("price.gpu_hour", "number"),
}  # fmt: skip
"""Controls of the form: the scenario's key that each stands for, and what it holds."""

MOST_GPUS = 6
"""GPUs side by side at most: each is a plan of its own."""


@dataclass(frozen=True, slots=True)
class Planned:
    """All that the page shows depends on this.

    text: the scenario as YAML. gpus: further GPUs that its model is planned on. kept: the query of another
    plan beside it.
    """

    text: str
    gpus: tuple[str, ...] = ()
    effort: Effort = "first"
    kept: str = ""


def example() -> str:
    """Return the scenario that a new page begins with: that of ``plan --init``, without its comments."""
    return written(yaml.safe_load(EXAMPLE))


def written(scenario: Mapping[str, Any]) -> str:
    """Write a scenario as YAML, in the order of its keys."""
    return str(yaml.safe_dump(dict(scenario), sort_keys=False, allow_unicode=True, width=100))


def to_query(state: Planned) -> str:
    """Write a state as the query of an address; the scenario is packed."""
    packed = base64.urlsafe_b64encode(zlib.compress(state.text.encode(), 9)).decode("ascii")
    words = [("scenario", packed), *(("gpu", gpu) for gpu in state.gpus)]
    if state.effort != "first":
        words.append(("effort", state.effort))
    if state.kept:
        words.append(("kept", state.kept))
    return urlencode(words)


def from_query(query: str) -> Planned:
    """Read a state out of an address. Raises ``BadInputError`` for what is cut off or not known."""
    given = parse_qs(query.removeprefix("?"))
    effort = given.get("effort", ["first"])[-1]
    if effort not in ("first", "scenario"):
        raise BadInputError("is not known", field="effort", value=effort, remedy="first, scenario")
    return Planned(
        _unpacked(given["scenario"][-1]) if "scenario" in given else example(),
        tuple(given.get("gpu", ()))[:MOST_GPUS],
        "scenario" if effort == "scenario" else "first",
        given.get("kept", [""])[-1],
    )


def _unpacked(packed: str) -> str:
    """Return the text of a scenario; a few bytes that would grow beyond any scenario are refused."""
    try:
        reader = zlib.decompressobj()
        content = reader.decompress(base64.urlsafe_b64decode(packed), MAX_YAML_BYTES)
        if not reader.eof:
            raise BadInputError("is cut off or too large", field="scenario", remedy="copy the whole address")
        return content.decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise BadInputError(
            "is no packed scenario", field="scenario", remedy="copy the whole address"
        ) from error


# --- A scenario and its form --------------------------------------------------------------------------------


def mapping_of(text: str) -> dict[str, Any]:
    """Parse YAML as strictly as a scenario's file. Raises ``BadInputError`` without a file's name."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            raw = read_yaml(path)
        except BadInputError as error:
            raise _without_file(error, path) from error
    if not isinstance(raw, dict):
        raise BadInputError("is not a mapping of keys", source="scenario")
    return raw


def scenario_of(text: str) -> Scenario:
    """Read a scenario whose words are names of the catalogues. Errors have the key in ``field``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            scenario = load_scenario(path)
        except BadInputError as error:
            raise _without_file(error, path) from error
    _check_names(scenario)
    return scenario


def _without_file(error: BadInputError, path: Path) -> BadInputError:
    source = (error.source or "").replace(str(path), "").strip(": ") or "scenario"
    return BadInputError(
        error.problem, source=source, field=error.field, value=error.value, remedy=error.remedy
    )


def _check_names(scenario: Scenario) -> None:
    """Refuse what would reach a file: the page plans with the catalogues, and the command with files."""
    if scenario.profile is not None:
        _at("profile", check_profile, scenario.profile)
    if scenario.hardware is not None:
        _at("hardware", check_hardware, scenario.hardware.model, scenario.hardware.gpu)
        _at("hardware", _check_layout, scenario.hardware)
    for index, text in enumerate(scenario.acceptance):
        _at(f"acceptance.{index}", check_acceptance, text)
    traffic = scenario.traffic
    texts = {"traffic.lengths": traffic.lengths} | {
        f"traffic.classes.{name}.lengths": each.lengths for name, each in traffic.classes.items()
    }
    for name, each in traffic.classes.items():
        for text in each.acceptance:
            _at(f"traffic.classes.{name}.acceptance", check_acceptance, text)
    files = {field: text for field, text in texts.items() if text and text.startswith("empirical:")}
    if traffic.replay is not None:
        files["traffic.replay"] = traffic.replay
    for field, text in files.items():
        raise BadInputError(
            "names a file, which a page cannot read", source="scenario", field=field, value=text,
            remedy="save the scenario and run `dspark-sim plan`",
        )  # fmt: skip


def _check_layout(spec: HardwareSpec) -> None:
    """Refuse widths that the model cannot be split into; what does not fit is left to the plan."""
    with suppress(InfeasibleError):
        Hardware(**spec.model_dump()).layout()


def _at(field: str, check: Any, *words: Any) -> None:
    try:
        check(*words)
    except BadInputError as error:
        key = f"{field}.{error.source or error.field}" if field == "hardware" else field
        raise BadInputError(
            error.problem, source="scenario", field=key, value=error.value, remedy=error.remedy
        ) from error


def form_of(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each control shows of a scenario; lists as text, comma-separated."""
    shown: dict[str, Any] = {}
    for name, (key, kind) in FIELDS.items():
        value: Any = scenario
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if kind == "list":
            value = ", ".join(map(str, value)) if isinstance(value, list) else value
        shown[name] = value
    return shown


def with_field(scenario: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return the scenario with one control's value in it; an empty one takes the key out.

    >>> with_field({"sla": ["tps_mean>=80"]}, "sla", "p10>=60, ttft_p99<=2s")
    {'sla': ['p10>=60', 'ttft_p99<=2s']}
    """
    key, kind = FIELDS[name]
    if kind == "list" and isinstance(value, str):
        value = [each.strip() for each in value.split(",") if each.strip()]
    if isinstance(value, str):
        value = value.strip()
    *outer, last = key.split(".")
    changed: dict[str, Any] = dict(scenario)
    place = changed
    for part in outer:
        place[part] = dict(place.get(part) or {})
        place = place[part]
    if value in (None, "", []) and name != "acceptance":
        place.pop(last, None)
    else:
        place[last] = value
    if name == "profile":
        changed.pop("hardware", None)
    if name in ("model", "gpu"):
        changed.pop("profile", None)
    return changed


def field_of(error: BadInputError) -> str:
    """Return the control that an error is about, ``yaml`` where it is about none."""
    at = error.field or error.source or ""
    for name, (key, _) in FIELDS.items():
        if at == key or at.startswith(f"{key}."):
            return name
    return "yaml"


def on_gpu(scenario: Scenario, gpu: str, price_per_hour: float | None) -> Scenario:
    """Return the scenario on another GPU at its price, where that is known."""
    assert scenario.hardware is not None
    price = scenario.price if price_per_hour is None else scenario.price.model_copy(
        update={"gpu_hour": price_per_hour}
    )  # fmt: skip
    hardware = scenario.hardware.model_copy(update={"gpu": gpu})
    return scenario.model_copy(update={"hardware": hardware, "price": price})
