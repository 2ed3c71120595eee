"""Errors that a user can cause, each with the exit code of the command that it ends.

A message names the file, the field, the value and the remedy: its reader is a user at a terminal and has
no debugger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LONGEST_NAME = 4096
"""Letters of a path or a field that a message shows: as many as a path can have."""

_LONGEST_PART = 1500
"""Letters of a problem or a remedy that a message shows."""


class SimulatorError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 2


class BadInputError(SimulatorError, ValueError):
    """An input (file, option or argument) is wrong; nothing was simulated or written.

    ``source`` is the file or option that the input came from, ``field`` what is wrong in it, ``value`` what
    was given there, and ``remedy`` what to give instead.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        source: str | None = None,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.source, self.field, self.value, self.remedy = problem, source, field, value, remedy
        super().__init__(self._render())

    def _render(self) -> str:
        place = ": ".join(_line(part, _LONGEST_NAME) for part in (self.source, self.field) if part)
        shown = "" if self.value is None else f" (got {_short(self.value)})"
        problem = _line(self.problem, _LONGEST_PART)
        text = f"{place}: {problem}{shown}" if place else f"{problem}{shown}"
        return f"{text}; {_line(self.remedy, _LONGEST_PART)}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries in parallel sweeps; keyword arguments must survive pickling.
        return _rebuild, (type(self), self.problem, self.source, self.field, self.value, self.remedy)


class UnwritableError(BadInputError):
    """An output cannot be written: no permission, no room, a device that takes no bytes."""


class Interrupted(BaseException):
    """A signal asked the program to end. Notes of the error say what is kept and how to continue."""

    exit_code = 130


class InfeasibleError(SimulatorError):
    """The question is clear and the answer is no; the message names the nearest feasible answer.

    A plan also fills the attributes, for programs and for the report:

    binds: the terms or limits that cannot be kept.
    nearest: terms of the nearest feasible SLA; empty where none is known. A check of prefill alone names only
        the replacements of the terms in ``binds``.
    changes: what would help, one item per cause.
    attained: a row of plain values per policy and term, measured at the lightest load.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        binds: Iterable[str] = (),
        nearest: Iterable[str] = (),
        changes: Iterable[str] = (),
        attained: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.binds, self.nearest, self.changes = tuple(binds), tuple(nearest), tuple(changes)
        self.attained = tuple(attained)


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Add a file's name to every ``BadInputError`` raised in the block that does not name the file yet."""
    try:
        yield
    except BadInputError as error:
        source = error.source or ""
        if file in source:
            raise
        raise type(error)(
            error.problem, source=f"{file}: {source}" if source else file, field=error.field,
            value=error.value, remedy=error.remedy,
        ) from error  # fmt: skip


def refuse_repeats(values: Iterable[object], field: str, *, source: str | None = None) -> None:
    """Raise ``BadInputError`` if a value is given twice: a repeat would be counted as new data.

    values: hashable, as the user writes them (names, loads, seeds). field: what the values are, for the
        message.
    """
    counted = Counter(values)
    repeated = [value for value, count in counted.items() if count > 1]
    if repeated:
        shown = ", ".join(str(value) for value in repeated)
        raise BadInputError(
            f"gives {shown} more than once, and a repeat is not new data",
            source=source, field=field, remedy="give each once",
        )  # fmt: skip


def _rebuild(
    kind: type[BadInputError],
    problem: str,
    source: str | None,
    field: str | None,
    value: object,
    remedy: str | None,
) -> BadInputError:
    return kind(problem, source=source, field=field, value=value, remedy=remedy)


def _short(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or levels, than Python writes out
        text = f"a {type(value).__name__} too large to show"
    return _line(text, limit)


def _line(text: str, limit: int) -> str:
    """Put text from outside on one line of bounded length, without control characters of a terminal."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
