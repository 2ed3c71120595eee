"""What an engine adds to kernels: its host's time, by hand, and the chunk of its own defaults."""

from __future__ import annotations

import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.hardware.choose import Hardware, profile_for
from simulator.hardware.engines import HOSTS, Host, as_served, chunk_tokens, parse_host, prefills
from simulator.hardware.gpus import load_gpu
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


def test_every_engine_says_where_its_host_time_is_from() -> None:
    assert set(HOSTS) == set(ENGINES)
    for host in HOSTS.values():
        assert host.source
        assert host.step_s >= 0


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
