"""Loads to add to a sweep so that its answers do not depend on the given loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.sla.terms import Term
from simulator.sweeps.comparison import Bound, baseline_of, parse_speed, require_known
from simulator.sweeps.lines import Line, lines

if TYPE_CHECKING:
    import pandas as pd

SHARE = 0.01
"""Answers are refined until the loads around are neighbours or within this share of the load. A choice."""


def loads_to_add(
    frontier: pd.DataFrame, slas: Sequence[Bound], *, halve: bool = False
) -> list[tuple[str, int]]:
    """Return policies and loads to simulate next; empty when no answer needs one.

    An answer is a policy's load at an SLA, or its load at the baseline's throughput there. The load that
    keeps the SLA and the next load, which does not, must be neighbours, or within twice ``SHARE`` of the
    answer or twice the interval of its throughput. A policy that fails at the lowest load is tried at a load
    of one.
    halve: take the middle instead of the interpolated load, which converges slowly along a curve with risers.
    Raises ``BadInputError`` where the speed that an SLA bounds is unknown at a load.
    """
    by_policy, base = lines(frontier), baseline_of(frontier)
    noise = _noise(frontier)
    wanted: dict[tuple[str, int], None] = {}
    for term in map(parse_speed, slas):
        require_known(by_policy, term)
        level = by_policy[base].at_sla(term).throughput
        for policy, line in by_policy.items():
            share = max(SHARE, noise[policy])
            for load in (_at_term(line, term, share, halve), _at_throughput(line, level, share, halve)):
                if load is not None and load not in line.concurrency:
                    wanted[policy, load] = None
    return list(wanted)


def _noise(frontier: pd.DataFrame) -> dict[str, float]:
    """Return the relative half-width of each policy's throughput: the median over loads, 0 where unknown."""
    relative = frontier["throughput_ci95"] / frontier["throughput_tok_per_s"]
    median = relative.groupby(frontier["policy"], sort=False).median().fillna(0.0)
    return {str(policy): float(value) for policy, value in median.items()}


def _at_term(line: Line, term: Term, share: float, halve: bool) -> int | None:
    ends = line.bracket(term)
    if ends is None:
        return 1  # a single request may be fast enough
    last, after = ends
    if last == after:
        return None  # the sweep ends before the SLA binds; ``lower_bound`` says so
    low, high = line.concurrency[last], line.concurrency[after]
    return _inside(low, high, line.at_sla(term).concurrency, share, halve)


def _at_throughput(line: Line, level: float, share: float, halve: bool) -> int | None:
    """Return where the line first reaches a throughput; None if never, or if the answer is near enough."""
    reached = np.flatnonzero(line.throughput >= level)
    if not reached.size:
        return None
    first = int(reached[0])
    if first == 0:
        return 1
    before = float(line.concurrency[first - 1])
    guess = level / line.tps_at_throughput(level) if line.throughput[first - 1] <= level else before
    return _inside(before, line.concurrency[first], guess, share, halve)


def _inside(low: float, high: float, guess: float, share: float, halve: bool) -> int | None:
    """Return a load between two to simulate next; None where they are near enough.

    The load is the guess, or one just beyond it where the guess is next to an end. Both sides then approach
    the answer, also where the curve has risers between them.
    """
    margin = max(1, int(share * guess))
    if high - low <= 2 * margin:
        return None if high - low <= 1 or margin > 1 else int(low) + 1
    return int(np.clip(round((low + high) / 2 if halve else guess), low + margin, high - margin))
