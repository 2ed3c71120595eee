"""Reading a frontier: hand-made lines whose answers can be worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.sweeps.bands import load_bands
from simulator.sweeps.comparison import at_slas, baseline_of, parse_speed, promise, speed_gain_range
from simulator.sweeps.frontier import GUESSES, MOST_TURNS
from simulator.sweeps.lines import lines
from simulator.sweeps.refine import loads_to_add

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


def test_a_speed_that_no_finished_request_tells_is_refused_and_not_taken_for_a_slow_one() -> None:
    table = TWO.assign(tps_p10=TWO["tps_mean"])
    table.loc[table.index[-1], "tps_p10"] = math.nan
    for read in (at_slas, loads_to_add):
        with pytest.raises(BadInputError, match=r"sla.*dspark-async at 40 requests finished no request"):
            read(table, ["p10>=80"])
        read(table, [80])  # the mean is known


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


def test_without_mtp1_gains_are_over_the_first_policy() -> None:
    table = frontier({"autoregressive": (1000, 1800, 2400), "fixed:3": (2000, 3200, 4000)})
    answers = at_slas(table, [75]).set_index("policy")
    assert set(answers["baseline"]) == {"autoregressive"}
    assert answers.loc["autoregressive", "gain"] == 0
    assert answers.loc["fixed:3", "gain"] == pytest.approx(4000 / 2100 - 1)
    matched = 200 - 40 * 100 / 1200  # 2100 of the 2000 to 3200 tokens/s between its loads 10 and 20
    assert answers.loc["fixed:3", "speed_gain"] == pytest.approx(matched / 75 - 1)
    assert baseline_of(table) == "autoregressive"
    assert baseline_of(TWO.iloc[::-1]) == "mtp1"


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


def test_a_baseline_gains_nothing_over_itself_where_its_throughput_falls() -> None:
    """At 40 requests it serves 1,700, as it did at 19, where its users were more than twice as fast."""
    table = frontier({"mtp1": (1000, 1800, 1700), "dspark-async": (2000, 3200, 4000)})
    answers = at_slas(table, [40]).set_index("policy")
    assert answers.loc["mtp1", ["concurrency", "gain", "speed_gain"]].tolist() == [40, 0, 0]


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


# --- which speed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text", "words"),
    [
        (80, "tps_mean>=80", "at least 80 tokens/s per user on average"),
        ("80", "tps_mean>=80", "at least 80 tokens/s per user on average"),
        ("tps_mean>=80", "tps_mean>=80", "at least 80 tokens/s per user on average"),
        ("mean >= 80", "tps_mean>=80", "at least 80 tokens/s per user on average"),
        ("p10>=80", "tps_p10>=80", "at least 80 tokens/s for 90% of the users (p10)"),
        ("tps_p50>=62.5", "tps_p50>=62.5", "at least 62.5 tokens/s for 50% of the users (p50)"),
    ],
)
def test_a_speed_is_the_mean_or_a_share_of_the_users(written: float | str, text: str, words: str) -> None:
    term = parse_speed(written)
    assert term.text == text
    assert promise(term) == words
    assert parse_speed(term) is term


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("0", "must be positive"),
        ("nan", "must be positive"),
        ("ttft_p99<=2s", "is not a speed that is compared"),
        ("tps_p5>=80", "write 80 or tps_mean>=80 for the mean"),
        ("tps_p10<=80", "is not a speed that is compared"),
        ("chat:tps_p10>=80", "is not a speed that is compared"),
        ("fast", "is not a term"),
    ],
)
def test_what_is_no_speed_is_refused(written: str, complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        parse_speed(written)


def test_a_share_of_the_users_is_asked_for_its_own_speed() -> None:
    """p10 is 10 below the mean: 65 tokens/s for 90% is 75 on average, where mtp1 gives 2100."""
    slower = TWO.assign(tps_p10=TWO["tps_mean"] * 65 / 75)
    on_average, for_most = (at_slas(slower, [sla]).set_index("policy") for sla in (75, "p10>=65"))
    for column in ("throughput_tok_per_s", "concurrency", "tps_mean", "tps_p10", "gain"):
        mean, most = on_average.loc["mtp1", column], for_most.loc["mtp1", column]
        assert most == pytest.approx(mean), column
    assert on_average.loc["mtp1", "tps_p10"] == pytest.approx(65)
    assert for_most["sla"].unique().tolist() == ["tps_p10>=65"]
    with pytest.raises(InfeasibleError, match=r"reaches 190 tokens/s/user for 90% of the users .* is 173.3"):
        at_slas(slower, ["p10>=190"])


# --- where to look closer -----------------------------------------------------------------------------------

SMOOTH: dict[str, Callable[[int], float]] = {
    "mtp1": lambda load: 1 / (0.008 + 4e-5 * load),
    "dspark-async": lambda load: 1 / (0.004 + 2e-5 * load + 5e-8 * load**2),
}
RISERS: dict[str, Callable[[int], float]] = {
    "mtp1": lambda load: 1 / (0.008 + 5e-4 * (load // 16)),
    "dspark-async": lambda load: 1 / (0.004 + 1e-3 * (load // 32)),
}


def refined(
    speed: dict[str, Callable[[int], float]], loads: Sequence[int], slas: Sequence[float]
) -> pd.DataFrame:
    """What a sweep of policies whose speed is known exactly ends with."""
    points = [(policy, load) for policy in speed for load in loads]
    for turn in range(MOST_TURNS):
        rows = [
            {"policy": p, "concurrency": n, "throughput_tok_per_s": n * speed[p](n), "throughput_ci95": 0.0,
             "tps_mean": speed[p](n)} for p, n in points
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        if not (added := loads_to_add(table, slas, halve=turn >= GUESSES)):
            return table
        assert not set(added) & set(points)
        points += added
    raise AssertionError("never settled")


@pytest.mark.parametrize("speed", [SMOOTH, RISERS])
@pytest.mark.parametrize("sla", [30, 47, 80, 110])
@pytest.mark.parametrize("loads", [(1, 900), (1, 20, 45, 90, 160, 300, 900), (40, 300, 900), (500, 900)])
def test_answers_do_not_depend_on_the_loads_given(
    speed: dict[str, Callable[[int], float]], sla: float, loads: Sequence[int]
) -> None:
    table = refined(speed, loads, [sla])
    answers = at_slas(table, [sla]).set_index("policy")
    for policy in speed:
        exact = max(n for n in range(1, 901) if speed[policy](n) >= sla)  # by brute force
        assert answers.loc[policy, "concurrency"] == pytest.approx(exact, rel=0.02, abs=1)
        if not answers.loc[policy, "lower_bound"]:
            assert answers.loc[policy, "throughput_tok_per_s"] == pytest.approx(
                exact * sla, rel=0.03, abs=sla
            )
    assert len(table) < 2 * (len(loads) + 20)


def test_a_policy_too_slow_at_the_lowest_load_is_tried_alone() -> None:
    table = refined(SMOOTH, (200, 300), [100])
    assert set(table.loc[table["policy"] == "mtp1", "concurrency"]) >= {1, 200, 300}
    assert at_slas(table, [100]).set_index("policy").loc["mtp1", "concurrency"] == pytest.approx(50, abs=1)


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


def straight(policy: str, factor: float, half: float) -> pd.DataFrame:
    """A line whose time per token is 10 ms + 0.1 ms a request, over ``factor``, with a relative interval."""
    load = np.array([10.0, 50.0, 100.0, 200.0, 400.0])
    speed = factor / (0.010 + 1e-4 * load)
    return pd.DataFrame(
        {
            "policy": policy, "concurrency": load, "throughput_tok_per_s": load * speed, "tps_mean": speed,
            "tps_p10": 0.8 * speed, "throughput_ci95": half * load * speed,
        }
    )  # fmt: skip


def test_the_interval_of_an_answer_is_that_of_the_line_moved_as_a_whole() -> None:
    """At 50 tokens/s a line moved by 1 + h ends where 0.010 + 1e-4 C = (1 + h) / 50."""
    half = 0.03
    answer = at_slas(pd.concat([straight("mtp1", 1.0, half)]), [50]).iloc[0]
    low, high = (50 * ((1 + sign * half) / 50 - 0.010) / 1e-4 for sign in (-1, 1))
    assert answer["throughput_tok_per_s"] == pytest.approx(50 * 100)
    assert answer["throughput_ci95"] == pytest.approx((high - low) / 2)
    assert answer["throughput_ci95"] > half * 50 * 100  # more than at a fixed load


@pytest.mark.parametrize(("factor", "leading"), [(1.02, [True, True]), (1.2, [False, True])])
def test_only_a_sure_lead_leaves_the_other_behind(factor: float, leading: list[bool]) -> None:
    table = pd.concat(
        [straight("mtp1", 1.0, 0.02), straight("dspark", factor, 0.02), straight("oracle", 2, 0)]
    )
    answers = at_slas(table, [50]).set_index("policy")["leading"]
    assert answers[["mtp1", "dspark"]].tolist() == leading
    assert not answers["oracle"]
