"""Workload files: the published layouts, and CSV or JSON lines that a user writes.

A file passes through four steps: rows (``tables``), the meaning of its columns (``layouts`` and ``clocks``),
numbers and their rules (``columns``), and a ``Workload``. A row that breaks a rule is malformed: an error by
default, and listed in the ``ReadReport`` when asked to skip. Every row is reported.
docs/formats.md shows every layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.traffic.recorded.columns import Fields
from simulator.traffic.recorded.layouts import (
    OUTPUT_COLUMNS,
    PROMPT_COLUMNS,
    Layout,
    Options,
    check_options,
    recognise,
    required,
)
from simulator.traffic.recorded.tables import MalformedRow, read_table
from simulator.traffic.workload import Workload

_MALFORMED_REMEDY = "mend them, or skip and report them (skip_malformed=True, FILE@skip-malformed)"


@dataclass(frozen=True, slots=True)
class ReadReport:
    """The fate of every row of a file: ``rows == requests + len(malformed)``."""

    path: str
    layout: str
    rows: int
    requests: int
    malformed: tuple[MalformedRow, ...] = ()
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # what is not in the file: an inferred unit, placed turns

    def summary(self) -> str:
        """Return one line for a terminal or a report, with the notes and the first malformed rows."""
        text = f"{self.path}: {self.requests:,} requests ({self.layout})"
        if self.malformed:
            text += f", {len(self.malformed):,} of {self.rows:,} rows malformed and skipped: "
            text += _first_few(self.malformed)
        return "; ".join([text, *self.assumed, *self.notes])


def read_workload(
    path: Path | str,
    *,
    skip_malformed: bool = False,
    sort: bool = False,
    unit: str | None = None,
    time_column: str | None = None,
    block_tokens: int | None = None,
    turn_tokens_per_s: float | None = None,
) -> tuple[Workload, ReadReport]:
    """Read a workload file, plain or packed (gzip, zstd), whose layout is recognised from its columns.

    Read are the traces of Azure, BurstGPT, Mooncake, Bailian, GuideLLM, Dynamo, AIPerf and Vidur, exports
    of gateways with ISO times, and any CSV or JSON lines with ``prompt_tokens`` and ``output_tokens``, an
    arrival with its unit (``arrival_s``, ``timestamp_ms``, ...; without any column of times the workload is
    a closed loop) and optionally ``class`` and ``hash_ids``. docs/formats.md lists them, with how units are
    told apart.

    Parameters
    ----------
    path
        The file.
    skip_malformed
        Whether malformed rows are left out and reported instead of refused.
    sort
        Whether to put rows in order of arrival first.
    unit
        Of the arrivals, s, ms, us or ns, where the file does not say.
    time_column
        Which column holds the arrivals.
    block_tokens
        Tokens per hash id; what the layout has by default.
    turn_tokens_per_s
        Speed at which the turns of sessions are assumed to be generated, in tokens/s. Where later turns are
        recorded by their delay after the turn before, they are placed by it.

    Returns
    -------
    Workload
        The requests.
    ReadReport
        What was read, and what was left out.

    Raises
    ------
    BadInputError
        If the layout is unknown, or rows are malformed (a missing or unreadable value, NaN, a length below 1,
        time going back); it names the first few.
    """
    options = Options(sort, unit, block_tokens, turn_tokens_per_s, skip_malformed)
    table = read_table(Path(path))
    layout = recognise(table, time_column)
    check_options(table, layout, options)
    fields = Fields(table, layout, options)
    malformed = fields.malformed()
    if malformed and not skip_malformed:
        disordered = any("goes back in time" in row.reason for row in malformed)
        raise BadInputError(
            f"{len(malformed):,} of {fields.rows:,} rows are malformed: {_first_few(malformed)}",
            source=table.path,
            remedy="; ".join(
                [
                    _MALFORMED_REMEDY,
                    *fields.hints,
                    *(["FILE@sort sorts them by arrival"] if disordered else []),
                ]
            ),
        )
    if len(malformed) == fields.rows:
        raise BadInputError(
            "has no usable row", source=table.path, remedy=_first_few(malformed) or "add requests"
        )
    workload = fields.workload()
    report = ReadReport(
        table.path,
        fields.layout_name,
        fields.rows,
        len(workload),
        malformed,
        tuple(fields.notes),
        tuple(fields.assumed),
    )
    return workload, report


def read_lengths(
    path: Path | str, *, skip_malformed: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return prompt and output tokens of a workload file, [rows] each; its clock is not read."""
    table = read_table(Path(path))
    columns = (required(table, "prompt", PROMPT_COLUMNS), required(table, "output", OUTPUT_COLUMNS))
    fields = Fields(table, Layout("lengths", *columns, clock=None), Options())
    malformed = fields.malformed()
    if malformed and not (skip_malformed and len(malformed) < fields.rows):
        raise BadInputError(
            f"{len(malformed):,} of {fields.rows:,} rows are malformed: {_first_few(malformed)}",
            source=table.path,
            remedy=_MALFORMED_REMEDY,
        )
    workload = fields.workload()
    if not len(workload):
        raise BadInputError("has no usable row", source=table.path, remedy="add requests")
    return workload.prompt_tokens, workload.output_tokens


def _first_few(malformed: Sequence[MalformedRow], shown: int = 5) -> str:
    more = f"; and {len(malformed) - shown:,} more" if len(malformed) > shown else ""
    return "; ".join(map(str, malformed[:shown])) + more
