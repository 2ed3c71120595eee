"""Acceptance traces as parquet files.

One row per anchor position, in order. Columns, all without nulls, the optional ones left out when unknown:

sequence                int64, 0-based, non-decreasing, without gaps
confidence_logit        fixed-size list of gamma float32 (optional)
accepted                uint8 (greedy kind)
acceptance_probability  fixed-size list of gamma float32 (sampled kind)
effective_length        uint8 (optional)
target_token            int64 (optional)

The file's key-value metadata holds, under ``dspark_trace``, a JSON object: schema, version, name, kind,
gamma, temperatures, provenance and sha256. The last is of everything else, the columns' values included,
and is verified on reading: a file in which a bit has changed is refused, not taken for other data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.acceptance.trace import MAX_GAMMA, AcceptanceTrace, TraceKind
from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path
from simulator.core.provenance import Provenance
from simulator.core.reading import complain

SCHEMA = "dspark-simulator/acceptance-trace"

VERSION = 1

_KEY = b"dspark_trace"

_LISTS = ("confidence_logit", "acceptance_probability")

_SCALARS = {"accepted": pa.uint8(), "effective_length": pa.uint8(), "target_token": pa.int64()}


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: str = Field(alias="schema")
    version: int
    name: str
    kind: TraceKind
    gamma: int
    temperatures: tuple[float, ...] | None
    provenance: Provenance
    sha256: str


def save_trace(trace: AcceptanceTrace, path: Path) -> None:
    """Write a trace, atomically.

    Parameters
    ----------
    trace
        What is written.
    path
        File; one that exists is replaced only by a whole new one.
    """
    columns: dict[str, pa.Array] = {"sequence": pa.array(_sequence_of_row(trace.sequence_start))}
    for name, values in (
        ("confidence_logit", trace.confidence_logits),
        ("accepted", trace.accepted),
        ("acceptance_probability", trace.acceptance_probability),
        ("effective_length", trace.effective_length),
        ("target_token", trace.target_tokens),
    ):
        if values is not None:
            flat = pa.array(values.ravel())
            columns[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, trace.gamma)
    table = pa.table(columns)
    header = _Header(
        schema=SCHEMA,
        version=VERSION,
        name=trace.name,
        kind=trace.kind,
        gamma=trace.gamma,
        temperatures=None if trace.temperatures is None else tuple(trace.temperatures.tolist()),
        provenance=trace.provenance,
        sha256="",
    )
    header = header.model_copy(update={"sha256": _checksum(header, _arrays(path, table, trace.gamma))})
    table = table.replace_schema_metadata({_KEY: header.model_dump_json(by_alias=True).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def load_trace(path: Path) -> AcceptanceTrace:
    """Read and check a trace.

    Parameters
    ----------
    path
        File that ``save_trace`` or a recording wrote.

    Returns
    -------
    AcceptanceTrace
        The trace.

    Raises
    ------
    BadInputError
        For every fault; it names ``path``.
    """
    table = _read_table(path)
    header = _read_header(path, table)
    columns = _arrays(path, table, header.gamma)
    if "sequence" not in columns:
        raise _bad(path, "is missing", "sequence")
    try:
        trace = AcceptanceTrace(
            name=header.name,
            confidence_logits=columns.get("confidence_logit"),
            sequence_start=_starts(path, columns["sequence"]),
            provenance=header.provenance,
            accepted=columns.get("accepted"),
            acceptance_probability=columns.get("acceptance_probability"),
            effective_length=columns.get("effective_length"),
            target_tokens=columns.get("target_token"),
            temperatures=None if header.temperatures is None else np.asarray(header.temperatures),
            block_size=header.gamma,
        )
    except BadInputError as error:
        raise _bad(path, error.problem, error.field, error.value) from error
    if header.sha256 != _checksum(header, columns):
        raise _bad(path, "is damaged: the content is not what was written", "sha256", header.sha256)
    return trace


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        str(table.schema), table.column_names  # pyarrow decodes names only on access
        return table
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        # A damaged file may fail in any part of the reader: names that are no UTF-8, impossible lengths.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _bad(path, f"is not a whole parquet file: {reason}") from error


def _read_header(path: Path, table: pa.Table) -> _Header:
    try:
        text = (table.schema.metadata or {})[_KEY]
        found = json.loads(text)
        identity = (found.get("schema"), found.get("version"))
    except (KeyError, ValueError, AttributeError) as error:
        raise _bad(path, "is parquet but not an acceptance trace", "dspark_trace") from error
    if identity != (SCHEMA, VERSION):
        raise _bad(path, f"must be {SCHEMA!r} version {VERSION}", "schema", identity)
    try:
        header = _Header.model_validate(found)
    except ValidationError as error:
        raise complain(error, str(path)) from error
    if not 1 <= header.gamma <= MAX_GAMMA:
        raise _bad(path, f"must be 1 to {MAX_GAMMA}", "gamma", header.gamma)
    return header


def _arrays(path: Path, table: pa.Table, gamma: int) -> dict[str, NDArray[Any]]:
    if len(set(table.column_names)) < table.num_columns:
        raise _bad(path, "names a column twice")
    return {name: _column(path, table, name, gamma) for name in table.column_names}


def _checksum(header: _Header, columns: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of the header without it, and of each column's name, type, shape and values, in hexadecimal."""
    digest = hashlib.sha256(header.model_dump_json(by_alias=True, exclude={"sha256"}).encode())
    for name in sorted(columns):
        values = np.ascontiguousarray(columns[name])
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _column(path: Path, table: pa.Table, name: str, gamma: int) -> NDArray[Any]:
    """One column as an array of its declared type, [N] or [N, gamma]."""
    expected = _SCALARS.get(name, pa.int64())
    if name in _LISTS:
        expected = pa.list_(pa.float32(), gamma)
    elif name != "sequence" and name not in _SCALARS:
        raise _bad(path, "unknown column", name)
    column = table.column(name)
    if column.type != expected:
        raise _bad(path, f"must be {expected}, for gamma {gamma}", name, str(column.type))
    if column.null_count:
        raise _bad(path, "must have no nulls", name, f"{column.null_count} nulls")
    if name not in _LISTS:
        return np.asarray(column.to_numpy())
    flat = column.combine_chunks().flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, gamma)


def _sequence_of_row(start: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(start) - 1, dtype=np.int64), np.diff(start))


def _starts(path: Path, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(sequence):
        raise _bad(path, "has no rows")
    steps = np.diff(sequence)
    if sequence[0] != 0 or np.any((steps != 0) & (steps != 1)):
        raise _bad(path, "must count up from 0 without gaps", "sequence")
    return np.concatenate([[0], np.flatnonzero(steps) + 1, [len(sequence)]]).astype(np.int64)


def _bad(path: Path, problem: str, field: str | None = None, value: object = None) -> BadInputError:
    remedy = "mend or record the trace again"
    return BadInputError(problem, source=str(path), field=field, value=value, remedy=remedy)
