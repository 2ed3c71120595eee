"""What a file of an engine is, told from its content, and signs that its acceptance is none.

Acceptance comes from many programs under many names. A reader that meets another program's file says which
one it is (``known_form``) instead of complaining about what it misses. Engines can also be told to make
acceptance up, for benchmarks of the rest of a step; such numbers say nothing of a drafter and are refused
(``refuse_unreal``), and so are drafts in trees, which this simulator does not model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from simulator.core.errors import BadInputError


class Form(NamedTuple):
    """A kind of file: what it is called in messages, and what to do with one that was given elsewhere."""

    title: str
    remedy: str


CUT_OFF = "the last line left out, as it was cut off"
"""What is said of a log whose last line was still being written."""

_READ = "give it to `acceptance`, or read it with simulator.interop.acceptance_files.load_acceptance"

_TABLE = "a scheduler may believe it (`dspark-sim regret --believed FILE`); acceptance is recorded elsewhere"

VLLM_LOG = Form("a log of vLLM", _READ)

VLLM_V0_LOG = Form("a log of vLLM V0", _READ)

VLLM_METRICS = Form("Prometheus counters of vLLM", _READ)

VLLM_BENCH = Form("a result of vllm bench serve", _READ)

SGLANG_LOG = Form("a log of SGLang", _READ)

SGLANG_BENCH = Form("a result of SGLang's bench_serving", _READ)

SGLANG_DUMP = Form("a record of SGLang's decode steps", _READ)

LLAMA_CPP_LOG = Form("a log of llama.cpp", _READ)

SPECULATION_PROFILE = Form("a speculation profile with acceptance rates", _READ)

DEEPSPEC_TABLE = Form("a table of DeepSpec's evaluation", _READ)

DEEPSPEC_METRICS = Form("metrics.json of DeepSpec's evaluation", _READ)

_TEXT_MARKS = (
    ("SpecDecoding metrics:", VLLM_LOG),
    ("Speculative metrics:", VLLM_V0_LOG),
    ("vllm:spec_decode_", VLLM_METRICS),
    ("accept len:", SGLANG_LOG),
    ("draft acceptance", LLAMA_CPP_LOG),
    ("accept_rate@0", DEEPSPEC_TABLE),
)

_SGLANG_TABLE = Form("a cost table of SGLang", _TABLE)

_CALIBRATION = Form("a confidence calibration", "it holds no acceptance: record acceptance too")

_KEY_MARKS = (
    ("spec_decode_acceptance_length", VLLM_BENCH),
    ("spec_decode_per_position_acceptance_rates", VLLM_BENCH),
    ("internal_states", SGLANG_DUMP),
    ("records", SGLANG_DUMP),
    ("accept_length", SGLANG_BENCH),
    ("confidence_summary", DEEPSPEC_METRICS),
    ("conditional_accept_rates", SPECULATION_PROFILE),
    ("sample_batch_tokens", _SGLANG_TABLE),
    ("bias_seconds", _SGLANG_TABLE),
    ("token_counts", Form("a cost table of TensorRT-LLM", _TABLE)),
    (
        "cost_tables",
        Form("version 2 of TensorRT-LLM's cost table, which is not read", "write a profile of it"),
    ),
    ("num_steady_steps", Form("rounds of SGLang's profiler", "read them with interop.sglang_profiler")),
    ("temperatures", _CALIBRATION),
    ("sts_temperatures", _CALIBRATION),
    ("provenance", Form("a profile of this project", "give it to `profile`; it may carry acceptance")),
    ("input_length", Form("a recording of requests", "give it to `traffic`")),
    ("request_throughput", Form("a benchmark result", "run it with speculation on; it has no acceptance")),
)


def known_form(content: object) -> Form | None:
    """Tell the form of a parsed JSON object, or of other text; ``None`` where nothing gives it away."""
    if isinstance(content, dict):
        return next((form for key, form in _KEY_MARKS if key in content), None)
    if isinstance(content, str):
        return next((form for mark, form in _TEXT_MARKS if mark in content), None)
    return None


_NUMBER = r"['\"]?\s*[:=]\s*['\"]?(\d+(?:\.\d+)?)"

_SIMULATED = ("simulate_acc_len", "force_num_accepted_tokens")
"""Settings of SGLang and TensorRT-LLM: a positive number is how many tokens every step pretends to commit."""

_TREE = "speculative_eagle_topk"

_SYNTHETIC = "rejection_sample_method"

_SYNTHETIC_TEXT = re.compile(rf"{_SYNTHETIC}['\"]?\s*[:=]\s*['\"]?synthetic", re.IGNORECASE)

_DEPTH = 6


def refuse_unreal(content: object, source: str) -> None:
    """Raise ``BadInputError`` where the file says that acceptance is simulated or that drafts are trees.

    content: a parsed JSON value, searched for the engine's settings, or the text of a log.
    """
    for name, value in _settings(content):
        if any(mark in name for mark in _SIMULATED) and _positive(value):
            raise BadInputError(
                "acceptance is simulated: the engine commits a set number of tokens whatever is drafted",
                source=source, field=name, value=value, remedy="record again without that setting",
            )  # fmt: skip
        if name.endswith(_SYNTHETIC) and str(value).lower() == "synthetic":
            raise BadInputError(
                "acceptance is simulated: drafts are accepted at random, not by the target",
                source=source, field=name, value=value, remedy="record again without that setting",
            )  # fmt: skip
        if name.endswith(_TREE) and _positive(value) and float(str(value)) > 1:
            raise BadInputError(
                "drafts are trees; only chains are modelled, where draft k follows draft k-1",
                source=source, field=name, value=value, remedy=f"record with {_TREE} 1",
            )  # fmt: skip


def _settings(content: object, depth: int = _DEPTH) -> Iterator[tuple[str, object]]:
    """Return settings by lower-case name, nested objects included; of a text, those it mentions."""
    if isinstance(content, str):
        for mark in (*_SIMULATED, _TREE):
            for match in re.finditer(rf"({mark}){_NUMBER}", content, re.IGNORECASE):
                yield mark, match[2]
        if _SYNTHETIC_TEXT.search(content):
            yield _SYNTHETIC, "synthetic"
    elif depth and isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, dict | list):
                yield from _settings(value, depth - 1)
            else:
                yield key.lower(), value
    elif depth and isinstance(content, list):
        for value in content[:64]:  # ranks, not requests: settings stand near the top
            if isinstance(value, dict):
                yield from _settings(value, depth - 1)


def _positive(value: object) -> bool:
    try:
        return not isinstance(value, bool) and float(str(value)) > 0
    except ValueError:
        return False
