"""Signals that ask the program to end; each becomes one exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from simulator.core.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""SIGINT comes from a keyboard, SIGTERM from a batch system or ``kill``, SIGHUP from a closed terminal."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` in the block on the first signal; a second signal ends the process at once.

    An ignored signal, such as SIGHUP under ``nohup``, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def stop(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(signal.Signals(number).name)

    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noting(say: Callable[[], str], *also: type[BaseException]) -> Iterator[None]:
    """Add the text ``say()`` as a note to an interruption, or to an error of ``also``, that ends the block.

    say: returns what is kept and how to continue.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, Interrupted, *also)):
            error.add_note(say())
        raise
