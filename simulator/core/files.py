"""Write files whole or not at all, and find the data shipped with the package.

A regular file is replaced as a whole. A symbolic link stays, and the file it points at is replaced. A device
or a pipe is written to and never replaced. ``-`` is standard output. All output of the project is written
by this module, so that every fault of a disk becomes one error that names the file.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.core.errors import BadInputError, UnwritableError

if TYPE_CHECKING:
    import pandas as pd

STANDARD_OUTPUT = Path("-")
"""The name of standard output on a command line."""

PARTIAL = ".partial-"
"""Beginning of the names of unfinished files. Such a file may be deleted when no process writes it."""

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of the system when the path is fine but the disk is full, read-only or broken."""

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")

_DESCRIPTOR = re.compile(r"/dev/fd/(\d+)|/proc/(?:self|\d+)/fd/(\d+)")

_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}

_MOST_LINKS = 40

_NAMED = 32
"""Longest suffix that a temporary file repeats, because some writers read the format from it. A choice."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path whose content becomes ``target`` if the block succeeds.

    A reader sees the old file or the whole new one, and a failure leaves the old file. A link is followed. A
    device or a pipe receives the bytes once all of them are there. Raises ``UnwritableError`` when the target
    cannot be written, the disk is full or a limit is reached.
    """
    target = Path(target)
    if _is_stream(target):
        with _spooled(target) as temporary:
            yield temporary
        return
    place = _resolved(target)
    temporary = _new_file_beside(place, target)
    try:
        with _faults_named(target):
            yield temporary
            _finish(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``target``, which must not exist, if the block succeeds."""
    target = Path(target)
    with _faults_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: object) -> None:
    """Write JSON atomically; see ``json_text``."""
    write_text(target, json_text(value))


def json_text(value: object) -> str:
    """Return JSON that a person and ``diff`` can read; NaN is refused, because JSON has no NaN."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def stamp_of(path: Path) -> tuple[int, int]:
    """Return when a file was written last, in ns, and its bytes; zeros where there is none.

    What is kept of a file by its name and its stamp is read anew when the file has changed.
    """
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def write_csv(target: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table as CSV, atomically, without its index; ``-`` writes it to standard output."""
    write_text(target, table.to_csv(index=False, float_format=float_format))


def write_table(
    target: Path,
    table: pd.DataFrame,
    float_format: str | None = None,
    units: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a table as parquet where the name ends so, else as CSV; atomically, without its index.

    Parquet keeps exact numbers, and the unit of each column in the metadata of its field, under ``unit``.
    units: of columns whose unit differs here from ``units.unit_of``. float_format: for CSV only.
    """
    if Path(target).suffix != ".parquet":
        write_csv(target, table, float_format)
        return
    import pyarrow as pa
    from pyarrow import parquet

    from simulator.core.units import unit_of

    made = pa.Table.from_pandas(table, preserve_index=False)
    fields = []
    for field in made.schema:
        unit = units.get(field.name) or unit_of(field.name)
        fields.append(field.with_metadata({"unit": unit}) if unit else field)
    described = made.cast(pa.schema(fields, made.schema.metadata))
    with atomic_path(target) as temporary:
        parquet.write_table(described, temporary, write_page_checksum=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log; the line is on disk when the function returns.

    Raises ``UnwritableError`` when the log cannot be written.
    """
    path = Path(path)
    with _faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def data_directory(kind: str) -> Path:
    """Return the folder of shipped data of a kind (``profiles``, ``traces``), in a wheel or a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def is_standard_output(path: Path) -> bool:
    """Whether ``path`` is standard output; then nothing else may be printed there."""
    return Path(path) == STANDARD_OUTPUT or _descriptor(Path(path)) == 1


def beside(path: Path, suffix: str) -> Path | None:
    """Return the path of a command's second file; None where the first file is a stream."""
    return None if _is_stream(Path(path)) else Path(path).with_suffix(suffix)


def check_writable_file(*paths: Path) -> None:
    """Refuse outputs that cannot be written, before the work begins; the check leaves no file behind.

    Raises ``UnwritableError``, also where two of the paths are one file.
    """
    places: dict[Path, Path] = {}
    for path in map(Path, paths):
        if _is_stream(path):
            if path != STANDARD_OUTPUT and not os.access(path, os.W_OK):
                raise UnwritableError("cannot be written", source=str(path), remedy="check its permissions")
            continue
        place = _resolved(path)
        if place in places:
            raise UnwritableError(
                f"is also {places[place]}: one would replace the other", source=str(path),
                remedy="choose another name",
            )  # fmt: skip
        places[place] = path
        _probe(place, path)


def check_writable_directory(path: Path) -> None:
    """Refuse an output directory in which no file can be written; the check leaves no file behind.

    Raises ``UnwritableError``, also for ``-``: standard output cannot hold several files.
    """
    path = Path(path)
    if path == STANDARD_OUTPUT:
        raise UnwritableError("writes several files", source=str(path), remedy="name a directory")
    with _faults_named(path):
        if path.exists() and not path.is_dir():
            raise UnwritableError("is not a directory", source=str(path), remedy="name a directory")
    _probe(path / f"{PARTIAL}probe", path)


def _probe(place: Path, named: Path) -> None:
    """Create a file beside ``place`` and remove it, with the directories that had to be made."""
    missing = []
    parent = place.parent
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = parent.parent
    try:
        _new_file_beside(place, named).unlink()
    finally:
        for made in missing:
            try:
                made.rmdir()
            except OSError:  # never made, or another process has put a file into it
                break


def _is_stream(target: Path) -> bool:
    """Whether ``target`` is written into instead of replaced; a target that takes no bytes is refused."""
    if target == STANDARD_OUTPUT or _descriptor(target) is not None:
        return True
    with _faults_named(target):
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            return False
    if stat.S_ISREG(mode):
        return False
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return True
    kind = "directory" if stat.S_ISDIR(mode) else "socket" if stat.S_ISSOCK(mode) else "block device"
    raise UnwritableError(f"is a {kind}", source=str(target), remedy="name a file")


def _descriptor(target: Path) -> int | None:
    """Return the number of the open file that ``target`` names (``/dev/fd/3``); never open it anew."""
    text = os.path.normpath(target)
    for _ in range(_MOST_LINKS):
        if text in _STREAMS:
            return _STREAMS[text]
        found = _DESCRIPTOR.fullmatch(text)
        if found is not None:
            return int(found[1] or found[2])
        link = Path(text)
        with _faults_named(target):
            if not link.is_symlink():
                break
            text = os.path.normpath(link.parent / link.readlink())
    return None


def _resolved(target: Path) -> Path:
    """Follow links to the place of the file; ``_is_stream`` has refused links that lead in a circle."""
    with _faults_named(target):
        return Path(os.path.realpath(target))


def _new_file_beside(place: Path, named: Path) -> Path:
    """Make a new empty file in the directory of ``place``; its mode is that of any new file."""
    suffix = place.suffix if len(place.suffix) <= _NAMED else ""
    temporary = place.with_name(f"{PARTIAL}{secrets.token_hex(8)}{suffix}")
    with _faults_named(named):
        place.parent.mkdir(parents=True, exist_ok=True)
        name_limit = os.pathconf(place.parent, "PC_NAME_MAX")
        if len(os.fsencode(place.name)) > name_limit:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    return temporary


def _finish(temporary: Path, place: Path) -> None:
    """Move a complete file to its place; an existing file's permissions stay."""
    if place.exists():
        temporary.chmod(stat.S_IMODE(place.stat().st_mode))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(place)


@contextmanager
def _spooled(target: Path) -> Iterator[Path]:
    """Yield a temporary file whose bytes go to a stream once all of them are there."""
    suffix = target.suffix if len(target.suffix) <= _NAMED else ""
    with _faults_named(target), tempfile.TemporaryDirectory(prefix="dspark-sim-") as folder:
        temporary = Path(folder) / f"output{suffix}"
        yield temporary
        _pour(temporary.read_bytes(), target)


def _pour(content: bytes, target: Path) -> None:
    number = _descriptor(target)
    if target == STANDARD_OUTPUT or number == 1:
        buffer = getattr(sys.stdout, "buffer", None)
        if buffer is None:  # standard output of a notebook takes text only
            sys.stdout.write(content.decode("utf-8"))
        else:
            sys.stdout.flush()
            buffer.write(content)
        sys.stdout.flush()
        return
    if number is not None:
        opened = os.dup(number)
    else:
        # Without O_NONBLOCK, opening a pipe without a reader would wait for ever.
        opened = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(opened, True)
    with os.fdopen(opened, "wb") as stream:
        stream.write(content)


@contextmanager
def _faults_named(target: Path) -> Iterator[None]:
    """Turn faults of the system into ``UnwritableError`` with the name of ``target``."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        if isinstance(error, ValueError):  # raised by pathlib for a name with a zero byte
            if "null byte" not in str(error) and "null character" not in str(error):
                raise
            raise UnwritableError("is not a file's name", source=repr(str(target))) from error
        # From the number: the text of Arrow's errors is long and differs from the system's.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise _unwritable(target, error.errno, reason) from error
    except Exception as error:
        # safetensors and tokenizers write in Rust, whose errors are no OSError.
        found = _RUST_ERROR.search(str(error))
        if found is None or int(found[1]) not in DISK_FAULTS:
            raise
        raise _unwritable(target, int(found[1]), os.strerror(int(found[1]))) from error


def _unwritable(target: Path, number: int | None, reason: str) -> UnwritableError:
    remedies = {
        errno.ENOSPC: "make room, then run the same command again",
        errno.EDQUOT: "make room, then run the same command again",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run the same command again",
        errno.ENXIO: "start what reads this pipe first",
        errno.EPIPE: "what reads this pipe has ended; start it again",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    return UnwritableError(
        f"cannot be written: {reason}", source=str(target),
        remedy=remedies.get(number or 0, "choose a writable directory"),
    )  # fmt: skip


def slug(text: str) -> str:
    """Return a name for files: lower case, digits, dots and dashes."""
    kept = "".join(
        character if character.isalnum() or character == "." else "-" for character in text.lower()
    )
    return "-".join(part for part in kept.split("-") if part)


def without_nan(value: Any) -> Any:
    """Convert values for JSON: NaN and infinity become null, NumPy numbers become Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
