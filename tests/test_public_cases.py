"""Every row of the table of public cases, with what is expected of it written by hand.

The table and its inputs are material for this project and no part of it: without that folder the module
is skipped. What the product needs of a row is tested again, on files written here, in the module it
belongs to; this module only shows that the rows themselves come out as they should.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.capacity.search import Search, find_rate
from simulator.capacity.trials import REPLICATIONS
from simulator.core.errors import BadInputError
from simulator.core.units import parse_percent, parse_rate_per_s
from simulator.cost.fit import fit_additive
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.beliefs import load_table
from simulator.interop import sglang_tables as sglang
from simulator.interop import tensorrt_llm, vllm
from simulator.interop.sglang_dump import load_step_dump
from simulator.interop.sglang_profiler import load_rounds
from simulator.planning.scenario.reading import load_scenario
from simulator.planning.scenario.replica import KvMemory
from simulator.planning.variants import servers_of
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.traffic.recorded.files import read_workload
from simulator.traffic.workload import Workload
from tests.support.command_line import run

SHARED = Path(__file__).parents[2] / "shared"
CASES = SHARED / "cases"
FLASH = "deepseek-v4-flash"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder of public cases is not here")

PENDING: dict[str, str] = {}
"""Rows whose mend has not landed, and what is missing: expected to fail, and to be taken out of here."""

SLOW = {"C03"}


@dataclass(frozen=True)
class Bench:
    """What a case may use: a folder to write to and the streams of the command line."""

    folder: Path
    streams: pytest.CaptureFixture[str]

    def command(self, *arguments: object) -> tuple[int, str]:
        """Exit code of ``dspark-sim ARGUMENTS`` and everything it printed."""
        code = run(*arguments)
        printed = self.streams.readouterr()
        return code, printed.out + printed.err

    def frontier(self, profile: str, acceptance: str, *policies: str, concurrency: str) -> pd.DataFrame:
        """Throughput in tokens/s by policy and concurrency, of long runs."""
        out = self.folder / "frontier.csv"
        chosen = [part for policy in policies for part in ("--policy", policy)]
        code, printed = self.command(
            "frontier", "--profile", CASES / f"{profile}.json", "--acceptance", acceptance, *chosen,
            "--concurrency", concurrency, "--seeds", 2, "--steps", 4000, "--workers", 1, "--out", out,
        )  # fmt: skip
        assert code == 0, printed
        return pd.read_csv(out).set_index(["policy", "concurrency"])["throughput_tok_per_s"]


Check = Callable[[Bench], None]
ROWS: dict[str, Check] = {}


def row(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        ROWS[name] = check
        return check

    return add


def workload(name: str, **options: object) -> Workload:
    return read_workload(CASES / name, **options)[0]  # type: ignore[arg-type]


def refused(call: Callable[[], object], *words: str) -> None:
    """The call is refused with a message that holds every one of the words."""
    with pytest.raises(BadInputError) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


# --- recordings ---------------------------------------------------------------------------------------------


@row("T01")
def _(bench: Bench) -> None:
    for name in ("t01_azure2023.csv", "t02_azure2023_crlf_nonl.csv", "t03_azure2023_bom.csv"):
        assert workload(name).rate_per_s == pytest.approx(4.0), name


@row("T02")
def _(bench: Bench) -> None:
    assert workload("t06_azure2024_tz.csv").rate_per_s == pytest.approx(4.0)


@row("T03")
def _(bench: Bench) -> None:
    requests, report = read_workload(CASES / "t07_azure2025_mm.csv")
    assert requests.rate_per_s == pytest.approx(4.0)
    assert "NumImages" in report.summary()


@row("T04")
def _(bench: Bench) -> None:
    packed, plain = workload("t05_azure2023.csv.gz"), workload("t01_azure2023.csv")
    np.testing.assert_array_equal(packed.prompt_tokens, plain.prompt_tokens)


@row("T05")
def _(bench: Bench) -> None:
    refused(lambda: workload("t04_azure2023_utf16.csv"), "UTF-8")


@row("T06")
def _(bench: Bench) -> None:
    refused(lambda: workload("t12_burstgpt_1.csv"), "20 of 200 rows", "at least 1", "skip")
    assert len(workload("t12_burstgpt_1.csv", skip_malformed=True)) == 180


@row("T07")
def _(bench: Bench) -> None:
    requests = workload("t13_burstgpt_session.csv")
    assert len(requests) == 200
    assert requests.rate_per_s == pytest.approx(1 / 45)


@row("T08")
def _(bench: Bench) -> None:
    path = SHARED / "data" / "mooncake_conversation.jsonl"
    if not path.is_file():
        pytest.skip("the published recording is not here")
    requests, _report = read_workload(path)
    assert len(requests) == 12_031
    assert requests.rate_per_s == pytest.approx(12_030 / 3536.999)  # its last timestamp, in ms


@row("T09")
def _(bench: Bench) -> None:
    requests = workload("t15_bailian_blk16.jsonl")
    assert len(requests) == 60
    assert requests.rate_per_s == pytest.approx(2.0, rel=0.02)
    assert requests.prefix is not None
    assert requests.prefix.block_tokens == 16


@row("T10")
def _(bench: Bench) -> None:
    assert workload("t34_bailian_no_hash.jsonl").rate_per_s == pytest.approx(2.0, rel=0.02)
    assert workload("t15_bailian_blk16.jsonl", block_tokens=16).rate_per_s == pytest.approx(2.0, rel=0.02)


@row("T11")
def _(bench: Bench) -> None:
    assert workload("t35_guidellm_doc.jsonl").rate_per_s == pytest.approx(2.0)
    assert workload("t16_guidellm_trace_synthetic.jsonl").rate_per_s == pytest.approx(5.0)


@row("T14")
def _(bench: Bench) -> None:
    assert workload("t17_dynamo_alias.jsonl").rate_per_s == pytest.approx(5.0)  # one every 200 ms


@row("T15")
def _(bench: Bench) -> None:
    assert workload("t25_ptu_export.csv").rate_per_s == pytest.approx(1.0)


@row("T17")
def _(bench: Bench) -> None:
    """Twenty sessions of two turns, the second 350 ms after the first, or a word on sessions."""
    try:
        requests = workload("t18_dynamo_session_delay.jsonl")
    except BadInputError as error:
        assert "session" in str(error).replace("t18_dynamo_session_delay", "")  # noqa: PT017  # reading it is right too
    else:
        assert len(requests) == 40
        assert not requests.is_closed_loop


@row("T18")
def _(bench: Bench) -> None:
    refused(lambda: workload("t19_aiperf_no_output.jsonl"), "output lengths")


@row("T19")
def _(bench: Bench) -> None:
    requests, report = read_workload(CASES / "t22_servegen_offline_d.jsonl")
    assert requests.is_closed_loop
    assert "closed loop" in report.summary()


@row("T20")
def _(bench: Bench) -> None:
    path = bench.folder / "chunk-0-trace.csv"  # no header: a window's start, its rate, its shape
    path.write_text("0,0.94,1.12,Gamma\n600,1.13,1.05,Gamma\n")
    refused(lambda: read_workload(path), "prompt lengths")


@row("T21")
def _(bench: Bench) -> None:
    requests = workload("t10_vidur.csv")
    assert len(requests) == 120
    assert requests.rate_per_s == pytest.approx(1 / 0.731, rel=0.01)


@row("T22")
def _(bench: Bench) -> None:
    requests, report = read_workload(CASES / "t11_vidur_arxiv.csv")
    assert requests.is_closed_loop
    assert "closed loop" in report.summary()


@row("T23")
def _(bench: Bench) -> None:
    assert workload("t26_gateway_iso.csv").rate_per_s == pytest.approx(1.0)
    assert workload("t38_iso_renamed.csv").rate_per_s == pytest.approx(1.0)


@row("T24")
def _(bench: Bench) -> None:
    assert len(workload("t23_vllm_custom.csv")) == 40
    assert workload("t24_pandas_index_sci.csv").rate_per_s == pytest.approx(4.0)


@row("T25")
def _(bench: Bench) -> None:
    refused(lambda: workload("t30_json_array.json"), "JSON array")
    for name, separator in (("t28_semicolon.csv", ("semicolon", "';'")), ("t29_tsv.tsv", ("tab", "'\\t'"))):
        try:
            assert workload(name).rate_per_s == pytest.approx(1.0)
        except BadInputError as error:
            assert any(word in str(error) for word in separator)  # noqa: PT017  # reading it is right too


@row("T26")
def _(bench: Bench) -> None:
    requests = workload("t41_multiline_quoted.csv")
    assert len(requests) == 30
    assert set(requests.prompt_tokens) == {100}


@row("T27")
def _(bench: Bench) -> None:
    refused(lambda: workload("t09_azure_swapped.csv"), "line 12", "sort")


@row("T29")
def _(bench: Bench) -> None:
    refused(lambda: workload("t40_null_nan.jsonl"), "line 2", "missing", "line 3", "nan")


@row("T30")
def _(bench: Bench) -> None:
    for name in ("t44_weka.jsonl", "t45_aiperf_export.jsonl"):
        refused(lambda name=name: workload(name), "prompt lengths")


@row("T31")
def _(bench: Bench) -> None:
    assert workload("t43_iso_T_Z.csv").rate_per_s == pytest.approx(1.0)
    assert workload("t37_ns.csv").rate_per_s == pytest.approx(2.0)


# --- commands, plans, policies ------------------------------------------------------------------------------


@row("C01")
def _(bench: Bench) -> None:
    out = bench.folder / "run"
    code, printed = bench.command(
        "simulate", "--profile", FLASH, "--policy", "mtp1", "--concurrency", 64,
        "--traffic", CASES / "t01_azure2023.csv", "--out", out,
    )  # fmt: skip
    assert code == 0, printed
    finished = pd.read_csv(out / "requests.csv") if (out / "requests.csv").is_file() else None
    assert finished is None or len(finished) == 120


@row("C03")
def _(bench: Bench) -> None:
    path = SHARED / "data" / "AzureLLMInferenceTrace_conv.csv"
    if not path.is_file():
        pytest.skip("the published recording is not here")
    scenario = (CASES / "s03_short_head.yaml").read_text()
    scenario = re.sub(r"t31_short_head\.csv", path.as_posix(), scenario).replace("64", "256")
    (bench.folder / "azure.yaml").write_text(scenario)
    assert 65 <= planned_rate(bench, bench.folder / "azure.yaml") <= 85


def found_rate(scenario: Path) -> float:
    """Requests per second of one replica as the search of ``plan`` finds them, without the rest of a plan."""
    asked = load_scenario(scenario)
    (server,) = servers_of(asked, asked.demand(scenario.parent), asked.parsed_sla())
    precision = parse_percent(asked.search.precision, "search.precision")
    return find_rate(Search(server, precision, replications=REPLICATIONS)).rate_per_s


def planned_rate(bench: Bench, scenario: Path) -> float:
    """Requests per second of one replica as ``plan`` writes them."""
    out = bench.folder / "plan"
    code, printed = bench.command("plan", scenario, "--out", out)
    assert code == 0, printed
    return float(pd.read_csv(out / "plans.csv")["rate_per_replica_per_s"].iloc[0])


@row("C04")
def _(bench: Bench) -> None:
    """The closed loop delivers 6,227 tokens/s, a request has 371.5 tokens on average: 16.8 requests/s."""
    assert 14 <= found_rate(CASES / "s03_short_head.yaml") <= 18


@row("C05")
def _(bench: Bench) -> None:
    """The closed loop delivers 15,670 tokens/s at 256 slots, a request decodes 99: 158/s, tied or not.

    The 65/s that the case names belong to 64 slots (6,206 tokens/s: 62.7/s).
    """
    assert 145 <= found_rate(CASES / "s04_ties_default.yaml") <= 160


@row("C07")
def _(bench: Bench) -> None:
    scenario = (CASES / "s03_short_head.yaml").read_text()
    name = (CASES / "t16_guidellm_trace_synthetic.jsonl").as_posix()
    (bench.folder / "guide.yaml").write_text(scenario.replace("t31_short_head.csv", name))
    code, printed = bench.command("plan", bench.folder / "guide.yaml", "--out", bench.folder / "plan")
    assert "leave nothing to decode" not in printed
    assert code == 0 or "recording" in printed


@row("C09")
def _(bench: Bench) -> None:
    for text, per_s in (("600rpm", 10.0), ("10rps", 10.0), ("10qps", 10.0), ("600/min", 10.0)):
        try:
            assert parse_rate_per_s(text, field="rate") == pytest.approx(per_s)
        except BadInputError as error:
            assert "600/s" not in str(error)  # noqa: PT017  # reading it is right too
            assert f"{text[:-3]}/{'min' if 'rpm' in text else 's'}" in str(error)  # noqa: PT017  # reading it is right too


@row("C10")
def _(bench: Bench) -> None:
    assert len(parse_sla(["e2e_p99<=800ms"]).terms) == 1
    try:
        parse_sla(["ttft+16*tpot_p99<=500ms"])
    except BadInputError as error:
        assert "ttft" in str(error)  # noqa: PT017  # reading it is right too


@row("C11")
def _(bench: Bench) -> None:
    for name in ("e2el_p99", "p99_ttft", "ttft_median"):
        refused(lambda name=name: parse_sla([f"{name}<=1s"]), "ttft")


@row("C12")
def _(bench: Bench) -> None:
    memory = KvMemory(
        gpu_memory_gib=179, weights_gib=150, layers=43, latent_dim=576, bytes_per_value=1, usable=0.95
    )
    assert memory.tokens(8) == pytest.approx(6.6e6, rel=0.01)


@row("C13")
def _(bench: Bench) -> None:
    memory = KvMemory(gpu_memory_gib=79.6, weights_gib=68, layers=80, kv_heads=8, head_dim=128)
    assert memory.tokens(4) == pytest.approx(716_000, rel=0.001)


@row("C14")
def _(bench: Bench) -> None:
    out = bench.folder / "compared"
    code, printed = bench.command(
        "compare", "--profile", CASES / "p06_tokenspeed_131k.json", "--acceptance", "length:3.0@7",
        "--policy", "autoregressive", "--policy", "fixed:7", "--concurrency", "1,2", "--sla", 20,
        "--seeds", 2, "--steps", 300, "--workers", 1, "--out", out,
    )  # fmt: skip
    assert code == 0, printed
    table = pd.read_csv(out / "sla.csv").set_index("policy")
    first, other = (table["throughput_tok_per_s"][name] for name in ("autoregressive", "fixed:7"))
    assert table["gain"]["fixed:7"] == pytest.approx(other / first - 1, abs=1e-6)


@row("C15")
def _(bench: Bench) -> None:
    for name, length in (("v02_vllm11.log", 3.40), ("v12_vllm_bench_serve.json", 3.40)):
        assert parse_acceptance(str(CASES / name)).accepted_length == pytest.approx(length, abs=0.005)  # type: ignore[attr-defined]
    assert parse_acceptance(str(CASES / "s31_server_info_dp2.json")).gamma == 5
    code, printed = bench.command(
        "frontier", "--profile", FLASH, "--acceptance", CASES / "v02_vllm11.log", "--policy", "fixed:3",
        "--concurrency", "20", "--seeds", 1, "--steps", 60, "--workers", 1, "--out", bench.folder / "f.csv",
    )  # fmt: skip
    assert code == 0, printed


# --- acceptance in logs -------------------------------------------------------------------------------------


@row("L01")
def _(bench: Bench) -> None:
    lengths = {
        "v01_vllm09.log": 2.401,  # (150 + 725) accepted over the drafts of both intervals, plus one
        "v02_vllm11.log": 3.40,
        "v07_all_accepted.log": 4.0,
        "v08_zero_accept.log": 1.0,
        "v10_docker_json.log": 2.20,
        "v14_no_counts.log": 1.31,
    }
    for name, length in lengths.items():
        pooled = vllm.pooled_rates(vllm.load_log(CASES / name))
        assert pooled.accepted_length == pytest.approx(length, abs=0.005), name


@row("L02")
def _(bench: Bench) -> None:
    (interval,) = vllm.load_log(CASES / "v14_no_counts.log")
    assert interval.marginal == (0.181, 0.067, 0.039, 0.014, 0.009, 0.0, 0.0)
    assert vllm.pooled_rates([interval]).accepted_length == pytest.approx(1.31, abs=0.001)


@row("L05")
def _(bench: Bench) -> None:
    read = {
        "v05_vllm_v0.log": 1 + 0.649 * 5 - 1,  # system efficiency: tokens over drafts of 4, bonus included
        "v15_llamacpp.log": 2.92,
        "v11_prometheus.txt": 2.2,
        "v12_vllm_bench_serve.json": 3.4,
        "g01_sglang_decode.log@4": 2.54,
        "g02_sglang_bench_serving.jsonl@4": 2.54,
    }
    for name, length in read.items():
        model = parse_acceptance(str(CASES / name))
        assert model.accepted_length == pytest.approx(length, abs=0.005), name  # type: ignore[attr-defined]
        assert model.provenance.kind == "measured"
    for name, form in (("g01_sglang_decode.log", "SGLang"), ("g02_sglang_bench_serving.jsonl", "SGLang")):
        refused(lambda name=name: parse_acceptance(str(CASES / name)), form, "length:2.54@", name)
    for name, form in (("v05_vllm_v0.log", "V0"), ("v15_llamacpp.log", "llama.cpp")):
        refused(lambda name=name: vllm.load_log(CASES / name), form)


@row("L06")
def _(bench: Bench) -> None:
    (interval,) = vllm.load_log(CASES / "v03_nan_interval.log")
    assert interval.accepted_length == 2.20
    assert "1 without drafts" in parse_acceptance(str(CASES / "v03_nan_interval.log")).provenance.line()


@row("L07")
def _(bench: Bench) -> None:
    """Mean rate per drafted token: 7 drafts at 0.343 are 2.401 accepted ones, and the bonus."""
    assert parse_acceptance("rate:0.343@7").accepted_length == pytest.approx(3.401)  # type: ignore[attr-defined]


# --- cost tables, rounds, dumps -----------------------------------------------------------------------------


@row("S01")
def _(bench: Bench) -> None:
    assert sglang.load_table(CASES / "s10_diag.json").step_time_s(1, 40) == pytest.approx(1 / 5.42)
    assert sglang.load_table(CASES / "s14_add_ok.json").step_time_s(64, 64) == pytest.approx(0.019)
    assert sglang.load_table(CASES / "s15_add_single_bs.json").step_time_s(9, 64) == pytest.approx(0.013)
    table = tensorrt_llm.load_table(CASES / "s50_trt.json")
    assert table.cost.step_time_s(16, 128) == pytest.approx(0.0071)


@row("S02")
def _(bench: Bench) -> None:
    for name in ("s11_diag_nonmono.json", "s13_add_negative.json"):
        code, printed = bench.command(
            "regret", "--profile", FLASH, "--policy", "dspark-async", "--believed", CASES / name,
            "--concurrency", "8", "--seeds", 2, "--workers", 1, "--out", bench.folder / f"{name}.csv",
        )  # fmt: skip
        assert code == 0, printed
        assert "less time" in printed


@row("S03")
def _(bench: Bench) -> None:
    refused(lambda: sglang.load_table(CASES / "s12_diag_flat2.json"), "never trim", "s12_diag_flat2.json")
    path = CASES / "s20_rounds_pins_ignored.rounds.jsonl"
    refused(lambda: load_rounds(path, gamma=5), "never trim", "frac", path.name)
    fit = fit_additive(load_rounds(path, gamma=5, allow_flat=True).cells(), token_probes=[1, 48, 192, 768])
    assert any("never trim" in warning for warning in fit.warnings)


@row("S05")
def _(bench: Bench) -> None:
    refused(lambda: load_step_dump(CASES / "s30_dump_simulated_acc.json"), "simulate_acc_len", "simulated")


@row("S06")
def _(bench: Bench) -> None:
    dump = load_step_dump(CASES / "s31_server_info_dp2.json")
    assert (dump.gamma, dump.mode, dump.acceptance().is_censored) == (5, "cap-accept", False)
    refused(lambda: load_step_dump(CASES / "s32_dump_core_only.json"), "reqs")
    refused(lambda: load_step_dump(CASES / "s33_dump_null.json"), "dspark_info_record")


@row("S08")
def _(bench: Bench) -> None:
    for name in ("s52_trt_v2", "s53_ascend", "s54_llamacpp_v2", "s55_speculation_profile"):
        refused(lambda name=name: load_table(CASES / f"{name}.json"), "is no cost table", name, "SGLang")


@row("S09")
def _(bench: Bench) -> None:
    scheduler = parse_policy("batch-table:1-16=5,17-64=3,65-=1").scheduler
    assert scheduler.lossless
    code, printed = bench.command(
        "frontier", "--profile", FLASH, "--policy", "batch-table:1-16=5,17-64=3,65-=1",
        "--concurrency", "8,20", "--seeds", 1, "--steps", 60, "--workers", 1, "--out", bench.folder / "f.csv",
    )  # fmt: skip
    assert code == 0, printed
    budget = pd.read_csv(bench.folder / "f.csv").set_index("concurrency")["verification_budget_mean"]
    assert budget[8] == pytest.approx(6)
    assert budget[20] == pytest.approx(4)


@row("S10")
def _(bench: Bench) -> None:
    limits = planning_limits()
    assert "tree" in limits
    dump = json.loads((CASES / "s31_server_info_dp2.json").read_text())
    path = bench.folder / "tree.json"
    path.write_text(json.dumps(dump | {"speculative_eagle_topk": 8, "speculative_num_draft_tokens": 32}))
    refused(lambda: load_step_dump(path), "speculative_eagle_topk", "tree")


@row("S11")
def _(bench: Bench) -> None:
    assert "data-parallel" in planning_limits()
    assert "slowest rank" in planning_limits()


def planning_limits() -> str:
    text = (Path(__file__).parents[1] / "docs" / "planning.md").read_text()
    return " ".join(text[text.index("## Limits") :].split())


# --- profiles built from published numbers (the JSON files lie in the folder) -------------------------------


@row("N04")
def _(bench: Bench) -> None:
    """A line of no speculation alone says nothing of 8 rows a request at 32 requests: refused by default."""
    out = bench.folder / "f.csv"
    code, printed = bench.command(
        "frontier", "--profile", CASES / "p03_kimik3_none.json", "--acceptance", "length:3.0@7",
        "--policy", "fixed:7", "--concurrency", "32", "--seeds", 1, "--steps", 100,
        "--workers", 1, "--out", out,
    )  # fmt: skip
    assert code == 2, printed
    assert "extrapolat" in printed or "beyond" in printed


@row("N05")
def _(bench: Bench) -> None:
    """Rows 3 and 5 take 8.98 ms, a draft pass 0.894 ms: 1.89 / 10.77 ms and 2.08 / 12.56 ms."""
    two = bench.frontier("p04_eagle_bs1", "eagle=length:1.89@2", "fixed:2@eagle", concurrency="1")
    four = bench.frontier("p04_eagle_bs1", "eagle=length:2.08@4", "fixed:4@eagle", concurrency="1")
    assert two["fixed:2@eagle", 1] == pytest.approx(175.5, rel=0.03)
    assert four["fixed:4@eagle", 1] == pytest.approx(165.7, rel=0.03)


@row("N06")
def _(bench: Bench) -> None:
    """28.5 ms a step and 6.8 ms a draft pass. Lengths of 2.433 and 3.086 give 2.433 / 42.1 ms = 57.8 and
    3.086 / 55.7 ms = 55.4 tokens/s; the source measured 54.9 and 55.6, a wash."""
    two = bench.frontier("p05_gemma4_spark", "mtp=length:2.433@2", "fixed:2@mtp", concurrency="1")
    four = bench.frontier("p05_gemma4_spark", "mtp=length:3.086@4", "fixed:4@mtp", concurrency="1")
    assert two["fixed:2@mtp", 1] == pytest.approx(57.8, rel=0.02)
    assert four["fixed:4@mtp", 1] == pytest.approx(55.4, rel=0.02)
    assert two["fixed:2@mtp", 1] == pytest.approx(54.9, rel=0.08)
    assert four["fixed:4@mtp", 1] == pytest.approx(55.6, rel=0.08)


@row("N07")
def _(bench: Bench) -> None:
    """One row in 17.06 ms, eight in 36.8 ms, every draft rejected."""
    rates = bench.frontier(
        "p06_tokenspeed_131k", "length:1.0@7", "fixed:7", "autoregressive", "dspark-async", concurrency="1"
    )
    assert rates["fixed:7", 1] / rates["autoregressive", 1] == pytest.approx(17.06 / 36.8, rel=0.002)
    assert rates["dspark-async", 1] == pytest.approx(rates["autoregressive", 1], rel=0.02)


@row("N08")
def _(bench: Bench) -> None:
    """1.83 tokens in 168.9 ms; one row in 60.8 ms without drafting is better."""
    rates = bench.frontier(
        "p07_ds4_rocm", "conditional:0.83", "fixed:1", "autoregressive", "dspark-async", concurrency="1"
    )
    assert rates["fixed:1", 1] == pytest.approx(11.18, rel=0.05)
    assert rates["dspark-async", 1] == pytest.approx(rates["autoregressive", 1], rel=0.02)


# --- the table itself ---------------------------------------------------------------------------------------


def marked(name: str) -> object:
    marks = [pytest.mark.slow] if name in SLOW else []
    if name in PENDING:
        marks.append(pytest.mark.xfail(reason=PENDING[name], strict=True))
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in ROWS])
def test_row(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ROWS[name](Bench(tmp_path, capsys))


def test_every_row_of_the_table_has_its_case() -> None:
    listed = re.findall(
        r"^\| ([A-Z]\d\d) \|", (CASES / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(ROWS) == sorted(listed)
    assert set(ROWS) >= set(PENDING) | SLOW
