"""Raw rows of a workload file: decompressed, split into columns, every line accounted for.

CSV (RFC 4180, separated by comma, semicolon, tab or bar) and JSON lines, plain or packed by gzip or zstd.
``layouts`` and ``clocks`` find the meaning of the columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TEXT_BYTES = 2**31
"""Largest unpacked file, 2 GiB. A choice: a packed file of a few kB can claim any size."""

csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is less than a long prompt has

_SEPARATORS = ",;\t|"

_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class MalformedRow:
    """One unusable row: its line in the file, counted from 1, and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Table:
    """Raw rows: one list of values per column, and the line of each row."""

    path: str
    is_text: bool  # CSV, where every value is text; in JSON a number in quotes is a mistake
    lines: list[int]
    columns: dict[str, list[object]]
    broken: list[MalformedRow]  # lines that are no rows


def read_table(path: Path) -> Table:
    """Read the rows of a file. Raises ``BadInputError`` with the file's name where it has none."""
    text = _decode(path, _unpack(path))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((line.lstrip()[:1] for line in lines if line.strip()), "")
    if not first:
        raise BadInputError("is empty", source=str(path), remedy="add one request per line")
    if first == "[":
        raise BadInputError(
            "is a JSON array",
            source=str(path),
            remedy="write one JSON object per line, as `jq -c '.[]' FILE` does",
        )
    return _read_json_lines(path, lines) if first == "{" else _read_csv(path, lines)


# --- bytes --------------------------------------------------------------------------------------------------


def _unpack(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = next((kind for magic, kind in _PACKED.items() if file.peek(4).startswith(magic)), None)
            if packed is None:
                return _read_up_to_limit(path, file)
            try:
                import pyarrow as pa

                return _read_up_to_limit(path, pa.CompressedInputStream(file, packed))
            except (OSError, EOFError, zlib.error) as error:
                raise BadInputError(
                    f"is not whole {packed} data: {error}", source=str(path), remedy="fetch or pack it again"
                ) from error
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", source=str(path)) from error


def _read_up_to_limit(path: Path, stream: IO[bytes] | pa.NativeFile) -> bytes:
    content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise BadInputError(
            f"holds more than {MAX_TEXT_BYTES / 2**30:g} GiB of text",
            source=str(path),
            remedy="cut it to the hours that are planned for",
        )
    return bytes(content)


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(
            "is not UTF-8 text" + (", but UTF-16" if utf16 else ""),
            source=str(path),
            field=f"line {line:,}",
            value=content[error.start : error.start + 8],
            remedy="save it as CSV or JSON lines in UTF-8, plain or packed by gzip or zstd",
        ) from error


# --- JSON lines ---------------------------------------------------------------------------------------------


def _read_json_lines(path: Path, text_lines: Sequence[str]) -> Table:
    lines: list[int] = []
    objects: list[dict[str, object]] = []
    broken: list[MalformedRow] = []
    for number, text in enumerate(text_lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except ValueError as error:
            broken.append(MalformedRow(number, f"is not JSON ({error})"))
            continue
        except RecursionError:
            broken.append(MalformedRow(number, "is not JSON (nested too deeply)"))
            continue
        if isinstance(value, dict):
            lines.append(number)
            objects.append(value)
        else:
            broken.append(MalformedRow(number, "is not a JSON object"))
    if not objects and broken:
        raise BadInputError(
            broken[0].reason,
            source=str(path),
            field=f"line {broken[0].line:,}",
            remedy="mend or re-export it",
        )
    names = dict.fromkeys(name for value in objects for name in value)
    columns = {name: [value.get(name) for value in objects] for name in names}
    return Table(str(path), False, lines, columns, broken)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


# --- CSV ----------------------------------------------------------------------------------------------------


def _read_csv(path: Path, text_lines: Sequence[str]) -> Table:
    records = _records(text_lines)
    number, header = records[0]
    if header is None:
        raise BadInputError("has an unclosed quote", source=str(path), field=f"header, line {number}")
    header = [name.strip() for name in header]
    if len(set(header)) != len(header):
        raise BadInputError("names a column twice", source=str(path), field="header", value=header)
    lines: list[int] = []
    rows: list[list[str]] = []
    broken: list[MalformedRow] = []
    for number, row in records[1:]:
        if row is None:
            broken.append(MalformedRow(number, "has an unclosed quote"))
        elif len(row) != len(header):
            broken.append(MalformedRow(number, f"has {len(row)} fields where the header names {len(header)}"))
        else:
            lines.append(number)
            rows.append(row)
    columns: dict[str, list[object]] = {name: [] for name in header}
    if rows:
        columns = {name: list(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}
    return Table(str(path), True, lines, columns, broken)


def _records(text_lines: Sequence[str]) -> list[tuple[int, list[str] | None]]:
    """Yield (line, fields) of every record that is not blank; ``None`` for fields with broken quotes.

    A quoted field may hold line breaks: a line with an odd number of quotes continues to the next such line.
    Where the result is not as wide as the header, the quote is a mistake and belongs to its line only.
    """
    quoted = [number for number, line in enumerate(text_lines) if line.count('"') % 2]
    closing = dict(itertools.pairwise(quoted))
    records: list[tuple[int, list[str] | None]] = []
    separator, width, index = "", 0, 0
    while index < len(text_lines):
        line, last = text_lines[index], index
        if line.strip():
            separator = separator or _separator(line)
            fields: list[str] | None = None
            if line.count('"') % 2 == 0:
                fields = _split(line, separator)
            elif index in closing:
                last = closing[index]
                fields = _split("\n".join(text_lines[index : last + 1]), separator)
                if fields is None or (width and len(fields) != width):
                    fields, last = None, index
            width = width or len(fields or ())
            records.append((index + 1, fields))
        index = last + 1
    return records


def _split(record: str, separator: str) -> list[str] | None:
    if '"' not in record:
        return record.split(separator)
    try:
        rows = list(csv.reader(io.StringIO(record, newline=""), delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _separator(header: str) -> str:
    """Find the separator that names most columns; a comma in doubt."""
    return max(_SEPARATORS, key=lambda each: len(_split(header, each) or ()))
