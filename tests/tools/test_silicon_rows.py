"""What is read out of the published end-to-end table, and what is left out."""

from __future__ import annotations

import pytest

from simulator.hardware.steps.kernel_modes import Setting
from tools.silicon_rows import BLOCKING, Row, judge

PLAIN = {
    "id": "a", "silicon_data_source": "db-dump/2026-04-27; silicon_concurrency=64; measured=2026-02-03",
    "backend": "trtllm", "model_path": "deepseek-ai/DeepSeek-V3", "system": "b200_sxm", "precision": "fp4",
    "mode": "agg", "isl": "1024", "osl": "1024", "gemm_quant_mode": "nvfp4", "moe_quant_mode": "nvfp4",
    "batch_size": "64", "tp_size": "64", "pp_size": "1", "attention_dp_size": "1", "moe_tp_size": "8",
    "moe_ep_size": "8", "silicon_ttft_ms": "136.58", "silicon_tpot_ms": "16.2597", "decode_num_workers": "",
}  # fmt: skip

WIDTHS = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")


def only(**changed: str) -> Row | str:
    return judge([PLAIN | changed])[0]


def test_a_row_is_read_with_what_the_launch_script_says() -> None:
    """``tp 8, ep 8`` of one node, which the table multiplies; keys and values in 8 bits, drawn lengths."""
    row = only()
    assert isinstance(row, Row)
    assert (row.gpu, row.engine, row.precision, row.gpus) == ("b200", "trtllm", "fp4", 8)
    assert row.setting == Setting(attention_over=1, experts_over=8, small_cache=True)
    assert (row.concurrency, row.ranged, row.step_tokens) == (64, True, 8192)


@pytest.mark.parametrize(
    ("changed", "tokens"),
    [
        ({"model_path": "MiniMaxAI/MiniMax-M2.5", "backend": "vllm", "isl": "1024"}, 2048),
        ({"model_path": "moonshotai/Kimi-K2.5", "backend": "vllm", "isl": "8192"}, 16384),
        ({"model_path": "MiniMaxAI/MiniMax-M2.5", "backend": "vllm", "system": "h200_sxm"}, 8192),
        ({"backend": "sglang"}, 16384),
        ({"backend": "sglang", "gemm_quant_mode": "fp8_block"}, 8192),  # on four GPUs
        ({"backend": "sglang", "gemm_quant_mode": "fp8_block", "tp_size": "8", "moe_tp_size": "8"}, 32768),
        ({}, 8192),
    ],
)
def test_rows_of_a_step_are_those_of_the_launch_scripts(changed: dict[str, str], tokens: int) -> None:
    plain = dict(zip(WIDTHS, ("4", "1", "4", "1"), strict=True))
    row = only(**(plain | changed))
    assert isinstance(row, Row)
    assert row.step_tokens == tokens


@pytest.mark.parametrize(
    ("widths", "gpus", "setting"),
    [
        ("1 64 8 8", 8, Setting(8, 8, True)),
        ("4 4 1 16", 4, Setting(1, 4, True)),
        ("8 1 8 1", 8, Setting(1, 1, True)),
        ("1 4 1 4", 4, Setting(4, 4, True)),
    ],
)
def test_widths_by_hand(widths: str, gpus: int, setting: Setting) -> None:
    row = only(**dict(zip(WIDTHS, widths.split(), strict=True)))
    assert isinstance(row, Row)
    assert (row.gpus, row.setting) == (gpus, setting)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"mode": "disagg"}, "GPUs of their own"),
        ({"model_path": "nobody/nothing"}, "not described"),
        ({"gemm_quant_mode": "int4_wo"}, "weights in int4_wo"),
        ({"tp_size": "72", "moe_tp_size": "72", "moe_ep_size": "1"}, "no node has"),
        (
            {"silicon_data_source": "source_file=x.csv; silicon_concurrency=64; measured=2026-02-06"},
            "MTP may",
        ),
    ],
)
def test_what_is_left_out(changed: dict[str, str], why: str) -> None:
    assert why in str(only(**changed))


def test_a_measurement_counts_once_and_the_stated_plain_one_is_kept() -> None:
    again = PLAIN | {"id": "b", "silicon_data_source": "source_file=x.csv; measured=2026-02-03"}
    first, second = judge([again, PLAIN])
    assert isinstance(first, Row)
    assert first.id == "a"
    assert second == "the same measurement as another row"


@pytest.mark.parametrize(
    ("backend", "source", "host"),
    [
        ("vllm", "source_file=/Users/x/h200_sxm/vllm/0.12.0/Qwen.csv; silicon_concurrency=4", BLOCKING),
        ("vllm", "source_file=x.csv; measured=2026-01-16T00:00:00.000Z", BLOCKING),
        (
            "vllm",
            "source_file=x.csv; measured=2026-01-17T00:00:00.000Z; image=vllm/vllm-openai:v0.15.1",
            "vllm",
        ),
        ("vllm", "source_file=x.csv; silicon_concurrency=4", "vllm"),
        ("trtllm", "source_file=x.csv; measured=2025-10-29T00:00:00.000Z", "trtllm"),
    ],
)
def test_vllm_waits_for_its_host_before_it_schedules_ahead(backend: str, source: str, host: str) -> None:
    widths = dict(zip(WIDTHS, ("2", "1", "2", "1"), strict=True))
    row = only(
        model_path="Qwen/Qwen3-32B", backend=backend, silicon_data_source=source, gemm_quant_mode="",
        precision="bf16", **widths,
    )  # fmt: skip
    assert isinstance(row, Row)
    assert row.host == host


@pytest.mark.parametrize(
    ("path", "source", "scales"),
    [
        ("Qwen/Qwen3-32B", "source_file=/Users/x/trtllm/Qwen.csv", "computed"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "source_file=/Users/x/vllm/x.csv", None),
        ("meta-llama/Llama-3.1-70B", "source_file=x.csv; measured=2025-10-29", None),
    ],
)
def test_a_checkpoint_in_16_bits_has_no_scales_of_its_own(path: str, source: str, scales: str | None) -> None:
    widths = dict(zip(WIDTHS, ("2", "1", "2", "1"), strict=True))
    row = only(model_path=path, silicon_data_source=source, gemm_quant_mode="fp8", precision="fp8", **widths)
    assert isinstance(row, Row)
    assert (row.precision, row.setting.scales) == ("fp8", scales)


DECODING = {
    "mode": "disagg", "decode_num_workers": "3", "decode_batch_size": "21", "decode_tp_size": "8",
    "decode_attention_dp_size": "1", "decode_moe_ep_size": "8",
}  # fmt: skip


def test_a_replica_that_decodes_has_its_share_of_the_clients() -> None:
    """64 clients of three replicas of eight GPUs: 22 at most."""
    row = only(**DECODING)
    assert isinstance(row, Row)
    assert (row.elsewhere, row.gpus, row.concurrency) == (True, 8, 22)
    assert row.setting == Setting(1, 8, True)
    assert "does not say how many" in str(only(**DECODING | {"decode_num_workers": ""}))
    wide = only(**DECODING | {"decode_tp_size": "1", "decode_attention_dp_size": "128"})
    assert wide == "widths that no node has"


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({}, Setting(1, 1, True)),
        (DECODING, Setting(1, 8, True)),
        (DECODING | {"decode_num_workers": "1"}, Setting(8, 8, True)),
    ],
)
def test_experts_of_kimi_are_dealt_where_the_launch_scripts_deal_them(
    changed: dict[str, str], setting: Setting
) -> None:
    widths = dict(zip(WIDTHS, ("8", "1", "1", "8"), strict=True))
    row = only(**widths | {"model_path": "moonshotai/Kimi-K2.5", "backend": "vllm"} | changed)
    assert isinstance(row, Row)
    assert row.setting == setting


def test_clients_that_several_replicas_share_are_counted_by_the_batch_of_one() -> None:
    widths = dict(zip(WIDTHS, ("2", "1", "2", "1"), strict=True))
    source = "source_file=/x/data/gb200/trtllm/a.csv; silicon_concurrency=64; measured=2026-03-23"
    row = only(**widths, model_path="Qwen/Qwen3-32B", silicon_data_source=source, batch_size="16")
    assert isinstance(row, Row)
    assert (row.concurrency, row.ranged) == (16, False)


def test_a_source_that_rounds_counts_as_the_same_measurement() -> None:
    source = "source_file=kimi-k2.5-gap-analysis.csv; silicon_concurrency=64"
    again = PLAIN | {"id": "b", "silicon_data_source": source, "silicon_tpot_ms": "16.26"}
    assert judge([PLAIN, again])[1] == "the same measurement as another row"


def test_vllm_schedules_ahead_where_the_launch_script_asks_for_it() -> None:
    """Of gpt-oss they always did, long before 0.14."""
    widths = dict(zip(WIDTHS, ("2", "1", "2", "1"), strict=True))
    row = only(
        model_path="openai/gpt-oss-120b", backend="vllm", gemm_quant_mode="",
        silicon_data_source="source_file=x.csv; measured=2025-10-01", **widths,
    )  # fmt: skip
    assert isinstance(row, Row)
    assert (row.host, row.ranged) == ("vllm", True)
