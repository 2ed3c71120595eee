"""Published layouts of recordings: each with its clock, and a question where a clock cannot be told.

Files are small and made up here. The rates expected are counted by hand: n - 1 gaps over the time between the
first row and the last.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from simulator.core.errors import BadInputError
from simulator.traffic.parse import parse_traffic
from simulator.traffic.recorded import tables as traffic_tables
from simulator.traffic.recorded.files import read_lengths, read_workload
from simulator.traffic.sources import ReplayTraffic

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: str | bytes | list[dict[str, object]], name: str = "recording.txt") -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def rows(times: list[float], prompt: int = 700, **more: object) -> list[dict[str, object]]:
    """One object per time under Mooncake's names."""
    return [{"timestamp": time, "input_length": prompt, "output_length": 50, **more} for time in times]


def blocks(prompt: int, size: int) -> list[int]:
    return list(range(-(-prompt // size)))


# --- seconds or milliseconds under one set of names ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rate_per_s", "layout"),
    [
        # Mooncake: whole milliseconds, blocks of 512. Three gaps in 0.9 s.
        (rows([0, 300, 600, 900], hash_ids=blocks(700, 512)), 3 / 0.9, "Mooncake"),
        # The same load in ticks of 3 s, without ids: as seconds it would be 12 requests an hour.
        (rows([0, 0, 3000, 3000, 6000]), 4 / 6, "Mooncake"),
        # GuideLLM: seconds; as milliseconds it would be 2,000 requests/s.
        (rows([1234500.0, 1234500.5, 1234501.0]), 2.0, "GuideLLM"),
        (rows([0, 1, 2, 3]), 1.0, "GuideLLM"),
        # Bailian: seconds, blocks of 16, and a gap of 20 s that either unit could have.
        (
            rows([61.1, 81.1, 101.1], chat_id=1, parent_chat_id=-1, hash_ids=blocks(700, 16)),
            0.05, "Bailian",
        ),
        (rows([61.1, 81.1, 101.1], chat_id=1, parent_chat_id=-1), 0.05, "Bailian"),
        # 20 milliseconds between requests: either unit is possible, blocks of 512 tell.
        (rows([0, 20, 40], hash_ids=blocks(700, 512)), 50.0, "Mooncake"),
        (rows([0, 20, 40], hash_ids=blocks(700, 16)), 0.05, "GuideLLM"),
        # Unix times tell their unit by their size, whatever the names.
        (rows([1.7e9, 1.7e9 + 0.5, 1.7e9 + 1]), 2.0, "Mooncake"),
        (rows([1.7e12, 1.7e12 + 500, 1.7e12 + 1000]), 2.0, "Mooncake"),
    ],
)  # fmt: skip
def test_seconds_and_milliseconds_are_told_apart(
    write: Write, content: list[dict[str, object]], rate_per_s: float, layout: str
) -> None:
    workload, report = read_workload(write(content))
    assert workload.rate_per_s == pytest.approx(rate_per_s, rel=1e-9)
    assert report.layout == layout
    assert len(report.assumed) == 1  # what the file does not say itself is said
    assert report.assumed[0] in report.summary()


@pytest.mark.parametrize(
    "content",
    [
        rows([0, 10, 20, 30]),  # 0.1 or 100 requests/s
        rows([0, 150.5, 301]),  # 0.007 or 6.6, and milliseconds are whole
        rows([0, 1000.25, 2000.5]),  # 1/s, but milliseconds are whole
        rows([0, 0.001, 0.002]),  # 1,000 or a million a second
        rows([5, 5, 5]),  # all at once, at 5 s or 5 ms
        rows([0.0, 0.5, 1.0], hash_ids=blocks(700, 512)),  # Mooncake's blocks, but 2,000 requests/s
        rows([0, 500, 1000], chat_id=1, parent_chat_id=-1),  # Bailian's columns, but one in 8 minutes
    ],
)
def test_a_clock_in_doubt_is_asked_for_and_taken_from_the_user(
    write: Write, content: list[dict[str, object]]
) -> None:
    path = write(content)
    with pytest.raises(BadInputError, match=r"timestamp: .*FILE@unit=s or FILE@unit=ms") as caught:
        read_workload(path)
    assert str(path) in str(caught.value)
    times = np.array([row["timestamp"] for row in content], dtype=np.float64)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        workload, _ = read_workload(path, unit=unit)
        assert workload.arrival_s is not None
        assert workload.span_s == pytest.approx(np.ptp(times) * scale)
    played = parse_traffic(f"{path}@unit=ms,2x")
    assert isinstance(played, ReplayTraffic)
    assert played.recorded.span_s == pytest.approx(np.ptp(times) * 1e-3)


def test_dynamo_writes_milliseconds_under_other_names(write: Write) -> None:
    content = [
        {"created_time": 200.0 * i, "input_tokens": 256, "output_tokens": 9, "hash_ids": [i]}
        for i in range(6)
    ]
    workload, _ = read_workload(write(content))
    assert workload.rate_per_s == pytest.approx(5.0)
    assert workload.prefix is not None


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("arrival_s,prompt_tokens,output_tokens", "1,10,5", "unit: is given, but arrival_s says s"),
        ("prompt_tokens,output_tokens", "10,5", "unit: is given, but no column holds arrival times"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "2024-01-01 00:00:00,10,5", "holds dates and times"),
    ],
)
def test_a_unit_that_contradicts_the_file_is_refused(
    write: Write, header: str, row: str, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        read_workload(write(f"{header}\n{row}\n"), unit="ms")


def test_a_unit_that_is_none(write: Write) -> None:
    with pytest.raises(
        BadInputError, match=r"unit: is no unit of a clock \(got 'min'\); use s, ms, us or ns"
    ):
        read_workload(write(rows([0, 1])), unit="min")


def test_a_name_that_contradicts_unix_times_is_refused(write: Write) -> None:
    text = "timestamp_s,prompt_tokens,output_tokens\n1700000000000,10,5\n1700000001000,10,5\n"
    with pytest.raises(BadInputError, match="is in s by name, but holds Unix times in ms"):
        read_workload(write(text))


# --- other layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate_per_s", "layout"),
    [
        # Vidur: seconds by its own description
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,20,5\n0.5,20,5\n2.0,20,5\n", 1.0, "Vidur"),
        # BurstGPT's second release has sessions and how long each took
        (
            "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5.0,7,3.25,ChatGPT,40,8,48,API log\n9.0,7,1.5,GPT-4,40,8,48,API log\n", 0.25, "BurstGPT",
        ),
        # A gateway's export: an ISO time under a name that says nothing, or the wrong thing
        ("timestamp,model,prompt_tokens,completion_tokens\n"
         "2026-09-01T10:00:00.25Z,m,10,5\n2026-09-01T10:00:00.75Z,m,10,5\n", 2.0, "generic"),
        ("timestamp_s,model,prompt_tokens,completion_tokens\n"
         "2026-09-01T10:00:00.25Z,m,10,5\n2026-09-01T12:00:00.75+02:00,m,10,5\n", 2.0, "generic"),
        # A spreadsheet's: 12-hour clock, quoted for its comma; noon is 12 PM
        ('timestamp [UTC],input_tokens,output_tokens\n'
         '"8/18/2025, 11:59:59.500 AM",10,5\n"8/18/2025, 12:00:00.000 PM",10,5\n', 2.0, "generic"),
        ("Start time (ms),prompt_tokens,output_tokens\n0,10,5\n500,10,5\n", 2.0, "generic"),
        ("created_at,prompt_tokens,output_tokens\n2026-09-01 10:00:00 UTC,1,1\n2026-09-01 10:00:04 UTC,1,1\n",
         0.25, "generic"),
        ("arrival_s;prompt_tokens;output_tokens\n0;10;5\n0.5;10;5\n", 2.0, "generic"),
        ("arrival_s\tprompt_tokens\toutput_tokens\n0\t10\t5\n0.5\t10\t5\n", 2.0, "generic"),
        ("arrival_s|prompt_tokens|output_tokens|note\n0|10|5|a,b\n0.5|10|5|c,d,e\n", 2.0, "generic"),
    ],
)  # fmt: skip
def test_layouts_whose_clock_is_known(write: Write, text: str, rate_per_s: float, layout: str) -> None:
    workload, report = read_workload(write(text))
    assert workload.rate_per_s == pytest.approx(rate_per_s, rel=1e-9)
    assert report.layout == layout


def test_the_day_may_come_first_and_must_be_told(write: Write) -> None:
    header = "date,prompt_tokens,output_tokens\n"
    later = "13/8/2025 00:00:10,1,1\n"  # there is no month 13
    workload, _ = read_workload(write(f"{header}12/8/2025 23:59:50,1,1\n{later}"))
    assert workload.span_s == 20.0
    one_day = write(f"{header}5/8/2025 10:00:00,1,1\n5/8/2025 10:00:09,1,1\n")
    assert read_workload(one_day)[0].span_s == 9.0
    with pytest.raises(BadInputError, match="date"):
        read_workload(write(f"{header}5/8/2025 10:00:00,1,1\n6/8/2025 10:00:00,1,1\n"))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("end_timestamp", ("5", "6")),
        ("finished_at", ("2026-09-01T10:00:00", "2026-09-01T10:00:01")),
        ("moment", ("2026-09-01T10:00:00", "2026-09-01T10:00:01")),
        ("moment", ("1700000000", "1700000001")),
        ("local time", ("5", "6")),
    ],
)
def test_a_time_that_is_not_understood_never_becomes_a_closed_loop(
    write: Write, column: str, values: tuple[str, str]
) -> None:
    path = write(f"{column},prompt_tokens,output_tokens\n{values[0]},10,5\n{values[1]},10,5\n")
    with pytest.raises(BadInputError, match=rf"{column}: looks like a time.*FILE@time={column}") as caught:
        read_workload(path)
    assert str(path) in str(caught.value)
    unit = None if "T" in values[0] or len(values[0]) > 1 else "s"
    assert read_workload(path, time_column=column, unit=unit)[0].span_s == 1.0


@pytest.mark.parametrize("column", ["duration", "latency_s", "response time", "user_id", "queue_time_ms"])
def test_a_duration_is_no_arrival(write: Write, column: str) -> None:
    path = write(f"{column},prompt_tokens,output_tokens\n5,10,5\n6,10,5\n")
    workload, report = read_workload(path)
    assert workload.is_closed_loop
    assert "no arrival column: a closed loop" in report.notes


def test_several_times_need_a_choice(write: Write) -> None:
    path = write("arrival_s,timestamp_s,prompt_tokens,output_tokens\n0,5,10,5\n1,7,10,5\n")
    with pytest.raises(BadInputError, match=r"arrival_s, timestamp_s; keep one .* FILE@time=arrival_s"):
        read_workload(path)
    assert read_workload(path, time_column="timestamp_s")[0].span_s == 2.0
    with pytest.raises(BadInputError, match="time: has no such column"):
        read_workload(path, time_column="when")


def test_times_that_start_long_before_the_recording_count_from_its_first_request(write: Write) -> None:
    text = "arrival_s,prompt_tokens,output_tokens\n900,10,5\n901,10,5\n"
    workload, report = read_workload(write(text))
    assert workload.arrival_s is not None
    assert workload.arrival_s.tolist() == [0.0, 1.0]
    assert "arrivals count from the first request, at 900 s" in report.notes


# --- sessions -----------------------------------------------------------------------------------------------

SESSIONS: list[dict[str, object]] = [
    {"session_id": "a", "timestamp": 0.0, "input_length": 100, "output_length": 100},
    {"session_id": "a", "delay": 500.0, "input_length": 300, "output_length": 50},
    {"session_id": "a", "delay": 250.0, "input_length": 400, "output_length": 50},
    {"session_id": "b", "timestamp": 1000.0, "input_length": 100, "output_length": 40},
]


def test_later_turns_are_refused_with_both_ways_on(write: Write) -> None:
    path = write(SESSIONS)
    with pytest.raises(
        BadInputError, match=r"2 of 4 rows, later turns of sessions.*turn-speed=50.*first turns"
    ):
        read_workload(path)
    firsts, report = read_workload(path, skip_malformed=True)
    assert firsts.prompt_tokens.tolist() == [100, 100]
    assert [row.line for row in report.malformed] == [2, 3]


def test_later_turns_are_placed_by_an_assumed_speed_that_is_said(write: Write) -> None:
    played = parse_traffic(f"{write(SESSIONS)}@turn-speed=50")
    assert isinstance(played, ReplayTraffic)
    assert played.recorded.arrival_s is not None
    # a: 0 s, 2 s of output and 0.5 s of delay later, then 1 s and 0.25 s later; b: 1 s.
    assert played.recorded.arrival_s.tolist() == pytest.approx([0.0, 1.0, 2.5, 3.75])
    assert played.recorded.prompt_tokens.tolist() == [100, 100, 300, 400]
    assert played.report is not None
    assert "2 later turns placed as if turns took no wait and 50 tokens/s" in played.report.summary()


def test_a_turn_after_a_malformed_one_is_malformed(write: Write) -> None:
    broken = [*SESSIONS]
    broken[1] = broken[1] | {"output_length": 0}
    _, report = read_workload(write(broken), turn_tokens_per_s=50, skip_malformed=True)
    assert [(row.line, "follows a turn" in row.reason) for row in report.malformed] == [(2, False), (3, True)]


# --- packed files, quoted text, order -----------------------------------------------------------------------

CSV = "arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,20,6\n"


@pytest.mark.parametrize("name", ["recording.csv.gz", "recording.csv.zst", "no-suffix"])
def test_packed_files_are_read_by_what_they_hold(write: Write, name: str) -> None:
    packed = gzip.compress(CSV.encode())
    if name.endswith("zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(CSV.encode())
        packed = sink.getvalue().to_pybytes()
    assert read_workload(write(packed, name))[0].prompt_tokens.tolist() == [10, 20]
    for damaged in (packed[:-6], packed[:12] + b"\x00\xff\x13" + packed[15:]):
        with pytest.raises(BadInputError, match=name):
            read_workload(write(damaged, name))


def test_a_packed_file_cannot_claim_any_size(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_tables, "MAX_TEXT_BYTES", 1000)
    bomb = gzip.compress(CSV.encode() + b"2,10,5\n" * 1000)
    with pytest.raises(BadInputError, match=r"bomb: holds more than .* GiB of text; cut it"):
        read_workload(write(bomb, "bomb"))


def test_quoted_text_may_hold_line_breaks_and_separators(write: Write) -> None:
    text = (
        "prompt,arrival_s,prompt_tokens,output_tokens\n"
        '"one, two\nthree ""four""\n\nfive",0,10,5\n'
        '"",1,20,6\n'
        f'"{"long " * 40_000}",2,30,7\n'
    )
    workload, report = read_workload(write(text))
    assert workload.prompt_tokens.tolist() == [10, 20, 30]
    assert report.rows == 3


def test_an_unclosed_quote_costs_one_row(write: Write) -> None:
    text = 'arrival_s,prompt_tokens,output_tokens,note\n0,10,5,"a\n1,20,6,b\n2,30,7,"c\n3,40,8,"d\ne"\n'
    workload, report = read_workload(write(text), skip_malformed=True)
    assert workload.prompt_tokens.tolist() == [20, 40]
    assert [str(row) for row in report.malformed] == [
        "line 2: has an unclosed quote",
        "line 4: has an unclosed quote",
    ]


def test_rows_out_of_order_are_sorted_on_request(write: Write) -> None:
    path = write("arrival_s,prompt_tokens,output_tokens\n0,10,5\n3,20,6\n2,30,7\n4,40,8\n")
    with pytest.raises(BadInputError, match=r"line 4: arrival_s goes back in time.*FILE@sort"):
        read_workload(path)
    played = parse_traffic(f"{path}@sort")
    assert isinstance(played, ReplayTraffic)
    assert played.recorded.prompt_tokens.tolist() == [10, 30, 20, 40]
    assert played.report is not None
    assert "2 rows were out of order and are sorted" in played.report.notes


def test_repeated_keys_and_deep_nesting_are_malformed_rows(write: Write) -> None:
    good = json.dumps(rows([0])[0])
    text = "\n".join([good, good[:-1] + ', "output_length": 9}', '{"a":' * 100_000 + "1" + "}" * 100_000])
    _, report = read_workload(write(text), skip_malformed=True)
    assert ["a key occurs twice" in row.reason for row in report.malformed] == [True, False]
    assert "nested too deeply" in report.malformed[1].reason


@pytest.mark.parametrize("value", ["\u0661\u0662", "1_000", "0x10", "1,5", "\u00b2"])
def test_numbers_of_a_table_are_plain(write: Write, value: str) -> None:
    path = write(f"prompt_tokens;output_tokens\n10;5\n{value};5\n")
    with pytest.raises(BadInputError, match="line 3: prompt_tokens is not a finite number"):
        read_workload(path)


# --- blocks, classes, names ---------------------------------------------------------------------------------


def test_another_block_size_is_offered_and_taken(write: Write) -> None:
    path = write(rows([0, 500], prompt=130, hash_ids=[4, 5, 6]))
    with pytest.raises(
        BadInputError, match=r"blocks of 512 tokens.*blocks of 64 tokens would fit: FILE@block=64"
    ):
        read_workload(path)
    played = parse_traffic(f"{path}@block=64,unit=ms")
    assert isinstance(played, ReplayTraffic)
    assert played.recorded.prefix is not None
    assert played.recorded.prefix.block_tokens == 64
    with pytest.raises(BadInputError, match="block_tokens: is given, but there are no hash_ids"):
        read_workload(write(rows([0, 500])), block_tokens=16)


def test_hashes_keep_what_is_equal_and_are_bounded(write: Write) -> None:
    content = rows([0, 500, 1000], prompt=1024)
    for row, ids in zip(content, ([2**64 - 1, -5], [2**64 - 1, 7], [2**63, 7]), strict=True):
        row["hash_ids"] = ids
    workload, _ = read_workload(write(content))
    assert workload.prefix is not None
    assert [workload.prefix.row(index).tolist() for index in range(3)] == [[0, 1], [0, 2], [3, 2]]
    content[1]["hash_ids"] = [2**64, 7]
    with pytest.raises(BadInputError, match="line 2: hash_ids has an id beyond 64 bits"):
        read_workload(write(content))


def test_more_classes_than_can_be_counted_are_refused(write: Write) -> None:
    lines = "".join(f"c{index},1,1\n" for index in range(2**15 + 1))
    path = write(f"class,prompt_tokens,output_tokens\n{lines}")
    with pytest.raises(BadInputError, match=r"class: holds 32,769 classes, 32,768 are possible") as caught:
        read_workload(path)
    assert str(path) in str(caught.value)


def test_lengths_are_read_whatever_the_clock(write: Write) -> None:
    assert read_lengths(write(rows([0, 10, 20])))[0].tolist() == [700] * 3
    path = write("when,prompt_tokens,output_tokens\nx,10,1\ny,20,0\n")
    with pytest.raises(BadInputError, match="line 3: output_tokens must be at least 1"):
        read_lengths(path)
    assert read_lengths(path, skip_malformed=True)[0].tolist() == [10]


def test_a_name_with_an_at_sign_is_a_name_where_the_file_exists(write: Write) -> None:
    path = write(CSV, "log@home.csv")
    for spec in (f"{path}", f"{path}@2x"):
        played = parse_traffic(spec)
        assert isinstance(played, ReplayTraffic)
        assert len(played.recorded) == 2
