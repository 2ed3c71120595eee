"""SGLang's recorded decode steps as arrays: who was in a step, what was predicted, verified and accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Rows
from simulator.core.errors import BadInputError
from simulator.cost.believed import BelievedTable
from simulator.interop.records import Record
from simulator.interop.sglang_dump import UNCENSORED_MODES, open_dump, verdict


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One decode step of one rank, R requests in the order of the dump.

    identity: int64 [R], the same number for a request in each of its steps. survival: float32 [R, gamma], NaN
    in a row without confidences. lengths: int64 [R], drafts verified. accepted: int64 [R], accepted drafts as
    far as known; censored: bool [R], that more than those would have been, perhaps.
    budget, graph_rows, predicted_s, measured_s: as the engine wrote them, None where it did not.
    """

    forward_ct: int
    identity: Rows
    survival: NDArray[np.float32]
    context_tokens: float
    lengths: Rows
    accepted: Rows
    censored: NDArray[np.bool_]
    budget: int | None = None
    graph_rows: int | None = None
    predicted_s: float | None = None
    measured_s: float | None = None

    @property
    def requests(self) -> int:
        """Requests in the step."""
        return len(self.identity)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """All steps of a dump, by data-parallel rank, each in the order in which it ran."""

    source: str
    mode: str
    gamma: int
    ranks: tuple[tuple[Step, ...], ...]

    @property
    def censored(self) -> bool:
        """Whether drafts that were not verified have an unknown outcome."""
        return self.mode not in UNCENSORED_MODES

    @property
    def graphs(self) -> tuple[int, ...]:
        """Rows of the graphs in which steps ran, rising, as far as the dump tells."""
        seen = {step.graph_rows for rank in self.ranks for step in rank if step.graph_rows is not None}
        return tuple(sorted(seen))

    def own_table(self) -> BelievedTable:
        """Read a cost table out of the dump: by rows, the median of the times that the engine predicted.

        Of the times on the GPU where it predicted none. Sizes between are interpolated, and that a step's
        requests count too is left out. Raises ``BadInputError`` where fewer than two sizes have times.
        """
        for name in ("predicted_s", "measured_s"):
            times: dict[int, list[float]] = {}
            for step in (each for rank in self.ranks for each in rank):
                time_s = getattr(step, name)
                if time_s is not None and time_s > 0:
                    times.setdefault(step.requests + int(step.lengths.sum()), []).append(time_s)
            if len(times) > 1:
                rows = sorted(times)
                return BelievedTable(0.0, [1.0], [0.0], rows, [float(np.median(times[n])) for n in rows])
        raise BadInputError(
            "has no step times of two sizes to read a table out of", source=self.source,
            field="predicted_step_ms", remedy="give the engine's own: --table FILE.json",
        )  # fmt: skip

    def lagged(self, rank: int, index: int, lag: int) -> NDArray[np.float32] | None:
        """Survival of a step's requests ``lag`` steps before, 1 for those not there yet, [R, gamma].

        None where the dump does not reach back so far, or lacks confidences there.
        """
        if index < lag:
            return None
        now, past = self.ranks[rank][index], self.ranks[rank][index - lag]
        rows = {who: row for row, who in enumerate(past.identity.tolist())}
        survival = np.ones_like(now.survival)
        for row, who in enumerate(now.identity.tolist()):
            if who in rows:
                survival[row] = past.survival[rows[who]]
        return None if np.isnan(survival).any() else survival


def load_recording(path: Path | str) -> Recording:
    """Read a saved ``/server_info`` answer, or one record out of it, step by step.

    Raises ``BadInputError`` as ``load_step_dump`` does, and where no step has confidences.
    """
    dump = open_dump(path)
    ranks = tuple(_rank(record, dump.mode, dump.gamma) for record in dump.ranks)
    if not any(ranks):
        raise BadInputError(
            "hold no requests", source=dump.source, field="records", remedy="record the component reqs"
        )
    if all(np.isnan(step.survival).any() for rank in ranks for step in rank):
        raise BadInputError(
            "has no step with the confidences of all its requests: nothing can be decided again",
            source=dump.source, field="confidence", remedy="record the component confidence too",
        )  # fmt: skip
    return Recording(dump.source, dump.mode, dump.gamma, ranks)


def _rank(record: Record, mode: str, gamma: int) -> tuple[Step, ...]:
    named, steps = _Identities(), []
    for step in record.records("records"):
        if step.has("reqs") and (requests := step.records("reqs")):
            steps.append(_step(step, requests, named.of(requests), mode, gamma))
    return tuple(steps)


def _step(step: Record, requests: Sequence[Record], identity: Rows, mode: str, gamma: int) -> Step:
    verdicts = np.array([verdict(request, mode, gamma) for request in requests], dtype=np.int64)
    lengths = np.array([request.whole("verify_len") - 1 for request in requests], dtype=np.int64)
    if lengths.min() < 0 or lengths.max() > gamma:
        raise step.error("verify_len", f"must lie in 1..{gamma + 1}, the anchor included")
    known, accepted = verdicts[:, 0], verdicts[:, 1]
    prefix = [request.whole("prefix_len") if request.has("prefix_len") else 0 for request in requests]
    graph = step.whole("verify_tokens_graph_key") if step.has("verify_tokens_graph_key") else None
    return Step(
        step.whole("forward_ct"), identity, np.array([_survival(request, gamma) for request in requests]),
        float(sum(prefix)), lengths, accepted, (accepted == known) & (known < gamma),
        step.whole("budget") if step.has("budget") else None, graph,
        _seconds(step, "predicted_step_ms"), _seconds(step, "step_gpu_ms"),
    )  # fmt: skip


def _survival(request: Record, gamma: int) -> NDArray[np.float32]:
    """Survival as the engine had it; out of the confidences where it was not recorded."""
    for name in ("survival", "confidence"):
        if not request.has(name):
            continue
        values = request.numbers(name)
        if len(values) != gamma or not all(0 <= value <= 1 for value in values):
            raise request.error(name, f"must be {gamma} values within 0..1", values)
        row = np.array(values, dtype=np.float32)
        if name == "confidence":
            return np.cumprod(row, dtype=np.float32)
        if np.any(np.diff(row) > 0):
            raise request.error(name, "must not rise along a block", values, "record it again")
        return row
    return np.full(gamma, np.nan, dtype=np.float32)


def _seconds(step: Record, key: str) -> float | None:
    return step.number(key) / 1000 if step.has(key) else None


class _Identities:
    """Numbers for requests: by ``rid``, else by slot, which a new request may take over."""

    def __init__(self) -> None:
        self._there: dict[object, tuple[int, int]] = {}  # by key: number and prefix in the step before
        self._next = 0

    def of(self, requests: Sequence[Record]) -> Rows:
        """Return the numbers of a step's requests; who was not in the step before is new."""
        there: dict[object, tuple[int, int]] = {}
        for request in requests:
            key: object = request.text("rid") if request.has("rid") else request.whole("req_pool_index")
            prefix = request.whole("prefix_len") if request.has("prefix_len") else 0
            number, before = self._there.get(key, (self._next, 0))
            if number == self._next or prefix < before:
                number, self._next = self._next, self._next + 1
            if key in there:
                raise request.error("req_pool_index", "is in the step twice", key, "export the file again")
            there[key] = (number, prefix)
        self._there = there
        return np.array([number for number, _ in there.values()], dtype=np.int64)
