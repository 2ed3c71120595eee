"""A small validation on a CPU: tables, parity, refusals, resumption, tolerances; and the commands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from simulator.acceptance.trace import AcceptanceTrace
from simulator.acceptance.trace_file import save_trace
from simulator.cli.measure import live as serving_commands
from simulator.cli.measure.profile import measure as measure_command
from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.files import write_json
from simulator.core.provenance import Provenance
from simulator.core.reading import read_json
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.engine.limits import EngineLimits
from simulator.live.checks.validation.case import ValidationCase
from simulator.live.checks.validation.conditions import check_profile
from simulator.live.checks.validation.validate import validate
from simulator.live.device import OutOfMemoryError, device_name
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import Prompts
from simulator.live.models.pairs import load_draft, load_pair, new_dspark, new_mtp, save_draft
from simulator.live.models.targets import load_target
from simulator.live.profiling.conditions import UNSAID, conditions_of, digests_of
from simulator.report.drawing.style import save
from simulator.report.validation import plot_frontiers, plot_lengths
from simulator.schedulers.parse import parse_policy
from simulator.traffic.lengths import parse_lengths
from tests.live.conftest import MakeTarget
from tests.support.modelled_device import modelled_device


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(num_hidden_layers=2)


@pytest.fixture(scope="module")
def drafters(target: Any) -> Any:
    dspark = new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=4)
    return {"dspark": dspark, "mtp1": new_mtp(target)}


def trace(name: str, gamma: int) -> AcceptanceTrace:
    draw = np.random.default_rng(gamma)
    logits = draw.normal(1.0, 1.0, (400, gamma)).astype(np.float32)
    passed = draw.random((400, gamma)) < 1 / (1 + np.exp(-logits))
    return AcceptanceTrace(
        name=name, confidence_logits=logits, sequence_start=np.arange(0, 401, 40),
        provenance=Provenance(kind="synthetic", source="test", date="2026-01-01"),
        accepted=np.cumprod(passed, axis=1).sum(axis=1).astype(np.uint8),
    )  # fmt: skip


def profile_of(target: Any, drafters: Any, temperature: float = 0.0) -> Profile:
    return Profile(
        name="here",
        title="A guess for the test",
        provenance=Provenance(
            kind="synthetic", source="test", date="2026-01-01", device=device_name(target.device),
            software=conditions_of(target, attention="auto", graphs=True, temperature=temperature)
            | digests_of(drafters),
            model=target.name,
        ),
        step=AdditiveSpec(
            bias_s=2e-3, request_probes=(1, 8), alpha_s=(0, 1e-4), token_probes=(1, 40), theta_s=(0, 2e-3)
        ),
        drafters={
            "dspark": DraftSpec(structure="parallel", block_size=4, requests=(1, 8), pass_s=(1e-3, 1e-3)),
            "mtp1": DraftSpec(structure="autoregressive", block_size=1, requests=(1, 8), pass_s=(1e-3, 1e-3)),
        },
    )  # fmt: skip


@pytest.fixture
def scenario(target: Any, drafters: Any) -> ValidationCase:
    return ValidationCase(
        target=target, drafters=drafters,
        deployment=Deployment(profile_of(target, drafters), {"dspark": trace("a", 4), "mtp1": trace("b", 1)}),
        policies=[parse_policy(text) for text in ("autoregressive", "mtp1", "dspark", "dspark-async")],
        concurrency=(1, 3), lengths=parse_lengths("fixed:8/geometric:12"), steps=52, options=LiveOptions(),
    )  # fmt: skip


def test_a_validation_end_to_end(scenario: ValidationCase, tmp_path: Path) -> None:
    told: list[str] = []
    result = validate(scenario, tmp_path / "v", told.append)
    assert len(told) == 8
    assert (result.parity["differing"] == 0).all()
    exact = result.errors[result.errors["metric"].isin(["accepted_length_mean", "verification_budget_mean"])]
    assert exact["error"].abs().max() == 0
    assert (result.errors["measured"] > 0).all()
    sums = result.lengths.groupby(["policy", "concurrency"])[["measured", "predicted"]].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    assert pd.read_parquet(tmp_path / "v" / "dspark-3-run1" / "steps.parquet")["requests"].max() == 3
    for name, figure in (("a", plot_frontiers(result.errors)), ("b", plot_lengths(result.lengths))):
        save(figure, tmp_path / f"{name}.png")
    # A second call measures nothing again; another scenario is refused.
    assert validate(scenario, tmp_path / "v", print).errors.equals(result.errors)
    with pytest.raises(BadInputError, match="validation with another steps"):
        validate(replace(scenario, steps=70), tmp_path / "v", print)
    result.check({"accepted_length_mean": 0.0})
    with pytest.raises(InfeasibleError, match="throughput_tok_per_s: median error"):
        result.check({"throughput_tok_per_s": 0.0})
    with pytest.raises(BadInputError, match="is not compared"):
        result.check({"speed": 1.0})
    object.__setattr__(result, "parity", result.parity.assign(differing=1))
    with pytest.raises(InfeasibleError, match="8 decisions"):
        result.check({})


def test_a_validation_is_continued_with_the_same_models_only(
    scenario: ValidationCase, tmp_path: Path
) -> None:
    few = replace(scenario, policies=[parse_policy("dspark")], concurrency=(1,))
    first = validate(few, tmp_path / "v", print)
    # Other paths to the same target and the same draft.
    elsewhere: Any = tmp_path / "copy"
    shutil.copytree(scenario.target.folder, elsewhere / "target")  # type: ignore[arg-type]
    save_draft(scenario.drafters["dspark"], elsewhere / "draft")
    moved = {**scenario.drafters, "dspark": load_draft(elsewhere / "draft")}
    same = replace(few, target=load_target(elsewhere / "target"), drafters=moved)
    assert validate(same, tmp_path / "v", print).errors.equals(first.errors)
    settings: Any = read_json(tmp_path / "v" / "settings.json")
    assert settings["target"] == str(scenario.target.folder)  # said for a reader
    assert settings["draft_folders"] == {"dspark": "untrained", "mtp1": "untrained"}
    # The same path with another draft in it.
    other = new_dspark(scenario.target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=4, seed=1)
    save_draft(other, elsewhere / "draft")
    changed = {**scenario.drafters, "dspark": load_draft(elsewhere / "draft")}
    measured_with_it = replace(few.deployment, profile=profile_of(scenario.target, changed))
    with pytest.raises(BadInputError, match="validation with another drafters"):
        validate(replace(few, drafters=changed, deployment=measured_with_it), tmp_path / "v", print)


def test_a_validation_of_other_outcomes_or_temperature_is_not_continued(
    scenario: ValidationCase, tmp_path: Path
) -> None:
    few = replace(scenario, policies=[parse_policy("dspark")], concurrency=(1,))
    validate(few, tmp_path, print)
    again = {"dspark": trace("a", 4), "mtp1": trace("b", 1)}
    validate(replace(few, deployment=replace(few.deployment, acceptance=again)), tmp_path, print)
    accepted = np.zeros_like(again["dspark"].accepted)
    other = {**again, "dspark": replace(again["dspark"], accepted=accepted)}
    with pytest.raises(BadInputError, match="validation with another acceptance_digest"):
        validate(replace(few, deployment=replace(few.deployment, acceptance=other)), tmp_path, print)
    warm = replace(few, options=replace(few.options, temperature=0.7))
    with pytest.raises(BadInputError, match="sampling 'greedy' there, 'drawn' here"):
        validate(warm, tmp_path, print)
    drawn = profile_of(few.target, few.drafters, temperature=1.0)
    warm = replace(warm, deployment=replace(warm.deployment, profile=drawn))
    with pytest.raises(BadInputError, match=r"validation with another sampling, .*temperature"):
        validate(warm, tmp_path, print)


def test_a_profile_that_does_not_say_how_tokens_are_chosen_is_greedy(target: Any) -> None:
    old = profile_of(target, {})
    software = {name: said for name, said in old.provenance.software.items() if name != "sampling"}
    old = old.model_copy(update={"provenance": old.provenance.model_copy(update={"software": software})})
    check_profile(old, target, conditions_of(target, attention="auto", graphs=True))
    with pytest.raises(BadInputError, match="sampling 'greedy' there, 'drawn' here"):
        check_profile(old, target, conditions_of(target, attention="auto", graphs=True, temperature=1.0))


def test_a_policy_is_known_by_its_content(scenario: ValidationCase, tmp_path: Path) -> None:
    few = replace(scenario, policies=[parse_policy("threshold:0.6")], concurrency=(1,))
    first = validate(few, tmp_path, print)
    assert validate(few, tmp_path, print).errors.equals(first.errors)
    renamed = replace(parse_policy("threshold:0.7"), name="threshold:0.6")
    with pytest.raises(BadInputError, match=r"threshold-0\.6-1-run1\.json: .*another policy of this name"):
        validate(replace(few, policies=[renamed]), tmp_path, print)
    # Other policies join those that are there.
    validate(replace(few, policies=[parse_policy("threshold:0.6"), parse_policy("mtp1")]), tmp_path, print)


def test_a_validation_with_another_text_of_the_same_name_is_not_continued(
    scenario: ValidationCase, tmp_path: Path
) -> None:
    def prompts(token: int) -> Prompts:
        return lambda request, tokens: np.full(tokens, token, dtype=np.int64)

    few = replace(scenario, policies=[parse_policy("dspark")], concurrency=(1,), prompts_name="code")
    for token in (3, 3):
        validate(replace(few, prompts=prompts(token)), tmp_path, print)
    with pytest.raises(BadInputError, match="validation with another prompt_digest"):
        validate(replace(few, prompts=prompts(4)), tmp_path, print)

    # One token of one late request, behind its first ones, is another text too.
    def elsewhere(request: int, tokens: int) -> Any:
        text = np.full(tokens, 3, dtype=np.int64)
        text[9:] += request == 200
        return text

    with pytest.raises(BadInputError, match="validation with another prompt_digest"):
        validate(replace(few, prompts=elsewhere), tmp_path, print)


def test_of_several_runs_the_median_counts(scenario: ValidationCase, tmp_path: Path) -> None:
    few = replace(scenario, policies=[parse_policy("dspark")], concurrency=(2,))
    once = validate(few, tmp_path, print)
    assert (once.errors["spread"] == 0).all()
    told: list[str] = []
    result = validate(few, tmp_path, told.append, runs=3)  # two more; the first is not run again
    assert len(told) == 3
    runs = [read_json(tmp_path / f"dspark-2-run{number}.json") for number in (1, 2, 3)]
    rates = np.array([run["metrics"]["throughput_tok_per_s"] for run in runs])
    row = result.errors.set_index("metric").loc["throughput_tok_per_s"]
    assert row["measured"] == np.median(rates)
    assert row["spread"] == pytest.approx(np.ptp(rates) / np.median(rates))
    assert row["predicted"] == once.errors.set_index("metric").loc["throughput_tok_per_s", "predicted"]
    assert result.parity["decisions"].item() == 3 * once.parity["decisions"].item()
    assert result.summary()["spread"]["accepted_length_mean"] == 0


def test_the_pairs_own_acceptance(scenario: ValidationCase, tmp_path: Path) -> None:
    own = replace(scenario, replayed=False, policies=[parse_policy("dspark")], concurrency=(2,))
    result = validate(own, tmp_path, print)
    assert (result.parity["differing"] == 0).all()
    length = result.errors.set_index("metric").loc["accepted_length_mean"]
    assert length["measured"] < length["predicted"]  # untrained, against a made-up trace


def test_profiles_of_other_conditions_are_refused(target: Any) -> None:
    good, here = profile_of(target, {}), conditions_of(target, attention="auto", graphs=True)
    check_profile(good, target, here)
    other = good.model_copy(
        update={"provenance": good.provenance.model_copy(update={"device": "GPU", "software": {}})}
    )
    with pytest.raises(BadInputError, match=r"here: device, torch, .*device 'GPU' there") as caught:
        check_profile(other, target, here)
    # What earlier profiles did not record is known.
    assert set(str(caught.value.field).split(", ")) == {"device", *here} - set(UNSAID)
    assert "dtype not recorded there" in caught.value.problem


def test_a_target_is_known_by_its_content(target: Any, make_target: MakeTarget, tmp_path: Path) -> None:
    good = profile_of(target, {})
    here = conditions_of(target, attention="auto", graphs=True)
    assert load_target(target.folder / ".." / target.folder.name).digest == target.digest
    elsewhere = tmp_path / "copy"
    shutil.copytree(target.folder, elsewhere)
    copied = load_target(elsewhere)
    check_profile(good, copied, conditions_of(copied, attention="auto", graphs=True))
    # The same path, with weights of another seed in it, and then with another config.
    shutil.copy(make_target(num_hidden_layers=2, seed=1).folder / "model.safetensors", elsewhere)
    changed = load_target(elsewhere)
    with pytest.raises(BadInputError, match="config or weights") as caught:
        check_profile(good, changed, conditions_of(changed, attention="auto", graphs=True))
    assert caught.value.field == "weights"
    assert here["weights"] != changed.digest
    shutil.copytree(target.folder, elsewhere, dirs_exist_ok=True)
    config: Any = read_json(elsewhere / "config.json")
    write_json(elsewhere / "config.json", config | {"rms_norm_eps": 1e-5})
    assert load_target(elsewhere).digest != target.digest
    write_json(elsewhere / "config.json", config | {"transformers_version": "0", "_name_or_path": "x"})
    assert load_target(elsewhere).digest == target.digest


def test_a_profile_measured_with_another_draft_is_refused(scenario: ValidationCase, tmp_path: Path) -> None:
    few = replace(scenario, policies=[parse_policy("dspark")], concurrency=(1,))
    # The same name and block size, but other weights, and then other layers.
    for different in ({"seed": 1}, {"num_layers": 2}):
        shape = {"mask_token_id": 5, "block_size": 4, "num_layers": 1, "markov_rank": 4} | different
        changed = {**scenario.drafters, "dspark": new_dspark(scenario.target, **shape)}
        with pytest.raises(BadInputError, match="config or weights of drafter 'dspark'") as caught:
            validate(replace(few, drafters=changed), tmp_path / "v", print)
        assert caught.value.field == "draft:dspark"
        assert str(caught.value.remedy).startswith("profile")
        assert not (tmp_path / "v").exists()
    # A drafter that no policy runs with may be any.
    idle = {**scenario.drafters, "mtp1": new_mtp(scenario.target, seed=1)}
    assert idle["mtp1"].digest != scenario.drafters["mtp1"].digest
    validate(replace(few, drafters=idle), tmp_path / "v", print)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("torch", "1.0", "profile"),
        ("attention", "varlen", "run with `attention` varlen, or profile"),
        ("graphs", "on", "run with `graphs` on, or profile"),
        ("dtype", "bfloat16", "run with `dtype` bfloat16, or profile"),
        ("threads", "99", "run with `threads` 99, or profile"),
    ],
)
def test_profile_and_run_agree_on_what_ran(target: Any, name: str, value: str, remedy: str) -> None:
    good, here = profile_of(target, {}), conditions_of(target, attention="auto", graphs=True)
    software = {**good.provenance.software, name: value}
    other = good.model_copy(update={"provenance": good.provenance.model_copy(update={"software": software})})
    says = re.escape(f"{name} '{value}' there, '{here[name]}' here")
    with pytest.raises(BadInputError, match=says) as caught:
        check_profile(other, target, here)
    assert caught.value.field == name
    assert str(caught.value.remedy).startswith(remedy)


def test_a_drafter_that_was_not_given_is_named(scenario: ValidationCase, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="`draft` dspark=FOLDER"):
        validate(replace(scenario, drafters={}, policies=[parse_policy("dspark")]), tmp_path, print)


@pytest.fixture
def files(target: Any, drafters: Any, tmp_path: Path) -> dict[str, Any]:
    profile_of(target, drafters).save(tmp_path / "profile.json")
    save_trace(trace("a", 4), tmp_path / "trace.parquet")
    save_draft(drafters["dspark"], tmp_path / "dspark")
    return {
        "target": str(target.folder), "draft": [f"dspark={tmp_path / 'dspark'}"], "device": "cpu",
        "profile": str(tmp_path / "profile.json"), "acceptance": [str(tmp_path / "trace.parquet")],
    }  # fmt: skip


def test_live_writes_what_a_simulated_run_writes(files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    serving_commands.live(
        **files, policy="dspark-async", concurrency=2, out=out, lengths="fixed:8/fixed:12", steps=60
    )
    assert {path.name for path in out.iterdir()} >= {"requests.parquet", "steps.parquet", "run.json"}
    described: Any = read_json(out / "run.json")
    assert described["kind"] == "live"
    assert described["metrics"]["throughput_tok_per_s"] > 0
    assert 0 <= described["visible_schedule_share"] < 1
    for prefill in ("whole", "chunked"):
        serving_commands.live(
            **files, policy="fixed:2", concurrency=2, out=tmp_path / prefill, lengths="fixed:8/fixed:12",
            traffic="poisson:200/s", requests=40, prefill=prefill, own=True,
        )  # fmt: skip
        assert len(pd.read_parquet(tmp_path / prefill / "requests.parquet")) == 40


@pytest.mark.parametrize("policy", ["dspark", "dspark-async", "fixed:2", "mtp1"])
def test_the_pairs_own_acceptance_needs_no_model(
    files: dict[str, Any], drafters: Any, tmp_path: Path, policy: str
) -> None:
    save_draft(drafters["mtp1"], tmp_path / "mtp1")
    draft = [*files["draft"], f"mtp1={tmp_path / 'mtp1'}"]
    given = files | {"acceptance": None, "draft": draft, "lengths": "fixed:8/fixed:12", "steps": 60}
    out = tmp_path / "run"
    serving_commands.live(**given, policy=policy, concurrency=2, out=out, own=True)
    described: Any = read_json(out / "run.json")
    assert described["acceptance"] == {"dspark": "own:dspark", "mtp1": "own:mtp1"}
    assert described["replayed"] is False
    steps = pd.read_parquet(out / "steps.parquet")
    assert len(steps) == 60
    # Replayed acceptance, and the simulated half of a validation, have nothing to stand on.
    for refused in (
        lambda: serving_commands.live(**given, policy=policy, concurrency=2, out=tmp_path / "b"),
        lambda: serving_commands.validate(
            **given, policies=policy, concurrency="2", out=tmp_path / "c", own=True
        ),
    ):
        with pytest.raises(BadInputError, match="is not given") as raised:
            refused()
        assert raised.value.field == "acceptance"
        assert "live --own" in str(raised.value.remedy)


def test_a_policy_of_fewer_tokens_needs_a_drafter_of_its_own(files: dict[str, Any], tmp_path: Path) -> None:
    given = files | {"acceptance": None, "lengths": "fixed:8/fixed:12", "steps": 60}
    with pytest.raises(BadInputError, match="a policy of 1 needs a drafter of its own") as raised:
        serving_commands.live(**given, policy="mtp1", concurrency=2, out=tmp_path / "run", own=True)
    assert "--draft mtp1=FOLDER" in str(raised.value.remedy)


def test_live_runs_are_limited_by_what_the_profile_knows(
    files: dict[str, Any], target: Any, drafters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = profile_of(target, drafters).model_copy(update={"kv_tokens": 40, "prefill_tokens_per_s": 1e6})
    known.save(Path(files["profile"]))
    made: list[EngineLimits] = []
    check = EngineLimits.__post_init__
    monkeypatch.setattr(EngineLimits, "__post_init__", lambda limits: (check(limits), made.append(limits)))
    given = {"lengths": "fixed:8/fixed:12", "steps": 60}
    serving_commands.live(**files, **given, policy="fixed:2", concurrency=2, out=tmp_path / "live")
    assert len(made) == 1
    serving_commands.validate(**files, **given, policies="fixed:2", concurrency="2", out=tmp_path / "v")
    assert {(each.kv_tokens, each.prefill_tokens_per_s) for each in made} == {(40, 1e6)}
    assert len(made) == 3  # measured and predicted
    # 8 + 12 + a block of 4 are 24 tokens: two requests do not fit at once.
    assert pd.read_parquet(tmp_path / "live" / "steps.parquet")["requests"].max() == 1


def test_a_live_run_refuses_a_profile_of_other_conditions(files: dict[str, Any], tmp_path: Path) -> None:
    given = files | {"policy": "fixed:2", "concurrency": 2, "lengths": "fixed:8/fixed:12", "steps": 60}
    with pytest.raises(BadInputError, match="attention 'sdpa' there, 'plain' here"):
        serving_commands.live(**given, attention="plain", out=tmp_path / "a")
    with pytest.raises(BadInputError, match="sampling 'greedy' there, 'drawn' here"):
        serving_commands.live(**given, temperature=0.8, out=tmp_path / "b")
    assert not (tmp_path / "b" / "run.json").exists()


def test_a_live_run_that_breaks_off_keeps_what_it_had(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, calls = LiveExecutor.verify, 0

    def fails_in_its_30th_step(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise OutOfMemoryError("it does not fit")
        return verify(*arguments)

    monkeypatch.setattr(LiveExecutor, "verify", fails_in_its_30th_step)
    out = tmp_path / "run"
    with pytest.raises(OutOfMemoryError):
        serving_commands.live(
            **files, policy="fixed:2", concurrency=2, out=out, lengths="fixed:8/fixed:12", steps=60, own=True
        )
    assert len(pd.read_parquet(out / "steps.parquet")) == 29
    assert read_json(out / "unfinished.json") == {"schema": 1, "reason": "it does not fit", "steps": 29}
    assert not (out / "run.json").exists()


def test_validate_command_writes_tables_and_judges(files: dict[str, Any], tmp_path: Path) -> None:
    def command(**options: Any) -> None:
        serving_commands.validate(
            **files, out=tmp_path / "v", policies="dspark", concurrency="1,2", lengths="fixed:8/fixed:12",
            steps=60, **options,
        )  # fmt: skip

    command()
    names = {"errors.csv", "lengths.csv", "parity.csv", "frontiers.png", "lengths.png", "settings.json"}
    assert names <= {path.name for path in (tmp_path / "v").iterdir()}
    with pytest.raises(InfeasibleError):
        command(tolerance=["throughput_tok_per_s=0"])
    with pytest.raises(BadInputError, match="is not a tolerance"):
        command(tolerance=["throughput_tok_per_s=low"])


def test_profile_command(files: dict[str, Any], tmp_path: Path) -> None:
    options: Callable[..., None] = measure_command
    with modelled_device():
        options(
            target=files["target"], draft=files["draft"], out=tmp_path / "p", requests="1,2", drafts="0,2",
            context="16", prefill="8", policies="none", confidence=0.02, repeats=60, tolerance=0.05,
            device="cpu",
        )  # fmt: skip
    written = list((tmp_path / "p").rglob("*.json"))
    assert len(written) == 1
    assert written[0].with_suffix(".cells.jsonl").is_file()


def test_pairs_that_cannot_be_had_are_refused(files: dict[str, Any]) -> None:
    for wrong, says in (
        ({"draft": ["dspark"]}, "names no draft"),
        ({"dtype": "float31"}, "not a torch dtype"),
        ({"device": "cuda"}, "no CUDA device"),
    ):
        if wrong.get("device") == "cuda" and torch.cuda.is_available():
            continue
        options: dict[str, Any] = {"draft": files["draft"], "device": "cpu", "dtype": None} | wrong
        with pytest.raises(BadInputError, match=says):
            load_pair(files["target"], options["draft"], options["device"], options["dtype"], threads=1)
