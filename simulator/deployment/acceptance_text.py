"""Acceptance models from text: names, trace files, rates, mean lengths, mixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from simulator.acceptance.fitted import fitted_model
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
from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.core.reading import is_file
from simulator.core.units import require_ascii_digits

_FILE_SUFFIXES = (".parquet", ".log", ".json", ".jsonl", ".txt")
"""Names that end so are files even where there is none: the error then says that the file is missing."""


def parse_acceptance(spec: str | None) -> AcceptanceModel:
    """See ``simulator.acceptance.trace.parse_acceptance``."""
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
    return fitted_model(name) if cut is None else _parse_named(name).truncated(cut)


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
