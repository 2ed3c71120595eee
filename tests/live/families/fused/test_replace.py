"""Targets whose norms, rotation and gates are replaced: the model's own output, with fewer operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.families.fused import operators, replace
from simulator.live.profiling.bench import Bench
from simulator.live.profiling.conditions import conditions_of
from simulator.live.profiling.counted import operations
from simulator.live.profiling.grid import ProfileOptions
from tests.live.conftest import MakeTarget, skip_unless_known
from tests.live.engine.attention.test_ragged import KINDS, fill

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
        ("qwen3", "gate, norm, rotation"), ("llama", "gate, norm, rotation"), ("mixtral", "norm, rotation"),
        ("gemma3_text", "rotation"),  # its norms add one to the weight, its gate is GELU
        ("starcoder2", "rotation"), ("cohere2", "gate"),  # cohere turns neighbours, not halves
    ],
)  # fmt: skip
def test_only_what_is_equal_is_replaced(make_target: MakeTarget, kind: str, fused: str) -> None:
    target = make_target(kind, **KINDS[kind])
    assert replace.names(RaggedTarget(target, fuse=True).replaced) == fused
    assert replace.names(RaggedTarget(target).replaced) == "nothing"  # on a CPU, unless asked for


@pytest.mark.parametrize(("dtype", "norm"), [(torch.float32, 6), (torch.bfloat16, 8)])
def test_a_layer_has_so_many_operations_less(make_target: MakeTarget, dtype: torch.dtype, norm: int) -> None:
    """A norm is six operations, and two more that change the type; a rotation five, a gate two."""
    target = make_target()
    target.model.to(dtype)
    plain, fused = RaggedTarget(target, fuse=False), RaggedTarget(target, fuse=True)
    saved = operations(lambda: output_of(plain)) - operations(lambda: output_of(fused))
    layer = 4 * (norm - 1) + 2 * (5 - 1) + (2 - 1)
    assert saved == PASSES * (target.num_layers * layer + norm - 1)  # the last norm is behind the layers


def test_the_target_itself_stays_as_it_was(make_target: MakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target()
    before = target.forward(TOKENS).logits
    ragged = RaggedTarget(target, fuse=True)
    calls: list[Any] = []
    own = operators.rms_norm
    monkeypatch.setattr(operators, "rms_norm", lambda *given: calls.append(1) or own(*given))
    output_of(ragged)
    assert len(calls) == PASSES * (4 * 4 + 1)
    assert torch.equal(target.forward(TOKENS).logits, before)
    assert len(calls) == PASSES * (4 * 4 + 1)
    with pytest.raises(KeyError), replace.installed(ragged.replaced):
        raise KeyError
    assert torch.equal(target.forward(TOKENS).logits, before)
    assert len(calls) == PASSES * (4 * 4 + 1)


def test_what_is_asked_of_a_command_reaches_the_engine(make_target: MakeTarget) -> None:
    target = make_target()
    for fuse, passed in ((True, None), (False, False)):
        bench = Bench(target, None, 2, 16, ProfileOptions(fuse=fuse))
        assert bench.executor.options.fuse is passed
    executor = bench.executor
    assert executor.passes.ragged.replaced == []
    assert conditions_of(target, attention="auto", graphs=True)["fused"] == "nothing"
