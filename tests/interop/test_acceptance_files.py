"""Acceptance out of engines' files: each form against counts by hand, and what is no acceptance."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.acceptance.rates import Rates
from simulator.core.errors import BadInputError
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.interop import sglang_tables as sglang
from simulator.interop import tensorrt_llm, vllm
from simulator.interop.acceptance_files import load_acceptance
from simulator.interop.sglang_dump import load_step_dump
from simulator.interop.sglang_profiler import load_rounds

Write = Callable[..., Path]

VLLM = (
    "INFO 11-20 08:11:02 [metrics.py:96] SpecDecoding metrics: Mean acceptance length: 2.20, Accepted "
    "throughput: 12.00 tokens/s, Drafted throughput: 30.00 tokens/s, Accepted: 120 tokens, Drafted: 300 "
    "tokens, Per-position acceptance rate: 0.600, 0.400, 0.200, Avg Draft acceptance rate: 40.0%\n"
)
IDLE = (
    "INFO 11-20 08:11:12 [metrics.py:96] SpecDecoding metrics: Mean acceptance length: nan, Accepted: 0 "
    "tokens, Drafted: 0 tokens, Per-position acceptance rate: nan, nan, nan, Avg Draft acceptance rate: "
    "nan%\n"
)
V0 = (
    "INFO 08-26 12:07:05 metrics.py:427] Speculative metrics: Draft acceptance rate: 0.655, System "
    "efficiency: 0.649, Number of speculative tokens: 4, Number of accepted tokens: 1735, Number of "
    "draft tokens: 2648, Number of emitted tokens: 2149.\n"
)
LLAMA = (
    "I slot print_timing: id  1 | task 0 | draft acceptance = 0.40000 (  120 accepted /   300 generated), "
    "mean acceptance length =  2.20, acceptance rate per position = (0.600, 0.400, 0.200)\n"
)
SGLANG = (
    "[2026-03-24 02:56:41 TP0] Decode batch. #running-req: {requests}, #token: 7352, token usage: 0.01, "
    "accept len: {length}, accept rate: 0.51, cuda graph: True, gen throughput (token/s): 939.33, "
    "#queue-req: 68, \n"
)
COUNTERS = """# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 60.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 40.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 180.0
vllm:spec_decode_num_draft_tokens_total{engine="1",model_name="m"} 120.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 40.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="m",position="0"} 20.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 40.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 20.0
"""
BENCH = {
    "date": "20261120-081102",
    "request_throughput": 13.7,
    "spec_decode_acceptance_rate": 40.0,
    "spec_decode_acceptance_length": 2.2,
    "spec_decode_num_drafts": 100,
    "spec_decode_draft_tokens": 300,
    "spec_decode_per_position_acceptance_rates": [0.6, 0.4, 0.2],
}
ROUND = {
    "verify_len": 4, "correct_drafts": 1, "cap_trim": 0, "draft_tokens": [1, 2, 3], "acc_len": 2,
}  # fmt: skip
DUMP = {
    "mode": "compact",
    "gamma": 3,
    "records": [{"forward_ct": 1, "reqs": [ROUND, ROUND | {"verify_len": 2}]}],
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: object, name: str = "recorded.txt") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def rates_of(path: Path | str) -> Rates:
    model = parse_acceptance(str(path))
    assert isinstance(model, Rates)
    return model


DEEPSPEC_HEADER = "| dataset | target_model | draft_model | #propose | accept_len | accept_rate@0 |\n"
DEEPSPEC_ROW = "|  gsm8k  | Qwen3-4B | dspark | 3.00+1 |  2.20  |  0.5500  | 0.6000 | 0.4000 | 0.2000 |\n"
DEEPSPEC = "+----+\n" + DEEPSPEC_ROW + DEEPSPEC_HEADER + DEEPSPEC_ROW
DEEPSPEC_METRICS = {
    "config": {"args": {"temperature": 1.0}, "tasks": []},
    "spec": {"dataset": "gsm8k", "num_samples": 5, "draft_tokens_per_proposal": 3.0, "acceptance_length": 2.2,
             "verify_rate": 0.55, "accept_rates_by_position": [0.6, 0.4, 0.2]},
    "confidence": {"per_position": []}, "confidence_summary": {"ece_mean": 0.1},
}  # fmt: skip
"""As DeepSpec's evaluation prints and writes them, shortened: 100 rounds of 3 drafts."""


@pytest.mark.parametrize(
    "content", [VLLM, LLAMA, COUNTERS, BENCH, DEEPSPEC, DEEPSPEC_METRICS],
    ids=["log", "llama", "counters", "bench", "deepspec table", "deepspec metrics"],
)  # fmt: skip
def test_per_position_rates_of_a_hundred_drafts(write: Write, content: object) -> None:
    """100 drafts of 3 of which 60, 40 and 20 survived each position: P(2 | 1) = 2/3, P(3 | 2) = 1/2."""
    rates = rates_of(write(content))
    assert rates.conditional == pytest.approx((0.6, 2 / 3, 0.5))
    assert rates.accepted_length == pytest.approx(2.2)
    assert rates.provenance.kind == "measured"
    assert "recorded.txt" in rates.provenance.source


def test_a_key_given_twice_is_refused(write: Write) -> None:
    twice = json.dumps(BENCH)[:-1] + ', "spec_decode_per_position_acceptance_rates": [0.9, 0.9, 0.9]}'
    with pytest.raises(
        BadInputError, match=r"gives spec_decode_per_position_acceptance_rates more than once"
    ):
        load_acceptance(write(twice))


def test_a_block_size_behind_the_file_cuts_recorded_positions(write: Write) -> None:
    assert rates_of(f"{write(VLLM)}@2").conditional == pytest.approx((0.6, 2 / 3))
    with pytest.raises(
        BadInputError, match=r"recorded.txt: block size: records blocks of 3 drafts \(got 5\)"
    ):
        parse_acceptance(f"{write(VLLM)}@5")


def test_intervals_without_drafts_are_left_out_and_counted(write: Write) -> None:
    path = write(IDLE + VLLM + IDLE)
    assert rates_of(path).accepted_length == pytest.approx(2.2)
    assert "1 intervals, 2 without drafts left out" in rates_of(path).provenance.line()
    assert vllm.read_log(path).without_drafts == (1, 3)
    with pytest.raises(BadInputError, match="has 2 intervals and drafted in none"):
        parse_acceptance(str(write(IDLE + IDLE)))


def test_the_first_vllm_log_counts_emitted_tokens(write: Write) -> None:
    """2,648 / 4 = 662 drafts emitted 2,149 tokens, 3.246 each; 1,735 / 662 would count past a rejection."""
    rates = rates_of(write(V0.replace("2149", "7") + V0))  # counters: the last line has them all
    assert rates.accepted_length == pytest.approx(2149 / 662)
    assert rates.gamma == 4
    assert "one rate at every position" in rates.provenance.line()
    with pytest.raises(BadInputError, match="block size of this log"):
        parse_acceptance(f"{write(V0)}@3")


def test_lines_of_requests_count_by_their_drafts(write: Write) -> None:
    """100 drafts at 0.6, 0.4, 0.2 and 50 at 0, 0, 0: two thirds of each rate."""
    silent = LLAMA.replace("120 accepted /   300", "0 accepted /   150")
    silent = silent.replace("2.20", "1.00").replace("0.600, 0.400, 0.200", "0.000, 0.000, 0.000")
    assert rates_of(write(LLAMA + silent)).accepted_length == pytest.approx(1 + 1.2 * 2 / 3)


def test_a_mean_length_alone_needs_the_block_size(write: Write) -> None:
    """(30 * 2.5 + 10 * 2.9) / 40 requests = 2.6."""
    log = write(SGLANG.format(requests=30, length=2.5) + SGLANG.format(requests=10, length=2.9), "s.log")
    assert rates_of(f"{log}@4").accepted_length == pytest.approx(2.6)
    assert rates_of(f"{log}@4").gamma == 4
    with pytest.raises(
        BadInputError, match=r"s.log: accept len: .*SGLang.*block size is missing.*length:2.6@K"
    ):
        parse_acceptance(str(log))
    bench = write({"request_throughput": 1.0, "accept_length": 2.6}, "b.jsonl")
    assert rates_of(f"{bench}@4").accepted_length == pytest.approx(2.6)
    with pytest.raises(BadInputError, match=r"does not fit blocks of 1 drafts \(got 2.6\)"):
        parse_acceptance(f"{bench}@1")
    old = write("draft acceptance rate = 0.40000 (  120 accepted /   300 generated)\n", "old.log")
    assert rates_of(f"{old}@3").accepted_length == pytest.approx(2.2)
    with pytest.raises(BadInputError, match=r"rate:0.4@K"):
        parse_acceptance(str(old))


def test_a_record_of_steps_says_what_is_censored(write: Write) -> None:
    """Two rounds, one cut after an accepted draft: position 2 is judged once, and rejected."""
    acceptance = load_step_dump(write(DUMP)).acceptance()
    assert acceptance.conditional.tolist()[:2] == [1.0, 0.0]
    rates = rates_of(write(DUMP))
    assert rates.accepted_length == 2.0
    assert "2 rounds, 1 of them censored (Kaplan-Meier" in rates.provenance.line()


def test_a_profile_with_acceptance_rates(write: Write) -> None:
    rates = rates_of(write({"num_speculative_tokens": 2, "conditional_accept_rates": [0.8, 0.5]}))
    assert rates.conditional == (0.8, 0.5)


def test_a_mean_rate_is_accepted_over_drafted_tokens() -> None:
    """7 drafts at 0.343 are 2.401 accepted: 3.401 with the bonus; one rate p has p + ... + p^7 = 2.401."""
    rates = rates_of("rate:0.343@7")
    assert rates.accepted_length == pytest.approx(3.401)
    assert rates.conditional[0] > 0.343
    assert rates.name == "rate:0.343@7"
    assert rates_of("rate:0@3").accepted_length == 1.0
    assert rates_of("rate:1@3").accepted_length == 4.0
    for text, message in (
        ("rate:1.2@3", r"within 0\.\.1"),
        ("rate:0.3", "rate:RATE@GAMMA"),
        ("rate:x@3", "number"),
    ):
        with pytest.raises(BadInputError, match=message):
            parse_acceptance(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DUMP | {"simulate_acc_len": 1.0}, r"simulate_acc_len: acceptance is simulated.*\(got 1.0\)"),
        ({"internal_states": [{"dspark_info_record": DUMP, "SGLANG_SIMULATE_ACC_LEN": "2.5"}]}, "simulated"),
        (f"server_args: SGLANG_SIMULATE_ACC_LEN=3\n{SGLANG.format(requests=1, length=3)}", "simulated"),
        (f"speculative_config={{'rejection_sample_method': 'synthetic'}}\n{VLLM}", "accepted at random"),
        (DUMP | {"speculative_eagle_topk": 8}, "speculative_eagle_topk: drafts are trees"),
        (f"ServerArgs(speculative_eagle_topk=4, tp=1)\n{SGLANG.format(requests=1, length=3)}", "trees"),
        (VLLM.replace("300 tokens", "200 tokens"), "line 1: drafted tokens: .* shortened to 2.00"),
        (COUNTERS.replace("180.0", "120.0"), "shortened to 2.40"),
        (BENCH | {"spec_decode_draft_tokens": 250}, "shortened to 2.50"),
        (LLAMA.replace("300 generated", "200 generated"), "shortened to 2.00"),
    ],
)  # fmt: skip
def test_acceptance_that_is_none_or_that_was_shortened(write: Write, content: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        load_acceptance(write(content))
    assert "recorded.txt" in str(caught.value)


def test_settings_that_change_nothing_are_no_reason_to_refuse(write: Write) -> None:
    settings = {"simulate_acc_len": -1, "speculative_eagle_topk": 1, "rejection_sample_method": "strict"}
    assert load_acceptance(write(DUMP | settings)).gamma == 3
    assert load_acceptance(write(DUMP | {"simulate_acc_len": None})).gamma == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sample_batch_tokens": [1, 2]}, "is a cost table of SGLang, not acceptance; .*--believed"),
        ({"token_counts": [1, 2]}, "is a cost table of TensorRT-LLM"),
        ({"temperatures": [1.0]}, "is a confidence calibration"),
        (
            {"schema": 1, "provenance": {}},
            "is a profile of this project, not acceptance; give it to `profile`",
        ),
        ('{"timestamp": 0, "input_length": 4, "output_length": 2}\n' * 3, "give it to `traffic`"),
        (json.dumps({"num_steady_steps": 40}) + "\n", "rounds of SGLang's profiler"),
        (f"{json.dumps(BENCH)}\n{json.dumps(BENCH)}\n", "line 2: holds 2 results; keep one line"),
        ("nothing of the kind\n", "holds no acceptance in a known form"),
        (BENCH | {"spec_decode_acceptance_length": 3.0}, "differs from one plus the sum of the rates, 2.200"),
        (BENCH | {"spec_decode_per_position_acceptance_rates": [0.4, 0.6]}, "never rise"),
        (COUNTERS.replace('engine="1",model_name="m"', 'engine="1",model_name="n"'), "of several models"),
    ],
)
def test_other_files_are_called_by_their_name(write: Write, content: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        load_acceptance(write(content))
    assert "recorded.txt" in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(BadInputError, match=r"server\.log: no such file"):
        parse_acceptance("server.log")


def test_evaluations_of_deepspec_are_read_one_dataset_at_a_time(write: Write) -> None:
    with pytest.raises(BadInputError, match=r"has rows of 2 datasets.*keep the header"):
        rates_of(write(DEEPSPEC + DEEPSPEC_ROW.replace("gsm8k", "mbpp")))
    with pytest.raises(BadInputError, match="has no row"):
        rates_of(write(DEEPSPEC_HEADER))
    cut = DEEPSPEC.replace("3.00+1", "2.10+1")
    with pytest.raises(BadInputError, match=r"shortened to 2\.10 on average"):
        rates_of(write(cut))
    with pytest.raises(BadInputError, match=r"accept_rate@: must be rates from 0 to 1"):
        rates_of(write(DEEPSPEC.replace("0.4000", "1.4000")))
    rising = DEEPSPEC.replace("0.2000", "0.4010")
    assert rates_of(write(rising)).conditional == pytest.approx((0.6, 2 / 3, 1.0))
    assert "dataset gsm8k" in rates_of(write(DEEPSPEC)).provenance.source


def test_a_container_log_holds_lines_of_the_log(write: Write) -> None:
    lines = [json.dumps({"log": line, "stream": "stderr"}) for line in (VLLM, IDLE)]
    assert rates_of(write("\n".join(lines) + "\n")).accepted_length == pytest.approx(2.2)


# --- errors name the file and the field ---------------------------------------------------------------------

PROFILER_ROUND = {
    "batch_size": 8, "batch_size_per_rank": 8, "frac": None, "batch_tokens": 32, "steps_per_sec": 50.0,
    "num_steady_steps": 400, "match_fraction": 1.0, "per_rank_median_step_time": [0.02],
    "load_info": {"reached_target": True},
}  # fmt: skip
FUZZED: list[tuple[Callable[[Path], object], dict[str, Any]]] = [
    (sglang.load_table, {"sample_batch_tokens": [8, 16], "sample_steps_per_sec": [9.0, 7.0],
                         "max_batch_tokens": 16}),
    (sglang.load_table, {"bias_seconds": 0.01, "bs_probes": [1, 8], "alpha_seconds": [0.0, 0.1],
                         "m_probes": [0, 8], "theta_seconds": [0.0, 0.1]}),
    (sglang.load_calibration, {"temperatures": [1.0, 1.2], "dataset": "x", "num_samples": 4,
                               "ece_before": [0.1, 0.2]}),
    (tensorrt_llm.load_table, {"token_counts": [0, 8], "step_time_ms": [2.0, 2.5], "fixed_overhead_ms": 0.0,
                               "batch_sizes": [1, 8], "batch_overhead_ms": [0.0, 1.0],
                               "_meta": {"encoding": "decomposed"}}),
    (load_step_dump, DUMP),
    (load_rounds, PROFILER_ROUND),
    (load_acceptance, BENCH),
    (load_acceptance, {"confidence_summary": 0, "spec": {"dataset": "x", "draft_tokens_per_proposal": 2.0,
                                                         "accept_rates_by_position": [0.6, 0.4]}}),
    (load_acceptance, {"accept_length": 2.2, "request_throughput": 1.0}),
]  # fmt: skip
WRONG = [None, True, -1, 0, 1.5, 10**400, float("nan"), "", "x", [], [None], [-1.0, 2.0], {}, {"a": 1}]


def broken(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts, at any depth, replaced by something wrong or taken away."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: broken(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        place = rng.randrange(len(value))
        return [*value[:place], broken(value[place], rng), *value[place + 1 :]]
    return rng.choice(WRONG)


@pytest.mark.parametrize(("load", "content"), FUZZED, ids=lambda part: getattr(part, "__name__", None))
def test_every_complaint_names_the_file_and_a_field(
    write: Write, load: Callable[[Path], object], content: dict[str, Any]
) -> None:
    rng = random.Random(7)
    complaints = []
    for _ in range(300):
        mangled = broken(content, rng)
        path = write(mangled if mangled != "" else "x")
        try:
            load(path)
        except BadInputError as error:
            complaints.append((error, mangled))
    assert len(complaints) > 150
    for error, mangled in complaints:
        assert error.source is not None, (str(error), mangled)
        assert "recorded.txt" in error.source, (str(error), mangled)
        is_whole_object = isinstance(mangled, dict) and "is not JSON" not in error.problem
        assert error.field or not is_whole_object, (str(error), mangled)


LAST_LINES = {
    "vllm": (VLLM, VLLM.replace("0.600, 0.400, 0.200", "0.700, 0.300, 0.254").replace("2.20", "2.25"), "",
             "SpecDecoding metrics:"),
    "v0": (V0.replace("2149", "1324"), V0, "", "Speculative metrics:"),
    "llama": (LLAMA, LLAMA.replace("0.600, 0.400, 0.200", "0.700, 0.300, 0.200"), "", "draft acceptance"),
    "sglang": (SGLANG.format(requests=30, length="2.54"), SGLANG.format(requests=31, length="3.28"), "@4",
               "#running-req"),
}  # fmt: skip
"""A line of each log, another one, the block size where the log has none, and what tells such lines."""


@pytest.mark.parametrize("form", LAST_LINES)
def test_a_log_cut_off_anywhere_in_its_last_line_is_read_up_to_there(write: Write, form: str) -> None:
    """At every character: the first line alone with a note, or both once all that is read of it is there."""
    first, second, size, mark = LAST_LINES[form]
    alone = rates_of(f"{write(first)}{size}").conditional
    both = rates_of(f"{write(first + second)}{size}").conditional
    assert both != alone
    seen = set()
    for end in range(1, len(second)):
        rates = rates_of(f"{write(first + second[:end])}{size}")
        assert rates.conditional in (alone, both), second[:end]
        noted = "the last line left out, as it was cut off" in rates.provenance.line()
        assert noted == (mark in second[:end] and rates.conditional == alone), second[:end]
        seen.add((rates.conditional == both, noted))
    assert seen == {(False, False), (False, True), (True, False)}


def test_a_line_cut_off_in_the_middle_of_a_log_is_still_refused(write: Write) -> None:
    with pytest.raises(BadInputError, match=r"line 1: .*remove a cut-off line"):
        rates_of(write(VLLM[:120] + "\n" + VLLM))
