"""A cost model as arrays: what the compiled loop evaluates, operation by operation as ``cost`` does.

Results are those of ``CostModel.step_time_s`` bit for bit, so each operation keeps the order of its sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats
from simulator.cost.believed import BelievedTable
from simulator.cost.draft import DraftCost
from simulator.cost.models import AdditiveCost, CostModel, LengthByRequests, StepCost, ThroughputCurve
from simulator.cost.padded import PaddedCost
from simulator.cost.scaled import EnabledCost, RowCost, ScaledCost
from simulator.engine.strides.jit import inner, record

TABULATED, EXTRA, SCALED, ENABLED, ROW, PADDED = range(6)
"""Kinds of operation. The first of a model is ``TABULATED``; each further one changes its step time."""

LARGEST = 2**22
"""Rows of a step up to which step times are tabulated: 32 MB a table; a choice."""


OPERATION = record(
    [("kind", np.int64)]
    + [(name, np.float64) for name in ("a", "b", "c", "d")]
    + [(name, np.int64) for name in ("t", "u", "v", "w")]
)
"""What to do, with up to four constants, and where its up to four tables begin."""


class FlatCost(NamedTuple):
    """A cost model as a chain of operations, the innermost first.

    chain: ``OPERATION`` [n]. table: float64, all tables end to end, after the least and most
    requests and rows that were measured. padded: the operation that pads, -1 without one.
    """

    chain: NDArray[Any]
    table: Floats
    padded: int


@dataclass(slots=True)
class _Chain:
    requests: int
    rows: int
    kind: list[int] = field(default_factory=list)
    number: list[list[float]] = field(default_factory=list)
    tables: list[list[Floats]] = field(default_factory=list)
    bounds: tuple[float, float, float, float] = (-np.inf, np.inf, -np.inf, np.inf)

    def add(self, kind: int, numbers: list[float], *tables: Floats) -> None:
        self.kind.append(kind)
        self.number.append(numbers)
        self.tables.append([np.asarray(table, dtype=np.float64) for table in tables])

    def flat(self) -> FlatCost:
        chain = np.zeros(len(self.kind), dtype=OPERATION)
        laid, end = [np.array(self.bounds, dtype=np.float64)], 4
        for row, kind, numbers, tables in zip(chain, self.kind, self.number, self.tables, strict=True):
            row["kind"] = kind
            for name, number in zip("abcd", numbers, strict=False):
                row[name] = number
            for name, table in zip("tuvw", tables, strict=False):
                row[name] = end
                laid.append(table)
                end += table.size
        padded = self.kind.index(PADDED) if PADDED in self.kind else -1
        return FlatCost(chain, np.concatenate(laid), padded)


def flatten(cost: CostModel, requests: int, rows: int) -> FlatCost | None:
    """Lay a cost model out for steps of up to so many requests and rows; None for one that it cannot lay out.

    A model of one's own, and one that pads twice, stays with the Python loop.
    """
    chain = _Chain(requests, rows)
    return chain.flat() if rows <= LARGEST and _lay(cost, chain) and chain.kind.count(PADDED) < 2 else None


def _lay(cost: CostModel, chain: _Chain) -> bool:
    """Add the operations of a model, its base's first; whether it is one that is known."""
    kind = type(cost)  # a subclass may do anything
    if kind is ThroughputCurve or kind is AdditiveCost or kind is BelievedTable:
        _lay_table(cost, chain)
        return True
    if kind is StepCost:
        return _lay_step(cost, chain)  # type: ignore[arg-type]  # as its type says
    return _lay_changed(cost, chain)


def _lay_table(cost: CostModel, chain: _Chain) -> None:
    requests, rows = chain.requests + 1, chain.rows + 1
    if isinstance(cost, ThroughputCurve):
        at = cost.curve.at
        chain.bounds = (-np.inf, np.inf, at[0], at[-1])
        chain.add(TABULATED, [], np.zeros(requests), cost.curve.span(0, rows))
        return
    assert isinstance(cost, AdditiveCost | BelievedTable)
    chain.bounds = (cost.alpha.at[0], cost.alpha.at[-1], cost.theta.at[0], cost.theta.at[-1])
    numbers = [cost.bias_s]
    if isinstance(cost, AdditiveCost):
        numbers += [cost.context_s_per_token, cost.row_context_s_per_token, cost.prefill_s_per_token]
    chain.add(TABULATED, numbers, cost.alpha.span(0, requests), cost.theta.span(0, rows))


def _lay_step(cost: StepCost, chain: _Chain) -> bool:
    if not _lay(cost.target, chain):
        return False
    none = np.zeros(chain.requests + 1)
    numbers, tables = [cost.overhead_s], (none, none, none, none)
    if cost.draft is not None:
        numbers.append(cost.draft.context_s_per_token)
        tables = _draft_tables(cost.draft, cost.draft_tokens, chain.requests)
    chain.add(EXTRA, numbers, *tables)
    return True


def _draft_tables(
    draft: DraftCost, asked: int | LengthByRequests | None, most: int
) -> tuple[Floats, Floats, Floats, Floats]:
    """Tabulate by requests whether it drafts, seconds of a pass, passes, and seconds of the turns."""
    count = np.arange(most + 1)
    tokens: Floats = np.full(most + 1, draft.block_size if asked is None else 0.0)
    drafts = count > 0
    if isinstance(asked, LengthByRequests):
        tokens[1:] = [asked(requests) for requests in range(1, most + 1)]
        drafts &= tokens > 0
    elif asked is not None:
        tokens[:] = asked
    once = draft.structure != "autoregressive"
    turns: Floats = np.zeros(most + 1)
    if draft.structure == "semi-autoregressive":
        turns = draft.sequential_time.span(0, most + 1) * draft.block_size
    passes: Floats = np.ones(most + 1) if once else tokens
    return drafts.astype(np.float64), draft.pass_time.span(0, most + 1), passes, turns


def _lay_changed(cost: CostModel, chain: _Chain) -> bool:
    kind = type(cost)
    if kind is ScaledCost:
        assert isinstance(cost, ScaledCost)
        numbers, tables, code = [cost.factor], [], SCALED
    elif kind is EnabledCost:
        assert isinstance(cost, EnabledCost)
        longer = [1 + cost.slow(requests) for requests in range(chain.requests + 1)]
        numbers, tables, code = [], [np.array(longer)], ENABLED
    elif kind is RowCost:
        assert isinstance(cost, RowCost)
        numbers, tables, code = [cost.row_s], [], ROW
    elif kind is PaddedCost:
        assert isinstance(cost, PaddedCost)
        if cost.captured and cost.captured[-1] > chain.rows:
            chain.rows = int(cost.captured[-1])
        captured, rows = np.array(cost.captured), np.arange(chain.rows + 1)
        place = np.searchsorted(captured, rows)
        padded = np.where(place < captured.size, captured[np.minimum(place, captured.size - 1)], rows)
        numbers, tables, code = [], [padded.astype(np.float64)], PADDED
    else:
        return False
    if not _lay(cost.base, chain):
        return False
    chain.add(code, numbers, *tables)
    return True


@inner
def step_times(cost: FlatCost, requests: int, first: int, context: int, prefill: int, out: Floats) -> None:
    """Seconds of steps of ``first``, ``first`` + 1, ... rows into ``out``."""
    table, base, size = cost.table, cost.chain[0], out.size
    fixed = base.a + table[base.t + requests] + base.b * context + base.d * prefill
    per_row = base.c * context / max(requests, 1)
    if cost.padded < 0 and per_row == 0.0:  # as a rule: then the table is read in one go
        begin = base.u + first
        for index in range(size):
            out[index] = table[begin + index] + fixed
    else:
        for index in range(size):
            rows = _padded(cost, 0, first + index)
            out[index] = table[base.u + rows] + fixed + per_row * (rows - prefill)
    for operation in range(1, cost.chain.size):
        change = cost.chain[operation]
        if change.kind == EXTRA:
            extra = change.a + _draft_s(cost, operation, requests, context)
            for index in range(size):
                out[index] += extra
        elif change.kind == SCALED:
            for index in range(size):
                out[index] *= change.a
        elif requests > 0 and change.kind == ENABLED:
            for index in range(size):
                if _padded(cost, operation, first + index) == requests + prefill:
                    out[index] *= table[change.t + requests]
        elif requests > 0 and change.kind == ROW:
            for index in range(size):
                beyond = _padded(cost, operation, first + index) - (2 * requests + prefill)
                out[index] += change.a * max(beyond, 0)


@inner
def _padded(cost: FlatCost, operation: int, rows: int) -> int:
    """Rows that an operation sees: those inside the one that pads see padded ones."""
    if operation >= cost.padded:
        return rows
    return int(cost.table[cost.chain[cost.padded].t + rows])


@inner
def _draft_s(cost: FlatCost, operation: int, requests: int, context: int) -> float:
    """Seconds that drafting takes."""
    table, change = cost.table, cost.chain[operation]
    if requests == 0 or table[change.t + requests] == 0.0:
        return 0.0
    one = table[change.u + requests] + change.b * context
    return one * table[change.v + requests] + table[change.w + requests]


@inner
def is_outside(cost: FlatCost, requests: int, rows: int) -> bool:
    """Whether a step lies beyond what was measured."""
    bounds, rows = cost.table, _padded(cost, 0, rows)
    if requests > 0 and (requests < bounds[0] or requests > bounds[1]):
        return True
    return rows < bounds[2] or rows > bounds[3]
