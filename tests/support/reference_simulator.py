"""A second simulator of one replica: plain objects, one loop per request, slow and easy to check by eye.

It shares the step-time formula, the replayed outcomes and the drawn scatter of steps with the product, and
nothing of its loop, batch rows, queues or schedulers (``reference_policies``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.reference_policies import Seen

Rows = Sequence[tuple[tuple[float, ...], int]]
"""What a request meets: survival of its block and how many of it the target would accept, row by row."""
StepTime = Callable[[int, int, float, int], float]
"""Seconds of a step by requests, rows, context tokens and prompt rows."""
EPSILON_S = 1e-12


@dataclass(frozen=True)
class Setting:
    """One configuration.

    policy: lengths by what is seen of a step. lag: how many decode steps before it the budget's survivals
    are from. phase: of a closed loop's first requests. scatter: multiples of the mean time, step by step.
    """

    concurrency: int
    gamma: int
    policy: Callable[[Seen], list[int]]
    lag: int = 0
    prefill: str = "elsewhere"
    chunk_tokens: int = 64
    kv_tokens: int | None = None
    tokens_per_s: float | None = None
    workers: int | None = 1
    phase: tuple[float, ...] = ()
    scatter: tuple[float, ...] = ()


@dataclass(eq=False)
class Request:
    """One request and all that happens to it.

    left: output tokens to decode. met: the survivals of its decode steps so far.
    """

    index: int
    prompt: int
    output: int
    rows: Rows
    ready_s: float
    arrived_s: float
    prompt_left: int = 0
    left: int = 0
    row: int = 0
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0
    started: bool = False
    met: list[tuple[float, ...]] = field(default_factory=list)
    deliveries_s: list[float] = field(default_factory=list)
    waited: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("pool", "slot", "kv", "step", "prefill"), 0.0)
    )

    @property
    def context(self) -> int:
        """Tokens of it in the KV cache."""
        return self.prompt + self.output - self.left

    def survival(self, lag: int) -> tuple[float, ...]:
        """Return the survival of so many decode steps before, certain where it was not there yet."""
        if not lag:
            return self.rows[self.row][0]
        return self.met[-lag] if lag <= len(self.met) else (1.0,) * len(self.rows[0][0])


@dataclass
class DoneStep:
    """One step: its end, its duration, and what it carried and delivered."""

    end_s: float
    duration_s: float
    requests: int
    drafts: int
    committed: int
    prefill: int


class ReferenceSimulator:
    """Serves requests one step at a time; ``finished`` and ``steps`` hold what happened."""

    def __init__(
        self,
        setting: Setting,
        time_s: StepTime,
        load: Sequence[tuple[int, int, Rows]],
        arrival_s: Any,
        cached: Sequence[int] | None = None,
    ) -> None:
        """load: prompt tokens, output tokens and rows of each request. arrival_s: None in a closed loop.

        cached: prompt tokens of each that need no prefill.
        """
        self.setting, self.time_s, self.load = setting, time_s, load
        self.closed, self.now = arrival_s is None, 0.0
        self.cached = [0] * len(load) if cached is None else cached
        self.coming: list[Request] = []
        self.line: list[Request] = []
        self.prefilling: list[Request] = []
        self.places: list[Request | None] = []  # of the batch; None where one has left
        self.finished: list[Request] = []
        self.steps: list[DoneStep] = []
        self.phase = list(setting.phase)
        self.next_closed = 0
        self.cause = "step"
        for index, at in enumerate([] if self.closed else arrival_s):
            self.coming.append(self.request(index, float(at)))
        self.through_pool()

    def request(self, index: int, at: float) -> Request:
        prompt, output, rows = self.load[index]
        return Request(index, prompt, output, rows, at, at, prompt_left=prompt - self.cached[index])

    @property
    def decoding(self) -> list[Request]:
        """The batch, in order of its places."""
        return [request for request in self.places if request is not None]

    def through_pool(self) -> None:
        """With a pool, a request gets in line when its prefill there is done."""
        setting = self.setting
        if setting.prefill != "elsewhere" or setting.tokens_per_s is None:
            return
        free = [0.0] * (setting.workers or len(self.coming))
        for request in self.coming:
            worker = free.index(min(free))
            start_s = max(request.arrived_s, free[worker])
            request.waited["pool"] = start_s - request.arrived_s
            request.ready_s = request.first_token_s = start_s + request.prompt_left / setting.tokens_per_s
            free[worker] = request.ready_s
        self.coming.sort(key=lambda request: request.ready_s)

    def need(self, request: Request) -> int:
        return request.prompt + request.output + self.setting.gamma

    def fits(self, request: Request) -> bool:
        capacity = self.setting.kv_tokens
        held = sum(self.need(each) for each in self.decoding + self.prefilling)
        return capacity is None or held + self.need(request) <= capacity

    def has_slot(self) -> bool:
        return len(self.decoding) + len(self.prefilling) < self.setting.concurrency

    def what_keeps_out(self) -> str:
        if not self.has_slot():
            return "slot"
        return "step" if self.fits(self.line[0]) else "kv"

    def advance(self, until_s: float) -> None:
        """Let time pass: those in line wait, others come."""
        while self.coming and self.coming[0].ready_s <= until_s + EPSILON_S:
            request = self.coming.pop(0)
            self.wait(request.ready_s)
            if request.first_token_s >= 0 and request.output == 1:
                request.admitted_s = request.finished_s = self.now
                self.finished.append(request)
                continue
            self.line.append(request)
            if len(self.line) == 1:
                self.cause = self.what_keeps_out()
        self.wait(until_s)

    def wait(self, until_s: float) -> None:
        for request in self.line:
            request.waited[self.cause] += until_s - self.now
        self.now = until_s

    def admit(self) -> None:
        while self.has_slot():
            if self.closed:
                request = self.request(self.next_closed, self.now)
            elif self.line:
                request = self.line[0]
            else:
                break
            if not self.fits(request):
                break
            if self.closed:
                self.next_closed = (self.next_closed + 1) % len(self.load)
            else:
                self.line.pop(0)
            request.admitted_s = self.now
            if self.setting.prefill == "elsewhere":
                self.join(request)
            else:
                self.prefilling.append(request)
        if self.line:
            self.cause = self.what_keeps_out()
        self.close_up()

    def close_up(self) -> None:
        """Let the last of the batch take the places that are still empty."""
        count = len(self.decoding)
        last = [request for request in self.places[count:] if request is not None]
        for place in range(count):
            if self.places[place] is None:
                self.places[place] = last.pop(0)
        del self.places[count:]

    def join(self, request: Request) -> None:
        """Its first token is there; decoding begins."""
        if request.first_token_s < 0:
            request.first_token_s = self.now
        request.left = request.output - 1
        if self.phase:
            share = self.phase.pop() * request.left
            request.left = int(share) + (share > int(share))
        if request.left and None in self.places:
            self.places[self.places.index(None)] = request
        elif request.left:
            self.places.append(request)
        else:
            request.finished_s = self.now
            self.finished.append(request)

    def prompt_rows(self) -> tuple[int, list[Request]]:
        """Prompt rows of the next step, and the requests whose prompts they complete."""
        whole, budget, tokens, complete = self.setting.prefill == "whole", self.setting.chunk_tokens, 0, []
        for request in self.prefilling:
            if tokens >= budget or (whole and tokens and tokens + request.prompt_left > budget):
                break
            take = request.prompt_left if whole else min(request.prompt_left, budget - tokens)
            if not request.started:
                request.started = True
                request.waited["prefill"] = self.now - request.admitted_s
            request.prompt_left -= take
            tokens += take
            if not request.prompt_left:
                complete.append(request)
        return tokens, complete

    def run(self, steps: int) -> None:
        """So many steps, or until nothing is left to do."""
        while len(self.steps) < steps:
            self.admit()
            if not self.decoding and not self.prefilling:
                if not self.coming:
                    return
                self.advance(self.coming[0].ready_s)
                continue
            prompts, complete = self.prompt_rows()
            if self.decoding and not (prompts and self.setting.prefill == "whole"):
                self.decode(prompts)
            else:
                duration_s = self.time_s(0, prompts, 0.0, prompts) * self.scatter()
                self.advance(self.now + duration_s)
                self.steps.append(DoneStep(self.now, duration_s, 0, 0, 0, prompts))
            for request in complete:
                self.prefilling.remove(request)
                self.join(request)
        self.admit()  # outputs of one token are done at the instant of the last step

    def scatter(self) -> float:
        """By how much this step deviates from the mean of its size."""
        return self.setting.scatter[len(self.steps)] if self.setting.scatter else 1.0

    def decode(self, prompts: int) -> None:
        batch, setting = self.decoding, self.setting
        requests, context = len(batch), sum(request.context for request in batch)

        def time_s(drafts: int) -> float:
            return self.time_s(requests, requests + drafts + prompts, context, prompts)

        lengths = setting.policy(
            Seen(
                [request.survival(0) for request in batch],
                [request.survival(setting.lag) for request in batch],
                [request.rows[request.row][1] for request in batch],
                time_s,
            )
        )
        drafts, committed = sum(lengths), 0
        duration_s = time_s(drafts) * self.scatter()
        self.advance(self.now + duration_s)
        for request, length in zip(batch, lengths, strict=True):
            request.met.append(request.survival(0))
            tokens = 1 + min(length, request.rows[request.row][1])
            request.row = (request.row + tokens) % len(request.rows)
            committed += min(tokens, request.left)
            request.left = max(0, request.left - tokens)
            request.deliveries_s.append(self.now)
            if not request.left:
                request.finished_s = self.now
                self.places[self.places.index(request)] = None
                self.finished.append(request)
        self.steps.append(DoneStep(self.now, duration_s, len(batch), drafts, committed, prompts))
