"""Targets: states without paying for all of them, random shapes, and refusals before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from simulator.core.errors import BadInputError
from simulator.live.models import checkpoints, targets
from simulator.live.models.targets import PRESETS, load_target
from tests.live.conftest import MakeTarget

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma2", "gemma3_text"])
def target(request: pytest.FixtureRequest, make_target: MakeTarget) -> Any:
    return make_target(request.param)


def test_states_are_those_of_transformers(target: Any) -> None:
    theirs = target.model(TOKENS, output_hidden_states=True)
    ours = target.forward(TOKENS, layer_ids=(-1, 0, 2, 4))
    states = [theirs.hidden_states[index] for index in (0, 1, 3)]
    states.append(theirs.hidden_states[-1])  # behind the final norm
    torch.testing.assert_close(ours.features, torch.cat(states, dim=-1), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_the_last_layers_raw_state_becomes_the_final_one_by_the_norm(target: Any) -> None:
    features = target.forward(TOKENS, layer_ids=(3, 4)).features
    raw, final = features.chunk(2, dim=-1)
    torch.testing.assert_close(target.model.get_decoder().norm(raw), final)


def test_hooks_are_gone_after_a_forward_pass(target: Any) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in target.model.modules())

    target.forward(TOKENS)
    before = hooks()  # transformers has some of its own
    target.forward(TOKENS, layer_ids=(-1, 1, 4))
    with pytest.raises(BadInputError, match="from -1"):
        target.forward(TOKENS, layer_ids=(1, 9))
    assert hooks() == before


def test_a_cropped_cache_continues_as_if_nothing_had_been_dropped(target: Any) -> None:
    cache = target.new_cache()
    target.forward(TOKENS, cache=cache)
    target.crop(cache, 3)
    target.crop(cache, 3)  # already that short
    again = target.forward(torch.tensor([[9, 8]]), layer_ids=(1,), cache=cache)
    fresh = target.forward(torch.tensor([[3, 1, 4, 9, 8]]), layer_ids=(1,))
    torch.testing.assert_close(again.logits, fresh.logits[:, 3:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.features, fresh.features[:, 3:], atol=1e-4, rtol=1e-4)


def test_only_the_last_logits_on_request(target: Any) -> None:
    last = target.forward(TOKENS, last_logits_only=True)
    torch.testing.assert_close(last.logits, target.forward(TOKENS).logits[:, -1:])
    assert last.features.shape == (1, 5, 0)


@pytest.fixture
def folder(make_target: MakeTarget, tmp_path: Path) -> Path:
    copy = tmp_path / "target"
    shutil.copytree(make_target().folder, copy)
    return copy


def test_random_weights_of_a_config_depend_on_the_seed_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    first, second, other = (load_target(folder, config_only=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.head, second.head)
    assert not torch.equal(first.head, other.head)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loading_converts_to_the_dtype_but_not_the_rotary_table(folder: Path, dtype: torch.dtype) -> None:
    for config_only in (False, True):
        target = load_target(folder, dtype=dtype, config_only=config_only)
        assert {parameter.dtype for parameter in target.model.parameters()} == {dtype}
        assert target.model.get_decoder().rotary_emb.inv_freq.dtype == torch.float32


# Parameter counts as published on the models' pages, in billions.
@pytest.mark.parametrize(("name", "billions"), [("qwen3-4b", 4.02), ("qwen3-8b", 8.19), ("qwen3-14b", 14.77)])
def test_presets_have_their_true_size_and_say_so_before_loading(
    name: str, billions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 2**30)
    gibibytes = 2 * billions * 1e9 / 2**30
    with pytest.raises(
        BadInputError, match=r"weights need \d+\.\d+ GiB and cpu has 1\.00 GiB free"
    ) as raised:
        load_target(name)
    said = float(str(raised.value).split("need ")[1].split(" GiB")[0])
    assert said == pytest.approx(gibibytes, rel=0.002)


def test_a_preset_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    small = PRESETS["qwen3-4b"] | {"num_hidden_layers": 1, "vocab_size": 64}
    monkeypatch.setitem(PRESETS, "qwen3-4b", small)
    target = load_target("qwen3-4b", device="cpu")
    assert (target.hidden_size, target.dtype, target.num_layers) == (2560, torch.bfloat16, 1)
    assert target.head.data_ptr() == target.embedding.data_ptr()


def test_available_memory_is_plausible_and_unknown_devices_are_not_guessed() -> None:
    available = checkpoints.available_bytes(torch.device("cpu"))
    assert available is None or available > 0
    assert checkpoints.available_bytes(torch.device("meta")) is None


def test_too_little_memory_is_said_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(targets, "_pretrained", lambda *_: pytest.fail("loaded all the same"))
    with pytest.raises(BadInputError, match="weights need"):
        load_target(folder)


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_left_over_weights_are_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadInputError, match="missing keys") as raised:
        load_target(folder)
    assert raised.value.field == "model.layers.1.mlp.up_proj.weight"
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.1.mlp.up_proj.weight": torch.zeros(48, 32), "model.extra": torch.zeros(1)}
        ),
    )
    with pytest.raises(BadInputError, match="unexpected keys"):
        load_target(folder)


def test_wrong_shapes_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(BadInputError, match=r"mismatch|cannot be loaded"):
        load_target(folder)


def test_corrupt_and_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="not a readable safetensors"):
        load_target(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="pickled weights are never opened"):
        load_target(folder)


def test_the_dtype_is_the_one_the_config_states(folder: Path) -> None:
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    fields.pop("dtype", None)
    config.write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
    assert load_target(folder).dtype == torch.bfloat16
    config.write_text(json.dumps(fields | {"dtype": "float64"}))
    assert load_target(folder).dtype == torch.float64
    config.write_text(json.dumps(fields | {"dtype": "float33"}))
    with pytest.raises(BadInputError, match="not a torch dtype"):
        load_target(folder)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 77.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_both_spellings_of_rope_are_read(folder: Path, spelling: dict[str, Any]) -> None:
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        fields.pop(name, None)
    config.write_text(json.dumps(fields | spelling))
    frequencies = load_target(folder).model.get_decoder().rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 77.0 ** -(torch.arange(0, 16, 2) / 16) / 2)


def test_configs_that_are_no_causal_model_are_refused(folder: Path) -> None:
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"model_type": "no-such-model"}))
    with pytest.raises(BadInputError, match="is not a model that this transformers"):
        load_target(folder)
    config.write_text(json.dumps(fields | {"hidden_act": "zzz"}))
    with pytest.raises(
        BadInputError, match=r"config.json: describes no model that transformers can build.*zzz"
    ):
        load_target(folder)
    config.write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(BadInputError, match="is a kind of target whose verification pass is not tested"):
        load_target(folder)
    config.write_text("[]")
    with pytest.raises(BadInputError, match="must hold a JSON object"):
        load_target(folder)
    config.write_text("{")
    with pytest.raises(BadInputError, match=r"not .*JSON"):
        load_target(folder)
