"""The layer of DeepSeek-V4's draft against that of transformers, and its parts against hand calculations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from simulator.live.models.drafts.blocks.streams import (
    Collapse,
    HyperConnection,
    StreamBlock,
    StreamSizes,
    rotate_neighbours,
)
from simulator.live.models.pairs import load_draft
from tests.live.conftest import randomise, skip_unless_known
from tests.support.deepseek_v4_draft import TINY

GENERATOR = torch.Generator()
SIZES = StreamSizes(
    hidden_size=1, num_attention_heads=1, head_dim=2, qk_rope_head_dim=2, q_lora_rank=1, o_lora_rank=1,
    o_groups=1, hc_mult=2, hc_sinkhorn_iters=30, hc_eps=1e-9, rms_norm_eps=1e-9,
)  # fmt: skip


def test_a_layer_is_that_of_transformers(tmp_path: Path) -> None:
    """The layer of the target that compresses nothing, each of whose rows may see all others."""
    import transformers

    skip_unless_known("deepseek_v4")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    draft: Any = load_draft(tmp_path, dtype=torch.float32, config_only=True)
    randomise(draft, 3, 0.25)
    auto: Any = transformers
    fields = {k: v for k, v in TINY.items() if k not in ("architectures", "model_type", "compress_ratios")}
    fields |= {"num_hidden_layers": 1, "num_hash_layers": 0, "layer_types": ["sliding_attention"]}
    fields |= {"rope_scaling": None, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = auto.AutoConfig.for_model("deepseek_v4", **fields)
    model = auto.AutoModelForCausalLM.from_config(config).float().eval().model
    block: StreamBlock = draft.layers[1]
    model.layers[0].load_state_dict(block.state_dict())
    streams = torch.randn(2, 5, 4, 32, generator=GENERATOR.manual_seed(1))
    positions = torch.arange(20, 25).expand(2, 5)
    turned = {"main": model.rotary_emb(streams, positions, layer_type="main")}
    theirs = model.layers[0](
        streams, position_embeddings=turned, position_ids=positions, attention_mask=torch.zeros(2, 1, 5, 5)
    )
    rope = draft.rotary(positions, torch.float32)
    ours = block(streams, rope, lambda keys, values: (keys.transpose(1, 2), values.transpose(1, 2)), None)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_collapse_is_a_weighed_sum_of_the_streams() -> None:
    """Streams 3 and 4 have a root mean square of sqrt(12.5); the second weight reads stream 1 alone."""
    collapse = Collapse(SIZES)
    with torch.no_grad():
        collapse.fn.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        collapse.base.copy_(torch.tensor([0.0, 0.5]))
        collapse.scale.fill_(2.0)
        state = collapse(torch.tensor([[3.0], [4.0]]))
    second = 1 / (1 + math.exp(-(2 * 3 / math.sqrt(12.5) + 0.5)))
    assert float(state) == pytest.approx(0.5 * 3 + second * 4, rel=1e-6)


def test_streams_keep_their_sum_and_take_the_output_by_its_weights() -> None:
    """Shares are doubly stochastic, so that mixing alone moves nothing between the sums of streams."""
    connection = HyperConnection(SIZES)
    randomise(connection, 2, 1.0)
    streams = torch.tensor([[3.0], [-4.0]])
    with torch.no_grad():
        _, weights, shares = connection.enter(streams)
        torch.testing.assert_close(shares.sum(-1), torch.ones(2))
        torch.testing.assert_close(shares.sum(-2), torch.ones(2))
        assert float(shares[0, 1]) not in (0.0, 1.0)
        left = connection.leave(streams, torch.tensor([10.0]), weights, shares)
    assert float(left.sum()) == pytest.approx(-1 + 10 * float(weights.sum()), rel=1e-5)
    second = float(shares[0, 1]) * 3 - float(shares[1, 1]) * 4 + 10 * float(weights[1])
    assert float(left[1, 0]) == pytest.approx(second, rel=1e-5)


def test_neighbours_turn_by_their_angle_and_back() -> None:
    angle = torch.tensor([[math.pi / 2, math.pi / 6] * 2])  # cosines stand twice, as Rotary has them
    rope = angle.cos(), angle.sin()
    turned = rotate_neighbours(torch.tensor([[9.0, 1.0, 0.0, 2.0, 0.0]]), rope)
    torch.testing.assert_close(turned, torch.tensor([[9.0, 0.0, 1.0, math.sqrt(3), 1.0]]))
    back = rotate_neighbours(turned, rope, back=True)
    torch.testing.assert_close(back, torch.tensor([[9.0, 1.0, 0.0, 2.0, 0.0]]))
