"""What fits, by hand."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.hardware.choose import Hardware
from simulator.hardware.gpus import catalogue, load_gpu
from simulator.hardware.memory import layout, layouts, required_layout, smallest_layout
from simulator.hardware.models import catalogue as models
from simulator.hardware.models import load_model
from simulator.traffic.lengths import longest_request, parse_lengths

QWEN32, H100 = load_model("qwen3-32b"), load_gpu("h100")


def test_every_gpu_says_where_its_numbers_come_from() -> None:
    assert {"a100", "h100", "h200", "b200", "mi300x", "mi325x", "mi350x"} <= set(catalogue())
    for gpu in catalogue().values():
        assert gpu.source
        assert (gpu.price_per_hour is None) == (gpu.price_source is None)
    with pytest.raises(BadInputError, match="did you mean h100"):
        load_gpu("h10")


def test_capacity_by_hand() -> None:
    """80 GiB, of which 90% are taken, 3.5 GiB reserved, and 65.5 GB of weights."""
    room = 0.9 * 80 * 2**30 - 3.5 * 2**30 - QWEN32.weight_bytes("bf16")
    each = 2 * 64 * 8 * 128 * 2
    assert layout(QWEN32, H100, 1, "bf16").kv_tokens == int(room / each)
    assert layout(QWEN32, H100, 1, "bf16", drafter_bytes=2**30).kv_tokens == int((room - 2**30) / each)


def test_weights_by_hand() -> None:
    """gpt-oss-120b: experts in MXFP4, the rest in 16 bits: its checkpoint has about 61 GiB."""
    assert load_model("gpt-oss-120b").weight_bytes("fp4") / 2**30 == pytest.approx(60.8, rel=0.02)
    assert load_model("deepseek-v3").weight_bytes("fp8") / 1e9 == pytest.approx(671, rel=0.01)
    flash = load_model("deepseek-v4-flash")  # experts in MXFP4, attention in 8 bits, tables in 16
    experts, tables = 43 * 256 * 3 * 4096 * 2048, 2 * 129280 * 4096
    rest = flash.parameters - experts - tables
    assert flash.weight_bytes("fp4") == pytest.approx(experts * 17 / 32 + rest + 2 * tables, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "gpu", "precision", "gpus"),
    [
        ("qwen3-8b", "h100", "bf16", 1), ("llama-3.1-70b", "h100", "bf16", 2),
        ("llama-3.1-70b", "h200", "bf16", 2), ("llama-3.1-70b", "h100", "fp8", 2),
        ("deepseek-v3", "h200", "fp8", 8), ("llama-3.1-405b", "b200", "fp8", 4),
    ],
)  # fmt: skip
def test_the_smallest_layout(model: str, gpu: str, precision: str, gpus: int) -> None:
    found = smallest_layout(load_model(model), load_gpu(gpu), precision)  # type: ignore[arg-type]
    assert found.gpus == gpus


def test_a_default_layout_holds_the_longest_default_request() -> None:
    """14,050 prompt and 1,000 output tokens are the most that Azure's trace has; a block of 7 comes on top.

    Qwen3-32B leaves 12,026 tokens on one H100 (``test_capacity_by_hand``) and 292,602 on two: 61.1 GiB and a
    drafter of 4.5 are halved, 256 KiB a token too.
    """
    longest = sum(longest_request(parse_lengths("default")))
    assert 14_000 < longest <= 15_050
    for name in models():
        for gpu in catalogue():
            with suppress(InfeasibleError):
                assert Hardware(model=name, gpu=gpu).layout().kv_tokens >= longest + 7, (name, gpu)
    asked = Hardware(model="qwen3-32b", gpu="h100")
    assert asked.layout().gpus == 2
    assert replace(asked, tp=1).layout().kv_tokens == 12_026  # who asks for it gets it


@pytest.mark.parametrize(("longest", "gpus"), [(1_000, 2), (290_000, 2), (293_000, 4)])
def test_a_default_layout_holds_the_request_that_is_named(longest: int, gpus: int) -> None:
    assert Hardware(model="qwen3-32b", gpu="h100", longest=longest).layout().gpus == gpus


def test_a_request_lies_within_one_group() -> None:
    """16 groups hold 1.8 million tokens of DeepSeek-V3 on H100, 113,000 each."""
    model = load_model("deepseek-v3")
    assert required_layout(model, H100, None, "fp8", dp=16, longest=100_000).label == "tp1-dp16-ep16"
    assert required_layout(model, H100, None, "fp8", dp=16, longest=200_000).label == "tp2-dp16-ep32"


def test_a_request_beyond_its_group_is_refused_where_widths_are_named() -> None:
    """All 16 groups together hold 1.8 million tokens, but no request is spread over them."""
    asked = Hardware(model="deepseek-v3", gpu="h100", precision="fp8", tp=1, dp=16, longest=100_000)
    assert asked.layout().label == "tp1-dp16-ep16"
    with pytest.raises(
        BadInputError, match=r"16 groups hold .* each, and a request of 200,000 lies"
    ) as caught:
        replace(asked, longest=200_000).layout()
    assert caught.value.field == "dp"


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(["bf16", "fp8"]))
def test_more_gpus_hold_more(gpus: int, precision: str) -> None:
    one = layout(QWEN32, H100, gpus, precision)  # type: ignore[arg-type]
    two = layout(QWEN32, H100, 2 * gpus, precision)  # type: ignore[arg-type]
    assert two.kv_tokens > one.kv_tokens
    assert all(each.fits for each in layouts(QWEN32, H100, precision))  # type: ignore[arg-type]


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(InfeasibleError, match=r"does not fit; 2 of them hold it \(`tp` 2\)"):
        required_layout(load_model("llama-3.1-70b"), H100, 1, "bf16")
    with pytest.raises(InfeasibleError, match="does not fit on 16 x NVIDIA L40S") as caught:
        smallest_layout(load_model("deepseek-v3"), load_gpu("l40s"), "bf16")
    # Weights of 671e9: 332 GiB in fp4, of 16 x 37 usable ones; 1,250 GiB in bf16, of 8 x 158.5 on B200.
    assert caught.value.changes[:2] == ("16 x l40s in fp4", "8 x b200")
    with pytest.raises(BadInputError, match="power of two"):
        layout(QWEN32, H100, 3, "bf16")
    with pytest.raises(BadInputError, match="does not divide the 40 attention heads"):
        layout(load_model("qwen3-14b"), H100, 16, "bf16")


def test_groups_with_attention_of_their_own_repeat_all_but_experts() -> None:
    """DeepSeek-V3 in 8 bits on 16 H100: 58 layers of 256 experts dealt, the rest on each."""
    model = load_model("deepseek-v3")
    experts = 58 * 256 * 3 * 7168 * 2048
    rest = model.parameters - experts + model.vocabulary * model.hidden * 2  # tables in 16 bits
    found = layout(model, H100, 16, "fp8", dp=16, ep=16)
    assert (found.tp, found.label) == (1, "tp1-dp16-ep16")
    assert found.weight_bytes == pytest.approx(experts / 16 + rest, rel=1e-9)
    room = 0.9 * 80 * 2**30 - 3.5 * 2**30 - found.weight_bytes
    assert found.kv_tokens == 16 * int(room / (61 * (512 + 64) * 2))
    halves = layout(model, H100, 16, "fp8", dp=2, ep=1)
    assert halves.weight_bytes == pytest.approx(experts / 16 + rest / 8, rel=1e-9)
    assert halves.label == "tp8-dp2"
    assert layout(model, H100, 16, "fp8").label == "tp16"


def test_the_smallest_group_that_fits_is_found() -> None:
    model = load_model("deepseek-v3")
    assert required_layout(model, H100, None, "fp8", dp=16).label == "tp1-dp16-ep16"
    assert required_layout(model, load_gpu("h200"), None, "fp8", dp=2).label == "tp4-dp2-ep8"
    assert required_layout(model, load_gpu("h200"), None, "fp8", ep=8).label == "tp8-ep8"
    with pytest.raises(InfeasibleError, match=r"on each of 2 x .* \(tp1-dp2-ep2\) and does not fit"):
        required_layout(model, H100, 1, "fp8", dp=2)


@pytest.mark.parametrize(
    ("model", "widths", "field"),
    [
        ("qwen3-32b", {"dp": 2}, "dp"), ("qwen3-32b", {"ep": 2}, "ep"), ("deepseek-v3", {"dp": 3}, "tp"),
        ("deepseek-v3", {"dp": 8, "ep": 16}, "ep"), ("deepseek-v3", {"dp": 8, "ep": 0}, "ep"),
    ],
)  # fmt: skip
def test_groups_and_dealt_experts_that_cannot_be_are_refused(
    model: str, widths: dict[str, int], field: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        layout(load_model(model), H100, 8, "fp8", **widths)  # type: ignore[arg-type]
    assert caught.value.field == field
