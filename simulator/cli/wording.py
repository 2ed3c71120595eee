"""Messages of the library in the words of the command line: arguments of Python become options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer.main

_ARGUMENT = re.compile(r"^(\w+)(?=: )|`(\w+)`")
"""The place that a message begins with, and names in backticks: the library writes arguments so."""


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Write every argument that a message names as the option that gives it.

    >>> in_options("seeds: must be at least 2; give more `steps`", {"seeds": "--seeds", "steps": "--steps"})
    '--seeds: must be at least 2; give more --steps'
    """

    def option(found: re.Match[str]) -> str:
        return options.get(found[1] or found[2], found[0])

    return _ARGUMENT.sub(option, message)


def options_of(app: typer.Typer, words: Sequence[str]) -> dict[str, str]:
    """Argument to option of the command that a command line calls; empty where it calls none."""
    command: Any = typer.main.get_command(app)
    for word in words:
        below = getattr(command, "commands", {})
        if word not in below:
            break
        command = below[word]
    if "measure" in getattr(command, "commands", {}):
        command = command.commands["measure"]
    return {str(each.name): each.opts[-1] for each in command.params if str(each.opts[-1]).startswith("--")}
