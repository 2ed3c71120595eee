"""Profiles: what is shipped loads, what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.cost.fit import fit_additive
from simulator.cost.models import AdditiveCost, CostModel, ThroughputCurve
from simulator.deployment.acceptance_text import AcceptanceSpec
from simulator.deployment.profile import Profile, load_profile, shipped_profiles
from simulator.deployment.profile_parts import AdditiveSpec, CurveSpec
from tests.support.strategies import additive_costs, throughput_curves

SYNTHETIC = Provenance(kind="synthetic", source="test", date="2026-01-01")


def written(**changes: Any) -> dict[str, Any]:
    """A whole small profile as its file has it."""
    profile: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "title": "Small",
        "provenance": {"kind": "synthetic", "source": "test", "date": "2026-01-01"},
        "step": {"type": "throughput-curve", "batch_tokens": [1, 100], "steps_per_s": [100.0, 50.0]},
        "drafters": {
            "dspark": {"structure": "parallel", "block_size": 5, "requests": [1, 64], "pass_s": [1e-3, 2e-3]}
        },
    }
    return profile | changes


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object) -> Path:
        path = tmp_path / "profile.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_load_build_and_say_where_they_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.provenance.line()
    cost = profile.target_cost()
    times = [cost.step_time_s(requests, 2 * requests) for requests in (1, 8, 64)]
    assert 0 < times[0] <= times[1] <= times[2]
    for spec in profile.acceptance.values():
        model = spec.build()
        assert model.gamma >= 1
        assert spec.block_size in (None, model.gamma)
        assert spec.provenance.source


def test_the_published_profiles_are_shipped() -> None:
    assert {"deepseek-v4-flash", "deepseek-v4-pro"} <= set(shipped_profiles())
    assert not any("sources" in name for name in shipped_profiles())


def test_a_file_is_a_profile_too(put: Callable[..., Path]) -> None:
    path = put(written())
    profile = load_profile(path)
    assert load_profile(str(path)) == profile
    cost = profile.target_cost()
    assert isinstance(cost, ThroughputCurve)
    assert cost.step_time_s(1, 100) == pytest.approx(0.02)
    assert cost.step_time_s(1, 1) == pytest.approx(0.01)


def test_additive_costs_are_read_term_by_term(put: Callable[..., Path]) -> None:
    step = {
        "type": "additive", "bias_s": 0.004, "request_probes": [0, 10], "alpha_s": [0.0, 0.001],
        "token_probes": [0, 100], "theta_s": [0.0, 0.01], "context_s_per_token": 1e-8,
    }  # fmt: skip
    cost = load_profile(put(written(step=step))).target_cost()
    assert isinstance(cost, AdditiveCost)
    expected = 0.004 + 0.0005 + 0.002 + 1e-8 * 1000
    assert cost.step_time_s(5, 20, context_tokens=1000) == pytest.approx(expected)


def test_draft_cost_is_by_drafter_or_inside_the_step(put: Callable[..., Path]) -> None:
    profile = load_profile(put(written()))
    assert profile.draft_cost("none") is None
    cost = profile.draft_cost("dspark")
    assert cost is not None
    assert cost.block_size == 5
    with pytest.raises(
        BadInputError, match=r"small: drafters: has no draft cost for 'eagle3'; it has dspark"
    ):
        profile.draft_cost("eagle3")
    inside = load_profile(put(written(drafters=None)))
    assert inside.draft_cost("eagle3") is None


def test_saving_and_loading_is_the_same_profile(tmp_path: Path) -> None:
    for name in shipped_profiles():
        profile = load_profile(name)
        profile.save(tmp_path / "copy.json")
        assert load_profile(tmp_path / "copy.json") == profile


def same_from_a_file(spec: CurveSpec | AdditiveSpec, cost: CostModel, directory: Path) -> None:
    """Step times are equal within the measured range (probes end at 60) and far beyond it."""
    Profile(name="x", title="x", provenance=SYNTHETIC, step=spec).save(directory / "x.json")
    again = load_profile(directory / "x.json").target_cost()
    for requests in (0, 1, 30, 60, 61, 500):
        rows = range(requests, 900)
        np.testing.assert_array_equal(
            again.step_time_s(requests, rows, 70_000, 3), cost.step_time_s(requests, rows, 70_000, 3)
        )


@given(throughput_curves())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_curve_survives_a_file_exactly(tmp_path: Path, curve: ThroughputCurve) -> None:
    same_from_a_file(CurveSpec.of(curve), curve, tmp_path)


@given(additive_costs())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_additive_model_survives_a_file_exactly(tmp_path: Path, cost: AdditiveCost) -> None:
    same_from_a_file(AdditiveSpec.of(cost), cost, tmp_path)


def test_a_fit_is_saved_with_the_rule_it_was_fitted_with(tmp_path: Path) -> None:
    """0.1 ms a row up to 64 rows. At 128 that is 12.8 ms more on the slope, or 6.4 ms more if clamped."""
    grid = pd.DataFrame(
        [
            {"requests": r, "batch_tokens": r * (1 + k), "step_time_s": 0.01 + 1e-4 * r * (1 + k)}
            for r in (1, 4, 16) for k in range(4)
        ]
    )  # fmt: skip
    for beyond, expected in (({}, 0.0228), ({"beyond": "last-slope"}, 0.0228), ({"beyond": "clamp"}, 0.0164)):
        cost = fit_additive(grid, request_probes=[1, 16], token_probes=[1, 64], **beyond).cost  # type: ignore[arg-type]
        assert cost.step_time_s(32, 128) == pytest.approx(expected)
        same_from_a_file(AdditiveSpec.of(cost), cost, tmp_path)


def test_a_curve_says_what_lies_beyond_only_where_it_wants_another_rule() -> None:
    for one in ({"lookup": "floor"}, {"batch_tokens": (1,), "steps_per_s": (9,)}):
        spec = CurveSpec(**({"batch_tokens": (1, 2), "steps_per_s": (9, 8)} | one))  # type: ignore[arg-type]
        assert spec.build().beyond == "clamp"
    assert CurveSpec(batch_tokens=(1, 2), steps_per_s=(9, 8)).build().beyond == "last-slope"


STEP = written()["step"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "correct it"),
        ('{"schema": NaN}', r"line 1: is not a finite number .*NaN"),
        (written(schema=2), r"schema: .* \(got 2\)"),
        (written(kv_token=5), "kv_token: unknown key; remove it or correct its spelling"),
        (written(kv_tokens=0), "kv_tokens"),
        (written(prefill_tokens_per_s=-1), "prefill_tokens_per_s"),
        ({key: value for key, value in written().items() if key != "step"}, "step: is missing; add it"),
        (written(step=STEP | {"type": "table"}), "step"),
        (written(step=STEP | {"batch_tokens": [], "steps_per_s": []}), "batch_tokens"),
        (written(step=STEP | {"batch_tokens": [100, 1]}), "batch_tokens"),
        (written(step=STEP | {"steps_per_s": [50.0, 100.0]}), "steps_per_s"),
        (written(step=STEP | {"steps_per_s": [100.0, -5.0]}), "steps_per_s"),
        (written(step=STEP | {"steps_per_s": [100.0]}), "steps_per_s"),
        (written(step=STEP | {"units": "s"}), "units: unknown key"),
        (written(drafters={"dspark": {"structure": "magic"}}), r"drafters\.dspark\.structure"),
        (written(provenance={"kind": "guessed", "source": "x", "date": "x"}), r"provenance\.kind"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(
    content: object, complaint: str, put: Callable[..., Path]
) -> None:
    path = put(content)
    with pytest.raises(BadInputError, match=complaint) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'deepseek'\); name one of .*deepseek-v4-flash"):
        load_profile("deepseek")
    with pytest.raises(BadInputError, match="no such file"):
        load_profile(tmp_path / "absent.json")


def test_profiles_cannot_be_changed_in_place() -> None:
    profile = load_profile("deepseek-v4-flash")
    with pytest.raises(ValidationError):
        profile.name = "other"


def test_a_level_moves_acceptance_and_needs_something_to_move() -> None:
    def accepted(level: float) -> float:
        spec = AcceptanceSpec(model="qwen3-4b-chat", block_size=5, level=level, provenance=SYNTHETIC)
        return float(spec.build().replay(0).accepted.mean())

    assert accepted(-0.5) < accepted(0.0) < accepted(0.5)
    fixed = AcceptanceSpec(model="conditional:0.9,0.8", level=0.1, provenance=SYNTHETIC)
    with pytest.raises(BadInputError, match="has no level to move"):
        fixed.build()


def test_a_profile_is_read_once_and_anew_when_its_file_has_changed(put: Callable[..., Path]) -> None:
    path = put(written())
    first = load_profile(path)
    assert load_profile(path) is first
    put(written(title="Larger"))
    assert load_profile(path).title == "Larger"
    path.unlink()
    with pytest.raises(BadInputError, match="no such file"):
        load_profile(path)
