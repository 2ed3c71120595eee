"""What an engine adds to kernels: its host's time, by hand, and the chunk of its own defaults."""

from __future__ import annotations

import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.deployment.profile_parts import AdditiveSpec
from simulator.hardware.choose import Hardware, profile_for
from simulator.hardware.engines import HOSTS, Host, as_served, chunk_tokens, kind_of, parse_host, prefills
from simulator.hardware.gpus import load_gpu
from simulator.hardware.models import load_model
from simulator.hardware.steps.kernel_modes import ENGINES

KERNELS = load_profile("kernels/h100/qwen3-8b-tp1-bf16")
H100 = load_gpu("h100")


def test_a_step_and_a_pass_of_a_drafter_wait_for_the_host() -> None:
    """1 ms a step; three passes of a drafter that takes 0.2 ms of host each."""
    served = as_served(KERNELS, "vllm", H100, Host(1e-3, 0.2e-3, "as given"))
    for rows in (8, 64):
        before, after = (each.target_cost().step_time_s(8, rows, 8192) for each in (KERNELS, served))
        assert after - before == pytest.approx(1e-3, rel=1e-9)
    for name, passes in (("mtp1", 1), ("dspark", 1)):
        first, then = KERNELS.draft_cost(name), served.draft_cost(name)
        assert first is not None
        assert then is not None
        assert then.time_s(8, None, 8192) - first.time_s(8, None, 8192) == pytest.approx(passes * 0.2e-3)
    assert "host time 1.00 ms a step, 0.20 ms a pass of a drafter: as given" in str(served.provenance.notes)


def test_each_request_in_a_step_adds_its_share() -> None:
    """20 us a request beside 1 ms a step: 1.02 ms with one, 2.28 with 64, more beyond all probes."""
    served = as_served(KERNELS, "vllm", H100, Host(1e-3, 0.0, "as given", request_s=20e-6))
    for requests in (1, 64, 612):
        before, after = (
            each.target_cost().step_time_s(requests, requests, 8192) for each in (KERNELS, served)
        )
        assert after - before == pytest.approx(1e-3 + 20e-6 * requests, rel=1e-6)


def test_prompts_are_dearer_by_a_share_of_their_kernels() -> None:
    """A fifth dearer: 8,192 rows of prompts take a fifth more; a pool is slower."""
    step = KERNELS.step
    assert isinstance(step, AdditiveSpec)
    served = as_served(KERNELS, "vllm", H100, Host(0.0, 0.0, "as given", prompts=0.2))
    plain, dearer = (each.target_cost().step_time_s(4, 8196, 4096, 8192) for each in (KERNELS, served))
    half = KERNELS.target_cost().step_time_s(4, 516, 4096, 512)
    each_s = (plain - half) / 7680
    assert dearer - plain == pytest.approx(0.2 * 8192 * each_s, rel=0.02)
    assert served.target_cost().step_time_s(4, 4, 4096) == KERNELS.target_cost().step_time_s(4, 4, 4096)
    assert KERNELS.prefill_tokens_per_s is not None
    assert served.prefill_tokens_per_s == pytest.approx(KERNELS.prefill_tokens_per_s / 1.2)
    assert "prompts 20% dearer than their kernels" in str(served.provenance.notes)


@pytest.mark.parametrize(
    ("model", "precision", "kind"),
    [
        ("qwen3-32b", "bf16", "16 bits"), ("qwen3-32b", "fp8", "fewer bits"),
        ("gpt-oss-20b", "fp4", "fewer bits"), ("deepseek-v3", "fp8", "latent"),
        ("deepseek-v4-flash", "fp4", "latent"),
    ],
)  # fmt: skip
def test_kinds_of_models(model: str, precision: str, kind: str) -> None:
    assert kind_of(load_model(model), precision) == kind  # type: ignore[arg-type]


def test_every_engine_says_where_its_host_time_is_from() -> None:
    assert set(HOSTS) == set(ENGINES)
    for kinds in HOSTS.values():
        assert set(kinds) == {"16 bits", "fewer bits", "latent"}
        for host in kinds.values():
            assert host.source
            assert min(host.step_s, host.pass_s, host.request_s, host.prompts) >= 0


def test_what_is_asked_for_overrides_the_engine() -> None:
    asked = Hardware(model="qwen3-8b", gpu="h100", host_time="0ms")
    assert profile_for(asked).profile.step == KERNELS.step
    assert parse_host("1.2ms,300us") == Host(1.2e-3, 3e-4, "as given")
    for wrong in ("1.2", "-1ms", "1ms,2ms,3ms"):
        with pytest.raises(BadInputError, match="host_time"):
            parse_host(wrong)


@pytest.mark.parametrize(
    ("engine", "gpu", "tokens"),
    [
        ("vllm", "h100", 8192), ("vllm", "a100", 2048), ("vllm", "l40s", 2048), ("vllm", "mi300x", 8192),
        ("sglang", "l40s", 4096), ("sglang", "h200", 8192), ("sglang", "b200", 16384),
        ("trtllm", "b200", 8192),
    ],
)  # fmt: skip
def test_the_chunk_is_the_engines_default(engine: str, gpu: str, tokens: int) -> None:
    assert chunk_tokens(engine, load_gpu(gpu)) == tokens  # type: ignore[arg-type]
    shared = engine == "sglang"
    assert chunk_tokens(engine, load_gpu(gpu), 4) == tokens * (1 if shared else 4)  # type: ignore[arg-type]


def test_the_chunk_reaches_the_engine_unless_it_is_given() -> None:
    made = deploy(
        profile_for(Hardware(model="qwen3-8b", gpu="mi300x", engine="sglang")).profile, ["length:3@7"]
    )
    assert made.limits(8, prefill="chunked").chunk_tokens == 16384
    assert made.limits(8, prefill="chunked", chunk_tokens=512).chunk_tokens == 512
    assert deploy(KERNELS, ["length:3@7"]).limits(8, prefill="chunked").chunk_tokens == 2048


def test_sglang_alone_prefills_between_decode_steps() -> None:
    assert {each: prefills(each) for each in HOSTS} == {
        "vllm": "chunked", "sglang": "whole", "trtllm": "chunked",
    }  # fmt: skip


def test_tensorrt_runs_on_nvidia_alone() -> None:
    with pytest.raises(BadInputError, match="does not run on AMD Instinct MI300X"):
        profile_for(Hardware(model="qwen3-8b", gpu="mi300x", engine="trtllm"))
