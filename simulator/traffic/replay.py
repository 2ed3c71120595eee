"""A recording in a simulation: its requests at another rate, and trials that represent all of it.

Three operations change recorded arrivals. Ties within a tick of the recorder's clock are spread over the
tick. Copies multiply the requests on the recorded clock. A trial resamples the recording at a steady rate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.core.random import random_stream
from simulator.traffic.workload import PrefixBlocks, Workload

Times = NDArray[np.float64]

PEAK_PARTS = 12
"""Equal parts of a recording; a fleet is sized for the busiest part. A choice."""

BLOCKS = 20
"""Places of a recording that one stream of a trial is composed of. A choice."""

THINNED = 0.75
"""Share of the peak's rate below which a stream is thinned instead of slowed down. A choice."""

FEWEST_ROWS = 100
"""Least requests of a recording for a plan: with fewer, a p99 rests on a single request."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Golden section: any number of its multiples modulo 1 is spread evenly."""

KEPT_RECORDINGS = 6
"""Recordings whose ties are spread that a process keeps: a plan's replications take five seeds in turn."""

TIED_SHARE = 0.05
"""Least share of tied arrivals that is reported: fewer are chance. A choice."""


# --- ties ---------------------------------------------------------------------------------------------------


def tied_share(recorded: Workload) -> float:
    """Return the share of requests that arrive at the same recorded time as another request."""
    _, counts = np.unique(_times(recorded), return_counts=True)
    return float(counts[counts > 1].sum() / max(len(recorded), 1))


def tie_note(recorded: Workload) -> str | None:
    """Return a note on a coarse clock; None where ties are rare."""
    if recorded.is_closed_loop or tied_share(recorded) <= TIED_SHARE:
        return None
    return (
        f"{tied_share(recorded):.0%} of the recorded arrivals share their time with another: the clock ticks "
        f"every {recorded.clock_tick_s:.3g} s, and ties are spread evenly at random within a tick"
    )


def untied(recorded: Workload, seed: int) -> Workload:
    """Spread ties at random over the tick of the clock.

    Requests keep their order, and none moves beyond the next recorded time. A recording without ties, or with
    an unknown clock, is returned unchanged.
    """
    times_s = _times(recorded)
    _, first, inverse, counts = np.unique(times_s, return_index=True, return_inverse=True, return_counts=True)
    if first.size == times_s.size or not recorded.clock_tick_s:
        return recorded
    distinct_s = times_s[first]
    room_s = np.minimum(np.diff(distinct_s, append=np.inf), recorded.clock_tick_s)
    moved_s = random_stream(seed, "traffic/replay/ties").random(times_s.size) * room_s[inverse]
    spread_s = times_s + np.where(counts[inverse] > 1, moved_s, 0.0)
    return replace(recorded, arrival_s=np.sort(spread_s), clock_tick_s=0.0)


# --- copies -------------------------------------------------------------------------------------------------


def copied(recorded: Workload, seed: int, rate_scale: float) -> Workload:
    """Repeat requests floor(scale) times, and once more with the remaining probability, on the same clock.

    Copies fall at random between their request and the next recorded arrival.
    """
    times_s = _times(recorded)
    whole, fraction = divmod(rate_scale, 1)
    extra = random_stream(seed, "traffic/replay/thinning").random(len(recorded)) < fraction
    copies = int(whole) + extra
    source = np.repeat(np.arange(len(recorded)), copies)
    generation = np.arange(source.size) - np.repeat(np.cumsum(copies) - copies, copies)
    jitter = _jitter(seed, int(generation.max(initial=0)) + 1, len(recorded))[generation, source]
    gaps_s = np.diff(times_s, append=times_s[-1:])
    arrival_s = times_s[source] + jitter * gaps_s[source]
    order = np.argsort(arrival_s, kind="stable")
    return _played(recorded, source[order], arrival_s[order], generation[order])


def _jitter(seed: int, generations: int, requests: int) -> Times:
    """Return where each copy falls between its own and the next recorded arrival, [generations, requests]."""
    jitter = np.zeros((generations, requests))
    for generation in range(1, generations):  # the first copy keeps the recorded time
        jitter[generation] = random_stream(seed, f"traffic/replay/copy{generation}").random(requests)
    return jitter


def _played(
    recorded: Workload, rows: NDArray[np.int64], arrival_s: Times, generation: NDArray[np.int64]
) -> Workload:
    """Return rows of a recording at new times; each generation of copies has its own prefix ids.

    Copies are other users. With the same ids, copies would hit the cache at no cost.
    """
    played = replace(recorded, arrival_s=None).take(rows)
    prefix = None if played.prefix is None else _as_other_users(played.prefix, generation)
    return replace(played, arrival_s=arrival_s, prefix=prefix)


def _as_other_users(prefix: PrefixBlocks, generation: NDArray[np.int64]) -> PrefixBlocks:
    """Give each generation of copies ids that no other generation has."""
    if not prefix.ids.size:
        return prefix
    width = int(prefix.ids.max()) - min(int(prefix.ids.min()), 0) + 1
    shift = np.repeat(generation * width, np.diff(prefix.offsets))
    return replace(prefix, ids=prefix.ids + shift)


# --- trials -------------------------------------------------------------------------------------------------


def resampled(
    recorded: Workload, rate_per_s: float, requests: int, seed: int, *, in_order: bool | None = None
) -> Workload:
    """Draw a trial that represents a whole recording: so many requests at a steady mean rate.

    1. Ties are spread, and each twelfth of the recording is played as much faster as it is quieter than the
       busiest, so that the whole recording has its peak's rate. Bursts within a twelfth remain.
    2. A stream lasts as long as the trial. It consists of ``BLOCKS`` blocks of consecutive requests, with
       their gaps and lengths together, from places evenly spaced over the recording.
    3. Below the peak's rate a stream is thinned at random. Above it as many streams as come nearest to the
       rate are laid over each other, from interleaved places, and their clock is adjusted by the rest.
       In both cases no request repeats before most have occurred.

    Blocks come in random order, because a recording's own order would leave its start in the warm-up.
    Where prompts name prefix blocks the recorded order is kept, from a random place on, and the clock runs
    faster instead of more streams: a prefix has to come before its reuse. in_order: the same without the
    blocks. A request that repeats counts as another user. Raises ``BadInputError`` for recordings of fewer
    than ``FEWEST_ROWS`` requests.
    """
    _check_long_enough(recorded)
    steady = _steady(recorded, seed)
    in_order = recorded.prefix is not None if in_order is None else in_order
    clock_s, length_s = _at_peak_rate(_times(steady))
    scale = rate_per_s * length_s / len(steady)
    streams = 1 if in_order else max(1, round(scale))
    speed = scale / streams if scale > THINNED else 1.0
    clock_s, length_s = clock_s / speed, length_s / speed
    block_s = requests / rate_per_s / BLOCKS
    start_s = _starts(length_s, streams, seed)
    # The number of arrivals before each time, on a clock that repeats the recording.
    low, high = (_before(clock_s, length_s, edge_s) for edge_s in (start_s, start_s + block_s))
    position = _ranges(low.ravel(), high.ravel())
    block = np.repeat(np.arange(low.size), (high - low).ravel())
    rows, turn = position % len(steady), position // len(steady)
    moved_s = _places(streams, in_order, seed) * block_s - start_s
    arrival_s = clock_s[rows] + turn * length_s + moved_s.ravel()[block]
    kept = _thinned(rows, requests, seed)
    rows, arrival_s = rows[kept], arrival_s[kept] * (len(kept) / requests)
    order = np.argsort(arrival_s, kind="stable")
    rows = rows[order]
    return _played(steady, rows, np.maximum(arrival_s[order], 0.0), _occurrence(rows))


@lru_cache(maxsize=KEPT_RECORDINGS)
def _steady(recorded: Workload, seed: int) -> Workload:
    """``untied``, kept for the next rate at which the same recording is tried."""
    return untied(recorded, seed)


def replay_notes(recorded: Workload, requests: int) -> list[str]:
    """Return notes on trials of so many requests from a recording: a coarse clock, repeats."""
    notes = [note] if (note := tie_note(recorded)) else []
    if requests > 2 * len(recorded):
        notes.append(
            f"the recording holds {len(recorded):,} requests and a trial takes {requests:,}: each occurs "
            f"{requests / len(recorded):.0f} times, and intervals do not know that others might have come"
        )
    return notes


def _check_long_enough(recorded: Workload) -> None:
    if len(recorded) < FEWEST_ROWS or recorded.span_s <= 0:
        raise BadInputError(
            f"holds {len(recorded):,} requests in {recorded.span_s:.3g} s, too few to plan from",
            field="recording",
            remedy=f"record at least {FEWEST_ROWS} requests, and check the unit of its clock",
        )


def _at_peak_rate(times_s: Times) -> tuple[Times, float]:
    """Return arrival times with every twelfth at the rate of the busiest one, and the new length."""
    count, edges_s = np.histogram(times_s, bins=PEAK_PARTS)
    part_s = count / count.max() * (edges_s[1] - edges_s[0])
    return np.interp(times_s, edges_s, np.concatenate([[0.0], np.cumsum(part_s)])), float(part_s.sum())


def _starts(length_s: float, streams: int, seed: int) -> Times:
    """Return where each stream's blocks start, [streams, BLOCKS]: evenly spaced, streams interleaved."""
    phase = random_stream(seed, "trial/phase").random()
    places = np.arange(BLOCKS) + np.arange(streams)[:, None] / streams
    starts: Times = (phase + places / BLOCKS) % 1.0 * length_s
    return starts


def _places(streams: int, in_order: bool, seed: int) -> NDArray[np.int64]:
    """Return when each block is played, [streams, BLOCKS]."""
    order = np.tile(np.arange(BLOCKS), (streams, 1))
    return order if in_order else random_stream(seed, "trial/blocks").permuted(order, axis=1)


def _before(clock_s: Times, length_s: float, time_s: Times) -> NDArray[np.int64]:
    """Return the number of arrivals before a time on a clock that repeats the recording."""
    turns, rest_s = np.divmod(time_s, length_s)
    return np.asarray(turns.astype(np.int64) * clock_s.size + np.searchsorted(clock_s, rest_s))


def _ranges(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return low[0]..high[0]-1, low[1]..high[1]-1 and so on."""
    sizes = high - low
    return np.asarray(np.arange(sizes.sum()) + np.repeat(low - (np.cumsum(sizes) - sizes), sizes))


def _thinned(rows: NDArray[np.int64], requests: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of so many kept arrivals, in order; all where there are no more.

    Each arrival is kept with the same probability, and the occurrences of one row are spread evenly. The
    draws depend on the row and its occurrence, so that a trial at another rate keeps nearly the same
    requests.
    """
    drawn = random_stream(seed, "trial/thinning").random(int(rows.max(initial=0)) + 1)
    key = (drawn[rows] + _occurrence(rows) * GOLDEN) % 1.0
    return np.sort(np.argsort(key, kind="stable")[:requests])


def _occurrence(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each row occurred before, [n]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered)
    count = np.empty(rows.size, dtype=np.int64)
    count[order] = np.arange(rows.size) - first
    return count


def _times(recorded: Workload) -> Times:
    if recorded.arrival_s is None:
        raise BadInputError(
            "has no arrival times", field="replay", remedy="add an arrival column to the file"
        )
    return recorded.arrival_s
