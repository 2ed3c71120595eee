"""Measured cells: repeats until the mean is known well enough, and a log that survives interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.core.errors import BadInputError
from simulator.core.files import append_line, write_text
from simulator.core.random import random_stream
from simulator.core.reading import decoded, read_bounded
from simulator.core.statistics import t_quantile
from simulator.live.device import OutOfMemoryError

GROSS = 3.0
"""Samples of more than so many medians are another process's doing: left out, and counted."""

SCATTER = 20
"""Quantiles kept of a cell's samples."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """When a cell has been measured enough: the half-width of its mean's 95% interval, relative to it."""

    relative: float = 0.01
    least: int = 10
    most: int = 200
    warmup: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.relative < 1:
            raise BadInputError(
                "must be a share between 0 and 1", field="confidence", value=self.relative,
                remedy="0.01 asks for means within 1%",
            )  # fmt: skip
        if not 2 <= self.least <= self.most or self.warmup < 0:
            raise BadInputError("must be 2 <= least <= most", field="repeats", value=self)


Key = tuple[str, str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """One measurement; ``kind`` says of what, unused axes are 0. Times in seconds.

    seconds: mean without gross outliers; relative: half-width of its 95% interval, over the mean or over
    what it is a part of. scatter: the samples' quantiles over their mean, at ``SCATTER`` equally likely
    places; none of a part. round: cells measured in
    several rounds are apart in time, so that whatever slows a machine for a while spoils one of them.
    """

    kind: str
    name: str
    requests: int
    batch_tokens: int
    context_tokens: int
    seconds: float
    median_s: float
    relative: float
    repeats: int
    outliers: int
    scatter: tuple[float, ...]
    round: int = 0

    def __str__(self) -> str:
        """For a person."""
        sizes = f"{self.requests} requests {self.batch_tokens} tokens {self.context_tokens} context"
        return f"{self.kind} {self.name} {sizes}"

    @property
    def key(self) -> Key:
        """What was measured, and in which round."""
        return self.kind, self.name, self.requests, self.batch_tokens, self.context_tokens, self.round


_WHAT = ["kind", "name", "requests", "batch_tokens", "context_tokens"]

_MEASURED = ["seconds", "median_s", "relative", "repeats", "outliers"]


@dataclass(slots=True, eq=False)
class Measurement:
    """A cell while it is measured: what, how to take a sample in seconds, and the samples so far.

    part_of_s: for a small part of something that takes so long, known well enough when its interval is
    narrow relative to that. Such a part may be a difference of two times: single samples may be negative,
    their mean is not.
    """

    sample_s: Callable[[], float]
    kind: str
    name: str = ""
    requests: int = 0
    batch_tokens: int = 0
    context_tokens: int = 0
    part_of_s: float = 0.0
    samples: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        """For a person."""
        sizes = f"{self.requests} requests {self.batch_tokens} tokens {self.context_tokens} context"
        return f"{self.kind} {self.name} {sizes}"

    def is_known(self, repeats: Repeats) -> bool:
        """Whether there are samples enough, and they agree well enough."""
        if len(self.samples) < repeats.least:
            return False
        return _relative(_typical(self.samples, self.part_of_s), self.part_of_s) <= repeats.relative

    def cell(self, round: int) -> MeasuredCell:
        """Return what is known of the cell, which may be noisier than ``repeats`` asks for."""
        kept = _typical(self.samples, self.part_of_s)
        return MeasuredCell(
            self.kind, self.name, self.requests, self.batch_tokens, self.context_tokens,
            max(float(kept.mean()), 0.0), max(float(np.median(kept)), 0.0),
            _relative(kept, self.part_of_s), len(self.samples),
            len(self.samples) - len(kept), () if self.part_of_s else _scatter(kept), round,
        )  # fmt: skip


def measure(
    wanted: Sequence[Measurement],
    repeats: Repeats,
    *,
    done: Callable[[MeasuredCell], None],
    left_out: Callable[[Measurement, OutOfMemoryError], None],
    round: int = 0,
) -> None:
    """Sample everything wanted in turn, in an order that changes, until each mean is known well enough.

    In turn, because no engine runs the same step twice in a row: a burst of equal steps finds its weights
    and buffers in caches where a real step does not, and takes whatever slows the machine for a second for
    its own. done: told of each cell when it is known, and at the end of those that stayed too noisy, which
    their ``relative`` shows. left_out: told of each for which memory did not suffice.
    """
    turns, left = random_stream(0, "turns"), list(wanted)
    for sweep in range(repeats.warmup + repeats.most):
        open_still = []
        for place in turns.permutation(len(left)).tolist():
            measurement = left[place]
            try:
                seconds = measurement.sample_s()
            except OutOfMemoryError as error:
                left_out(measurement, error)
                continue
            if sweep >= repeats.warmup:
                measurement.samples.append(seconds)
            if measurement.is_known(repeats):
                done(measurement.cell(round))
            else:
                open_still.append(measurement)
        left = open_still
    for measurement in left:
        done(measurement.cell(round))


def _typical(samples: list[float], part_of_s: float) -> Any:
    values = np.array(samples)
    limit = GROSS * max(np.median(values), part_of_s)
    return values[values <= limit] if limit > 0 else values


def _scatter(kept: Any) -> tuple[float, ...]:
    places = (np.arange(SCATTER) + 0.5) / SCATTER
    return tuple(np.quantile(kept / kept.mean(), places).round(4).tolist())


def _relative(values: Any, part_of_s: float) -> float:
    half = values.std(ddof=1) / math.sqrt(len(values)) * t_quantile(0.975, len(values) - 1)
    size = max(values.mean(), part_of_s)
    return float(half / size) if size > 0 else math.inf


class CellLog:
    """Cells on disk, a line each, written as soon as they are measured.

    The first line says under what settings; a log of other settings is refused, naming the fields. A last
    line that a crash cut short is dropped, and its cell measured again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.cells: dict[Key, MeasuredCell] = {}
        self.aside: list[MeasuredCell] = []
        self.resumed = 0
        if self.path.exists():
            self._resume(settings)
        else:
            self._append({"settings": settings})

    @classmethod
    def read(cls, path: Path) -> CellLog:
        """Load a finished log, whatever its settings."""
        return cls(path, _settings(Path(path), _lines(Path(path))[0]))

    def get(self, key: Key) -> MeasuredCell | None:
        """Return the cell, if it has been measured."""
        return self.cells.get(key)

    def add(self, cell: MeasuredCell) -> None:
        """Keep a cell; on disk when this returns."""
        self.cells[cell.key] = cell
        self._append(asdict(cell))

    def set_aside(self, relative: float) -> list[MeasuredCell]:
        """Take cells noisier than ``relative`` out of what ``of`` returns; the file keeps them.

        Where every cell of a kind and name is noisy, all of them stay. Returns those taken out, which
        ``aside`` keeps.
        """
        noisy = {key for key, cell in self.cells.items() if cell.relative > relative}
        known = {key[:2] for key in self.cells.keys() - noisy}
        taken = [self.cells.pop(key) for key in sorted(noisy) if key[:2] in known]
        self.aside += taken
        return taken

    def of(self, kind: str, name: str | None = None) -> pd.DataFrame:
        """All cells of one kind, in order of measurement; of several rounds, the median of each column."""
        chosen = [asdict(c) for c in self.cells.values() if c.kind == kind and name in (None, c.name)]
        frame = pd.DataFrame(chosen, columns=[*_WHAT, *_MEASURED])
        return frame.groupby(_WHAT, sort=False, as_index=False)[_MEASURED].median()

    def disagreement(self) -> float:
        """Median over step cells of how far their rounds lie apart, relative to their median; 0 for one."""
        steps = pd.DataFrame([asdict(c) for c in self.cells.values() if c.kind == "step"])
        rounds = steps.groupby(_WHAT)["seconds"]
        return float(((rounds.max() - rounds.min()) / rounds.median()).median())

    def _resume(self, settings: Mapping[str, Any]) -> None:
        lines = _lines(self.path)
        whole, tail = lines[:-1], lines[-1]
        if not whole:
            raise BadInputError("holds no cells", source=str(self.path), remedy="delete it")
        try:
            found = _settings(self.path, whole[0])
            self.cells = {cell.key: cell for cell in map(_read_cell, whole[1:])}
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError("is not a cell log", source=str(self.path), remedy="delete it") from error
        given = json.loads(json.dumps(settings))
        different = [name for name in given | found if given.get(name) != found.get(name)]
        if different:
            raise BadInputError(
                f"was measured with another {', '.join(different)}", source=str(self.path),
                field=different[0], value=found.get(different[0]),
                remedy="delete it to measure anew, or repeat the command it was begun with",
            )  # fmt: skip
        self.resumed = len(self.cells)
        if tail:
            write_text(self.path, "\n".join(whole) + "\n")

    def _append(self, entry: Mapping[str, Any]) -> None:
        append_line(self.path, json.dumps(entry))


def _lines(path: Path) -> list[str]:
    return decoded(read_bounded(path), str(path)).split("\n")


def _settings(path: Path, line: str) -> dict[str, Any]:
    try:
        settings = json.loads(line)["settings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise BadInputError("is not a cell log", source=str(path), field="line 1", remedy="delete it")
    return settings


def _read_cell(line: str) -> MeasuredCell:
    values = json.loads(line)
    return MeasuredCell(**values | {"scatter": tuple(values["scatter"])})
