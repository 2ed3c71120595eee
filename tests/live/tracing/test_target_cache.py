"""DeepSpec's target cache, written here byte by byte in its format, against the target that it is of."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.core.errors import BadInputError
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import load_target
from simulator.live.tracing.record import judge
from simulator.live.tracing.run import shipped_pair
from simulator.live.tracing.target_cache import TargetCache, trace_cache

LENGTHS, ANSWERS = (30, 22), ((8, 30), (5, 20))
"""Tokens of two samples, and where the target's answer stands in each."""


@pytest.fixture(scope="module")
def pair() -> Any:
    return load_target(shipped_pair() / "target"), load_draft(shipped_pair() / "dspark")


def _bytes(states: torch.Tensor) -> bytes:
    return bytes(states.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())


def write_cache(folder: Path, pair: Any) -> list[torch.Tensor]:
    """One shard for each sample: token ids, both masks, states of the layers, the final-normed state."""
    target, draft = pair
    index, shards, samples = b"", [], []
    for number, (length, (first, end)) in enumerate(zip(LENGTHS, ANSWERS, strict=True)):
        tokens = torch.randint(300, (1, length), generator=torch.Generator().manual_seed(number))
        states = target.forward(tokens, layer_ids=(*draft.target_layer_ids, target.num_layers)).features[0]
        features, last = states[:, : -target.hidden_size], states[:, -target.hidden_size :]
        mask = np.zeros(length, dtype=np.uint8)
        mask[first:end] = 1
        parts = [
            tokens[0].to(torch.int32).numpy().tobytes(), np.ones(length, dtype=np.uint8).tobytes(),
            mask.tobytes(),
            *(_bytes(each) for each in (features, last)),
        ]  # fmt: skip
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])[:-1]])
        index += struct.pack("<QIIQQQQQ", number, number, length, *offsets.tolist())
        name = f"shard-{number:05d}.bin"
        (folder / name).write_bytes(b"".join(parts))
        shards.append({"shard_id": number, "file_name": name})
        samples.append(tokens)
    (folder / "samples.idx").write_bytes(index)
    manifest = {
        "version": 2, "num_samples": 2, "num_shards": 2, "target_layer_ids": list(draft.target_layer_ids),
        "hidden_dtype": "bfloat16", "token_dtype": "int32", "mask_dtype": "uint8", "index_record_size": 56,
        "hidden_size": target.hidden_size, "shards": shards, "target_model_name_or_path": "tiny",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return samples


def test_a_draft_judged_on_a_cache_is_judged_as_with_the_target(pair: Any, tmp_path: Path) -> None:
    target, draft = pair
    samples = write_cache(tmp_path, pair)
    cache = TargetCache(tmp_path)
    assert len(cache) == 2
    assert [sample.tokens.tolist() for sample in cache] == [tokens[0].tolist() for tokens in samples]
    trace = trace_cache(cache, draft, name="cached", temperature=0.9)
    assert trace.sequence_start.tolist() == [0, 21, 35]
    assert trace.effective_length is not None
    assert trace.acceptance_probability is not None
    assert trace.confidence_logits is not None
    row = 0
    for tokens, (first, end) in zip(samples, ANSWERS, strict=True):
        anchors = torch.arange(first, end - 1)
        padded = torch.nn.functional.pad(tokens[:, :end], (0, draft.gamma))
        own = judge(target, draft, padded, anchors, ("expected",), temperature=0.9)
        rows = slice(row, row + len(anchors))
        left = np.minimum(end - 1 - anchors.numpy(), draft.gamma)
        np.testing.assert_array_equal(trace.effective_length[rows], left)
        known = np.arange(draft.gamma) < left[:, None]
        # The cache holds bfloat16: three digits of each state.
        expected = own.outcomes["expected"][0].numpy()
        assert np.abs(trace.acceptance_probability[rows] - expected)[known].max() < 0.03
        assert own.confidence_logits is not None
        difference = trace.confidence_logits[rows] - own.confidence_logits[0].numpy()
        assert np.abs(difference)[known].max() < 0.15
        row += len(anchors)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 1}, "version"), ({"hidden_dtype": "float32"}, "hidden_dtype"),
        ({"index_record_size": 48}, "index_record_size"), ({"num_samples": 3}, "num_samples"),
        ({"shards": [{"file_name": "../x"}]}, "shards"), ({"target_layer_ids": "1"}, "target_layer_ids"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_named(
    pair: Any, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    write_cache(tmp_path, pair)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInputError) as raised:
        TargetCache(tmp_path)
    assert raised.value.field == field


def test_damage_and_another_drafts_cache_are_refused(pair: Any, tmp_path: Path) -> None:
    write_cache(tmp_path, pair)
    shard = tmp_path / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="ends before what its index lists"):
        TargetCache(tmp_path)[1]
    other = TargetCache(tmp_path)
    other.target_layer_ids = (1,)
    with pytest.raises(BadInputError, match="the draft reads"):
        trace_cache(other, pair[1], name="x")
    index = (tmp_path / "samples.idx").read_bytes()
    (tmp_path / "samples.idx").write_bytes(index[56:] + index[:56])
    with pytest.raises(BadInputError, match="is not in order at record 0"):
        TargetCache(tmp_path)[0]
