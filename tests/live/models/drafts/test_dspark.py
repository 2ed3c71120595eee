"""Every variant of the draft against a naive recomputation, and drafts as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from simulator.core.errors import BadInputError
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.drafts.mtp import MTPDraft
from simulator.live.models.pairs import (
    check_pair,
    load_draft,
    new_dspark,
    new_mtp,
    save_draft,
    spread_layer_ids,
)
from simulator.live.tracing.generate import generate
from tests.live.conftest import MakeTarget, randomise
from tests.support.oracle import Oracle

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "vanilla block 7": {},
    "gated block 5, embeddings among the layers": {
        "markov_head_type": "gated",
        "block_size": 5,
        "target_layer_ids": (-1, 0, 2),
    },
    "rnn block 3, one layer": {"markov_head_type": "rnn", "block_size": 3, "target_layer_ids": (1,)},
    "block 1": {"block_size": 1},
    "DFlash": {"markov_rank": 0, "confidence": False},
    "confidence without Markov head": {"markov_rank": 0},
    "confidence beside a Markov head": {"confidence_head_with_markov": False},
    "Markov head without confidence": {"confidence": False, "markov_head_type": "rnn"},
    "attention bias": {"attention_bias": True},
    "a key head per query head": {"num_key_value_heads": 4},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e5}},
    "yarn rope": {"rope_parameters": YARN},
    "llama3 rope": {"rope_parameters": LLAMA3},
}


def make_draft(target: Any, folder: Path, **settings: Any) -> DSparkDraft:
    """A random draft that went through a file."""
    draft = new_dspark(
        target, **({"mask_token_id": 5, "num_layers": 2, "markov_rank": 6, "block_size": 7} | settings)
    )
    randomise(draft, seed=7, spread=0.2)
    save_draft(draft, folder)
    loaded = load_draft(folder)
    assert isinstance(loaded, DSparkDraft)
    return loaded


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(spread=0.1)


def all_features(target: Any, tokens: list[int], layer_ids: tuple[int, ...]) -> torch.Tensor:
    """Features by transformers' own list of hidden states."""
    states = target.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer + 1][0] for layer in layer_ids], dim=-1)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_cached_generation_is_the_naive_recomputation(
    target: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    draft = make_draft(target, tmp_path, **settings)
    oracle = Oracle(tmp_path)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    generation = generate(
        target, draft, prompt, max_new_tokens=12, temperature=1.0, seed=3, keep_tensors=True
    )
    tokens = prompt + generation.output_ids
    assert any(item.context_length not in (1, 8) for item in generation.rounds) or draft.gamma == 1
    for item in generation.rounds:
        if item.start >= len(tokens):
            continue  # the round after the last token wanted
        assert item.tensors is not None
        features = all_features(target, tokens[: item.start], draft.target_layer_ids)
        hidden = oracle.hidden(features, item.anchor_token)
        logits, confidences = oracle.logits_and_confidences(
            hidden, item.anchor_token, list(item.draft_tokens)
        )
        torch.testing.assert_close(item.tensors.hidden, hidden, atol=1e-4, rtol=0)
        torch.testing.assert_close(item.tensors.logits, logits, atol=1e-4, rtol=1e-5)
        if draft.has_confidence:
            torch.testing.assert_close(torch.tensor(item.confidence_logits), confidences, atol=1e-4, rtol=0)
        else:
            assert item.confidence_logits is None


@pytest.mark.parametrize("make", [new_dspark, new_mtp])
def test_a_ragged_batch_proposes_what_its_requests_propose_alone(target: Any, make: Any) -> None:
    draft = new_mtp(target) if make is new_mtp else new_dspark(target, mask_token_id=5, markov_rank=4)
    randomise(draft, seed=1, spread=0.2)
    generator = torch.Generator().manual_seed(0)
    width = target.hidden_size * len(draft.target_layer_ids)
    batch, alone = draft.new_cache(3, 40), [draft.new_cache(1, 40) for _ in range(3)]
    for counts in ([5, 1, 9], [2, 7, 1], [1, 1, 1]):
        features = torch.randn(sum(counts), width, generator=generator)
        tokens = torch.randint(64, (sum(counts),), generator=generator)
        together = draft.propose(features, tokens, torch.tensor(counts), batch)
        parts = zip(features.split(counts), tokens.split(counts), counts, alone, strict=True)
        for row, (part, following, count, cache) in enumerate(parts):
            single = draft.propose(part, following, torch.tensor([count]), cache)
            torch.testing.assert_close(together.logits[row], single.logits[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(together.tokens[row], single.tokens[0])
            torch.testing.assert_close(together.survival[row], single.survival[0])


def test_packed_blocks_are_what_the_cache_drafts(target: Any, tmp_path: Path) -> None:
    draft = make_draft(target, tmp_path, markov_head_type="gated")
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(4))
    features = target.forward(tokens, layer_ids=draft.target_layer_ids).features
    anchors = torch.tensor([[0, 3, 11], [2, 5, 5]])
    packed = draft.packed_hidden(features, tokens, anchors)
    for row, column in ((0, 1), (0, 2), (1, 0), (1, 2)):
        anchor = int(anchors[row, column])
        cache = draft.new_cache(1, 30)
        proposal = draft.propose(
            features[row, :anchor], tokens[row, 1 : anchor + 1], torch.tensor([anchor]), cache
        )
        torch.testing.assert_close(packed[row, column], proposal.hidden[0], atol=1e-5, rtol=1e-5)
    drafted, logits, _ = draft.draw(packed, tokens.gather(1, anchors))
    previous = torch.cat((tokens.gather(1, anchors)[..., None], drafted[..., :-1]), dim=-1)
    torch.testing.assert_close(draft.teacher_forced_logits(packed, previous), logits)


def test_mtp_over_a_sequence_is_mtp_step_by_step(target: Any) -> None:
    draft = new_mtp(target)
    randomise(draft, seed=2, spread=0.2)
    tokens = torch.randint(64, (1, 11), generator=torch.Generator().manual_seed(4))
    states = target.forward(tokens, layer_ids=draft.target_layer_ids).features
    whole = draft.sequence_hidden(states[:, :-1], tokens[:, 1:])
    cache = draft.new_cache(1, 11)
    for begin, end in ((0, 4), (4, 5), (5, 8), (8, 10)):
        counts = torch.tensor([end - begin])
        proposal = draft.propose(states[0, begin:end], tokens[0, begin + 1 : end + 1], counts, cache)
        torch.testing.assert_close(proposal.hidden[0, 0], whole[0, end - 1], atol=1e-5, rtol=1e-5)
        assert proposal.tokens.shape == (1, 1)


def test_mtp_reads_the_normed_state_and_its_cache_refuses_to_overflow(target: Any) -> None:
    draft = new_mtp(target)
    tokens = torch.tensor([[1, 2, 3]])
    states = target.forward(tokens, layer_ids=draft.target_layer_ids).features
    torch.testing.assert_close(states, target.model.get_decoder()(tokens).last_hidden_state)
    with pytest.raises(ValueError, match="holds 2 positions, 3 are needed"):
        draft.propose(states[0], tokens[0], torch.tensor([3]), draft.new_cache(1, 2))


def test_saving_and_loading_gives_the_same_draft(target: Any, tmp_path: Path) -> None:
    for name, draft in (
        ("dspark", new_dspark(target, mask_token_id=1, markov_head_type="rnn")),
        ("mtp", new_mtp(target)),
    ):
        save_draft(draft, tmp_path / name)
        loaded = load_draft(tmp_path / name)
        assert type(loaded) is type(draft)
        assert loaded.config == draft.config  # type: ignore[attr-defined]
        for key, tensor in draft.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor)  # type: ignore[attr-defined]
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "config.json",
            "model.safetensors",
        ]


def test_saved_files_have_the_reference_keys(golden: Any, tmp_path: Path) -> None:
    save_draft(golden.draft, tmp_path)
    ours, theirs = (
        load_file(tmp_path / "model.safetensors"),
        load_file(golden.folder / "draft/model.safetensors"),
    )
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    config = json.loads((golden.folder / "draft" / "config.json").read_text())
    saved = json.loads((tmp_path / "config.json").read_text())
    optional = {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "max_window_layers"}
    for field in config.keys() - optional - {"transformers_version"}:
        assert saved[field] == config[field], field


def test_loading_spends_no_global_random_numbers(target: Any, tmp_path: Path) -> None:
    save_draft(new_dspark(target, mask_token_id=1), tmp_path)
    before = torch.random.get_rng_state()
    load_draft(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rotary_frequencies_survive_a_cast(target: Any) -> None:
    draft = new_dspark(target, mask_token_id=1)
    exact = draft.rotary.inverse_frequencies.clone()
    assert torch.equal(draft.to(torch.bfloat16).rotary.inverse_frequencies, exact)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {
            "rope_theta": None,
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}},
        },
    ],
)
def test_every_spelling_of_the_rotary_base_is_read(
    target: Any, tmp_path: Path, spelling: dict[str, Any]
) -> None:
    make_draft(target, tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    expected = load_draft(tmp_path)
    edit_config(tmp_path, **({"rope_scaling": None} | spelling))
    loaded = load_draft(tmp_path)
    assert isinstance(loaded, DSparkDraft)
    assert isinstance(expected, DSparkDraft)
    assert torch.equal(loaded.rotary.inverse_frequencies, expected.rotary.inverse_frequencies)
    assert loaded.shape.rope["rope_theta"] == 5e5


def test_layers_are_spread_as_in_the_published_drafts() -> None:
    assert spread_layer_ids(36) == (1, 9, 17, 25, 33)
    assert spread_layer_ids(40) == (1, 10, 19, 28, 37)
    assert [spread_layer_ids(layers) for layers in (1, 2, 4)] == [(-1,), (0,), (1,)]


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    kept = {
        name: value for name, value in (json.loads(path.read_text()) | fields).items() if value is not None
    }
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"block_size": 0}, "block_size", "whole number in 1"),
        ({"block_size": None}, "block_size", "is missing"),
        ({"mask_token_id": 64}, "mask_token_id", "below the vocabulary size 64"),
        ({"target_layer_ids": [1, 1]}, "target_layer_ids", "strictly increasing"),
        ({"target_layer_ids": [-2, 1]}, "target_layer_ids", "strictly increasing"),
        ({"target_layer_ids": [1, 3]}, "target_layer_ids", "may go up to 2"),
        ({"target_layer_ids": "1"}, "target_layer_ids", "list of whole numbers"),
        ({"markov_head_type": "lstm"}, "markov_head_type", "vanilla, gated, rnn"),
        ({"markov_rank": 0}, "confidence_head_with_markov", "needs a Markov head"),
        ({"model_type": "gemma3_text"}, "model_type", "only 'qwen3'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types", "full attention"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "must divide the 4"),
        ({"architectures": None}, "architectures", "names no draft"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "architectures", "an Eagle drafter"),
        ({"architectures": ["DFlashDraftModel"]}, "architectures", "z-lab's DFlash"),
        ({"architectures": ["Gemma4DSparkModel"]}, "model_type", "must be gemma4_text"),
        ({"architectures": ["X"], "speculators_config": {}}, "architectures", "vLLM's speculators format"),
        ({"architectures": ["DeepseekV4ForCausalLM"]}, "dspark_block_size", "has no DSpark draft"),
        ({"architectures": ["DeepseekV32ForCausalLM"]}, "architectures", "another model than V3 and V4"),
        ({"architectures": ["DeepseekV3ForCausalLMNextN"]}, "architectures", "exported by itself"),
        ({"architectures": ["DeepSeekMTPModel"]}, "architectures", "exported by itself"),
        ({"architectures": ["Glm4MoeForCausalLM"]}, "architectures", "GLM.s packaging"),
        ({"attention_bias": 1}, "attention_bias", "true or false"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps", "positive number"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters", "one of default"),
    ],
)
def test_a_wrong_config_is_named(
    target: Any, tmp_path: Path, fields: dict[str, Any], field: str, says: str
) -> None:
    make_draft(target, tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(BadInputError, match=says) as raised:
        load_draft(tmp_path)
    assert raised.value.field == field
    assert raised.value.source == str(tmp_path / "config.json")
    assert raised.value.remedy


def test_an_mtp_module_has_one_layer(target: Any, tmp_path: Path) -> None:
    save_draft(new_mtp(target), tmp_path)
    edit_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(BadInputError, match="exactly one layer"):
        load_draft(tmp_path)


def test_another_block_size_than_the_trained_one_is_refused(target: Any, tmp_path: Path) -> None:
    make_draft(target, tmp_path, block_size=5)
    load_draft(tmp_path, gamma=5)
    with pytest.raises(BadInputError, match="trained for block size 5, not 7"):
        load_draft(tmp_path, gamma=7)


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        (lambda tensors: tensors.pop("fc.weight"), "fc.weight", "misses 1"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra", "unexpected 1"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(3)}), "norm.weight", "wrong shape"),
        (
            lambda tensors: tensors.update({"norm.weight": tensors["norm.weight"].bfloat16()}),
            "dtype",
            "mixed dtypes",
        ),
    ],
)
def test_wrong_weights_are_named(target: Any, tmp_path: Path, change: Any, field: str, says: str) -> None:
    make_draft(target, tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(BadInputError, match=says) as raised:
        load_draft(tmp_path)
    assert raised.value.field == field


def test_an_explicit_dtype_converts_a_mixture(target: Any, tmp_path: Path) -> None:
    make_draft(target, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"norm.weight": tensors["norm.weight"].bfloat16()}))
    loaded = load_draft(tmp_path, dtype=torch.float32)
    assert isinstance(loaded, DSparkDraft)
    assert loaded.norm.weight.dtype == torch.float32


def test_files_that_are_not_safetensors_are_refused(target: Any, tmp_path: Path) -> None:
    make_draft(target, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\x80\x04 not a tensor"):
        weights.write_bytes(broken)
        with pytest.raises(BadInputError, match="not a readable safetensors") as raised:
            load_draft(tmp_path)
        assert raised.value.source == str(weights)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="pickled weights are never opened"):
        load_draft(tmp_path)


def test_a_sharded_checkpoint_loads(target: Any, tmp_path: Path) -> None:
    expected = make_draft(target, tmp_path).state_dict()
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, tmp_path / file)
    weights.unlink()
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_draft(tmp_path)
    assert isinstance(loaded, DSparkDraft)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in expected.items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(BadInputError, match="the index lists it"):
        load_draft(tmp_path)


def test_a_file_or_an_unknown_path_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "draft.txt"
    file.write_text("")
    with pytest.raises(BadInputError, match="not a model folder"):
        load_draft(file)
    with pytest.raises(BadInputError, match="neither a folder"):
        load_draft(tmp_path / "absent")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("vocab_size", {"vocab_size": 96}),
        ("hidden_size", {"hidden_size": 48}),
        ("num_target_layers", {"num_hidden_layers": 5}),
    ],
)
def test_a_draft_for_another_target_is_refused(
    target: Any, make_target: MakeTarget, field: str, fields: dict[str, Any]
) -> None:
    draft = new_dspark(target, mask_token_id=1)
    with pytest.raises(BadInputError, match="for the draft and") as raised:
        generate(make_target(**fields), draft, [1], max_new_tokens=1)
    assert raised.value.field == field


def test_mixed_dtypes_between_draft_and_target_are_refused(target: Any) -> None:
    draft = new_dspark(target, mask_token_id=1).bfloat16()
    with pytest.raises(BadInputError, match=r"torch\.bfloat16 for the draft and torch\.float32"):
        check_pair(target, draft)


def test_another_tokenizer_is_refused(target: Any, tmp_path: Path) -> None:
    draft = make_draft(target, tmp_path)
    vocabulary = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "<m>", "id": 2}]}
    (target.folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    check_pair(target, draft)  # the draft brings none to compare
    ours = tmp_path / "tokenizer.json"
    ours.write_text(json.dumps({"model": {"vocab": [["a", 0.1], ["b", 0.2], ["<m>", 0.0]]}}))
    check_pair(target, draft)  # same ids, other kind of tokenizer
    swapped = tmp_path / "swapped"
    save_draft(draft, swapped)
    (swapped / "tokenizer.json").write_text(json.dumps(vocabulary | {"model": {"vocab": {"b": 0, "a": 1}}}))
    with pytest.raises(BadInputError, match="gives 4 tokens other ids"):
        check_pair(target, load_draft(swapped))
    other = tmp_path / "other"
    save_draft(draft, other)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match="is not a tokenizer"):
        check_pair(target, load_draft(other))
    (target.folder / "tokenizer.json").unlink()


def test_only_drafts_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot save a Linear"):
        save_draft(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_an_mtp_draft_generates(target: Any) -> None:
    draft = new_mtp(target)
    assert isinstance(draft, MTPDraft)
    generation = generate(target, draft, [1, 2, 3], max_new_tokens=8, temperature=1.0)
    assert len(generation.output_ids) == 8
    assert {len(item.draft_tokens) for item in generation.rounds} == {1}
