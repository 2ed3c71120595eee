"""What a researcher types: text and objects mean the same, and verbs wire what a profile knows."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simulator as sim
import simulator.api.texts as texts
from simulator.cli.app import commands
from simulator.planning.scenario.example import EXAMPLE

FLASH = sim.deployment("deepseek-v4-flash")
REFERENCE = Path(sim.__file__).parents[1] / "docs" / "reference" / "api.md"


class Halves(sim.Policy):
    """Verify half of each block: a policy of one's own is one method."""

    def schedule(self, survival: np.ndarray, batch: sim.Batch) -> np.ndarray:
        """Half of the block, whatever the survival."""
        return np.full(len(survival), survival.shape[1] // 2, dtype=np.int64)


def test_text_and_objects_mean_the_same() -> None:
    quick = {"seeds": 1, "steps": 80}
    by_text = FLASH.frontier("dspark-async", 10, **quick).table
    by_object = FLASH.frontier([sim.policy("dspark-async")], [10], **quick).table
    pd.testing.assert_frame_equal(by_text, by_object)
    direct = sim.sweep_frontier(FLASH, ["dspark-async"], [10], **quick)
    pd.testing.assert_frame_equal(by_text, direct)
    assert sim.policy(sim.policy("fixed:3@mtp1")) == sim.policy("fixed:3@mtp1")
    with pytest.raises(sim.BadInputError, match="policy: is neither text nor an object with schedule"):
        FLASH.frontier(3, 10)  # type: ignore[arg-type]


def test_a_policy_of_ones_own_is_one_method_and_may_have_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.schedulers.parse._OWN", {})
    mine = FLASH.frontier([Halves(), "fixed:2"], 10, seeds=1, steps=80).table.set_index("policy")
    assert mine.loc["Halves", "verification_budget_mean"] == mine.loc["fixed:2", "verification_budget_mean"]
    assert not sim.policy(Halves()).scheduler.lossless
    sim.register_policy("halves", Halves)
    named = FLASH.frontier("halves", 10, seeds=1, steps=80).table
    assert named["throughput_tok_per_s"].iloc[0] == mine.loc["Halves", "throughput_tok_per_s"]
    with pytest.raises(sim.BadInputError, match="name: is taken"):
        sim.register_policy("dspark", Halves)


def test_simulate_is_what_the_command_runs(tmp_path: Path) -> None:
    run = FLASH.simulate(
        "mtp1", concurrency=4, traffic="poisson:3/s", lengths="fixed:50/20", requests=60,
        prefill_tokens_per_s=200.0,
    )  # fmt: skip
    words = "simulate --profile deepseek-v4-flash --policy mtp1 --concurrency 4 --traffic poisson:3/s"
    words += f" --lengths fixed:50/20 --requests 60 --prefill-tokens-per-s 200 --out {tmp_path}"
    commands()(words.split(), standalone_mode=False)
    pd.testing.assert_frame_equal(run.requests, pd.read_parquet(tmp_path / "requests.parquet"))
    assert run.requests["ttft_s"].min() == pytest.approx(50 / 200)


def test_a_frontier_answers() -> None:
    line = FLASH.frontier(["mtp1", "dspark-async"], [20, 60, 120, 200], seeds=2, steps=150)
    answers = line.at_sla(80, "p10>=60")
    assert set(answers["sla"]) == {"80", "p10>=60"} or len(answers) == 4
    assert line.bands()["policy"].iloc[-1] == "dspark-async"
    assert line.plot(published=True).axes


def test_regret_and_fleets_take_text() -> None:
    loss = FLASH.regret("dspark-async", "flat", 20, seeds=2)
    assert loss["belief"].tolist() == ["flat"]
    served = FLASH.fleet(
        "mtp1", replicas=2, traffic="poisson:4/s", lengths="fixed:50/20", sla="ttft_p99<=2s", duration="40s"
    )
    assert served.assessment.met


def test_acceptance_is_given_in_any_form() -> None:
    model = sim.acceptance("length:3@5")
    for given in ("length:3@5", ["length:3@5"], model, {"dspark": model}, {"dspark": "length:3@5"}):
        assert sim.deployment("deepseek-v4-flash", given).acceptance["dspark"].name == model.name


def test_texts_are_callable_whether_or_not_their_packages_are_imported() -> None:
    code = (
        "import simulator as sim; sim.traffic('poisson:1/s'); import simulator.traffic.parse; "
        "import simulator.acceptance.trace, simulator.sla.terms; sim.traffic('poisson:1/s'); "
        "import simulator.deployment.deployment; print(sim.acceptance('length:2@3').gamma, "
        "len(sim.sla('ttft_p99<=2s').terms), sim.deployment('deepseek-v4-flash').profile.replica_gpus)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "1", "1"]


def test_a_plan_is_made_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(EXAMPLE.replace("policies: [mtp1", "policies: [fixed:99", 1))
    with pytest.raises(sim.BadInputError, match=r"s\.yaml: "):
        sim.plan(path)


def test_the_reference_documents_every_public_name_and_no_other() -> None:
    documented = {
        line.rpartition(".")[2] for line in re.findall(r"^::: (simulator\.\S+)", REFERENCE.read_text(), re.M)
    }
    assert documented == set(sim._HOME)


def test_examples_in_docstrings_run() -> None:
    failed, tried = doctest.testmod(texts)
    assert tried >= 3
    assert not failed
