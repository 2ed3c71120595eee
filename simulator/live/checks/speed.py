"""How fast the live path is, as ratios that a machine's drift cannot fake.

Whatever is compared runs in turn, A B A B, in one process. Of each side the fastest run counts, the one that
the rest of the machine disturbed least, and the spread says how much slower the slowest was; shares of a
step are means over all runs, with the lowest and the highest beside them.

- ``bandwidth_floor``: a step of one request against the time that reading its weights and its keys takes.
- ``against_generate``: autoregressive decoding against transformers' ``generate`` over a static cache.
- ``ragged_against_padded``: verifying ragged rows against padding every request to its whole block.
- ``visible_scheduling``: the share of a step in which the device waits for the scheduler.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.cost.models import CostModel, ThroughputCurve
from simulator.engine.limits import EngineLimits
from simulator.engine.run import run_engine
from simulator.live.checks.baseline import StaticGenerate
from simulator.live.clock import now_s
from simulator.live.device import OutOfMemoryError, Tell, synchronise
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.observed import StepTiming
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import random_prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.device_ceilings import measure_ceilings
from simulator.schedulers.parse import parse_policy
from simulator.schedulers.policies import Fixed
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.traffic.workload import Workload

SETTLED = 8
"""Output tokens of every request before decoding is timed against ``generate``."""

_SEED = 0

_ANY_COST = ThroughputCurve([1], [1.0])  # for schedulers that do not ask

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedScale:
    """How much is measured; the defaults are for a GPU.

    concurrency: requests of the closed loops. batches: requests decoded against ``generate``. contexts:
    positions of the single request of ``bandwidth_floor``. prompt_tokens, output_tokens: of every request.
    steps: of each run. repeats: runs of each side. policies: verified ragged and padded. copy_bytes: of the
    bandwidth measurement, None for what leaves caches behind. Raises ``BadInputError`` that names the field.
    """

    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    batches: tuple[int, ...] = (1, 8)
    contexts: tuple[int, ...] = (512, 2048, 8192)
    prompt_tokens: int = 512
    output_tokens: int = 256
    steps: int = 100
    repeats: int = 5
    policies: tuple[str, ...] = ("dspark-async", "threshold:0.5")
    copy_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "batches", "contexts"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise BadInputError(
                    "must be increasing sizes from 1 up", field=name, value=sizes, remedy="as in (1, 8)"
                )
        least = {"prompt_tokens": 1, "output_tokens": 2 * SETTLED, "steps": 1, "repeats": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise BadInputError(
                    "is too small", field=name, value=getattr(self, name), remedy=f"at least {smallest}"
                )
        for policy in self.policies:
            parse_policy(policy)

    @classmethod
    def for_cpu(cls) -> SpeedScale:
        """Choose what a tiny pair gets through on a CPU in a minute or two."""
        return cls(
            concurrency=(1, 4, 16), contexts=(64, 256, 640), prompt_tokens=64, output_tokens=64, steps=40,
            repeats=5,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest of several runs in seconds; spread: how much slower the slowest was, relative to it."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Best:
        """Of at least one run."""
        return cls(min(seconds), max(seconds) / min(seconds) - 1)


def interleaved(sides: Mapping[str, Callable[[], _Result]], repeats: int) -> dict[str, list[_Result]]:
    """Results of each side, called in turn, after one round that does not count."""
    for run in sides.values():
        run()
    taken: dict[str, list[_Result]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            taken[name].append(run())
    return taken


def measure_speed(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> dict[str, pd.DataFrame]:
    """All four measurements, by name.

    acceptance: what the draft's blocks are worth, replayed, so that a pair with random weights does as well;
    of the draft's block size, with confidences. ``tell`` gets a line for each row as it is measured, and for
    each that was left out because memory did not suffice.
    """
    return {
        "bandwidth_floor": bandwidth_floor(target, draft, scale, tell),
        "against_generate": against_generate(target, scale, tell),
        "ragged_against_padded": ragged_against_padded(target, draft, acceptance, scale, tell),
        "visible_scheduling": visible_scheduling(target, draft, acceptance, scale, tell),
    }


# -------------------------------------------------------------------- against the memory's bandwidth


def bandwidth_floor(target: Target, draft: Draft, scale: SpeedScale, tell: Tell) -> pd.DataFrame:
    """Compare a step of one request with the least time that reading takes, at each context.

    Columns: kind (``autoregressive``, or ``verify`` of a whole block, without its draft), context,
    batch_tokens, step_ms, read_MB (weights once, and the keys and values of the context), copy_GB_per_s,
    floor_ms (read at copy bandwidth), over_floor (step over floor, less 1), step_spread, copy_spread.
    """
    rows: list[dict[str, Any]] = []
    for context in scale.contexts:
        with _cell(f"steps at context {context}", target, tell):
            rows += _floor_rows(target, draft, context, scale)
            for row in rows[-2:]:
                tell(
                    f"{row['kind']} at context {context}: {row['step_ms']:.3f} ms, "
                    f"{row['over_floor']:+.0%} over the floor of {row['floor_ms']:.3f} ms"
                )
    return pd.DataFrame(rows)


def _floor_rows(target: Target, draft: Draft, context: int, scale: SpeedScale) -> list[dict[str, Any]]:
    load = Workload.single_class(None, [context + 1], [1])
    executors = {
        "autoregressive": _executor(target, None, load, 1),
        "verify": _executor(target, draft, load, 1),
    }
    sides: dict[str, Callable[[], float]] = {
        name: partial(_typical_step_s, executor, context, scale.steps) for name, executor in executors.items()
    }
    taken = interleaved(sides | {"copy": partial(_copy_s_per_byte, target, scale.copy_bytes)}, scale.repeats)
    read, copy = target.bytes_read(context), Best.of(taken["copy"])
    rows = []
    for name, executor in executors.items():
        step, floor_s = Best.of(taken[name]), read * copy.seconds
        rows.append(
            {
                "kind": name,
                "context": context,
                "batch_tokens": 1 + executor.gamma,
                "step_ms": 1e3 * step.seconds,
                "read_MB": read / 1e6,
                "copy_GB_per_s": 1e-9 / copy.seconds,
                "floor_ms": 1e3 * floor_s,
                "over_floor": step.seconds / floor_s - 1,
                "step_spread": step.spread,
                "copy_spread": copy.spread,
            }
        )
    return rows


def _typical_step_s(executor: LiveExecutor, context: int, steps: int) -> float:
    """Median over so many steps of one request that verifies its whole block; the draft is not counted."""
    timings = [_step(executor, 1, context, executor.gamma) for _ in range(steps)]
    return float(np.median([timing.duration_s - timing.draft_s for timing in timings]))


def _copy_s_per_byte(target: Target, copy_bytes: int | None) -> float:
    measured = measure_ceilings(target.device, target.dtype, copy_bytes=copy_bytes, matmul_size=64)
    return 1 / measured.bytes_per_s


def _step(executor: LiveExecutor, requests: int, context: int, drafts: int) -> StepTiming:
    """One step of so many requests at this context, each verifying ``drafts`` tokens, known beforehand."""
    scheduler = executor.observe(Fixed(drafts))
    executor.pretend(requests, context)
    survival = executor.draft(requests)
    executor.verify(scheduler.schedule(survival, Batch(_ANY_COST)), 0.0)
    return executor.timings[-1]


# -------------------------------------------------------------------- against transformers' generate


def against_generate(target: Target, scale: SpeedScale, tell: Tell) -> pd.DataFrame:
    """Autoregressive decoding by the live engine and by transformers, same prompts, greedy, without an end.

    Timed from the ``SETTLED``-th output token to the last, by the wall clock: the serving loop counts;
    prefill, compilation and recording do not. Columns: requests, prompt_tokens, output_tokens, compiled
    (whether transformers decoded by torch.compile), engine_tok_per_s, generate_tok_per_s, ratio (engine over
    generate), engine_spread, generate_spread, agreement (share of output tokens before the first that
    differs).
    """
    rows: list[dict[str, Any]] = []
    for requests in scale.batches:
        with _cell(f"decoding {requests} requests", target, tell):
            rows.append(row := _generate_row(target, requests, scale, tell))
            tell(
                f"decoding {requests}: {row['engine_tok_per_s']:.1f} tokens/s, {row['ratio']:.2f} times "
                f"generate {'compiled' if row['compiled'] else 'without compilation'}; "
                f"{row['agreement']:.1%} of the tokens agree"
            )
    return pd.DataFrame(rows)


def _generate_row(target: Target, requests: int, scale: SpeedScale, tell: Tell) -> dict[str, Any]:
    ours = _Greedy(target, requests, scale)
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
    return {
        "requests": requests,
        "prompt_tokens": scale.prompt_tokens,
        "output_tokens": scale.output_tokens,
        "compiled": compiled,
        "engine_tok_per_s": tokens / engine.seconds,
        "generate_tok_per_s": tokens / generate.seconds,
        "ratio": generate.seconds / engine.seconds,
        "engine_spread": engine.spread,
        "generate_spread": generate.spread,
        "agreement": float(same.cumprod(dim=1).mean()),
    }


class _Greedy:
    """The live engine decoding a fixed batch without a draft. prompts: int64 [R, P]."""

    def __init__(self, target: Target, requests: int, scale: SpeedScale) -> None:
        lengths = [[tokens] * requests for tokens in (scale.prompt_tokens, scale.output_tokens)]
        self.load = Workload.single_class([0.0] * requests, *lengths)
        self.target, self.requests = target, requests
        prompt = random_prompts(target.vocab_size, _SEED)
        prompts = np.stack([prompt(request, scale.prompt_tokens) for request in range(requests)])
        self.prompts = torch.from_numpy(prompts).to(target.device)
        self._executor = _executor(target, None, self.load, requests)

    def tokens(self) -> Tensor:
        """Everybody's output, int64 [R, N]."""
        # On an executor of its own: keeping tokens costs time in every step.
        executor = _executor(self.target, None, self.load, self.requests, keep_tokens=True)
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

    def _serve(self, executor: LiveExecutor, steps: int | None) -> Any:
        scheduler, limits = executor.observe(Fixed(0)), EngineLimits(self.requests)
        return run_engine(self.load, executor, scheduler, _ANY_COST, limits, seed=_SEED, steps=steps)


# -------------------------------------------------------------------- closed loops under a policy


def ragged_against_padded(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> pd.DataFrame:
    """Ragged verification against passes padded to every request's whole block, with the same decisions.

    Acceptance is replayed and requests come in a closed loop, so no decision depends on time. On a GPU ragged
    passes are padded to the next recorded size. Columns: policy, concurrency, verified_rows (mean per step),
    ragged_rows and padded_rows (of the passes, padding included), ragged_step_ms, padded_step_ms,
    ragged_verify_ms, padded_verify_ms (means), ragged_tok_per_s, padded_tok_per_s, ratio (of these two),
    ragged_spread, padded_spread (of step times), decisions, differing (how many were not the same).
    """
    _check_acceptance(draft, acceptance)
    rows: list[dict[str, Any]] = []
    for concurrency in scale.concurrency:
        with _cell(f"ragged against padded at {concurrency}", target, tell):
            for row in _padding_rows(target, draft, acceptance, concurrency, scale):
                rows.append(row)
                tell(
                    f"{row['policy']} at {concurrency}: {row['ratio']:.2f} times padded verification, "
                    f"{row['verified_rows']:.1f} of {row['padded_rows']:.0f} rows verified; "
                    f"{row['differing']} of {row['decisions']} decisions differ"
                )
    return pd.DataFrame(rows)


def _padding_rows(
    target: Target, draft: Draft, acceptance: AcceptanceModel, concurrency: int, scale: SpeedScale
) -> Iterator[dict[str, Any]]:
    ragged, padded = (
        _Loop(target, draft, acceptance, concurrency, scale, padded=padded) for padded in (False, True)
    )
    believed = ragged.measured_cost()
    for policy in scale.policies:
        yield _padding_row(ragged, padded, policy, believed)


def _padding_row(ragged: _Loop, padded: _Loop, policy: str, believed: CostModel) -> dict[str, Any]:
    scheduler = parse_policy(policy).scheduler
    decisions = [loop.run(scheduler, believed, keep_lengths=True).lengths for loop in (ragged, padded)]
    taken = interleaved(
        {
            "ragged": partial(ragged.run, scheduler, believed),
            "padded": partial(padded.run, scheduler, believed),
        },
        ragged.scale.repeats,
    )
    first = taken["ragged"][0]
    row: dict[str, Any] = {"policy": policy, "concurrency": ragged.concurrency}
    row |= {"verified_rows": first.timings["batch_tokens"].mean()}
    for kind, runs in taken.items():
        step = Best.of([run.timings["duration_s"].mean() for run in runs])
        row |= {
            f"{kind}_rows": runs[0].timings["padded_tokens"].mean(),
            f"{kind}_step_ms": 1e3 * step.seconds,
            f"{kind}_verify_ms": 1e3 * min(run.timings["verify_s"].mean() for run in runs),
            f"{kind}_tok_per_s": first.tokens_per_step / step.seconds,
            f"{kind}_spread": step.spread,
        }
    ratio = row["ragged_tok_per_s"] / row["padded_tok_per_s"]
    differing = sum(not np.array_equal(mine, theirs) for mine, theirs in zip(*decisions, strict=True))
    return row | {"ratio": ratio, "decisions": len(decisions[0]), "differing": differing}


def visible_scheduling(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> pd.DataFrame:
    """Measure the share of a step between the draft's end and the target's beginning, by the device's clock.

    Steps in which a CUDA graph was recorded do not count. Columns: policy, concurrency, steps, visible_us and
    step_ms (means over these), visible_share, lowest_share and highest_share (of single runs).
    """
    _check_acceptance(draft, acceptance)
    rows: list[dict[str, Any]] = []
    for concurrency in scale.concurrency:
        with _cell(f"scheduling at {concurrency}", target, tell):
            for row in _visible_rows(target, draft, acceptance, concurrency, scale):
                rows.append(row)
                tell(f"{row['policy']} at {concurrency}: {row['visible_share']:.2%} of a step")
    return pd.DataFrame(rows)


def _visible_rows(
    target: Target, draft: Draft, acceptance: AcceptanceModel, concurrency: int, scale: SpeedScale
) -> list[dict[str, Any]]:
    loop = _Loop(target, draft, acceptance, concurrency, scale)
    believed = loop.measured_cost()
    schedulers = {policy: parse_policy(policy).scheduler for policy in ("dspark", "dspark-async")}
    taken = interleaved(
        {policy: partial(loop.run, scheduler, believed) for policy, scheduler in schedulers.items()},
        scale.repeats,
    )
    rows = []
    for policy, runs in taken.items():
        timings = [run.timings[run.timings["capture_s"] == 0] for run in runs]
        shares = [one["visible_schedule_s"].sum() / one["duration_s"].sum() for one in timings if len(one)]
        together = pd.concat(timings)
        visible_s, step_s = (float(together[name].mean()) for name in ("visible_schedule_s", "duration_s"))
        rows.append(
            {
                "policy": policy,
                "concurrency": concurrency,
                "steps": len(together),
                "visible_us": 1e6 * visible_s,
                "step_ms": 1e3 * step_s,
                "visible_share": visible_s / step_s,
                "lowest_share": min(shares),
                "highest_share": max(shares),
            }
        )
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class _LoopRun:
    """timings: one row per step. lengths: every decision, int64 [R] each, where they were kept."""

    timings: pd.DataFrame
    tokens_per_step: float
    lengths: list[NDArray[np.int64]]


class _Loop:
    """A closed loop of equal requests on one executor: run again, it takes the same steps again."""

    def __init__(
        self,
        target: Target,
        draft: Draft,
        acceptance: AcceptanceModel,
        concurrency: int,
        scale: SpeedScale,
        *,
        padded: bool = False,
    ) -> None:
        requests = max(256, 8 * concurrency)  # so many more than slots that cycling shows no pattern
        lengths = [[tokens] * requests for tokens in (scale.prompt_tokens, scale.output_tokens)]
        self.load = Workload.single_class(None, *lengths)
        self.concurrency, self.scale = concurrency, scale
        self.executor = _executor(
            target, draft, self.load, concurrency, padded=padded, replays=[acceptance.replay(_SEED)]
        )

    def measured_cost(self) -> ThroughputCurve:
        """Measure steps of this batch in mid-output, by batch tokens: what schedulers are to believe."""
        executor, requests = self.executor, self.concurrency
        context = self.scale.prompt_tokens + self.scale.output_tokens // 2
        executor.place(np.arange(requests), np.arange(requests), np.full(requests, context))
        drafts = sorted({0, executor.gamma // 2, executor.gamma})
        fastest = [
            min(_step(executor, requests, context, each).duration_s for _ in range(2 * self.scale.repeats))
            for each in drafts
        ]
        # A curve that noise lets fall would not be one.
        return ThroughputCurve([requests * (1 + each) for each in drafts], 1 / np.maximum.accumulate(fastest))

    def run(self, scheduler: Scheduler, believed: CostModel, *, keep_lengths: bool = False) -> _LoopRun:
        """``scale.steps`` steps from the beginning."""
        observed = self.executor.observe(scheduler, keep_records=keep_lengths)
        self.executor.timings.clear()
        limits, steps = EngineLimits(self.concurrency), self.scale.steps
        engine = run_engine(self.load, self.executor, observed, believed, limits, seed=_SEED, steps=steps)
        committed = sum(step.committed_tokens for step in engine.steps)
        # One more step has run than the loop has delivered.
        return _LoopRun(
            pd.DataFrame(self.executor.timings[:steps]),
            committed / steps,
            [record.lengths.cpu().numpy() for record in observed.records],
        )


# -------------------------------------------------------------------- what they share


def _executor(
    target: Target, draft: Draft | None, load: Workload, requests: int, *, padded: bool = False,
    keep_tokens: bool = False, **options: Any,
) -> LiveExecutor:  # fmt: skip
    """Build an engine for this load; ``padded`` verifies as many rows as whole blocks have in any case."""
    block = 1 + (0 if draft is None else draft.gamma)
    tiers = Tiers()
    if target.device.type == "cuda":
        longest = int((load.prompt_tokens + load.output_tokens).max()) + 2 * block
        tiers = Tiers.for_cuda(requests * block, requests, longest)
    if padded:
        tiers = replace(tiers, rows=(block * Tiers.fit(tiers.requests, requests),))
    return LiveExecutor(
        target, draft, load, concurrency=requests, prompts=random_prompts(target.vocab_size, _SEED),
        options=LiveOptions(tiers=tiers, keep_tokens=keep_tokens, seed=_SEED), **options,
    )  # fmt: skip


def _check_acceptance(draft: Draft, acceptance: AcceptanceModel) -> None:
    if acceptance.gamma != draft.gamma:
        raise BadInputError(
            f"has another block size than the draft's {draft.gamma}", source=acceptance.name,
            field="acceptance", value=acceptance.gamma,
            remedy="cut it with truncated(gamma), or take a draft of its block size",
        )  # fmt: skip
    if not acceptance.has_confidence:
        raise BadInputError(
            "has no confidences, which the policies measured here schedule by", source=acceptance.name,
            field="acceptance", remedy="take a model of a drafter with a confidence head",
        )  # fmt: skip


@contextmanager
def _cell(what: str, target: Target, tell: Tell) -> Iterator[None]:
    """Run a part of a measurement: left out where memory does not suffice, and its memory freed behind it."""
    try:
        yield
    except OutOfMemoryError as error:
        tell(f"left out {what}: {error}")
    finally:
        gc.collect()
        if target.device.type == "cuda":
            torch.cuda.empty_cache()
            synchronise(target.device)
