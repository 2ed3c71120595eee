"""What a fleet reports, against the engine alone and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.core.errors import BadInputError
from simulator.engine.batch import WAITS
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import Metrics
from simulator.engine.measures.saturation import Trend
from simulator.engine.run import simulate
from simulator.fleet.fleet import FleetRun, mean_metrics, measured_span, simulate_fleet
from simulator.fleet.layout import COOLDOWN, WARMUP, Fleet
from simulator.fleet.pod import MEASURABLE_STEPS, FleetPart, PodRun, ReplicaRun, run_part
from simulator.sla.terms import parse_sla
from tests.fleet.test_fleet import CURVE, SLA, plan, traffic
from tests.support.engines import closed_loop

KNOWN = Metrics(**{name: float(place) for place, name in enumerate(Metrics.__dataclass_fields__)})  # type: ignore[arg-type]
"""Metrics whose values are their places."""


@pytest.mark.parametrize(
    "limits",
    [
        EngineLimits(16),
        EngineLimits(16, prefill="chunked", chunk_tokens=32),
        EngineLimits(16, prefill_tokens_per_s=1500.0),
    ],
)
def test_a_pod_of_one_replica_is_the_engine_alone(limits: EngineLimits) -> None:
    """The same requests, drafts and steps, measured by the same rule."""
    load, setup = traffic(20), plan()
    alone = simulate(
        load,
        [setup.replay(5)],
        setup.scheduler,
        CURVE,
        limits,
        believed=setup.believed,
        seed=5,
        warmup=WARMUP,
    )
    pod = run_part(FleetPart(load, (setup,), Fleet(1, limits), SLA, measured_span(load), 5, 0))
    (only,) = pod.replicas
    assert (only.pod, only.replica, only.requests, pod.requests) == (0, 0, 600, 600)
    assert only.steps == len(alone.steps)
    assert only.rows_mean == alone.rows_mean
    assert only.waits == {name: float(alone.requests[name].mean()) for name in WAITS}
    assert (only.steps_outside_fraction, only.early_stop_loss, only.prefix_hit_share) == (0.0, 0.0, 0.0)
    (metrics,) = pod.metrics
    # A pod keeps what it packs in float32.
    assert metrics.as_row() == pytest.approx(alone.metrics.as_row(), rel=1e-6, nan_ok=True)
    assert pod.observed is not None
    from_s, to_s = measured_span(load)
    by_arrival = alone.requests.sort_values("request")
    judged = by_arrival[by_arrival["queued_s"].between(from_s, to_s, inclusive="left")]
    np.testing.assert_array_equal(pod.observed.requests["ttft_s"], judged["ttft_s"])


def test_a_fleet_of_two_reports_the_means_of_its_replicas() -> None:
    load = traffic(20)
    run = simulate_fleet(load, [plan()], Fleet(2, EngineLimits(16)), SLA)
    parts = [
        run_part(FleetPart(load, (plan(),), run.fleet, SLA, measured_span(load), 0, index))
        for index in (0, 1)
    ]
    one, two = (part.metrics[0] for part in parts)
    assert run.metrics is not None
    assert run.metrics.tps_p10 == pytest.approx((one.tps_p10 + two.tps_p10) / 2)
    assert run.metrics.throughput_ci95 == pytest.approx(
        math.hypot(one.throughput_ci95, two.throughput_ci95) / 2
    )
    assert (run.requests, run.rate_per_s) == (600, load.rate_per_s)
    assert run.rows_mean == max(part.replicas[0].rows_mean for part in parts)
    assert list(run.replicas["pod"]) == [0, 1]
    start_s, end_s = measured_span(load)
    good = run.assessment.attainment * run.assessment.requests
    assert run.assessment.goodput_per_s == pytest.approx(good / (end_s - start_s))


def test_what_is_judged_is_the_middle_of_the_arrivals() -> None:
    load = traffic(20)
    assert load.arrival_s is not None
    first, last = load.arrival_s[0], load.arrival_s[-1]
    start_s, end_s = measured_span(load)
    assert start_s == pytest.approx(first + WARMUP * (last - first))
    assert end_s == pytest.approx(last - COOLDOWN * (last - first))


def test_means_leave_out_what_is_undefined() -> None:
    """Places and three times the places; one has no p10. The interval is that of the mean of two."""
    names = list(Metrics.__dataclass_fields__)
    tripled = Metrics(**{name: 3.0 * place for place, name in enumerate(names)})  # type: ignore[arg-type]
    mean = mean_metrics([KNOWN, replace(tripled, tps_p10=math.nan)])
    assert mean is not None
    assert mean.tps_p10 == names.index("tps_p10")
    assert mean.tps_p50 == 2 * names.index("tps_p50")
    place = names.index("throughput_ci95")
    assert mean.throughput_ci95 == pytest.approx(math.hypot(place, 3 * place) / 2)
    assert isinstance(mean.steps, int)
    assert isinstance(mean.requests_finished, int)
    nowhere = mean_metrics([replace(KNOWN, tps_p10=math.nan)] * 2)
    assert nowhere is not None
    assert math.isnan(nowhere.tps_p10)
    assert mean_metrics([]) is None


def test_a_metric_of_the_system_is_judged_by_the_mean_replica() -> None:
    terms = parse_sla(["throughput_tok_per_s>=1", "concurrency_mean<=16"])
    run = simulate_fleet(traffic(20), [plan()], Fleet(2, EngineLimits(16)), terms)
    assert run.metrics is not None
    assert [each.estimate for each in run.assessment.terms] == [
        run.metrics.throughput_tok_per_s, run.metrics.concurrency_mean,
    ]  # fmt: skip


def test_a_saturated_fleet_counts_its_requests_and_has_no_metrics() -> None:
    run = simulate_fleet(traffic(300, 2000, "fixed:50/200"), [plan()], Fleet(2, EngineLimits(8)), SLA)
    assert (run.assessment.requests, run.metrics, run.requests) == (2000, None, 2000)
    grows = run.replicas["queue_trend_per_s"] - run.replicas["queue_trend_ci95"]
    assert grows.min() > 0


def test_a_replica_with_few_steps_has_no_metrics_of_its_own() -> None:
    load = traffic(20, 8, "fixed:50/3")
    part = run_part(FleetPart(load, (plan(),), Fleet(1, EngineLimits(16)), SLA, measured_span(load), 0, 0))
    assert part.replicas[0].steps < MEASURABLE_STEPS
    assert part.metrics == ()
    assert simulate_fleet(load, [plan()], Fleet(1, EngineLimits(16)), SLA).assessment.saturated


def test_a_pod_of_many_shares_its_trend_and_hears_who_leaves() -> None:
    """Two replicas behind one router: each has half of the trend of their queue."""
    load = traffic(300, 1000, "fixed:50/200")
    fleet = Fleet(2, EngineLimits(8), "least-loaded")
    part = run_part(FleetPart(load, (plan(),), fleet, SLA, measured_span(load), 0, 0))
    one, two = part.replicas
    assert one.queue_trend_per_s == two.queue_trend_per_s > one.queue_trend_ci95 == two.queue_trend_ci95 > 0
    # 300/s arrive; 16 slots at 3 tokens a step and some 12 ms a step serve about 16 * 3 / 0.012 / 200 = 20/s.
    assert 2 * one.queue_trend_per_s == pytest.approx(280, abs=15)
    assert one.requests + two.requests == 1000
    assert abs(one.requests - two.requests) < 50


def test_each_replica_has_its_share_of_the_trend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.fleet.pod.queue_trend_of", lambda *_: Trend(4.0, 1.0, math.inf))
    load, fleet = traffic(20, 200), Fleet(2, EngineLimits(8), "least-loaded")
    part = run_part(FleetPart(load, (plan(),), fleet, SLA, measured_span(load), 0, 0))
    assert [(each.queue_trend_per_s, each.queue_trend_ci95) for each in part.replicas] == [(2.0, 0.5)] * 2


def test_rows_rebuild_what_they_were_made_of() -> None:
    load = traffic(20, 200)
    pod = run_part(FleetPart(load, (plan(),), Fleet(1, EngineLimits(16)), SLA, measured_span(load), 0, 0))
    again = PodRun.from_row(pod.as_row())
    assert replace(again, observed=None) == replace(pod, observed=None)
    assert again.observed is not None
    assert pod.observed is not None
    pd.testing.assert_frame_equal(pd.DataFrame(again.observed.requests), pd.DataFrame(pod.observed.requests))
    assert ReplicaRun.from_row(pod.replicas[0].as_row()) == pod.replicas[0]
    assert PodRun.from_row(replace(pod, observed=None).as_row()).observed is None
    assert set(WAITS) <= set(pod.replicas[0].as_row())


def test_the_rows_of_a_fleet_are_those_of_its_busiest_replica() -> None:
    load = traffic(20, 200)
    run = simulate_fleet(load, [plan()], Fleet(2, EngineLimits(16)), SLA)
    few, many = (replace(run.parts[0], rows_mean=rows) for rows in (2.0, 7.0))
    told = FleetRun(run.fleet, 200, 20.0, run.assessment, None, (many, few), None)
    assert told.rows_mean == 7.0
    assert np.array_equal(told.replicas["rows_mean"], [7.0, 2.0])


@pytest.mark.parametrize("kept", [False, True])
def test_pods_run_where_they_are_told(kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, object] = {}

    def cells(run: object, parts: list[FleetPart], **how: object) -> list[object]:
        told.update(how)
        return [run(part) for part in parts]  # type: ignore[operator]

    monkeypatch.setattr("simulator.fleet.fleet.run_cells", cells)
    where = {"backend": "dask", "address": "tcp://head:8786", "workers": 3, "progress": True}
    if kept:
        where["directory"] = tmp_path
    simulate_fleet(traffic(20, 100), [plan()], Fleet(1, EngineLimits(16)), SLA, **where)  # type: ignore[arg-type]
    assert told == where | {"label": "Fleet"}


def test_traffic_that_no_fleet_can_serve_is_refused_to_the_letter() -> None:
    fleet = Fleet(1, EngineLimits(4))
    with pytest.raises(BadInputError) as caught:
        simulate_fleet(closed_loop([5] * 9), [plan()], fleet, SLA)
    assert str(caught.value) == "fleet traffic: needs requests with arrival times"
    with pytest.raises(BadInputError, match="no traffic class 'chat'"):
        simulate_fleet(traffic(20, 100), [plan()], fleet, parse_sla(["chat:tps_p10>=1"]))
