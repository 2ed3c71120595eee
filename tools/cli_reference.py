"""Print the command line's reference as Markdown: ``python -m tools.cli_reference``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from simulator.cli.app import commands

HEAD = """# Command line

Every command takes `--help`. Exit codes: 0 done; 1 infeasible, or a check failed; 2 bad input; 70 a fault of
the program; 130 interrupted."""


def reference(name: str, command: Any, level: int = 2) -> Iterator[str]:
    """Yield the Markdown of a command and of those below it; click's own objects are untyped here."""
    yield f"\n{'#' * level} {name}\n"
    if command.help:
        yield " ".join(command.help.split())
    shown = [each for each in command.params if each.name != "help" and not getattr(each, "hidden", False)]
    if shown:
        yield "\n| option | default | meaning |\n| --- | --- | --- |"
        yield from map(_row, shown)
    for below, child in getattr(command, "commands", {}).items():
        yield from reference(f"{name} {below}", child, level + 1)


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [str(parameter.name).upper()]
    default = "required" if parameter.required else ""
    if not parameter.required and parameter.default not in (None, (), []):
        default = f"`{parameter.default}`"
    meaning = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    return f"| {', '.join(f'`{each}`' for each in names)} | {default} | {meaning} |"


def main() -> None:
    """Write the page to standard output."""
    root: Any = typer.main.get_command(commands())
    lines = [HEAD]
    for name, command in root.commands.items():
        lines += reference(f"dspark-sim {name}", command)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
