"""Service level agreements: the terms that a run must keep.

A term reads ``[class:]metric_statistic>=bound`` or ``<=bound``: ``tps_p10>=60``, ``chat:ttft_p99<=2s``.
A quantile is a promise to a share of requests: ``ttft_p99<=2s`` promises at most 2 s to at least 99% of them,
``tps_p10>=60`` promises at least 60 tokens/s to at least 90% of them. The judgement is about that share,
whose sampling error is known. A mean is judged itself, and promises nothing to a single request.

``ttft+16*tpot_p99<=500ms`` bounds a sum of each request: here the time to a burst of 17 tokens.

Inter-token latency counts deliveries, not requests. ``itl_p99<=50ms`` promises at most 50 ms to 99% of all
deliveries, and a request keeps the term when 99% of its own deliveries do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s, parse_number
from simulator.engine.measures.metrics import Metrics
from simulator.sla.metric_names import in_terms

Comparison = Literal[">=", "<="]

REQUEST_METRICS: dict[str, tuple[str, Comparison]] = {
    "tps": ("tps", ">="),
    "ttft": ("ttft_s", "<="),
    "tpot": ("tpot_s", "<="),
    "itl": ("itl_s", "<="),
    "e2e": ("e2e_s", "<="),
    "accepted_length": ("accepted_length", ">="),
}
"""Metrics of a request: the column in seconds or tokens/s, and the side on which a promise bounds it."""

SUMMABLE = ("ttft", "tpot", "e2e")
"""Times of a request that a term may add up with weights, as in ttft+16*tpot."""

SYSTEM_METRICS = tuple(field.name for field in fields(Metrics))
"""Metrics of the whole system, with the names of ``engine.measures.metrics.Metrics``."""

LONGEST_TERM = 200
"""Most characters of a term: the time to match many blanks grows with their cube. A choice."""

_TERM = re.compile(r"\s*(?:([^:<>=]+):)?\s*([a-z0-9_.+* ]+?)\s*(>=|<=)\s*(\S.*?)\s*")

_STATISTIC = re.compile(r"(.+)_(mean|p[0-9]{1,2}(?:\.[0-9]+)?)")

_SUMMAND = re.compile(r"(?:([^*]+)\*)?([a-z0-9_]+)")


@dataclass(frozen=True, slots=True)
class Term:
    """One promise.

    bound: seconds for times, tokens/s for speeds. quantile: in (0, 1), None for a mean
    or a system metric, whose ``metric`` is then its whole name.
    """

    text: str
    metric: str
    quantile: float | None
    comparison: Comparison
    bound: float
    traffic_class: str | None = None

    @property
    def per_request(self) -> bool:
        """Whether each single request keeps or breaks the term."""
        return self.quantile is not None

    @property
    def key(self) -> str:
        """The bounded quantity without the bound: ``chat:ttft_p99``."""
        return re.split("[<>]=", self.text)[0].strip()

    @property
    def measures_waiting(self) -> bool:
        """Whether a growing queue breaks the term sooner or later."""
        return any(name in self.metric for name in ("ttft", "e2e", "queue"))

    @property
    def statistic(self) -> str:
        """The bounded statistic: ``mean``, ``p99``, or ``system`` for a metric of the whole system."""
        if self.quantile is not None:
            return f"p{100 * self.quantile:g}"
        return "system" if self.metric in SYSTEM_METRICS else "mean"

    @property
    def required_share(self) -> float:
        """Share of requests (of deliveries, for itl) that the term promises its bound to."""
        assert self.quantile is not None
        return round(self.quantile if self.comparison == "<=" else 1 - self.quantile, 12)

    @property
    def weakness(self) -> str | None:
        """A warning for a term that promises to less than half, with the term for the others; else None."""
        if self.quantile is None or self.required_share >= 0.5:
            return None
        share, what = 100 * self.required_share, "deliveries" if self.metric == "itl" else "requests"
        likely = re.sub(r"_p[0-9.]+(?=[<>]=)", f"_p{100 - 100 * self.quantile:.4g}", self.text)
        return (
            f"{self.text} promises to {share:.4g}% of the {what} only; for {100 - share:.4g}% write {likely}"
        )

    def holds(self, value: Any) -> Any:
        """Whether a value, or each value of an array, is on the promised side of the bound; NaN is not."""
        return value >= self.bound if self.comparison == ">=" else value <= self.bound

    def at(self, bound: float) -> Term:
        """Return the same term with another bound (in seconds or tokens/s)."""
        shown = f"{bound * 1e3:.4g}ms" if self.is_time else f"{bound:.4g}"
        return Term(
            f"{self.key}{self.comparison}{shown}", self.metric, self.quantile, self.comparison, bound,
            self.traffic_class,
        )  # fmt: skip

    def unit_for(self, value: float) -> tuple[float, str]:
        """Return how many of the metric's own units make the unit that people read, and its name."""
        if self.is_time:
            return (1.0, " s") if abs(value) >= 1 else (1e-3, " ms")
        speed = self.metric == "tps" or self.metric.startswith("throughput")
        return 1.0, " tokens/s" if speed else ""

    @property
    def is_time(self) -> bool:
        """Whether the bound is a time."""
        return _is_time(self.metric)


@dataclass(frozen=True, slots=True)
class Sla:
    """Terms that must all hold.

    Raises ``BadInputError`` for no terms, and for terms that contradict or repeat each other.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise BadInputError("has no terms", source="sla", remedy="as in tps_p10>=60")
        for position, one in enumerate(self.terms):
            for other in self.terms[:position]:
                _refuse_contradiction(other, one)
        for term in self.terms:
            natural = "<=" if "*" in term.metric else REQUEST_METRICS.get(term.metric, (None, None))[1]
            if natural and natural != term.comparison:
                raise BadInputError(
                    "bounds the better side", source="sla", value=term.text, remedy=f"write {natural}"
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
    """Parse terms from a scenario or a command line; times need a unit."""
    return Sla(tuple(parse_term(text) for text in texts))


def parse_term(text: str) -> Term:
    """Parse one term, also one with a metric of vLLM or SGLang (``metric_names.in_terms``).

    Raises ``BadInputError`` with the fault and a correct form.
    """
    text = in_terms(text)
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
        if not quantile:
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
    """Write a sum of times in one order, so that equal sums have equal text: 1*ttft+16*tpot."""
    weights: dict[str, float] = {}
    for part in name.split("+"):
        match = _SUMMAND.fullmatch(part.strip())
        metric = match[2] if match else part.strip()
        if match is None or metric not in SUMMABLE or metric in weights:
            raise _bad(
                f"adds up {metric!r}", text,
                f"sums take each of {', '.join(SUMMABLE)} once, with weights, as in ttft+16*tpot_p99; "
                "every other metric needs a term of its own",
            )  # fmt: skip
        weight = parse_number(match[1] or "1", field=f"sla term {text!r}")
        if not 0 < weight <= 1e9:
            raise _bad(f"weighs {metric} by {weight:g}", text, "use weights above 0, at most 1e9")
        weights[metric] = weight
    return "+".join(f"{weights[metric]:.17g}*{metric}" for metric in SUMMABLE if metric in weights)


def _refuse_contradiction(one: Term, other: Term) -> None:
    """Refuse two terms that bound one metric twice on a side, or from both sides without room."""
    if (one.metric, one.traffic_class) != (other.metric, other.traffic_class):
        return
    if one.comparison == other.comparison:
        if one.quantile == other.quantile:
            raise _bad(f"bounds the same as {one.text!r}", other.text, "keep one")
        return
    lower, upper = (one, other) if one.comparison == ">=" else (other, one)
    ordered = lower.quantile == upper.quantile or (
        lower.quantile is not None and upper.quantile is not None and lower.quantile <= upper.quantile
    )
    if ordered and lower.bound > upper.bound:
        raise _bad(f"contradicts {one.text!r}: no run can meet both", other.text, "drop one of them")


def _bad(problem: str, text: str, remedy: str | None = None) -> BadInputError:
    return BadInputError(problem, source="sla", value=text, remedy=remedy)
