"""Strict readers of files that people write: YAML and JSON with one meaning, or an error with the place.

The readers refuse keys given twice, numbers that are not finite, text that is not UTF-8, tags, merges and
odd keys of YAML, and files that are larger or deeper than any file of this project: a few kB of nesting or
aliases can stand for gigabytes. Every error is a ``BadInputError`` with the file, the field or the line,
and a remedy.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.core.errors import BadInputError

MAX_JSON_BYTES = 2**28
"""Largest JSON file, 256 MiB. A choice: the largest tokenizer files have about 30 MB."""

MAX_YAML_BYTES = 2**18
"""Largest YAML file, 256 KiB. A choice: a scenario has a few kB."""

MAX_DEPTH = 64
"""Deepest nesting of lists and mappings. A choice: the deepest file of this project has 7 levels."""

MAX_VALUES = 100_000
"""Most values of a YAML file; an alias counts as all values that it stands for. A choice."""

MAX_DIGITS = 40
"""Most digits of a whole number. A choice: no quantity here has more than 20."""

_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}

_Model = TypeVar("_Model", bound=BaseModel)


class NotJsonError(BadInputError):
    """Text that is not JSON at all; JSON with a mistake is a plain ``BadInputError``."""


def read_bounded(path: Path, most_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a file of at most ``most_bytes``; every error names the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise BadInputError("no such file", source=str(path), remedy="check the path") from error
    except IsADirectoryError as error:
        raise BadInputError("is a directory", source=str(path), remedy="name a file") from error
    except OSError as error:
        raise BadInputError(
            f"cannot be read: {error.strerror}", source=str(path), remedy="check its name and permissions"
        ) from error
    except ValueError as error:  # a name with a zero byte
        raise BadInputError("is not a file's name", source=repr(str(path)), remedy="check it") from error
    if len(content) > most_bytes:
        raise BadInputError(
            f"is larger than {most_bytes / 2**20:g} MiB", source=str(path), remedy="is it the right file?"
        )
    return content


def decoded(content: bytes, source: str) -> str:
    """Return UTF-8 text without a byte order mark.

    Raises ``BadInputError`` with the line for other encodings and for zero bytes.
    """
    mark = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(
            f"is {mark}, not UTF-8" if mark else "is not UTF-8 text", source=source,
            field=f"line {line}", value=content[error.start : error.start + 8], remedy="save it as UTF-8",
        ) from error  # fmt: skip
    at = text.find("\0")
    if at >= 0:
        raise BadInputError(
            "holds a zero byte, so it is no text", source=source, field=f"line {_line(text, at)}",
            remedy="save it as UTF-8, or fetch it again",
        )  # fmt: skip
    return text


def is_there(path: Path) -> bool:
    """Whether a file or directory has this name. An impossible name, such as one too long, has none."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether a regular file has this name. An impossible name has none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


# --- JSON ---------------------------------------------------------------------------------------------------


def read_json(path: Path) -> object:
    """Parse a JSON file strictly; see ``parse_json``."""
    return parse_json(decoded(read_bounded(Path(path)), str(path)), str(path))


def parse_json(text: str, source: str, *, is_line: bool = False) -> Any:
    """Parse JSON without repeated keys, without infinite numbers and without deep nesting.

    is_line: the text is one line of a file, and ``source`` already names that line.
    Raises ``NotJsonError`` for text that is no JSON and ``BadInputError`` for JSON with such a mistake.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _without_repeats(pairs, text, source),
            parse_constant=lambda name: _refuse_number(name, text, source),
            parse_float=lambda digits: _finite(digits, text, source),
            parse_int=lambda digits: _whole(digits, text, source),
        )
    except json.JSONDecodeError as error:
        raise NotJsonError(
            f"is not JSON: {error.msg}, column {error.colno}", source=source,
            field=None if is_line else f"line {error.lineno}", remedy="mend or re-export it",
        ) from error  # fmt: skip
    except RecursionError as error:
        raise _too_deep(source, "the whole file") from error
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        _check_values(value, source)
    return value


def _without_repeats(pairs: list[tuple[str, Any]], text: str, source: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        at = [_line(text, found.start()) for found in _key(repeated).finditer(text)]
        lines = f" (in lines {', '.join(map(str, at[:5]))})" if at else ""
        raise BadInputError(
            f"is given twice{lines}, and only one could count", source=source, field=repeated,
            remedy="keep one",
        )  # fmt: skip
    return value


def _key(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:")


def _refuse_number(digits: str, text: str, source: str) -> float:
    line = _line(text, max(text.find(digits), 0))
    raise BadInputError(
        "is not a finite number of sensible size, as JSON has them", source=source, field=f"line {line}",
        value=digits, remedy="give a finite number, or null where there is none",
    )  # fmt: skip


def _finite(digits: str, text: str, source: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse_number(digits, text, source)


def _whole(digits: str, text: str, source: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else _refuse_number(digits, text, source)


def _check_values(value: object, source: str) -> None:
    """Refuse deep nesting and halves of surrogate pairs, which no UTF-8 file can hold."""
    waiting: list[tuple[object, str, int]] = [(value, "", 0)]
    while waiting:
        each, field, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(source, field)
        if isinstance(each, dict):
            for key, item in each.items():
                _check_text(key, field, source)
                if isinstance(item, dict | list | str):
                    waiting.append((item, f"{field}.{key}" if field else key, depth + 1))
        elif isinstance(each, list):
            waiting += [
                (item, f"{field}[{index}]", depth + 1)
                for index, item in enumerate(each)
                if isinstance(item, dict | list | str)
            ]
        else:
            _check_text(str(each), field, source)


def _check_text(text: str, field: str, source: str) -> None:
    if text.isascii() and "\0" not in text:
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "\0" not in text:
            return
    raise BadInputError(
        "holds half a character or a zero byte", source=source, field=field or "text", value=text,
        remedy="remove the escape",
    )  # fmt: skip


def _too_deep(source: str, field: str) -> BadInputError:
    return BadInputError(
        f"is nested more than {MAX_DEPTH} deep", source=source, field=field[:200], remedy="flatten it"
    )


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


# --- YAML ---------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with the plain scalars of JSON: no dates, no yes and no, no octal, no 1:30 that means 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # declared as PyYAML declares it


_PREFIX = "tag:yaml.org,2002:"

_PLAIN: Mapping[str, re.Pattern[str]] = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)"),
    "float": re.compile(
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|"
        r"\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
    ),
}

for _name, _form in _PLAIN.items():
    _Loader.add_implicit_resolver(f"{_PREFIX}{_name}", re.compile(f"^(?:{_form.pattern})$"), None)


def read_yaml(path: Path) -> object:
    """Parse a YAML file strictly: one document of mappings, lists, text, finite numbers, true and null."""
    source = str(path)
    text = decoded(read_bounded(Path(path), MAX_YAML_BYTES), source)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInputError(
            f"is not YAML: {error.problem or error.context}", source=source,
            field=f"line {mark.line + 1}, column {mark.column + 1}" if mark else None, remedy="mend it",
        ) from error  # fmt: skip
    except yaml.YAMLError as error:
        raise BadInputError(f"is not YAML: {error}", source=source, remedy="mend it") from error
    except RecursionError as error:
        raise _too_deep(source, "the whole file") from error
    return None if node is None else _Values(source).of(node, "", 0)


class _Values:
    """Values of a tree of YAML nodes; the number of values is bounded while they are made."""

    def __init__(self, source: str) -> None:
        self._source, self._made = source, 0

    def of(self, node: yaml.Node, field: str, depth: int) -> object:
        """Return the value of a node; ``field`` is the place of the node."""
        self._made += 1
        if depth > MAX_DEPTH:  # an alias may also stand inside the value that it names
            raise self._error(node, field, f"is nested more than {MAX_DEPTH} deep", "flatten it")
        if self._made > MAX_VALUES:
            raise self._error(node, field, f"holds more than {MAX_VALUES:,} values", "use fewer aliases")
        kind = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, kind, field)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.of(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, field, depth)
        raise self._error(node, field, f"has a tag, {node.tag}", "leave the tag out")

    def _mapping(self, node: yaml.MappingNode, field: str, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self.of(key_node, f"{field} key".strip(), depth + 1)
            place = f"{field}.{key}" if field else str(key)
            if not isinstance(key, str):
                raise self._error(key_node, place, "is a key that is no text", "put it in quotes")
            if key == "<<":
                raise self._error(key_node, place, "merges mappings, which is not read", "write the keys out")
            if key in values:
                raise self._error(key_node, place, "is given twice, and only one could count", "keep one")
            values[key] = self.of(value_node, place, depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode, kind: str, field: str) -> object:
        text = str(node.value)
        if kind == "str":
            _check_text(text, field, self._source)
            return text
        if kind not in _PLAIN:
            raise self._error(node, field, f"has a tag, {node.tag}", "leave the tag out")
        if not _PLAIN[kind].fullmatch(text):
            raise self._error(node, field, f"is no {kind}", "leave the tag out")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int" and len(text) <= MAX_DIGITS:
            return int(text)
        value = math.inf if kind == "int" or text[-1].isalpha() else float(text)
        if not math.isfinite(value):
            raise self._error(
                node, field, "is not a finite number of sensible size", "give a finite number", text
            )
        return value

    def _error(
        self, node: yaml.Node, field: str, problem: str, remedy: str, value: object = None
    ) -> BadInputError:
        line = f"line {node.start_mark.line + 1}" if node.start_mark else ""
        place = f"{field[:200]}, {line}" if field else line
        return BadInputError(problem, source=self._source, field=place, value=value, remedy=remedy)


# --- schemas ------------------------------------------------------------------------------------------------


class Strict(BaseModel):
    """Part of a file: frozen, without unknown keys, all numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def checked(model: type[_Model], value: object, source: str) -> _Model:
    """Turn a value that a reader returned into a model.

    true is no number and text is no number. Raises ``BadInputError`` that names the field.
    """
    try:
        return strictly(model, value)
    except ValidationError as error:
        raise complain(error, source) from error


def strictly(model: type[_Model], value: object) -> _Model:
    """Turn a value into a model as ``checked`` does, but raise pydantic's own error."""
    # JSON mode is strict, but takes a list for a tuple.
    return model.model_validate_json(json.dumps(value), strict=True)


def complain(error: ValidationError, source: str) -> BadInputError:
    """Turn pydantic's report into one error that names the file, the field, the value and the remedy."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return BadInputError(
            "unknown key", source=source, field=field, remedy="remove it or correct its spelling"
        )
    if first["type"] == "missing":
        return BadInputError("is missing", source=source, field=field, remedy="add it")
    return BadInputError(
        first["msg"], source=source, field=field, value=first.get("input"), remedy="correct it"
    )
