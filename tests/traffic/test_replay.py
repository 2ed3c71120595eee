"""Recordings: ties are spread over the clock's tick, and a trial represents the whole recording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.core.errors import BadInputError
from simulator.traffic.arrivals import GammaArrivals, PoissonArrivals
from simulator.traffic.replay import copied, resampled, tie_note, untied
from simulator.traffic.sources import ReplayTraffic
from simulator.traffic.workload import PrefixBlocks, Workload


def recording(
    arrival_s: np.ndarray,
    outputs: np.ndarray | None = None,
    prefix: PrefixBlocks | None = None,
    tick_s: float = 0.0,
) -> Workload:
    count = arrival_s.size
    tokens = np.arange(1, count + 1) if outputs is None else outputs
    plain = Workload.single_class(arrival_s, np.full(count, 7), tokens, prefix=prefix)
    return replace(plain, clock_tick_s=tick_s)


def poisson(rate: float, requests: int) -> np.ndarray:
    stream = np.random.default_rng(3)
    return PoissonArrivals(rate).times_s(stream, requests=requests, duration_s=None)


def dispersion(played: Workload, width_s: float) -> float:
    """Variance over mean of the arrivals in spans of a width: 1 for Poisson traffic."""
    assert played.arrival_s is not None
    count, _ = np.histogram(played.arrival_s, bins=int(played.span_s / width_s))
    return float(count.var() / count.mean())


def times(played: Workload) -> np.ndarray:
    assert played.arrival_s is not None
    return played.arrival_s


# --- ties ---------------------------------------------------------------------------------------------------


def test_ties_are_spread_over_the_tick_and_keep_their_order() -> None:
    ticks = np.repeat(np.arange(200) * 3.0, 10)
    played = untied(recording(ticks, tick_s=3.0), 0)
    offset = times(played) - ticks
    assert ((offset >= 0) & (offset < 3)).all()
    assert offset.mean() == pytest.approx(1.5, abs=0.06)  # uniform: sd 0.87 over 2,000
    assert played.output_tokens.tolist() == list(range(1, 2001))
    assert times(untied(recording(ticks, tick_s=3.0), 0)).tolist() == times(played).tolist()


def test_requests_sent_at_once_by_a_fine_clock_stay_together() -> None:
    """50 requests in one millisecond of a clock of milliseconds are a burst, not a coarse clock."""
    fine = np.sort(np.concatenate([np.full(50, 4.0), np.round(poisson(20.0, 2000), 3)]))
    moved = times(untied(recording(fine, tick_s=0.001), 0)) - fine
    assert np.abs(moved).max() <= 0.0011


def test_a_recording_without_ties_is_left_alone() -> None:
    plain = recording(np.arange(100.0))
    assert untied(plain, 0) is plain
    assert tie_note(plain) is None
    assert ReplayTraffic(plain).workload(0) is plain


def test_a_coarse_clock_is_said() -> None:
    note = tie_note(recording(np.repeat(np.arange(50) * 3.0, 2), tick_s=3.0))
    assert note is not None
    assert "100% of the recorded arrivals" in note
    assert "every 3 s" in note


def test_copies_of_tied_requests_spread() -> None:
    ticks = np.repeat(np.arange(40) * 3.0, 10)
    played = ReplayTraffic(recording(ticks, tick_s=3.0), rate_scale=4.0).workload(0)
    assert np.unique(times(played)).size == len(played) - 3  # copies of the last request have no room
    assert np.diff(times(played)).max() < 3


# --- trials -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.9, 2.0, 17.0, 300.0])
def test_a_trial_has_every_request_of_the_recording_once(rate: float) -> None:
    """As many as were recorded are wanted: most come once, where drawing at random would find 63%."""
    recorded = recording(poisson(2.0, 2000))
    played = resampled(recorded, rate, 2000, 0)
    assert len(played) == pytest.approx(2000, abs=60)
    assert np.unique(played.output_tokens).size > 1700
    assert played.rate_per_s == pytest.approx(rate, rel=0.03)
    assert played.output_tokens.mean() == pytest.approx(1000.5, rel=0.03)


def test_a_short_trial_draws_on_the_whole_recording() -> None:
    """First tenth short: a trial of 500 of 5,000 requests has a tenth of short ones, judged part included."""
    outputs = np.where(np.arange(5000) < 500, 1, 100)
    for rate in (0.5, 10.0, 200.0):
        played = resampled(recording(poisson(10.0, 5000), outputs), rate, 500, 1)
        judged = played.output_tokens[100:475]
        assert (judged == 1).mean() == pytest.approx(0.1, abs=0.06)


def test_independent_users_stay_so_at_any_rate() -> None:
    """Poisson in, Poisson out: copies must not come as bursts, thinning not as regular gaps."""
    recorded = recording(poisson(2.0, 4000))
    for rate in (0.4, 2.0, 20.0):
        found = [dispersion(resampled(recorded, rate, 4000, seed), 10 / rate) for seed in range(4)]
        assert np.mean(found) == pytest.approx(1.0, abs=0.2)


def test_bursts_stay_bursts() -> None:
    """Gamma gaps of cv 3 have a dispersion of 9 in wide spans; half of a stream has 1 + (9 - 1) / 2."""
    stream = np.random.default_rng(5)
    gaps = GammaArrivals(2.0, 3.0).times_s(stream, requests=20_000, duration_s=None)
    recorded = recording(gaps)
    whole, half = (
        np.mean([dispersion(resampled(recorded, r, 10_000, s), 60) for s in range(4)]) for r in (2.0, 1.0)
    )
    assert 4.5 < whole < 10.5
    assert 2.5 < half < 6.5


def test_a_busy_hour_sets_the_pace_of_the_whole_day() -> None:
    """1/s for six hours and 4/s for six: at 4/s a trial needs no copies, and its halves have one rate."""
    day = np.concatenate([np.arange(0, 21_600, 1.0), np.arange(21_600, 43_200, 0.25)])
    played = resampled(recording(day), 4.0, 20_000, 0)
    count, _ = np.histogram(times(played), bins=10)
    assert count.std() / count.mean() < 0.03


def test_prefixes_keep_their_order_and_repeats_are_other_users() -> None:
    """Request i extends the prompt of request i - 1 of its session; no repeat shares blocks with another."""
    rows = [[session * 10_000 + turn for turn in range(k + 1)] for k in range(40) for session in range(25)]
    prefix = PrefixBlocks.from_rows(rows, 16)
    recorded = recording(np.arange(1000) * 0.5, prefix=prefix)
    once = resampled(recorded, 2.0, 1000, 0)
    turn = np.diff(np.concatenate([[0], np.argsort(once.output_tokens)]))  # order of play by recorded order
    assert (turn > 0).mean() > 0.95
    twice = resampled(recorded, 2.0, 2000, 0)
    assert twice.prefix is not None
    first_blocks = np.array([twice.prefix.row(index)[0] for index in range(2000)])
    assert np.unique(first_blocks).size >= 2 * 25


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"holds 60 requests in 0.0118 s, too few to plan from"):
        resampled(recording(np.arange(60) * 0.0002), 10.0, 2000, 0)
    with pytest.raises(BadInputError, match="has no arrival times"):
        copied(Workload.single_class(None, [1, 2], [3, 4]), 0, 2.0)


def test_without_its_prefixes_a_recording_is_played_alike() -> None:
    """In the recorded order, which trials keep for the sake of prefixes, at every rate and seed."""
    rows = [[session * 100 + turn for turn in range(1 + k % 4)] for k in range(40) for session in range(25)]
    recorded = recording(np.arange(1000) // 2 * 1.0, tick_s=1.0, prefix=PrefixBlocks.from_rows(rows, 16))
    whole = ReplayTraffic(recorded)
    light = whole.without_prefix()
    assert light.recorded.prefix is None
    assert light.without_prefix() is light
    for rate, seed in ((0.3, 0), (2.0, 1), (9.0, 1)):
        expected, found = whole.trial(rate, 700, seed), light.trial(rate, 700, seed)
        assert times(found).tolist() == times(expected).tolist()
        assert found.output_tokens.tolist() == expected.output_tokens.tolist()
    in_any_order = ReplayTraffic(light.recorded).trial(2.0, 700, 1)
    assert in_any_order.output_tokens.tolist() != light.trial(2.0, 700, 1).output_tokens.tolist()
