"""Options of a policy in text, such as ``tiers=8/16/32,reinflate,min-gain=0.05``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from simulator.core.errors import BadInputError

_Policy = TypeVar("_Policy")


def from_options(kind: type[_Policy], argument: str) -> _Policy:
    """Make a policy from ``KEY=VALUE,KEY,...``; what is not given keeps its default.

    kind: a dataclass. Its fields are the options, with dashes for underscores, and the type of a default is
    the type of the option: numbers, rising integers as in ``8/16/32``, and flags: bare, ``=yes`` or ``=no``.
    Raises ``BadInputError`` for keys that are unknown or given twice and for values of another type.
    """
    defaults: dict[str, Any] = {each.name.replace("_", "-"): each.default for each in fields(kind)}  # type: ignore[arg-type]
    given = read_options(argument, tuple(defaults))
    values = {key: _read(key, value, defaults[key]) for key, value in given.items()}
    return kind(**{key.replace("-", "_"): value for key, value in values.items()})


def read_options(argument: str, known: Sequence[str]) -> dict[str, str]:
    """Split ``KEY=VALUE,KEY,...``; raises ``BadInputError`` for keys that are unknown or given twice."""
    values: dict[str, str] = {}
    for part in argument.split(",") if argument else ():
        key, _, value = part.strip().partition("=")
        if key not in known:
            raise BadInputError(
                "is not an option of this policy", field=key, remedy=f"one of {', '.join(known)}"
            )
        if key in values:
            raise BadInputError("is given twice", field=key, value=value, remedy="leave one out")
        values[key] = value
    return values


def _read(key: str, value: str, default: Any) -> Any:
    """Read an option as what its default is."""
    try:
        if isinstance(default, bool):
            return {"": True, "yes": True, "no": False}[value]
        if isinstance(default, tuple):
            return tuple(int(item) for item in value.split("/"))
        return type(default)(value)
    except (KeyError, ValueError) as error:
        what, how = _WORDS[type(default)]
        raise BadInputError(f"must be {what}", field=key, value=value, remedy=f"as in {key}={how}") from error


_WORDS = {
    bool: ("yes or no", "yes"),
    int: ("a whole number", "2"),
    float: ("a number", "0.05"),
    tuple: ("whole numbers", "8/16/32"),
}
"""By the type of an option: what it must be, and a value that every policy takes."""


def rising(sizes: Sequence[int], field: str, *, at_least: int = 1) -> None:
    """Refuse sizes that do not rise strictly from ``at_least`` on; none at all pass."""
    if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < at_least):
        raise BadInputError(
            f"must rise strictly, each at least {at_least}", field=field, value=tuple(sizes),
            remedy="as in 8/16/32",
        )  # fmt: skip
