"""A plan without a scenario: each GPU's answer, what is written to refine it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.api import hardware_plan
from simulator.api.hardware_plan import HardwareAnswer, comparison, plan_hardware, write_scenarios
from simulator.core.errors import BadInputError
from simulator.hardware.choose import Hardware
from simulator.planning.checks import checked_scenario
from simulator.planning.scenario.reading import load_scenario
from simulator.planning.variants import OFF, Variant, variants_of
from tests.support.command_line import run
from tests.support.plans import rough_plans

ASKED = Hardware(model="qwen3-8b", gpu="h100")
TRAFFIC = {
    "traffic": "poisson:40/s", "lengths": "fixed:200/60", "sla": ["tps_p10>=40"],
    "acceptance": ["qwen3-8b/dspark/mt-bench"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _coarser() -> Iterator[None]:
    """Small replicas and a rough search, as trials grow with both: no test here rests on their sizes."""
    rough = {"precision": "50%", "requests": 200, "concurrency": [4]}
    with rough_plans() as patch:
        patch.setattr("simulator.api.hardware_plan.COARSE", rough)
        patch.setattr("simulator.api.hardware_plan.MOST_CONCURRENT", 16)
        patch.setattr("simulator.planning.plan.GRID", (0.4, 1.0, 1.25))
        yield


@pytest.fixture(scope="module")
def answers() -> list[HardwareAnswer]:
    return list(plan_hardware(ASKED, ["h100", "l40s"], **TRAFFIC))  # type: ignore[arg-type]


def test_each_gpu_answers_and_leaves_a_scenario_to_refine(
    answers: list[HardwareAnswer], tmp_path: Path
) -> None:
    table = comparison(answers)
    assert set(table["gpu"]) == {"h100", "l40s"}
    assert any("2.95 USD an hour" in note for note in answers[0].notes)
    assert any("2.00 USD an hour is assumed" in note for note in answers[1].notes)
    assert set(table["policy"]) == {"autoregressive", "dspark-async"}
    assert table["cost_per_million_output_tokens"].dropna().is_monotonic_increasing
    curves = dict(zip(table["gpu"], table["curve"], strict=True))
    assert curves["h100"] == "kernels"
    for row in table.to_dict("records"):
        assert row["replicas"] * row["rate_per_replica_per_s"] >= 40
    paths = write_scenarios(answers, tmp_path)
    refined = load_scenario(paths[0])
    assert refined.loaded_profile().name == "kernels/h100/qwen3-8b-tp1-bf16"
    assert refined.price.gpu_hour == 2.95
    assert refined.search.precision == "2%"  # finer than the first answer


def test_speculation_needs_no_more_replicas(answers: list[HardwareAnswer]) -> None:
    answer = answers[0]
    assert answer.plan is not None
    plans = answer.plan.plans.set_index("policy")
    assert (
        plans["rate_per_replica_per_s"]["dspark-async"] >= plans["rate_per_replica_per_s"]["autoregressive"]
    )
    facts = dict(answer.plan.assumptions)
    assert "kernels: step times may be off by" in facts["Error of that cost"]
    band = answer.plan.scenario.loaded_profile().step_time_band
    assert set(answer.plan.sensitivity["variant"]) >= set(variants_of(band))


def test_the_sensitivity_uses_the_band_of_the_curve() -> None:
    assert variants_of(None)[f"step time +{OFF:.0%}"] == Variant(step_time=1.1)
    assert variants_of(0.25) == {
        "acceptance -10%": Variant(acceptance=0.9), "acceptance +10%": Variant(acceptance=1.1),
        "step time -25%": Variant(step_time=0.75), "step time +25%": Variant(step_time=1.25),
        "difficulty by request 0": Variant(difficulty=0.0),
        "difficulty by request 0.6": Variant(difficulty=0.6),
    }  # fmt: skip


def test_a_model_that_does_not_fit_is_said_beside_those_that_do() -> None:
    big = Hardware(model="llama-3.1-405b", gpu="h100", precision="fp8")
    (answer,) = plan_hardware(big, ["l40s"], **TRAFFIC)  # type: ignore[arg-type]
    assert answer.plan is None or answer.plan.scenario.replica_gpus() == 16
    tight = Hardware(model="llama-3.1-405b", gpu="h100", precision="bf16", tp=4)
    (answer,) = plan_hardware(tight, ["h100"], **TRAFFIC)  # type: ignore[arg-type]
    assert "does not fit" in str(answer.why_not)
    assert comparison([answer]).empty


def test_lengths_choose_the_layout_that_holds_them(tmp_path: Path) -> None:
    """Qwen3-32B leaves 292,602 tokens on two H100 and 853,754 on four; the scenario that is left says so."""
    long = TRAFFIC | {"traffic": "poisson:0.01/s", "lengths": "fixed:300000/20", "sla": ["tps_p10>=1"]}
    long |= {"policies": ["autoregressive"]}
    asked = Hardware(model="qwen3-32b", gpu="h100")
    (answer,) = plan_hardware(asked, ["h100"], **long)  # type: ignore[arg-type]
    assert answer.plan is not None
    assert answer.plan.scenario.replica_gpus() == 4
    (path,) = write_scenarios([answer], tmp_path)
    assert load_scenario(path).replica_gpus() == 4
    path.write_text(path.read_text().replace("  tp: 4\n", ""))
    with pytest.raises(BadInputError, match=r"could never run .*write hardware\.tp: 4 or cap"):
        checked_scenario(path)


def test_all_layouts_that_fit_are_compared_by_cost(tmp_path: Path) -> None:
    """Four MI300X of 192 GiB hold Llama-3.1-405B in 8 bits, two do not; what holds nothing is named."""
    asked = Hardware(model="llama-3.1-405b", gpu="mi300x", precision="fp8")
    light = TRAFFIC | {"policies": ["autoregressive"], "sla": ["tps_p10>=10"]}
    found = list(plan_hardware(asked, ["mi300x"], **light, all_layouts=True))  # type: ignore[arg-type]
    assert [each.name for each in found] == ["mi300x-tp4", "mi300x-tp8"]
    table = comparison(found)
    assert set(table["replica_gpus"]) == {4, 8}
    assert (table["gpus"] >= table["replicas"] * table["replica_gpus"]).all()  # prompts may have GPUs too
    assert table["cost_per_million_output_tokens"].is_monotonic_increasing
    paths = write_scenarios(found, tmp_path)
    assert [path.name for path in paths] == ["mi300x-tp4.yaml", "mi300x-tp8.yaml"]
    assert [load_scenario(path).replica_gpus() for path in paths] == [4, 8]
    big = Hardware(model="llama-3.1-405b", gpu="l40s", precision="bf16")
    (answer,) = plan_hardware(big, ["l40s"], **TRAFFIC, all_layouts=True)  # type: ignore[arg-type]
    assert answer.name == "l40s"
    assert "does not fit" in str(answer.why_not)


def test_a_gpu_without_a_plan_leaves_a_report_of_why(tmp_path: Path) -> None:
    """As a scenario does: infeasible.json and report.html in the GPU's folder, exit 1."""
    words = ("--model", "llama-3.1-405b", "--gpu", "h100", "--precision", "bf16", "--tp", "4")
    load = ("--traffic", "poisson:4/s", "--lengths", "fixed:100/30", "--sla", "tps_p10>=20")
    assert run("plan", *words, *load, "--acceptance", "length:3@7", "--out", tmp_path) == 1
    said = json.loads((tmp_path / "h100" / "infeasible.json").read_text())
    assert "does not fit" in said["answer"]
    assert said["scenario"]["hardware"]["model"] == "llama-3.1-405b"
    assert "does not fit" in (tmp_path / "h100" / "report.html").read_text()
    assert not (tmp_path / "h100.yaml").exists()  # nothing to refine where nothing fits


def test_warnings_of_a_plan_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "qwen3-8b", "--gpu", "h100", "--policy", "autoregressive", "--out", tmp_path)
    load = ("--traffic", "poisson:1/s", "--lengths", "fixed:20000/20", "--sla", "tps_p10>=20")
    assert run("plan", *words, *load, "--acceptance", "length:3@7") == 0
    assert (
        "warning: h100: 4,096 of 4,096 requests (100.0%) grow beyond the contexts" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sla": []}, "sla: is missing"),
        ({"acceptance": []}, "acceptance: how good drafts are"),
        ({"lengths": "nonsense"}, "lengths"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        list(plan_hardware(ASKED, ["h100"], **(TRAFFIC | changes)))  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="gpu"):
        list(plan_hardware(ASKED, ["h100", "h100"], **TRAFFIC))  # type: ignore[arg-type]


def test_a_scenario_takes_a_profile_or_hardware(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "name: x\nsla: ['tps_p10>=20']\ntraffic: {arrivals: 'poisson:4/s', lengths: 'fixed:100/30'}\n"
    path = tmp_path / "s.yaml"
    both = "profile: deepseek-v4-flash\nhardware: {model: qwen3-8b, gpu: h100}\n"
    for given, problem in (("", "profile: is missing"), (both, "needs exactly one of profile and hardware")):
        path.write_text(text + given)
        assert run("plan", path, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert problem in said
        assert "s.yaml" in said
    path.write_text(text + "hardware: {model: qwen3-88b, gpu: h100}\n")
    assert run("plan", path, "--out", tmp_path / "out") == 2
    assert "is not a model of the catalogue" in capsys.readouterr().err
    assert run("plan", "--model", "qwen3-8b", "--out", tmp_path / "out") == 2


def test_each_group_has_room_for_as_many_requests_as_a_replica_of_one() -> None:
    """Of eight groups eight times the requests of one, unless keys and values end before."""
    asked = Hardware(model="deepseek-v3", gpu="h200", dp=8)
    plenty, scarce = (
        hardware_plan._words(
            asked, tokens, "poisson:1/s", "fixed:8/8", ["tps_p10>=1"], [], ["autoregressive"]
        )
        for tokens in (10**9, 2048 * 100)
    )
    assert plenty["replica"] == {"concurrency": 8 * hardware_plan.MOST_CONCURRENT}
    assert scarce["replica"] == {"concurrency": 100}
