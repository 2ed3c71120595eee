"""Targets with sinks, experts, latents or heads of two widths, served: joins, moves, leaves and chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from simulator.core.errors import BadInputError
from simulator.engine.limits import EngineLimits
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompt_rows import prompt_rows_for
from simulator.live.models.pairs import new_dspark
from simulator.live.models.targets import load_target
from simulator.schedulers.policies import Fixed
from tests.live.conftest import _TINY, MakeTarget, randomise, skip_unless_known
from tests.live.engine.attention.test_ragged import GEMMA4, KINDS, VARIANTS, fill
from tests.live.engine.test_executor import Prophet, own_greedy, prompts, serve, workload

LOAD = workload(7, seed=4)


@pytest.fixture(scope="module")
def served_target(make_target: MakeTarget) -> Callable[[str], tuple[Any, dict[int, list[int]]]]:
    """A target by kind, and its own output for every request of ``LOAD``: each once."""

    @cache
    def made(kind: str) -> tuple[Any, dict[int, list[int]]]:
        name = kind.split()[0]
        skip_unless_known(name)
        target = make_target(name, **(VARIANTS.get(kind) or KINDS[name]))
        sizes = zip(LOAD.prompt_tokens.tolist(), LOAD.output_tokens.tolist(), strict=True)
        return target, {
            request: own_greedy(target, prompts(request, prompt).tolist(), output)
            for request, (prompt, output) in enumerate(sizes)
        }

    return made


@pytest.mark.parametrize("kind", ["gpt_oss", "gemma4_text", "gemma4_text shared", "deepseek_v3"])
@pytest.mark.parametrize("prefill", ["whole", "chunked"])
def test_served_requests_have_the_targets_own_output(
    served_target: Callable[[str], tuple[Any, dict[int, list[int]]]], kind: str, prefill: Any
) -> None:
    target, expected = served_target(kind)
    draft: Any = Prophet(new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=4),
                         expected.values())  # fmt: skip
    limits = EngineLimits(3, prefill=prefill, chunk_tokens=5)
    executor = LiveExecutor(
        target, draft, LOAD, concurrency=3, prompts=prompts, prompt_rows=prompt_rows_for(LOAD, limits),
        options=LiveOptions(keep_tokens=True),
    )  # fmt: skip
    engine = serve(executor, Fixed(3), LOAD, limits)
    assert engine.completed == len(LOAD)
    for request, tokens in expected.items():
        if len(tokens) > 1:
            assert executor.outputs[request][: len(tokens)] == tokens
    assert sum(step.accepted_tokens for step in engine.steps) > 5


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_unified"])
def test_the_whole_gemma_4_with_its_eyes_is_run_by_its_decoder(kind: str, tmp_path: Path) -> None:
    skip_unless_known(kind)
    text = _TINY | GEMMA4 | {"vocab_size": 64, "pad_token_id": 0, "model_type": f"{kind}_text"}
    eyes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    parts = {"text_config": text, "audio_config": None}
    if kind == "gemma4":
        parts["vision_config"] = eyes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **parts))
    randomise(model, seed=0, spread=0.2)
    model.tie_weights()
    model.save_pretrained(tmp_path)
    target = load_target(tmp_path)
    tokens = torch.randint(5, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    ragged, ids = RaggedTarget(target), (-1, 1, 4)
    rows = RaggedRows.of(torch.tensor([2, 5]), torch.tensor([12, 3]), 7, block=5, context=14)
    output = ragged.forward(
        torch.cat((tokens[0, 12:14], tokens[1, 3:8])), [rows], fill(ragged, tokens, [12, 3]), layer_ids=ids
    )
    own = [target.forward(tokens[:1, :14], layer_ids=ids), target.forward(tokens[1:, :8], layer_ids=ids)]
    for name in ("logits", "features"):
        expected = torch.cat((getattr(own[0], name)[0, 12:], getattr(own[1], name)[0, 3:]))
        torch.testing.assert_close(getattr(output, name), expected, atol=1e-4, rtol=1e-4)
    decoder = model.get_decoder()
    assert target.weights_read == sum(each.numel() for each in decoder.parameters())


def test_the_states_of_layers_that_share_keys_are_whole(make_target: MakeTarget) -> None:
    skip_unless_known("gemma4_text")
    target = make_target("gemma4_text", **VARIANTS["gemma4_text shared"])
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    last = target.forward(tokens, layer_ids=(3,), cache=target.new_cache(), last_logits_only=True)
    torch.testing.assert_close(last.features, target.forward(tokens, layer_ids=(3,)).features)


def test_an_older_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma4"}')
    older = SimpleNamespace(__version__="5.17.0")
    monkeypatch.setattr("simulator.live.families.architectures.transformers", older)
    with pytest.raises(BadInputError, match=r"tested with transformers 5\.24, and this is 5\.17\.0"):
        load_target(tmp_path)


def test_a_cache_of_latents_holds_one_head(make_target: MakeTarget) -> None:
    target = make_target("deepseek_v3", **KINDS["deepseek_v3"])
    cache = RaggedTarget(target).new_cache(2, 10)
    # A rank of 20 and 8 rotated numbers, of 4 layers, 2 rows and one for padding, and a page of 256.
    assert cache.keys.numel() == 4 * 3 * 256 * 28
    assert cache.values.data_ptr() == cache.keys.data_ptr()
    assert target.bytes_read(100) - target.bytes_read(0) == 4 * 100 * 4 * 28
    with pytest.raises(BadInputError, match="is refused for keys of two widths"):
        RaggedTarget(target, "varlen")
