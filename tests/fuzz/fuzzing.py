"""Take spoiled inputs and count how each ends: ``python -m tests.fuzz.fuzzing``, or ``scripts/fuzz``."""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from simulator.core.errors import SimulatorError
from tests.fuzz.surfaces import SURFACES, Case

SECONDS = 20.0
"""How long one input may take; more is a hang."""

KINDS = ("accepted", "clear", "silent", "traceback", "hang")


class Hang(BaseException):
    """An input that takes too long."""


def _alarm(*_: object) -> None:
    raise Hang


def outcome(case: Case) -> tuple[str, str]:
    """How an input ends (one of ``KINDS``), and what was said."""
    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            case.take()
    except Hang:
        return "hang", f"more than {SECONDS:g} s"
    except SimulatorError as error:
        text = str(error)
        return ("clear" if text and case.named in text else "silent"), text
    except SystemExit as end:
        text = said.getvalue().strip()
        if end.code in (0, None):
            return "accepted", text
        if end.code == 70 or "Traceback" in text:
            return "traceback", text
        return ("clear" if text else "silent"), text
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "accepted", said.getvalue()


def tried(
    seed: int, kinds: Sequence[str], folder: Path, first: int = 0
) -> Iterator[tuple[str, int, Case, str, str]]:
    """Yield kind of surface, number, input, outcome and what was said, without end; by the seed alone.

    first: the number to begin with; an input does not depend on those before it.
    """
    number = first
    while True:
        for kind in kinds:
            rng = random.Random(f"{seed}/{kind}/{number}")
            case = SURFACES[kind](folder, rng)
            yield kind, number, case, *outcome(case)
        number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz for a number of inputs or seconds; 1 where any ended silently, in a traceback or not at all."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=10_000, help="inputs to try")
    options.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    options.add_argument("--kind", choices=list(SURFACES), action="append", help="surface; default all")
    asked = options.parse_args(arguments)
    count: Counter[str] = Counter()
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kinds = asked.kind or list(SURFACES)
        for kind, number, case, ended, said in tried(asked.seed, kinds, Path(folder), asked.first):
            count[ended] += 1
            if ended in ("silent", "traceback", "hang"):
                print(f"{ended}: {kind} {asked.seed}/{number}: {case.shown}\n    {said[:600]}", flush=True)
                again = f"--seed {asked.seed} --kind {kind} --first {number} --cases 1"
                print(f"    again: scripts/fuzz {again}", flush=True)
            if sum(count.values()) >= asked.cases or time.monotonic() - start_s > asked.seconds:
                break
    shown = ", ".join(f"{count[kind]:,} {kind}" for kind in KINDS)
    print(f"{sum(count.values()):,} tried with seed {asked.seed}: {shown}")
    return 1 if count["silent"] + count["traceback"] + count["hang"] else 0


if __name__ == "__main__":
    sys.exit(main())
