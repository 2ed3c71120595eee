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

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.statistics import BATCHES, divide, divide_each, quantile, rate_interval, weighted_quantile
from simulator.engine.batch import WAITS
from simulator.engine.cursors import TraceCursors
from simulator.engine.strides.serving import ServingEngine

Columns = dict[str, NDArray[Any]]


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


def steps_frame(engine: ServingEngine) -> pd.DataFrame:
    """One row per engine step, columns as in ``engine.batch.Step``."""
    columns = engine.steps.columns()
    for name in columns:
        if not name.endswith("_s"):
            columns[name] = columns[name].astype(np.int64)
    return pd.DataFrame(columns, copy=False)


def requests_frame(engine: ServingEngine) -> pd.DataFrame:
    """One row per finished request in order of completion: its times, tokens, waits and derived speeds.

    first_gap_s: from its first token to its next delivery, NaN where there was none. waited_*_s: see
    ``engine.batch.WAITS``. ttft_s: NaN in a closed loop whose prompts are prefilled elsewhere, which nobody
    timed.
    """
    table = engine.finished()
    request = table["request"].astype(np.int64)
    first_step = table["first_step"].astype(np.int64)
    steps = table["last_step"].astype(np.int64) - first_step
    tokens = table["decode_tokens"].astype(np.int64)
    decode_s = table["finished_s"] - table["first_token_s"]
    first_gap_s = np.full(len(request), np.nan)
    decoded = steps > 0
    first_gap_s[decoded] = engine.delivery_s()[first_step[decoded]] - table["first_token_s"][decoded]
    workload = engine.workload
    ttft_s = table["first_token_s"] - table["queued_s"]
    if workload.is_closed_loop and engine.limits.prefill == "elsewhere":
        ttft_s = np.full(len(request), np.nan)  # its next request is there, prefilled, when a slot frees
    return pd.DataFrame(
        {
            "request": request,
            "traffic_class": np.asarray(workload.classes, dtype=object)[workload.class_index[request]],
            "prompt_tokens": workload.prompt_tokens[request],
            "output_tokens": workload.output_tokens[request],
            "queued_s": table["queued_s"],
            "admitted_s": table["admitted_s"],
            "first_token_s": table["first_token_s"],
            "finished_s": table["finished_s"],
            "decode_tokens": tokens,
            "first_step": first_step,
            "decode_steps": steps,
            "ttft_s": ttft_s,
            "first_gap_s": first_gap_s,
            "tpot_s": divide_each(decode_s, tokens),
            "tps": divide_each(tokens, decode_s),
            "accepted_length": divide_each(tokens, steps),
            **{name: table[name] for name in WAITS},
        }
    )


def first_gaps(engine: ServingEngine) -> tuple[NDArray[np.int64], Floats]:
    """Every request's first delivery so far: the number of its decode step and the gap before it, [n] each.

    Requests that are still under way count, unlike in ``requests_frame``: a run cut short would otherwise
    see only those that were quick.
    """
    finished, under_way = engine.finished(), engine.decoding()
    step, first_token_s, tokens = (
        np.concatenate([finished[name], under_way[name]])
        for name in ("first_step", "first_token_s", "decode_tokens")
    )
    delivery_s, step = engine.delivery_s(), step.astype(np.int64)
    served = (tokens > 0) & (step < delivery_s.size)
    return step[served], delivery_s[step[served]] - first_token_s[served]


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
    steps: pd.DataFrame,
    requests: pd.DataFrame,
    *,
    first: tuple[NDArray[np.int64], Floats] | None = None,
    walked: Walks | None = None,
    warmup: float = 0.2,
    steps_outside: int = 0,
) -> Metrics:
    """Metrics over the run without its first ``warmup`` share of steps.

    first: ``first_gaps`` of the engine; None where every request had a delivery before these steps.
    walked: ``walks`` of an engine in a closed loop, whose throughput is its requests' own; in an open loop it
        is what arrives, and only batches of steps know how that scatters.

    The rule is a fixed share, the same for every policy compared: it depends on no outcome, so it
    cannot favour one. Raises ``BadInputError`` if less than two steps per batch remain.
    """
    if not 0 <= warmup < 1:
        raise BadInputError("must be at least 0 and below 1", field="warmup", value=warmup)
    begin = int(len(steps) * warmup)
    measured = len(steps) - begin
    if measured < 2 * BATCHES:
        raise BadInputError(
            f"leaves {measured} steps to measure, {2 * BATCHES} are needed", field="steps",
            value=len(steps), remedy="run longer or lower the warm-up share",
        )  # fmt: skip
    # By columns: pandas would take most of the time of a short cell.
    every = {str(name): column.to_numpy() for name, column in steps.items()}
    window = {name: column[begin:] for name, column in every.items()}
    decoding = window["requests"] > 0
    decode = window if decoding.all() else {name: column[decoding] for name, column in window.items()}
    start_s = float(every["end_s"][begin - 1] if begin else window["end_s"][0] - window["duration_s"][0])
    done = requests["finished_s"].to_numpy() > start_s
    decoded = done & (requests["decode_tokens"].to_numpy() > 0)
    speed, tpot = requests["tps"].to_numpy()[decoded], requests["tpot_s"].to_numpy()[decoded]
    ttft = requests["ttft_s"].to_numpy()[done]
    elapsed = np.diff(window["end_s"], prepend=start_s)
    mean, half = _throughput(window, elapsed, decode, every, begin, walked)
    rows, drafts = decode["requests"].sum(), decode["draft_tokens"].sum()
    accepted, decoding_s = decode["accepted_tokens"].sum(), float(decode["decoding_s"].sum())
    batch = decode["requests"] + decode["draft_tokens"] + decode["prefill_tokens"]
    itl = weighted_quantile(*_gaps(decode, first, int((every["requests"][:begin] > 0).sum())), [0.5, 0.99])
    return Metrics(
        throughput_tok_per_s=mean,
        throughput_ci95=half,
        tps_mean=divide(decode["committed_tokens"].sum(), decoding_s + float(decode["handover_s"].sum())),
        tps_p10=quantile(speed, 0.10),
        tps_p50=quantile(speed, 0.50),
        verification_budget_mean=divide(rows + drafts, rows),
        accepted_length_mean=divide(rows + accepted, rows),
        acceptance_rate=divide(rows + accepted, rows + drafts),
        batch_tokens_mean=float(batch.mean()) if batch.size else np.nan,
        step_time_mean_s=float(decode["duration_s"].mean()) if batch.size else np.nan,
        wasted_fraction=divide(drafts - accepted, drafts) if drafts else 0.0,
        itl_p50_s=float(itl[0]),
        itl_p99_s=float(itl[1]),
        ttft_mean_s=float(ttft.mean()) if ttft.size else np.nan,
        ttft_p50_s=quantile(ttft, 0.50),
        ttft_p99_s=quantile(ttft, 0.99),
        tpot_p50_s=quantile(tpot, 0.50),
        tpot_p99_s=quantile(tpot, 0.99),
        concurrency_mean=divide(decoding_s, float(elapsed.sum())),
        queue_mean=divide(float(window["queued_s"].sum()), float(elapsed.sum())),
        requests_finished=int(done.sum()),
        steps=measured,
        # The step in flight when the run stopped may have been looked up as well.
        steps_outside_fraction=min(steps_outside / len(steps), 1.0),
        window_s=float(elapsed.sum()),
    )  # fmt: skip


def _throughput(
    window: Columns,
    elapsed: Floats,
    decode: Columns,
    steps: Columns,
    begin: int,
    walked: Walks | None,
) -> tuple[float, float]:
    """Tokens per second over the window and its half-width."""
    tokens = window["committed_tokens"]
    if walked is None or not decode["requests"].size:
        return rate_interval(tokens, elapsed)
    decoding = steps["requests"] > 0
    before = int(decoding[:begin].sum())
    # Time from delivery to delivery, so that prefill in between is shared by those who waited for it.
    ends = steps["end_s"][decoding]
    gap = np.diff(ends, prepend=0.0)
    gap[before] = ends[before] - (float(window["end_s"][0]) - elapsed[0])
    rate = float(tokens.sum() / elapsed.sum())
    residual = walked.residuals(rate, gap, steps["requests"][decoding], before)
    return rate_interval(tokens, elapsed, by_request=residual, reuse=walked.reuse)


def _gaps(
    decode: Columns, first: tuple[NDArray[np.int64], Floats] | None, earlier: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Gaps before all deliveries of a window, and how many deliveries had each.

    decode: its decode steps, before which there were ``earlier`` ones. A step's own gap is that of the
    requests that were in the step before it; newcomers have their own.
    """
    gap, count = decode["gap_s"], decode["requests"]
    if first is None:
        return gap, count
    step, own = first[0] - earlier, first[1]
    step, own = step[step >= 0], own[step >= 0]
    there_before = count - np.bincount(step, minlength=count.size)
    return np.concatenate([gap, own]), np.concatenate([there_before, np.ones(own.size, dtype=np.int64)])
