"""The profiler: what a step of the live engine costs on this device, as cells and as a profile.

Every step cell is a step of the live engine itself, its state set to so many requests at such a context,
with lengths given in place of a scheduler's. So what a profile promises is what a run pays, launches,
copies and bookkeeping included. Requests, batch tokens and context are varied against each other, so that few
requests with long blocks and many with none meet at equal batch tokens.

Kinds of cells (``Cell.kind``; ``name`` is a drafter or a policy):

- ``step``: everything of a step but the draft and the scheduler, over (requests, batch tokens, context).
- ``bare``: a step without any drafter; ``idle``: one with a drafter whose drafts are not verified. What
  they differ by is a drafter's price beside its own pass: states that it reads are gathered and kept.
- ``draft``: one block for every request; ``head``: of that, what its heads take as they run, the difference
  to the same pass, recorded alike, that chooses all positions at once.
- ``prefill``: a prompt, over its tokens (in ``batch_tokens``).
- ``schedule``: what a policy's decision adds to a step; ``sample``: accepting or rejecting, inside ``step``,
  ``greedy`` and ``drawn``, whatever the temperature of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from simulator.core.errors import InfeasibleError
from simulator.live.device import OutOfMemoryError, Tell, is_out_of_memory, long_lived_objects_set_aside
from simulator.live.models.draft import Draft
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.targets import Target
from simulator.live.profiling.bench import Bench, judge_sample
from simulator.live.profiling.cells import CellLog, MeasuredCell, Measurement, measure
from simulator.live.profiling.counted import Counted, experts_of
from simulator.live.profiling.grid import NO_DRAFTER, ProfileOptions, What
from simulator.live.profiling.profile_fit import FLAT

PARTS = ("head", "sample", "schedule")
"""Kinds of cells that are small parts of a step."""


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
        self.counted: list[Counted] = []
        self._round = 0

    def run(self) -> float:
        """Measure everything not in the log; returns the drift. Raises where the curve cannot be used."""
        with long_lived_objects_set_aside():
            for number in range(self.options.rounds):
                self._round = number
                for context in self.options.grid.context:
                    self._context(context)
                self._prefill()
                self._decisions()
            self._set_noisy_aside()
            drift = self._drift()
            self.counted = self._count()
        self.refuse_unusable()
        if drift > self.options.tolerance:
            raise InfeasibleError(
                f"not repeatable: the first cell moved by {drift:.1%} until the end, more than "
                f"{self.options.tolerance:.1%}; quieten the machine and repeat (measured cells are in "
                f"{self.log.path}), or allow more with a larger tolerance"
            )
        return drift

    def _set_noisy_aside(self) -> None:
        """Leave cells out that are noisier than was asked for; refuse steps that mostly are."""
        asked = self.options.repeats.relative
        steps = [cell.relative <= asked for cell in self.log.cells.values() if cell.kind == "step"]
        if 2 * sum(steps) < len(steps):
            raise InfeasibleError(
                f"{len(steps) - sum(steps)} of {len(steps)} step cells are noisier than {asked:.1%}: not "
                "repeatable; quieten the machine, or allow more repeats or a wider interval (the same "
                "command measures these cells again)"
            )
        for cell in self.log.set_aside(asked):
            self.tell(f"left out {cell}: known to {cell.relative:.1%}")

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
            with_head = [n for n, draft in self.drafters.items() if isinstance(draft, DSparkDraft)]
            wanted += [("head", n, r, 0, r * context) for n in with_head for r in grid.requests]
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
            # Deciding and heads are measured as parts of steps, which must be known by then.
            self._measure(bench, [what for what in fitting if what[0] not in PARTS])
            self._measure(bench, [what for what in fitting if what[0] in PARTS])
            del bench
            if self.target.device.type == "cuda":
                torch.cuda.empty_cache()

    def _bench(self, draft: Draft | None, context: int) -> Bench | None:
        """Build an engine for as many of the grid's requests as fit at this context, or None for none."""
        sizes = self.options.grid.requests
        for largest in reversed(sizes):
            try:
                return Bench(self.target, draft, largest, context, self.options)
            except OutOfMemoryError as error:
                self._leave_out(f"{largest} requests at context {context}", error)
        return None

    def _leave_out(self, what: object, error: Exception) -> None:
        self.left_out.append(f"{what}: {error}")
        self.tell(f"left out {what}: {error}")

    def _prefill(self) -> None:
        name, draft = next(iter(self.drafters.items()))
        sizes = self.options.grid.prefill
        if all(self._known(("prefill", name, 1, tokens, 0)) for tokens in sizes):
            return
        bench = Bench(self.target, draft, 1, sizes[-1], self.options)
        self._measure(bench, [("prefill", name, 1, tokens, 0) for tokens in sizes])

    def _decisions(self) -> None:
        """Run the acceptance decision that is part of every step."""
        for name, temperature in (("greedy", 0.0), ("drawn", 1.0)):
            samples = {}
            for requests in self.options.grid.requests:
                what = ("sample", name, requests, 5 * requests, 0)
                if self._known(what):
                    continue
                try:
                    samples[what] = judge_sample(self.target, requests, 4, temperature)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._leave_out(f"accepting {name} for {requests} requests", error)
            self._take(samples)

    def _measure(self, bench: Bench, wanted: Sequence[What]) -> None:
        self._take({what: bench.sample(*what[:4]) for what in wanted})

    def _take(self, samples: Mapping[What, Callable[[], float]]) -> None:
        """Measure what is not known yet, all of it in turn."""

        def done(cell: MeasuredCell) -> None:
            self.log.add(cell)
            self.tell(
                f"{cell}: {cell.seconds * 1e3:.3f} ms +- {cell.relative:.1%} ({cell.repeats} repeats)"
                + ("" if cell.relative <= asked else f", noisier than {asked:.1%}")
            )

        asked = self.options.repeats.relative
        wanted = [
            Measurement(sample, *what, part_of_s=self._part_of_s(what[0], what[2]))
            for what, sample in samples.items()
            if not self._known(what)
        ]
        measure(wanted, self.options.repeats, done=done, left_out=self._leave_out, round=self._round)

    def _known(self, what: What) -> bool:
        cell = self.log.get((*what, self._round))
        return cell is not None and cell.relative <= self.options.repeats.relative

    def _part_of_s(self, kind: str, requests: int) -> float:
        """Small parts of a step need be known no better than to that share of the step itself."""
        if kind not in PARTS:
            return 0.0
        steps = self.log.of("step")
        return float(steps.loc[steps["requests"] == requests, "seconds"].min())

    def _count(self) -> list[Counted]:
        """Count operations and experts of steps at the shortest context, from the fewest rows to the most."""
        grid, draft = self.options.grid, next(iter(self.drafters.values()))
        bench = self._bench(draft, grid.context[0])
        if bench is None:
            return []
        sizes = [(r, r) for r in grid.requests] + [(r, r * (1 + draft.gamma)) for r in grid.requests[-1:]]
        counted = [bench.counted(*size) for size in sizes if bench.holds(*size)]
        total = experts_of(self.target)
        for step in counted if total else []:
            self.tell(f"{step.batch_tokens} tokens reach {step.experts:.1f} of {total} experts a layer")
        return counted

    def _drift(self) -> float:
        """How far the first cell lies from what it was, measured once more."""
        first = self.log.of("step").iloc[0]
        requests, tokens = int(first["requests"]), int(first["batch_tokens"])
        draft = next(iter(self.drafters.values()))
        context = int(first["context_tokens"]) // requests
        bench = Bench(self.target, draft, requests, context, self.options)
        again = list[MeasuredCell]()
        step = Measurement(lambda: bench.step_s(requests, tokens), "step", "", requests, tokens)
        measure([step], self.options.repeats, done=again.append, left_out=lambda *_: None)
        return abs(again[0].seconds / float(first["seconds"]) - 1)
