"""SLAs: what may be promised, and how a run is judged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from simulator.core.errors import BadInputError
from simulator.core.statistics import ratio_interval
from simulator.engine.measures.metrics import Metrics
from simulator.engine.measures.saturation import is_saturated, queue_trend
from simulator.sla import observed
from simulator.sla.observed import Observed, pool, tally
from simulator.sla.terms import Sla, parse_sla, parse_term
from simulator.sla.verdict import TermResult, assess, saturated_assessment
from tests.support.tables import columns

NAN = float("nan")


def metrics(**known: float) -> Metrics:
    names = Metrics.__dataclass_fields__
    return Metrics(**(dict.fromkeys(names, NAN) | known))  # type: ignore[arg-type]


def served(ttft_s: np.ndarray, tps: float = 100.0, tokens: int = 10) -> pd.DataFrame:
    """Requests that arrive a second apart and take five steps for their tokens."""
    count = len(ttft_s)
    queued = np.arange(count, dtype=float)
    first = queued + ttft_s
    return pd.DataFrame(
        {
            "request": np.arange(count),
            "traffic_class": np.where(np.arange(count) % 2, "code", "chat"),
            "queued_s": queued,
            "first_token_s": first,
            "finished_s": first + tokens / tps,
            "decode_tokens": tokens,
            "first_step": np.arange(count) * 5,
            "decode_steps": 5,
            "ttft_s": ttft_s,
            "tpot_s": 1 / tps,
            "tps": tps,
            "accepted_length": tokens / 5,
        }
    )


def observe(requests: pd.DataFrame, gap: np.ndarray, sla: Sla) -> Observed:
    """Every request's first token came when the step before its first one ended."""
    whole = requests.assign(first_gap_s=gap[requests["first_step"]])
    return observed.observe(columns(whole), gap, sla)


@pytest.mark.parametrize(
    ("text", "metric", "quantile", "bound", "share"),
    [
        ("tps_p10>=60", "tps", 0.1, 60.0, 0.9),
        ("ttft_p99<=2s", "ttft", 0.99, 2.0, 0.99),
        ("itl_p99.9 <= 50ms", "itl", 0.999, 0.05, 0.999),
        ("chat: e2e_p50<=1min", "e2e", 0.5, 60.0, 0.5),
    ],
)
def test_quantile_terms(text: str, metric: str, quantile: float, bound: float, share: float) -> None:
    term = parse_term(text)
    assert (term.metric, term.quantile, term.bound) == (metric, pytest.approx(quantile), bound)
    assert term.required_share == pytest.approx(share)
    assert (term.traffic_class == "chat") == text.startswith("chat")


def test_sums_of_times_are_taken_request_by_request() -> None:
    """The p99 of a sum is not the sum of p99s: TTFT of 0.1 to 1.0 s, TPOT the lower the higher TTFT."""
    requests = served(np.tile(np.arange(1, 11) / 10, 10), tps=100.0)
    # The slow to start are the quick to continue: their sum is below the sum of either one's worst.
    requests["tpot_s"] = (1.1 - requests["ttft_s"]) / 10
    gap = np.full(1000, 0.02)

    def judged(text: str) -> tuple[bool, float, float]:
        sla = parse_sla([text])
        result = assess(sla, observe(requests, gap, sla), metrics(), 100.0).terms[0]
        return result.met, result.estimate, result.share

    # x + 10 * (1.1 - x) / 10 = 1.1 s for every request; the p99s apart add up to 2 s.
    assert judged("ttft+10*tpot_p99<=1101ms") == (True, pytest.approx(1.1), 1.0)
    assert judged("10*tpot + ttft_p50 <= 1099ms") == (False, pytest.approx(1.1), 0.0)
    assert judged("ttft+10*tpot_mean<=2s")[1] == pytest.approx(1.1)
    # x + 5 * (1.1 - x) / 10 <= 0.85 s where x <= 0.6: six in ten.
    assert judged("ttft+5*tpot_p60<=851ms")[2] == pytest.approx(0.6)
    # A request of one token has a TTFT all the same.
    requests["tpot_s"] = np.nan
    assert judged("ttft+16*tpot_p90<=0.71s")[2] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["ttft+16*tps_p99<=500ms"], r"adds up 'tps'.*each of ttft, tpot, e2e once"),
        (["ttft+itl_p99<=500ms"], r"adds up 'itl'"),
        (["ttft+ttft_p99<=500ms"], r"adds up 'ttft'"),
        (["ttft+0*tpot_p99<=500ms"], "weighs tpot by 0"),
        (["ttft+x*tpot_p99<=500ms"], "is not a number"),
        (["ttft+_p99<=500ms"], "adds up ''"),
        ([" " * 100_000 + "ttft_p99<=1s"], "is not a term"),
        (["ttft+16*tpot<=500ms"], r"names no metric .*a sum of times as in ttft\+16\*tpot_p99"),
        (["ttft+16*tpot_p99>=500ms"], "bounds the better side"),
        (["ttft+16*tpot_p99<=500"], "no unit of time"),
        (["ttft+16*tpot_p99<=1s", "16*tpot + ttft_p99<=2s"], "keep one"),
    ],
)
def test_sums_that_say_what_is_wrong(terms: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_sla(terms)


def test_means_and_system_metrics() -> None:
    assert parse_term("tps_mean>=80 tok/s").bound == 80
    assert parse_term("throughput_tok_per_s>=5000").metric == "throughput_tok_per_s"
    assert parse_term("step_time_mean<=20ms").metric == "step_time_mean_s"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["ttft_p99<=2"], "no unit of time"),
        (["ttft_p99<=2 apples"], "unknown unit"),
        (["tps_p10>=60ms"], "plain number"),
        (["tps_p10>=0"], "more than 0"),
        (["tps>=60"], "names no metric"),
        (["speed_p10>=60"], "names no metric"),
        (["tps_p0>=60"], "no such quantile"),
        (["tps_p10=60"], "is not a term"),
        ([], "has no terms"),
        (["tps_mean>=80", "tps_mean<=60"], "contradicts 'tps_mean>=80'"),
        (["tps_p10>=80", "tps_p50<=60"], "contradicts"),
        (["tps_mean>=80", "tps_mean>=120"], "keep one"),
        (["tps_mean<=80"], "bounds the better side"),
        (["ttft_p99>=2s"], "bounds the better side"),
        (["chat:queue_mean<=3"], "of the whole system"),
    ],
)
def test_bad_terms_are_explained(terms: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_sla(terms)


def test_unknown_class_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"no traffic class 'chta'.*chat, code"):
        parse_sla(["chta:tps_p10>=60"]).check_classes(["chat", "code"])


def test_quantile_terms_are_shares_of_requests() -> None:
    ttft = np.where(np.arange(200) % 20 == 0, 3.0, 0.5)  # 5% late
    requests = served(ttft)
    gap = np.full(1000, 0.02)
    for text, met in (("ttft_p95<=2s", True), ("ttft_p96<=2s", False)):
        judged = assess(parse_sla([text]), observe(requests, gap, parse_sla([text])), metrics(), 200.0)
        assert judged.met is met
        assert judged.terms[0].share == pytest.approx(0.95)
        assert judged.attainment == pytest.approx(0.95)
        assert judged.goodput_per_s == pytest.approx(190 / 200)


def test_class_terms_concern_their_class_alone() -> None:
    requests = served(np.where(np.arange(200) % 2, 3.0, 0.5))  # all of code late
    sla = parse_sla(["chat:ttft_p99<=2s", "code:ttft_p99<=5s"])
    judged = assess(sla, observe(requests, np.full(1000, 0.02), sla), metrics(), 200.0)
    assert judged.met
    assert judged.attainment == 1.0
    strict = parse_sla(["ttft_p99<=2s"])
    assert not assess(strict, observe(requests, np.full(1000, 0.02), strict), metrics(), 200.0).met


def test_inter_token_latency_counts_deliveries() -> None:
    requests, gap = served(np.full(100, 0.1)), np.full(500, 0.02)
    gap[:25] = 0.2  # the first five requests' deliveries are all late: 5%
    for text, met in (("itl_p95<=50ms", True), ("itl_p96<=50ms", False)):
        sla = parse_sla([text])
        judged = assess(sla, observe(requests, gap, sla), metrics(), 100.0)
        assert judged.met is met
        assert judged.attainment == pytest.approx(0.95)
        assert judged.terms[0].share == pytest.approx(0.95)
    sla = parse_sla(["itl_p99<=50ms"])
    estimate = assess(sla, observe(requests, gap, sla), metrics(), 100.0).terms[0].estimate
    assert estimate == pytest.approx(0.2, rel=0.005)


def test_pooled_replicas_are_judged_as_one() -> None:
    sla = parse_sla(["itl_p90<=50ms", "ttft_p50<=1s"])
    fast, slow = served(np.full(60, 0.1)), served(np.full(60, 3.0))
    one = observe(fast, np.full(300, 0.02), sla)
    both = pool([one, observe(slow, np.full(300, 0.2), sla)])
    assert both.count == 120
    assert list(both.requests["queued_s"]) == sorted(both.requests["queued_s"])
    judged = assess(sla, both, metrics(), 60.0)
    assert [result.share for result in judged.terms] == [pytest.approx(0.5), pytest.approx(0.5)]


def test_requests_of_one_token_break_no_speed_term() -> None:
    requests = served(np.full(50, 0.1))
    requests.loc[::5, ["tps", "tpot_s"]] = np.nan
    sla = parse_sla(["tps_p10>=60"])
    judged = assess(sla, observe(requests, np.full(250, 0.02), sla), metrics(), 50.0)
    assert judged.met
    assert judged.attainment == 1.0


def test_means_and_system_terms_are_judged_as_they_are() -> None:
    requests = served(np.full(100, 0.1), tps=79.0)
    sla = parse_sla(["tps_mean>=80", "queue_mean<=3"])
    judged = assess(sla, observe(requests, np.full(500, 0.02), sla), metrics(queue_mean=2.0), 100.0)
    assert [result.met for result in judged.terms] == [False, True]
    assert judged.terms[0].estimate == pytest.approx(79.0)
    assert judged.failing[0].text == "tps_mean>=80"


def test_attainment_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Correlated outcomes, as in a queue: a 95% interval must cover nearly 95% of the time."""
    stream, truth, covered = np.random.default_rng(5), 0.9, 0
    for _ in range(400):
        fate = np.repeat(stream.random(200) < truth, 10)  # ten neighbours share a fate
        share, half = ratio_interval(fate, np.ones(fate.size))
        covered += abs(share - truth) <= half
    assert 0.90 <= covered / 400 <= 0.99


def test_a_growing_line_is_saturation_and_a_long_one_is_not() -> None:
    arrived = np.linspace(0, 1000, 4000)
    growing = arrived * 1.1  # service falls behind in proportion to time
    assert is_saturated(arrived, growing, 200.0, 950.0)
    assert not is_saturated(arrived, arrived + 100.0, 200.0, 950.0)
    stable = arrived + 50 * (1 + np.sin(arrived / 40))
    assert not is_saturated(arrived, stable, 200.0, 950.0)


def test_a_trend_comes_with_an_interval() -> None:
    """A queue that gains one request in 50 seconds; a queue that wanders about its mean and gains nothing."""
    arrived = np.linspace(0, 1000, 4000)
    slow = queue_trend(arrived, arrived + 0.005 * arrived, 0.0, 1000.0)
    assert slow.slope_per_s == pytest.approx(0.02, rel=0.05)  # 0.5% of four a second
    assert slow.grows == (slow.slope_per_s >= slow.material_per_s)
    found = []
    for seed in range(200):
        steps = np.random.default_rng(seed).normal(size=4000)
        wander = np.zeros(4000)
        for index in range(1, 4000):  # remembers for 100 requests, 25 s
            wander[index] = 0.99 * wander[index - 1] + steps[index]
        served = np.maximum.accumulate(arrived + np.maximum(20 + wander, 0))
        found.append(queue_trend(arrived, served, 0.0, 1000.0))
    assert np.mean([abs(each.slope_per_s) <= each.ci95 for each in found]) > 0.88
    assert np.mean([each.grows for each in found]) <= 0.1


@pytest.mark.parametrize("text", ["mail:ttft_p99<=1ms", "mail:itl_p99<=1ms", "mail:tps_p10>=900"])
def test_a_class_without_requests_breaks_no_promise_and_is_not_measured(text: str) -> None:
    """Nothing that could have missed the bound has finished, so nothing says that it was missed."""
    sla, requests = parse_sla([text]), served(np.full(100, 0.1))
    judged = assess(sla, observe(requests, np.full(500, 0.02), sla), metrics(), 100.0)
    (only,) = judged.terms
    assert judged.met
    assert only.requests == 0
    assert math.isnan(only.estimate)
    assert only.shown() == "not measured"
    assert judged.attainment == 1


@pytest.mark.parametrize(
    ("text", "value", "half", "said"),
    [
        ("tps_mean>=80", 104.48, 1.135, "104.5 ± 1.1 tokens/s"),
        ("ttft_mean<=2s", 0.0354, 0.0012, "35.4 ± 1.2 ms"),
        ("ttft_mean<=2s", 1.5, math.nan, "1.5 s"),
        ("queue_mean<=3", 2.5, math.nan, "2.5"),
    ],
)
def test_what_is_attained_is_said_with_unit_and_interval(
    text: str, value: float, half: float, said: str
) -> None:
    result = TermResult(parse_term(text), True, value, math.nan, half, 100)
    assert result.shown() == said
    row = result.verdict()
    assert row["attained"] == value
    assert math.isnan(row["share_asked"])


def test_saturation_reports_no_number() -> None:
    judged = saturated_assessment(parse_sla(["ttft_p99<=2s"]), 100)
    assert judged.saturated
    assert not judged.met
    assert np.isnan([judged.attainment, judged.goodput_per_s, judged.terms[0].estimate]).all()


def test_tally_keeps_every_delivery_within_half_a_percent() -> None:
    gap = np.geomspace(1e-3, 1.0, 500)
    value, count = tally(gap, np.full(500, 3))
    assert count.sum() == 1500
    assert np.abs(np.log(np.repeat(value, (count / 3).astype(int)) / gap)).max() < 0.0026


@pytest.mark.parametrize(
    ("text", "share", "likely"),
    [
        ("tps_p90>=80", "10% of the requests", "tps_p10>=80"),
        ("chat:ttft_p1<=2s", "1% of the requests", "chat:ttft_p99<=2s"),
        ("itl_p10<=50ms", "10% of the deliveries", "itl_p90<=50ms"),
        ("tps_p99.9>=80", "0.1% of the requests", "tps_p0.1>=80"),
    ],
)
def test_a_promise_to_less_than_half_says_so(text: str, share: str, likely: str) -> None:
    said = parse_term(text).weakness
    assert said is not None
    assert f"promises to {share} only" in said
    assert said.endswith(f"write {likely}")
    assert parse_term(likely).weakness is None


@pytest.mark.parametrize(
    "text", ["tps_p10>=80", "tps_p50>=80", "ttft_p50<=2s", "tps_mean>=80", "queue_mean<=3"]
)
def test_other_promises_are_not_called_weak(text: str) -> None:
    assert parse_term(text).weakness is None


def test_a_share_that_some_missed_has_the_interval_of_batch_means() -> None:
    """Every fifth of 400 requests is late: 80% kept it, of the requests and of the term."""
    late = np.arange(400) % 5 == 0
    sla = parse_sla(["ttft_p75<=1s"])
    judged = assess(
        sla, observe(served(np.where(late, 2.0, 0.5)), np.full(4000, 0.02), sla), metrics(), 400.0
    )
    share, half = ratio_interval(~late, np.ones(400))
    assert share == 0.8
    assert (judged.attainment, judged.attainment_ci95) == (share, half)
    assert (judged.terms[0].share, judged.terms[0].ci95) == (share, half)
    uneven = np.random.default_rng(0).random(400) < 0.2
    judged = assess(
        sla, observe(served(np.where(uneven, 2.0, 0.5)), np.full(4000, 0.02), sla), metrics(), 400.0
    )
    assert judged.attainment_ci95 == judged.terms[0].ci95 == ratio_interval(~uneven, np.ones(400))[1] > 0
