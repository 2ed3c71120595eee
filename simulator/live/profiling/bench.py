"""The bench on which single steps are timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from simulator.cost.models import ThroughputCurve
from simulator.live.device import Marks, synchronise
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.models import sampling
from simulator.live.models.draft import Draft
from simulator.live.models.kv_cache import whole_pages
from simulator.live.models.targets import Target
from simulator.live.profiling.counted import Counted, operations, reached, routing_of
from simulator.live.profiling.grid import ProfileOptions
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.protocol import Batch
from simulator.traffic.workload import Workload

_SEED = 0
"""Of everything that is drawn here: tokens of rows, prompts, anchors and drafts, features and logits."""


class Bench:
    """A live engine whose rows are put into any state, to be timed there."""

    def __init__(
        self, target: Target, draft: Draft | None, requests: int, context: int, options: ProfileOptions
    ) -> None:
        load = Workload.single_class(None, [context + 1], [1])
        tiers = Tiers()
        if target.device.type == "cuda" and options.graph_tiers:
            block = 1 if draft is None else 1 + draft.gamma
            tiers = Tiers.for_cuda(requests * block, requests, whole_pages(context + 256))
        self.executor = LiveExecutor(
            target, draft, load, concurrency=requests, prompts=random_prompts(target.vocab_size, _SEED),
            options=LiveOptions(
                temperature=options.temperature, tiers=tiers, attention=options.attention,
                graphs=options.graphs,
                fuse=None if options.fuse else False,
            ),
        )  # fmt: skip
        self.context = context
        self._vary(target.vocab_size)

    def _vary(self, vocabulary: int) -> None:
        """Give every row an anchor and a context of its own: equal rows would reach the same few experts."""
        state = self.executor.state
        generator = torch.Generator(self.executor.device).manual_seed(_SEED)
        state.anchors.random_(0, vocabulary, generator=generator)
        state.pending_tokens.random_(0, vocabulary, generator=generator)
        state.pending_features.normal_(generator=generator)

    def holds(self, requests: int, batch_tokens: int) -> bool:
        """Whether a step of these sizes exists here."""
        executor = self.executor
        return requests <= executor.concurrency and batch_tokens <= requests * (1 + executor.gamma)

    def sample(self, kind: str, name: str, requests: int, batch_tokens: int) -> Callable[[], float]:
        """Return what to call again and again to measure a cell of this kind."""
        return {
            "step": lambda: self.step_s(requests, batch_tokens),
            "idle": lambda: self.step_s(requests, batch_tokens),
            "bare": lambda: self.step_s(requests, batch_tokens),
            "draft": lambda: self.draft_s(requests),
            "head": lambda: self.draft_s(requests) - self.draft_s(requests, head=False),
            "schedule": lambda: self.schedule_s(requests, name),
            "prefill": lambda: self.prefill_s(batch_tokens),
        }[kind]

    def step_s(self, requests: int, batch_tokens: int) -> float:
        """Run a step of these sizes, without its draft."""
        self.executor.pretend(requests, self.context)
        self.executor.draft(requests)
        self.executor.verify(self._lengths(requests, batch_tokens - requests), 0.0)
        timing = self.executor.timings[-1]
        return timing.duration_s - timing.draft_s

    def counted(self, requests: int, batch_tokens: int) -> Counted:
        """Count what a step of these sizes does, its passes run at once rather than from a graph."""
        executor, passes = self.executor, self.executor.passes
        executor.pretend(requests, self.context)
        lengths = self._lengths(requests, batch_tokens - requests)
        block, context = int(lengths.max()) + 1, passes.cache.capacity
        drafting = 0
        if passes.draft_model is not None:
            drafting = operations(lambda: passes.draft(requests, requests, context))
        passes.state.lengths[:requests] = lengths
        with routing_of(passes.target) as chosen:
            verifying = operations(lambda: passes.verify(requests, batch_tokens, context, block))
        return Counted(batch_tokens, verifying, drafting, reached(chosen))

    def draft_s(self, requests: int, *, head: bool = True) -> float:
        """One block for every request, after a step that committed half a block; see ``Passes.draft``."""
        self.executor.pretend(requests, self.context, pending=1 + self.executor.gamma // 2)
        self.executor.draft(requests, head=head)
        synchronise(self.executor.device)
        return self.executor.drafting_s

    def schedule_s(self, requests: int, policy: str) -> float:
        """Measure what deciding adds between the draft's end and the target's beginning."""
        scheduler = self.executor.observe(parse_policy(policy).scheduler)
        self.executor.pretend(requests, self.context)
        survival = self.executor.draft(requests)
        lagged = None
        if scheduler.lag:
            lagged = np.linspace(0.9, 0.2, self.executor.gamma, dtype=np.float32)[None].repeat(requests, 0)
        lengths = scheduler.schedule(survival, Batch(_LINE, lagged=lagged))
        self.executor.verify(lengths, 0.0)
        decided = self.executor.timings[-1].visible_schedule_s
        self.executor.forget_scheduler()
        self.executor.pretend(requests, self.context)
        given = lengths.clone()
        self.executor.draft(requests)
        self.executor.verify(given, 0.0)
        return decided - self.executor.timings[-1].visible_schedule_s

    def prefill_s(self, tokens: int) -> float:
        """One prompt, target and draft."""
        marks = Marks(self.executor.device)
        synchronise(self.executor.device)
        marks.mark()
        self.executor.prompts.take(0, 0, tokens)
        marks.mark()
        synchronise(self.executor.device)
        return marks.spans_s()[0]

    def _lengths(self, requests: int, drafts: int) -> Tensor:
        """Drafts spread as evenly as they go."""
        each, rest = divmod(drafts, requests)
        lengths = torch.full((requests,), each, dtype=torch.int64)
        lengths[:rest] += 1
        return lengths.to(self.executor.device)


_LINE = ThroughputCurve([1, 4096], [100.0, 1.0])
"""A curve for timing decisions: it slopes, so that no search ends at once."""


def _timed(work: Callable[[], object], device: torch.device) -> float:
    marks = Marks(device)
    synchronise(device)
    marks.mark()
    work()
    marks.mark()
    synchronise(device)
    return marks.spans_s()[0]


def _tokens(sizes: tuple[int, ...], vocabulary: int, generator: torch.Generator) -> Tensor:
    """Tokens from the whole vocabulary, int64 of these sizes, on the generator's device."""
    return torch.randint(0, vocabulary, sizes, generator=generator, device=generator.device)


def judge_sample(target: Target, requests: int, length: int, temperature: float) -> Callable[[], float]:
    """Return what times the acceptance decision of a batch, in seconds; its drafts are drawn."""
    device = target.device
    generator = torch.Generator(device).manual_seed(_SEED)
    sizes = (requests * (length + 1), target.vocab_size)
    logits = torch.randn(sizes, generator=generator, device=device).to(target.dtype)
    drafts = _tokens((requests, length), target.vocab_size, generator)
    lengths = torch.full((requests,), length, dtype=torch.int64, device=device)
    drawn: dict[str, Tensor] = {}
    if not sampling.is_greedy(temperature):
        q_draft = sampling.distribution(logits[: requests * length], temperature)
        uniforms = torch.rand((requests, length + 1), generator=generator, device=device)
        drawn = {
            "q_draft": q_draft.view(requests, length, -1), "accept_uniforms": uniforms[:, :length],
            "next_uniforms": uniforms[:, length],
        }  # fmt: skip

    def judge() -> object:
        return sampling.verify(logits, drafts, lengths, temperature=temperature, **drawn)

    return lambda: _timed(judge, device)
