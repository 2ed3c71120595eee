"""Terms in and out of the words of Prometheus."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from simulator.core.errors import BadInputError
from simulator.sla.metric_names import HISTOGRAMS, LONGEST, in_terms
from simulator.sla.prometheus import Rule, prometheus_rules, rule_of
from simulator.sla.terms import parse_sla, parse_term


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("vllm:time_to_first_token_seconds_p99<=2", "ttft_p99<=2s"),
        ("vllm:time_to_first_token_seconds_p99 < 500ms", "ttft_p99<=500ms"),
        ("vllm:request_time_per_output_token_seconds_mean<=0.02", "tpot_mean<=0.02s"),
        ("vllm:inter_token_latency_seconds_p99.9<=5e-2", "itl_p99.9<=5e-2s"),
        ("sglang:e2e_request_latency_seconds_p50<=8s", "e2e_p50<=8s"),
        (
            "histogram_quantile(0.95, sum by (le) (rate(sglang:time_to_first_token_seconds_bucket[5m]))) < 2",
            "ttft_p95<=2s",
        ),
        (
            'histogram_quantile(.99, rate(vllm:e2e_request_latency_seconds_bucket{a="b"}[1m])) < 9',
            "e2e_p99<=9s",
        ),
        ("chat:ttft_p99<=2s", "chat:ttft_p99<=2s"),
        ("tps_p10>=60", "tps_p10>=60"),
        ("vllm:ttft_p99<=2s", "vllm:ttft_p99<=2s"),  # a traffic class of that name
    ],
)
def test_metrics_of_engines_are_terms(text: str, term: str) -> None:
    assert in_terms(text) == term
    assert parse_term(text) == parse_term(term)


@pytest.mark.parametrize(
    "text",
    [
        "sglang:inter_token_latency_seconds_p99<=50ms",  # divided by tokens: no itl
        "vllm:request_queue_time_seconds_p50<=3",
        "histogram_quantile(0.9, rate(vllm:request_queue_time_seconds_bucket[5m])) <= 1",
    ],
)
def test_metrics_that_no_term_means_are_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(BadInputError, match="vllm:time_to_first_token_seconds"):
        parse_term(text)


def rule(text: str, engine: str = "vllm") -> Rule:
    made = rule_of(parse_term(text), engine)  # type: ignore[arg-type]
    assert isinstance(made, Rule)
    return made


def test_a_speed_is_the_inverse_of_a_time() -> None:
    speed = rule("tps_p10>=50")
    time = rule("tpot_p90<=20ms")
    assert (speed.expression, speed.broken) == (time.expression, time.broken)
    assert time.broken == "slo:tpot_seconds:p90 > 0.02"
    # By counting: 10% of the speeds lie below b where 10% of the times lie above 1 / b.
    times = np.random.default_rng(0).gamma(4.0, 0.01, size=9999)
    assert np.quantile(1 / times, 0.1) == pytest.approx(1 / np.quantile(times, 0.9), rel=1e-3)


def test_expressions_ask_for_buckets_sums_and_counts() -> None:
    assert rule("ttft_p99<=2s").expression == (
        "histogram_quantile(0.99, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))"
    )
    assert rule("e2e_mean<=9s", "sglang").expression == (
        "sum(rate(sglang:e2e_request_latency_seconds_sum[5m])) "
        "/ sum(rate(sglang:e2e_request_latency_seconds_count[5m]))"
    )
    mean = rule("tps_mean>=80", "sglang")
    assert mean.broken == "slo:tps:mean < 80"
    assert mean.expression.startswith("sum(rate(sglang:inter_token_latency_seconds_count[5m]))")


@pytest.mark.parametrize(
    ("text", "engine", "why"),
    [
        ("chat:ttft_p99<=2s", "vllm", "traffic class"),
        ("itl_p99<=50ms", "sglang", "no histogram of itl"),
        ("tps_p10>=60", "sglang", "no histogram of tpot"),
        ("ttft+16*tpot_p99<=500ms", "vllm", "no histogram of"),
    ],
)
def test_what_an_engine_does_not_measure_is_left_out_with_a_reason(text: str, engine: str, why: str) -> None:
    said = rule_of(parse_term(text), engine)  # type: ignore[arg-type]
    assert isinstance(said, str)
    assert why in said
    rules = prometheus_rules(parse_sla([text, "ttft_p90<=9s"]), engine, "x")  # type: ignore[arg-type]
    assert f"# Left out: {said}" in rules
    assert len(yaml.safe_load(rules)["spec"]["groups"][0]["rules"]) == 2


def test_a_rule_file_reads_as_the_operator_s_resource() -> None:
    document = yaml.safe_load(prometheus_rules(parse_sla(["tps_mean>=80", "ttft_p99<=2s"]), "vllm", "chat"))
    assert (document["apiVersion"], document["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    (group,) = document["spec"]["groups"]
    records = {each["record"] for each in group["rules"] if "record" in each}
    alerts = [each for each in group["rules"] if "alert" in each]
    assert len(records) == len(alerts) == 2
    for alert in alerts:  # an alert reads what is recorded
        assert alert["expr"].split()[0] in records
        assert alert.keys() == {"alert", "expr", "for", "labels", "annotations"}


RULES = """\
# Left out: chat:ttft_p99<=2s: the engine's metrics know no traffic class
# Left out: itl_p99<=50ms: sglang has no histogram of itl
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: chat
spec:
  groups:
  - name: chat.slo
    rules:
    - record: slo:ttft_seconds:p99_9
      expr: histogram_quantile(0.999, sum by (le) (rate(sglang:time_to_first_token_seconds_bucket[1m])))
    - alert: ServiceLevelMissed
      expr: slo:ttft_seconds:p99_9 > 2
      for: 10m
      labels:
        severity: warning
        term: ttft_p99.9
      annotations:
        summary: 'ttft_p99.9<=2s is not kept: {{ $value }}'
    - record: slo:e2e_seconds:mean
      expr: sum(rate(sglang:e2e_request_latency_seconds_sum[1m])) / sum(rate(sglang:e2e_request_latency_seconds_count[1m]))
    - alert: ServiceLevelMissed
      expr: slo:e2e_seconds:mean > 9
      for: 10m
      labels:
        severity: warning
        term: e2e_mean
      annotations:
        summary: 'e2e_mean<=9s is not kept: {{ $value }}'
"""  # noqa: E501  # an expression stays on its line, as operators paste it
"""By hand; the form is that of ``PrometheusRule`` in the API reference of the Prometheus Operator."""


def test_a_rule_file_to_the_letter() -> None:
    sla = parse_sla(["chat:ttft_p99<=2s", "itl_p99<=50ms", "ttft_p99.9<=2s", "e2e_mean<=9s"])
    assert prometheus_rules(sla, "sglang", "chat", "1m") == RULES


def test_a_speed_falls_below_its_bound() -> None:
    assert rule("tps_mean>=80") == Rule(
        parse_term("tps_mean>=80"), "slo:tps:mean", rule("tps_mean>=80").expression, 80.0, above=False
    )


def test_a_metric_that_measures_nothing_promised_is_said_to_the_letter() -> None:
    with pytest.raises(BadInputError) as caught:
        parse_term("vllm:request_queue_time_seconds_p50<=3")
    assert str(caught.value) == (
        "sla: names vllm:request_queue_time_seconds, which measures nothing that a term promises "
        "(got 'vllm:request_queue_time_seconds_p50<=3'); use one of vllm:time_to_first_token_seconds, "
        "vllm:request_time_per_output_token_seconds, vllm:inter_token_latency_seconds, "
        "vllm:e2e_request_latency_seconds, sglang:time_to_first_token_seconds, "
        "sglang:e2e_request_latency_seconds, or a term such as tpot_p90<=20ms"
    )


def test_the_longest_expression_is_read_still() -> None:
    text = "vllm:time_to_first_token_seconds_p99" + " " * (LONGEST - 39) + "<=2"
    assert len(text) == LONGEST
    assert in_terms(text) == "ttft_p99<=2s"
    assert in_terms(text + " ") == text + " "


def test_terms_survive_the_way_out_and_back() -> None:
    for engine, names in HISTOGRAMS.items():
        for metric in names:
            made = rule(f"{metric}_p95<=1.5s", engine)
            assert parse_term(f"{made.expression} <= 1.5") == parse_term(f"{metric}_p95<=1.5s")
