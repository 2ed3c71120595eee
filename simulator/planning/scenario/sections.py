"""Parts of a scenario: traffic, fleet, price, search, steps and hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from pydantic import BaseModel, ConfigDict, Field

from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s
from simulator.cost.scaled import SlowPath
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile
from simulator.fleet.layout import RouterName
from simulator.hardware.choose import DRAFTERS, Hardware, profile_for
from simulator.hardware.memory import Layout


class Strict(BaseModel):
    """A part of a scenario: it does not change, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassSpec(Strict):
    """One class of requests: its lengths, its share of the traffic, the acceptance of its text."""

    lengths: str = "default"
    share: float = Field(default=1.0, gt=0)
    acceptance: tuple[str, ...] = ()


class TrafficSpec(Strict):
    """Either ``arrivals`` (a process with a rate) with classes or lengths, or ``replay`` of a file."""

    arrivals: str | None = None
    lengths: str | None = None
    classes: Mapping[str, ClassSpec] = {}
    replay: str | None = None
    growth: tuple[str, ...] = ("0%", "25%", "50%", "100%")


class FleetSpec(Strict):
    """How replicas are arranged: the router in front, and room beyond the peak."""

    router: RouterName = "round-robin"
    headroom: str = "20%"
    max_replicas: int = Field(default=100_000, gt=0)
    prefix_cache_tokens: int | None = Field(default=None, gt=0)


class PriceSpec(Strict):
    """What a GPU costs per hour."""

    gpu_hour: float = Field(default=2.0, gt=0)
    currency: str = "USD"


class SearchSpec(Strict):
    """How carefully to search: relative precision of rates, requests per trial, random seed.

    extrapolate_rows: plan also with rows far beyond those that the profile was measured with.
    """

    precision: str = "2%"
    requests: int = Field(default=2000, ge=200)
    seed: int = Field(default=0, ge=0)
    concurrency: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 150, 200)
    extrapolate_rows: bool = False


class StepsSpec(Strict):
    """What steps take beyond what the profile says; see ``deployment.Deployment``.

    slow_path: of steps without drafts, ``2=6.6%,189=21.6%``. row_cost: of each draft row beyond one a
    request, ``4us``.
    """

    slow_path: str | None = None
    row_cost: str | None = None

    def parsed_slow_path(self) -> SlowPath | None:
        """Return what steps without drafts take longer."""
        return None if self.slow_path is None else SlowPath.parse(self.slow_path)

    def row_cost_s(self) -> float:
        """Return seconds for each draft row beyond one a request; negative ones are refused."""
        row_s = 0.0 if self.row_cost is None else parse_duration_s(self.row_cost, field="row_cost")
        if row_s < 0:
            raise BadInputError("must not be negative", value=self.row_cost, remedy="as in 4us")
        return row_s

    def apply(self, deployment: Deployment) -> Deployment:
        """Return the deployment with it."""
        return replace(deployment, slow_path=self.parsed_slow_path(), row_cost_s=self.row_cost_s())


class HardwareSpec(Strict):
    """A model on a GPU in place of a profile; see ``hardware.choose.Hardware``."""

    model: str
    gpu: str
    tp: int | None = Field(default=None, gt=0)
    dp: int = Field(default=1, gt=0)
    ep: int | None = Field(default=None, gt=0)
    engine: str | None = None
    precision: str | None = None
    drafters: tuple[str, ...] = DRAFTERS
    host_time: str | None = None

    def layout(self, longest: int) -> Layout:
        """Return its layout, or the smallest that holds a request of ``longest`` tokens."""
        return Hardware(**self.model_dump(), longest=longest).layout()

    def profile(self) -> Profile:
        """Return the profile that answers for it, the same object each time."""
        return _profile_of(self)


@cache
def _profile_of(spec: HardwareSpec) -> Profile:
    return profile_for(Hardware(**spec.model_dump())).profile
