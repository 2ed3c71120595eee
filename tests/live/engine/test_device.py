"""What a GPU would refuse to record, shown without one: on the meta device, which holds no data at all."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simulator.cost.models import ThroughputCurve
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.observed import ObservedScheduler
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.models.pairs import load_draft, new_dspark, new_mtp
from simulator.live.models.targets import Target, load_target
from simulator.schedulers.policies import DSparkAsync, Fixed, Threshold, Tiered
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget, skip_unless_known
from tests.live.engine.attention.test_ragged import KINDS
from tests.live.models.drafts.test_deepseek import a_checkpoint
from tests.support.deepseek_v4_draft import TINY


class StaysOnTheDevice(TorchDispatchMode):
    """Refuses every operation that reads or makes a tensor of the host.

    On a GPU each of these is a copy to or from the device, which a CUDA graph cannot contain. What asks a
    tensor for its value fails by itself: tensors of this device have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == "meta", f"{operation} touches the host"
        self.operations += 1
        return result


def on_meta(make_target: MakeTarget, architecture: str, drafter: str) -> tuple[Target, Any]:
    skip_unless_known(architecture)
    target = make_target(architecture, **(KINDS[architecture] if "gemma" in architecture else {}))
    draft: Any = {
        "dspark": lambda: new_dspark(target, mask_token_id=5, block_size=4, num_layers=2, markov_rank=4),
        "mtp1": lambda: new_mtp(target),
        "none": lambda: None,
    }[drafter]()
    if draft is not None:
        draft.to("meta")
    return Target(target.model.to("meta"), target.name), draft


@pytest.fixture
def meta_like_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no random numbers and, in some versions, no autocast: neither is on trial."""
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: make())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("meta_like_a_device")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["dspark", "mtp1", "none"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma4_text"])
def test_a_steps_passes_can_be_recorded(
    make_target: MakeTarget, architecture: str, drafter: str, temperature: float
) -> None:
    target, draft = on_meta(make_target, architecture, drafter)
    load = Workload.single_class(None, np.full(8, 100), np.full(8, 20))
    executor = LiveExecutor(
        target, draft, load, concurrency=8, prompts=random_prompts(64, 0),
        options=LiveOptions(temperature=temperature),
    )  # fmt: skip
    with StaysOnTheDevice() as seen:
        if draft is not None:
            executor.passes.draft(8, 16, 256)
        executor.passes.verify(8, 32, 256, executor.gamma + 1)
    assert seen.operations > 100


@pytest.mark.usefixtures("meta_like_a_device")
def test_experts_and_latents_of_a_target_and_its_mtp_module_can_be_recorded(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    target = load_target(folder, dtype=torch.bfloat16)
    if getattr(target.config, "_experts_implementation", None) != "grouped_mm":
        pytest.skip("this transformers or torch has no grouped product: experts run one by one, by the host")
    draft: Any = load_draft(folder, dtype=torch.bfloat16, gamma=3)
    draft.to("meta")
    load = Workload.single_class(None, np.full(8, 100), np.full(8, 20))
    executor = LiveExecutor(
        Target(target.model.to("meta"), target.name), draft, load, concurrency=8,
        prompts=random_prompts(64, 0),
    )  # fmt: skip
    with StaysOnTheDevice() as seen:
        executor.passes.draft(8, 16, 256)
        executor.passes.verify(8, 32, 256, 4)
    assert seen.operations > 100


@pytest.mark.usefixtures("meta_like_a_device")
def test_streams_and_windows_of_v4s_draft_can_be_recorded(make_target: MakeTarget, tmp_path: Path) -> None:
    skip_unless_known("deepseek_v4")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    draft: Any = load_draft(tmp_path, config_only=True, device="meta")
    experts = draft.layers[0].mlp.experts
    if getattr(experts.config, "_experts_implementation", None) != "grouped_mm":
        pytest.skip("this transformers or torch has no grouped product: experts run one by one, by the host")
    target = make_target("qwen3")
    meta = Target(target.model.to("meta").bfloat16(), target.name)
    load = Workload.single_class(None, np.full(8, 100), np.full(8, 20))
    executor = LiveExecutor(meta, draft, load, concurrency=8, prompts=random_prompts(64, 0))
    with StaysOnTheDevice() as seen:
        executor.passes.draft(8, 16, 256)
    assert seen.operations > 100


@pytest.mark.parametrize("scheduler", [DSparkAsync(), Fixed(3), Threshold(0.5), Tiered((0, 2, 4))])
def test_allocation_never_waits_where_the_budget_is_known_or_not_needed(scheduler: Any) -> None:
    survival = torch.zeros((8, 4), device="meta")
    lagged = np.linspace(0.9, 0.2, 4, dtype=np.float32)[None].repeat(8, 0) if scheduler.lag else None
    batch = Batch(ThroughputCurve([1, 64], [100.0, 10.0]), lagged=lagged)
    with StaysOnTheDevice() as seen:
        lengths = ObservedScheduler(scheduler).schedule(survival, batch)
    assert lengths.device.type == "meta"
    assert seen.operations > 0


def test_the_check_notices_the_host() -> None:
    device = torch.zeros(3, device="meta")
    with StaysOnTheDevice(), pytest.raises(AssertionError, match="touches the host"):
        device + torch.tensor([1.0, 2.0, 3.0]).to("meta")
    with StaysOnTheDevice(), pytest.raises(RuntimeError):
        device.sum().item()
