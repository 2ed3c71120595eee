"""Service level agreements: what was promised, and how much of it a run kept.

A term reads ``[class:]metric_statistic>=bound`` or ``<=bound``: ``tps_p10>=60``, ``chat:ttft_p99<=2s``.
A quantile is a promise to a share of requests (``ttft_p99<=2s``: at least 99% of them within 2 s;
``tps_p10>=60``: at least 90% of them at 60 tokens/s or more), and is judged as that share, whose
sampling error is known. A mean is judged as it is, and promises nothing to any one request.

``ttft+16*tpot_p99<=500ms`` bounds a sum, taken request by request: here the time to a burst of 17 tokens.

Inter-token latency is counted per delivery, not per request: ``itl_p99<=50ms`` asks that 99% of all
deliveries come within 50 ms, and a request has kept it when 99% of its own did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from simulator.cost import Floats
from simulator.errors import BadInputError
from simulator.metrics import Metrics
from simulator.statistics import BATCHES, ratio_interval, weighted_quantile
from simulator.units import parse_duration_s, parse_number

Comparison = Literal[">=", "<="]

REQUEST_METRICS: dict[str, tuple[str, Comparison]] = {
    "tps": ("tps", ">="),
    "ttft": ("ttft_s", "<="),
    "tpot": ("tpot_s", "<="),
    "itl": ("itl_s", "<="),
    "e2e": ("e2e_s", "<="),
    "accepted_length": ("accepted_length", ">="),
}
"""Metrics of a request: its column in seconds or tokens/s, and the side on which a promise bounds it."""

SUMMABLE = ("ttft", "tpot", "e2e")
"""Times of a request that can be added up with weights, as in ttft+16*tpot."""

SYSTEM_METRICS = tuple(field.name for field in fields(Metrics))
"""Metrics of the whole system, under the names in which ``metrics.Metrics`` reports them."""

GAP_RESOLUTION = 1.005
"""Gaps between deliveries are tallied in classes half a percent wide."""

ROUNDING = 1e-9
"""Relative amount by which differences of clock times may miss a gap that equals its bound."""

MATERIAL_GROWTH = 0.005
"""Growth of a queue, as a share of the arrivals, that is called saturation once chance is ruled out."""

LONGEST_TERM = 200
"""Characters of a term; matching time grows with their cube where blanks are many."""

_TERM = re.compile(r"\s*(?:([^:<>=]+):)?\s*([a-z0-9_.+* ]+?)\s*(>=|<=)\s*(\S.*?)\s*")
_STATISTIC = re.compile(r"(.+)_(mean|p[0-9]{1,2}(?:\.[0-9]+)?)")
_SUMMAND = re.compile(r"(?:([^*]+)\*)?([a-z0-9_]+)")


@dataclass(frozen=True, slots=True)
class Term:
    """One promise. bound: seconds for times, tokens/s for speeds. quantile: in (0, 1), None for a mean
    or a system metric, whose ``metric`` is then its whole name."""

    text: str
    metric: str
    quantile: float | None
    comparison: Comparison
    bound: float
    traffic_class: str | None = None

    @property
    def per_request(self) -> bool:
        """Whether each request can be said to have kept it or not."""
        return self.quantile is not None

    @property
    def key(self) -> str:
        """What is bounded, without the bound: ``chat:ttft_p99``."""
        return re.split("[<>]=", self.text)[0].strip()

    @property
    def required_share(self) -> float:
        """Share of requests (of deliveries, for itl) to which it is promised."""
        assert self.quantile is not None
        return round(self.quantile if self.comparison == "<=" else 1 - self.quantile, 12)

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of an array, is on the promised side; NaN is not."""
        return value >= self.bound if self.comparison == ">=" else value <= self.bound

    def at(self, bound: float) -> Term:
        """The same term with another bound (in seconds or tokens/s)."""
        shown = f"{bound * 1e3:.4g}ms" if self.is_time else f"{bound:.4g}"
        return Term(
            f"{self.key}{self.comparison}{shown}", self.metric, self.quantile, self.comparison, bound,
            self.traffic_class,
        )  # fmt: skip

    @property
    def is_time(self) -> bool:
        """Whether the bound is a time."""
        return _is_time(self.metric)


@dataclass(frozen=True, slots=True)
class Sla:
    """Terms that must all hold. Raises ``BadInputError`` for terms that contradict or repeat each other."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise BadInputError("promises nothing", source="sla", remedy="as in tps_p10>=60")
        for position, one in enumerate(self.terms):
            for other in self.terms[:position]:
                _refuse_contradiction(other, one)
        for term in self.terms:
            natural = "<=" if "*" in term.metric else REQUEST_METRICS.get(term.metric, (None, None))[1]
            if natural and natural != term.comparison:
                raise BadInputError(
                    "bounds the good side", source="sla", value=term.text, remedy=f"write {natural}"
                )

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse terms on traffic classes that do not exist."""
        for term in self.terms:
            if term.traffic_class is not None and term.traffic_class not in classes:
                raise BadInputError(
                    f"no traffic class {term.traffic_class!r}", source="sla", value=term.text,
                    remedy=f"one of {', '.join(classes)}",
                )  # fmt: skip

    def __str__(self) -> str:
        return ", ".join(term.text for term in self.terms)


def parse_sla(texts: Sequence[str]) -> Sla:
    """Terms as written in a scenario or on a command line; times need a unit."""
    return Sla(tuple(parse_term(text) for text in texts))


def parse_term(text: str) -> Term:
    """One term; ``BadInputError`` names what is wrong with it and what would be right."""
    match = _TERM.fullmatch(text) if len(text) <= LONGEST_TERM else None
    if match is None:
        raise _bad("is not a term", text, "write METRIC>=BOUND, as in tps_p10>=60 or chat:ttft_p99<=2s")
    traffic_class, name, comparison, bound_text = match.groups()
    metric, quantile = _metric(name, text)
    if _is_time(metric):
        bound = parse_duration_s(bound_text, field=f"sla term {text!r}")
    else:
        bound = parse_number(re.sub(r"\s*tok(ens)?/s(/user)?$", "", bound_text), field=f"sla term {text!r}")
    if bound <= 0:
        raise _bad("must bound by more than 0", text)
    if traffic_class is not None and metric in SYSTEM_METRICS:
        raise _bad("is a metric of the whole system, not of a traffic class", text)
    compact = re.sub(r"\s+", "", text)
    sided: Comparison = ">=" if comparison == ">=" else "<="
    return Term(compact, metric, quantile, sided, bound, traffic_class.strip() if traffic_class else None)


def _is_time(metric: str) -> bool:
    if "*" in metric:
        return True
    column = REQUEST_METRICS.get(metric, (metric,))[0]
    return column.endswith("_s") and not column.endswith("_per_s")


def _metric(name: str, text: str) -> tuple[str, float | None]:
    match = _STATISTIC.fullmatch(name)
    if match and (match[1] in REQUEST_METRICS or "+" in match[1] or "*" in match[1]):
        metric = match[1] if match[1] in REQUEST_METRICS else _sum(match[1], text)
        if match[2] == "mean":
            return metric, None
        quantile = float(match[2][1:]) / 100
        if not 0 < quantile < 1:
            raise _bad("has no such quantile", text, "p1 to p99.9")
        return metric, quantile
    for known in (name, f"{name}_s"):
        if known in SYSTEM_METRICS:
            return known, None
    raise _bad(
        f"names no metric ({name!r})", text,
        f"use {', '.join(REQUEST_METRICS)} with _mean or _p1 to _p99.9, a sum of times as in "
        f"ttft+16*tpot_p99, or {', '.join(SYSTEM_METRICS)}",
    )  # fmt: skip


def _sum(name: str, text: str) -> str:
    """A sum of times in one spelling, so that equal sums are seen to be equal: 1*ttft+16*tpot."""
    weights: dict[str, float] = {}
    for part in name.split("+"):
        match = _SUMMAND.fullmatch(part.strip())
        metric = match[2] if match else part.strip()
        if metric not in SUMMABLE or metric in weights:
            raise _bad(
                f"adds up {metric!r}", text,
                f"sums take each of {', '.join(SUMMABLE)} once, with weights, as in ttft+16*tpot_p99; "
                "every other metric needs a term of its own",
            )  # fmt: skip
        weight = parse_number(match[1] or "1" if match else "1", field=f"sla term {text!r}")
        if not 0 < weight <= 1e9:
            raise _bad(f"weighs {metric} by {weight:g}", text, "use weights above 0, at most 1e9")
        weights[metric] = weight
    return "+".join(f"{weights[metric]:.17g}*{metric}" for metric in SUMMABLE if metric in weights)


def _refuse_contradiction(one: Term, other: Term) -> None:
    """Two terms on one metric: bounded twice on a side, or from both sides with nothing between."""
    if (one.metric, one.traffic_class) != (other.metric, other.traffic_class):
        return
    if one.comparison == other.comparison:
        if one.quantile == other.quantile:
            raise _bad(f"says again, differently or not, what {one.text!r} says", other.text, "keep one")
        return
    lower, upper = (one, other) if one.comparison == ">=" else (other, one)
    ordered = lower.quantile == upper.quantile or (
        lower.quantile is not None and upper.quantile is not None and lower.quantile <= upper.quantile
    )
    if ordered and lower.bound > upper.bound:
        raise _bad(f"contradicts {one.text!r}: no run can meet both", other.text, "drop one of them")


def _bad(problem: str, text: str, remedy: str | None = None) -> BadInputError:
    return BadInputError(problem, source="sla", value=text, remedy=remedy)


# --- what a run delivered -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """A run as an SLA sees it: measured requests in order of arrival, and their deliveries.

    requests: columns of ``metrics.requests_frame`` and ``e2e_s``, ``deliveries`` and, per itl term,
    ``on_time BOUND``: deliveries within the bound. gap_s, gap_count: [n] classes of the time between two
    deliveries, and how often each occurred, by traffic class name.
    """

    requests: pd.DataFrame
    gaps: dict[str, tuple[Floats, Floats]]


def observe(requests: pd.DataFrame, gap: Floats, sla: Sla) -> Observed:
    """Count deliveries per request and per traffic class.

    requests: from one engine, any subset of its ``requests_frame``. gap: [decode steps of that engine]
    time since the step before, which is the gap of a request that was in both; the gap before a request's
    first delivery is its own ``first_gap_s``.
    """
    first, deliveries = requests["first_step"].to_numpy(), requests["decode_steps"].to_numpy()
    last, own = first + deliveries, requests["first_gap_s"].to_numpy()
    second = np.minimum(first + 1, last)
    counted: dict[str, Any] = {
        "e2e_s": requests["finished_s"] - requests["queued_s"],
        "deliveries": deliveries,
    }
    for term in sla.terms:
        if term.metric == "itl":
            bound = term.bound * (1 + ROUNDING)
            within = np.concatenate([[0], np.cumsum(gap <= bound)])
            counted[f"on_time {term.bound:g}"] = within[last] - within[second] + (own <= bound)
    gaps = {}
    for name, rows in requests.groupby("traffic_class", sort=True).indices.items():
        # Requests that were in this step and in the one before: those that have joined, less those that left.
        joined = np.bincount(second[rows], minlength=gap.size + 1)
        left = np.bincount(last[rows], minlength=gap.size + 1)
        mine = own[rows][deliveries[rows] > 0]
        count = np.concatenate([np.cumsum(joined - left)[: gap.size], np.ones(mine.size)])
        gaps[str(name)] = tally(np.concatenate([gap, mine]), count)
    return Observed(requests.assign(**counted), gaps)


def tally(gap_s: Floats, count: NDArray[Any]) -> tuple[Floats, Floats]:
    """Gaps put into classes ``GAP_RESOLUTION`` wide, with their counts."""
    seen = (count > 0) & (gap_s > 0)
    index = np.round(np.log(gap_s[seen]) / np.log(GAP_RESOLUTION)).astype(np.int64)
    classes, position = np.unique(index, return_inverse=True)
    counts: Floats = np.bincount(position, weights=count[seen], minlength=classes.size).astype(np.float64)
    return np.power(GAP_RESOLUTION, classes.astype(np.float64)), counts


def pool(parts: Sequence[Observed]) -> Observed:
    """Several replicas as one, requests in order of arrival."""
    requests = pd.concat([part.requests for part in parts], ignore_index=True)
    gaps = {}
    for name in sorted({name for part in parts for name in part.gaps}):
        mine = [part.gaps[name] for part in parts if name in part.gaps]
        gaps[name] = tally(np.concatenate([g for g, _ in mine]), np.concatenate([c for _, c in mine]))
    return Observed(requests.sort_values(["queued_s", "request"], ignore_index=True), gaps)


@dataclass(frozen=True, slots=True)
class TermResult:
    """How a term fared. estimate: the metric's own value (NaN when saturated). share: of the requests
    or deliveries to which it was kept, with its 95% half-width; NaN for means, where ``ci95`` is of the
    estimate."""

    term: Term
    met: bool
    estimate: float
    share: float
    ci95: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """A run against an SLA.

    attainment: share of requests that kept every per-request term, and its 95% half-width.
    goodput_per_s: such requests per second. All of it is NaN when the system is saturated: a queue
    that grows without bound has no latency to report, only one that depends on when one stops looking.
    """

    met: bool
    saturated: bool
    attainment: float
    attainment_ci95: float
    goodput_per_s: float
    requests: int
    terms: tuple[TermResult, ...]

    @property
    def failing(self) -> tuple[Term, ...]:
        """Terms that did not hold."""
        return tuple(result.term for result in self.terms if not result.met)


def assess(sla: Sla, observed: Observed, metrics: Metrics, span_s: float) -> Assessment:
    """Judge a stable run over the requests observed, which arrived within ``span_s`` seconds."""
    results = tuple(_judge(term, observed, metrics) for term in sla.terms)
    kept = np.ones(len(observed.requests), dtype=bool)
    for term in sla.terms:
        if term.per_request:
            kept &= _kept(term, observed.requests)
    share, half = ratio_interval(kept, np.ones(kept.size))
    half = max(half, unseen(share, kept.size))
    met = all(result.met for result in results)
    return Assessment(met, False, share, half, float(kept.sum() / span_s), int(kept.size), results)


def unseen(share: float, requests: int) -> float:
    """Half-width below which the interval of a share must not fall: failures too rare to have been seen.

    None among n says no more than that at most 3 in n fail (95%).
    """
    return 3 / requests if share == 1 and requests else 0.0


def saturated_assessment(sla: Sla, requests: int) -> Assessment:
    """What can be said of a saturated run: that it is one."""
    nan = float("nan")
    results = tuple(TermResult(term, False, nan, nan, nan) for term in sla.terms)
    return Assessment(False, True, nan, nan, nan, requests, results)


@dataclass(frozen=True, slots=True)
class Trend:
    """By how many requests per second a queue grows. ci95: half-width of the 95% interval of that.

    material_per_s: the least growth that matters: ``MATERIAL_GROWTH`` of the arrivals, and 5 requests in all.
    """

    slope_per_s: float
    ci95: float
    material_per_s: float

    @property
    def grows(self) -> bool:
        """Whether the queue grows by more than chance explains, and by enough to matter."""
        return self.slope_per_s - self.ci95 > 0 and self.slope_per_s >= self.material_per_s


def queue_trend(arrived_s: Floats, served_s: Floats, from_s: float, to_s: float) -> Trend:
    """Trend of the number of requests that have arrived and are not being served.

    arrived_s: [n] seconds. served_s: [n] when each would have been served had all that it waited for come
    in one piece: arrival plus the sum of ``serving.WAITS``, infinite if it is still waiting. The number
    waiting is averaged over ``BATCHES`` spans of [from_s, to_s], while requests arrive, and a straight line
    is laid through the averages. Neighbouring averages share a busy spell, so the variance of the slope is
    widened by (1 + r) / (1 - r), r being the correlation of a residual with the next one.
    """
    nothing = Trend(0.0, 0.0, np.inf)
    if not to_s > from_s:
        return nothing  # all came at once: a line that can only shrink
    edges = np.linspace(from_s, to_s, BATCHES + 1)
    middle = (edges[1:] + edges[:-1]) / 2 - (from_s + to_s) / 2
    entered, left = np.sort(arrived_s), np.sort(served_s[np.isfinite(served_s)])
    line = _mean_count(entered, edges) - _mean_count(left, edges)
    slope = float(middle @ line / (middle @ middle))
    residual = line - line.mean() - slope * middle
    square = float(residual @ residual)
    r = float(np.clip(residual[1:] @ residual[:-1] / square, 0.0, 0.9)) if square > 0 else 0.0
    spread = np.sqrt(square / (BATCHES - 2) / (middle @ middle) * (1 + r) / (1 - r))
    arrivals = int(np.searchsorted(entered, to_s) - np.searchsorted(entered, from_s))
    material = max(5.0, MATERIAL_GROWTH * arrivals) / (to_s - from_s)
    return Trend(slope, float(spread * stats.t.ppf(0.975, BATCHES - 2)), material)


def is_saturated(arrived_s: Floats, served_s: Floats, from_s: float, to_s: float) -> bool:
    """Whether the number of requests that have arrived and are not being served grows without bound."""
    return queue_trend(arrived_s, served_s, from_s, to_s).grows


def _judge(term: Term, observed: Observed, metrics: Metrics) -> TermResult:
    if term.metric in SYSTEM_METRICS:
        value = float(getattr(metrics, term.metric))
        half = metrics.throughput_ci95 if term.metric == "throughput_tok_per_s" else float("nan")
        return TermResult(term, bool(term.holds(value)), value, float("nan"), half)
    mine = observed.requests
    if term.traffic_class is not None:
        mine = mine[mine["traffic_class"] == term.traffic_class]
    if term.quantile is None:
        value, half = ratio_interval(*_mean_parts(term.metric, mine))
        return TermResult(term, bool(term.holds(value)), value, float("nan"), half)
    if term.metric == "itl":
        estimate = _gap_quantile(term, observed)
        good, of = mine[f"on_time {term.bound:g}"].to_numpy(), mine["deliveries"].to_numpy()
    else:
        values = _values(term.metric, mine).dropna().to_numpy()
        estimate = float(np.quantile(values, term.quantile)) if values.size else float("nan")
        good, of = term.holds(values), np.ones(values.size)
    share, half = ratio_interval(good, of)
    # Nothing to judge (no such request finished) is no breach.
    met = bool(share >= term.required_share - 1e-12) if of.sum() else True
    return TermResult(term, met, estimate, share, half)


def _mean_parts(metric: str, requests: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
    """A mean as sums over requests, with the definitions of ``metrics``."""
    decode_s = (requests["finished_s"] - requests["first_token_s"]).to_numpy()
    tokens, steps = requests["decode_tokens"].to_numpy(), requests["decode_steps"].to_numpy()
    if metric == "tps":
        return tokens, decode_s
    if metric == "itl":
        return decode_s, steps
    if metric == "accepted_length":
        return tokens, steps
    values = _values(metric, requests).dropna().to_numpy()
    return values, np.ones(values.size)


def _values(metric: str, requests: pd.DataFrame) -> pd.Series[float]:
    """A metric of every request. A request of one token has no TPOT, which then adds nothing to a sum."""
    if "*" not in metric:
        return requests[REQUEST_METRICS[metric][0]]
    total = pd.Series(0.0, requests.index)
    for part in metric.split("+"):
        weight, _, name = part.partition("*")
        column = requests[REQUEST_METRICS[name][0]]
        total = total + float(weight) * (column.fillna(0.0) if name == "tpot" else column)
    return total


def _kept(term: Term, requests: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each request had this term kept; a request that it does not concern counts as kept."""
    if term.metric == "itl":
        kept = requests[f"on_time {term.bound:g}"] >= term.required_share * requests["deliveries"]
    else:
        values = _values(term.metric, requests)
        kept = term.holds(values) | values.isna()
    if term.traffic_class is not None:
        kept |= requests["traffic_class"] != term.traffic_class
    return kept.to_numpy(dtype=bool)


def _gap_quantile(term: Term, observed: Observed) -> float:
    assert term.quantile is not None
    names = observed.gaps if term.traffic_class is None else [term.traffic_class]
    mine = [observed.gaps[name] for name in names if name in observed.gaps]
    if not mine:
        return float("nan")
    gap, count = np.concatenate([g for g, _ in mine]), np.concatenate([c for _, c in mine])
    return float(weighted_quantile(gap, count, [term.quantile])[0])


def _mean_count(sorted_s: Floats, edges: Floats) -> Floats:
    """Mean number of events before t, for t within each span between edges."""
    total = np.concatenate([[0.0], np.cumsum(sorted_s)])
    # The integral of N(t) from minus infinity to t is the sum over events before t of (t - event).
    before = np.searchsorted(sorted_s, edges)
    integral: Floats = before * edges - total[before]
    return np.asarray(np.diff(integral) / np.diff(edges))
