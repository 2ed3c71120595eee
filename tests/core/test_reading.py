"""Strict readers: what means two things, nothing, or gigabytes is refused, by file, place and remedy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.core.reading import read_json, read_yaml
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.interop.records import read_records
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.reading import load_scenario

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""10**9 values in a few hundred bytes."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write_file(content: str | bytes) -> Path:
        path = tmp_path / "given.file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b": 2,\n "a": 3}', r"given\.file: a: is given twice \(in lines 1, 3\)"),
        ('{"x": [{"b": 1, "b": 1}]}', r"given\.file: b: is given twice"),
        ('{"a":\n 1e999}', r"given\.file: line 2: is not a finite number .*1e999"),
        ('{"a": -1e999}', "is not a finite number"),
        ('{"a": NaN}', r"line 1: is not a finite number.*NaN"),
        ('{"a": Infinity}', "is not a finite number"),
        ('{"a": ' + "9" * 5000 + "}", "line 1: is not a finite number of sensible size"),
        ('{"a":\n "b" "c"}', "line 2: is not JSON: .* column 6"),
        ("[" * 100 + "]" * 100, "is nested more than 64 deep"),
        ("[" * 200_000, "is nested more than 64 deep"),
        ('{"a": "\\ud800"}', "a: holds half a character"),
        ('{"a": "\\u0000"}', "a: holds half a character or a zero byte"),
        ("", "is not JSON"),
        (b'{"a": "\xff"}', r"line 1: is not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16, not UTF-8"),
        (b'{"a":\n "\x00"}', "line 2: holds a zero byte"),
    ],
)  # fmt: skip
def test_json_that_means_two_things_or_none_is_refused(
    write: Callable[[str | bytes], Path], text: str | bytes, said: str
) -> None:
    path = write(text)
    with pytest.raises(BadInputError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"given\.file: a, line 3: is given twice"),
        ("x:\n  - {b: 1, b: 1}\n", r"x\[0\]\.b, line 2: is given twice"),
        ("a: 1e999\n", "a, line 1: is not a finite number"),
        ("a: .inf\n", "a, line 1: is not a finite number"),
        ("a:\n  b: -.Inf\n", r"a\.b, line 2: is not a finite number"),
        ("a: .nan\n", "a, line 1: is not a finite number"),
        ("a: " + "9" * 5000, "a, line 1: is not a finite number"),
        ("a: !!python/object/apply:os.system [id]\n", "a, line 1: has a tag"),
        ("a: !!timestamp 2024-13-45\n", "a, line 1: has a tag"),
        ("a: !!binary aGk=\n", "a, line 1: has a tag"),
        ("a: !!int x\n", "a, line 1: is no int"),
        ("1: a\n", "1, line 1: is a key that is no text"),
        ("? [a]\n: b\n", "is a key that is no text"),
        ("b: &b {c: 1}\na: {<<: *b}\n", "a.<<, line 2: merges mappings"),
        ("a: &a [*a]\n", "is nested more than 64 deep|found undefined alias"),
        ("[" * 100 + "]" * 100, "is nested more than 64 deep"),
        ("[" * 50_000, "is nested more than 64 deep|is not YAML"),
        (BOMB, "holds more than 100,000 values"),
        ("a: b: c\n", "line 1, column 5: is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ('a: "\\0"\n', "a: holds half a character or a zero byte"),
        (b"a: \x07\n", "is not YAML"),
        (b"a: \xff\n", "line 1: is not UTF-8"),
        ("a: 1".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("#" * 300_000, "is larger than 0.25 MiB"),
    ],
)  # fmt: skip
def test_yaml_that_means_two_things_or_none_is_refused(
    write: Callable[[str | bytes], Path], text: str | bytes, said: str
) -> None:
    path = write(text)
    begun = time.process_time()
    with pytest.raises(BadInputError, match=said) as caught:
        read_yaml(path)
    assert time.process_time() - begun < 5
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


def test_yaml_reads_plain_words_as_json_would(write: Callable[[str | bytes], Path]) -> None:
    text = (
        b"\xef\xbb\xbf"
        b"{a: 12, b: -1.5, c: 1e6, d: .5, e: true, f: null, g: , h: 2024-13-45, i: yes, j: 010, k: '12', "
        b"l: 1:30, m: 1_000, n: [x, 2.], o: &o {p: 1}, q: *o, r: !!str 5}"
    )
    assert read_yaml(write(text)) == {
        "a": 12, "b": -1.5, "c": 1e6, "d": 0.5, "e": True, "f": None, "g": None,
        "h": "2024-13-45", "i": "yes",
        "j": "010", "k": "12", "l": "1:30", "m": "1_000", "n": ["x", 2.0], "o": {"p": 1}, "q": {"p": 1},
        "r": "5",
    }  # fmt: skip


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for reader in (read_json, read_yaml):
        with pytest.raises(BadInputError, match="missing: no such file"):
            reader(tmp_path / "missing")
        with pytest.raises(BadInputError, match="is a directory; name a file"):
            reader(tmp_path)
        with pytest.raises(BadInputError, match="cannot be read: File name too long"):
            reader(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("concurrency: 256", "concurrency: true", "replica.concurrency"),
        ("concurrency: 256", 'concurrency: "256"', "replica.concurrency"),
        ("concurrency: 256", "concurrency: 2024-13-45", "replica.concurrency"),
        ("gpu_hour: 2.0", "gpu_hour: true", "price.gpu_hour"),
        ("gpu_hour: 2.0", "gpu_hour: .inf", "price.gpu_hour"),
        ("gpu_hour: 2.0", "gpu_hour: 1e999", "price.gpu_hour"),
        ("gpu_hour: 2.0", "gpu_hour: 1, gpu_hour: 2", "price.gpu_hour"),
        ("gpu_hour: 2.0", "gpu_hour: " + "9" * 400, "price.gpu_hour"),
        ("share: 0.8", "share: false", "traffic.classes.chat.share"),
        ("seed: 0", "seed: !!python/name:os.system", "search.seed"),
        ("acceptance: []", "acceptance: &x [*x]", "acceptance"),
    ],
)
def test_a_scenario_takes_no_number_for_another(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = tmp_path / "scenario.yaml"
    assert EXAMPLE.count(old) == 1
    path.write_text(EXAMPLE.replace(old, new))
    with pytest.raises(BadInputError) as caught:
        load_scenario(path)
    assert f"{path}: {field}" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replica_gpus", "true"),
        ("kv_tokens", "true"),
        ("kv_tokens", '"5"'),
        ("jitter", "[1e999]"),
        ("jitter", "[NaN]"),
        ("jitter", "[true]"),
        ("prefill_tokens_per_s", "true"),
        ("schema", "true"),
        ("published", '{"source": "x", "throughput": {"dspark": [[1, NaN]]}}'),
        ("published", '{"source": "x", "throughput": {"dspark": [[1, -5]]}}'),
        ("published", '{"source": "x", "throughput_gain_at_sla": {"80": -2}}'),
    ],
)
def test_a_profile_takes_no_number_for_another(tmp_path: Path, field: str, value: str) -> None:
    content = json.loads(shipped_profiles()["deepseek-v4-flash"].read_text(encoding="utf-8"))
    text = json.dumps(content | {field: "PLACE"}).replace('"PLACE"', value)
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        load_profile(path)
    assert caught.value.source == str(path)
    assert caught.value.field


def test_every_shipped_profile_passes_the_strict_readers() -> None:
    for path in shipped_profiles().values():
        assert load_profile(path).target_cost().step_time_s(1, 1) > 0


def test_lines_of_json_are_read_as_strictly(write: Callable[[str | bytes], Path]) -> None:
    for line in ('{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": ' + "[" * 5000, '{"a": ' + "9" * 5000 + "}"):
        path = write('{"a": 1}\n' + line + "\n")
        with pytest.raises(BadInputError) as caught:
            list(read_records(path))
        assert f"{path}: line 2" in str(caught.value)


def test_messages_stay_on_one_line_of_bounded_length() -> None:
    error = BadInputError(
        "no\nsuch\x1b[31m", source="f", field="x" * 10**6, value=10**5000, remedy="y" * 10**6
    )
    assert str(error).isprintable()
    assert len(str(error)) < 7000
    assert "too large to show" in str(error)
