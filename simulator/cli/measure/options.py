"""Options of the commands that run on a device."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    import pandas as pd

    from simulator.live.models.draft import Draft
    from simulator.live.models.targets import Target


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A target with its drafts, on a device."""

    target: Annotated[
        str, typer.Option(help="Folder or hub name, or qwen3-4b, qwen3-8b, qwen3-14b with random weights.")
    ]
    draft: Annotated[
        list[str],
        typer.Option(
            help="NAME=FOLDER, or untrained: dspark=new:GAMMA, mtp=new:K. The first takes part in steps."
        ),
    ] = ("dspark=new:7", "mtp1=new")  # type: ignore[assignment]  # a tuple: dataclasses refuse lists
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cuda"
    dtype: Annotated[
        str | None, typer.Option(help="Of weights and caches; default float32 on a CPU, else bfloat16.")
    ] = None
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1
    attention: Annotated[str, typer.Option(help="auto, sdpa, varlen, split or plain.")] = "auto"
    graphs: Annotated[bool, typer.Option(help="Record CUDA graphs (on a GPU).")] = True
    fuse: Annotated[
        bool, typer.Option(help="Norms, rotation, gates and sums as one kernel each, where equal (on a GPU).")
    ] = True

    def load(self) -> tuple[Target, dict[str, Draft]]:
        """Load the models onto the device."""
        from simulator.live.models.pairs import load_pair

        with Console(stderr=True).status("loading torch and the models"):
            return load_pair(self.target, list(self.draft), self.device, self.dtype, self.threads)


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a live run serves, and what decides about its drafts."""

    profile: Annotated[
        str,
        typer.Option(help="Profile, measured on this device beforehand, whose cost the scheduler believes."),
    ]
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL or DRAFTER=MODEL, as for simulate; see dspark-sim list. live --own needs none."
        ),
    ] = None
    own: Annotated[bool, typer.Option(help="The pair's own acceptance in the live run, not the trace's.")] = (
        False
    )
    prompts: Annotated[
        str,
        typer.Option(help="random, or held-out text of a domain: code, prose, arithmetic, or one of --text."),
    ] = "random"
    text: Annotated[
        Path | None, typer.Option(help="Folder of text files in place of the default corpus.")
    ] = None
    lengths: Annotated[str, typer.Option(help="Prompt and output lengths, as for simulate.")] = "default"
    steps: Annotated[int, typer.Option(min=40, help="Steps of each closed-loop run.")] = 400
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of traffic, traces, prompts and sampling.")
    ] = 0

    def asked(self) -> dict[str, Any]:
        """Return it as keyword arguments of ``live.checks.asked.Asked``."""
        return {
            "profile": self.profile, "acceptance": self.acceptance or (), "own": self.own,
            "prompts": self.prompts, "text": self.text, "lengths": self.lengths, "steps": self.steps,
            "seed": self.seed,
        }  # fmt: skip


def sizes(text: str, option: str) -> tuple[int, ...]:
    """Comma-separated sizes."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInputError(
            "is not a list of sizes", source=option, value=text, remedy="as in 1,2,4,8"
        ) from error


def command_line() -> str:
    """Return the command as it was typed, for provenance."""
    return shlex.join(["dspark-sim", *sys.argv[1:]])


_UNBOUNDED = 10_000
"""Letters that a line may have where no terminal limits it: a file or a pipe takes tables whole."""


def show_table(frame: pd.DataFrame, title: str, shares: Collection[str] = ()) -> None:
    """Print a table on standard output, the columns named in ``shares`` as percentages."""
    table = Table(box=None)
    for name in frame.columns:
        table.add_column(str(name), justify="right")
    for row in frame.itertuples(index=False):
        table.add_row(
            *(_shown(value, name in shares) for name, value in zip(frame.columns, row, strict=True))
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBOUNDED)
    console.print(title, style="italic", highlight=False, markup=False)
    console.print(table)


def _shown(value: object, is_share: bool) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2%}" if is_share else f"{value:.4g}"
