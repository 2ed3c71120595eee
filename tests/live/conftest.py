"""Small models for the tests of ``simulator.live``, and the reference's fixtures where they are at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("torch") is None or find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]  # the [live] extra is not installed
else:
    import torch
    import transformers
    from packaging.version import Version
    from safetensors.torch import load_file
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from simulator.live.families.architectures import NEEDS
    from simulator.live.models.draft import Draft
    from simulator.live.models.pairs import load_draft
    from simulator.live.models.targets import Target, load_target

REFERENCE = Path(os.environ.get("DSPARK_REFERENCE", Path(__file__).parents[1] / "support" / "deepspec"))
"""Golden fixtures of the reference; others of the same form may be named to be tried too."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Golden:
    """One variant of the reference: its recorded runs, its tensors and the pair that made them."""

    runs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    target: Target
    draft: Draft
    folder: Path


@pytest.fixture(scope="session", params=["vanilla-block7", "rnn-block7"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """The reference's fixture."""
    folder = REFERENCE / request.param
    return Golden(
        runs=json.loads((folder / "golden.json").read_text()),
        tensors=load_file(folder / "golden.safetensors"),
        target=load_target(folder / "target"),
        draft=load_draft(folder / "draft"),
        folder=folder,
    )


_TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def randomise(module: torch.nn.Module, seed: int, spread: float) -> None:
    """Give every parameter, norms and biases too, a random value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else spread * noise)


def skip_unless_known(kind: str) -> None:
    """Skip where this transformers knows no such kind of model, or not as it is supported."""
    if kind not in CONFIG_MAPPING or Version(transformers.__version__) < Version(NEEDS.get(kind, "0")):
        pytest.skip(f"transformers {transformers.__version__} does not know {kind} as it is supported")


MakeTarget = Callable[..., "Target"]


@pytest.fixture(scope="session")
def make_target(tmp_path_factory: pytest.TempPathFactory) -> MakeTarget:
    """Build a tiny random target of any architecture, saved and loaded as a user would."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(
        model_type: str = "qwen3", *, vocab_size: int = 64, spread: float = 0.25, seed: int = 0, **fields: Any
    ) -> Target:
        skip_unless_known(model_type)
        config = AutoConfig.for_model(model_type, **(_TINY | {"vocab_size": vocab_size} | fields))
        model = AutoModelForCausalLM.from_config(config)
        randomise(model, seed, spread)
        model.tie_weights()
        folder = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        return load_target(folder)

    return build
