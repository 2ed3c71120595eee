"""Work for the app's workers that ends, fails, waits or dies on demand."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from simulator.core.errors import BadInputError
from simulator.ui.running.jobs import Say


@dataclass(frozen=True)
class Double:
    number: int

    def run(self, say: Say) -> int:
        say(f"doubling {self.number}")
        return 2 * self.number


@dataclass(frozen=True)
class Wait:
    """Waits until it is ended, far longer than any test does."""

    name: str = ""

    def run(self, say: Say) -> None:
        say("waiting")
        time.sleep(600)


@dataclass(frozen=True)
class Refuse:
    def run(self, say: Say) -> None:
        raise BadInputError("is wrong", source="policy", value=7, remedy="mend it")


@dataclass(frozen=True)
class Break:
    def run(self, say: Say) -> None:
        raise RuntimeError("not meant")


@dataclass(frozen=True)
class Die:
    def run(self, say: Say) -> None:
        os._exit(9)
