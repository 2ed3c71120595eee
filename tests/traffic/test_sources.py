"""Arrival processes have the statistics they are named for, runs share streams, replay is faithful.

Tolerances are four standard errors at fixed seeds: the tests are deterministic, and a stream that was
clamped, cut or drawn from a wrong law lies far outside.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from simulator.core.errors import BadInputError
from simulator.traffic.arrivals import Arrivals, ClosedLoop, DiurnalArrivals, GammaArrivals, PoissonArrivals
from simulator.traffic.lengths import ConstantLength, Geometric, IndependentLengths, parse_lengths
from simulator.traffic.parse import parse_arrivals, parse_traffic
from simulator.traffic.sources import (
    DRAWN,
    ReplayTraffic,
    SyntheticTraffic,
    TrafficClass,
    judged_lengths,
    longest_in,
)
from simulator.traffic.workload import PrefixBlocks, Workload

SHORT = IndependentLengths(ConstantLength(100), Geometric(20))


def traffic(arrivals: Arrivals | ClosedLoop, *classes: TrafficClass) -> SyntheticTraffic:
    return SyntheticTraffic(arrivals, classes or (TrafficClass("default", SHORT),))


def arrivals_of(process: Arrivals, seed: int, **limits: float) -> NDArray[np.float64]:
    times = traffic(process).workload(seed, **limits).arrival_s  # type: ignore[arg-type]
    assert times is not None
    return times


def test_poisson_stream_runs_at_the_rate_asked_for() -> None:
    times = arrivals_of(PoissonArrivals(12.0), 1, duration_s=20_000.0)
    assert times.size / 20_000 == pytest.approx(12.0, abs=4 * np.sqrt(12.0 / 20_000))
    gaps = np.diff(times)
    assert stats.kstest(gaps * 12.0, "expon").pvalue > 1e-3
    # A clamp at a multiple of the mean gap, or a floor under it, would be visible here.
    assert gaps.max() * 12.0 > 9
    assert gaps.min() * 12.0 < 1e-4


def test_poisson_counts_are_as_dispersed_as_poisson_counts() -> None:
    counts, _ = np.histogram(
        arrivals_of(PoissonArrivals(5.0), 2, duration_s=20_000.0), np.arange(0, 20_001, 10)
    )
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / counts.size))


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_stream_has_the_rate_and_burstiness_asked_for(cv: float) -> None:
    times = arrivals_of(GammaArrivals(8.0, cv), 3, requests=200_000)
    gaps = np.diff(times)
    assert 1 / gaps.mean() == pytest.approx(8.0, rel=4 * cv / np.sqrt(gaps.size))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    # Gaps of a very bursty stream reach below the resolution of the times, so compare above it.
    law, resolved = stats.gamma(cv**-2, scale=cv**2), gaps[gaps > 1e-8] * 8.0
    assert resolved.size / gaps.size == pytest.approx(law.sf(8e-8), abs=0.004)
    assert stats.kstest(resolved, lambda gap: 1 - law.sf(gap) / law.sf(8e-8)).pvalue > 1e-3
    counts, _ = np.histogram(times, np.arange(0, times[-1], 100.0))
    assert counts.var() / counts.mean() == pytest.approx(cv**2, rel=0.25)  # asymptotically cv squared


def test_gamma_windows_are_unbiased_however_short() -> None:
    """Started at an arrival, this process would put five requests more than asked into every window."""
    counts = [arrivals_of(GammaArrivals(1.0, 3.0), seed, duration_s=10.0).size for seed in range(3000)]
    assert np.mean(counts) == pytest.approx(10.0, abs=4 * np.std(counts) / np.sqrt(len(counts)))


@pytest.mark.parametrize("peak", [1.0, 2.0, 5.0])
def test_diurnal_counts_follow_its_rate(peak: float) -> None:
    process = DiurnalArrivals(2.0, peak, period_s=3600.0, peak_at_s=900.0)
    times = arrivals_of(process, 4, duration_s=10 * 3600.0)
    assert times.size == pytest.approx(72_000, abs=4 * np.sqrt(72_000))
    edges = np.linspace(0, 3600, 25)
    observed, _ = np.histogram(times % 3600.0, edges)
    expected = process.rate_at(np.arange(0.5, 3600)).reshape(24, 150).sum(axis=1)
    assert stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-3


def test_diurnal_peak_is_where_and_as_high_as_asked() -> None:
    process = DiurnalArrivals(2.0, 3.0, period_s=3600.0, peak_at_s=900.0)
    rate = process.rate_at(np.arange(3600.0))
    assert int(rate.argmax()) == 900
    assert rate.max() == pytest.approx(6.0)
    assert rate.mean() == pytest.approx(2.0, rel=1e-6)
    assert int(DiurnalArrivals(2.0, 3.0).rate_at(np.arange(0, 86400.0, 60)).argmax()) == 720  # noon


def test_diurnal_traffic_that_does_not_swing_is_poisson() -> None:
    flat = arrivals_of(DiurnalArrivals(2.0, 1.0, period_s=3600.0), 5, duration_s=5000.0)
    np.testing.assert_allclose(flat, arrivals_of(PoissonArrivals(2.0), 5, duration_s=5000.0), rtol=1e-9)


PROCESSES: list[Arrivals] = [
    PoissonArrivals(4.0),
    GammaArrivals(4.0, 2.5),
    DiurnalArrivals(4.0, 2.0, period_s=600.0),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_limits_cut_the_same_stream(process: Arrivals) -> None:
    long = arrivals_of(process, 6, requests=10_000)
    assert (np.diff(long) >= 0).all()
    np.testing.assert_array_equal(arrivals_of(process, 6, requests=10), long[:10])
    end = float(long[5000])
    np.testing.assert_array_equal(arrivals_of(process, 6, duration_s=end), long[long < end])
    np.testing.assert_array_equal(arrivals_of(process, 6, duration_s=end, requests=7), long[:7])
    assert arrivals_of(process, 7, requests=10).tolist() != long[:10].tolist()


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_changing_the_rate_keeps_classes_and_lengths(process: Arrivals) -> None:
    base = traffic(process, TrafficClass("chat", SHORT, 2.0), TrafficClass("code", SHORT, 1.0))
    slow, fast = base.workload(8, requests=2000), base.scaled(3.0).workload(8, requests=2000)
    assert fast.prompt_tokens.tolist() == slow.prompt_tokens.tolist()
    assert fast.output_tokens.tolist() == slow.output_tokens.tolist()
    assert fast.class_index.tolist() == slow.class_index.tolist()
    assert fast.span_s < slow.span_s
    assert base.scaled(3.0).rate_per_s == pytest.approx(12.0)


def test_a_rate_change_only_rescales_a_poisson_stream() -> None:
    slow, fast = (arrivals_of(PoissonArrivals(rate), 9, requests=1000) for rate in (1.0, 10.0))
    np.testing.assert_allclose(fast, slow / 10.0, rtol=1e-12)


def test_classes_occur_in_their_shares_with_their_own_lengths() -> None:
    mixed = traffic(
        PoissonArrivals(10.0),
        TrafficClass("chat", IndependentLengths(ConstantLength(10), ConstantLength(1)), 3.0),
        TrafficClass("code", IndependentLengths(ConstantLength(20), ConstantLength(2)), 1.0),
    ).workload(10, requests=40_000)
    assert mixed.classes == ("chat", "code")
    share = len(mixed.of_class("chat")) / len(mixed)
    assert share == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 40_000))
    assert set(mixed.of_class("chat").prompt_tokens) == {10}
    assert set(mixed.of_class("code").output_tokens) == {2}


def test_adding_a_class_leaves_the_lengths_of_the_others() -> None:
    alone = traffic(PoissonArrivals(1.0), TrafficClass("chat", SHORT))
    joined = traffic(PoissonArrivals(1.0), TrafficClass("chat", SHORT), TrafficClass("code", SHORT))
    chat = joined.workload(11, requests=1000).of_class("chat")
    assert chat.output_tokens.tolist() == alone.workload(11, requests=len(chat)).output_tokens.tolist()


def test_a_closed_loop_has_lengths_and_no_times() -> None:
    closed = traffic(ClosedLoop())
    workload = closed.workload(12, requests=50)
    assert workload.is_closed_loop
    assert closed.rate_per_s is None
    assert (
        workload.output_tokens.tolist()
        == traffic(PoissonArrivals(1.0)).workload(12, requests=50).output_tokens.tolist()
    )
    with pytest.raises(BadInputError, match="pass requests"):
        closed.workload(12)
    with pytest.raises(BadInputError, match="pass requests"):
        closed.workload(12, requests=5, duration_s=1.0)
    with pytest.raises(BadInputError, match="concurrency"):
        closed.scaled(2.0)


@pytest.mark.parametrize(
    "limits", [{}, {"requests": 0}, {"duration_s": 0.0}, {"duration_s": -1.0}, {"duration_s": np.inf}]
)
def test_a_stream_needs_a_sensible_end(limits: dict[str, float]) -> None:
    with pytest.raises(BadInputError):
        traffic(PoissonArrivals(1.0)).workload(0, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "build",
    [
        lambda: PoissonArrivals(0.0),
        lambda: PoissonArrivals(-1.0),
        lambda: PoissonArrivals(np.nan),
        lambda: GammaArrivals(1.0, 0.0),
        lambda: GammaArrivals(np.inf, 1.0),
        lambda: DiurnalArrivals(1.0, 0.9),
        lambda: DiurnalArrivals(1.0, np.nan),
        lambda: DiurnalArrivals(1.0, 2.0, period_s=0.0),
        lambda: DiurnalArrivals(1.0, 2.0, peak_at_s=np.nan),
        lambda: TrafficClass("", SHORT),
        lambda: TrafficClass("chat", SHORT, 0.0),
        lambda: SyntheticTraffic(ClosedLoop(), ()),
        lambda: SyntheticTraffic(ClosedLoop(), (TrafficClass("a", SHORT), TrafficClass("a", SHORT))),
    ],
)
def test_parameters_out_of_range_are_refused(build: object) -> None:
    with pytest.raises(BadInputError):
        build()  # type: ignore[operator]


def test_more_requests_than_memory_holds_are_refused_at_once() -> None:
    for limits in ({"requests": 10**9}, {"duration_s": 1e6}):
        with pytest.raises(BadInputError, match="requests"):
            traffic(PoissonArrivals(1e5)).workload(0, **limits)  # type: ignore[arg-type]


# --- replay -------------------------------------------------------------------------------------------------


def recorded() -> Workload:
    rng = np.random.default_rng(0)
    outputs = rng.integers(1, 500, 3000)
    prefix = PrefixBlocks.from_rows([[0, 1 + index % 50] for index in range(3000)], 512)
    return Workload.single_class(np.sort(rng.uniform(0, 600, 3000)), 3 * outputs, outputs, prefix=prefix)


def test_replay_without_scaling_is_the_recording() -> None:
    original = recorded()
    assert ReplayTraffic(original).workload(0) is original


def test_replay_speed_compresses_time_only() -> None:
    played = ReplayTraffic(recorded(), speed=10.0).workload(0)
    assert played.arrival_s is not None
    np.testing.assert_allclose(played.arrival_s * 10, recorded().arrival_s)  # type: ignore[arg-type]
    assert played.prompt_tokens.tolist() == recorded().prompt_tokens.tolist()


@pytest.mark.parametrize("scale", [0.3, 1.7, 2.0, 3.25])
def test_rate_scaling_keeps_clock_shape_and_joint_lengths(scale: float) -> None:
    original, replay = recorded(), ReplayTraffic(recorded(), rate_scale=scale)
    played = replay.workload(1)
    fraction = scale % 1
    assert len(played) == pytest.approx(
        3000 * scale, abs=4 * np.sqrt(3000 * fraction * (1 - fraction)) + 1e-9
    )
    assert played.span_s == pytest.approx(original.span_s, rel=0.02)
    assert (played.prompt_tokens == 3 * played.output_tokens).all()
    assert stats.ks_2samp(played.output_tokens, original.output_tokens).pvalue > 0.01
    assert stats.ks_2samp(played.arrival_s, original.arrival_s).pvalue > 0.01
    assert replay.rate_per_s == pytest.approx(original.rate_per_s * scale)


def test_scaling_up_twice_keeps_every_request_of_the_lower_rate() -> None:
    def pairs(scale: float) -> list[tuple[float, int]]:
        played = ReplayTraffic(recorded(), rate_scale=scale).workload(2)
        assert played.arrival_s is not None
        return list(zip(played.arrival_s.tolist(), played.output_tokens.tolist(), strict=True))

    assert set(pairs(0.4)) < set(pairs(0.9)) < set(pairs(1.0)) < set(pairs(1.6)) < set(pairs(2.5))


def test_copies_share_prefixes_with_their_own_generation_only() -> None:
    played = ReplayTraffic(recorded(), rate_scale=2.0).workload(3)
    assert played.prefix is not None
    starts = np.array([played.prefix.row(index)[0] for index in range(len(played))])
    assert sorted(np.unique(starts, return_counts=True)[1].tolist()) == [3000, 3000]
    assert np.unique(played.prefix.ids).size == 2 * np.unique(recorded().prefix.ids).size  # type: ignore[union-attr]


def test_a_recording_is_never_stretched_silently() -> None:
    replay = ReplayTraffic(recorded(), speed=2.0)
    assert len(replay.workload(0, requests=100)) == 100
    assert replay.workload(0, duration_s=100.0).span_s < 100.0
    with pytest.raises(BadInputError, match="holds only 3,000 requests"):
        replay.workload(0, requests=3001)
    with pytest.raises(BadInputError, match=r"holds only 299\.\d+ s"):
        replay.workload(0, duration_s=400.0)
    with pytest.raises(BadInputError, match="rate scale: must be positive"):
        ReplayTraffic(recorded(), rate_scale=0.0)


def test_a_recording_without_times_replays_as_a_closed_loop() -> None:
    closed = Workload.single_class(None, [1, 2], [3, 4])
    assert ReplayTraffic(closed).workload(0, requests=1).output_tokens.tolist() == [3]
    assert ReplayTraffic(closed).rate_per_s is None
    with pytest.raises(BadInputError, match="arrival column"):
        ReplayTraffic(closed, rate_scale=2.0)
    with pytest.raises(BadInputError, match="no clock"):
        ReplayTraffic(closed).workload(0, duration_s=1.0)


# --- text ---------------------------------------------------------------------------------------------------


def test_arrival_specs() -> None:
    assert parse_arrivals("closed") == ClosedLoop()
    assert parse_arrivals("poisson:12/s") == PoissonArrivals(12.0)
    assert parse_arrivals("poisson:720/min") == PoissonArrivals(12.0)
    assert parse_arrivals("gamma:12/s,cv=3") == GammaArrivals(12.0, 3.0)
    assert parse_arrivals("diurnal:3600/h,peak=2") == DiurnalArrivals(1.0, 2.0, 86400.0)
    assert parse_arrivals("diurnal:1/s, peak=2, period=60min, peak_at=15min") == DiurnalArrivals(
        1.0, 2.0, 3600.0, 900.0
    )


def test_traffic_specs_with_lengths() -> None:
    workload = parse_traffic("poisson:12/s", "fixed:1024/256").workload(0, requests=5)
    assert set(workload.prompt_tokens) == {1024}
    assert parse_traffic("closed").workload(0, requests=5).is_closed_loop


def test_traffic_specs_that_name_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log@home.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n1,10,1\n2,10,0\n4,10,1\n")
    with pytest.raises(BadInputError, match="line 4: output_tokens must be at least 1"):
        parse_traffic(f"{path}@")
    played = parse_traffic(f"{path}@2x,speed=4,skip-malformed")
    assert isinstance(played, ReplayTraffic)
    assert (played.rate_scale, played.speed) == (2.0, 4.0)
    assert played.report is not None
    assert [row.line for row in played.report.malformed] == [4]
    assert len(played.workload(0)) == 6
    with pytest.raises(BadInputError, match="given by the file"):
        parse_traffic(f"{path}@2x", "default")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("poisson:12", r"poisson rate: has no unit \(got '12'\); write requests per time: 12/s"),
        ("poisson:12/fortnight", "unknown unit"),
        ("poisson:12s", "unknown unit"),
        ("poisson:0/s", "must be positive"),
        ("poisson:-3/s", "must be positive"),
        ("poisson:many/s", "is not a number"),
        ("poisson:1e999/s", "is not a number"),
        ("poisson:3/s,cv=2", "poisson cv: is not an option here"),
        ("poisson:3/s,cv", "name=value"),
        ("gamma:12/s", "needs cv"),
        ("gamma:12/s,cv=3s", "without 's'"),
        ("diurnal:12/s", "needs peak"),
        ("diurnal:12/s,peak=2,period=24", "diurnal period: has no unit of time"),
        ("diurnal:12/s,peak=2,period=24hours", "unknown unit of time, 'hours'"),
        ("gamma:1/s,cv=1e-300", r"gamma cv: must lie in 0\.001\.\.100"),
        ("gamma:1/s,cv=2,cv=3", "gives an option twice"),
        ("poisson:1e300/s", r"arrival rate: must lie in 1e-09\.\.1e\+09"),
        ("diurnal:1/s,peak=2,period=1e300s", "diurnal period: must lie in"),
        ("diurnal:1/s,peak=2,peak_at=1e300s", "diurnal peak time: must lie within"),
        ("missing.jsonl@1e9x", "rate scale: must lie above 0 and at most 1e6"),
        ("missing.jsonl@-1x", "rate scale: must lie above 0"),
        ("missing.jsonl@block=1e300", "block: must be a whole number in"),
        ("missing.jsonl@turn-speed=", "turn-speed: is not a number"),
        ("closed:8", "is not an arrival process"),
        ("poison:12/s", "is neither traffic nor a file"),
        ("", "is neither traffic nor a file"),
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("missing.jsonl@2x", "missing.jsonl: no such file"),
        ("missing.jsonl@fast", "is not a replay option"),
        ("missing.jsonl@speed=quick", "replay speed: is not a number"),
        ("missing.jsonl@speed=2,speed=3x", "missing.jsonl: speed: gives an option twice"),
        ("missing.jsonl@2x, 3x", "missing.jsonl: x: gives an option twice"),
        ("missing.jsonl@unit=s,unit=ms", "missing.jsonl: unit: gives an option twice"),
        ("missing.jsonl@sort,sort", "missing.jsonl: sort: gives an option twice"),
    ],
)
def test_traffic_specs_that_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_traffic(spec)


TWO = Workload(
    np.array([0.0, 1.0]), np.array([70, 5]), np.array([10, 76]), np.zeros(2, dtype=np.int16), ("default",)
)


def test_the_longest_request_is_that_of_a_class_or_of_the_recording() -> None:
    short, long = (
        TrafficClass("a", parse_lengths("fixed:9/90")),
        TrafficClass("b", parse_lengths("fixed:80/20")),
    )
    assert longest_in(SyntheticTraffic(PoissonArrivals(1.0), (short, long))) == (80, 20)
    assert longest_in(ReplayTraffic(TWO)) == (5, 76)


def test_lengths_are_judged_by_a_draw_or_by_the_whole_recording() -> None:
    drawn, process = parse_lengths("default"), parse_traffic("poisson:3/s")
    for of in (drawn, process, parse_traffic("closed")):
        prompts, outputs = judged_lengths(of)
        assert prompts.size == outputs.size == DRAWN
        assert prompts.mean() == pytest.approx(1154.7, rel=0.06)
    assert judged_lengths(ReplayTraffic(TWO))[0].tolist() == [70, 5]
