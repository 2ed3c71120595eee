"""DeepSeek-V4's draft against itself spelled out, at its published sizes, and served in a small version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simulator.core.errors import BadInputError
from simulator.engine.limits import EngineLimits
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.models.drafts.dspark_v4 import V4Draft
from simulator.live.models.pairs import check_pair, load_draft
from simulator.live.models.targets import Target
from simulator.live.tracing.generate import generate
from simulator.schedulers.policies import Fixed
from tests.live.conftest import MakeTarget, randomise, skip_unless_known
from tests.live.engine.test_executor import own_greedy, prompts, serve, workload
from tests.support.deepseek_v4_draft import FLASH, PRO, TINY, V4Oracle
from tests.support.drafts import assert_batches_agree

GENERATOR = torch.Generator()


def folder_of(fields: dict[str, Any], path: Path) -> Path:
    """A folder with a config.json and no weights."""
    (path / "config.json").write_text(json.dumps(fields))
    return path


def shaped(fields: dict[str, Any], path: Path, device: str = "cpu") -> V4Draft:
    """The draft of a config.json with random weights."""
    skip_unless_known("deepseek_v4")
    draft = load_draft(folder_of(fields, path), dtype=torch.float32, device=device, config_only=True)
    assert isinstance(draft, V4Draft)
    return draft


@pytest.fixture
def draft(tmp_path: Path) -> V4Draft:
    """A small one whose every weight matters."""
    draft = shaped(TINY, tmp_path)
    randomise(draft, 3, 0.25)
    with torch.no_grad():
        for name, buffer in draft.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.3, generator=GENERATOR.manual_seed(5))
    return draft


def states(positions: int, seed: int = 0) -> Tensor:
    """Three states of width 32 at each position."""
    return torch.randn(positions, 96, generator=GENERATOR.manual_seed(seed))


def proposed(draft: V4Draft, features: Tensor, anchor: int = 7) -> Any:
    tokens = torch.full((len(features),), anchor)
    return draft.propose(features, tokens, torch.tensor([len(features)]), draft.new_cache(1, 40))


def around(rank: int, hidden: int) -> tuple[int, int]:
    """Weights and bytes around the layers: main_proj, two norms, both heads, the collapse of the streams."""
    main, norms, markov = 3 * hidden * hidden, 2 * hidden, 2 * 129280 * rank
    confidence, streams = hidden + rank, 4 * 4 * hidden + 4 + 1
    scales = 3 * (hidden // 128) ** 2
    return (
        main + norms + markov + confidence + streams,
        main + scales + 2 * (norms + markov + confidence) + 4 * streams,
    )


# Bytes of one layer, part by part: matrices in FP8 with a byte for each 128 x 128, experts in 4 bits with a
# byte for each 32, norms and router in 16 bits, the rest in 32.
FLASH_LAYER = (
    (1024 * 4096 + 8 * 32) + (32768 * 1024 + 256 * 8) + (512 * 4096 + 4 * 32)  # queries and the key
    + (8192 * 4096 + 64 * 32) + (4096 * 8192 + 32 * 64)  # outputs
    + 2 * (1024 + 512 + 4096 + 4096) + 4 * 64  # norms, sinks
    + 2 * 4 * (24 * 4 * 4096 + 24 + 3)  # what steers the streams
    + 2 * 256 * 4096 + 4 * 256  # router
    + 3 * (2048 * 4096 + 16 * 32)  # the shared expert
    + 256 * 3 * (2048 * 4096 // 2 + 2048 * 4096 // 32)
)  # fmt: skip
PRO_LAYER = (
    (1536 * 7168 + 12 * 56) + (65536 * 1536 + 512 * 12) + (512 * 7168 + 4 * 56)
    + (16384 * 4096 + 128 * 32) + (7168 * 16384 + 56 * 128)
    + 2 * (1536 + 512 + 7168 + 7168) + 4 * 128
    + 2 * 4 * (24 * 4 * 7168 + 24 + 3)
    + 2 * 384 * 7168 + 4 * 384
    + 3 * (3072 * 7168 + 24 * 56)
    + 384 * 3 * (3072 * 7168 // 2 + 3072 * 7168 // 32)
)  # fmt: skip


FLASH_WEIGHTS = (
    1024 * 4096 + 32768 * 1024 + 512 * 4096 + 8192 * 4096 + 4096 * 8192 + 1024 + 512 + 4096 + 4096 + 64
    + 2 * (24 * 4 * 4096 + 24 + 3) + 256 * 4096 + 256 + 257 * 3 * 2048 * 4096
)  # fmt: skip
PRO_WEIGHTS = (
    1536 * 7168 + 65536 * 1536 + 512 * 7168 + 16384 * 4096 + 7168 * 16384 + 1536 + 512 + 7168 + 7168 + 128
    + 2 * (24 * 4 * 7168 + 24 + 3) + 384 * 7168 + 384 + 385 * 3 * 3072 * 7168
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "weights", "layer", "rank"),
    [(FLASH, FLASH_WEIGHTS, FLASH_LAYER, 256), (PRO, PRO_WEIGHTS, PRO_LAYER, 512)],
)
def test_true_shapes_have_the_published_sizes(
    fields: dict[str, Any], weights: int, layer: int, rank: int, tmp_path: Path
) -> None:
    draft = shaped(fields, tmp_path, "meta")
    assert (draft.gamma, draft.window, draft.shape.num_hidden_layers) == (5, 128, 3)
    others, bytes_of_others = around(rank, fields["hidden_size"])
    assert sum(each.numel() for each in draft.own_parameters().values()) == 3 * weights + others
    assert draft.published_bytes() == 3 * layer + bytes_of_others


def test_flashs_bytes_are_those_of_its_three_published_files(tmp_path: Path) -> None:
    """The files mtp.0, mtp.1 and mtp.2 of a published split, whose headers name 1565 to 1572 tensors each."""
    files = 3_610_455_184 + 3_560_111_960 + 3_692_775_244
    headers = files - shaped(FLASH, tmp_path, "meta").published_bytes()
    assert 90 < headers / 4705 < 120  # bytes for a name, a type, a shape and two places


def test_drafts_and_confidences_are_those_spelled_out(draft: V4Draft) -> None:
    features = states(9)  # more than the window of 5
    proposal = proposed(draft, features)
    oracle = V4Oracle(draft.state_dict(), TINY)
    rows, confidences = oracle.logits(features, 7, proposal.tokens[0].tolist())
    for k in range(4):
        torch.testing.assert_close(proposal.logits[0, k].double(), rows[k], atol=2e-4, rtol=2e-4)
        assert proposal.tokens[0, k] == rows[k].argmax()
        assert float(proposal.confidence_logits[0, k]) == pytest.approx(confidences[k], abs=2e-4)


def test_the_window_is_seen_and_nothing_before_it(draft: V4Draft) -> None:
    features, far, near = states(9), states(9), states(9)
    far[:4] += 1
    near[4] += 1
    logits = proposed(draft, features).logits
    assert torch.equal(proposed(draft, far).logits, logits)
    assert not torch.allclose(proposed(draft, near).logits, logits, atol=1e-2)


def test_drafts_see_all_of_their_block(draft: V4Draft) -> None:
    """The first slot sees the last: were the block causal, the noise behind it would change nothing."""
    features, longer = states(6), dict(TINY) | {"dspark_block_size": 5}
    logits = proposed(draft, features).logits
    grown = V4Draft(type(draft.config).from_fields(_fields(longer)))
    grown.load_state_dict(draft.state_dict(), assign=True)
    assert not torch.allclose(proposed(grown, features).logits[:, 0], logits[:, 0], atol=1e-3)


def _fields(raw: dict[str, Any]) -> Any:
    from simulator.live.models.checkpoints import Fields

    return Fields(raw, "config.json")


@pytest.fixture
def target(make_target: MakeTarget) -> Any:
    return make_target("qwen3")


def test_batches_packed_blocks_and_single_requests_agree(draft: V4Draft, target: Target) -> None:
    check_pair(target, draft)
    assert_batches_agree(target, draft)


def test_served_with_a_target_it_changes_nothing(draft: V4Draft, target: Target) -> None:
    load = workload(3, seed=4)
    expected = {
        r: own_greedy(target, prompts(r, int(load.prompt_tokens[r])).tolist(), int(load.output_tokens[r]))
        for r in range(3)
    }
    limits = EngineLimits(2)
    executor = LiveExecutor(
        target, draft, load, concurrency=2, prompts=prompts, options=LiveOptions(keep_tokens=True)
    )
    assert serve(executor, Fixed(3), load, limits).completed == 3
    assert executor.passes.draft_cache is not None
    # One key of 12 numbers for all heads, which is the value too.
    assert executor.passes.draft_cache.keys.shape[2::2] == (1, 12)
    assert executor.passes.draft_cache.values.data_ptr() == executor.passes.draft_cache.keys.data_ptr()
    for request, tokens in expected.items():
        assert executor.outputs[request][: len(tokens)] == tokens
        prompt = prompts(request, int(load.prompt_tokens[request])).tolist()
        assert generate(target, draft, prompt, max_new_tokens=len(tokens)).output_ids == tokens


def test_random_weights_depend_on_their_seed_alone(tmp_path: Path) -> None:
    first, again = shaped(TINY, tmp_path), shaped(TINY, tmp_path)
    assert first.digest == again.digest
    assert load_draft(tmp_path, config_only=True, dtype=torch.float32, seed=1).digest != first.digest
    narrow = load_draft(tmp_path, config_only=True)
    kinds = (
        {name: each.dtype for name, each in narrow.state_dict().items()}
        if isinstance(narrow, V4Draft)
        else {}
    )
    wide = {name.rpartition(".")[2] for name, kind in kinds.items() if kind == torch.float32}
    assert wide == {"sinks", "fn", "base", "scale", "e_score_correction_bias"}
    assert kinds["layers.0.mlp.experts.down_proj"] == torch.bfloat16


def test_its_weights_are_refused_by_name(tmp_path: Path) -> None:
    skip_unless_known("deepseek_v4")
    folder = folder_of(TINY, tmp_path)
    with pytest.raises(BadInputError, match=r"tensors mtp\.\* are in FP8") as raised:
        load_draft(folder)
    assert "config_only=True" in str(raised.value.remedy)


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"dspark_block_size": None}, "dspark_block_size", "has no DSpark draft"),
        ({"dspark_target_layer_ids": [2, 1]}, "dspark_target_layer_ids", "strictly increasing, from 0 to 3"),
        ({"dspark_target_layer_ids": [2, 4]}, "dspark_target_layer_ids", "strictly increasing, from 0 to 3"),
        ({"dspark_noise_token_id": 64}, "dspark_noise_token_id", "below the vocabulary of 64"),
        ({"dspark_markov_rank": 0}, "dspark_markov_rank", "whole number in 1"),
        ({"sliding_window": None}, "sliding_window", "is missing"),
        ({"scoring_func": "sigmoid"}, "scoring_func", "only 'sqrtsoftplus'"),
        ({"qk_rope_head_dim": 14}, "qk_rope_head_dim", "even and at most the head's 12"),
        ({"o_groups": 3}, "o_groups", "must divide the 4 heads"),
        ({"model_type": "deepseek_v41"}, "model_type", "only 'deepseek_v4'"),
    ],
)
def test_configs_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(BadInputError, match=problem) as raised:
        load_draft(folder_of(TINY | change, tmp_path), config_only=True)
    assert raised.value.field == field
