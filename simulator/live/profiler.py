"""The profiler: what a step of the live engine costs on this device, as cells and as a profile.

Every step cell is a step of the live engine itself, its state set to so many requests at such a context,
with lengths given in place of a scheduler's. So what a profile promises is what a run pays, launches,
copies and bookkeeping included. Requests, batch tokens and context are varied against each other, so that few
requests with long blocks and many with none meet at equal batch tokens.

Kinds of cells (``Cell.kind``; ``name`` is a drafter or a policy):

- ``step``: everything of a step but the draft and the scheduler, over (requests, batch tokens, context).
- ``bare``: a step without any drafter; ``idle``: one with a drafter whose drafts are not verified. What
  they differ by is a drafter's price beside its own pass: states that it reads are gathered and kept.
- ``draft``: one block for every request; ``head``: of that, the sequential stage beyond the output matrix.
- ``prefill``: a prompt, over its tokens (in ``batch_tokens``).
- ``schedule``: what a policy's decision adds to a step; ``sample``: accepting or rejecting, inside ``step``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simulator.cost import AdditiveCost, ThroughputCurve
from simulator.errors import BadInputError, InfeasibleError
from simulator.fit import AdditiveFit, fit_additive
from simulator.live import sampling
from simulator.live.cells import Cell, CellLog, Measurement, Repeats, measure
from simulator.live.drafts import Draft, DSparkDraft
from simulator.live.engine import LiveExecutor, LiveOptions
from simulator.live.environment import device_name, long_lived_objects_set_aside, software
from simulator.live.kv_cache import whole_pages
from simulator.live.steps import Marks, OutOfMemoryError, Tiers, synchronise
from simulator.live.targets import Target
from simulator.profiles import AdditiveSpec, DraftSpec, Profile
from simulator.provenance import Provenance
from simulator.schedulers import Batch, parse_policy
from simulator.workload import Workload

Tell = Callable[[str], None]

What = tuple[str, str, int, int, int]
"""Of a cell: kind, name, requests, batch tokens, context tokens."""

NO_DRAFTER = "none"

FLAT = 0.05
"""A curve that rises by less than this share from its fewest to its most batch tokens is flat."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure. drafts: draft tokens per request; context: positions per request."""

    requests: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    drafts: tuple[int, ...] = (0, 1, 3, 7)
    context: tuple[int, ...] = (512, 2048, 8192)
    prefill: tuple[int, ...] = (128, 512, 2048)
    policies: tuple[str, ...] = ("dspark", "dspark-async")

    def __post_init__(self) -> None:
        for name in ("requests", "drafts", "context", "prefill"):
            sizes = getattr(self, name)
            least = 0 if name == "drafts" else 1
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < least:
                raise BadInputError(f"must be increasing sizes from {least} up", field=name, value=sizes)
        if len(self.requests) < 2 or len(self.drafts) < 2:
            raise BadInputError(
                "needs two sizes: requests and batch tokens must be told apart", field="requests, drafts"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How to measure.

    tolerance: by how much the first cell may differ when measured again at the end. rounds: how often
    everything is measured, one round after the other; the median of a cell's rounds counts.
    """

    grid: Grid = field(default_factory=Grid)
    repeats: Repeats = field(default_factory=Repeats)
    tolerance: float = 0.05
    rounds: int = 1
    attention: str = "auto"
    graphs: bool = True
    graph_tiers: bool = True
    command: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Profiled:
    """A finished measurement. drift: how far the first cell had moved when measured again at the end."""

    profile: Profile
    fit: AdditiveFit
    cells: CellLog
    drift: float


class Profiler:
    """Measures a target and its drafts; ``log`` makes it resume where it was interrupted.

    drafters: by name (``dspark``, ``mtp1``). The first of them takes part in the step cells.
    """

    def __init__(
        self, target: Target, drafters: dict[str, Draft], log: CellLog, options: ProfileOptions, tell: Tell
    ) -> None:
        self.target, self.drafters, self.log = target, drafters, log
        self.options, self.tell = options, tell
        self.left_out: list[str] = []
        self._round = 0

    def run(self) -> float:
        """Measure everything not in the log; returns the drift. Raises where the curve cannot be used."""
        with long_lived_objects_set_aside():
            for number in range(self.options.rounds):
                self._round = number
                for context in self.options.grid.context:
                    self._context(context)
                self._prefill()
                self._heads()
            drift = self._drift()
        self.refuse_unusable()
        if drift > self.options.tolerance:
            raise InfeasibleError(
                f"not repeatable: the first cell moved by {drift:.1%} until the end, more than "
                f"{self.options.tolerance:.1%}; quieten the machine and repeat (measured cells are in "
                f"{self.log.path}), or allow more with a larger tolerance"
            )
        return drift

    def refuse_unusable(self) -> None:
        """Refuse step cells that say nothing: times that never change, or that batch tokens do not raise."""
        steps = self.log.of("step")
        if steps["seconds"].max() <= 1.0001 * steps["seconds"].min():
            raise InfeasibleError(
                "inert: every step took the same time; the device did no work that was timed"
            )
        for context, group in steps.groupby(steps["context_tokens"] // steps["requests"]):
            sizes = group.groupby("batch_tokens")["seconds"].median()
            rise = sizes.iloc[-1] / sizes.iloc[0] - 1
            if rise < FLAT:
                raise InfeasibleError(
                    f"flat: {sizes.index[-1]} batch tokens take {rise:+.1%} longer than {sizes.index[0]} at "
                    f"context {context}; with such a profile every scheduler verifies everything. Measure "
                    "more requests or longer blocks, or a larger model"
                )

    # ---------------------------------------------------------------- parts

    def _context(self, context: int) -> None:
        """Step, draft and schedule cells at one context length per request."""
        grid = self.options.grid
        wanted = [
            ("step", "", requests, requests * (1 + drafts), requests * context)
            for requests in grid.requests
            for drafts in grid.drafts
        ]
        wanted += [("draft", n, r, 0, r * context) for n in self.drafters for r in grid.requests]
        wanted += [("schedule", p, r, 0, r * context) for p in grid.policies for r in grid.requests]
        if context == grid.context[0]:
            wanted += [("idle", n, r, r, r * context) for n in list(self.drafters)[1:] for r in grid.requests]
            wanted += [("bare", NO_DRAFTER, r, r, r * context) for r in grid.requests]
        benches: dict[str, Draft | None] = {**self.drafters, NO_DRAFTER: None}
        for name, draft in benches.items():
            first = name == next(iter(self.drafters))
            mine = [k for k in wanted if (k[1] == name) or (first and k[0] in ("step", "schedule"))]
            if all(map(self._known, mine)):
                continue
            bench = self._bench(draft, context)
            if bench is None:
                continue
            fitting = [what for what in mine if bench.holds(*what[2:4])]
            # Deciding is measured as a part of steps, which must be known by then.
            self._measure(bench, [what for what in fitting if what[0] != "schedule"])
            self._measure(bench, [what for what in fitting if what[0] == "schedule"])
            del bench
            if self.target.device.type == "cuda":
                torch.cuda.empty_cache()

    def _bench(self, draft: Draft | None, context: int) -> _Bench | None:
        """An engine for as many of the grid's requests as fit at this context, or None for none."""
        sizes = self.options.grid.requests
        for largest in reversed(sizes):
            try:
                return _Bench(self.target, draft, largest, context, self.options)
            except OutOfMemoryError as error:
                left_out = f"{largest} requests at context {context}: {error}"
                self.left_out.append(left_out)
                self.tell(f"left out {left_out}")
        return None

    def _prefill(self) -> None:
        name, draft = next(iter(self.drafters.items()))
        sizes = self.options.grid.prefill
        if all(self._known(("prefill", name, 1, tokens, 0)) for tokens in sizes):
            return
        bench = _Bench(self.target, draft, 1, sizes[-1], self.options)
        self._measure(bench, [("prefill", name, 1, tokens, 0) for tokens in sizes])

    def _heads(self) -> None:
        """The sequential stage, and the acceptance decision that is part of every step."""
        samples = {}
        for requests in self.options.grid.requests:
            for name, draft in self.drafters.items():
                if isinstance(draft, DSparkDraft):
                    samples["head", name, requests, 0, 0] = _head_sample(draft, requests)
            judging = _judge_sample(self.target, requests, 4)
            samples["sample", "greedy", requests, 5 * requests, 0] = judging
        self._take(samples)

    def _measure(self, bench: _Bench, wanted: Sequence[What]) -> None:
        self._take({what: bench.sample(*what[:4]) for what in wanted})

    def _take(self, samples: Mapping[What, Callable[[], float]]) -> None:
        """Measure what is not known yet, all of it in turn."""

        def done(cell: Cell) -> None:
            self.log.add(cell)
            self.tell(
                f"{cell.kind} {cell.name} {cell.requests} requests {cell.batch_tokens} tokens "
                f"{cell.context_tokens} context: {cell.seconds * 1e3:.3f} ms +- {cell.relative:.1%} "
                f"({cell.repeats} repeats)"
            )

        def left_out(measurement: Measurement, error: OutOfMemoryError) -> None:
            self.left_out.append(str(error))
            self.tell(f"left out {measurement}: {error}")

        wanted = [
            Measurement(sample, *what, part_of_s=self._part_of_s(what[0], what[2]))
            for what, sample in samples.items()
            if not self._known(what)
        ]
        measure(wanted, self.options.repeats, done=done, left_out=left_out, round=self._round)

    def _known(self, what: What) -> bool:
        return self.log.get((*what, self._round)) is not None

    def _part_of_s(self, kind: str, requests: int) -> float:
        """Small parts of a step need be known no better than to that share of the step itself."""
        if kind not in ("head", "sample", "schedule"):
            return 0.0
        steps = self.log.of("step")
        return float(steps.loc[steps["requests"] == requests, "seconds"].min())

    def _drift(self) -> float:
        """How far the first cell lies from what it was, measured once more."""
        first = self.log.of("step").iloc[0]
        requests, tokens = int(first["requests"]), int(first["batch_tokens"])
        draft = next(iter(self.drafters.values()))
        context = int(first["context_tokens"]) // requests
        bench = _Bench(self.target, draft, requests, context, self.options)
        again = list[Cell]()
        step = Measurement(lambda: bench.step_s(requests, tokens), "step", "", requests, tokens)
        measure([step], self.options.repeats, done=again.append, left_out=lambda *_: None)
        return abs(again[0].seconds / float(first["seconds"]) - 1)


class _Bench:
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
            target, draft, load, concurrency=requests, prompts=lambda _, n: np.zeros(n, dtype=np.int64),
            options=LiveOptions(tiers=tiers, attention=options.attention, graphs=options.graphs),
        )  # fmt: skip
        self.context = context

    def holds(self, requests: int, batch_tokens: int) -> bool:
        """Whether a step of these sizes exists here."""
        executor = self.executor
        return requests <= executor.concurrency and batch_tokens <= requests * (1 + executor.gamma)

    def sample(self, kind: str, name: str, requests: int, batch_tokens: int) -> Callable[[], float]:
        """What to call again and again to measure a cell of this kind."""
        return {
            "step": lambda: self.step_s(requests, batch_tokens),
            "idle": lambda: self.step_s(requests, batch_tokens),
            "bare": lambda: self.step_s(requests, batch_tokens),
            "draft": lambda: self.draft_s(requests),
            "schedule": lambda: self.schedule_s(requests, name),
            "prefill": lambda: self.prefill_s(batch_tokens),
        }[kind]

    def step_s(self, requests: int, batch_tokens: int) -> float:
        """A step of these sizes, without its draft."""
        self.executor.pretend(requests, self.context)
        self.executor.draft(requests)
        self.executor.verify(self._lengths(requests, batch_tokens - requests), 0.0)
        timing = self.executor.timings[-1]
        return timing.duration_s - timing.draft_s

    def draft_s(self, requests: int) -> float:
        """One block for every request, after a step that committed half a block."""
        self.executor.pretend(requests, self.context, pending=1 + self.executor.gamma // 2)
        self.executor.draft(requests)
        synchronise(self.executor.device)
        return self.executor.drafting_s

    def schedule_s(self, requests: int, policy: str) -> float:
        """What deciding adds between the draft's end and the target's beginning."""
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
        self.executor.prefill_row(0, 0, tokens)
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


def _head_sample(draft: DSparkDraft, requests: int) -> Callable[[], float]:
    weight = draft.fc.weight
    hidden = torch.randn(requests, draft.gamma, draft.shape.hidden_size).to(weight)
    anchors = torch.zeros(requests, dtype=torch.int64, device=weight.device)

    def stage() -> object:
        with torch.no_grad():
            tokens, _, _ = draft.draw(hidden, anchors)
            return draft.confidence_logits(hidden, tokens)

    def matrix() -> object:
        with torch.no_grad():
            return draft.lm_head(hidden)

    return lambda: _timed(stage, weight.device) - _timed(matrix, weight.device)


def _judge_sample(target: Target, requests: int, length: int) -> Callable[[], float]:
    device = target.device
    logits = torch.randn(requests * (length + 1), target.vocab_size, device=device).to(target.dtype)
    drafts = torch.zeros((requests, length), dtype=torch.int64, device=device)
    lengths = torch.full((requests,), length, dtype=torch.int64, device=device)
    return lambda: _timed(lambda: sampling.verify(logits, drafts, lengths), device)


# -------------------------------------------------------------------- from cells to a profile


def settings_of(target: Target, drafters: dict[str, Draft], options: ProfileOptions) -> dict[str, Any]:
    """What cells depend on: a log of other settings is not resumed."""
    return {
        "device": device_name(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "target": target.name,
        "drafters": {name: draft.gamma for name, draft in drafters.items()},
        "grid": {name: list(getattr(options.grid, name)) for name in Grid.__dataclass_fields__},
        "attention": options.attention,
        "graphs": options.graphs and target.device.type == "cuda",
        "threads": torch.get_num_threads() if target.device.type == "cpu" else None,
    }


def profile_from(
    log: CellLog, target: Target, drafters: dict[str, Draft], options: ProfileOptions, drift: float
) -> Profiled:
    """Fit the additive model to the step cells and put everything into a profile."""
    prices = _prices(log, list(drafters))
    steps = log.of("step").rename(columns={"seconds": "step_time_s"})
    steps["step_time_s"] -= steps["requests"].map(prices[next(iter(drafters))])
    contexts = (steps["context_tokens"] / steps["requests"]).nunique()
    cells = len(steps[["requests", "batch_tokens", "context_tokens"]].drop_duplicates())
    fit = fit_additive(
        steps,
        token_probes=_token_probes(steps),
        terms=("context",) if contexts > 1 else (),
        folds=min(5, cells),
    )
    cost = fit.cost
    settings = settings_of(target, drafters, options)
    names = "+".join(drafters)
    prefill = log.of("prefill").sort_values("batch_tokens")
    fastest = float((prefill["batch_tokens"] / prefill["seconds"]).max())
    notes = (
        f"held-out error: median {fit.held_out.median:.1%}, p90 {fit.held_out.p90:.1%}, "
        f"max {fit.held_out.max:.1%}; "
        f"first cell measured again at the end: {drift:.1%} off; {options.rounds} round(s), apart by "
        f"{log.disagreement():.1%} (median over step cells); dtype {settings['dtype']}; attention "
        f"{options.attention}; CUDA graphs {'on' if settings['graphs'] else 'off'}"
        + (f"; {settings['threads']} CPU thread(s)" if settings["threads"] else "")
    )
    step = AdditiveSpec.of(cost)
    profile = Profile(
        name=f"{slug(settings['device'])}/{label(target)}--{names}",
        title=f"{target.name} with {names} on {settings['device']}",
        provenance=Provenance(
            kind="measured",
            source="dspark-sim profile",
            date=datetime.now(UTC).date().isoformat(),
            command=options.command,
            device=settings["device"],
            driver=_driver(target.device),
            software=software() | {"dtype": settings["dtype"]},
            model=target.name,
            draft=names,
            notes=notes,
        ),
        step=step.model_copy(update={"prefill_s_per_token": _prefill_s_per_token(prefill, cost)}),
        replica_gpus=1 if target.device.type == "cuda" else None,
        drafters={name: _draft_spec(log, name, draft, prices[name]) for name, draft in drafters.items()},
        jitter=_jitter(log),
        prefill_tokens_per_s=fastest,
    )
    return Profiled(profile, fit, log, drift)


def _token_probes(steps: pd.DataFrame) -> list[float]:
    """Measured batch tokens to fit at: so few that there are two cells for every probe, both ends kept."""
    sizes = np.unique(steps["batch_tokens"])
    cells = len(steps[["requests", "batch_tokens"]].drop_duplicates())
    chosen = np.linspace(0, len(sizes) - 1, max(2, min(len(sizes), cells // 2, 16))).round().astype(int)
    return [float(size) for size in sizes[np.unique(chosen)]]


def _prices(log: CellLog, drafters: list[str]) -> dict[str, pd.Series[float]]:
    """Seconds that a step takes longer for having a drafter, its own pass apart: by drafter and requests.

    Steps have the same sizes with and without it, at the shortest context. 0 where no bare step was
    measured.
    """
    steps, bare = log.of("step"), log.of("bare").set_index("requests")["seconds"]
    with_it = {name: log.of("idle", name).set_index("requests")["seconds"] for name in drafters}
    shortest = (steps["context_tokens"] / steps["requests"]).min()
    undrafted = (steps["batch_tokens"] == steps["requests"]) & (
        steps["context_tokens"] == shortest * steps["requests"]
    )
    with_it[drafters[0]] = steps[undrafted].set_index("requests")["seconds"]
    sizes = pd.Index(sorted(set(steps["requests"])))
    return {
        name: (seconds - bare).clip(lower=0.0).reindex(sizes).interpolate(limit_direction="both").fillna(0.0)
        for name, seconds in with_it.items()
    }


def _draft_spec(log: CellLog, name: str, draft: Draft, price: pd.Series[float]) -> DraftSpec:
    """Cost of a drafter by requests, non-decreasing, and what each token of context adds to its pass."""
    cells = log.of("draft", name)
    context = _slope(cells["context_tokens"], cells["seconds"], cells["requests"])
    alone = cells["seconds"] - context * cells["context_tokens"]
    passes = alone.groupby(cells["requests"]).mean()
    sequential = log.of("head", name).groupby("requests")["seconds"].mean().reindex(passes.index)
    semi = isinstance(draft, DSparkDraft) and draft.markov_head is not None
    turns = np.maximum.accumulate(sequential.to_numpy() / draft.gamma) if semi else None
    head = 0.0 if turns is None else draft.gamma * turns
    whole = (passes + price.reindex(passes.index)).to_numpy() - head
    structure: Any = "parallel" if isinstance(draft, DSparkDraft) else "autoregressive"
    return DraftSpec(
        structure="semi-autoregressive" if semi else structure,
        block_size=draft.gamma,
        requests=tuple(float(r) for r in passes.index),
        pass_s=tuple(np.maximum.accumulate(np.maximum(whole, 0.0)).tolist()),
        sequential_s=None if turns is None else tuple(turns.tolist()),
        context_s_per_token=context,
    )


def _slope(x: pd.Series[float], y: pd.Series[float], group: pd.Series[int]) -> float:
    """Least-squares slope of y over x within groups, not negative; 0 where no group has two x."""
    dx, dy = x - x.groupby(group).transform("mean"), y - y.groupby(group).transform("mean")
    spread = float((dx**2).sum())
    return max(0.0, float((dx * dy).sum()) / spread) if spread else 0.0


def _prefill_s_per_token(prompts: pd.DataFrame, cost: AdditiveCost) -> float:
    """What prompt rows cost beyond the rows they are: least squares over whole prompts."""
    tokens = prompts["batch_tokens"].to_numpy(dtype=float)
    rows_s = np.array([cost.step_time_s(0, int(n)) for n in tokens])
    return max(0.0, float(tokens @ (prompts["seconds"].to_numpy() - rows_s) / (tokens @ tokens)))


def _jitter(log: CellLog) -> tuple[float, ...]:
    """How single steps scatter about their mean, every size alike: 64 equally likely multiples of it."""
    pooled = np.concatenate([cell.scatter for cell in log.cells.values() if cell.kind == "step"])
    places = (np.arange(64) + 0.5) / 64
    drawn = np.quantile(pooled, places)
    return tuple((drawn / drawn.mean()).round(4).tolist())


def schedule_s(log: CellLog, policy: str) -> float:
    """Seconds that a policy's decision adds to a step, mean over batch sizes; 0 where none was measured."""
    cells = log.of("schedule", policy)
    return float(cells["seconds"].mean()) if len(cells) else 0.0


def efficiency(log: CellLog, target: Target, bytes_per_s: float, flop_per_s: float) -> pd.DataFrame:
    """Bandwidth and matmul rate of the smallest and the largest step, and their share of the device's.

    A step reads every weight but the embedding once, and its requests' keys and values; it multiplies
    every row with every weight.
    """
    steps = log.of("step").sort_values(["batch_tokens", "context_tokens"])
    rows = []
    for step in (steps.iloc[0], steps.iloc[-1]):
        read = target.bytes_read(int(step["context_tokens"]))
        flops = 2.0 * target.weights_read * step["batch_tokens"]
        rows.append(
            {
                "batch_tokens": int(step["batch_tokens"]),
                "step_ms": step["seconds"] * 1e3,
                "GB_per_s": read / step["seconds"] / 1e9,
                "of_copy_bandwidth": read / step["seconds"] / bytes_per_s,
                "TFLOP_per_s": flops / step["seconds"] / 1e12,
                "of_matmul_rate": flops / step["seconds"] / flop_per_s,
            }
        )
    return pd.DataFrame(rows)


def label(target: Target) -> str:
    """A target's short name: its own, or of its pair's folder where that merely says ``target``."""
    path = Path(target.name)
    return slug(path.parent.name if path.name == "target" and path.parent.name else path.name)


def slug(text: str) -> str:
    """Lower case, digits and dashes: a name for files."""
    kept = "".join(
        character if character.isalnum() or character == "." else "-" for character in text.lower()
    )
    return "-".join(part for part in kept.split("-") if part)


def _driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return platform.system()
    return f"CUDA {torch.version.cuda}"
