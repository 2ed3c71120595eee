"""The files a run leaves, simulated or live: the same names, columns and units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from simulator.files import atomic_path, write_json
from simulator.simulation import Run


def write_run(run: Run, directory: Path, description: Mapping[str, object]) -> None:
    """Write ``requests.parquet``, ``steps.parquet`` and ``run.json`` (the description and the metrics).

    ``description`` says what was run: policy, traffic, seed, profile, device, date, command.
    ``run.json`` is written last, so its presence says that the directory is complete.
    """
    for name, frame in (("requests", run.requests), ("steps", run.steps)):
        with atomic_path(directory / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    metrics = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in run.metrics.as_row().items()
    }
    write_json(directory / "run.json", {"schema": 1, **description, "metrics": metrics})
