"""Terms, their messages and verdicts to the letter: by hand, on a handful of requests."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from simulator.core.errors import BadInputError
from simulator.engine.measures.metrics import Metrics
from simulator.sla.observed import GAP_RESOLUTION, Observed, observe, pool, tally
from simulator.sla.terms import LONGEST_TERM, Sla, parse_sla, parse_term
from simulator.sla.verdict import (
    Assessment,
    TermResult,
    assess,
    by_rule_of_three,
    metric_values,
    saturated_assessment,
)
from tests.support.tables import columns

NOTHING = Metrics(**dict.fromkeys(Metrics.__dataclass_fields__, math.nan))  # type: ignore[arg-type]

SUM_REMEDY = (
    "sums take each of ttft, tpot, e2e once, with weights, as in ttft+16*tpot_p99; "
    "every other metric needs a term of its own"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "ttft<2s",
            "sla: is not a term (got 'ttft<2s'); write METRIC>=BOUND, as in tps_p10>=60 or chat:ttft_p99<=2s",
        ),
        ("tps_p0>=60", "sla: has no such quantile (got 'tps_p0>=60'); p1 to p99.9"),
        ("tps_p10>=0", "sla: must bound by more than 0 (got 'tps_p10>=0')"),
        ("ttft+itl_p99<=1s", f"sla: adds up 'itl' (got 'ttft+itl_p99<=1s'); {SUM_REMEDY}"),
        ("ttft+ttft_p99<=1s", f"sla: adds up 'ttft' (got 'ttft+ttft_p99<=1s'); {SUM_REMEDY}"),
        (
            "2e9*ttft+tpot_p99<=1s",
            "sla: weighs ttft by 2e+09 (got '2e9*ttft+tpot_p99<=1s'); use weights above 0, at most 1e9",
        ),
        (
            "1000000001*ttft_p99<=1s",
            "sla: weighs ttft by 1e+09 (got '1000000001*ttft_p99<=1s'); use weights above 0, at most 1e9",
        ),
        (
            "a:throughput_tok_per_s>=1",
            "sla: is a metric of the whole system, not of a traffic class (got 'a:throughput_tok_per_s>=1')",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_term_is_said_to_the_letter(text: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_term(text)
    assert str(caught.value) == said


def test_a_weight_that_is_no_number_names_its_term() -> None:
    with pytest.raises(BadInputError, match=r"^sla term 'x\*ttft\+tpot_p99<=1s': "):
        parse_term("x*ttft+tpot_p99<=1s")
    assert parse_term("1e9*ttft+tpot_p99<=1s").metric == "1000000000*ttft+1*tpot"
    assert parse_term("tpot+ttft_mean<=1s").metric == "1*ttft+1*tpot"


def test_a_bound_that_is_no_number_names_its_term() -> None:
    with pytest.raises(BadInputError, match=r"^sla term 'tps_p10>=x': "):
        parse_term("tps_p10>=x")
    with pytest.raises(BadInputError, match=r"^sla term 'ttft_p99<=x': "):
        parse_term("ttft_p99<=x")


def test_a_metric_that_nothing_measures_is_told_which_are() -> None:
    with pytest.raises(BadInputError) as caught:
        parse_term("speed_p10>=60")
    said = str(caught.value)
    assert said.startswith(
        "sla: names no metric ('speed_p10') (got 'speed_p10>=60'); use tps, ttft, tpot, itl, e2e, "
        "accepted_length with _mean or _p1 to _p99.9, a sum of times as in "
        "ttft+16*tpot_p99, or throughput_tok_per_s, "
    )


def test_a_class_that_does_not_exist_is_said_to_the_letter() -> None:
    with pytest.raises(BadInputError) as caught:
        parse_sla(["ttft_p99<=2s", "chta:tps_p10>=60"]).check_classes(["chat", "code"])
    assert str(caught.value) == ("sla: no traffic class 'chta' (got 'chta:tps_p10>=60'); one of chat, code")


def test_the_longest_term_is_one_still() -> None:
    text = "ttft_p99<=" + "0" * (LONGEST_TERM - 12) + "2s"
    assert len(text) == LONGEST_TERM
    assert parse_term(text).bound == 2.0
    with pytest.raises(BadInputError, match="is not a term"):
        parse_term(text.replace("2s", "02s"))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "sla: has no terms; as in tps_p10>=60"),
        (
            ["tps_p10>=60", "tps_p10>=70"],
            "sla: bounds the same as 'tps_p10>=60' (got 'tps_p10>=70'); keep one",
        ),
        (
            ["accepted_length_mean>=3", "accepted_length_mean<=2"],
            "sla: contradicts 'accepted_length_mean>=3': no run can meet both "
            "(got 'accepted_length_mean<=2'); drop one of them",
        ),
        (["ttft_p50>=1s"], "sla: bounds the better side (got 'ttft_p50>=1s'); write <="),
        (["ttft+tpot_p50>=1s"], "sla: bounds the better side (got 'ttft+tpot_p50>=1s'); write <="),
        (["tps_p50<=10"], "sla: bounds the better side (got 'tps_p50<=10'); write >="),
    ],
)  # fmt: skip
def test_what_is_wrong_with_terms_together_is_said_to_the_letter(texts: list[str], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_sla(texts)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("lower", "upper", "contradict"),
    [
        ("tps_p10>=60", "tps_p10<=50", True),
        ("tps_p10>=60", "tps_p10<=60", False),  # equality meets both
        ("tps_p10>=60", "tps_p90<=50", True),  # the tenth percentile is not above the ninetieth
        ("tps_p90>=60", "tps_p10<=50", False),
        ("tps_mean>=60", "tps_p10<=50", False),
        ("tps_p10>=60", "tps_mean<=50", False),
        ("tps_p10>=60", "chat:tps_p10<=50", False),
        ("tps_p10>=60", "accepted_length_p10<=2", False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_sides_contradict_where_nothing_lies_between(
    lower: str, upper: str, contradict: bool, turned: bool
) -> None:
    """Every term bounds its good side here or is refused for that, after contradictions are."""
    texts = [upper, lower] if turned else [lower, upper]
    with pytest.raises(BadInputError, match="contradicts" if contradict else "bounds the better side"):
        parse_sla(texts)


def test_a_term_moves_to_another_bound() -> None:
    time, speed = parse_term("chat : ttft_p99 <= 2s"), parse_term("tps_p10>=60 tok/s/user")
    assert (time.text, time.key, time.traffic_class) == ("chat:ttft_p99<=2s", "chat:ttft_p99", "chat")
    assert time.at(0.25) == parse_term("chat:ttft_p99<=250ms")
    assert speed.at(12.5) == parse_term("tps_p10>=12.5")
    assert str(Sla((time, speed))) == "chat:ttft_p99<=2s, tps_p10>=60tok/s/user"
    assert time.statistic == "p99"
    assert parse_term("tps_mean>=1").statistic == "mean"
    assert parse_term("throughput_tok_per_s>=1").statistic == "system"


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("ttft_p99<=2s", 0.9, (1e-3, " ms")), ("ttft_p99<=2s", 1.0, (1.0, " s")),
        ("ttft_p99<=2s", -2.0, (1.0, " s")), ("tps_p10>=60", 60.0, (1.0, " tokens/s")),
        ("throughput_tok_per_s>=1", 5.0, (1.0, " tokens/s")), ("accepted_length_p10>=2", 3.0, (1.0, "")),
        ("ttft+2*tpot_p99<=2s", 0.5, (1e-3, " ms")),
    ],
)  # fmt: skip
def test_the_unit_that_people_read(text: str, value: float, unit: tuple[float, str]) -> None:
    assert parse_term(text).unit_for(value) == unit


@pytest.mark.parametrize(
    ("text", "waits"),
    [("ttft_p99<=1s", True), ("e2e_p99<=1s", True), ("tps_p10>=1", False), ("itl_p99<=1s", False)],
)
def test_what_a_growing_queue_breaks(text: str, waits: bool) -> None:
    assert parse_term(text).measures_waiting is waits


# --- verdicts -----------------------------------------------------------------------------------------------


def requests() -> pd.DataFrame:
    """Four requests: two of chat and two of code, one of which has a single token and so no TPOT."""
    return pd.DataFrame(
        {
            "request": [0, 1, 2, 3], "traffic_class": ["chat", "chat", "code", "code"],
            "queued_s": [0.0, 1.0, 2.0, 3.0], "first_token_s": [1.0, 3.0, 2.5, 5.0],
            "finished_s": [3.0, 5.0, 3.5, 5.0], "ttft_s": [1.0, 2.0, 0.5, 2.0],
            "tps": [10.0, 20.0, 30.0, np.nan], "tpot_s": [0.1, 0.05, 0.03, np.nan],
            "decode_tokens": [20, 40, 30, 0], "decode_steps": [4, 4, 2, 0],
            "first_step": [0, 1, 4, 6], "first_gap_s": [0.5, 0.5, 0.2, np.nan],
        }
    )  # fmt: skip


def seen(*texts: str) -> tuple[Sla, Observed]:
    sla = parse_sla(texts)
    return sla, observe(columns(requests()), np.array([0.1, 0.4, 0.4, 0.6, 0.3, 0.2]), sla)


def result(text: str) -> TermResult:
    sla, observed = seen(text)
    (only,) = assess(sla, observed, NOTHING, 10.0).terms
    return only


def test_means_are_sums_over_sums() -> None:
    """90 tokens in 2 + 2 + 1 + 0 s; 90 tokens in 10 steps; 5 s over 10 steps; (1 + 2 + 0.5 + 2) / 4 s."""
    assert result("tps_mean>=1").estimate == pytest.approx(90 / 5)
    assert result("accepted_length_mean>=1").estimate == pytest.approx(9.0)
    assert result("itl_mean<=1s").estimate == pytest.approx(0.5)
    assert result("ttft_mean<=1s").estimate == pytest.approx(5.5 / 4)
    assert not result("ttft_mean<=1s").met
    assert math.isnan(result("ttft_mean<=1s").share)
    assert result("code:ttft_mean<=2s").requests == 2


def test_a_quantile_is_the_share_that_kept_it() -> None:
    ttft = result("ttft_p75<=1s")
    assert (ttft.share, ttft.met, ttft.requests) == (0.5, False, 4)
    assert result("ttft_p50<=1s").met, "half of them were promised"
    assert result("tps_p10>=20").share == pytest.approx(2 / 3), "a request without a speed is not judged"
    assert result("code:tps_p10>=20").share == 1
    assert result("ttft+2*tpot_p75<=1.2s").share == 0.5, "1.2, 2.1, 0.56 and 2 s"


def test_deliveries_are_counted_gap_by_gap() -> None:
    """First gaps 0.5, 0.5, 0.2; then those of steps 1..3, 2..4, 5: 0.4, 0.4, 0.6; 0.4, 0.6, 0.3; 0.2."""
    _, observed = seen("itl_p50<=400ms")
    assert observed.on_time[0.4].tolist() == [2, 2, 2, 0]
    term = result("itl_p50<=400ms")
    assert term.share == pytest.approx(6 / 10)
    assert term.met
    assert result("chat:itl_p50<=400ms").share == pytest.approx(4 / 8)
    assert result("chat:itl_p50<=400ms").met


def test_the_first_gap_of_a_single_delivery_counts() -> None:
    """Request 3 delivers once, 0.7 s after its first token: one gap more of its class, and no step's."""
    table = requests()
    table.loc[3, ["decode_steps", "first_gap_s"]] = 1, 0.7
    sla = parse_sla(["itl_p50<=400ms"])
    observed = observe(columns(table), np.array([0.1, 0.4, 0.4, 0.6, 0.3, 0.2, 0.9]), sla)
    gap, count = observed.gaps["code"]
    assert count.tolist() == [2, 1]
    assert gap == pytest.approx([0.2, 0.7], rel=GAP_RESOLUTION - 1)
    assert observed.on_time[0.4].tolist() == [2, 2, 2, 0]


def test_times_end_to_end_include_the_wait() -> None:
    """3, 4, 1.5 and 2 s from the queue to the last token."""
    _, observed = seen("e2e_p50<=3s")
    assert observed.requests["e2e_s"].tolist() == [3.0, 4.0, 1.5, 2.0]
    assert result("e2e_p50<=2.9s").share == 0.5
    assert result("e2e_mean<=9s").estimate == pytest.approx(10.5 / 4)


def test_classes_stand_in_the_order_of_their_names() -> None:
    """Whichever comes first, so that the same run is the same bytes."""
    turned = requests().assign(traffic_class=["code", "code", "chat", "chat"])
    assert list(observe(columns(turned), np.full(6, 0.1), parse_sla(["tps_p10>=1"])).gaps) == ["chat", "code"]


def test_gaps_that_never_were_are_not_counted() -> None:
    gap, count = tally(np.array([0.0, 1.0, 2.0, 3.0]), np.array([3, 2, 0, -1]))
    assert (gap.tolist(), count.tolist()) == ([1.0], [2.0])


def test_a_metric_of_the_system_is_judged_by_itself() -> None:
    sla, observed = seen("throughput_tok_per_s>=100", "queue_mean<=2", "step_time_mean<=20ms")
    measured = replace(
        NOTHING, throughput_tok_per_s=120.0, throughput_ci95=5.0, queue_mean=3.0, step_time_mean_s=0.02
    )
    speed, queue, step = assess(sla, observed, measured, 10.0).terms
    assert [each.term for each in (speed, queue, step)] == list(sla.terms)
    assert [each.met for each in (speed, queue, step)] == [True, False, True]
    assert [each.estimate for each in (speed, queue, step)] == [120.0, 3.0, 0.02]
    assert [each.requests for each in (speed, queue, step)] == [4, 4, 4]
    assert all(math.isnan(each.share) for each in (speed, queue, step))
    assert speed.ci95 == 5.0
    assert math.isnan(queue.ci95)
    assert math.isnan(step.ci95)
    assert speed.shown() == "120 ± 5 tokens/s"


def test_no_breach_seen_leaves_room_for_some() -> None:
    """All four keep a bound of 9 s: at most 3 / 4 of them might not have."""
    sla, observed = seen("ttft_p50<=9s")
    judged = assess(sla, observed, NOTHING, 10.0)
    assert (judged.attainment, judged.attainment_ci95) == (1.0, 0.75)
    assert judged.saturated is False


def test_attainment_wants_every_term_of_each_request() -> None:
    """Request 1 misses the TTFT; request 3 is of no chat. Half of each one's deliveries will do."""
    sla, observed = seen("chat:ttft_p50<=1s", "itl_p50<=400ms")
    judged = assess(sla, observed, NOTHING, 10.0)
    assert judged.attainment == 0.75
    assert judged.goodput_per_s == pytest.approx(0.3)
    assert judged.requests == 4
    assert judged.met
    assert not judged.saturated


def test_a_speed_of_zero_steps_is_no_breach_and_no_sum() -> None:
    values = metric_values("1*ttft+2*tpot", columns(requests()))
    assert values.tolist() == pytest.approx([1.2, 2.1, 0.56, 2.0])
    waited = requests().assign(ttft_s=[1.0, np.nan, 0.5, 2.0])
    assert np.isnan(metric_values("1*ttft+2*tpot", columns(waited))).tolist() == [False, True, False, False]
    assert metric_values("ttft", columns(requests())).tolist() == [1.0, 2.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("share", "half", "count", "said"),
    [(1.0, 0.0, 60, 0.05), (1.0, math.nan, 4, 0.75), (0.99, 0.02, 60, 0.02), (0.75, math.nan, 4, math.nan),
     (1.0, 0.3, 0, 0.3)],
)  # fmt: skip
def test_no_failure_seen_is_not_none(share: float, half: float, count: int, said: float) -> None:
    """By the rule of three: 3 / 60. Where some failed, the interval stays as it is."""
    assert by_rule_of_three(share, half, count) == pytest.approx(said, nan_ok=True)


def test_a_verdict_names_what_was_asked_and_attained() -> None:
    term = parse_term("chat:ttft_p99<=2s")
    quantile = TermResult(term, True, 1.2, 0.994, 0.003, 500)
    assert quantile.shown() == "1.2 s, kept by 99.40% ± 0.30%"
    assert quantile.verdict() == {
        "term": "chat:ttft_p99<=2s", "metric": "ttft", "statistic": "p99", "traffic_class": "chat",
        "comparison": "<=", "asked": 2.0, "attained": 1.2,
        "attained_ci95": pytest.approx(math.nan, nan_ok=True),
        "share_asked": 0.99, "share_kept": 0.994, "share_kept_ci95": 0.003, "requests": 500, "holds": True,
    }  # fmt: skip
    assert replace(quantile, ci95=math.nan).shown() == "1.2 s, kept by 99.40%"
    mean = TermResult(parse_term("tps_mean>=80"), False, 75.0, math.nan, 1.5, 500)
    assert mean.shown() == "75 ± 1.5 tokens/s"
    shown = mean.verdict()
    assert (shown["attained_ci95"], shown["statistic"], shown["holds"]) == (1.5, "mean", False)
    assert all(math.isnan(shown[name]) for name in ("share_asked", "share_kept", "share_kept_ci95"))
    assert TermResult.from_row(asdict(quantile)) == quantile


def test_the_whole_verdict_hides_attainment_where_nothing_is_promised_to_each() -> None:
    mean = TermResult(parse_term("tps_mean>=80"), False, 75.0, math.nan, 1.5, 500)
    each = TermResult(parse_term("tps_p10>=60"), True, 70.0, 0.95, 0.01, 500)
    only = Assessment(False, False, 1.0, 0.1, 3.0, 500, (mean,))
    both = Assessment(False, False, 0.95, 0.01, 3.0, 500, (mean, each))
    assert math.isnan(only.verdict()["attainment"])
    assert math.isnan(only.verdict()["attainment_ci95"])
    shown = both.verdict()
    assert [shown[name] for name in ("attainment", "attainment_ci95", "goodput_per_s")] == [0.95, 0.01, 3.0]
    assert (shown["holds"], shown["saturated"], shown["requests_judged"]) == (False, False, 500)
    assert [term["term"] for term in shown["terms"]] == ["tps_mean>=80", "tps_p10>=60"]
    assert both.failing == (mean.term,)


def test_a_saturated_run_keeps_nothing() -> None:
    judged = saturated_assessment(parse_sla(["tps_mean>=80", "ttft_p99<=1s"]), 7)
    assert (judged.met, judged.saturated, judged.requests) == (False, True, 7)
    assert [each.requests for each in judged.terms] == [7, 7]
    assert [each.met for each in judged.terms] == [False, False]
    assert all(math.isnan(value) for each in judged.terms for value in (each.estimate, each.share, each.ci95))
    assert judged.failing == tuple(each.term for each in judged.terms)
    assert all(
        math.isnan(value) for value in (judged.attainment, judged.attainment_ci95, judged.goodput_per_s)
    )
    assert [each.shown() for each in judged.terms] == ["not measured", "not measured"]


def test_what_was_observed_is_kept_and_pooled_by_arrival() -> None:
    _, observed = seen("itl_p50<=400ms")
    again = Observed.from_row(observed.as_row())
    pd.testing.assert_frame_equal(pd.DataFrame(again.requests), pd.DataFrame(observed.requests))
    assert again.on_time[0.4].tolist() == [2, 2, 2, 0]
    assert set(again.gaps) == {"chat", "code"}
    for name, (gap, count) in observed.gaps.items():
        np.testing.assert_array_equal(again.gaps[name][0], gap)
        np.testing.assert_array_equal(again.gaps[name][1], count)
    assert sum(observed.gaps["chat"][1]) == 8
    assert sum(observed.gaps["code"][1]) == 2
    later = {**observed.requests, "queued_s": observed.requests["queued_s"] + 0.5}
    late = Observed(later, observed.gaps, observed.on_time)
    both = pool([late, observed])
    assert both.requests["queued_s"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert both.count == 8
    assert both.requests["request"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(both.requests) == list(observed.requests)
    assert both.on_time[0.4].tolist() == [2, 2, 2, 2, 2, 2, 0, 0]
    assert sum(both.gaps["chat"][1]) == 16
