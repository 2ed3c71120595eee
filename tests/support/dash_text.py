"""What a tree of Dash components says, as text."""

from __future__ import annotations

from typing import Any


def words(part: Any) -> list[str]:
    """Every text in the order in which it is read."""
    if part is None or isinstance(part, str | int | float):
        return [] if part is None else [str(part)]
    inner = part if isinstance(part, list | tuple) else getattr(part, "children", None)
    listed = inner if isinstance(inner, list | tuple) else [inner]
    return [word for each in listed for word in words(each)]


def parts(part: Any) -> list[Any]:
    """Return every component of a tree, itself included, in the order in which it is read."""
    if part is None or isinstance(part, str | int | float):
        return []
    if isinstance(part, list | tuple):
        return [each for inner in part for each in parts(inner)]
    return [part, *parts(getattr(part, "children", None))]
