"""Options of a policy in text, such as ``tiers=8/16/32,reinflate,min-gain=0.05``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from simulator.core.errors import BadInputError

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Options:
    """What stands behind a policy's name: ``KEY=VALUE`` or a bare ``KEY``, between commas.

    text: the whole policy, for messages. Numbers of a list are separated by slashes.
    """

    text: str
    values: Mapping[str, str]

    def whole(self, key: str, default: int) -> int:
        """Read an integer."""
        return _number(self.values[key], int, self, key) if key in self.values else default

    def number(self, key: str, default: float) -> float:
        """Read a number."""
        return _number(self.values[key], float, self, key) if key in self.values else default

    def wholes(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Read rising integers, as in ``8/16/32``."""
        if key not in self.values:
            return default
        return tuple(_number(item, int, self, key) for item in self.values[key].split("/"))

    def flag(self, key: str, default: bool = False) -> bool:
        """Read whether an option is on: bare, or ``=yes`` or ``=no``."""
        value = self.values.get(key)
        if value is None:
            return default
        if value not in ("", "yes", "no"):
            raise self.error("must be yes or no", key, value, f"as in {key}=yes")
        return value != "no"

    def error(self, problem: str, key: str, value: object, remedy: str) -> BadInputError:
        """Return a complaint about one option."""
        return BadInputError(problem, source=self.text, field=key, value=value, remedy=remedy)


def read_options(argument: str, text: str, known: Sequence[str]) -> Options:
    """Read ``KEY=VALUE,KEY,...``; raises ``BadInputError`` for keys that are unknown or given twice.

    argument: what follows the policy's name. text: the whole policy.
    """
    values: dict[str, str] = {}
    for part in argument.split(",") if argument else ():
        key, _, value = part.strip().partition("=")
        if key not in known:
            raise BadInputError(
                "is not an option of this policy", source=text, field="policy", value=part,
                remedy=f"one of {', '.join(known)}",
            )  # fmt: skip
        if key in values:
            raise BadInputError("is given twice", source=text, field=key, value=value, remedy="leave one out")
        values[key] = value
    return Options(text, values)


def rising(sizes: Sequence[int], field: str, *, at_least: int = 1) -> None:
    """Refuse sizes that do not rise strictly from ``at_least`` on; none at all pass."""
    if list(sizes) != sorted(set(sizes)) or (sizes and sizes[0] < at_least):
        raise BadInputError(
            f"must rise strictly, each at least {at_least}", field=field, value=tuple(sizes),
            remedy="as in 8/16/32",
        )  # fmt: skip


def _number(item: str, kind: type[_Number], options: Options, key: str) -> _Number:
    try:
        return kind(item)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise options.error(f"must be {what}", key, item, f"as in {key}=2") from error
