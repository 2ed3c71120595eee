"""Ways to spoil a file or a text, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

WEIRD = (
    "null", "true", "-1", "0", "1e999", "-1e999", "NaN", "Infinity", '""', "[]", "{}", '"²"', "1" * 40, "1.5",
    '"2024-13-45"', '"' + "x" * 300 + '"', "9" * 19, '"\\ud800"', '"\\u0000"', "[[[[[[1]]]]]]", "1e-300",
    '{"a": {"b": 1}}', '"!!python/object:os.system"', '"<script>"',
)  # fmt: skip
"""Values, as JSON and YAML spell them, that no field expects."""

WORDS = (
    "", "-1", "0", "1e999", "nan", "²", "9" * 30, "a" * 300, "[", "}", ",,", "::", "@", "..", "=", "%",
    "\x00", "\n", "1,2,...,1e12", "!!int", "&a", "*a", "<<", "é", "\ud83d", "/dev/null", "none", "true",
    "1_0", "0x10", "1e-300",
)  # fmt: skip


def spoiled_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat, insert or swap some bytes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw.choice(WORDS).encode("utf-8", "surrogatepass")
            case 3:
                data[at:at] = data[max(0, at - 40) : at] * draw.choice((1, 3, 200))
            case 4:
                del data[at : at + draw.randrange(1, 60)]
            case _:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 8)))
    return bytes(data)


def spoiled_json(content: bytes, draw: random.Random) -> bytes:
    """Replace, drop, rename or repeat one member somewhere in a JSON text; other text is spoiled as bytes."""
    try:
        value = json.loads(content)
    except ValueError:
        return spoiled_lines(content, draw)
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key in (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(node[key])  # type: ignore[index, call-overload]

    walk(value)
    if not places:
        return spoiled_bytes(content, draw)
    mark = "@spoiled@"
    node, key = draw.choice(places)
    match draw.randrange(4):
        case 0 if isinstance(node, dict):
            node[mark] = node.pop(key)
            return json.dumps(value).replace(mark, draw.choice(WORDS[1:12])).encode("utf-8", "surrogatepass")
        case 1:
            del node[key]  # type: ignore[attr-defined]
            return json.dumps(value).encode()
        case 2 if isinstance(node, dict):
            name = json.dumps(key)
            return json.dumps(value).replace(f"{name}:", f"{name}: 1, {name}:", 1).encode()
    node[key] = mark  # type: ignore[index]
    return json.dumps(value).replace(f'"{mark}"', draw.choice(WEIRD)).encode("utf-8", "surrogatepass")


def spoiled_lines(content: bytes, draw: random.Random) -> bytes:
    """Repeat, drop, swap or cut lines, or replace one field of one line."""
    lines = content.decode("utf-8", "replace").split("\n")
    at = draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines[at:at] = [lines[at]] * draw.choice((1, 50))
        case 2:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
        case 3:
            separator = next((mark for mark in (",", ":", "\t", " ") if mark in lines[at]), ",")
            fields = lines[at].split(separator)
            fields[draw.randrange(len(fields))] = draw.choice(WORDS)
            lines[at] = separator.join(fields)
        case 4:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            lines.insert(at, draw.choice(WORDS))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def spoiled_text(text: str, draw: random.Random) -> str:
    """Replace, insert or drop a part of a short text such as an option."""
    at, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    match draw.randrange(4):
        case 0:
            return text[:at] + draw.choice(WORDS) + text[at:]
        case 1:
            return text[:at] + text[end:]
        case 2:
            return text[:at] + draw.choice(WORDS) + text[end:]
        case _:
            return text + draw.choice((",", ":", "@", "+", "*")) + draw.choice(WORDS)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (spoiled_bytes, spoiled_json, spoiled_lines)
