"""Workload files: every layout is recognised, every row is accounted for, every complaint names its line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.core.errors import BadInputError
from simulator.traffic.recorded.files import read_workload

MOONCAKE_SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "mooncake_conversation.jsonl"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "requests.txt"
        path.write_bytes(text.encode())
        return path

    return write_file


def mooncake_line(
    timestamp: object = 0, prompt: object = 600, output: object = 5, ids: object = (0, 1)
) -> str:
    row = {"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": ids}
    return json.dumps(row) + "\n"


def test_mooncake(write: Write) -> None:
    path = write(mooncake_line() + mooncake_line(1500, 1024, 7, [0, 2]))
    workload, report = read_workload(path)
    assert workload.arrival_s is not None
    assert workload.prefix is not None
    assert workload.arrival_s.tolist() == [0.0, 1.5]
    assert workload.prompt_tokens.tolist() == [600, 1024]
    assert workload.prefix.row(1).tolist() == [0, 2]
    assert workload.prefix.block_tokens == 512
    assert (report.layout, report.rows, report.requests, report.malformed) == ("Mooncake", 2, 2, ())


def test_mooncake_ids_of_another_block_size(write: Write) -> None:
    path = write(mooncake_line(prompt=130, ids=[4, 5, 6]))
    with pytest.raises(BadInputError, match=r"line 1: hash_ids does not cover .* 512 tokens \(got 3 ids\)"):
        read_workload(path)
    workload, _ = read_workload(path, block_tokens=64)
    assert workload.prefix is not None
    assert workload.prefix.row(0).tolist() == [4, 5, 6]


def test_azure_2023(write: Write) -> None:
    workload, report = read_workload(
        write(
            "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
            "2023-11-16 18:15:46.6805900,374,44\r\n"
            "2023-11-16 18:15:50.9951690,396,109\r\n"
        )
    )
    assert report.layout == "Azure"
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 4.314579], abs=1e-9)
    assert workload.output_tokens.tolist() == [44, 109]
    assert "count from the first request" in report.summary()


def test_azure_2024_with_time_zone_and_whole_seconds(write: Write) -> None:
    workload, _ = read_workload(
        write(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-10 23:59:59.750000+00:00,374,44\n"
            "2024-05-11 00:00:01+00:00,396,109"
        )
    )
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == [0.0, 1.25]


BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,GPT-4,1087,230,1317,API log\n"
    "118,ChatGPT,1106,0,1106,Conversation log\n"
    "185,ChatGPT,1360,647,2007,Conversation log\n"
)


def test_burstgpt_failures_are_reported_not_dropped(write: Write) -> None:
    path = write(BURSTGPT)
    with pytest.raises(
        BadInputError, match=r"1 of 4 rows are malformed: line 4: Response tokens must be at least 1"
    ):
        read_workload(path)
    workload, report = read_workload(path, skip_malformed=True)
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == [5.0, 45.0, 185.0]
    assert workload.classes == ("ChatGPT", "GPT-4")
    assert workload.class_index.tolist() == [0, 1, 0]
    assert report.layout == "BurstGPT"
    assert report.rows == report.requests + len(report.malformed)
    assert "line 4: Response tokens must be at least 1 (got '0')" in report.summary()
    assert "columns not used: Total tokens, Log Type" in report.summary()


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0.5,10,1\n2,20,2\n", [0.5, 2.0]),
        ("timestamp_ms,input_tokens,completion_tokens\n500,10,1\n2000,20,2\n", [0.5, 2.0]),
        ('{"arrival time us": 500000, "Prompt-Tokens": 10, "output_len": 1}\n'
         '{"arrival time us": 2000000, "Prompt-Tokens": 20, "output_len": 2}\n', [0.5, 2.0]),
        ("\ufeffarrived_at_s,num_prefill_tokens,num_decode_tokens\n0.5,10,1\n\n2,20,2", [0.5, 2.0]),
        ('"time_s","input_tokens","output_tokens"\n"0.5","10","1.0"\n2,20,2\n', [0.5, 2.0]),
        ("time_s,input_tokens,output_tokens\n1700000000.5,10,1\n1700000002,20,2\n", [0.0, 1.5]),
        ("prompt_tokens,output_tokens\n10,1\n20,2\n", None),
    ],
)  # fmt: skip
def test_generic_columns_and_their_synonyms(write: Write, text: str, arrivals: list[float] | None) -> None:
    workload, report = read_workload(write(text))
    assert report.layout == "generic"
    assert workload.prompt_tokens.tolist() == [10, 20]
    assert workload.output_tokens.tolist() == [1, 2]
    assert (None if workload.arrival_s is None else workload.arrival_s.tolist()) == arrivals


@pytest.mark.parametrize(
    ("times", "tick_s"),
    [
        ("0 0 0 3 6 6 15", 3.0),  # every gap a multiple of 3 s
        ("5 5 45 118", 1.0),  # gaps of 0, 40 and 73 s
        ("0 0.5 0.5 0.75", 0.25),
        ("0 3 6 9", 0.0),  # nothing coincides: the clock tells these apart, whatever its step
        ("7 7 7", 0.0),
    ],
)
def test_the_clock_that_ties_betray(write: Write, times: str, tick_s: float) -> None:
    rows = "".join(f"{time},10,1\n" for time in times.split())
    workload, _ = read_workload(write(f"arrival_s,prompt_tokens,output_tokens\n{rows}"))
    assert workload.clock_tick_s == pytest.approx(tick_s, abs=1e-12)
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == [float(time) for time in times.split()]


def test_a_clock_that_jitters_has_a_tick_all_the_same(write: Write) -> None:
    rng = np.random.default_rng(0)
    ticks = np.repeat(3000 * np.arange(200) + rng.integers(-1, 2, 200), 5)
    rows = "".join(mooncake_line(int(tick) + 1) for tick in ticks)
    workload, _ = read_workload(write(rows))
    assert workload.clock_tick_s == pytest.approx(3.0, abs=0.002)


def test_arrivals_at_random_on_a_clock_of_milliseconds(write: Write) -> None:
    ticks = np.floor(np.cumsum(np.random.default_rng(1).exponential(30, 2000)))
    assert (np.diff(ticks) == 0).any()
    workload, _ = read_workload(write("".join(mooncake_line(int(tick)) for tick in ticks)))
    assert workload.clock_tick_s == pytest.approx(0.001, abs=1e-9)


def test_generic_classes_in_order_of_appearance(write: Write) -> None:
    workload, _ = read_workload(write("class,prompt_tokens,output_tokens\nz,1,1\na,1,1\nz,1,1\n"))
    assert workload.classes == ("z", "a")
    assert workload.class_index.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; add one request per line"),
        ("\n \n", "is empty"),
        ('[{"prompt_tokens": 1}]', "is a JSON array"),
        ("prompt_tokens,output_tokens\n", "has no usable row"),
        ("a,b\n1,2\n", r"has no column of prompt lengths \(got 'a, b'\); name one prompt_tokens"),
        ("prompt_tokens,tokens\n1,2\n", "has no column of output lengths"),
        ("prompt_tokens,input_tokens,output_tokens\n1,2,3\n", "prompt_tokens, input_tokens; keep one"),
        ("prompt_tokens,prompt_tokens,output_tokens\n1,2,3\n", "names a column twice"),
        ("timestamp,prompt_tokens,output_tokens\n1,2,3\n", "timestamp: has no unit; rename it timestamp_s"),
    ],
)
def test_files_that_cannot_be_read(write: Write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(BadInputError, match=message) as caught:
        read_workload(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 200_000 + "]" * 200_000, "1" * 5000, "1}, {"])
def test_lines_none_of_which_is_json_are_named(write: Write, value: str) -> None:
    text = f'{{"timestamp": 0, "input_length": {value}, "output_length": 2}}\n' * 3
    with pytest.raises(BadInputError, match="line 1: is not JSON"):
        read_workload(write(text))


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_workload(tmp_path / "missing.csv")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_workload(tmp_path)
    binary = tmp_path / "trace.bin"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadInputError, match="not UTF-8"):
        read_workload(binary)


GENERIC = "arrival_s,prompt_tokens,output_tokens\n0,10,1\n5,10,1\n{}\n9,10,1\n"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("3,10,1", r"arrival_s goes back in time; sort the file by arrival \(got '3'\)"),
        ("-1,10,1", r"arrival_s is negative \(got '-1'\)"),
        ("nan,10,1", r"arrival_s is not a finite number \(got 'nan'\)"),
        ("inf,10,1", "arrival_s is not a finite number"),
        (",10,1", "arrival_s is missing"),
        ("6,0,1", r"prompt_tokens must be at least 1 \(got '0'\)"),
        ("6,-4,1", "prompt_tokens must be at least 1"),
        ("6,10,0", "output_tokens must be at least 1"),
        ("6,10,2.5", "output_tokens is not a whole number of tokens"),
        ("6,10,many", "output_tokens is not a finite number"),
        ("6,10,1e300", "output_tokens is too large"),
        ("6,10", "has 2 fields where the header names 3"),
        ("6,10,1,7", "has 4 fields"),
        ('6,10,"1', "has an unclosed quote"),
    ],
)
def test_malformed_csv_rows_name_their_line(write: Write, row: str, reason: str) -> None:
    path = write(GENERIC.format(row))
    with pytest.raises(BadInputError, match=f"line 4: {reason}"):
        read_workload(path)
    workload, report = read_workload(path, skip_malformed=True)
    assert workload.arrival_s is not None
    assert workload.arrival_s[[0, 1, -1]].tolist() == [0.0, 5.0, 9.0]
    assert report.rows == report.requests + len(report.malformed) == 4


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (mooncake_line(timestamp="5"), r"timestamp is not a finite number \(got '5'\)"),
        (mooncake_line(timestamp=None), "timestamp is missing"),
        (mooncake_line(timestamp=float("nan")), "timestamp is not a finite number"),
        (mooncake_line(output=True), r"output_length is not a finite number \(got True\)"),
        (mooncake_line(output=0), r"output_length must be at least 1 \(got 0\)"),
        (mooncake_line(prompt=10**400), "input_length is not a finite number"),
        (mooncake_line(ids=[1.5, 2]), "hash_ids is not a list of whole numbers"),
        (mooncake_line(ids=[1]) .replace("600", "1600"), r"hash_ids does not cover the prompt"),
        (mooncake_line(ids=None), "hash_ids is not a list"),
        ('{"timestamp": 3, "input_len', "is not JSON"),
        ("7", "is not a JSON object"),
    ],
)  # fmt: skip
def test_malformed_json_rows_name_their_line(write: Write, row: str, reason: str) -> None:
    path = write(mooncake_line() + "\n" + row.rstrip("\n") + "\n" + mooncake_line(9000))
    with pytest.raises(BadInputError, match=f"line 3: {reason}"):
        read_workload(path)
    workload, report = read_workload(path, skip_malformed=True)
    assert len(workload) == report.requests == 2
    assert [malformed.line for malformed in report.malformed] == [3]


def test_a_bad_row_does_not_condemn_the_rows_after_it(write: Write) -> None:
    path = write("arrival_s,prompt_tokens,output_tokens\n1,10,1\n1e9,0,1\n2,10,1\n0.5,10,1\n3,10,1\n")
    workload, report = read_workload(path, skip_malformed=True)
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == [1.0, 2.0, 3.0]
    assert [(row.line, row.reason.split()[0]) for row in report.malformed] == [
        (3, "prompt_tokens"),
        (5, "arrival_s"),
    ]


def test_many_malformed_rows_are_counted_and_the_first_ones_shown(write: Write) -> None:
    path = write("prompt_tokens,output_tokens\n" + "5,0\n" * 1200)
    with pytest.raises(BadInputError, match=r"1,200 of 1,200 rows .* line 6: .*; and 1,195 more"):
        read_workload(path)
    with pytest.raises(BadInputError, match="no usable row"):
        read_workload(path, skip_malformed=True)


FIELD = st.sampled_from(
    ["0", "1", "17", "-1", "nan", "", " ", "x", "1e9", '"', "2.5", "0x1", "2024-01-01", "true"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(FIELD, max_size=4), max_size=8), st.booleans())
def test_any_table_is_read_or_refused_and_accounted_for(
    write: Write, rows: list[list[str]], azure: bool
) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens" if azure else "arrival_s,prompt_tokens,output_tokens"
    path = write("\n".join([header, *(",".join(row) for row in rows)]))
    try:
        _, report = read_workload(path, skip_malformed=True)
    except BadInputError:
        return
    assert report.rows == report.requests + len(report.malformed)
    lines = sum(bool(",".join(row).strip()) for row in rows)
    # A quote that one line opens and another closes makes one row of them.
    assert report.rows <= lines if any('"' in row for row in rows) else report.rows == lines


@pytest.mark.skipif(not MOONCAKE_SAMPLE.exists(), reason="the Mooncake sample is not part of the project")
def test_mooncake_sample_is_read_whole_and_fast() -> None:
    start_s = time.process_time()  # of this process: other work on the machine does not count
    workload, report = read_workload(MOONCAKE_SAMPLE)
    assert time.process_time() - start_s < 1.0
    assert report.malformed == ()
    assert len(workload) == 12_031
    assert workload.prompt_tokens.mean() == pytest.approx(12_035, abs=1)
    assert workload.output_tokens.mean() == pytest.approx(343, abs=1)
    assert workload.prefix is not None
    np.testing.assert_array_equal(np.diff(workload.prefix.offsets), -(-workload.prompt_tokens // 512))
