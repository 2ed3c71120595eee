"""A second simulator of one replica: plain objects, one loop per request, slow and easy to check by eye.

It shares the step-time formula and the replayed outcomes with the product, and nothing of its loop,
batch rows, queues or schedulers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = Sequence[tuple[tuple[float, ...], int]]
"""What a request meets: survival of its block and how many of it the target would accept, row by row."""
StepTime = Callable[[int, int, float, int], float]
"""Seconds of a step by requests, rows, context tokens and prompt rows."""
EPSILON_S = 1e-12


@dataclass(frozen=True)
class Setting:
    """One configuration. policy: ``fixed`` (of ``length``) or ``dspark``. phase: of a closed loop's first."""

    concurrency: int
    gamma: int
    policy: str = "fixed"
    length: int = 1
    prefill: str = "elsewhere"
    chunk_tokens: int = 64
    kv_tokens: int | None = None
    tokens_per_s: float | None = None
    workers: int | None = 1
    phase: tuple[float, ...] = ()


@dataclass
class Request:
    """One request and all that happens to it. ``left``: output tokens to decode."""

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
    deliveries_s: list[float] = field(default_factory=list)
    waited: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("pool", "slot", "kv", "step", "prefill"), 0.0)
    )

    @property
    def context(self) -> int:
        """Tokens of it in the KV cache."""
        return self.prompt + self.output - self.left


@dataclass
class DoneStep:
    """One step: its end, its duration, and what it carried and delivered."""

    end_s: float
    duration_s: float
    requests: int
    drafts: int
    committed: int
    prefill: int


def dspark_lengths(batch: list[Request], time_s: StepTime, context: int, prompts: int) -> list[int]:
    """Algorithm 1 by trying: the candidate most likely to survive next, until Theta rises no more."""
    lengths, tau, rows = [0] * len(batch), float(len(batch)), len(batch)
    best = tau / time_s(len(batch), rows + prompts, context, prompts)
    while True:
        candidates = []
        for place, request in enumerate(batch):
            survival = request.rows[request.row][0]
            if lengths[place] < len(survival) and survival[lengths[place]] > 0:
                candidates.append((survival[lengths[place]], -place))
        if not candidates:
            return lengths
        survives, place = max(candidates)
        theta = (tau + survives) / time_s(len(batch), rows + 1 + prompts, context, prompts)
        if theta <= best:
            return lengths
        best, tau, rows = theta, tau + survives, rows + 1
        lengths[-place] += 1


class ReferenceSimulator:
    """Serves requests one step at a time; ``finished`` and ``steps`` hold what happened."""

    def __init__(
        self, setting: Setting, time_s: StepTime, load: Sequence[tuple[int, int, Rows]], arrival_s: Any
    ) -> None:
        """load: prompt tokens, output tokens and rows of each request. arrival_s: None in a closed loop."""
        self.setting, self.time_s, self.load = setting, time_s, load
        self.closed, self.now = arrival_s is None, 0.0
        self.coming: list[Request] = []
        self.line: list[Request] = []
        self.prefilling: list[Request] = []
        self.decoding: list[Request] = []
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
        return Request(index, prompt, output, rows, at, at, prompt_left=prompt)

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
            request.ready_s = request.first_token_s = start_s + request.prompt / setting.tokens_per_s
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

    def join(self, request: Request) -> None:
        """Its first token is there; decoding begins."""
        if request.first_token_s < 0:
            request.first_token_s = self.now
        request.left = request.output - 1
        if self.phase:
            share = self.phase.pop() * request.left
            request.left = int(share) + (share > int(share))
        if request.left:
            self.decoding.append(request)
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
                duration_s = self.time_s(0, prompts, 0.0, prompts)
                self.advance(self.now + duration_s)
                self.steps.append(DoneStep(self.now, duration_s, 0, 0, 0, prompts))
            for request in complete:
                self.prefilling.remove(request)
                self.join(request)
        self.admit()  # outputs of one token are done at the instant of the last step

    def decode(self, prompts: int) -> None:
        batch, context = list(self.decoding), sum(request.context for request in self.decoding)
        lengths = [self.setting.length] * len(batch)
        if self.setting.policy == "dspark":
            lengths = dspark_lengths(batch, self.time_s, context, prompts)
        drafts, committed = sum(lengths), 0
        duration_s = self.time_s(len(batch), len(batch) + drafts + prompts, context, prompts)
        self.advance(self.now + duration_s)
        for request, length in zip(batch, lengths, strict=True):
            tokens = 1 + min(length, request.rows[request.row][1])
            request.row = (request.row + tokens) % len(request.rows)
            committed += min(tokens, request.left)
            request.left = max(0, request.left - tokens)
            request.deliveries_s.append(self.now)
            if not request.left:
                request.finished_s = self.now
                self.decoding.remove(request)
                self.finished.append(request)
        self.steps.append(DoneStep(self.now, duration_s, len(batch), drafts, committed, prompts))
