"""The run directory: finished cells on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simulator.core.errors import BadInputError, UnwritableError
from simulator.core.files import atomic_path, write_json
from simulator.core.reading import read_json
from simulator.parallel.hashing import code_digest, package_version

MANIFEST = "sweep.json"

LOCK = ".lock"

SCHEMA = 2

_SEAL = b"dspark_cell"


@dataclass(frozen=True, slots=True)
class CellStore:
    """Finished cells, one parquet file of one row each, named by the hash of code, function and cell.

    The metadata of a file holds that key and a checksum of the row. A damaged file, or the file of another
    cell, is not a result. writable: False on a read-only medium, where all cells must exist.
    """

    directory: Path
    writable: bool = True

    def path(self, key: str) -> Path:
        """Return the file of the cell with this key."""
        return self.directory / "cells" / f"{key}.parquet"

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the result of a finished cell; None without a file, and a warning for a damaged one."""
        path = self.path(key)
        if not os.path.lexists(path):
            return None
        if not path.is_file():
            raise BadInputError("is not a file, but has a cell's name", source=str(path), remedy="remove it")
        try:
            return _unsealed(path, key)
        except Exception as error:  # the reader may raise nearly any error on a damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"{path} is damaged; its cell runs again: {reason}", stacklevel=3)
            return None

    def write(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a result; returns the result as it will be read: the seal holds its checksum.

        Raises ``UnwritableError``.
        """
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pylist([_plain(row)])
        kept: dict[str, Any] = table.to_pylist()[0]
        seal = json.dumps({"key": key, "sha256": _checksum(kept)}).encode()
        with atomic_path(self.path(key)) as temporary:
            parquet.write_table(
                table.replace_schema_metadata({_SEAL: seal}), temporary, write_page_checksum=True
            )
        return kept


@contextmanager
def open_store(directory: Path, sweep: str, cells: int) -> Iterator[CellStore]:
    """Open a new run directory, or the one that holds this very sweep, for this process alone.

    sweep: hash of function and cells, or of what a study's cells have in common, whatever code computes
    them. cells: how many there are this time. Results of other code stay where they are and are not used,
    which is said. Raises ``BadInputError`` for a directory of another sweep, for one
    that holds something else, and for one that another process works in; ``UnwritableError``.
    """
    _check_owner(directory)
    with _locked(directory) as writable:
        described = {
            "schema": SCHEMA, "cells": cells, "sweep": sweep,
            "version": package_version(), "code": code_digest(),
        }  # fmt: skip
        if _found(directory, described) != described and writable:
            write_json(directory / MANIFEST, described)
        if writable:
            for leftover in (directory / "cells").glob(".*.parquet"):
                leftover.unlink(missing_ok=True)  # unfinished files of a killed worker
        yield CellStore(directory, writable)


def _check_owner(directory: Path) -> None:
    """Refuse a directory with other content, before anything is created in it."""
    try:
        present = directory.exists() and [path.name for path in directory.iterdir()]
    except OSError as error:
        raise UnwritableError(f"cannot be used: {error.strerror}", source=str(directory)) from error
    if present and MANIFEST not in present and any(not name.startswith(".") for name in present):
        raise BadInputError(
            f"is neither empty nor a run directory: it has no {MANIFEST}", source=str(directory),
            remedy="choose another directory; what is there was left as it is",
        )  # fmt: skip


def _found(directory: Path, described: Mapping[str, Any]) -> Any:
    """Read the manifest of the directory. Another sweep is refused; other code gives a warning."""
    manifest = directory / MANIFEST
    if not manifest.exists():
        return None
    found: Any = read_json(manifest)
    if not isinstance(found, dict) or "schema" not in found:
        raise BadInputError(
            "is not a run directory's", source=str(manifest), remedy="choose another directory, or delete it"
        )
    if any(found.get(name) != described[name] for name in ("schema", "version", "code")):
        theirs, ours = (f"version {m.get('version')}, code {m.get('code')}" for m in (found, described))
        # Of several directories, as a plan has, the same words from the same place: Python shows them once.
        warnings.warn(
            f"kept cells were computed by other code ({theirs}): they are not used, and run again ({ours})",
            stacklevel=1,
        )
    elif found["sweep"] != described["sweep"]:
        raise BadInputError(
            "holds another sweep, or functions of yours that cells use have changed", source=str(directory),
            remedy="choose another directory, or delete this one to start over; a plan or a frontier may add "
            "policies, loads and precision to its own directory, nothing else",
        )  # fmt: skip
    return found


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Lock the directory for this process; yields whether the directory is writable."""
    import fcntl

    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and (directory / MANIFEST).is_file():
            yield False
            return
        raise UnwritableError(
            f"cannot be written: {error.strerror}",
            source=str(directory),
            remedy="choose a writable directory",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 300, 0).decode(errors="replace").strip() or "another process"
            raise BadInputError(
                f"is in use by {holder}", source=str(directory),
                remedy="wait until that ends, or choose another directory",
            ) from error  # fmt: skip
        except OSError:  # some network file systems
            warnings.warn(f"{directory} cannot be locked: let no second process work in it", stacklevel=5)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()} since {since}\n".encode(), 0)
        yield True
    finally:
        os.close(handle)


# --- one cell -----------------------------------------------------------------------------------------------


def _unsealed(path: Path, key: str) -> dict[str, Any]:
    """Read the row of a cell's file. Raises ``ValueError`` for another cell or a changed row."""
    from pyarrow import parquet

    table = parquet.read_table(path, page_checksum_verification=True)
    seal = json.loads((table.schema.metadata or {})[_SEAL])
    if seal["key"] != key:
        raise ValueError("it is another cell's")
    row: dict[str, Any] = table.to_pylist()[0]
    if table.num_rows != 1 or seal["sha256"] != _checksum(row):
        raise ValueError("its content is not what was written")
    return row


def _checksum(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Convert NumPy's types to Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
