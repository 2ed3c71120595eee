"""What a run measures: per request and per system, warm-up removed, with confidence intervals.

Definitions, once:

- throughput: output tokens delivered by decoding per second. A prefill's own first token is not in it.
- TPS of a request: tokens after the first over the time from the first to the last. ``tps_mean`` is
  tokens over request-seconds of decoding, which is throughput / concurrency when nothing waits;
  quantiles are over requests that finished inside the window.
- inter-token latency: time between two deliveries to a request, as a streaming client sees it; the
  tokens of one step arrive together. The first gap runs from the first token, so what a request waits
  for a slot after a prefill pool has served it is in there. Quantiles weigh every delivery alike.
- queue: requests that have arrived and are not being served, whatever they wait for.
- verification budget and accepted length: per request and step, anchor or bonus token included.
- acceptance rate: accepted over verified, bonus included in both (paper, figure 5).
- wasted fraction: draft tokens verified and then rejected, over draft tokens verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.core.arrays import Floats, Rows
from simulator.core.errors import BadInputError
from simulator.core.statistics import (
    BATCHES,
    Weighted,
    divide,
    quantile,
    quantile_of_parts,
    rate_interval,
)
from simulator.engine.cursors import TraceCursors
from simulator.engine.measures.recorded import StepColumns
from simulator.engine.strides.serving import ServingEngine


class Table(Protocol):
    """Columns by name: a frame, or what ``Recorded`` puts together when asked for."""

    def __getitem__(self, name: str, /) -> ArrayLike:
        """Return a column, [rows]."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """A run's numbers over its measured window; NaN where nothing was there to measure."""

    throughput_tok_per_s: float
    throughput_ci95: float
    tps_mean: float
    tps_p10: float
    tps_p50: float
    verification_budget_mean: float
    accepted_length_mean: float
    acceptance_rate: float
    batch_tokens_mean: float
    step_time_mean_s: float
    wasted_fraction: float
    itl_p50_s: float
    itl_p99_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    concurrency_mean: float
    queue_mean: float
    requests_finished: int
    steps: int
    steps_outside_fraction: float
    window_s: float

    def as_row(self) -> dict[str, float]:
        """Column name to value."""
        return asdict(self)

    def without_waiting(self, *, decoding_waits: bool) -> Metrics:
        """Leave out what contains a wait in a queue that grows: NaN instead.

        Such a number would only say how long one looked. decoding_waits: requests wait between their first
        and their second token as well (behind a prefill pool), so speeds and gaps contain it too.
        """
        names = ["ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "queue_mean"]
        if decoding_waits:
            names += ["tps_mean", "tps_p10", "tps_p50", "itl_p50_s", "itl_p99_s", "tpot_p50_s", "tpot_p99_s"]
        unknown: dict[str, Any] = dict.fromkeys(names, float("nan"))
        return replace(self, **unknown)


FirstGap = tuple[Rows, Floats, Floats]
"""First deliveries, [n] each: the number of the decode step, the gap before it, and the step's own gap."""


@dataclass(frozen=True, slots=True)
class FirstGaps:
    """Every request's first delivery so far, some at a time, in order of joining.

    Requests that are still under way count, unlike in ``requests_frame``: a run cut short would otherwise
    see only those that were quick.
    """

    engine: ServingEngine

    def __iter__(self) -> Iterator[FirstGap]:
        steps = self.engine.steps
        for part in self.engine.finished().joined.parts():
            step = part.column("first_step").astype(np.int64)
            served = (part.column("decode_tokens") > 0) & (step < steps.decode_steps)
            step, first_token_s = step[served], part.column("first_token_s")[served]
            gap_s = steps.of_decode_steps("end_s", step) - first_token_s
            yield step, gap_s, steps.of_decode_steps("gap_s", step)


@dataclass(frozen=True, slots=True, eq=False)
class Walks:
    """What each request, finished or not, did so far, [n] each.

    first_step, last_step: decode steps in which it took part, the last one excluded. tokens: delivered in
    these. reuse: how much the outcomes read scatter beyond as many read once (``TraceCursors.reuse``).
    """

    request: NDArray[np.int64]
    first_step: NDArray[np.int64]
    last_step: NDArray[np.int64]
    tokens: NDArray[np.int64]
    reuse: float = 1.0

    def residuals(self, rate: float, elapsed: Floats, rows: NDArray[Any], begin: int) -> Floats:
        """Tokens of each request from step ``begin`` on, less ``rate`` times its share of the time.

        elapsed, rows: [decode steps], time from delivery to delivery, s, and requests that share it. Tokens
        of a request that was under way before count in proportion to its steps.
        """
        share = np.concatenate([[0.0], np.cumsum(elapsed / rows)])
        entered = np.maximum(self.first_step, begin)
        here = self.last_step > entered
        first, last, entered = self.first_step[here], self.last_step[here], entered[here]
        tokens = self.tokens[here] * (last - entered) / (last - first)
        residual = tokens - rate * (share[last] - share[entered])
        residual[np.abs(residual) < 1e-9] = 0.0  # tokens: rounding, where every request is alike
        # A closed loop may meet a request again, with the same lengths and drafts: one cluster.
        _, cluster = np.unique(self.request[here], return_inverse=True)
        summed: Floats = np.bincount(cluster, weights=residual).astype(np.float64)
        return summed


def walks(engine: ServingEngine) -> Walks:
    """Who read how much of the recorded acceptance, in a run so far."""
    finished, under_way = engine.finished(), engine.decoding()
    decode_steps = engine.delivery_s().size
    last_step = np.concatenate([finished["last_step"], np.full(under_way["request"].size, decode_steps)])
    request, first_step, tokens, remaining = (
        np.concatenate([finished[name], under_way[name]]).astype(np.int64)
        for name in ("request", "first_step", "decode_tokens", "remaining")
    )
    tokens = tokens - remaining
    cursors = getattr(engine.executor, "traces", None)
    reuse = cursors.reuse(request, tokens) if isinstance(cursors, TraceCursors) else 1.0
    return Walks(request, first_step, last_step.astype(np.int64), tokens, reuse)


def measure(
    steps: Table,
    requests: Table,
    *,
    first: Iterable[FirstGap] = (),
    walked: Walks | None = None,
    warmup: float = 0.2,
    steps_outside: int = 0,
) -> Metrics:
    """Metrics over the run without its first ``warmup`` share of steps.

    first: ``FirstGaps`` of the engine; none where every request had a delivery before these steps.
    walked: ``walks`` of an engine in a closed loop, whose throughput is its requests' own; in an open loop it
        is what arrives, and only batches of steps know how that scatters.

    The rule is a fixed share, the same for every policy compared: it depends on no outcome, so it
    cannot favour one. Raises ``BadInputError`` if less than two steps per batch remain.
    """
    if not 0 <= warmup < 1:
        raise BadInputError("must be at least 0 and below 1", field="warmup", value=warmup)
    window = _Window.of(steps, warmup)
    start_s, elapsed = window.clock()
    (mean, half), window_s, measured = (
        _throughput(window, elapsed, walked),
        float(elapsed.sum()),
        elapsed.size,
    )
    del elapsed  # a long run's columns are there as long as they are needed
    done = np.asarray(requests["finished_s"]) > start_s
    decoded = done & (np.asarray(requests["decode_tokens"]) > 0)
    ttft, ttft_quantiles = _quantiles(requests, "ttft_s", done, [0.50, 0.99])
    _, speed_quantiles = _quantiles(requests, "tps", decoded, [0.10, 0.50])
    _, tpot_quantiles = _quantiles(requests, "tpot_s", decoded, [0.50, 0.99])
    rows, drafts, accepted, committed, prefill = window.sums(
        "requests", "draft_tokens", "accepted_tokens", "committed_tokens", "prefill_tokens"
    )
    decoding_s, handover_s = (float(window.decode(name).sum()) for name in ("decoding_s", "handover_s"))
    newcomers = list(_newcomers(window, first))
    itl = quantile_of_parts(lambda: _gaps(window, newcomers), [0.5, 0.99])
    return Metrics(
        throughput_tok_per_s=mean,
        throughput_ci95=half,
        tps_mean=divide(committed, decoding_s + handover_s),
        tps_p10=speed_quantiles[0],
        tps_p50=speed_quantiles[1],
        verification_budget_mean=divide(rows + drafts, rows),
        accepted_length_mean=divide(rows + accepted, rows),
        acceptance_rate=divide(rows + accepted, rows + drafts),
        batch_tokens_mean=divide(rows + drafts + prefill, window.decode_steps),
        step_time_mean_s=_mean(window.decode("duration_s")),
        wasted_fraction=divide(drafts - accepted, drafts) if drafts else 0.0,
        itl_p50_s=float(itl[0]),
        itl_p99_s=float(itl[1]),
        ttft_mean_s=ttft,
        ttft_p50_s=ttft_quantiles[0],
        ttft_p99_s=ttft_quantiles[1],
        tpot_p50_s=tpot_quantiles[0],
        tpot_p99_s=tpot_quantiles[1],
        concurrency_mean=divide(decoding_s, window_s),
        queue_mean=divide(float(window.every("queued_s").sum()), window_s),
        requests_finished=int(done.sum()),
        steps=measured,
        # The step in flight when the run stopped may have been looked up as well.
        steps_outside_fraction=min(steps_outside / window.decoding.size, 1.0),
        window_s=window_s,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Window:
    """The measured steps: all from ``begin`` on. decoding: [steps], whether each one decodes."""

    steps: Table
    begin: int
    decoding: NDArray[np.bool_]

    @classmethod
    def of(cls, steps: Table, warmup: float) -> _Window:
        decoding = np.asarray(steps["requests"]) > 0
        begin = int(decoding.size * warmup)
        measured = decoding.size - begin
        if measured < 2 * BATCHES:
            raise BadInputError(
                f"leaves {measured} steps to measure, {2 * BATCHES} are needed", field="steps",
                value=decoding.size, remedy="run longer or lower the warm-up share",
            )  # fmt: skip
        return cls(steps, begin, decoding)

    @property
    def earlier(self) -> int:
        """Decode steps before the window."""
        return int(self.decoding[: self.begin].sum())

    @property
    def decode_steps(self) -> int:
        """Decode steps in the window."""
        return int(self.decoding[self.begin :].sum())

    def every(self, name: str) -> NDArray[Any]:
        """Return a column of all measured steps."""
        return np.asarray(self.steps[name])[self.begin :]

    def decode(self, name: str) -> NDArray[Any]:
        """Return a column of the measured decode steps."""
        column, decoding = self.every(name), self.decoding[self.begin :]
        return column if decoding.all() else column[decoding]

    def parts(self, *names: str) -> Iterator[list[NDArray[Any]]]:
        """Go through columns of the measured decode steps, in parts where the table has parts."""
        end = 0
        for columns in _parts(self.steps, names):
            begin, end = end, end + len(columns[0])
            which = self.decoding[begin:end].copy()
            which[: max(0, self.begin - begin)] = False
            yield columns if which.all() else [column[which] for column in columns]

    def sums(self, *names: str) -> Iterator[int]:
        """Sum counts over the measured decode steps."""
        return map(
            sum, zip(*([int(column.sum()) for column in part] for part in self.parts(*names)), strict=True)
        )

    def clock(self) -> tuple[float, Floats]:
        """Return when the window begins, and the time that each of its steps adds to the clock."""
        ends = np.asarray(self.steps["end_s"])
        if self.begin:
            start_s = float(ends[self.begin - 1])
        else:
            start_s = float(ends[0] - np.asarray(self.steps["duration_s"])[0])
        elapsed = np.empty(ends.size - self.begin)
        elapsed[0] = ends[self.begin] - start_s
        np.subtract(ends[self.begin + 1 :], ends[self.begin : -1], out=elapsed[1:])
        return start_s, elapsed


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else np.nan


def _quantiles(
    requests: Table, name: str, which: NDArray[np.bool_], at: Sequence[float]
) -> tuple[float, list[float]]:
    """Return the mean and quantiles of a column over some requests."""
    values = np.asarray(requests[name])[which]
    return _mean(values), [quantile(values, share) for share in at]


def _throughput(window: _Window, elapsed: Floats, walked: Walks | None) -> tuple[float, float]:
    """Tokens per second over the window and its half-width."""
    tokens, begin, decoding = window.every("committed_tokens"), window.begin, window.decoding
    if walked is None or not decoding[begin:].any():
        return rate_interval(tokens, elapsed)
    before, ends = window.earlier, np.asarray(window.steps["end_s"])
    # Time from delivery to delivery, so that prefill in between is shared by those who waited for it.
    delivered = ends[decoding]
    gap = np.diff(delivered, prepend=0.0)
    gap[before] = delivered[before] - (float(ends[begin]) - elapsed[0])
    rate = float(tokens.sum() / elapsed.sum())
    residual = walked.residuals(rate, gap, np.asarray(window.steps["requests"])[decoding], before)
    return rate_interval(tokens, elapsed, by_request=residual, reuse=walked.reuse)


def _gaps(window: _Window, newcomers: Sequence[Weighted]) -> Iterator[Weighted]:
    """Gaps before all deliveries of a window, and how many deliveries had each, in parts.

    A step's own gap is that of the requests that were in the step before it.
    """
    yield from ((gap, count) for gap, count in window.parts("gap_s", "requests"))
    yield from newcomers


def _newcomers(window: _Window, first: Iterable[FirstGap]) -> Iterator[Weighted]:
    """Gaps of newcomers, where they differ from the step's own, which each takes the place of."""
    for step, own, replaced in first:
        apart = (step >= window.earlier) & (own != replaced)
        one = np.ones(np.count_nonzero(apart), dtype=np.int8)
        yield own[apart], one
        yield replaced[apart], -one


def _parts(steps: Table, names: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
    """Go through columns of all steps; what is not recorded in parts comes whole."""
    if isinstance(steps, StepColumns):
        yield from steps.parts(*names)
    else:
        yield [np.asarray(steps[name]) for name in names]
