"""The command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from simulator.cli import app as cli


def run(*arguments: object) -> int:
    """``dspark-sim ARGUMENTS`` in this process: its exit code."""
    saved = sys.argv
    sys.argv = ["dspark-sim", *(str(each) for each in arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = saved
    return 0


def command_names() -> set[str]:
    """Every command by its words; that which ``profile`` runs with options alone is called so."""
    root: Any = typer.main.get_command(cli.commands())
    return {words.removesuffix(" measure") for words in _below(root)}


def _below(command: Any) -> Iterator[str]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from (f"{name} {rest}" for rest in _below(child))
        else:
            yield name
