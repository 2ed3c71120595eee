"""Results of trials and searches, and their form in a sweep's cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simulator.engine.batch import WAITS
from simulator.engine.measures.metrics import Metrics
from simulator.sla.terms import Term
from simulator.sla.verdict import TermResult


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One replica served at one rate, in one replication or several together.

    attainment, goodput_per_s: as in ``sla.verdict.Assessment``. terms: a result per term of the SLA, in its
    order. metrics: None where none could be measured. rows_mean: as in ``engine.run.Run``.
    early_stop_loss: ``schedulers.early_stop``. queue_trend_per_s: by how many requests a second the queue
    grows. seed_tps: mean speed of each replication in tokens/s/user, NaN where it was saturated. waits:
    mean seconds for which a request waited, by cause (``engine.batch.WAITS``).
    """

    policy: str
    rate_per_s: float
    met: bool
    saturated: bool
    attainment: float
    attainment_ci95: float
    goodput_per_s: float
    requests: int
    terms: tuple[TermResult, ...]
    metrics: Metrics | None
    rows_mean: float
    steps_outside_fraction: float
    early_stop_loss: float
    queue_trend_per_s: float
    queue_trend_ci95: float
    replications: int
    seed_tps: tuple[float, ...]
    waits: Mapping[str, float]

    @property
    def failing(self) -> tuple[Term, ...]:
        """Terms that do not hold."""
        return tuple(each.term for each in self.terms if not each.met)

    def outcome(self, term: Term) -> TermResult:
        """Return the result of the term with this key, for any bound; ``KeyError`` without such a term."""
        return {each.term.key: each for each in self.terms}[term.key]

    def as_row(self) -> dict[str, Any]:
        """Return nested plain values, the form in which a sweep keeps a cell."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TrialResult:
        """Rebuild the trial from the values of ``as_row``."""
        known = row["metrics"]
        return cls(
            **{name: value for name, value in row.items() if name not in _NESTED},
            terms=tuple(TermResult.from_row(each) for each in row["terms"]),
            metrics=None if known is None else Metrics(**known),
            seed_tps=tuple(row["seed_tps"]),
            waits={name: row["waits"][name] for name in WAITS},
        )


_NESTED = ("terms", "metrics", "seed_tps", "waits")


@dataclass(frozen=True, slots=True)
class RateSearch:
    """The highest rate per second at which one replica keeps an SLA; 0 where no rate does.

    failing_rate_per_s: the lowest rate above it that failed. capacity_per_s: the physical bound.
    at_rate, beyond: the trials at the two rates; at_rate is None where the rate is 0. trials: all trials of
    the first replication. seed_rates: the answer of each replication. rate_low_per_s, rate_high_per_s: 95%
    interval, NaN with one replication.
    """

    policy: str
    variant: str
    rate_per_s: float
    failing_rate_per_s: float
    capacity_per_s: float
    at_rate: TrialResult | None
    beyond: TrialResult
    trials: tuple[TrialResult, ...]
    seed_rates: tuple[float, ...]
    rate_low_per_s: float
    rate_high_per_s: float

    @property
    def feasible(self) -> bool:
        """Whether some rate keeps the SLA."""
        return self.rate_per_s > 0

    def as_row(self) -> dict[str, Any]:
        """Return nested plain values, the form in which a sweep keeps a cell."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> RateSearch:
        """Rebuild the search from the values of ``as_row``."""
        at_rate = row["at_rate"]
        return cls(
            **{name: value for name, value in row.items() if name not in _FOUND},
            at_rate=None if at_rate is None else TrialResult.from_row(at_rate),
            beyond=TrialResult.from_row(row["beyond"]),
            trials=tuple(TrialResult.from_row(each) for each in row["trials"]),
            seed_rates=tuple(row["seed_rates"]),
        )


_FOUND = ("at_rate", "beyond", "trials", "seed_rates")
