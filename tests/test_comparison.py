"""Reading a frontier: hand-made lines whose answers can be worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.comparison import at_slas, lines, load_bands, speed_gain_range
from simulator.errors import InfeasibleError

LOADS = (10, 20, 40)


def frontier(
    throughput: Mapping[str, Sequence[float]], ci95: float = 0.0, loads: Sequence[int] = LOADS
) -> pd.DataFrame:
    """Throughput by policy over ``loads``; speed per user follows, as it does in a closed loop."""
    return pd.DataFrame(
        [
            {
                "policy": policy,
                "concurrency": load,
                "throughput_tok_per_s": rate,
                "throughput_ci95": ci95,
                "tps_mean": rate / load,
            }
            for policy, rates in throughput.items()
            for load, rate in zip(loads, rates, strict=True)
        ]
    )


TWO = frontier({"mtp1": (1000, 1800, 2400), "dspark-async": (2000, 3200, 4000)})
"""Speeds 100, 90, 60 and 200, 160, 100."""


def test_between_loads_throughput_is_linear_in_speed() -> None:
    answers = at_slas(TWO, [75]).set_index("policy")
    base = answers.loc["mtp1"]  # halfway from 90 to 60, so halfway from 1800 to 2400
    assert base["throughput_tok_per_s"] == pytest.approx(2100)
    assert base["concurrency"] == pytest.approx(2100 / 75)
    assert base["gain"] == 0
    assert base["speed_gain"] == pytest.approx(0)


@given(st.floats(60, 199), st.floats(1e-3, 1e-2), st.floats(1e-5, 1e-3))
def test_interpolation_is_exact_for_a_step_time_linear_in_load(
    load: float, bias: float, slope: float
) -> None:
    loads = (10, 60, 199, 300)
    table = frontier({"mtp1": [each / (bias + slope * each) for each in loads]}, loads=loads)
    sla = 1 / (bias + slope * load)
    answer = at_slas(table, [sla]).iloc[0]
    assert answer["concurrency"] == pytest.approx(load)
    assert answer["throughput_tok_per_s"] == pytest.approx(load * sla)


def test_a_sweep_that_ends_before_the_sla_binds_gives_a_lower_bound() -> None:
    answers = at_slas(TWO, [75]).set_index("policy")
    best = answers.loc["dspark-async"]
    assert best["lower_bound"]
    assert best["concurrency"] == 40
    assert best["throughput_tok_per_s"] == 4000
    assert best["gain"] == pytest.approx(4000 / 2100 - 1)
    assert not answers.loc["mtp1", "lower_bound"]


def test_speed_gain_is_at_the_baselines_throughput() -> None:
    answers = at_slas(TWO, [90]).set_index("policy")
    assert answers.loc["mtp1", "throughput_tok_per_s"] == 1800
    assert math.isnan(answers.loc["dspark-async", "speed_gain"])  # it is above 1800 at every load
    answers = at_slas(TWO, [60]).set_index("policy")
    speed = 200 - 40 * (2400 - 2000) / (3200 - 2000)
    assert answers.loc["dspark-async", "speed_gain"] == pytest.approx(speed / 60 - 1)
    assert answers.loc["mtp1", "speed_gain"] == pytest.approx(0)


def test_a_policy_that_misses_the_sla_has_no_answer_while_others_do() -> None:
    answers = at_slas(TWO, [150]).set_index("policy")
    assert answers.loc["mtp1", ["throughput_tok_per_s", "concurrency"]].isna().all()
    assert answers.loc["dspark-async", "concurrency"] == pytest.approx((3200 + 800 / 6) / 150)
    assert math.isnan(answers.loc["dspark-async", "gain"])


def test_without_the_baseline_there_are_no_gains() -> None:
    answers = at_slas(TWO.query("policy != 'mtp1'"), [120])
    assert answers["gain"].isna().all()
    assert answers["throughput_tok_per_s"].notna().all()


def test_an_sla_nobody_meets_names_the_nearest_that_somebody_does() -> None:
    with pytest.raises(InfeasibleError, match=r"no policy reaches 250 .* is 200 \(dspark-async"):
        at_slas(TWO, [80, 250])


def test_the_oracle_is_not_somebody() -> None:
    table = frontier({"mtp1": (1000, 1800, 2400), "oracle": (4000, 5000, 6000)})
    with pytest.raises(InfeasibleError, match=r"is 100 \(mtp1"):
        at_slas(table, [150])


def test_throughput_that_falls_at_high_load_still_has_one_speed() -> None:
    line = lines(frontier({"mtp1": (1000, 2000, 1800)}))["mtp1"]
    assert line.tps_at_throughput(1500) == pytest.approx(100)
    assert line.tps_at_throughput(2000) == pytest.approx(100)  # at 20 requests, not at 40
    assert math.isnan(line.tps_at_throughput(2001))
    assert math.isnan(line.tps_at_throughput(999))


def test_rows_may_come_in_any_order() -> None:
    shuffled = TWO.iloc[::-1]
    expected = at_slas(TWO, [75]).set_index("policy")
    pd.testing.assert_frame_equal(
        at_slas(shuffled, [75]).set_index("policy").loc[expected.index], expected, check_exact=True
    )
    pd.testing.assert_frame_equal(load_bands(shuffled), load_bands(TWO))


def test_speed_gain_range_of_a_uniformly_faster_policy() -> None:
    """Twice the speed at half the load: the same throughput, so the gain is 100% wherever both reach."""
    base = frontier({"mtp1": (1000, 1800, 2400)})
    fast = frontier({"fast": (1000, 1800, 2400)}, loads=(5, 10, 20))
    low, high = speed_gain_range(pd.concat([base, fast]), "fast")
    assert (low, high) == (pytest.approx(1), pytest.approx(1))


@given(st.floats(60, 100))
def test_best_throughput_never_rises_with_the_sla(sla: float) -> None:
    stricter = at_slas(TWO, [sla, sla + 0.5][: 1 if sla > 99 else 2])
    for _, group in stricter.groupby("policy"):
        assert group["throughput_tok_per_s"].is_monotonic_decreasing
        met = group["throughput_tok_per_s"] / group["concurrency"]
        assert (met >= group["sla_tok_per_s"] - 1e-9).all()


# --- bands --------------------------------------------------------------------------------------------------


def test_bands_meet_where_the_lines_cross() -> None:
    table = frontier({"fixed:5": (1500, 2600, 2400), "mtp1": (1000, 1800, 2800)})
    first, second = load_bands(table).to_dict("records")
    crossing = 20 + 20 * 800 / (800 + 400)  # 800 ahead at 20, 400 behind at 40
    assert (first["policy"], second["policy"]) == ("fixed:5", "mtp1")
    assert first["from_concurrency"] == 10
    assert first["to_concurrency"] == second["from_concurrency"] == pytest.approx(crossing)
    assert second["to_concurrency"] == 40
    assert first["margin"] == pytest.approx(2600 / 1800 - 1)
    assert second["margin"] == pytest.approx(2800 / 2400 - 1)
    assert first["runner_up"] == "mtp1"
    assert first["clear"]
    assert second["clear"]


def test_a_lead_within_noise_is_no_reason_to_switch() -> None:
    rates = {"fixed:5": (1500, 2600, 2790), "mtp1": (1000, 1800, 2800)}
    assert len(load_bands(frontier(rates))) == 2
    noisy = load_bands(frontier(rates, ci95=6)).to_dict("records")  # 10 ahead, known to 12
    assert len(noisy) == 1
    assert noisy[0]["policy"] == "fixed:5"
    assert not noisy[0]["clear"]
    assert noisy[0]["margin"] == pytest.approx(2790 / 2800 - 1)
    assert noisy[0]["to_concurrency"] == 40
    assert len(load_bands(frontier(rates, ci95=4))) == 2  # 10 ahead, known to 8


def test_exact_ties_stay_with_the_policy_that_usually_wins() -> None:
    bands = load_bands(frontier({"fixed:5": (1500, 2600, 2800), "mtp1": (1500, 1800, 2400)}))
    assert bands["policy"].tolist() == ["fixed:5"]
    assert bands["margin"].tolist() == [0]
    assert bands["clear"].tolist() == [False]


def test_the_oracle_wins_no_band() -> None:
    both = frontier({"mtp1": (1000, 1800, 2400), "oracle": (4000, 5000, 6000)})
    (band,) = load_bands(both).to_dict("records")
    assert band["policy"] == "mtp1"
    assert band["runner_up"] is None
    assert math.isnan(band["margin"])


def test_no_contender_leaves_no_bands() -> None:
    bands = load_bands(frontier({"oracle": (4000, 5000, 6000)}))
    assert bands.empty
    assert "from_concurrency" in bands.columns


@given(st.lists(st.lists(st.integers(100, 110), min_size=5, max_size=5), min_size=1, max_size=4))
def test_bands_cover_the_loads_and_follow_each_other(rates: list[list[int]]) -> None:
    loads = (1, 2, 4, 8, 16)
    named = {f"fixed:{position}": row for position, row in enumerate(rates)}
    bands = load_bands(frontier(named, loads=loads))
    assert bands["from_concurrency"].iloc[0] == 1
    assert bands["to_concurrency"].iloc[-1] == 16
    assert bands["from_concurrency"].iloc[1:].tolist() == bands["to_concurrency"].iloc[:-1].tolist()
    assert (bands["from_concurrency"] <= bands["to_concurrency"]).all()
    assert (bands["policy"].iloc[1:].to_numpy() != bands["policy"].iloc[:-1].to_numpy()).all()
    for band in bands.itertuples():  # without noise the policy of a band is best at every load inside it
        for position, load in enumerate(loads):
            if band.from_concurrency < load < band.to_concurrency:
                assert named[band.policy][position] == max(row[position] for row in rates)
