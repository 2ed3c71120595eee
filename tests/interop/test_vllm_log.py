"""vLLM log lines: rates out of a real line's shape, pooled over intervals by how many drafts they saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.interop.vllm import load_log, pooled_rates


def metrics_line(length: str, accepted: int, drafted: int, rates: str) -> str:
    return (
        "(APIServer pid=1) INFO 08-04 20:51:08 [metrics.py:120] SpecDecoding metrics: "
        f"Mean acceptance length: {length}, Accepted throughput: 9.20 tokens/s, "
        f"Drafted throughput: 25.90 tokens/s, Accepted: {accepted} tokens, Drafted: {drafted} tokens, "
        f"Per-position acceptance rate: {rates}, Avg Draft acceptance rate: 35.5%\n"
    )


BUSY = metrics_line("3.49", 92, 259, "0.757, 0.622, 0.432, 0.324, 0.189, 0.108, 0.054")
QUIET = metrics_line("2.00", 4, 28, "0.500, 0.500, 0.000, 0.000, 0.000, 0.000, 0.000")
SILENT = metrics_line("1.00", 0, 70, "0.000, 0.000, 0.000, 0.000, 0.000, 0.000, 0.000")
OTHER = "(APIServer pid=1) INFO 08-04 20:51:18 [loggers.py:310] Engine 000: Running: 1 reqs\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "server.log"
    path.write_bytes(text.encode() + b"\xff\xfe binary noise\n")
    return path


def test_one_interval(tmp_path: Path) -> None:
    (interval,) = load_log(write(tmp_path, OTHER + BUSY + OTHER))
    assert interval.line == 2
    assert interval.accepted_length == 3.49
    assert interval.marginal == (0.757, 0.622, 0.432, 0.324, 0.189, 0.108, 0.054)
    assert interval.drafts == pytest.approx(37, abs=0.1)
    rates = pooled_rates([interval])
    assert rates.accepted_length == pytest.approx(3.49, abs=0.005)
    assert rates.conditional[1] == pytest.approx(0.622 / 0.757)
    assert rates.provenance.kind == "measured"


def test_intervals_count_by_their_drafts_even_where_nothing_was_accepted(tmp_path: Path) -> None:
    intervals = load_log(write(tmp_path, BUSY + QUIET + SILENT))
    assert [interval.drafts for interval in intervals] == pytest.approx([37, 4, 10], abs=0.1)
    expected = 1 + (92 + 4 + 0) / (37 + 4 + 10)
    assert pooled_rates(intervals).accepted_length == pytest.approx(expected, abs=0.005)


def test_the_short_form_without_counts(tmp_path: Path) -> None:
    short = "SpecDecoding metrics: Mean acceptance length: 1.76, Per-position acceptance rate: 0.478, 0.283\n"
    shorter = (
        "SpecDecoding metrics: Mean acceptance length: 1.00, Per-position acceptance rate: 0.000, 0.000\n"
    )
    intervals = load_log(write(tmp_path, short + shorter))
    assert [interval.drafts for interval in intervals] == [None, None]
    assert pooled_rates(intervals).accepted_length == pytest.approx(1 + (0.478 + 0.283) / 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OTHER, "has no line with 'SpecDecoding metrics:'"),
        (BUSY[:150], "line 1: SpecDecoding metrics: has no acceptance length and per-position rates"),
        (
            OTHER + BUSY.replace("3.49", "3.90"),
            "line 2: mean acceptance length: differs from one plus the sum",
        ),
        (BUSY.replace("0.757, 0.622", "0.622, 0.757"), "never rise"),
        (BUSY.replace("0.757", "1.757"), r"within 0\.\.1"),
    ],
)
def test_logs_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_log(write(tmp_path, text))


def test_intervals_of_different_block_sizes_are_not_pooled(tmp_path: Path) -> None:
    short = "SpecDecoding metrics: Mean acceptance length: 1.76, Per-position acceptance rate: 0.478, 0.283\n"
    with pytest.raises(BadInputError, match="all of one block size"):
        pooled_rates(load_log(write(tmp_path, BUSY + short)))
    with pytest.raises(BadInputError, match="at least one interval"):
        pooled_rates([])
    with pytest.raises(BadInputError, match="no such file"):
        load_log(tmp_path / "missing.log")
