"""The ragged pass against a plain forward per request, and what padding may and may not do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from simulator.core.errors import BadInputError
from simulator.live.engine.attention.ragged import RaggedTarget, _Pass
from simulator.live.engine.attention.rows import RaggedRows, side_by_side
from simulator.live.families.architectures import SUPPORTED
from simulator.live.models.targets import load_target
from tests.live.conftest import MakeTarget, skip_unless_known
from tests.live.tracing.test_lossless import ARCHITECTURES

CAPACITY = 40


def fill(ragged: RaggedTarget, tokens: torch.Tensor, contexts: list[int]) -> Any:
    """A cache in which row r holds the first ``contexts[r]`` of its tokens [R, T]."""
    cache = ragged.new_cache(len(contexts), CAPACITY)
    for row, context in enumerate(contexts):
        if context:
            rows = RaggedRows.of(
                torch.tensor([context]), torch.tensor([0]), context,
                block=context, context=context, first_cache_row=row,
            )  # fmt: skip
            ragged.forward(tokens[row, :context], [rows], cache)
    return cache


requests = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=6).filter(
    lambda pairs: any(count for _, count in pairs)
)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def target(request: pytest.FixtureRequest, make_target: MakeTarget) -> Any:
    return make_target(request.param)


@pytest.mark.parametrize("kernel", ["sdpa", "plain"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=requests, padding=st.integers(0, 3), slack=st.integers(0, 5))
def test_ragged_rows_are_the_plain_forward_of_each_request(
    target: Any, kernel: str, batch: list[tuple[int, int]], padding: int, slack: int
) -> None:
    contexts, counts = [c for c, _ in batch], [n for _, n in batch]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (len(batch), 28), generator=generator)
    ragged = RaggedTarget(target, kernel)
    cache = fill(ragged, tokens, contexts)
    rows = RaggedRows.of(
        torch.tensor(counts), torch.tensor(contexts), sum(counts) + padding,
        block=max(counts), context=max(c + n for c, n in batch) + slack,
    )  # fmt: skip
    flat = torch.cat([tokens[r, c : c + n] for r, (c, n) in enumerate(batch)])
    padded = torch.nn.functional.pad(flat, (0, padding))
    output = ragged.forward(padded, [rows], cache, layer_ids=(-1, 1, target.num_layers))
    at = 0
    for row, (context, count) in enumerate(batch):
        if not count:
            continue
        plain = target.forward(tokens[row : row + 1, : context + count], layer_ids=(-1, 1, target.num_layers))
        torch.testing.assert_close(
            output.logits[at : at + count], plain.logits[0, context:], atol=2e-4, rtol=1e-3
        )
        torch.testing.assert_close(
            output.features[at : at + count], plain.features[0, context:], atol=2e-4, rtol=1e-3
        )
        at += count


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 6}
LATENT = EXPERTS | {
    "num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
GEMMA4 = WINDOW | {
    "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 24,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3 sliding": ARCHITECTURES["qwen3 sliding"],
    "gemma4_text shared": GEMMA4 | {
        "attention_k_eq_v": False, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64, "use_double_wide_mlp": True,
    },
    "gemma4_text experts": GEMMA4 | {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
    },
    "deepseek_v3 interleaved": LATENT | {"rope_interleave": False, "n_group": 2, "topk_group": 1},
}  # fmt: skip
"""Members of a kind that run other code than the first."""

KINDS: dict[str, dict[str, Any]] = dict.fromkeys(
    ("cohere2", "exaone4", "ernie4_5", "glm4", "granite", "llama", "mistral", "olmo2", "olmo3", "phi3",
     "qwen2", "qwen3", "smollm3", "starcoder2"), WINDOW
) | {
    "gemma2": WINDOW | {"query_pre_attn_scalar": 16},
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 16},
    "glm4_moe": EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "gpt_oss": WINDOW | EXPERTS | {
        "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}
    },
    "mixtral": EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "norm_topk_prob": True},
    "deepseek_v2": LATENT | {"topk_method": "greedy", "q_lora_rank": None},
    "deepseek_v3": LATENT | {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "mscale": 1.0,
                            "mscale_all_dim": 0.8, "original_max_position_embeddings": 64}
    },
    "glm4_moe_lite": LATENT,
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
}  # fmt: skip
"""What each supported kind needs to be tiny, with windows shorter than the contexts where it has any."""


def test_every_supported_kind_is_tested() -> None:
    assert set(KINDS) == SUPPORTED


@pytest.mark.parametrize("kind", [*sorted(KINDS), *VARIANTS])
def test_the_ragged_pass_of_every_supported_kind_is_the_models_own(
    make_target: MakeTarget, kind: str
) -> None:
    name = kind.split()[0]
    skip_unless_known(name)
    target = make_target(name, **(VARIANTS.get(kind) or ARCHITECTURES.get(kind) or KINDS[name]))
    tokens = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    ragged = RaggedTarget(target)
    cache = fill(ragged, tokens, [12, 3])
    rows = RaggedRows.of(torch.tensor([2, 5]), torch.tensor([12, 3]), 7, block=5, context=14)
    output = ragged.forward(torch.cat((tokens[0, 12:14], tokens[1, 3:8])), [rows], cache)
    expected = torch.cat((target.forward(tokens[:1, :14]).logits[0, 12:],
                          target.forward(tokens[1:, :8]).logits[0, 3:]))  # fmt: skip
    torch.testing.assert_close(output.logits, expected, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "minimax", "qwen3_next", "mamba2", "gpt_neox", "deepseek_v4"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    refused = f"not tested here.*got '{kind}'.*supported: cohere2"
    if kind not in CONFIG_MAPPING:
        refused = "not a model that this transformers"
    with pytest.raises(BadInputError, match=f"model_type: .*{refused}"):
        load_target(tmp_path, config_only=True)


def test_an_attention_argument_that_is_not_computed_is_refused(target: Any) -> None:
    ragged = RaggedTarget(target)
    attend = ALL_ATTENTION_FUNCTIONS["dspark_ragged"]
    rows = RaggedRows.of(torch.tensor([1]), torch.tensor([0]), 1, block=1, context=1)
    cache = ragged.new_cache(1, CAPACITY)
    step = _Pass((rows,), cache, rows.cache_rows(cache.trash), rows.positions, ragged.kernel, {})
    module = SimpleNamespace(layer_idx=0)
    query, key = torch.zeros(1, 4, 1, 16), torch.zeros(1, 2, 1, 16)
    attend(module, query, key, key, None, ragged=step, dropout=0.0, position_ids=None)
    with pytest.raises(BadInputError, match="takes alibi, which"):
        attend(module, query, key, key, None, ragged=step, alibi=torch.zeros(4))
    with pytest.raises(BadInputError, match="sinks or a cap"):
        attend(module, query, key, key, None, ragged=step, s_aux=torch.zeros(4))


def test_what_the_kernels_do_not_compute_is_refused(make_target: MakeTarget, target: Any) -> None:
    with pytest.raises(BadInputError, match="does not compute capped attention logits"):
        RaggedTarget(make_target("gemma2", **ARCHITECTURES["gemma2"]), "plain")
    with pytest.raises(BadInputError, match="auto, sdpa, varlen, split, plain"):
        RaggedTarget(target, "flash")


def test_rows_lie_side_by_side() -> None:
    owner, rank, valid = side_by_side(torch.tensor([2, 0, 3]), 7)
    assert owner.tolist()[:5] == [0, 0, 2, 2, 2]
    assert rank.tolist()[:5] == [0, 1, 0, 1, 2]
    assert valid.tolist() == [True] * 5 + [False] * 2
