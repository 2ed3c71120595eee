"""Curves of measured kernels and of the formula: gates, composition, bytes, words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.hardware.choose import Hardware, kernel_name, profile_for, require_acceptance
from simulator.hardware.curves import composed, draft_spec, fit_cells, formula_profile, kernel_profile
from simulator.hardware.drafters import parse_drafter
from simulator.hardware.engines import HOSTS, as_served
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import layout
from simulator.hardware.models import WEIGHT_BYTES, Precision, load_model
from simulator.hardware.steps.formula import BANDS, FITTED, FormulaTimes
from simulator.hardware.steps.kernel_modes import Engine, Setting, modes, rows_stand_in
from simulator.hardware.steps.kernels import GATE_ROWS, Gate, KernelTables, band, chosen, gate
from tests.support.command_line import run

QWEN8, H200 = load_model("qwen3-8b"), load_gpu("h200")
BOTH = [parse_drafter("dspark:5l"), parse_drafter("mtp1")]


@pytest.fixture(scope="module")
def tables() -> KernelTables:
    return KernelTables(QWEN8, H200, 1, "bf16")


@pytest.mark.parametrize(
    ("model", "gpu", "precision"),
    [("qwen3-8b", "h200", "bf16"), ("mistral-7b-v0.3", "h200", "fp8"), ("gpt-oss-20b", "b200", "fp4")],
)
def test_the_shipped_curve_is_what_the_tables_give(model: str, gpu: str, precision: str) -> None:
    """The same bytes from the same versions."""
    laid_out = Hardware(model=model, gpu=gpu, precision=precision).layout()
    assert kernel_profile(laid_out, BOTH) == load_profile(kernel_name(laid_out))


def test_every_shipped_curve_is_labelled_and_priced() -> None:
    curves = [name for name in shipped_profiles() if name.startswith("kernels/")]
    assert len({name.split("/")[2].rsplit("-tp", 1)[0] for name in curves}) >= 12
    assert {name.split("/")[1] for name in curves} >= {"a100", "h100", "h200", "b200"}
    for name in curves:
        profile = load_profile(name)
        assert profile.name == name
        assert profile.provenance.kind == "kernels"
        assert "aiconfigurator-core 0.12.0" in profile.provenance.source
        assert "of the median at most, used" in str(profile.provenance.notes)
        assert profile.step_time_band is not None
        assert set(profile.drafters or {}) == {"dspark", "mtp1"}


def test_a_pass_reads_each_requests_cache_once(tables: KernelTables) -> None:
    """8 rows a request cost 8 times the rows in everything but attention, and attention once."""
    profile = kernel_profile(layout(QWEN8, H200, 1, "bf16"))
    requests, each, context = 64, 8, 4096
    engine = next(name for name in tables.handles if name in profile.title)
    expected = tables.operations_s(engine, requests * each) + tables.attention_s(engine, requests, context)
    found = profile.target_cost().step_time_s(requests, requests * each, requests * context)
    assert found == pytest.approx(expected, rel=0.05)


def test_no_pass_is_faster_than_memory() -> None:
    """Weights and the cache are read at 4.8 TB/s at best."""
    cost = load_profile("kernels/h200/qwen3-8b-tp1-bf16").target_cost()
    weights = QWEN8.dense_parameters * WEIGHT_BYTES["bf16"]
    for requests in (1, 16, 128):
        for context in (1024, 16384):
            read = weights + requests * context * QWEN8.kv_bytes_per_token()
            assert cost.step_time_s(requests, requests, requests * context) > 0.9 * read / 4.8e12


@pytest.mark.parametrize(
    ("times", "refused"),
    [
        ([1.0, 1.0, 1.0, 1.0], None),
        ([1.0, 1.3, 1.3, 1.3], "stands apart by more than 25%"),
        ([1.2, 1.0, 1.0, 1.0], "falls by 17%"),
        ([0.5, 0.6, 0.7, 0.8], "stands apart"),
    ],
)
def test_gates_by_hand(times: list[float], refused: str | None) -> None:
    found = gate("vllm", np.array(times), median=np.ones(4), floor=np.full(4, 0.9))
    assert found.refused == refused or (refused is not None and refused in str(found.refused))


def test_a_table_below_the_weights_is_refused() -> None:
    found = gate("vllm", np.ones(4), median=np.ones(4), floor=np.array([0.5, 0.5, 1.1, 0.5]))
    assert "0.91 of the time that reading the weights takes" in str(found.refused)


def test_an_engine_that_fails_is_replaced_and_said() -> None:
    gates = (Gate("vllm", 0.6, 0, 2, "it stands apart"), Gate("trtllm", -0.1, 0, 2, None))
    assert chosen(gates, "vllm") == "trtllm"
    with pytest.raises(BadInputError, match="fails the gates of every engine: vllm"):
        chosen((Gate("vllm", 0.1, 0.3, 2, "it falls by 30%"),), None)


def test_engines_that_only_differ_from_each_other_are_used_with_a_wide_band(tables: KernelTables) -> None:
    """Two tables, each 40% from what lies between them: neither can be called wrong."""
    gates = (Gate("vllm", -0.4, 0, 2, "it stands apart"), Gate("sglang", 0.41, 0, 2, "it stands apart"))
    assert chosen(gates, None) == "vllm"
    assert chosen(gates, "sglang") == "sglang"
    assert band(tables, gates) == 0.41


@pytest.mark.parametrize(
    ("model", "engine", "setting", "expected"),
    [
        ("llama-3.1-70b", "trtllm", Setting(), ("fp8_static", None, "fp8")),
        ("llama-3.1-70b", "vllm", Setting(small_cache=True), ("fp8_static", None, "fp8")),
        ("llama-3.1-70b", "vllm", Setting(scales="block"), ("fp8", None, "bfloat16")),
        ("qwen3-32b", "trtllm", Setting(scales="computed"), ("fp8", None, "fp8")),
        ("qwen3-235b-a22b", "sglang", Setting(scales="block"), ("fp8_block", "fp8_block", "bfloat16")),
        ("deepseek-v3", "sglang", Setting(), ("fp8_block", "fp8_block", "bfloat16")),
    ],
)
def test_weights_and_caches_have_the_modes_of_their_checkpoints(
    model: str, engine: Engine, setting: Setting, expected: tuple[str, str | None, str]
) -> None:
    found = modes(load_model(model), H200, 8, engine, "fp8", setting)
    named = ("gemm_quant_mode", "moe_quant_mode", "kvcache_quant_mode")
    assert tuple(found.get(name) for name in named) == expected
    assert found["tp_size"] == 8


def test_vllm_runs_the_experts_of_tensorrt_on_blackwell_in_mxfp4() -> None:
    """What is no expert stays vLLM's; on Hopper, and in other weights, experts do too."""
    oss = KernelTables(load_model("gpt-oss-20b"), load_gpu("b200"), 1, "fp4")
    own, lent = ({each[0]: each[1] for each in oss.handles[name].decode_step_per_op(64, 128, 2)}
                 for name in ("vllm", "trtllm"))  # fmt: skip
    rest = sum(ms for name, ms in own.items() if not name.endswith(("_moe", "attention")))
    assert oss.operations_s("vllm", 64) == pytest.approx((rest + lent["generation_moe"]) / 1e3)
    assert lent["generation_moe"] < own["generation_moe"]
    alone = oss.handles["vllm"].predict_prefill_latency(1, 1024)
    swapped = [oss.handles[name].decode_step_per_op(1024, 128, 2) for name in ("trtllm", "vllm")]
    more = [next(each[1] for each in found if each[0] == "generation_moe") for found in swapped]
    assert oss.prefill_s("vllm", 1024) == pytest.approx((alone + more[0] - more[1]) / 1e3)
    hopper = KernelTables(load_model("gpt-oss-20b"), H200, 1, "fp4")
    kept = sum(each[1] for each in hopper.handles["vllm"].decode_step_per_op(64, 128, 2)
               if not each[0].endswith("attention"))  # fmt: skip
    assert hopper.operations_s("vllm", 64) == pytest.approx(kept / 1e3)


def test_tensorrt_runs_flashinfers_experts_beside_a_latent_on_blackwell() -> None:
    """As SGLang's table has them; not with data-parallel attention, and not on Hopper."""
    model = load_model("deepseek-v3")
    together = KernelTables(model, load_gpu("b200"), 8, "fp8", Setting(small_cache=True))
    own, lent = ({each[0]: each[1] for each in together.handles[name].decode_step_per_op(64, 128, 2)}
                 for name in ("trtllm", "sglang"))  # fmt: skip
    named = "generation_moe_overlap"
    expected = sum(own.values()) - own[named] + lent[named]
    assert together.operations_s("trtllm", 64) == pytest.approx(expected / 1e3)
    assert any("sglang's experts stand in for trtllm's" in said for said in together.stands_in("trtllm"))
    apart = KernelTables(model, load_gpu("b200"), 8, "fp8", Setting(8, 8, small_cache=True))
    assert not any("experts" in said for said in apart.stands_in("trtllm"))
    hopper = KernelTables(model, H200, 8, "fp8")
    assert not any("experts" in said for said in hopper.stands_in("trtllm"))


@pytest.mark.parametrize(
    ("model", "engine", "precision", "setting", "expected"),
    [
        ("minimax-m2.5", "vllm", "fp8", Setting(), True),  # published in blocks
        ("minimax-m2.5", "sglang", "fp8", Setting(), False),
        ("minimax-m2.5", "vllm", "fp4", Setting(), False),
        ("deepseek-v3", "vllm", "fp8", Setting(), False),  # a latent's blocks have a table of their own
        ("qwen3-32b", "vllm", "fp8", Setting(), False),
        ("qwen3-32b", "vllm", "fp8", Setting(scales="block"), True),
    ],
)
def test_products_by_rows_stand_in_for_blocks_on_vllm_alone(
    model: str, engine: Engine, precision: Precision, setting: Setting, expected: bool
) -> None:
    assert rows_stand_in(load_model(model), engine, precision, setting.scales) is expected


def test_experts_and_attention_are_split_as_asked() -> None:
    found = modes(
        load_model("deepseek-v3"), H200, 8, "sglang", "fp8", Setting(attention_over=4, experts_over=8)
    )
    assert (found["tp_size"], found["attention_dp_size"]) == (2, 4)
    assert (found["moe_tp_size"], found["moe_ep_size"]) == (1, 8)


def test_rows_multiply_the_heads_of_a_latent_and_nothing_of_grouped_queries(tables: KernelTables) -> None:
    """64 requests at 16k on H200: a block of 64 heads took 342 us, its projections 52 of them; 128 heads 572
    and 126 (the tables, read on 2026-11-25)."""
    engine = next(iter(tables.handles))
    grouped = [tables.attention_s(engine, 64, 16384, each) for each in (1, 8)]
    assert grouped[0] == grouped[1]
    latent = KernelTables(load_model("deepseek-v3"), H200, 2, "fp8", Setting(small_cache=False))
    one, two, four = (latent.attention_s("trtllm", 64, 16384, each) for each in (1, 2, 4))
    assert two / one == pytest.approx((572 - 126) / (342 - 52), rel=0.05)
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)  # beyond all heads their last slope goes on


def test_attention_that_reads_the_cache_many_times_is_refused() -> None:
    """SGLang's table of a latent in 8 bits on Hopper takes 16 reads where good kernels take 1 to 3."""
    faulty = KernelTables(load_model("deepseek-v3"), H200, 8, "fp8", Setting(small_cache=True))
    refused = {each.engine: each.refused for each in faulty.gates()}
    assert "its attention takes 16 reads of the cache" in str(refused["sglang"])
    assert faulty.reads("trtllm") < 3
    assert "13 reads" in str(gate("sglang", np.ones(4), np.ones(4), np.full(4, 0.9), 13.0).refused)


def test_what_has_no_kernels_says_so() -> None:
    with pytest.raises(BadInputError, match="has no tables of measured kernels"):
        KernelTables(QWEN8, load_gpu("mi300x"), 1, "bf16")
    with pytest.raises(BadInputError, match="has no matrix unit for fp4"):
        KernelTables(QWEN8, H200, 1, "fp4")
    with pytest.raises(BadInputError, match="must divide the 4 GPUs"):
        KernelTables(load_model("qwen3-30b-a3b"), H200, 4, "bf16", Setting(experts_over=8))
    with pytest.raises(BadInputError, match="layers of several kinds"):
        KernelTables(load_model("gemma-3-27b-pt"), H200, 1, "bf16")


@pytest.mark.parametrize(("gpu", "rows"), [("h100", 1), ("h100", 512), ("b200", 64), ("mi300x", 8)])
def test_the_formula_is_no_faster_than_either_bound(gpu: str, rows: int) -> None:
    laid_out = layout(QWEN8, load_gpu(gpu), 1, "bf16")
    found = FormulaTimes(laid_out).operations_s(rows)
    assert found > 2 * QWEN8.dense_parameters / laid_out.gpu.bandwidth_bytes_per_s
    assert found > 2 * rows * QWEN8.dense_parameters / laid_out.gpu.flop_per_s["bf16"]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B"])
@pytest.mark.parametrize("gpu", ["h100", "h200", "b200"])
def test_the_formula_is_near_measured_kernels_that_it_has_not_seen(name: str, gpu: str) -> None:
    laid_out = Hardware(model=name, gpu=gpu).layout()
    known, times = load_profile(kernel_name(laid_out)).target_cost(), FormulaTimes(laid_out)
    errors = []
    for rows in GATE_ROWS:
        for count in (1, 16, 128):
            if rows >= count:
                found = times.operations_s(rows) + times.attention_s(count, 4096)
                errors.append(found / known.step_time_s(count, rows, count * 4096) - 1)
    assert np.median(np.abs(errors)) < 0.12
    assert np.quantile(np.abs(errors), 0.9) < BANDS["dense"] + 0.1


def test_more_gpus_are_faster_and_never_in_proportion() -> None:
    one, four = (FormulaTimes(layout(QWEN8, H200, gpus, "bf16")) for gpus in (1, 4))
    for rows in (1, 64, 1024):
        assert one.operations_s(rows) / 4 < four.operations_s(rows) < one.operations_s(rows)


def test_drafters_are_priced_by_layers() -> None:
    times = FormulaTimes(layout(QWEN8, H200, 1, "bf16"))
    mtp, dspark = (draft_spec(times, QWEN8.layers, each) for each in (BOTH[1], BOTH[0]))
    layer = (times.operations_s(1) - times.table_s(1)) / 36 + times.attention_s(1, 1024) / 36
    assert mtp.build().time_s(1, 1, 1024) == pytest.approx(layer + times.table_s(1), rel=0.02)
    assert dspark.build().time_s(1, None, 1024) > 5 * (times.operations_s(7) - times.table_s(7)) / 36
    assert dspark.sequential_s is not None
    assert parse_drafter("mtp:3").block == 3
    for wrong in ("dspark", "dspark:0l", "dspark:5l@0", "eagle", "mtp:"):
        with pytest.raises(BadInputError, match="drafter"):
            parse_drafter(wrong)


def test_v4s_draft_is_priced_by_its_window_and_weighed_with_its_experts() -> None:
    flash, draft = load_model("deepseek-v4-flash"), parse_drafter("dspark:v4")
    times = FormulaTimes(layout(flash, load_gpu("b200"), 2, "fp4"))
    spec = draft_spec(times, flash.layers, draft)
    assert (spec.structure, spec.block_size, spec.context_s_per_token) == ("semi-autoregressive", 5, 0.0)
    one = 3 / 43 * (times.operations_s(5) - times.table_s(5) + times.attention_s(1, 128)) + times.table_s(5)
    assert spec.pass_s[0] == pytest.approx(one)
    # Published: 10.86 GB in three files, of which 0.18 GB are main_proj and the heads, no layers.
    assert draft.weight_bytes(flash) == pytest.approx(10.68e9, rel=0.002)
    with pytest.raises(BadInputError, match="has layers of experts, and the model has none"):
        draft.weight_bytes(QWEN8)


def test_the_fit_holds_on_cells_it_has_not_seen() -> None:
    fit = fit_cells(FormulaTimes(layout(QWEN8, H200, 1, "bf16")))
    assert fit.held_out.median < 0.03


def test_words_choose_what_is_shipped_then_the_formula() -> None:
    shipped = profile_for(Hardware(model="qwen3-32b", gpu="h100"))
    assert shipped.profile.provenance.kind == "kernels"
    assert "composed from measured kernels" in shipped.notes[0]
    modelled = profile_for(Hardware(model="qwen3-32b", gpu="mi300x"))
    assert modelled.profile.provenance.kind == "modelled"
    kernels = formula_profile(modelled.layout, BOTH)
    assert modelled.profile == as_served(kernels, "vllm", modelled.layout.gpu, HOSTS["vllm"]["16 bits"])
    assert "has no tables of measured kernels" in modelled.notes[-1]
    with pytest.raises(
        BadInputError, match="nearest published one is `acceptance` qwen3-14b/dspark/mt-bench"
    ):
        require_acceptance("qwen3-32b", ())
    for wrong in ({"engine": "x"}, {"precision": "int3"}, {"drafters": ("mtp1", "mtp:1")}):
        with pytest.raises(BadInputError):
            profile_for(Hardware(model="qwen3-32b", gpu="h100", **wrong))  # type: ignore[arg-type]


def test_the_command_line_takes_a_model_and_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    load = ("--concurrency", "8", "--seeds", "1", "--steps", "60", "--workers", "1")
    words = ("frontier", "--model", "qwen3-8b", "--gpu", "h100", *load)
    out = ("--out", tmp_path / "f.csv")
    good = ("--acceptance", "qwen3-8b/dspark/mt-bench", "--policy", "dspark-async", "--policy", "fixed:3")
    assert run(*words, *good, *out) == 0
    assert "composed from measured kernels" in capsys.readouterr().err
    assert run(*words, *out) == 2
    assert "--acceptance qwen3-8b/dspark/mt-bench" in capsys.readouterr().err
    assert run(*words, "--profile", "deepseek-v4-flash", *good, *out) == 2
    assert run("frontier", "--model", "deepseek-v3", "--gpu", "l40s", *load, *good, *out) == 1
    assert run("list", "--models", "--gpus") == 0
    shown = capsys.readouterr().out
    assert "Qwen/Qwen3-32B" in shown
    assert "mi300x" in shown
    assert deploy("kernels/h100/qwen3-8b-tp1-bf16", ["length:3@7"]).plan("fixed:3").drafter == "dspark"


@pytest.mark.parametrize(("name", "gpus", "layers"), [("deepseek-v3", 8, 2 * 61), ("qwen3-8b", 1, 36)])
def test_a_latent_layer_counts_as_two_in_fixed_time(name: str, gpus: int, layers: int) -> None:
    laid_out = layout(load_model(name), load_gpu("b200"), gpus, "fp8")
    free = FormulaTimes(laid_out, replace(FITTED, layer_s=0.0)).operations_s(1)
    assert FormulaTimes(laid_out).operations_s(1) - free == pytest.approx(layers * FITTED.layer_s)


def test_the_bands_of_the_formula_hold_nine_of_ten_passes_of_shipped_curves() -> None:
    """Latent attention has two curves; each error is of what the product computes against the shipped one."""
    laid_out = layout(load_model("deepseek-r1"), load_gpu("h100"), 16, "fp8")
    times, cost = FormulaTimes(laid_out), load_profile("kernels/h100/deepseek-r1-tp16-fp8").target_cost()
    errors = [
        (times.operations_s(rows) + times.attention_s(count, at)) / cost.step_time_s(count, rows, count * at)
        - 1
        for rows in (1, 16, 64, 256, 1024) for count in (1, 16, 64) for at in (1024, 16384) if rows >= count
    ]  # fmt: skip
    assert np.quantile(np.abs(errors), 0.9) < times.band == BANDS["latent"]


def test_a_cache_in_8_bits_holds_twice_the_tokens() -> None:
    """TensorRT-LLM's fp8 checkpoints bring one along, vLLM's do not: 32 layers of 2 x 8 heads of 128."""
    laid_out = layout(load_model("llama-3.1-8b"), load_gpu("h100"), 1, "fp8")
    left = 0.9 * laid_out.gpu.memory_bytes - 3.5 * 2**30 - laid_out.weight_bytes
    tables, passed = KernelTables(laid_out.model, laid_out.gpu, 1, "fp8"), [Gate("vllm", 0, 0, 2, None)]
    engines: tuple[Engine, ...] = ("trtllm", "vllm")
    kept = {name: composed(laid_out, tables, passed, name).kv_tokens for name in engines}
    assert kept["vllm"] == pytest.approx(left / (32 * 2 * 8 * 128 * 2), abs=1)
    assert kept["trtllm"] == pytest.approx(left / (32 * 2 * 8 * 128), abs=2)
