"""A device whose every pass takes a modelled time: measurements on it are exact on any machine, however busy.

The passes really run, on tiny models; only the clock is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from simulator.live.device import timed_by
from simulator.live.engine.graphs import Captured
from simulator.live.engine.observed import ObservedScheduler
from simulator.live.engine.passes import Passes
from simulator.live.engine.prompt_rows import PromptPiece
from simulator.live.models.drafts.dspark import DSparkDraft

READING_S = 2e-6
"""What happens on the host between two readings of the clock."""
DECISION_S = 3e-5
STAGE_S = 2e-5
"""The sequential stage of a draft, for each position."""
PROMPT_TOKEN_S = 1e-5
SCATTER = 0.003
"""Standard deviation of a pass's time, relative to it."""


def target_s(requests: int, rows: int, context: int) -> float:
    """A pass of the target; context: of the longest request, as the engine prepares it."""
    return 2e-3 + 1e-4 * requests + 5e-5 * rows + 1e-7 * requests * context


def draft_s(requests: int) -> float:
    """A pass of a draft, without its sequential stage."""
    return 4e-4 + 1e-5 * requests


def prompt_s(tokens: int) -> float:
    """A pass of prompt rows alone."""
    return target_s(0, tokens, 0) + PROMPT_TOKEN_S * tokens


class ModelledDevice:
    """Its time, which moves on with every pass and a little with every reading."""

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
        self._draw = np.random.default_rng(seed)

    def __call__(self) -> float:
        """The time, as a clock."""
        self.now_s += READING_S
        return self.now_s

    def spend(self, seconds: float) -> None:
        """Something that takes about so long."""
        self.now_s += seconds * max(0.1, self._draw.normal(1.0, SCATTER))

    def run(self, key: Hashable) -> None:
        """A pass, by the sizes in its key."""
        match key:
            case ("draft" | "draft without head", int(requests), _, _):
                self.spend(draft_s(requests))
            case ("verify", int(requests), int(rows), int(context), _):
                self.spend(target_s(requests, rows, context))
            case _:
                raise AssertionError(f"a pass without a modelled time: {key}")

    def mixed(
        self,
        _: Passes,
        requests: int,
        rows: int,
        context: int,
        block: int,
        pieces: Sequence[PromptPiece],
        *more: Any,
    ) -> None:
        """A pass of the target with prompt rows in it."""
        tokens = sum(len(piece.tokens) for piece in pieces)
        self.spend(target_s(requests, rows + tokens, context) + PROMPT_TOKEN_S * tokens)


@contextmanager
def modelled_device(seed: int = 0) -> Iterator[ModelledDevice]:
    """Inside, the live engine's passes take modelled times, and every measurement is timed by them."""
    device = ModelledDevice(seed)

    def after(owner: type, name: str, cost: Callable[..., None]) -> None:
        work = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            result = work(*arguments, **options)
            cost(*arguments)
            return result

        patch.setattr(owner, name, timed)

    with pytest.MonkeyPatch.context() as patch, timed_by(device):
        after(Captured, "run", lambda _, key, work: device.run(key))
        after(DSparkDraft, "draw", lambda draft, *_: device.spend(draft.gamma * STAGE_S))
        after(ObservedScheduler, "schedule", lambda *_: device.spend(DECISION_S))
        after(Passes, "prompt", lambda _, piece: device.spend(prompt_s(len(piece.tokens))))
        after(Passes, "mixed", device.mixed)
        yield device
