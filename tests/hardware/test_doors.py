"""A model and a GPU in words: what is derived, what is refused, and what is said of a table that fails."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.profile import load_profile
from simulator.hardware.choose import Hardware, derive, profile_for, require_acceptance
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import layout
from simulator.hardware.models import load_model
from simulator.hardware.steps.formula import FormulaTimes
from tests.support.command_line import run

EAGLE = ("eagle3",)


@pytest.fixture
def without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an installation without the extra."""
    for name in [each for each in sys.modules if each.split(".")[0] == "aiconfigurator_core"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)  # type: ignore[arg-type]


def test_a_curve_is_derived_and_says_what_it_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "curve.json"
    words = ("profile", "derive", "--model", "qwen3-8b", "--gpu", "h100", "--tp", "2", "--engine", "vllm")
    assert run(*words, "--out", out) == 0
    said = capsys.readouterr().err
    assert re.search(r"gates: vllm [+-]\d+% of the median at most, used", said)
    profile = load_profile(out)
    assert profile.replica_gpus == 2
    assert set(profile.drafters or {}) == {"dspark", "mtp1"}
    origin = profile.provenance
    assert origin.kind == "kernels"
    assert str(origin.command).startswith("dspark-sim profile derive --model qwen3-8b --gpu h100 --tp 2")
    assert origin.software == {"aiconfigurator-core": "0.12.0"}
    assert "tables of vllm on h100_sxm" in origin.source
    assert re.search(r"sglang [+-]\d+% of the median at most, used", str(origin.notes))
    assert profile.step_time_band is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "qwen3-8b"), "--gpu: is missing; name --model and --gpu"),
        (("--gpu", "h100"), "--model: is missing"),
        (("--model", "qwen3-8b", "--gpu", "mi300x"), "no tables of measured kernels (got 'mi300x'); name"),
        (("--model", "qwen3-8b", "--gpu", "h1000"), "did you mean h100"),
    ],
)
def test_what_cannot_be_derived_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("profile", "derive", *words, "--out", tmp_path / "p.json") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


@pytest.mark.usefixtures("without_tables")
def test_without_the_extra_it_is_named_and_shipped_curves_answer() -> None:
    asked = Hardware(model="qwen3-8b", gpu="h100")
    with pytest.raises(BadInputError, match=r"pip install 'dspark-simulator\[silicon\]'"):
        derive(asked)
    assert profile_for(asked).profile.name == "kernels/h100/qwen3-8b-tp1-bf16"
    other = profile_for(Hardware(model="qwen3-8b", gpu="h100", engine="vllm"))
    assert other.profile == profile_for(asked).profile
    assert "the shipped curve answers" in other.notes[-1]
    modelled = profile_for(Hardware(model="qwen3-8b", gpu="h100", drafters=EAGLE))
    assert modelled.profile.provenance.kind == "modelled"
    assert "pip install 'dspark-simulator[silicon]'" in modelled.notes[-1]


def test_a_table_that_fails_its_gates_is_named_with_what_stands_in() -> None:
    """vLLM's products of 8-bit weights on B200 stand apart; SGLang's take less time with more rows."""
    found = profile_for(Hardware(model="qwen3-32b", gpu="b200", engine="vllm", precision="fp8"))
    said = "\n".join(found.notes)
    assert re.search(r"kernel tables: vllm [+-]\d+% of the median at most, refused, it stands apart", said)
    assert re.search(r"sglang .* refused, it falls by \d\d% as rows are added", said)
    assert "vllm was asked for, trtllm stands in" in said


def test_products_that_stand_in_for_an_engines_own_are_said() -> None:
    found = profile_for(Hardware(model="minimax-m2.5", gpu="h200", tp=4, engine="vllm"))
    assert "products scaled by rows stand in for vllm's block-scaled ones" in "\n".join(found.notes)


def test_tables_of_which_none_can_be_called_wrong_answer_with_their_distance_as_band() -> None:
    """Two engines' tables of gpt-oss-120b on H100 are twice and half of each other."""
    found = profile_for(Hardware(model="gpt-oss-120b", gpu="h100"))
    assert found.profile.provenance.kind == "kernels"
    assert found.profile.step_time_band is not None
    assert found.profile.step_time_band > 0.4
    assert all(f"{engine} " in "\n".join(found.notes) for engine in ("vllm", "sglang"))


def test_weights_without_a_matrix_unit_are_read_small_and_multiplied_in_16_bits() -> None:
    """gpt-oss in MXFP4 on H100: its weights, 4 bits each, at few rows; the rate of bf16 at many."""
    small = FormulaTimes(layout(load_model("gpt-oss-120b"), load_gpu("a100"), 1, "fp4"))
    eight = FormulaTimes(layout(load_model("qwen3-8b"), load_gpu("a100"), 1, "fp8"))
    sixteen = FormulaTimes(layout(load_model("qwen3-8b"), load_gpu("a100"), 1, "bf16"))
    assert eight.operations_s(1) < 0.75 * sixteen.operations_s(1)
    assert eight.operations_s(8192) == pytest.approx(sixteen.operations_s(8192), rel=0.02)
    met = 2 * 8192 * small.layout.model.active_parameters
    assert small.operations_s(8192) > met / small.layout.gpu.flop_per_s["bf16"]


def test_deepseek_v4_answers_by_the_formula_and_names_what_is_published() -> None:
    found = profile_for(Hardware(model="deepseek-v4-flash", gpu="h200"))
    assert found.profile.provenance.kind == "modelled"
    assert "has compressed attention, whose kernels are not composed" in found.notes[-1]
    assert "profile deepseek-v4-flash has its makers' published step times" in found.notes[-1]
    with pytest.raises(BadInputError, match="has compressed attention"):
        derive(Hardware(model="deepseek-v4-flash", gpu="h200"))


def test_experts_are_read_once_and_padded() -> None:
    """Qwen3-30B-A3B on H200: no faster than reading the experts that rows choose, nor than their products."""
    times = FormulaTimes(layout(load_model("qwen3-30b-a3b"), load_gpu("h200"), 1, "bf16"))
    model, gpu = times.layout.model, times.layout.gpu
    assert model.experts is not None
    for rows in (1, 64, 4096):
        touched = model.experts.touched(rows) * model.layers * model.expert_parameters
        assert times.operations_s(rows) > 2 * touched / gpu.bandwidth_bytes_per_s
        assert times.operations_s(rows) > 2 * rows * model.active_parameters / gpu.flop_per_s["bf16"]


def test_every_layout_of_a_node_that_fits_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Llama-3.1-70B in 16 bits: 131.4 GiB. Of 72 GiB on each of two H100 it leaves 2.8, and a draft none."""
    asked = Hardware(model="llama-3.1-70b", gpu="h100", drafters=())
    assert [each.gpus for each in asked.layouts()] == [2, 4, 8]
    big = Hardware(model="deepseek-v3", gpu="h100")  # 632 GiB: a node has 640, a tenth of them not for it
    assert [each.label for each in big.layouts()] == ["tp16", "tp1-dp16-ep16"]
    assert run("list", "--model", "llama-3.1-70b", "--gpu", "h100,l40s", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["layouts"]
    found = [(each["gpu"], each["gpus"]) for each in rows]
    assert found == [("h100", 4), ("h100", 8), ("l40s", 4), ("l40s", 8)]
    # 80 layers of 2 x 8 heads x 128, 2 bytes each, over 4 GPUs
    assert rows[0]["kv_bytes_per_token"] == 80 * 2 * 8 * 128 * 2 / 4
    # 70.55 G weights of 2 bytes, and a draft of 5 of its 80 layers (68.45 G of them are in layers)
    weights = 2 * (70.55e9 + 5 / 80 * 68.45e9) / 4 / 2**30
    assert rows[0]["weights_gib_per_gpu"] == pytest.approx(weights, rel=0.01)
    assert run("list", "--model", "deepseek-v3", "--gpu", "h200") == 0
    assert "8 x h200, tp1-dp8-ep8, fp8" in capsys.readouterr().out


def test_a_listing_of_nothing_that_holds_the_model_says_what_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("list", "--model", "llama-3.1-405b", "--gpu", "l40s") == 1
    assert "4 x b300, or" in capsys.readouterr().err
    assert run("list", "--gpu", "h100") == 2
    assert "--model: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("qwen3-8b", "qwen3-8b/dspark/mt-bench"),
        ("qwen3-32b", "qwen3-14b/dspark/mt-bench"),
        ("deepseek-v4-flash", "deepseek-v4/dspark/thinking"),
        ("deepseek-v3", "deepseek-v4/dspark/thinking"),
    ],
)
def test_the_nearest_acceptance_is_that_of_the_target_nearest_in_size(model: str, nearest: str) -> None:
    """V4's was measured on Pro, 1.6 T: to 284 B and 671 B nearer than 14 B by a factor of 3 and more."""
    with pytest.raises(BadInputError, match=re.escape(nearest)):
        require_acceptance(model, [])
    require_acceptance(model, ["length:3@5"])


def test_a_derived_curve_is_named_after_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("profile", "derive", "--model", "qwen3-4b", "--gpu", "h200", "--drafter", "mtp1") == 0
    assert "wrote kernels-h200-qwen3-4b-tp1-bf16.json" in capsys.readouterr().out
    assert set(load_profile(tmp_path / "kernels-h200-qwen3-4b-tp1-bf16.json").drafters or {}) == {"mtp1"}


@pytest.mark.parametrize(
    ("profile", "of_gpu"), [("h100/qwen3-32b-tp2-bf16", False), ("h200/qwen3-32b-tp1-bf16", True)]
)
def test_a_comparison_says_how_many_gpus_it_is_of(
    profile: str, of_gpu: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Throughput is a replica's: of two GPUs it is not tokens/s/GPU."""
    what = ("--profile", f"kernels/{profile}", "--acceptance", "conditional:0.8", "--policy", "mtp1")
    few = ("--concurrency", "10,20", "--seeds", "1", "--steps", "60", "--workers", "1", "--sla", "25")
    assert run("compare", *what, *few, "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert ("tokens/s/GPU" in said) == of_gpu
    assert ("tokens/s, requests: those of a replica of 2 GPUs." in said) != of_gpu
