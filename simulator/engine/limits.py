"""What one engine admits and how it prefills."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.core.errors import BadInputError
from simulator.traffic.workload import Workload

Prefill = Literal["elsewhere", "chunked", "whole"]


CHUNK_TOKENS = 2048
"""Prompt tokens of a step at most where nobody says: vLLM's default below 70 GiB of memory."""

MOST_REQUESTS = 1_000_000
"""Requests that one engine may run at once, and workers of its pool: a choice. Arrays are that long."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine admits and how it prefills.

    concurrency: requests that may be decoding or prefilling at once.
    kv_tokens: KV-cache capacity in tokens. A request reserves prompt + output + one block when it is
        admitted, so an admitted request never runs out. None: not limited.
    prefill: ``elsewhere`` (disaggregated, see below), ``chunked`` (up to ``chunk_tokens`` prompt rows
        ride along in every decode step) or ``whole`` (steps of whole prompts, up to ``chunk_tokens``
        rows or one prompt, during which decoding waits).
    prefill_tokens_per_s: speed of each worker of the pool that prefills elsewhere, first come first
        served. The pool emits the first output token; the wait for a slot and for KV cache comes after
        it, in the gap before the second. None: prefill takes no time and nothing is emitted before a
        slot is free. A closed loop's next request is always ready, whatever the speed.
    prefill_workers: workers of that pool. None: as many as there are prompts, so that none waits.
    """

    concurrency: int
    kv_tokens: int | None = None
    prefill: Prefill = "elsewhere"
    chunk_tokens: int = CHUNK_TOKENS
    prefill_tokens_per_s: float | None = None
    prefill_workers: int | None = 1

    def __post_init__(self) -> None:
        for name in ("concurrency", "kv_tokens", "chunk_tokens", "prefill_tokens_per_s", "prefill_workers"):
            value = getattr(self, name)
            if value is None:
                continue
            if not value > 0:  # NaN is not, either
                raise BadInputError("must be positive", field=name, value=value, remedy="give at least 1")
            if name in ("concurrency", "prefill_workers") and value > MOST_REQUESTS:
                raise BadInputError(f"must be at most {MOST_REQUESTS:,}", field=name, value=value)
            if name != "prefill_tokens_per_s" and value != int(value):
                raise BadInputError("must be a whole number", field=name, value=value)
        if self.prefill not in ("elsewhere", "chunked", "whole"):
            known = "elsewhere, chunked or whole"
            raise BadInputError("is not known", field="prefill", value=self.prefill, remedy=known)

    @property
    def has_pool(self) -> bool:
        """Whether prompts are prefilled elsewhere at a known speed."""
        return self.prefill == "elsewhere" and self.prefill_tokens_per_s is not None

    @property
    def pool_tokens_per_s(self) -> float:
        """Prompt tokens per second of the whole pool; infinite where it has no speed or no end of workers."""
        if not self.has_pool or self.prefill_workers is None:
            return math.inf
        assert self.prefill_tokens_per_s is not None
        return self.prefill_tokens_per_s * self.prefill_workers

    def pool(self) -> PrefillPool | None:
        """Make a prefill pool for one engine alone.

        Returns
        -------
        PrefillPool or None
            A pool whose workers are all free; None where prompts are not prefilled elsewhere at a known
            speed.
        """
        if not self.has_pool:
            return None
        assert self.prefill_tokens_per_s is not None
        return PrefillPool(self.prefill_tokens_per_s, self.prefill_workers)


class PrefillPool:
    """Workers that prefill one prompt each at a time, first come first served; engines may share it."""

    def __init__(self, tokens_per_s: float, workers: int | None) -> None:
        self.tokens_per_s = tokens_per_s
        self._free_s = None if workers is None else [-math.inf] * workers  # a heap: when each is free

    def take(self, tokens: int, now: float) -> tuple[float, float]:
        """Queue a prompt that has come now: when its prefill starts and ends."""
        if self._free_s is None:
            return now, now + tokens / self.tokens_per_s
        start_s = max(now, self._free_s[0])
        end_s = start_s + tokens / self.tokens_per_s
        heapq.heapreplace(self._free_s, end_s)
        return start_s, end_s


def check_closed_loop_advances(workload: Workload, limits: EngineLimits) -> None:
    """Refuse a closed loop in which no request has anything to decode or to prefill."""
    if workload.is_closed_loop and limits.prefill == "elsewhere" and np.all(workload.output_tokens == 1):
        raise BadInputError(
            "of 1 everywhere leave nothing to decode, and a closed loop no reason to advance",
            field="output_tokens", remedy="give longer outputs, or prefill on the engine",
        )  # fmt: skip


def check_every_request_fits(workload: Workload, limits: EngineLimits, gamma: int) -> None:
    """Refuse a request that needs more KV cache than there is; it reserves a block of ``gamma`` too."""
    need = workload.prompt_tokens + workload.output_tokens + gamma
    if limits.kv_tokens is not None and need.max(initial=0) > limits.kv_tokens:
        request = int(np.argmax(need))
        raise BadInputError(
            f"request {request} needs {need[request]} tokens of KV cache and could never run",
            field="kv_tokens", value=limits.kv_tokens,
            remedy="raise it (more GPUs hold more: `tp`), cap the lengths with max=, or drop the request",
        )  # fmt: skip
