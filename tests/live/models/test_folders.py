"""Model folders that could run code of their own, or list what is not theirs, are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from simulator.core.errors import BadInputError
from simulator.live.models.pairs import load_draft
from simulator.live.models.targets import load_target
from simulator.live.tracing.run import shipped_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped_pair() / "target", tmp_path / "target"))


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_nested_config_without_a_kind_is_refused(folder: Path) -> None:
    change(folder, text_config={"hidden_size": 128})
    with pytest.raises(BadInputError, match=r"target/config\.json: model_type: is a kind of target"):
        load_target(folder)


def test_what_is_refused_is_said_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change(folder, intermediate_size=512)
    with pytest.raises(BadInputError, match=r"mismatched keys in the checkpoint"):
        load_target(folder)
    said = capfd.readouterr()
    assert "MISMATCH" not in said.err + said.out


def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    change(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    for load in (load_target, load_draft):
        with pytest.raises(
            BadInputError, match=r"target/config\.json: auto_map: asks for Python code of its own"
        ):
            load(folder)
    assert not mark.exists()


def test_code_beside_a_model_that_transformers_knows_is_left_alone(folder: Path) -> None:
    """DeepSeek's own checkpoints name code of theirs for older versions of transformers."""
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    before = load_target(folder).forward(torch.tensor([[3, 1, 4]])).logits
    change(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert torch.equal(load_target(folder).forward(torch.tensor([[3, 1, 4]])).logits, before)


@pytest.mark.parametrize("listed", [None, {}, {"w": "../../secret.safetensors"}, {"w": 3}, []])
def test_an_index_lists_files_of_its_own_folder(folder: Path, listed: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(
        BadInputError, match=r"index\.json: weight_map: must map each tensor to a file of this folder"
    ):
        load_target(folder)


@pytest.mark.parametrize(
    "fields", [{"hidden_act": "zzz"}, {"rope_parameters": [1]}, {"num_hidden_layers": "4"}]
)
def test_a_config_that_transformers_trips_over_is_bad_input(folder: Path, fields: dict[str, object]) -> None:
    change(folder, **fields)
    with pytest.raises(BadInputError, match="target"):
        load_target(folder)
