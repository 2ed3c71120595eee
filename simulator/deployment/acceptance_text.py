"""Acceptance models from text: names, trace files, rates, mean lengths, mixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from simulator.acceptance.fitted import fitted_model, is_fitted
from simulator.acceptance.rates import (
    HOW_TO,
    Mix,
    Rates,
    conditional_rates,
    marginal_rates,
    mean_length,
    mean_rate,
    parse_rate,
    refusal,
)
from simulator.acceptance.trace import AcceptanceModel, Shiftable
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.provenance import Provenance
from simulator.core.reading import Strict, checked, is_file, read_json
from simulator.core.units import require_ascii_digits

_FILE_SUFFIXES = (".parquet", ".log", ".json", ".jsonl", ".txt")
"""Names that end so are files even where there is none: the error then says that the file is missing."""


class AcceptanceSpec(Strict):
    """An acceptance model that belongs to a profile: a spec, cut to a block size, moved to a level.

    accepted_length: what was published of it at this block size, bonus included; said, never simulated.
    """

    model: str
    block_size: int | None = None
    level: float = 0.0
    accepted_length: float | None = None
    provenance: Provenance

    def build(self) -> AcceptanceModel:
        """Return the acceptance model it describes."""
        model = parse_acceptance(self.model)
        if self.level:
            if not isinstance(model, Shiftable):
                raise BadInputError(
                    "has no level to move", field="model", value=self.model, remedy="leave level out"
                )
            model = model.shifted(self.level)
        return model.truncated(self.block_size) if self.block_size else model


class _Production(Strict):
    """Contents of ``traces/production.json``."""

    schema_: Literal["dspark-simulator/production-acceptance"] = Field(alias="schema")
    version: Literal[1]
    models: Mapping[str, AcceptanceSpec]


@cache
def production_acceptance() -> Mapping[str, AcceptanceSpec]:
    """Return the shipped acceptance of drafters in production, by ``target/drafter/traffic``."""
    path = data_directory("traces") / "production.json"
    return checked(_Production, read_json(path), str(path)).models


def parse_acceptance(spec: str | None) -> AcceptanceModel:
    """Return the acceptance model that a text describes.

    spec: a name or a file, ``kind:`` with its numbers, or a mix of these, ``WEIGHT*MODEL+WEIGHT*MODEL``; what
    there is, errors say (``HOW_TO``). Raises ``BadInputError`` where it is missing or says nothing known.
    """
    text = (spec or "").strip()
    if not text:
        raise BadInputError("is missing and has no default", source="acceptance", remedy=HOW_TO)
    require_ascii_digits(text, source="acceptance")
    if "*" in text:
        return _parse_mix(text)
    kind, colon, rest = text.partition(":")
    if colon and kind in _PLAIN:
        return _PLAIN[kind](rest)
    return _parse_named(text)


def _parse_mix(text: str) -> Mix:
    components, weights = [], []
    for term in re.split(r"\+(?=\s*[\d.]+\s*\*)", text):
        weight, star, model = term.partition("*")
        if not star:
            raise refusal("every term of a mix is WEIGHT*MODEL", text, term)
        weights.append(parse_rate(weight, text))
        components.append(parse_acceptance(model))
    return Mix(tuple(components), tuple(weights))


def _parse_named(text: str) -> AcceptanceModel:
    """Load a file or a catalogue name, optionally with ``@GAMMA``, a block size to cut it to."""
    name, at, size = text.rpartition("@")
    cut = int(size) if at and size.isdigit() and len(size) < 10 and not is_file(Path(text)) else None
    name = text if cut is None else name
    if Path(name).suffix in _FILE_SUFFIXES or is_file(Path(name)):
        from simulator.interop.acceptance_files import load_acceptance  # it builds on this module

        return load_acceptance(name, cut)
    if cut is not None:
        return _parse_named(name).truncated(cut)
    if is_fitted(name):
        return fitted_model(name)
    known = production_acceptance().get(name.lower())
    if known is None:
        return fitted_model(name, production_acceptance())  # which says what names there are
    return labelled(known.build(), name.lower())


def labelled(model: AcceptanceModel, label: str) -> AcceptanceModel:
    """Return the model under a name of its own, by which its drafter is known."""
    if isinstance(model, Mix):
        return replace(model, label=label)
    return replace(model, name=label) if isinstance(model, Rates) else model


def _parse_length(rest: str) -> Rates:
    return mean_length(*_number_at_block(rest, "length", "MEAN", "3.5@5"))


def _parse_rate(rest: str) -> Rates:
    return mean_rate(*_number_at_block(rest, "rate", "RATE", "0.34@7"))


def _number_at_block(rest: str, kind: str, what: str, example: str) -> tuple[float, int]:
    number, at, size = rest.partition("@")
    if not at or not size.strip().isdigit():
        raise refusal(f"must read {kind}:{what}@GAMMA, for instance {kind}:{example}", f"{kind}:{rest}")
    return parse_rate(number, f"{kind}:{rest}"), int(size)


def _numbers(rest: str) -> list[float]:
    return [parse_rate(part, rest) for part in rest.split(",")]


_PLAIN: dict[str, Callable[[str], Rates]] = {
    "conditional": lambda rest: conditional_rates(_numbers(rest)),
    "marginal": lambda rest: marginal_rates(_numbers(rest)),
    "length": _parse_length,
    "rate": _parse_rate,
}


def parse_acceptances(specs: Sequence[str]) -> dict[str, AcceptanceModel]:
    """``[DRAFTER=]SPEC`` options to models by drafter.

    The drafter of a catalogue name (target/drafter/dataset) is its own; anything else is DSpark's
    unless it says otherwise.
    """
    models: dict[str, AcceptanceModel] = {}
    for text in specs:
        prefix, separator, rest = text.partition("=")
        model = parse_acceptance(rest if separator else text)
        parts = model.name.split("/")
        drafter = prefix.strip() if separator else parts[1] if len(parts) == 3 else "dspark"
        if drafter in models:
            raise BadInputError(
                f"two models for drafter {drafter!r}", source="acceptance", value=text,
                remedy="mix them into one (0.5*A+0.5*B), or name the drafter as DRAFTER=MODEL",
            )  # fmt: skip
        models[drafter] = model
    return models
