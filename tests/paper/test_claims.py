"""The model against the paper: production predicted from the MTP-1 baseline and independent acceptance."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from simulator.core.files import data_directory, write_json
from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.deployment.profile_parts import PublishedClaims
from simulator.paper.claims_check import LOAD_RANGE, check_against, draft_cost_budgets, gain_over_load
from simulator.paper.production import (
    Shape,
    accepted_length_at,
    falling_rates,
    sources,
    step_curve,
    target_times,
    text,
)
from simulator.paper.readings import SHIPPED
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.comparison import at_slas
from simulator.sweeps.frontier import sweep_frontier

SCRIPT = Path(__file__).parents[2] / "tools" / "derive_profiles.py"
POLICIES = ("mtp1", "fixed:3", "fixed:5", "dspark-async")
LOADS = (10, 20, 35, 50, 80, 100, 120, 160, 200, 300)


def frontier_of(name: str) -> pd.DataFrame:
    loaded = load_profile(name)
    policies = [parse_policy(text) for text in POLICIES]
    return sweep_frontier(deploy(loaded, extrapolate_rows=True), policies, LOADS, seeds=1, steps=400)


@pytest.fixture(scope="module")
def flash() -> pd.DataFrame:
    return frontier_of("deepseek-v4-flash")


@pytest.fixture(scope="module")
def pro() -> pd.DataFrame:
    return frontier_of("deepseek-v4-pro")


@pytest.fixture(scope="module")
def flash_claims() -> PublishedClaims:
    claims = load_profile("deepseek-v4-flash").published
    assert claims is not None
    return claims


@pytest.fixture(scope="module")
def derivation() -> ModuleType:
    """``scripts/derive_profiles`` as a module."""
    loader = SourceFileLoader("derive_profiles", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def column(frontier: pd.DataFrame, policy: str, name: str) -> pd.Series:
    return frontier[frontier["policy"] == policy].set_index("concurrency")[name]


def mean_error(predicted: pd.Series, points: tuple[tuple[float, float], ...], relative: bool) -> float:
    x, y = np.array(points).T
    loads = predicted.index.to_numpy(dtype=float)
    inside = (loads >= max(LOAD_RANGE[0], x[0])) & (loads <= min(LOAD_RANGE[1], x[-1]))
    assert inside.sum() >= 7, "too few loads to speak of a curve"
    expected = np.interp(loads[inside], x, y)
    error = np.abs(predicted.to_numpy()[inside] - expected)
    return float((error / expected if relative else error).mean())


def test_flash_throughput_within_five_percent(flash: pd.DataFrame, flash_claims: PublishedClaims) -> None:
    predicted = column(flash, "dspark-async", "throughput_tok_per_s")
    assert mean_error(predicted, flash_claims.throughput["dspark-async"], relative=True) <= 0.05


def test_flash_budget_within_four_tenths_of_a_token(
    flash: pd.DataFrame, flash_claims: PublishedClaims
) -> None:
    predicted = column(flash, "dspark-async", "verification_budget_mean")
    assert mean_error(predicted, flash_claims.budget["dspark-async"], relative=False) <= 0.4


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_baseline_reproduces_the_line_its_curve_came_from(
    name: str, request: pytest.FixtureRequest
) -> None:
    claims = load_profile(f"deepseek-v4-{name}").published
    assert claims is not None
    predicted = column(request.getfixturevalue(name), "mtp1", "throughput_tok_per_s")
    assert mean_error(predicted, claims.throughput["mtp1"], relative=True) <= 0.02


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_loss_that_kept_production_on_mtp1(name: str, request: pytest.FixtureRequest) -> None:
    """Five fixed tokens win while the batch is small and lose once every row costs."""
    frontier = request.getfixturevalue(name)
    fixed, mtp1 = (column(frontier, policy, "throughput_tok_per_s") for policy in ("fixed:5", "mtp1"))
    assert fixed[50] > 1.2 * mtp1[50]
    assert fixed[300] < 0.98 * mtp1[300]


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_scheduling_by_confidence_never_loses(name: str, request: pytest.FixtureRequest) -> None:
    """At every load dspark-async is first, or behind by less than the sampling error of the two."""
    frontier = request.getfixturevalue(name)
    rates = frontier.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")
    noise = frontier.pivot(index="concurrency", columns="policy", values="throughput_ci95")
    for rival in ("mtp1", "fixed:3", "fixed:5"):
        allowed = noise["dspark-async"] + noise[rival]
        assert (rates["dspark-async"] > rates[rival] - allowed).all(), rival


@pytest.mark.parametrize(
    ("name", "sla", "published", "band"), [("flash", 80, 0.51, 0.1), ("pro", 35, 0.52, 0.1)]
)
def test_throughput_gain_at_the_production_sla(
    name: str, sla: float, published: float, band: float, request: pytest.FixtureRequest
) -> None:
    answers = at_slas(request.getfixturevalue(name), [sla]).set_index("policy")
    assert abs(answers.loc["dspark-async", "gain"] - published) <= band
    assert not answers.loc["dspark-async", "lower_bound"]


def test_the_budget_shrinks_as_load_grows(flash: pd.DataFrame, pro: pd.DataFrame) -> None:
    for frontier in (flash, pro):
        budget = column(frontier, "dspark-async", "verification_budget_mean").to_numpy()
        assert (np.diff(budget) < 0.05).all()  # sampling error of the mean, with room
        assert budget[0] - budget[-1] > 1.5
        assert column(frontier, "mtp1", "verification_budget_mean").eq(2).all()


def test_pros_dspark_lines_are_predicted_not_known(pro: pd.DataFrame) -> None:
    """The data hold no DSpark curve of Pro, and so no error of one is reported."""
    claims = load_profile("deepseek-v4-pro").published
    assert claims is not None
    assert set(claims.throughput) == set(claims.throughput_vs_tps) == {"mtp1"}
    assert not claims.budget
    quantities = " ".join(check_against(pro, claims)["quantity"])
    assert "mtp1 throughput, mean" in quantities
    assert "dspark-async throughput, mean" not in quantities


def test_nothing_is_fitted_to_flash(derivation: ModuleType) -> None:
    """One level for every profile, and it is that of the published accepted length, not of a throughput."""
    names = ("deepseek-v4-flash", "deepseek-v4-flash-figure7", "deepseek-v4-pro", "deepseek-v4-pro-figure7")
    (level,) = {load_profile(name).acceptance["dspark"].level for name in names}
    lengths = dict(sources()[1]["accepted_length"][derivation.TRAFFIC]["dspark"])
    assert accepted_length_at(text(), level, 5) == pytest.approx(lengths[5], abs=0.02)
    for block, length in lengths.items():  # one number meets five within 3%
        assert accepted_length_at(text(), level, block) == pytest.approx(length, rel=0.03)


@pytest.mark.parametrize("title", ["DeepSeek-V4-Flash", "DeepSeek-V4-Pro"])
@pytest.mark.parametrize("alone", [False, True])
def test_profiles_are_what_the_script_derives(
    title: str, alone: bool, derivation: ModuleType, tmp_path: Path
) -> None:
    derived = derivation.profile(title, derivation.acceptance_of(derivation.TRAFFIC), alone)
    derived.save(tmp_path / "derived.json")
    shipped = data_directory("profiles") / f"{derived.name}.json"
    assert (tmp_path / "derived.json").read_bytes() == shipped.read_bytes()


def test_shipped_acceptance_is_what_the_script_derives(derivation: ModuleType, tmp_path: Path) -> None:
    write_json(tmp_path / "production.json", derivation.production())
    shipped = data_directory("traces") / "production.json"
    assert (tmp_path / "production.json").read_bytes() == shipped.read_bytes()


def test_the_curve_is_mtp1s_step_time() -> None:
    """Worked by hand: 50 requests at 5,000 tokens/s commit 1.85 each per step of 18.5 ms, in 100 rows."""
    line = {"load": {"mtp1_throughput": [[50, 5000], [100, 8000]]},
            "throughput_vs_tps": {"mtp1": [[100, 5000], [80, 8000]]}}  # fmt: skip
    for alone in (False, True):
        tokens, steps_per_s = step_curve(line, alone)
        np.testing.assert_allclose(tokens, [100, 200])
        np.testing.assert_allclose(1 / steps_per_s, [1.85 * 50 / 5000, 1.85 * 100 / 8000])


# --- drafts by layers ---------------------------------------------------------------------------------------


def test_a_layers_share_counts_the_head_on_both_sides() -> None:
    """By hand: 4 layers of 10 parameters and a head of 20, in layers 2: one layer and the head are 3 of 6."""
    shape = Shape(layers=4, hidden=4, vocabulary=5, active_parameters=60)
    assert shape.head_in_layers == 2
    assert shape.share(1) == pytest.approx(3 / 6)
    assert shape.share(4) == 1


@given(st.floats(1e-3, 1e-1), st.floats(1e-6, 1e-3), st.floats(0.01, 0.1))
def test_a_step_is_the_targets_pass_and_the_modules(bias: float, slope: float, share: float) -> None:
    """Built the other way round: S(B) = T(B) + s T(B/2) for a straight T, which must come back."""

    def pass_s(rows: np.ndarray) -> np.ndarray:
        return bias + slope * rows

    def step_s(rows: np.ndarray) -> np.ndarray:
        return pass_s(rows) + share * pass_s(rows / 2)

    rows = np.array([2.0, 10.0, 100.0, 700.0])
    np.testing.assert_allclose(target_times(step_s, share, rows), pass_s(rows), rtol=1e-9)


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "deepseek-v4-pro"])
def test_mtp1s_step_is_whole_again_when_its_module_is_put_back(name: str) -> None:
    figures, _ = sources()
    curve = step_curve(figures[name.removeprefix("deepseek-").replace("-", "_")])
    cost = deploy(name).plan("mtp1").cost
    for rows, rate in list(zip(*curve, strict=True))[::5]:
        requests = rows / 2
        if requests == int(requests):
            continue  # requests are whole in the simulator: the curve's own points rarely are
        low, high = (cost.step_time_s(int(r), 2 * int(r)) for r in (requests, requests + 1))
        assert 0.999 * low <= 1 / rate <= 1.001 * high


def test_drafters_cost_what_their_layers_say() -> None:
    """Flash at 40 requests: MTP's pass is 6.3% of the target's over 40 rows, DSpark's 10.8% over 200."""
    profile = load_profile("deepseek-v4-flash")
    target = profile.target_cost()
    mtp, dspark, module = (profile.draft_cost(name) for name in ("mtp", "dspark", "mtp1"))
    assert mtp is not None
    assert dspark is not None
    assert module is not None
    head = 4096 * 129280 * 43 / (13e9 - 4096 * 129280)
    one, three = ((layers + head) / (43 + head) for layers in (1, 3))
    assert module.time_s(40, 1) == pytest.approx(one * target.step_time_s(40, 40), rel=0.005)
    assert mtp.time_s(40, 3) == pytest.approx(3 * module.time_s(40, 1))
    passes = three * target.step_time_s(40, 200)
    assert dspark.time_s(40) == pytest.approx(passes + 5 * 70e-6, rel=0.005)


@given(st.floats(0.3, 0.95), st.floats(0.05, 1.0), st.integers(2, 7))
def test_falling_rates_give_the_length_they_are_asked_for(first: float, factor: float, block: int) -> None:
    rates = first * factor ** np.arange(block)
    length = 1 + float(np.cumprod(rates).sum())
    np.testing.assert_allclose(falling_rates(first, length, block), rates, atol=2e-3)


# --- MTP-3, a drafter of its own ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "deepseek-v4-pro"])
def test_mtp3_loses_where_production_stayed_on_mtp1(name: str) -> None:
    """Published: fixed MTP-3 loses throughput under high load (section 5.4). Its accepted length is 2.49."""
    table = sweep_frontier(deploy(name), ["mtp1", "mtp3"], [20, 150, 250], seeds=1, steps=400)
    mtp3 = table[table["policy"] == "mtp3"]
    assert mtp3["accepted_length_mean"].to_numpy() == pytest.approx(2.49, abs=0.03)
    assert set(mtp3["drafter"]) == {"mtp"}
    rates = table.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")
    gain = rates["mtp3"] / rates["mtp1"] - 1
    assert gain[20] > 0.05
    assert -0.2 < gain[250] < gain[150] < -0.03


def test_without_thinking_mtp3_does_not_lose() -> None:
    flash = deploy("deepseek-v4-flash", ["deepseek-v4/mtp/no-thinking"])
    table = sweep_frontier(flash, ["mtp1", "mtp3"], [150], seeds=1, steps=400)
    rates = table.set_index("policy")["throughput_tok_per_s"]
    assert rates["mtp3"] > 1.05 * rates["mtp1"]


# --- other readings -----------------------------------------------------------------------------------------


def test_a_reading_changes_what_it_says_and_nothing_else() -> None:
    profile = load_profile("deepseek-v4-flash")
    shipped = SHIPPED.deployment(profile)
    assert shipped.profile.step == profile.step
    assert shipped.plan("dspark-async").cost.step_time_s(40, 160) == deploy(profile).plan(
        "dspark-async"
    ).cost.step_time_s(40, 160)
    cheap = replace(SHIPPED, by_layers=False).deployment(profile).plan("dspark-async")
    figures, _ = sources()
    rows, rate = (values[20] for values in step_curve(figures["v4_flash"]))
    assert cheap.cost.step_time_s(40, rows) == pytest.approx(1 / rate)
    dear = replace(SHIPPED, row_cost_s=4e-6).deployment(profile).plan("dspark-async")
    plain = shipped.plan("dspark-async")
    for drafts, extra in ((40, 0.0), (41, 4e-6), (200, 160 * 4e-6)):
        found = dear.cost.step_time_s(40, 40 + drafts) - plain.cost.step_time_s(40, 40 + drafts)
        assert found == pytest.approx(extra, abs=1e-12)


# --- the table of predictions -------------------------------------------------------------------------------


def two_lines(loads: tuple[float, ...], gain: float) -> pd.DataFrame:
    rows = []
    for policy, factor in (("mtp1", 1.0), ("dspark-async", 1 + gain)):
        for load in loads:
            speed = factor * (200 - load / 2)
            rows.append(
                {
                    "policy": policy,
                    "concurrency": load,
                    "tps_mean": speed,
                    "throughput_tok_per_s": speed * load,
                    "throughput_ci95": 0.0,
                    "verification_budget_mean": 2.0 if policy == "mtp1" else 4.0,
                }
            )
    return pd.DataFrame(rows)


def test_errors_are_means_over_the_loads_both_have() -> None:
    frontier = two_lines((5, 20, 60, 150, 250), gain=0.5)
    exact = two_lines((20, 60, 150), gain=0.5).query("policy == 'dspark-async'")
    claims = PublishedClaims(
        source="hand-made",
        throughput={
            "dspark-async": [
                (load, rate / 1.1)
                for load, rate in exact[["concurrency", "throughput_tok_per_s"]].itertuples(index=False)
            ]
        },
        budget={"dspark-async": ((20, 3.5), (150, 3.5)), "fixed:7": ((20, 8.0), (150, 8.0))},
    )
    table = check_against(frontier, claims)
    assert list(table["quantity"]) == [
        "dspark-async throughput, mean from 20 to 150 requests",
        "dspark-async verification budget, mean from 20 to 150 requests",
    ]
    assert table["error"].tolist() == pytest.approx([0.1, 0.5])


def test_gains_that_the_sweep_cannot_show_are_left_out() -> None:
    """No NaN beside a published number: an SLA that mtp1 misses has no gain over mtp1 at all."""
    frontier = two_lines((10, 60, 150), gain=0.5)
    claims = PublishedClaims(
        source="hand-made",
        throughput_gain_at_sla={"150": 0.6, "250": 2.0, "900": 9.0},
        tps_gain_at_matched_throughput=(0.3, 0.4),
    )
    table = check_against(frontier, claims)
    assert table.notna().all(axis=None)
    gains = table[table["quantity"].str.startswith("throughput gain")]
    assert len(gains) == 1
    assert "at 150 tokens" in gains["quantity"].iloc[0]
    predicted = at_slas(frontier, [150]).set_index("policy").loc["dspark-async", "gain"]
    assert gains["predicted"].iloc[0] == pytest.approx(predicted)
    assert gains["error"].iloc[0] == pytest.approx(predicted - 0.6)


def test_a_speed_gain_inside_the_published_range_has_no_error() -> None:
    frontier = two_lines((10, 60, 150), gain=0.5)
    speed = at_slas(frontier, [150]).set_index("policy").loc["dspark-async", "speed_gain"]
    assert not math.isnan(speed)
    for low, high, error in ((speed - 0.1, speed + 0.1, 0.0), (speed + 0.2, speed + 0.3, -0.2)):
        claims = PublishedClaims(
            source="hand-made",
            throughput_gain_at_sla={"150": 0.6},
            tps_gain_at_matched_throughput=(low, high),
        )
        table = check_against(frontier, claims)
        there = table[table["quantity"].str.startswith("speed gain")]
        assert there["error"].iloc[0] == pytest.approx(error)


def test_the_table_needs_no_policy_in_particular(flash_claims: PublishedClaims) -> None:
    alone = two_lines((20, 60, 150), gain=0.0).query("policy == 'mtp1'")
    table = check_against(alone, flash_claims)
    assert table["quantity"].str.startswith("mtp1 throughput").all()
    assert len(table) == 1
    nothing = check_against(alone.assign(policy="fixed:3"), flash_claims)
    assert_frame_equal(nothing, table.iloc[:0], check_dtype=False)


@pytest.mark.parametrize(
    ("name", "sla", "claimed", "over_load"),
    [("flash", 80, 0.51, 0.48), ("flash", 120, 6.61, None), ("pro", 35, 0.52, 0.36), ("pro", 50, 4.06, 0.95)],
)
def test_both_published_baselines_stand_beside_a_predicted_gain(
    name: str, sla: float, claimed: float, over_load: float | None
) -> None:
    """Read by hand off profiles/sources: Flash at 80 by figure 8, 16,158 / 10,939; Pro at 50, where figure
    7's MTP-1 gives 832 and figure 8's 2,161: 832 * 5.06 / 2,161; Pro at 35: 3,729 * 1.52 / 4,164.
    """
    claims = load_profile(f"deepseek-v4-{name}").published
    assert claims is not None
    assert claims.throughput_gain_at_sla[str(sla)] == claimed
    found = gain_over_load(claims, sla)
    assert found == over_load if over_load is None else found == pytest.approx(over_load, abs=0.005)


def test_a_check_prints_both_baselines_with_one_prediction(
    flash: pd.DataFrame, flash_claims: PublishedClaims
) -> None:
    rows = check_against(flash, flash_claims).set_index("quantity")
    what = "throughput gain over mtp1 at 80 tokens/s/user"
    claimed, over_load = (
        rows.loc[f"{what}, as claimed"],
        rows.loc[f"{what}, by the published lines over load"],
    )
    assert claimed["published"] == 0.51
    assert over_load["published"] == pytest.approx(0.477, abs=0.001)
    assert claimed["predicted"] == over_load["predicted"]


def test_a_draft_cost_that_does_not_grow_with_the_batch_admits_more() -> None:
    """Theta = tau / T: a constant in T lowers the price of a row, T'(B) / T(B), and so the bar for a draft.

    scripts/validate_published prints the budgets of 0, 1 and 3 ms; the explanation in docs/validation.md
    rests on their order.
    """
    budgets = draft_cost_budgets(20, (0.0, 0.001, 0.003), seeds=1)
    assert list(budgets) == [0.0, 0.001, 0.003]
    assert budgets[0.0] < budgets[0.001] < budgets[0.003]
    assert 5.3 < budgets[0.0] < 5.7
