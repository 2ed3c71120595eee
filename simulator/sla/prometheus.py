"""Terms as Prometheus rules: what an engine delivers recorded, and an alert where a promise is not kept.

The form is that of the Prometheus Operator's ``PrometheusRule`` (monitoring.coreos.com/v1); its groups alone
are a rule file of Prometheus. Names of metrics: ``sla.metric_names``.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from simulator.sla.metric_names import HISTOGRAMS, MEAN_SPEED, Engine
from simulator.sla.terms import Sla, Term

WINDOW = "5m"
"""Over which rates are taken: a choice, several scrapes at the usual 15 s to 60 s."""

HELD = "10m"
"""How long a promise is broken before an alert fires: a choice."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A term as an engine measures it. above: whether the promise is broken above the bound."""

    term: Term
    name: str
    expression: str
    bound: float
    above: bool

    @property
    def broken(self) -> str:
        """Return the condition of the alert."""
        return f"{self.name} {'>' if self.above else '<'} {self.bound:.6g}"


def rule_of(term: Term, engine: Engine, window: str = WINDOW) -> Rule | str:
    """Return a term's rule, or why the engine's metrics cannot say it.

    A speed of requests is the inverse of their time per output token: a p10 of one is a p90 of the other.
    """
    if term.traffic_class is not None:
        return f"{term.text}: the engine's metrics know no traffic class"
    metric, quantile, bound, above = term.metric, term.quantile, term.bound, term.comparison == "<="
    if metric == "tps" and quantile is None:
        name = f"slo:tps:{term.statistic}"
        return Rule(term, name, MEAN_SPEED[engine].format(window=window), bound, above=False)
    if metric == "tps" and quantile is not None:
        metric, quantile, bound, above = "tpot", 1 - quantile, 1 / bound, True
    histogram = HISTOGRAMS[engine].get(metric)
    if histogram is None:
        return f"{term.text}: {engine} has no histogram of {metric}"
    if quantile is None:
        expression = f"sum(rate({histogram}_sum[{window}])) / sum(rate({histogram}_count[{window}]))"
    else:
        buckets = f"sum by (le) (rate({histogram}_bucket[{window}]))"
        expression = f"histogram_quantile({quantile:.6g}, {buckets})"
    statistic = "mean" if quantile is None else f"p{100 * quantile:.6g}".replace(".", "_")
    return Rule(term, f"slo:{metric}_seconds:{statistic}", expression, bound, above)


def prometheus_rules(sla: Sla, engine: Engine, name: str, window: str = WINDOW) -> str:
    """Return a ``PrometheusRule`` as YAML; terms that the engine's metrics cannot say stand in comments."""
    made = [rule_of(term, engine, window) for term in sla.terms]
    rules: list[dict[str, object]] = []
    for rule in made:
        if isinstance(rule, Rule):
            rules.append({"record": rule.name, "expr": rule.expression})
            rules.append(
                {
                    "alert": "ServiceLevelMissed", "expr": rule.broken, "for": HELD,
                    "labels": {"severity": "warning", "term": rule.term.key},
                    "annotations": {"summary": f"{rule.term.text} is not kept: {{{{ $value }}}}"},
                }
            )  # fmt: skip
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name},
        "spec": {"groups": [{"name": f"{name}.slo", "rules": rules}]},
    }
    left_out = "".join(f"# Left out: {each}\n" for each in made if isinstance(each, str))
    return left_out + yaml.safe_dump(document, sort_keys=False, width=1000)
