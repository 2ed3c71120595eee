"""DeepSpec's other packagings against plain recomputations: Eagle3, and three drafts for Gemma 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simulator.core.errors import BadInputError
from simulator.live.models import pairs
from simulator.live.models.checkpoints import Fields, save_model
from simulator.live.models.drafts.dspark import DSparkConfig, DSparkDraft
from simulator.live.models.drafts.eagle3 import Eagle3Config, Eagle3Draft
from simulator.live.models.drafts.mtp import MTPDraft
from simulator.live.models.pairs import load_draft, new_eagle3, new_mtp, save_draft
from simulator.live.tracing.generate import generate
from simulator.live.tracing.record import judge
from tests.live.conftest import MakeTarget, randomise, skip_unless_known
from tests.support.drafts import assert_batches_agree
from tests.support.gemma_oracle import GemmaOracle, eagle3_logits
from tests.support.oracle import Oracle

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GEMMA = {
    "model_type": "gemma4_text", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "global_head_dim": 24, "head_dim": 16, "attention_k_eq_v": True, "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 3.0, "hidden_size_per_layer_input": 0, "enable_moe_block": False,
    "rms_norm_eps": 1e-6, "num_target_layers": 4, "target_layer_ids": [0, 2],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e6},
    },
}  # fmt: skip
"""A released config's fields, small."""

DSPARK = {
    "architectures": ["Gemma4DSparkModel"], "num_hidden_layers": 2, "block_size": 5, "mask_token_id": 4,
    "num_anchors": 8, "markov_rank": 6, "markov_head_type": "vanilla", "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}  # fmt: skip
DFLASH = DSPARK | {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False}
EAGLE = {"architectures": ["Gemma4Eagle3Model"], "num_hidden_layers": 1, "ttt_length": 4}


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(spread=0.1)


def in_a_folder(draft: Any, fields: dict[str, Any], folder: Path) -> Any:
    """A random draft with DeepSpec's own config.json, loaded as a user would."""
    randomise(draft, seed=7, spread=0.2)
    for name, buffer in draft.named_buffers():
        if "layer_scalar" in name:
            buffer.fill_(0.7)
    save_model(folder, fields, draft.state_dict())
    return load_draft(folder)


@pytest.fixture(params=["DSpark", "DFlash", "DSpark with values"])
def gemma_draft(request: pytest.FixtureRequest, tmp_path: Path) -> DSparkDraft:
    fields: dict[str, Any] = GEMMA | (DFLASH if request.param == "DFlash" else DSPARK)
    if "values" in request.param:
        fields |= {"attention_k_eq_v": False, "final_logit_softcapping": None}
    draft = DSparkDraft(DSparkConfig.from_fields(Fields(fields, "a test")))
    loaded = in_a_folder(draft, fields, tmp_path)
    assert isinstance(loaded, DSparkDraft)
    return loaded


def test_drafts_for_gemma_4_are_the_naive_recomputation(
    target: Any, gemma_draft: DSparkDraft, tmp_path: Path
) -> None:
    oracle = GemmaOracle(tmp_path)
    run = generate(target, gemma_draft, PROMPT, max_new_tokens=8, temperature=1.0, seed=3, keep_tensors=True)
    tokens = PROMPT + run.output_ids
    rounds = [each for each in run.rounds if each.start < len(tokens)]
    assert len(rounds) > 2
    for item in rounds:
        assert item.tensors is not None
        features = target.forward(
            torch.tensor([tokens[: item.start]]), layer_ids=gemma_draft.target_layer_ids
        ).features[0]
        hidden = oracle.hidden(features, item.anchor_token)
        logits, confidences = oracle.logits_and_confidences(
            hidden, item.anchor_token, list(item.draft_tokens)
        )
        torch.testing.assert_close(item.tensors.hidden, hidden, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(item.tensors.logits, logits, atol=1e-4, rtol=1e-4)
        if gemma_draft.has_confidence:
            torch.testing.assert_close(
                torch.tensor(item.confidence_logits), confidences, atol=1e-4, rtol=1e-4
            )


def test_a_draft_for_gemma_4_has_deepspecs_state_dict_and_is_saved_as_it_was(
    gemma_draft: DSparkDraft, tmp_path: Path
) -> None:
    names = set(load_file(tmp_path / "model.safetensors"))
    layer = {each.removeprefix("layers.1.") for each in names if each.startswith("layers.1.")}
    shared = gemma_draft.config.gemma is not None and gemma_draft.config.gemma.attention_k_eq_v
    assert layer == {
        "input_layernorm.weight", "post_attention_layernorm.weight", "pre_feedforward_layernorm.weight",
        "post_feedforward_layernorm.weight", "layer_scalar", "mlp.gate_proj.weight", "mlp.up_proj.weight",
        "mlp.down_proj.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
    } | (set() if shared else {"self_attn.v_proj.weight"})  # fmt: skip
    save_draft(gemma_draft, tmp_path / "again")
    again = load_draft(tmp_path / "again")
    assert again.digest == gemma_draft.digest


def eagle_for(kind: str, target: Any, folder: Path) -> Any:
    if kind == "Gemma 4":
        fields: dict[str, Any] = GEMMA | EAGLE
        return in_a_folder(Eagle3Draft(Eagle3Config.from_fields(Fields(fields, "a test"))), fields, folder)
    draft = new_eagle3(target, ttt_length=4, target_layer_ids=[0, 2])
    return in_a_folder(draft, draft.config.to_dict(), folder)


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma 4"])
def test_eagle3_is_the_naive_recomputation(target: Any, tmp_path: Path, kind: str) -> None:
    draft = eagle_for(kind, target, tmp_path)
    oracle = GemmaOracle(tmp_path) if kind == "Gemma 4" else Oracle(tmp_path)
    run = generate(target, draft, PROMPT, max_new_tokens=14, temperature=1.0, seed=3, keep_tensors=True)
    tokens = PROMPT + run.output_ids
    rounds = [each for each in run.rounds if each.start < len(tokens)]
    assert len(rounds) > 2
    for item in rounds:
        assert item.tensors is not None
        features = target.forward(
            torch.tensor([tokens[: item.start]]), layer_ids=draft.target_layer_ids
        ).features[0]
        following = tokens[1 : item.start + 1]
        wanted = eagle3_logits(oracle, features, following, list(item.draft_tokens))
        torch.testing.assert_close(item.tensors.logits, wanted, atol=1e-4, rtol=1e-4)


def mtp3(target: Any, folder: Path) -> Any:
    draft = new_mtp(target)
    randomise(draft, seed=7, spread=0.2)
    save_draft(draft, folder)
    return load_draft(folder, gamma=3)


def test_mtp_k_feeds_its_normed_output_back(target: Any, tmp_path: Path) -> None:
    """Each step recomputed over the whole sequence, whose last states are the module's own."""
    draft = mtp3(target, tmp_path)
    assert (draft.gamma, load_draft(tmp_path).gamma) == (3, 1)
    tokens = torch.tensor([PROMPT])
    states = target.forward(tokens[:, :-1], layer_ids=draft.target_layer_ids).features
    proposal = draft.propose(states[0], tokens[0, 1:], torch.tensor([7]), draft.new_cache(1, 12))
    following = tokens[:, 1:]
    for k in range(3):
        hidden = draft.sequence_hidden(states, following)
        logits = draft.lm_head(hidden[:, -1])
        torch.testing.assert_close(proposal.logits[:, k], logits, atol=1e-4, rtol=1e-4)
        assert proposal.tokens[0, k] == logits.argmax()
        states = torch.cat((states, hidden[:, -1:]), dim=1)
        following = torch.cat((following, logits.argmax(-1)[:, None]), dim=1)


@pytest.mark.parametrize("kind", ["Eagle3", "Eagle3 for Gemma 4", "MTP-3"])
def test_chained_drafts_in_a_batch_packed_and_alone_agree(target: Any, tmp_path: Path, kind: str) -> None:
    draft = mtp3(target, tmp_path) if kind == "MTP-3" else eagle_for(kind[11:] or "Qwen3", target, tmp_path)
    assert_batches_agree(target, draft)


@pytest.mark.parametrize("kind", ["Eagle3", "MTP-3"])
def test_speculation_with_chained_drafts_changes_nothing_and_traces_replay_it(
    target: Any, tmp_path: Path, kind: str
) -> None:
    draft = mtp3(target, tmp_path) if kind == "MTP-3" else eagle_for("Qwen3", target, tmp_path)
    run = generate(target, draft, PROMPT, max_new_tokens=16)
    cache, own, last = target.new_cache(), [], torch.tensor([PROMPT])
    for _ in range(16 + draft.gamma):
        last = target.forward(last, cache=cache).logits[:, -1:].argmax(-1)
        own.append(int(last))
    assert run.output_ids == own[:16]
    anchors = torch.tensor([each.start for each in run.rounds if each.start < len(PROMPT) + 16])
    judged = judge(target, draft, torch.tensor([PROMPT + own]), anchors, ("greedy",))
    assert judged.outcomes["greedy"][0].tolist() == [each.accepted for each in run.rounds[: len(anchors)]]


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers", "of one layer"),
        ({"target_layer_ids": [0, 3]}, "target_layer_ids", "from 0 to 2"),
        ({"ttt_length": 0}, "ttt_length", "whole number"),
        ({"model_type": "qwen3"}, "model_type", "gemma4_text"),
        ({"enable_moe_block": True}, "enable_moe_block", "only False"),
        ({"num_global_key_value_heads": 3}, "num_attention_heads", "multiple of the 3"),
    ],
)
def test_configs_that_are_no_eagle3_are_refused(change: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(BadInputError, match=problem) as raised:
        Eagle3Config.from_fields(Fields(GEMMA | EAGLE | change, "a test"))
    assert raised.value.field == field


def test_a_pair_asks_for_mtp_k_by_its_name(target: Any, tmp_path: Path) -> None:
    mtp3(target, tmp_path)
    _, drafts = pairs.load_pair(
        str(target.folder), ["mtp2=new", "mtpx=new:3", f"mtp4={tmp_path}", f"mtp={tmp_path}:5", "mtp1=new"],
        "cpu", None, 1,
    )  # fmt: skip
    found = {name: draft.gamma for name, draft in drafts.items()}
    assert found == {"mtp2": 2, "mtpx": 3, "mtp4": 4, "mtp": 5, "mtp1": 1}
    assert all(isinstance(draft, MTPDraft) for draft in drafts.values())


def test_the_layer_of_gemma_4_is_transformers_own(make_target: MakeTarget) -> None:
    """With the weights of a target's full layer: its keys are its values, and no context is injected."""
    skip_unless_known("gemma4_text")
    from simulator.live.models.drafts.blocks.gemma4 import GemmaBlock, read_gemma
    from simulator.live.models.layers import Rotary
    from tests.live.engine.attention.test_ragged import GEMMA4

    target = make_target("gemma4_text", **GEMMA4)
    theirs = target.model.get_decoder().layers[1]
    rope = json.loads(json.dumps(target.config.to_dict()["rope_parameters"]))
    shape, traits = read_gemma(Fields(GEMMA | {"num_hidden_layers": 1, "rope_parameters": rope}, "a test"))
    ours = GemmaBlock(shape, traits)
    ours.load_state_dict(theirs.state_dict())
    seen: dict[str, Any] = {}
    hook = theirs.register_forward_hook(
        lambda _, args, kwargs, output: seen.update(input=args[0], output=output), with_kwargs=True
    )
    target.forward(torch.tensor([PROMPT]))
    hook.remove()
    steps = torch.arange(len(PROMPT))
    causal = (steps <= steps[:, None])[None]
    output = ours(
        seen["input"], Rotary(shape)(steps, torch.float32),
        lambda keys, values: (keys.transpose(1, 2), values.transpose(1, 2)), causal,
    )  # fmt: skip
    torch.testing.assert_close(output, seen["output"], atol=1e-4, rtol=1e-4)
