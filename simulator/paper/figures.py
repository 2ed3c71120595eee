"""The paper's acceptance figures as data: what fitted models are fitted to and compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from simulator.core.files import data_directory
from simulator.core.provenance import Provenance
from simulator.core.reading import checked, read_json

Domain = Literal["math", "code", "chat"]

Point = tuple[float, float]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AcceptedLengths(_Data):
    """Table 1: accepted length, bonus included, by target, drafter and dataset, at block size ``gamma``."""

    gamma: int
    datasets: tuple[str, ...]
    domains: tuple[Domain, ...]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]

    def cells(self) -> Iterator[tuple[str, str, str, Domain, float]]:
        """Every ``(target, drafter, dataset, domain, accepted length)``."""
        for target, drafters in self.values.items():
            for drafter, lengths in drafters.items():
                for dataset, domain, length in zip(self.datasets, self.domains, lengths, strict=True):
                    yield target, drafter, dataset, domain, length

    def domain_mean(self, target: str, drafter: str, domain: Domain) -> float:
        """Mean over the three datasets of a domain."""
        found = [c[4] for c in self.cells() if c[:2] == (target, drafter) and c[3] == domain]
        return sum(found) / len(found)


class ConditionalAcceptance(_Data):
    """Figure 2: P(draft k accepted | those before it accepted), by domain and drafter."""

    target: str
    values: Mapping[Domain, Mapping[str, tuple[float, ...]]]


class SweepEnds(_Data):
    """One panel of figure 5 at its first and last threshold; the bonus counts in both ordinates."""

    threshold: Point
    acceptance_rate: Point
    accepted_length: Point


class ThresholdSweeps(_Data):
    """Figure 5: a static threshold on raw confidence; each panel shows one dataset of table 1."""

    target: str
    drafter: str
    datasets: Mapping[Domain, str]
    values: Mapping[Domain, SweepEnds]


class PositionReliability(_Data):
    """Figure 6 at one draft position; points are (predicted, observed) prefix survival."""

    histogram: tuple[float, ...]
    before: tuple[Point, ...]
    after: tuple[Point, ...]
    ece_before: float
    ece_after: float
    roc_auc: float


class ReliabilityData(_Data):
    """Figure 6: calibration of prefix survival before and after sequential temperature scaling."""

    target: str
    drafter: str
    dataset: str
    bins: int
    positions: Mapping[int, PositionReliability]


class Published(_Data):
    """Contents of ``traces/published.json``."""

    schema_: Literal["dspark-simulator/published-acceptance"] = Field(alias="schema")
    version: Literal[1]
    provenance: Provenance
    accepted_length: AcceptedLengths
    conditional_acceptance: ConditionalAcceptance
    threshold_sweep_ends: ThresholdSweeps
    reliability: ReliabilityData


@cache
def published() -> Published:
    """Load the shipped figures."""
    path = data_directory("traces") / "published.json"
    return checked(Published, read_json(path), str(path))
