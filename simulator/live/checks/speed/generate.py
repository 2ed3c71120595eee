"""Autoregressive decoding against transformers' ``generate`` over a static cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.engine.strides.serving import ServingEngine
from simulator.live.checks.baseline import StaticGenerate
from simulator.live.checks.speed.engines import ANY_COST, executor_for
from simulator.live.checks.speed.scale import SEED, SETTLED, Best, SpeedScale, cell, interleaved
from simulator.live.device import Tell, now_s
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.prompts import random_prompts
from simulator.live.models.targets import Target
from simulator.schedulers.policies import Fixed
from simulator.traffic.workload import Workload


@dataclass(frozen=True, slots=True)
class GenerateRow:
    """A batch decoded by the live engine and by transformers.

    compiled: whether transformers decoded by torch.compile. ratio: engine over generate. agreement: share of
    output tokens before the first that differs. The spreads are ``Best``'s.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    compiled: bool
    engine_tok_per_s: float
    generate_tok_per_s: float
    ratio: float
    engine_spread: float
    generate_spread: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"decoding {self.requests}: {self.engine_tok_per_s:.1f} tokens/s, {self.ratio:.2f} times "
            f"generate {'compiled' if self.compiled else 'without compilation'}; "
            f"{self.agreement:.1%} of the tokens agree"
        )


def against_generate(target: Target, scale: SpeedScale, tell: Tell) -> pd.DataFrame:
    """Autoregressive decoding by the live engine and by transformers, same prompts, greedy, without an end.

    Timed from the ``SETTLED``-th output token to the last, by the wall clock: the serving loop counts;
    prefill, compilation and recording do not. Columns: those of ``GenerateRow``.
    """
    rows: list[GenerateRow] = []
    for requests in scale.batches:
        with cell(f"decoding {requests} requests", target, tell):
            rows.append(_generate_row(target, requests, scale, tell))
            tell(str(rows[-1]))
    return pd.DataFrame(rows)


def _generate_row(target: Target, requests: int, scale: SpeedScale, tell: Tell) -> GenerateRow:
    ours = Greedy(target, requests, scale)
    theirs = StaticGenerate(target, ours.prompts, scale.output_tokens, tell)
    same = (ours.tokens() == theirs.tokens()).to(torch.float64)
    taken = interleaved(
        {"engine": partial(ours.decode_s, SETTLED), "generate": partial(theirs.decode_s, SETTLED)},
        scale.repeats,
    )
    compiled = theirs.compiled
    theirs.forget()
    engine, generate = Best.of(taken["engine"]), Best.of(taken["generate"])
    tokens = requests * (scale.output_tokens - SETTLED)
    return GenerateRow(
        requests=requests,
        prompt_tokens=scale.prompt_tokens,
        output_tokens=scale.output_tokens,
        compiled=compiled,
        engine_tok_per_s=tokens / engine.seconds,
        generate_tok_per_s=tokens / generate.seconds,
        ratio=generate.seconds / engine.seconds,
        engine_spread=engine.spread,
        generate_spread=generate.spread,
        agreement=float(same.cumprod(dim=1).mean()),
    )


class Greedy:
    """The live engine decoding a fixed batch without a draft. prompts: int64 [R, P]."""

    def __init__(self, target: Target, requests: int, scale: SpeedScale) -> None:
        lengths = [[tokens] * requests for tokens in (scale.prompt_tokens, scale.output_tokens)]
        self.load = Workload.single_class([0.0] * requests, *lengths)
        self.target, self.requests = target, requests
        prompt = random_prompts(target.vocab_size, SEED)
        prompts = np.stack([prompt(request, scale.prompt_tokens) for request in range(requests)])
        self.prompts = torch.from_numpy(prompts).to(target.device)
        self._executor = executor_for(target, None, self.load, requests)

    def tokens(self) -> Tensor:
        """Everybody's output, int64 [R, N]."""
        # On an executor of its own: keeping tokens costs time in every step.
        executor = executor_for(self.target, None, self.load, self.requests, keep_tokens=True)
        self._serve(executor, None)
        outputs = [executor.outputs[request] for request in range(self.requests)]
        return torch.tensor(outputs, device=self.target.device)

    def decode_s(self, first: int) -> float:
        """Seconds from when every request has ``first`` (> 2) output tokens until all have all of theirs."""
        # Prefill gave the first token, and a serving loop that has delivered a step has run the next.
        engine = self._serve(self._executor, first - 2)
        start_s = now_s()
        while engine.completed < self.requests:
            engine.environment.step()
        return now_s() - start_s

    def _serve(self, executor: LiveExecutor, steps: int | None) -> ServingEngine:
        scheduler, limits = executor.observe(Fixed(0)), EngineLimits(self.requests)
        return run_engine(self.load, executor, scheduler, ANY_COST, limits, seed=SEED, steps=steps)
