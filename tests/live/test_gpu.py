"""What only a CUDA device can show: kernels, graphs per tier, no waiting inside a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from simulator.cost.models import ThroughputCurve
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.live.engine.attention.kernels import KERNELS, plain, sdpa, split, varlen
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.families.fused import replace
from simulator.live.models.pairs import new_dspark
from simulator.live.models.targets import Target
from simulator.schedulers.policies import DSpark, DSparkAsync, Fixed
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CURVE = ThroughputCurve([1, 8, 9, 64], [100.0, 99.0, 80.0, 40.0])


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    made = make_target(hidden_size=256, head_dim=64, intermediate_size=512, spread=0.05)
    return Target(made.model.to("cuda", torch.bfloat16), made.name)


@pytest.fixture(scope="module")
def draft(target: Any) -> Any:
    return new_dspark(target, mask_token_id=5, block_size=7, num_layers=2, markov_rank=8)


def workload(requests: int = 24) -> Workload:
    draw = np.random.default_rng(0)
    return Workload.single_class(None, draw.integers(4, 200, requests), draw.integers(2, 60, requests))


@pytest.mark.parametrize("kernel", [sdpa, varlen, split], ids=["sdpa", "varlen", "split"])
def test_kernels_agree_with_the_plain_softmax(target: Any, kernel: Any) -> None:
    ragged = RaggedTarget(target, "auto")
    if kernel is varlen and ragged.kernel_name != "varlen":
        pytest.skip("this PyTorch has no paged variable-length attention for this device")
    if kernel is split:  # wherever there is a CUDA device and Triton it must compile, or nothing is gained
        assert ragged.draft_kernel_name == "split"
    draw = torch.Generator("cuda").manual_seed(0)
    counts = torch.tensor([8, 1, 3, 0, 5], device="cuda")
    starts = torch.tensor([500, 0, 255, 0, 31], device="cuda")
    rows = RaggedRows.of(counts, starts, 20, block=8, context=512)
    shape = (6, 512, ragged.kv_heads, ragged.head_dim)
    keys, values = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=draw) for _ in "kv")
    query = torch.randn(
        (20, ragged.heads, ragged.head_dim), device="cuda", dtype=torch.bfloat16, generator=draw
    )
    arguments = (query, keys, values, rows, ragged.head_dim**-0.5, None)
    torch.testing.assert_close(kernel(*arguments)[:17], plain(*arguments)[:17], atol=2e-2, rtol=2e-2)
    assert set(KERNELS) == {"sdpa", "varlen", "split", "explicit", "plain"}


def test_fused_norms_rotation_and_gates_are_the_targets_own(target: Any) -> None:
    fused, plain_ = RaggedTarget(target), RaggedTarget(target, fuse=False)
    assert replace.names(fused.replaced) == "gate, norm, rotation"
    tokens = torch.arange(40, device="cuda") % target.vocab_size
    rows = RaggedRows.of(torch.tensor([40], device="cuda"), torch.tensor([0], device="cuda"), 40,
                         block=40, context=40)  # fmt: skip
    logits = [each.forward(tokens, [rows], each.new_cache(1, 64)).logits.float() for each in (fused, plain_)]
    # Roundings of bfloat16, 2^-8 each, that fall differently in some forty places of a layer.
    atol = 40 * target.num_layers * 2**-8 * float(logits[1].std())
    torch.testing.assert_close(logits[0], logits[1], atol=atol, rtol=0)
    assert (logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean() > 0.9


def run(target: Any, draft: Any, scheduler: Any, **options: Any) -> LiveExecutor:
    executor = LiveExecutor(
        target, draft, workload(), concurrency=8, prompts=random_prompts(target.vocab_size, 0),
        options=LiveOptions(keep_tokens=True, **options),
    )  # fmt: skip
    run_engine(workload(), executor, executor.observe(scheduler), CURVE, EngineLimits(8), steps=60)
    return executor


@pytest.mark.parametrize("scheduler", [Fixed(7), DSpark(), DSparkAsync()], ids=["fixed", "dspark", "async"])
def test_graphs_give_what_eager_passes_give(target: Any, draft: Any, scheduler: Any) -> None:
    tiers = Tiers.for_cuda(64, 8, 512)
    recorded = run(target, draft, scheduler, tiers=tiers)
    assert recorded.passes.captured.recorded > 0
    eager = run(target, draft, scheduler, tiers=tiers, graphs=False)
    assert recorded.outputs == eager.outputs
    assert all(timing.padded_tokens >= timing.batch_tokens for timing in recorded.timings)


def test_an_asynchronous_step_waits_for_the_device_once(target: Any, draft: Any) -> None:
    """Between draft and commit nothing may synchronise; torch reports each operation that would."""
    executor = run(target, draft, DSparkAsync(), tiers=Tiers.for_cuda(64, 8, 512))
    executor.pretend(8, 100)
    lengths = torch.full((8,), 3, dtype=torch.int64, device="cuda")
    observed = executor.observe(Fixed(3))
    observed.draft_budget = 24
    executor.draft(8)
    executor.verify(lengths, 0.0)  # records what it needs
    executor.pretend(8, 100)
    torch.cuda.set_sync_debug_mode("error")
    try:
        executor.draft(8)
        executor.verify(lengths, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_event_times_fit_into_the_step(target: Any, draft: Any) -> None:
    executor = run(target, draft, DSparkAsync(), tiers=Tiers.for_cuda(64, 8, 512))
    for timing in [timing for timing in executor.timings if not timing.capture_s]:
        assert 0 < timing.draft_s + timing.visible_schedule_s + timing.verify_s <= timing.duration_s * 1.05
