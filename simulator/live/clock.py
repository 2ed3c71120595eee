"""The clock of every measurement: where the live code reads the time, and how another clock takes its place.

All of ``simulator.live`` that measures a duration reads ``now_s``. On a GPU, the parts of a step come from
the device's own clock instead (``simulator.live.device.Marks``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Returns seconds since some moment; never goes back."""

_clock: Clock = time.perf_counter


def now_s() -> float:
    """Seconds since an arbitrary moment: only differences mean something."""
    return _clock()


@contextmanager
def timed_by(clock: Clock) -> Iterator[None]:
    """Read the time from ``clock`` inside the ``with`` block, in the whole process.

    With a clock that advances by modelled times, measurements are exact and repeatable on any machine.
    """
    global _clock
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before
