"""The MTP module of DeepSeek-V3's checkpoint against itself spelled out, and served with its target."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from simulator.core.errors import BadInputError
from simulator.engine.limits import EngineLimits
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompt_rows import prompt_rows_for
from simulator.live.models.drafts.deepseek import DeepSeekMTPDraft
from simulator.live.models.pairs import check_pair, load_draft, load_pair, save_draft
from simulator.live.models.targets import load_target
from simulator.live.tracing.generate import generate
from simulator.schedulers.policies import Fixed
from tests.live.conftest import _TINY, MakeTarget
from tests.live.engine.attention.test_ragged import LATENT
from tests.live.engine.test_executor import own_greedy, prompts, serve, workload
from tests.support.deepseek_mtp import MTPOracle, module_tensors
from tests.support.drafts import assert_batches_agree

FIELDS: dict[str, Any] = _TINY | LATENT | {
    "vocab_size": 64, "routed_scaling_factor": 1.7, "norm_topk_prob": True, "rms_norm_eps": 1e-6,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "mscale": 0.8, "mscale_all_dim": 0.8,
    "original_max_position_embeddings": 64,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "experts": {},
    "groups": {"n_routed_experts": 6, "n_group": 3, "topk_group": 2},
    "stretched contexts": {"rope_parameters": YARN},
    "halves rotated": {"rope_interleave": False},
    "whole queries": {"q_lora_rank": None},
    "dense": {"first_k_dense_replace": 5},
    "no copies of what is shared": {},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def a_checkpoint(make_target: MakeTarget, variant: str) -> tuple[Path, dict[str, Any]]:
    """A target's folder with an MTP module behind its layers, as DeepSeek publishes it."""
    fields = FIELDS | VARIANTS[variant]
    target = make_target("deepseek_v3", **fields)
    assert target.folder is not None
    tensors = module_tensors(fields, shared="no copies" not in variant, experts=variant != "dense")
    path = target.folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})
    edit(target.folder, num_nextn_predict_layers=1, architectures=["DeepseekV3ForCausalLM"])
    return target.folder, fields


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def oracle_of(folder: Path, target: Any, fields: dict[str, Any]) -> MTPOracle:
    scale = (fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]) ** -0.5
    if "rope_parameters" in fields:
        scale *= (0.1 * 0.8 * math.log(4.0) + 1) ** 2
    frequencies = target.model.model.rotary_emb.inv_freq
    return MTPOracle(load_file(folder / "model.safetensors"), fields, frequencies, scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_run_k_times_is_the_module_spelled_out(make_target: MakeTarget, variant: str) -> None:
    folder, fields = a_checkpoint(make_target, variant)
    target, draft = load_target(folder), load_draft(folder, gamma=3)
    check_pair(target, draft)
    oracle = oracle_of(folder, target, fields)
    tokens = torch.tensor([PROMPT])
    states = target.forward(tokens[:, :-1], layer_ids=draft.target_layer_ids).features
    proposal = draft.propose(states[0], tokens[0, 1:], torch.tensor([7]), draft.new_cache(1, 12))
    known, following = states[0], tokens[0, 1:]
    for k in range(3):
        normed, logits = oracle.run(known, following)
        torch.testing.assert_close(proposal.logits[0, k].double(), logits[-1], atol=1e-4, rtol=1e-4)
        token = logits[-1].argmax()
        assert proposal.tokens[0, k] == token
        known, following = torch.cat((known, normed[-1:].float())), torch.cat((following, token[None]))


def test_batches_packed_blocks_and_single_requests_agree(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    target, draft = load_target(folder), load_draft(folder, gamma=3)
    assert_batches_agree(target, draft)


def test_served_with_its_target_it_changes_nothing(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    target, drafts = load_pair(str(folder), [f"mtp3={folder}"], "cpu", None, 1)
    draft = drafts["mtp3"]
    assert (draft.gamma, draft.has_confidence, draft.digest) == (3, False, load_draft(folder, gamma=3).digest)
    load = workload(6, seed=4)
    expected = {
        r: own_greedy(target, prompts(r, int(load.prompt_tokens[r])).tolist(), int(load.output_tokens[r]))
        for r in range(6)
    }
    limits = EngineLimits(3, prefill="chunked", chunk_tokens=5)
    executor = LiveExecutor(
        target, draft, load, concurrency=3, prompts=prompts, prompt_rows=prompt_rows_for(load, limits),
        options=LiveOptions(keep_tokens=True),
    )  # fmt: skip
    engine = serve(executor, Fixed(3), load, limits)
    assert engine.completed == 6
    for request, tokens in expected.items():
        assert executor.outputs[request][: len(tokens)] == tokens
        prompt = prompts(request, int(load.prompt_tokens[request])).tolist()
        run = generate(target, draft, prompt, max_new_tokens=len(tokens))
        assert run.output_ids == tokens
    assert executor.passes.draft_cache is not None
    # A rank of 20 and 8 rotated numbers of one head: the values are part of the keys.
    assert executor.passes.draft_cache.keys.shape[2::2] == (1, 28)
    assert executor.passes.draft_cache.values.data_ptr() == executor.passes.draft_cache.keys.data_ptr()


def test_the_target_reads_its_checkpoint_without_the_module(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    with_module = load_target(folder).forward(torch.tensor([PROMPT])).logits
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layers.4." not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_target(folder).forward(torch.tensor([PROMPT])).logits, with_module)
    with pytest.raises(BadInputError, match=r"holds no tensors model\.layers\.4\.\*"):
        load_draft(folder)


def test_weights_of_8_bits_are_multiplied_by_the_scales_of_their_blocks(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    path, name = folder / "model.safetensors", "model.layers.4.self_attn.o_proj.weight"
    tensors = load_file(path)
    rows, columns = tensors[name].shape
    scales = torch.rand(-(-rows // 16), -(-columns // 20), generator=torch.Generator().manual_seed(0)) + 0.5
    narrow = tensors[name].to(torch.float8_e4m3fn)
    expected = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            expected[i, j] = float(narrow[i, j]) * float(scales[i // 16, j // 20])
    save_file(tensors | {name: narrow, name + "_scale_inv": scales}, path, metadata={"format": "pt"})
    edit(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 20]})
    draft = load_draft(folder, dtype=torch.bfloat16)
    state = draft.state_dict() if isinstance(draft, DeepSeekMTPDraft) else {}
    torch.testing.assert_close(state["layer.self_attn.o_proj.weight"], expected.bfloat16())
    assert state["layer.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    with pytest.raises(TypeError, match="cannot save"):
        save_draft(draft, folder / "again")


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"num_nextn_predict_layers": 0}, "num_nextn_predict_layers", "must be 1"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers", "must be 1"),
        ({"scoring_func": "softmax"}, "scoring_func", "only 'sigmoid'"),
        ({"model_type": "deepseek_v2"}, "model_type", "only 'deepseek_v3'"),
        ({"kv_lora_rank": None}, "kv_lora_rank", "is missing"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config", "only fp8"),
    ],
)
def test_configs_of_another_kind_are_refused(
    make_target: MakeTarget, change: dict[str, Any], field: str, problem: str
) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    edit(folder, **change)
    with pytest.raises(BadInputError, match=problem) as raised:
        load_draft(folder)
    assert raised.value.field == field


def test_a_module_without_one_of_its_experts_is_refused(make_target: MakeTarget) -> None:
    folder, _ = a_checkpoint(make_target, "experts")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.4.mlp.experts.2.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInputError, match="misses"):
        load_draft(folder)
