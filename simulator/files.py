"""Atomic writes, and where the data shipped with the package lies."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulator.errors import BadInputError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; move it over ``target`` only if the block succeeds.

    A reader therefore sees the old file or the whole new one, and a failure leaves what was there.
    Raises ``BadInputError`` when the directory cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise BadInputError(
            f"cannot be written: {error.strerror}", source=str(target), remedy="choose a writable directory"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: object) -> None:
    """Write JSON atomically, readable by a person and by ``diff``; NaN is refused, as JSON has none."""
    write_text(target, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> object:
    """Parse a JSON file; errors name the file, the line and the remedy."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"is not JSON: {error}", source=str(path), remedy="mend or re-export it"
        ) from error


def data_directory(kind: str) -> Path:
    """Where shipped data of one kind (``profiles``, ``traces``) lies: in the wheel, or in a checkout."""
    package = Path(__file__).parent
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON allows")
