"""What may break a run: flipped bits, kills, signals, full disks. docs/reliability.md states the promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.acceptance import AcceptanceTrace, load_trace
from simulator.errors import BadInputError
from simulator.files import data_directory
from simulator.sweep import content_hash

SHIPPED = sorted((data_directory("traces") / "acceptance").glob("*.parquet"))


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def trace_content(trace: AcceptanceTrace) -> str:
    return content_hash(trace, trace.name, trace.provenance)


def flip_traces(directory: Path, flips: int) -> dict[str, int]:
    """Flip one bit at a time in shipped traces, in all of the smallest and at random in the others."""
    draw, counts = np.random.default_rng(11), {"refused": 0, "same": 0, "other": 0, "unnamed": 0}
    paths = sorted(SHIPPED, key=lambda path: path.stat().st_size)[:8]
    for number in range(flips):
        source = paths[number % len(paths)]
        content, right = source.read_bytes(), trace_content(load_trace(source))
        path = directory / "flipped.parquet"
        path.write_bytes(flipped(content, int(draw.integers(8 * len(content)))))
        try:
            found = trace_content(load_trace(path))
        except BadInputError as error:
            counts["refused" if error.source == str(path) else "unnamed"] += 1
        else:
            counts["same" if found == right else "other"] += 1
    return counts


@pytest.mark.parametrize("flips", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_flipped_bit_makes_a_trace_other_data(flips: int, tmp_path: Path) -> None:
    counts = flip_traces(tmp_path, flips)
    print(counts)
    assert counts["other"] == counts["unnamed"] == 0
    assert counts["refused"] > 0.8 * flips
