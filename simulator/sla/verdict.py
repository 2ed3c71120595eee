"""Judge a run against an SLA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats
from simulator.core.statistics import ratio_interval, weighted_quantile
from simulator.core.units import share_within
from simulator.engine.measures.metrics import Metrics
from simulator.sla.observed import Observed
from simulator.sla.terms import REQUEST_METRICS, SYSTEM_METRICS, Sla, Term


@dataclass(frozen=True, slots=True)
class TermResult:
    """The result of one term.

    estimate: the metric's own value (NaN when saturated). share: of the requests or deliveries that kept the
    term, with its 95% half-width ``ci95``; NaN for means, whose ``ci95`` belongs to the estimate. requests:
    the number of requests judged.
    """

    term: Term
    met: bool
    estimate: float
    share: float
    ci95: float
    requests: int

    def shown(self) -> str:
        """Return the attained value with unit and 95% interval: ``1.2 s, kept by 99.40% ± 0.30%``."""
        if math.isnan(self.estimate):
            return "not measured"
        scale, unit = self.term.unit_for(self.estimate)
        value = f"{self.estimate / scale:.4g}"
        if self.term.per_request:
            return f"{value}{unit}, kept by {share_within(self.share, self.ci95, 2)}"
        return f"{value}{unit}" if math.isnan(self.ci95) else f"{value} ± {self.ci95 / scale:.2g}{unit}"

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TermResult:
        """Rebuild the result from the values of ``dataclasses.asdict``."""
        return cls(**{**row, "term": Term(**row["term"])})

    def verdict(self) -> dict[str, Any]:
        """Return what was asked and what was attained, as plain values; times in s, speeds in tokens/s.

        ``share_asked``, ``share_kept`` and its half-width are NaN for a mean; ``attained_ci95`` is NaN for a
        quantile.
        """
        term, nan = self.term, float("nan")
        shared = term.per_request
        return {
            "term": term.text,
            "metric": term.metric,
            "statistic": term.statistic,
            "traffic_class": term.traffic_class,
            "comparison": term.comparison,
            "asked": term.bound,
            "attained": self.estimate,
            "attained_ci95": nan if shared else self.ci95,
            "share_asked": term.required_share if shared else nan,
            "share_kept": self.share,
            "share_kept_ci95": self.ci95 if shared else nan,
            "requests": self.requests,
            "holds": self.met,
        }


@dataclass(frozen=True, slots=True)
class Assessment:
    """A run judged against an SLA.

    attainment: share of requests that kept every per-request term, and its 95% half-width.
    goodput_per_s: such requests per second. All three are NaN when the system is saturated: the latency of a
    queue that grows without bound depends only on the length of the run.
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
        """The terms that do not hold."""
        return tuple(result.term for result in self.terms if not result.met)

    @property
    def promises_each(self) -> bool:
        """Whether a term promises something to each request; otherwise attainment has no meaning."""
        return any(each.term.per_request for each in self.terms)

    def verdict(self) -> dict[str, Any]:
        """Return every term and the whole as nested plain values; NaN where saturated."""
        return {
            "holds": self.met,
            "saturated": self.saturated,
            "requests_judged": self.requests,
            "attainment": self.attainment if self.promises_each else math.nan,
            "attainment_ci95": self.attainment_ci95 if self.promises_each else math.nan,
            "goodput_per_s": self.goodput_per_s,
            "terms": [each.verdict() for each in self.terms],
        }


def assess(sla: Sla, observed: Observed, metrics: Metrics, span_s: float) -> Assessment:
    """Judge a stable run by the observed requests, which arrived within ``span_s`` seconds."""
    results = tuple(_judge(term, observed, metrics) for term in sla.terms)
    kept = np.ones(observed.count, dtype=bool)
    for term in sla.terms:
        if term.per_request:
            kept &= _kept(term, observed)
    share, half = ratio_interval(kept, np.ones(kept.size))
    half = by_rule_of_three(share, half, kept.size)
    met = all(result.met for result in results)
    return Assessment(met, False, share, half, float(kept.sum() / span_s), int(kept.size), results)


def by_rule_of_three(share: float, half: float, requests: int) -> float:
    """Return the 95% half-width of a share of requests: 3 in n where none of n failed, else ``half``.

    No failure among n requests excludes only shares of failures above 3 in n (Hanley and Lippman-Hand,
    JAMA 249, 1983), however many replications or batches found none.
    """
    return 3 / requests if share == 1 and requests else half


def saturated_assessment(sla: Sla, requests: int) -> Assessment:
    """Judge a saturated run: no term holds, and no latency is known."""
    nan = float("nan")
    results = tuple(TermResult(term, False, nan, nan, nan, requests) for term in sla.terms)
    return Assessment(False, True, nan, nan, nan, requests, results)


def _judge(term: Term, observed: Observed, metrics: Metrics) -> TermResult:
    if term.metric in SYSTEM_METRICS:
        value = float(getattr(metrics, term.metric))
        half = metrics.throughput_ci95 if term.metric == "throughput_tok_per_s" else float("nan")
        return TermResult(term, bool(term.holds(value)), value, float("nan"), half, observed.count)
    concerned = _concerned(term, observed)
    mine, count = observed.requests, int(concerned.sum())
    if count < observed.count:
        mine = {name: column[concerned] for name, column in mine.items()}
    if term.quantile is None:
        value, half = ratio_interval(*_mean_parts(term.metric, mine))
        return TermResult(term, bool(term.holds(value)), value, float("nan"), half, count)
    if term.metric == "itl":
        estimate = _gap_quantile(term, observed)
        good, of = observed.on_time[term.bound][concerned], mine["deliveries"]
    else:
        values = _known(metric_values(term.metric, mine))
        estimate = float(np.quantile(values, term.quantile)) if values.size else float("nan")
        good, of = term.holds(values), np.ones(values.size)
    share, half = ratio_interval(good, of)
    half = by_rule_of_three(share, half, count)
    # Without a finished request of the class there is nothing to judge, and no breach.
    met = bool(share >= term.required_share - 1e-12) if of.sum() else True
    return TermResult(term, met, estimate, share, half, count)


def _mean_parts(metric: str, requests: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a mean as two sums over requests, defined as in ``engine.measures.metrics``."""
    decode_s = requests["finished_s"] - requests["first_token_s"]
    tokens, steps = requests["decode_tokens"], requests["decode_steps"]
    if metric == "tps":
        return tokens, decode_s
    if metric == "itl":
        return decode_s, steps
    if metric == "accepted_length":
        return tokens, steps
    values = _known(metric_values(metric, requests))
    return values, np.ones(values.size)


def _known(values: Floats) -> Floats:
    """Leave out what is not known of a request."""
    return values[~np.isnan(values)]


def metric_values(metric: str, requests: Mapping[str, NDArray[Any]]) -> Floats:
    """Return a metric of every request. A request of one token has no TPOT; it adds nothing to a sum."""
    if "*" not in metric:
        return requests[REQUEST_METRICS[metric][0]]
    total = np.zeros(requests["request"].size)
    for part in metric.split("+"):
        weight, _, name = part.partition("*")
        column = requests[REQUEST_METRICS[name][0]]
        total = total + float(weight) * (
            np.where(np.isnan(column), 0.0, column) if name == "tpot" else column
        )
    return total


def _concerned(term: Term, observed: Observed) -> NDArray[np.bool_]:
    """Whether a term applies to each request, [requests]: to its traffic class, or to all."""
    if term.traffic_class is None:
        return np.ones(observed.count, dtype=bool)
    return np.asarray(observed.requests["traffic_class"] == term.traffic_class, dtype=bool)


def _kept(term: Term, observed: Observed) -> NDArray[np.bool_]:
    """Whether each request kept this term; a request to which the term does not apply counts as kept."""
    requests = observed.requests
    if term.metric == "itl":
        deliveries = requests["deliveries"]
        kept = observed.on_time[term.bound] >= term.required_share * deliveries
    else:
        values = metric_values(term.metric, requests)
        kept = term.holds(values) | np.isnan(values)
    return np.asarray(kept | ~_concerned(term, observed), dtype=bool)


def _gap_quantile(term: Term, observed: Observed) -> float:
    assert term.quantile is not None
    names = observed.gaps if term.traffic_class is None else [term.traffic_class]
    mine = [observed.gaps[name] for name in names if name in observed.gaps]
    if not mine:
        return float("nan")
    gap, count = np.concatenate([g for g, _ in mine]), np.concatenate([c for _, c in mine])
    return float(weighted_quantile(gap, count, [term.quantile])[0])
