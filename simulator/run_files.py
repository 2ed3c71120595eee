"""The files a run leaves, simulated or live: the same names, columns and units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from simulator.files import atomic_path, write_json
from simulator.metrics import requests_frame, steps_frame
from simulator.serving import Engine
from simulator.simulation import Run


def write_run(run: Run, directory: Path, description: Mapping[str, object], **more: pd.DataFrame) -> None:
    """Write ``requests.parquet``, ``steps.parquet`` and ``run.json`` (the description and the metrics).

    more: further tables, written to files of their names.
    ``description`` says what was run: policy, traffic, seed, profile, device, date, command.
    ``run.json`` is written last, so its presence says that the directory is complete.
    """
    _write_frames(directory, requests=run.requests, steps=run.steps, **more)
    metrics = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in run.metrics.as_row().items()
    }
    outcome = {"saturated": run.saturated, "metrics": metrics}
    write_json(directory / "run.json", {"schema": 1, **description, **outcome})


def write_unfinished(engine: Engine, directory: Path, reason: str) -> None:
    """Keep what a run had done when it broke off: both frames, and ``unfinished.json`` with the reason.

    There is no ``run.json``, and so no metrics: whatever reads run directories passes this one over.
    """
    _write_frames(directory, requests=requests_frame(engine), steps=steps_frame(engine))
    write_json(directory / "unfinished.json", {"schema": 1, "reason": reason, "steps": len(engine.steps)})


def _write_frames(directory: Path, **frames: pd.DataFrame) -> None:
    for name, frame in frames.items():
        with atomic_path(directory / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False, write_page_checksum=True)
