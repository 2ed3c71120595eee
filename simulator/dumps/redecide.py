"""Each recorded step decided again, and what explains a difference from the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.cost.believed import BelievedTable
from simulator.cost.curve import Curve
from simulator.cost.models import CostModel, ThroughputCurve
from simulator.dumps.steps import Recording, Step
from simulator.schedulers.engines.lookup import candidates, filled
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.schedulers.search import admit

OTHER_LAGS = (1, 2, 3)

FAR = 0.05
"""Relative difference of a predicted step time from the table's from which on they are not the same table."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a policy decides in one recorded step: draft lengths, int64 [R]."""

    rank: int
    step: Step
    lengths: Rows

    @property
    def differs(self) -> bool:
        """Whether the engine verified other drafts."""
        return not np.array_equal(self.lengths, self.step.lengths)


def decide_again(recording: Recording, policy: Scheduler, table: CostModel) -> list[Decision]:
    """Decide every step of which the dump holds what the policy reads; the others are left out.

    Under SGLang's ``reinflate`` all ranks of a step fill the largest one's graph. Raises ``BadInputError``
    for a policy that must see the outcome, or what its own earlier steps did.
    """
    if policy.reads_outcome or hasattr(policy, "start"):
        raise BadInputError(
            "cannot be asked of a dump: it reads outcomes, or what its own earlier steps did",
            field="policy", value=type(policy).__name__, remedy="a policy that reads survival and T only",
        )  # fmt: skip
    shared = isinstance(policy, SGLang) and policy.reinflate and len(recording.ranks) > 1
    largest = _largest(recording, policy, table) if shared and isinstance(policy, SGLang) else {}
    decisions = []
    for rank, index, step, batch in _decidable(recording, policy, table):
        if isinstance(policy, SGLang) and step.forward_ct in largest:
            budget = filled(largest[step.forward_ct], step.requests, recording.gamma, policy.tiers)
            grid, left = candidates(step.survival)
            lengths = admit(grid, min(budget, left))
        else:
            lengths = policy.schedule(step.survival, batch)
        decisions.append(Decision(rank, recording.ranks[rank][index], np.asarray(lengths)))
    return decisions


def _decidable(
    recording: Recording, policy: Scheduler, table: CostModel
) -> Iterator[tuple[int, int, Step, Batch]]:
    for rank, steps in enumerate(recording.ranks):
        for index, step in enumerate(steps):
            lagged = recording.lagged(rank, index, policy.lag) if policy.lag else None
            if np.isnan(step.survival).any() or (policy.lag and lagged is None):
                continue
            yield rank, index, step, Batch(table, step.context_tokens, 0, lagged)


def _largest(recording: Recording, policy: SGLang, table: CostModel) -> dict[int, int]:
    """Rows of the largest rank by step."""
    rows: dict[int, int] = {}
    for _, _, step, batch in _decidable(recording, policy, table):
        assert batch.lagged is not None
        mine = step.requests + policy.search(batch.lagged, batch)
        rows[step.forward_ct] = max(mine, rows.get(step.forward_ct, 0))
    return rows


def explain(
    recording: Recording, policy: SGLang, table: CostModel, decisions: Sequence[Decision]
) -> list[str]:
    """Say of each decision why the engine decided otherwise, or that it agrees.

    A reason is a change of the policy or of the lookup that reproduces the engine's lengths. Several may
    reproduce one step by chance, so the one that reproduces most steps of the dump comes first.
    """
    found = {id(each): _reproduced(recording, policy, table, each) for each in decisions if each.differs}
    counts = Counter(reason for reasons in found.values() for reason in reasons)
    said = []
    for each in decisions:
        reasons = found.get(id(each))
        if reasons is None:
            said.append("agrees")
        elif reasons:
            said.append(max(reasons, key=lambda reason: counts[reason]))
        else:
            said.append(_known_of(each, table))
    return said


def _reproduced(recording: Recording, policy: SGLang, table: CostModel, decision: Decision) -> list[str]:
    """Return the reasons that reproduce the engine's lengths in a step."""
    step, reasons = decision.step, []
    if np.all(step.lengths == recording.gamma):
        reasons.append("the engine verified every draft: no table, or a flat one")
    for reason, variant, believed in _variants(recording.graphs, policy, table):
        lengths = _decide(recording, decision, variant, believed)
        if lengths is not None and np.array_equal(lengths, step.lengths):
            reasons.append(reason)
    return reasons


def _known_of(decision: Decision, table: CostModel) -> str:
    """Say what is known of a difference that nothing reproduces, the time that it predicted first."""
    step = decision.step
    if step.predicted_s is not None:
        rows = step.requests + int(step.lengths.sum())
        expected = table.step_time_s(step.requests, rows, step.context_tokens)
        if abs(step.predicted_s / expected - 1) > FAR:
            return "another table: the engine predicted another step time for its rows"
    if step.lengths.sum() == decision.lengths.sum():
        return "the same budget, given to other requests"
    more = step.lengths.sum() > decision.lengths.sum()
    return f"a {'larger' if more else 'smaller'} budget, not explained"


def _variants(
    graphs: tuple[int, ...], policy: SGLang, table: CostModel
) -> Iterator[tuple[str, SGLang, CostModel]]:
    for lag in OTHER_LAGS:
        if lag != policy.lag:
            yield f"the engine's budget is {lag} step{'s' * (lag > 1)} old", replace(policy, lag=lag), table
    if graphs and not policy.reinflate:
        yield "the engine filled its graph", replace(policy, tiers=graphs, reinflate=True), table
    for name, other in _other_lookups(table):
        yield f"the engine looks its table up {name}", policy, other


def _other_lookups(table: CostModel) -> Iterator[tuple[str, CostModel]]:
    """Yield the same points, looked up otherwise."""
    for name, lookup in (("at or below", "floor"), ("linearly", "linear"), ("at or above", "ceil")):
        if isinstance(table, ThroughputCurve) and table.lookup != lookup:
            yield name, ThroughputCurve(table.batch_tokens, table.steps_per_s, lookup=lookup)  # type: ignore[arg-type]
        if isinstance(table, BelievedTable) and table.theta.lookup != lookup:
            alpha, theta = table.alpha, table.theta
            yield name, _believed(table.bias_s, alpha, theta, lookup)


def _believed(bias_s: float, alpha: Curve, theta: Curve, lookup: str) -> BelievedTable:
    return BelievedTable(bias_s, alpha.at, alpha.value, theta.at, theta.value, lookup=lookup)  # type: ignore[arg-type]


def _decide(recording: Recording, decision: Decision, policy: SGLang, table: CostModel) -> Rows | None:
    step = decision.step
    index = recording.ranks[decision.rank].index(step)
    lagged = recording.lagged(decision.rank, index, policy.lag)
    if lagged is None:
        return None
    return np.asarray(policy.schedule(step.survival, Batch(table, step.context_tokens, 0, lagged)))
