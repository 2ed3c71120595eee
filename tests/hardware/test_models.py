"""Shapes of models: published parameter counts, hand counts of keys and values, configs that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError
from simulator.hardware.models import Experts, catalogue, load_model, read_config

QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 36, "intermediate_size": 12288,
    "vocab_size": 151936, "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in (QWEN | changes).items() if value != "gone"}))
    return path


def test_there_are_thirty_models_at_least() -> None:
    assert len(catalogue()) >= 30


@pytest.mark.parametrize("name", catalogue())
def test_parameters_are_the_published_ones(name: str) -> None:
    """Within 1%, or equal to the digits that are published."""
    model = catalogue()[name]
    assert model.parameters_published is not None
    published, counted = model.parameters_published / 1e9, model.parameters / 1e9
    in_trillions = round(counted / 1e3, 1) == published / 1e3
    assert counted == pytest.approx(published, rel=0.01) or round(counted, 1) == published or in_trillions


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("deepseek-v3", 37e9), ("qwen3-30b-a3b", 3.3e9), ("qwen3-235b-a22b", 22e9), ("gpt-oss-120b", 5.1e9),
        ("gpt-oss-20b", 3.6e9), ("deepseek-v4-flash", 13e9), ("deepseek-v4-pro", 49e9),
        ("kimi-k2-instruct", 32e9), ("mixtral-8x7b-v0.1", 12.9e9),
    ],
)  # fmt: skip
def test_active_parameters_are_the_published_ones(name: str, active: float) -> None:
    assert load_model(name).active_parameters == pytest.approx(active, rel=0.08)


@pytest.mark.parametrize(
    ("name", "shards", "expected"),
    [
        ("qwen3-8b", 1, 2 * 36 * 8 * 128 * 2), ("qwen3-8b", 8, 2 * 36 * 1 * 128 * 2),
        ("qwen3-8b", 16, 2 * 36 * 1 * 128 * 2),  # heads are repeated beyond their number
        ("llama-3.1-70b", 4, 2 * 80 * 2 * 128 * 2),
        ("deepseek-v3", 8, 61 * (512 + 64) * 2),  # a latent, on every GPU
    ],
)  # fmt: skip
def test_keys_and_values_by_hand(name: str, shards: int, expected: int) -> None:
    assert load_model(name).kv_bytes_per_token(shards=shards) == expected


def test_a_windowed_layer_keeps_its_window() -> None:
    """Gemma 3 27B: 52 of 62 layers see 1,024 tokens; of 8,192 that is an eighth."""
    each = 2 * 16 * 128 * 2
    assert load_model("gemma-3-27b-pt").kv_bytes_per_token(context=8192) == each * (10 + 52 / 8)
    assert load_model("gemma-3-27b-pt").kv_bytes_per_token(context=512) == each * 62


def test_a_compressed_cache_is_the_published_one() -> None:
    """DeepSeek-V4-Pro at 1M tokens: 9.62 GiB a request in 16 bits, as is published; it reads less."""
    pro, million = load_model("deepseek-v4-pro"), 2**20
    kept = pro.kv_bytes_per_token(context=million) * million
    assert kept / 2**30 == pytest.approx(9.62, abs=0.01)
    assert pro.kv_bytes_per_token(context=million, shards=8) * million == kept  # whole on every GPU
    index = 30 * 128 * million / 4
    chosen, heavy, window = 30 * 512 * 1024, 31 * 512 * million / 128, 61 * 512 * 128
    assert pro.kv_bytes_read(context=million) == 2 * (index + chosen + heavy + window)
    assert load_model("qwen3-8b").kv_bytes_read(context=100) == 100 * 2 * 36 * 8 * 128 * 2


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 4000))
def test_experts_touched_lie_between_one_tokens_and_all(count: int, visited: int, rows: int) -> None:
    experts = Experts(count=max(count, visited), per_token=visited, intermediate=1)
    touched = experts.touched(rows)
    assert touched <= experts.count + 1e-9
    assert touched >= (visited if rows else 0) - 1e-9
    assert experts.touched(rows + 1) >= touched - 1e-9


def test_a_config_of_ones_own_is_read(tmp_path: Path) -> None:
    model = read_config(written(tmp_path))
    assert model.parameters == load_model("qwen3-8b").parameters
    assert model.window is None
    assert load_model(str(tmp_path)).layers == 36


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": "gone"}, "hidden_size: is missing"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers: must be a whole number"),
        ({"num_attention_heads": 0}, "must be positive"),
        ({"index_topk": 2048}, "has sparse attention"),
        ({"compress_ratios": [0, 1, 2], "index_topk": 9}, "has sparse attention"),
        ({"compress_ratios": [0, 4, 128], "index_topk": 9}, "q_lora_rank: is missing"),
        ({"linear_num_value_heads": 32}, "has linear attention"),
        ({"num_experts": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 9}, "cannot visit 8 of 4"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        read_config(written(tmp_path, **changes))
    assert "config.json" in str(caught.value)


def test_an_unknown_model_has_near_names() -> None:
    with pytest.raises(BadInputError, match=r"did you mean .*Qwen/Qwen3-32B"):
        load_model("qwen3-32")
    with pytest.raises(BadInputError, match=r"did you mean meta-llama/Llama-3\.3-70B-Instruct"):
        load_model("llama-3.3-70b")
