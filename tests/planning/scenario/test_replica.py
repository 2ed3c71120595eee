"""KV capacity of a replica: what parallel ranks divide, what they hold twice, all worked out by hand."""

from __future__ import annotations

import pytest

from simulator.core.errors import BadInputError
from simulator.planning.scenario.replica import KvMemory

# One attention layer of 8 KV heads of 128, two bytes: 2 * 8 * 128 * 2 = 4,096 bytes a token and layer.
GROUPED = {
    "gpu_memory_gib": 80,
    "weights_gib": 0,
    "layers": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "usable": 0.5,
}


def test_latent_attention_is_held_whole_on_every_rank() -> None:
    """vLLM issue 51454. Free on each of 8 GPUs: 179 * 0.95 - 150 / 8 = 151.3 GiB; a token takes
    43 layers * 576 bytes = 24,768 bytes on every one of them: 6.56 M tokens, not eight times that."""
    memory = KvMemory(
        gpu_memory_gib=179, weights_gib=150, layers=43, latent_dim=576, bytes_per_value=1, usable=0.95
    )
    assert memory.tokens(8) == int(151.3 * 2**30 / 24_768)
    assert memory.tokens(8) == pytest.approx(6.56e6, rel=1e-3)


def test_data_parallel_attention_holds_other_requests_on_every_rank() -> None:
    """The same machine with DP8 attention: each rank holds its own requests, so 8 times as many tokens."""
    shape = {"gpu_memory_gib": 179, "weights_gib": 150, "layers": 43, "latent_dim": 576, "bytes_per_value": 1}
    pooled = KvMemory(**shape, data_parallel=8).tokens(8)
    assert pooled == pytest.approx(8 * KvMemory(**shape).tokens(8), rel=1e-6)
    assert KvMemory(**shape, data_parallel=2).tokens(8) == pytest.approx(pooled / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("gpus", "bytes_on_one_gpu"),
    [
        (1, 32 * 4096),
        (2, 32 * 2048),  # four heads each
        (8, 32 * 512),  # one head each
        (16, 32 * 512),  # still one head each: every head is on two GPUs
        (3, 32 * 1536),  # three heads on the fullest
    ],
)
def test_kv_heads_are_divided_until_each_rank_has_one(gpus: int, bytes_on_one_gpu: int) -> None:
    memory = KvMemory(**GROUPED)
    assert memory.bytes_per_token(gpus) == bytes_on_one_gpu
    assert memory.tokens(gpus) == 40 * 2**30 // bytes_on_one_gpu


def test_a_dense_model_of_eight_heads_on_four_gpus() -> None:
    """vLLM issue 12400: 4 * 79.6 * 0.9 - 68 = 218.56 GiB over 80 * 2 * 8 * 128 * 2 = 327,680 bytes."""
    memory = KvMemory(gpu_memory_gib=79.6, weights_gib=68, layers=80, kv_heads=8, head_dim=128)
    assert memory.tokens(4) == pytest.approx(218.56 * 2**30 / 327_680, abs=1)
    assert memory.tokens(4) / 131_072 == pytest.approx(5.46, abs=0.01)


def test_pipeline_stages_hold_their_own_layers() -> None:
    """Two stages of 16 layers over four ranks each: 16 * 2 * 2 heads * 128 * 2 bytes on a GPU."""
    memory = KvMemory(**GROUPED, pipeline_parallel=2)
    assert memory.bytes_per_token(8) == 16 * 2 * 2 * 128 * 2
    assert KvMemory(**{**GROUPED, "layers": 33}, pipeline_parallel=2).bytes_per_token(2) == 17 * 4096


def test_groups_that_do_not_divide_the_gpus_are_refused() -> None:
    with pytest.raises(
        BadInputError, match=r"kv_memory.data_parallel: .*divide the replica's 8 GPUs \(got 3\)"
    ):
        KvMemory(**GROUPED, data_parallel=3).tokens(8)
    with pytest.raises(BadInputError, match="replica's 1 GPUs"):
        KvMemory(**GROUPED, data_parallel=2).tokens(1)


def test_kv_capacity_from_memory_and_model() -> None:
    """80 GiB at 90% less 40 GiB of weights; 32 layers of 8 heads of 128, two bytes: 131,072 B a token."""
    grouped = KvMemory(gpu_memory_gib=80, weights_gib=40, layers=32, kv_heads=8, head_dim=128)
    assert grouped.bytes_per_token(1) == 131_072
    assert grouped.tokens(1) == 32 * 2**30 // 131_072
    latent = KvMemory(gpu_memory_gib=80, weights_gib=40, layers=60, latent_dim=576)
    assert latent.bytes_per_token(1) == 60 * 576 * 2
    with pytest.raises(BadInputError, match="no memory for the KV cache"):
        KvMemory(gpu_memory_gib=24, weights_gib=40, layers=60, latent_dim=576).tokens(1)
    with pytest.raises(BadInputError, match="kv_heads and head_dim, or latent_dim"):
        KvMemory(gpu_memory_gib=80, weights_gib=40, layers=60).tokens(1)
