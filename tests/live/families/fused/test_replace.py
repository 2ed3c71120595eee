"""Targets and drafts whose norms, rotations, gates and sums are replaced: equal, in fewer operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.engine.limits import EngineLimits
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.families.fused import operators, replace
from simulator.live.models.checkpoints import Fields
from simulator.live.models.drafts.dspark import DSparkConfig, DSparkDraft
from simulator.live.models.pairs import new_dspark, new_eagle3, new_mtp
from simulator.live.profiling.bench import Bench
from simulator.live.profiling.conditions import conditions_of
from simulator.live.profiling.counted import operations
from simulator.live.profiling.grid import ProfileOptions
from simulator.schedulers.policies import Fixed
from simulator.traffic.workload import Workload
from tests.live.conftest import MakeTarget, randomise, skip_unless_known
from tests.live.engine.attention.test_ragged import KINDS, fill
from tests.live.engine.test_executor import prompts, serve, workload
from tests.live.models.drafts.test_dspark_v4 import shaped
from tests.live.models.drafts.test_released import DSPARK, GEMMA
from tests.support.deepseek_v4_draft import TINY

TOKENS = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))

PASSES = 3
"""Of ``output_of``: two fill the cache, one for each request."""


def output_of(ragged: RaggedTarget) -> torch.Tensor:
    """Logits of 2 rows behind 12 positions, and 5 behind 3."""
    rows = RaggedRows.of(torch.tensor([2, 5]), torch.tensor([12, 3]), 7, block=5, context=14)
    tokens = torch.cat((TOKENS[0, 12:14], TOKENS[1, 3:8]))
    return ragged.forward(tokens, [rows], fill(ragged, TOKENS, [12, 3])).logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_own_output(make_target: MakeTarget, kind: str) -> None:
    skip_unless_known(kind)
    target = make_target(kind, **KINDS[kind])
    fused = RaggedTarget(target, fuse=True)
    own = torch.cat((target.forward(TOKENS[:1, :14]).logits[0, 12:],
                     target.forward(TOKENS[1:, :8]).logits[0, 3:]))  # fmt: skip
    torch.testing.assert_close(output_of(fused), own, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        ("qwen3", "gate, norm, residual, rotation"), ("llama", "gate, norm, residual, rotation"),
        ("mixtral", "norm, residual, rotation"),
        ("gemma3_text", "rotation"),  # its norms add one to the weight, its gate is GELU
        ("starcoder2", "rotation"), ("cohere2", "gate"),  # cohere turns neighbours, not halves
    ],
)  # fmt: skip
def test_only_what_is_equal_is_replaced(make_target: MakeTarget, kind: str, fused: str) -> None:
    target = make_target(kind, **KINDS[kind])
    if not hasattr(target.layers[0], "mlp"):  # older transformers call Mixtral's experts otherwise
        fused = fused.replace("residual, ", "")
    assert replace.names(RaggedTarget(target, fuse=True).replaced) == fused
    assert replace.names(RaggedTarget(target).replaced) == "nothing"  # on a CPU, unless asked for


def test_sums_with_a_factor_stay_as_they_are(make_target: MakeTarget) -> None:
    fields = KINDS["granite"]
    plain, scaled = (make_target("granite", **fields, residual_multiplier=factor) for factor in (1.0, 0.5))
    assert "residual" in replace.names(RaggedTarget(plain, fuse=True).replaced)
    assert replace.names(RaggedTarget(scaled, fuse=True).replaced) == "gate, norm, rotation"


@pytest.mark.parametrize(("dtype", "norm"), [(torch.float32, 6), (torch.bfloat16, 8)])
def test_a_layer_has_so_many_operations_less(make_target: MakeTarget, dtype: torch.dtype, norm: int) -> None:
    """A norm is six operations, and two more that change the type; a rotation five, a gate two.

    One sum is part of a norm's operation, the other of the product before it.
    """
    target = make_target()
    target.model.to(dtype)
    plain, fused = RaggedTarget(target, fuse=False), RaggedTarget(target, fuse=True)
    saved = operations(lambda: output_of(plain)) - operations(lambda: output_of(fused))
    layer = 4 * (norm - 1) + 2 * (5 - 1) + (2 - 1) + 2
    assert saved == PASSES * (target.num_layers * layer + norm - 1)  # the last norm is behind the layers


def test_the_target_itself_stays_as_it_was(make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target()
    before = target.forward(TOKENS).logits
    ragged = RaggedTarget(target, fuse=True)
    calls: list[Any] = []
    for name in ("rms_norm", "sum_norm"):
        own = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *given, own=own: calls.append(1) or own(*given))
    output_of(ragged)
    assert len(calls) == PASSES * (4 * 4 + 1)
    assert torch.equal(target.forward(TOKENS).logits, before)
    assert len(calls) == PASSES * (4 * 4 + 1)
    with pytest.raises(KeyError), replace.installed(ragged.replaced):
        raise KeyError
    assert torch.equal(target.forward(TOKENS).logits, before)
    assert len(calls) == PASSES * (4 * 4 + 1)


DRAFTS = {
    "DSpark": lambda target, folder: new_dspark(target, mask_token_id=5, num_layers=2, markov_rank=4),
    "MTP": lambda target, folder: new_mtp(target, block_size=3),
    "Eagle3": lambda target, folder: new_eagle3(target, ttt_length=3),
    "DSpark for Gemma 4": lambda target, folder: DSparkDraft(
        DSparkConfig.from_fields(Fields(GEMMA | DSPARK, "a test"))
    ),
    "DSpark of V4": lambda target, folder: shaped(TINY, folder),
}
REPLACED = {
    "DSpark for Gemma 4": "norm, rotation",  # its gate is GELU, its sums are of norms
    "DSpark of V4": "norm, rotation",  # its sums are others, and of the rotation it takes the angles alone
}


@pytest.mark.parametrize("kind", DRAFTS)
def test_every_draft_gives_its_own_proposal(make_target: MakeTarget, kind: str, tmp_path: Path) -> None:
    target = make_target()
    draft = DRAFTS[kind](target, tmp_path)
    randomise(draft, 7, 0.2)
    for name, buffer in draft.named_buffers():
        if "layer_scalar" in name:
            buffer.fill_(0.7)
    replaced = replace.replacements(draft, True)
    assert replace.names(replaced) == REPLACED.get(kind, "gate, norm, residual, rotation")
    assert replace.replacements(draft, None) == []  # on a CPU, unless asked for
    features = target.forward(TOKENS[:, :9], layer_ids=draft.target_layer_ids).features.flatten(0, 1)

    def proposal() -> torch.Tensor:
        counts, following = torch.tensor([9, 9]), TOKENS[:, 1:10].flatten()
        return draft.propose(features, following, counts, draft.new_cache(2, 20)).logits

    own, plain = proposal(), operations(proposal)
    with replace.installed(replaced):
        torch.testing.assert_close(proposal(), own, atol=2e-4, rtol=1e-3)
        assert operations(proposal) < plain
    assert torch.equal(proposal(), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_drafts_layer_has_so_many_operations_less(make_target: MakeTarget, dtype: torch.dtype) -> None:
    """In a layer: norms of inputs, queries, keys and their context, and one with a sum; three rotations."""
    target = make_target()
    target.model.to(dtype)

    def saved(layers: int) -> int:
        draft = new_dspark(target, mask_token_id=5, num_layers=layers, markov_rank=4)
        draft.requires_grad_(False)
        load = Workload.single_class(None, np.full(4, 20), np.full(4, 20))
        counts = [
            operations(lambda run=run: run.passes.draft(4, 8, 64))
            for run in (
                LiveExecutor(target, draft, load, concurrency=4, prompts=random_prompts(64, 0),
                             options=LiveOptions(fuse=fuse))
                for fuse in (False, True)
            )
        ]  # fmt: skip
        return counts[0] - counts[1]

    own, x = torch.nn.RMSNorm(16, dtype=dtype).requires_grad_(False), torch.ones(2, 16, dtype=dtype)
    norm = operations(lambda: own(x))
    assert saved(3) - saved(2) == 5 * (norm - 1) + 3 * (5 - 1) + (2 - 1) + 2


class _Layer(torch.nn.Module):
    """A layer as transformers writes them, whose attention may get something of its own."""

    def __init__(self, target: Any, changes: bool) -> None:
        super().__init__()
        own = target.layers[0]
        self.input_layernorm, self.self_attn, self.mlp = own.input_layernorm, own.self_attn, own.mlp
        self.post_attention_layernorm, self.changes = own.post_attention_layernorm, changes

    def forward(self, hidden_states: torch.Tensor, mask: Any = 7, **more: Any) -> torch.Tensor:
        given = more | {"mask": (mask, 1) if self.changes else mask}
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **given)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def test_attention_gets_what_its_layer_would_have_handed_on(
    make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target()
    layer = _Layer(target, changes=False)
    (fused,) = [new for owner, _, new in replace.replacements(layer, True) if owner is layer]
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        layer.self_attn, "forward", lambda hidden_states, **given: seen.append(given) or (hidden_states, None)
    )
    x = torch.ones(1, 3, 32)
    fused(x)
    fused(x, mask=None, ragged="rows")
    assert seen == [{"mask": 7}, {"mask": None, "ragged": "rows"}]
    changing = replace.replacements(_Layer(target, changes=True), True)
    assert not [each for each in changing if isinstance(each[0], _Layer)]


def test_a_drafts_pieces_run_fused_in_the_engine(make_target: MakeTarget) -> None:
    target = make_target()
    draft = new_dspark(target, mask_token_id=5, block_size=4, num_layers=2, markov_rank=4)
    load, outputs = workload(3, seed=4), {}
    for fuse in (False, True):
        executor = LiveExecutor(
            target, draft, load, concurrency=2, prompts=prompts,
            options=LiveOptions(keep_tokens=True, fuse=fuse),
        )  # fmt: skip
        assert serve(executor, Fixed(4), load, EngineLimits(2)).completed == 3
        outputs[fuse] = executor.outputs
    assert outputs[True] == outputs[False]


def test_what_is_asked_of_a_command_reaches_the_engine(make_target: MakeTarget) -> None:
    target = make_target()
    for fuse, passed in ((True, None), (False, False)):
        bench = Bench(target, None, 2, 16, ProfileOptions(fuse=fuse))
        assert bench.executor.options.fuse is passed
    executor = bench.executor
    assert executor.passes.ragged.replaced == []
    assert conditions_of(target, attention="auto", graphs=True)["fused"] == "nothing"
