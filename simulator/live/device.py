"""The device: what a run runs on, the clock that times it, and what the collector may not touch.

All of ``simulator.live`` that measures a duration reads ``now_s``. On a GPU, the parts of a step come
from the device's own clock instead (``Marks``).
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import transformers

from simulator.core.errors import BadInputError, SimulatorError

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


def prepare(device: str, threads: int | None) -> None:
    """Set threads, silence loading bars, and refuse a device that is not there."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"cannot be used: {reason}",
            field="device",
            value=device,
            remedy="use cpu, or a CUDA build of torch",
        ) from error


def software() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's architecture."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU ({platform.machine()})"


@contextmanager
def long_lived_objects_set_aside() -> Iterator[None]:
    """Keep the collector away from what is alive now.

    Models and libraries are far too much to walk in the middle of a step. What the caller has set aside
    before stays so.
    """
    already = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not already:
            gc.unfreeze()


Tell = Callable[[str], None]


class Marks:
    """Moments of a step on the device's own clock, read once the device has caught up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.cuda.Event] = []
        self._times_s: list[float] = []

    def mark(self) -> None:
        """Remember when the device gets here."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._times_s.append(now_s())

    def spans_s(self) -> list[float]:
        """Seconds between consecutive marks; the device must be synchronised."""
        if self.device.type == "cuda":
            return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
        return [after - before for before, after in pairwise(self._times_s)]


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in host memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class OutOfMemoryError(SimulatorError):
    """The device's memory did not suffice; the message says what was tried and what fits."""
