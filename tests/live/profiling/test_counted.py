"""Operations and experts of a step, against what is known of small passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simulator.live.models.pairs import new_dspark
from simulator.live.profiling.bench import Bench
from simulator.live.profiling.cells import Repeats
from simulator.live.profiling.counted import experts_of, operations, reached, routing_of
from simulator.live.profiling.grid import Grid, ProfileOptions
from simulator.live.profiling.run import measure_profile
from tests.live.conftest import MakeTarget
from tests.support.modelled_device import modelled_device

EXPERTS = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}


def test_views_and_allocations_are_no_operations() -> None:
    x, y = torch.ones(4, 6), torch.ones(6, 4)

    def work() -> None:
        x.t().view(6, 4)[1:].unsqueeze(0).expand(2, 5, 4)
        torch.empty_like(x)
        torch.relu_(x @ y)  # a product, and one in place
        torch.cat((x, x))

    assert operations(work) == 3


def test_a_layer_more_is_so_many_operations_more(make_target: MakeTarget) -> None:
    """Passes of two and three layers differ by one layer; that of the draft does not change."""
    counted = []
    for layers in (3, 4):
        target = make_target(num_hidden_layers=layers)
        draft: Any = new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=4)
        bench = Bench(target, draft, 2, 16, ProfileOptions())
        counted.append(bench.counted(2, 6))
    by_layer = counted[1].target_operations - counted[0].target_operations
    # Seven projections, four norms, two rotations of three, two writes, attention, two of the gate, two sums.
    assert 7 + 4 + 2 * 3 + 2 + 1 + 2 + 2 < by_layer < 90
    assert counted[0].draft_operations == counted[1].draft_operations > 30
    assert counted[0].experts is None


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_the_experts_that_rows_reach(make_target: MakeTarget, kind: str) -> None:
    fields = EXPERTS if kind == "qwen3_moe" else {"num_local_experts": 16, "num_experts_per_tok": 2}
    target = make_target(kind, vocab_size=512, **fields)
    assert experts_of(target) == 16
    with routing_of(target) as chosen:
        target.forward(torch.tensor([[7]]))
    # One row reaches exactly its two experts in each of four layers.
    assert [indices.numel() for indices in chosen] == [2, 2, 2, 2]
    assert reached(chosen) == 2
    bench = Bench(target, new_dspark(target, mask_token_id=5, block_size=4), 16, 16, ProfileOptions())
    varied = bench.counted(16, 80).experts
    assert varied is not None
    assert 2 < varied <= 16
    # Routers that tell nothing apart send every row to the same two.
    routers = [module for name, module in target.model.named_modules() if name.endswith(".gate")]
    for router in routers:
        torch.nn.init.zeros_(router.weight)
    assert bench.counted(16, 80).experts == 2
    with routing_of(target) as after:
        pass
    assert after == []
    assert not any(router._forward_hooks for router in routers)


def test_a_profile_of_experts_says_how_many_were_reached(make_target: MakeTarget, tmp_path: Path) -> None:
    target = make_target("qwen3_moe", vocab_size=512, **EXPERTS)
    drafters: Any = {"dspark": new_dspark(target, mask_token_id=5, block_size=2, num_layers=1, markov_rank=4)}
    grid = Grid(requests=(1, 16), drafts=(0, 2), context=(16,), prefill=(8,), policies=())
    options = ProfileOptions(grid=grid, repeats=Repeats(0.05, least=3, most=30, warmup=0), tolerance=0.2)
    told: list[str] = []
    with modelled_device():
        measured = measure_profile(target, drafters, options, tmp_path, told.append)
    notes = str(measured.profiled.profile.provenance.notes)
    assert "1 tokens reach 2.0 of 16 experts a layer" in told
    assert "of 16 experts a layer, tokens reach: 2.0 by 1, " in notes
    assert " by 48" in notes
    assert "a step of 1 token(s) is " in notes
