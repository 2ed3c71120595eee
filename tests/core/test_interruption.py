"""Signals become one exception, and leave no handler behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from simulator.core.errors import Interrupted
from simulator.core.interruption import interruptible, noting


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """As a shell starts a program; one that starts it in the background has some signals ignored."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_one_exception_and_the_handlers_come_back(name: str) -> None:
    number = getattr(signal, name)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    inside: list[object] = []

    def ask_to_end() -> None:
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                inside.extend(signal.getsignal(each) for each in (signal.SIGTERM, number))

    with pytest.raises(Interrupted, match=name):
        ask_to_end()
    assert inside == [signal.SIG_DFL] * 2, "a second signal would end the process at once"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "notes"),
    [
        (Interrupted("SIGTERM"), ["kept"]), (KeyboardInterrupt(), ["kept"]), (OSError(), ["kept"]),
        (ValueError(), []),
    ],
)  # fmt: skip
def test_what_is_kept_is_noted_on_interruptions_and_on_what_is_named(
    error: BaseException, notes: list[str]
) -> None:
    with pytest.raises(type(error)), noting(lambda: "kept", OSError):
        raise error
    assert getattr(error, "__notes__", []) == notes
