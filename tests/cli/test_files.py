"""Files of serving engines through the command line, in the exact forms that the engines write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.acceptance.trace_file import load_trace
from simulator.core.reading import read_json
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.interop import sglang_tables, tensorrt_llm
from tests.support.command_line import run

DIAGONAL = {
    "sample_batch_tokens": [8, 16, 32], "sample_steps_per_sec": [10.28, 7.81, 5.42], "max_batch_tokens": 32,
}  # fmt: skip
ADDITIVE = {
    "bias_seconds": 0.012, "bs_probes": [1, 64], "alpha_seconds": [0.0, 0.006], "m_probes": [0, 64, 512],
    "theta_seconds": [0.0, 0.001, 0.011],
}  # fmt: skip
TRTLLM = {
    "token_counts": [0, 128, 256], "step_time_ms": [2.0, 2.1, 4.0], "fixed_overhead_ms": 0.0,
    "batch_sizes": [1, 16], "batch_overhead_ms": [3.0, 5.0],
    "_meta": {"encoding": "decomposed", "engine": {"tp": 8}},
}  # fmt: skip
VLLM = (
    "INFO 10-01 12:00:0{i} [metrics.py:97] SpecDecoding metrics: Mean acceptance length: 1.98, Accepted "
    "throughput: 9.80 tokens/s, Drafted throughput: 30.00 tokens/s, Accepted: 98 tokens, Drafted: 300 tokens"
    ", "
    "Per-position acceptance rate: 0.478, 0.283, 0.219, Avg Draft acceptance rate: 32.7%\n"
)


def rounds(sizes: list[tuple[int, float | None]], gamma: int = 4) -> str:
    """Lines of SGLang's profiler; a step takes 10 ms, 0.1 ms a request and 0.05 ms a row."""
    lines = []
    for requests, share in sizes:
        drafts = gamma * requests if share is None else int(share * requests * gamma)
        tokens = requests + drafts
        step_s = 0.010 + 1e-4 * requests + 5e-5 * tokens
        lines.append(json.dumps({
            "repeat": 0, "batch_size": requests, "batch_size_per_rank": requests, "frac": share,
            "batch_tokens": tokens, "steps_per_sec": 1 / step_s, "num_steady_steps": 100,
            "match_fraction": 1.0, "per_rank_median_step_time": [step_s],
            "load_info": {
                "num_requests": requests, "max_new_tokens": 9, "wall_seconds": 3.0, "reached_target": True,
            },
        }))  # fmt: skip
    return "\n".join(lines) + "\n"


def dump(mode: str = "cap-accept") -> dict[str, Any]:
    """Two requests in three steps, blocks of 2: accepted 2, 0, 1 of the first and 1, 2 of the second."""

    def request(rid: str, correct: int, trimmed: int, confidence: list[float]) -> dict[str, Any]:
        return {
            "rid": rid, "verify_len": 3, "acc_len": correct + 1, "correct_drafts": correct,
            "cap_trim": trimmed, "confidence": confidence,
        }  # fmt: skip

    steps = [
        [request("a", 1, 1, [0.9, 0.8]), request("b", 1, 0, [0.7, 0.4])],
        [request("a", 0, 0, [0.3, 0.2]), request("b", 2, 0, [0.95, 1.0])],
        [request("a", 1, 0, [0.6, 0.5])],
    ]  # fmt: skip
    records = [{"forward_ct": 7 + i, "reqs": reqs} for i, reqs in enumerate(steps)]
    record = {
        "mode": mode,
        "gamma": 2,
        "verify_num_draft_tokens": 3,
        "components": ["reqs"],
        "records": records,
    }
    return {"internal_states": [{"dspark_info_record": record}]}


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("engine", "table", "requests", "tokens", "step_s"),
    [
        ("sglang-table", DIAGONAL, 4, 20, 1 / 7.81),  # floor
        ("sglang-table", ADDITIVE, 64, 288, 0.012 + 0.006 + 0.006),
        ("trtllm", TRTLLM, 16, 192, 5.0e-3 + 3.05e-3),
    ],
)
def test_a_table_becomes_a_profile(
    engine: str, table: object, requests: int, tokens: int, step_s: float, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "mine.json"
    assert run("import", engine, written(tmp_path / "t.json", table), "--out", out, "--gpus", 8) == 0
    profile = load_profile(out)
    assert profile.target_cost().step_time_s(requests, tokens) == pytest.approx(step_s)
    assert (profile.name, profile.replica_gpus, profile.drafters) == ("mine", 8, None)
    said = capsys.readouterr().err
    assert "drafting is inside them" in said
    if engine == "trtllm":
        assert "tp=8" in said
    assert deploy(out, ["length:2@3"]).plan("fixed:3").cost.step_time_s(requests, tokens) >= step_s


def test_rounds_become_an_additive_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(r, share) for r in (1, 4, 16, 64) for share in (None, 0.0, 0.5)]
    out = tmp_path / "p.json"
    assert (
        run("import", "sglang-rounds", written(tmp_path / "x.rounds.jsonl", rounds(sizes)), "--out", out) == 0
    )
    cost = load_profile(out).target_cost()
    for requests, tokens in ((16, 48), (64, 320), (4, 4)):
        assert cost.step_time_s(requests, tokens) == pytest.approx(0.010 + 1e-4 * requests + 5e-5 * tokens)
    assert "held-out error" in capsys.readouterr().err


def test_rounds_of_whole_blocks_alone_become_a_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rounds([(1, None), (8, None), (32, None)])
    slow = lines.replace('"reached_target": true', '"reached_target": false', 1)
    out = tmp_path / "p.json"
    assert run("import", "sglang-rounds", written(tmp_path / "x.jsonl", slow), "--out", out) == 0
    assert load_profile(out).step.type == "throughput-curve"
    said = capsys.readouterr().err
    assert "left out: line 1 timed out" in said
    assert "no additive fit" in said


def test_a_dump_becomes_rates_and_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "info.json", dump())
    rates, trace = tmp_path / "rates.json", tmp_path / "trace.parquet"
    assert run("import", "sglang-dump", path, "--out", rates) == 0
    # Of 5 rounds 4 accept the first draft, and of these 2 the second.
    assert read_json(rates)["conditional_accept_rates"] == pytest.approx([0.8, 0.5])
    model = deploy("deepseek-v4-flash", [str(rates)]).acceptance["dspark"]
    assert model.provenance.kind == "measured"
    assert "info.json" in model.provenance.source
    assert run("import", "sglang-dump", path, "--out", trace) == 0
    loaded = load_trace(trace)
    assert loaded.accepted is not None
    assert loaded.accepted.tolist() == [2, 0, 1, 1, 2]
    assert loaded.sequence_start.tolist() == [0, 3, 5]
    survival = loaded.replay(0).survival
    assert survival[0] == pytest.approx([0.9, 0.72], rel=1e-5)
    assert survival[4] == pytest.approx([0.95, 0.95], rel=1e-5)
    capsys.readouterr()
    censored = written(tmp_path / "c.json", dump("compact"))
    assert run("import", "sglang-dump", censored, "--out", tmp_path / "c.parquet") == 2
    assert "cuts off what was not verified" in capsys.readouterr().err
    assert not (tmp_path / "c.parquet").exists()


def test_a_log_becomes_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "vllm.log", "".join(VLLM.format(i=i) for i in range(3)) + "INFO other\n")
    out = tmp_path / "rates.json"
    assert run("import", "vllm-log", log, "--out", out, "--block", 2) == 0
    assert read_json(out)["conditional_accept_rates"] == pytest.approx([0.478, 0.283 / 0.478])
    assert "3 intervals" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
def test_an_exported_table_is_what_the_profile_says(engine: str, tmp_path: Path) -> None:
    """A step of a target and a drafter at a context of 1000 tokens, summed by hand."""
    profile = {
        "schema": 1, "name": "p", "title": "p",
        "provenance": {"kind": "measured", "source": "here", "date": "2026-01-01"},
        "step": {
            "type": "additive", "bias_s": 0.01, "request_probes": [1, 64], "alpha_s": [0.0, 0.002],
            "token_probes": [1, 512], "theta_s": [0.0, 0.004], "context_s_per_token": 1e-8,
            "row_context_s_per_token": 2e-9,
        },
        "drafters": {"dspark": {
            "structure": "semi-autoregressive", "block_size": 4, "requests": [1, 32, 64],
            "pass_s": [0.001, 0.0015, 0.003], "sequential_s": [1e-4, 1e-4, 1e-4],
        }},
    }  # fmt: skip
    source, out = written(tmp_path / "p.json", profile), tmp_path / "table.json"
    assert run("export", engine, source, "--out", out) == 2  # at which context?
    assert not out.exists()
    assert run("export", engine, source, "--out", out, "--context", 1000) == 0
    cost = sglang_tables.load_table(out) if engine == "sglang" else tensorrt_llm.load_table(out).cost
    for requests, tokens in ((1, 1), (32, 512), (64, 512)):
        drafting = np.interp(requests, [1, 32, 64], [0.001, 0.0015, 0.003]) + 4e-4
        alpha = 0.002 * (requests - 1) / 63 + 1e-8 * 1000 * requests
        theta = 0.004 * (tokens - 1) / 511 + 2e-9 * 1000 * tokens
        assert cost.step_time_s(requests, tokens) == pytest.approx(0.01 + alpha + drafting + theta)


def test_a_curve_goes_out_and_comes_back(tmp_path: Path) -> None:
    diagonal, table, back = tmp_path / "d.json", tmp_path / "t.json", tmp_path / "back.json"
    whole = tmp_path / "whole.json"  # drafting inside its steps
    load_profile("deepseek-v4-flash").model_copy(update={"drafters": None}).save(whole)
    assert run("export", "sglang", whole, "--out", diagonal) == 0
    assert "bias_seconds" not in diagonal.read_text()  # SGLang tells the kinds apart by it
    assert run("import", "sglang-table", diagonal, "--out", back) == 0
    own, read = load_profile("deepseek-v4-flash").target_cost(), load_profile(back).target_cost()
    for tokens in read_json(diagonal)["sample_batch_tokens"]:
        assert read.step_time_s(1, tokens) == pytest.approx(own.step_time_s(1, tokens))
    assert run("export", "trtllm", whole, "--out", table) == 0
    cost = tensorrt_llm.load_table(table).cost
    assert cost.step_time_s(9, 100) == pytest.approx(own.step_time_s(9, 100), rel=1e-3)


def test_an_engine_is_launched_for_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--profile", "deepseek-v4-flash", "--policy", "dspark-async", "--concurrency", "64")
    assert run("export", "launch", "sglang", *words, "--prefill", "chunked", "--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"launch.sh", "cost_table.json"}
    printed = capsys.readouterr()
    assert "for SGLang 0.5.16" in printed.err
    assert "No calibration" in printed.err
    assert str(tmp_path / "launch.sh") in printed.out
    assert run("export", "launch", "vllm", *words[:3], "oracle", *words[4:], "--out", tmp_path / "no") == 2
    assert "no engine can run it" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
