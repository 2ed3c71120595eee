"""What a run measures: per request and per system, warm-up removed, with confidence intervals.

Definitions, once:

- throughput: output tokens delivered by decoding per second. A prefill's own first token is not in it.
- TPS of a request: tokens after the first over the time from the first to the last. ``tps_mean`` is
  tokens over request-seconds of decoding, which is throughput / concurrency when nothing waits;
  quantiles are over requests that finished inside the window.
- inter-token latency: time between two deliveries to a request, as a streaming client sees it; the
  tokens of one step arrive together. Quantiles weigh every delivery alike.
- verification budget and accepted length: per request and step, anchor or bonus token included.
- acceptance rate: accepted over verified, bonus included in both (paper, figure 5).
- wasted fraction: draft tokens verified and then rejected, over draft tokens verified.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from simulator.cost import Floats
from simulator.errors import BadInputError
from simulator.serving import IN_FLIGHT, Engine, Step

BATCHES = 20
"""Batch means: enough batches for a t interval, few enough that each outlasts the correlation."""


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


def steps_frame(engine: Engine) -> pd.DataFrame:
    """One row per engine step, columns as in ``serving.Step``."""
    columns = list(Step._fields)
    table = np.array(engine.steps, dtype=np.float64).reshape(-1, len(columns))
    frame = pd.DataFrame(table, columns=columns)
    counts = [name for name in columns if not name.endswith("_s")]
    return frame.astype(dict.fromkeys(counts, np.int64))


def requests_frame(engine: Engine) -> pd.DataFrame:
    """One row per finished request in order of completion: its times, tokens, and derived speeds."""
    empty = np.empty((len(IN_FLIGHT), 0))
    table = dict(zip(IN_FLIGHT, np.concatenate([empty, *engine.finished], axis=1), strict=True))
    request = table["request"].astype(np.int64)
    steps = (table["last_step"] - table["first_step"]).astype(np.int64)
    tokens = table["decode_tokens"].astype(np.int64)
    decode_s = table["finished_s"] - table["first_token_s"]
    workload = engine.workload
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
            "first_step": table["first_step"].astype(np.int64),
            "decode_steps": steps,
            "ttft_s": table["first_token_s"] - table["queued_s"],
            "tpot_s": _ratio(decode_s, tokens),
            "tps": _ratio(tokens, decode_s),
            "accepted_length": _ratio(tokens, steps),
        }
    )


def measure(
    steps: pd.DataFrame, requests: pd.DataFrame, *, warmup: float = 0.2, steps_outside: int = 0
) -> Metrics:
    """Metrics over the run without its first ``warmup`` share of steps.

    The rule is a fixed share, the same for every policy compared: it depends on no outcome, so it
    cannot favour one. Raises ``BadInputError`` if less than two steps per batch remain.
    """
    if not 0 <= warmup < 1:
        raise BadInputError("must be at least 0 and below 1", field="warmup", value=warmup)
    first = int(len(steps) * warmup)
    window = steps.iloc[first:]
    if len(window) < 2 * BATCHES:
        raise BadInputError(
            f"leaves {len(window)} steps to measure, {2 * BATCHES} are needed", field="steps",
            value=len(steps), remedy="run longer or lower the warm-up share",
        )  # fmt: skip
    start_s = (
        float(steps["end_s"].iloc[first - 1])
        if first
        else float(window["end_s"].iloc[0] - window["duration_s"].iloc[0])
    )
    decode = window[window["requests"] > 0]
    done = requests[requests["finished_s"] > start_s]
    speed = done.loc[done["decode_tokens"] > 0, "tps"].to_numpy()
    tpot = done.loc[done["decode_tokens"] > 0, "tpot_s"].to_numpy()
    ttft = done["ttft_s"].to_numpy()
    elapsed = np.diff(window["end_s"].to_numpy(), prepend=start_s)
    mean, half = _rate_with_interval(window["committed_tokens"].to_numpy(), elapsed)
    rows, drafts = decode["requests"].sum(), decode["draft_tokens"].sum()
    accepted, gap = decode["accepted_tokens"].sum(), decode["gap_s"].to_numpy()
    weights, decoding_s = decode["requests"].to_numpy(), float(decode["decoding_s"].sum())
    batch = decode["requests"] + decode["draft_tokens"] + decode["prefill_tokens"]
    itl = weighted_quantile(gap, weights, [0.5, 0.99])
    return Metrics(
        throughput_tok_per_s=mean,
        throughput_ci95=half,
        tps_mean=_divide(decode["committed_tokens"].sum(), decoding_s),
        tps_p10=_quantile(speed, 0.10),
        tps_p50=_quantile(speed, 0.50),
        verification_budget_mean=_divide(rows + drafts, rows),
        accepted_length_mean=_divide(rows + accepted, rows),
        acceptance_rate=_divide(rows + accepted, rows + drafts),
        batch_tokens_mean=float(batch.mean()) if len(decode) else np.nan,
        step_time_mean_s=float(decode["duration_s"].mean()) if len(decode) else np.nan,
        wasted_fraction=_divide(drafts - accepted, drafts) if drafts else 0.0,
        itl_p50_s=float(itl[0]),
        itl_p99_s=float(itl[1]),
        ttft_mean_s=float(ttft.mean()) if ttft.size else np.nan,
        ttft_p50_s=_quantile(ttft, 0.50),
        ttft_p99_s=_quantile(ttft, 0.99),
        tpot_p50_s=_quantile(tpot, 0.50),
        tpot_p99_s=_quantile(tpot, 0.99),
        concurrency_mean=_divide(decoding_s, float(elapsed.sum())),
        queue_mean=_divide(float(window["queued_s"].sum()), float(elapsed.sum())),
        requests_finished=len(done),
        steps=len(window),
        # The step in flight when the run stopped may have been looked up as well.
        steps_outside_fraction=min(steps_outside / len(steps), 1.0),
        window_s=float(elapsed.sum()),
    )  # fmt: skip


def mean_interval(samples: NDArray[Any], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent replications and the half-width of its t interval (NaN for one sample)."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(spread * stats.t.ppf(0.5 + confidence / 2, values.size - 1))


def weighted_quantile(values: Floats, weights: NDArray[Any], at: list[float]) -> Floats:
    """Smallest value with at least that share of the weight at or below it; NaN when empty."""
    if values.size == 0:
        return np.full(len(at), np.nan)
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / np.sum(weights)
    return np.asarray(values[order][np.clip(np.searchsorted(share, at), 0, values.size - 1)])


def _rate_with_interval(tokens: NDArray[Any], elapsed: Floats) -> tuple[float, float]:
    """Tokens per second and its 95% half-width, by batch means of the ratio's residuals."""
    rate = tokens.sum() / elapsed.sum()
    residual = tokens - rate * elapsed  # zero on average; its batch sums are nearly independent
    sums = np.array([part.sum() for part in np.array_split(residual, BATCHES)])
    spread = sums.std(ddof=1) * np.sqrt(BATCHES) / elapsed.sum()
    return float(rate), float(spread * stats.t.ppf(0.975, BATCHES - 1))


def _quantile(values: NDArray[Any], at: float) -> float:
    return float(np.quantile(values, at)) if values.size else float("nan")


def _divide(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else float("nan")


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    ratio: Floats = np.full(len(top), np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio
