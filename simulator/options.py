"""Command-line options that every sweep takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

WorkersOption = Annotated[
    int, typer.Option(help="Processes; -1 uses every core. Results do not depend on it.")
]
BackendOption = Annotated[
    Literal["loky", "dask", "ray"], typer.Option(help="Where cells run: here, or on a cluster.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Cluster to use; a local one is started where none is given.")
]
CellsOption = Annotated[
    Path | None, typer.Option(help="Directory that keeps finished cells, so that the same sweep resumes.")
]
