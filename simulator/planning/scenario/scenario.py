"""A planning scenario: what is run, for whom, under which promises, at what price."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from simulator.core.errors import BadInputError
from simulator.core.files import stamp_of
from simulator.core.units import parse_percent
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile, load_profile
from simulator.engine.limits import EngineLimits
from simulator.planning.scenario.replica import ReplicaSpec
from simulator.planning.scenario.sections import (
    ClassSpec,
    FleetSpec,
    HardwareSpec,
    PriceSpec,
    SearchSpec,
    StepsSpec,
    Strict,
    TrafficSpec,
)
from simulator.schedulers.parse import NamedPolicy, parse_policy
from simulator.sla.terms import Sla, parse_sla
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.parse import parse_arrivals, parse_recording, split_file_spec
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass


class Scenario(Strict):
    """Everything a plan depends on. Unknown keys are refused.

    profile, hardware: exactly one says what a step costs.
    """

    name: str
    profile: str | None = None
    hardware: HardwareSpec | None = None
    policies: tuple[str, ...] = ("mtp1", "fixed:3", "dspark", "dspark-async")
    acceptance: tuple[str, ...] = ()
    traffic: TrafficSpec
    sla: tuple[str, ...]
    replica: ReplicaSpec = ReplicaSpec()
    fleet: FleetSpec = FleetSpec()
    price: PriceSpec = PriceSpec()
    search: SearchSpec = SearchSpec()
    steps: StepsSpec = StepsSpec()

    def loaded_profile(self) -> Profile:
        """Return what a step costs; ``BadInputError`` unless exactly one of profile and hardware is given."""
        if (self.profile is None) == (self.hardware is None):
            raise self._error("profile", "needs exactly one of profile and hardware", self.profile)
        if self.hardware is not None:
            return self.hardware.profile()
        assert self.profile is not None
        return load_profile(self.profile)

    def deployment(self) -> Deployment:
        """Return the profile with its acceptance, or with the one given here."""
        return self._deployment(self.acceptance)

    def class_deployments(self, classes: tuple[str, ...]) -> tuple[Deployment, ...]:
        """Return a deployment per traffic class, in the workload's order: they differ in acceptance alone."""
        specs = {name: each.acceptance for name, each in self.traffic.classes.items()}
        return tuple(self._deployment(specs.get(name) or self.acceptance) for name in classes)

    def parsed_policies(self) -> tuple[NamedPolicy, ...]:
        """Policies, each named once."""
        if not self.policies or len(set(self.policies)) != len(self.policies):
            raise self._error("policies", "must be distinct and at least one", list(self.policies))
        return tuple(parse_policy(text) for text in self.policies)

    def parsed_sla(self) -> Sla:
        """Return the SLA's terms."""
        return parse_sla(self.sla)

    def limits(self) -> EngineLimits:
        """Return what one replica admits."""
        return self.replica.limits(self.deployment())

    def replica_gpus(self) -> int:
        """GPUs of one replica, from the scenario or from the profile."""
        return self.replica.gpus_of(self.loaded_profile())

    def attention_groups(self) -> int:
        """Return the groups of a replica among which requests and the KV cache are divided."""
        if self.replica.kv_memory is not None:
            return self.replica.kv_memory.data_parallel
        return 1 if self.hardware is None or self.replica.kv_tokens is not None else self.hardware.dp

    def demand(self, directory: Path = Path()) -> Traffic:
        """Load the demanded traffic; files are relative to ``directory``, where the scenario lies."""
        spec = self.traffic
        if (spec.arrivals is None) == (spec.replay is None):
            raise self._error("traffic", "needs exactly one of arrivals and replay")
        if spec.replay is not None:
            return self._replay(directory)
        assert spec.arrivals is not None
        arrivals = parse_arrivals(spec.arrivals)
        if isinstance(arrivals, ClosedLoop):
            raise self._error("traffic.arrivals", "has no rate to plan for", spec.arrivals)
        if spec.classes and spec.lengths:
            raise self._error("traffic", "has lengths both in classes and for all; keep one")
        classes = spec.classes or {"default": ClassSpec(lengths=spec.lengths or "default")}
        # By name: which requests are drawn must not depend on the order in which classes were written.
        return SyntheticTraffic(
            arrivals,
            tuple(
                TrafficClass(name, parse_lengths(c.lengths), c.share) for name, c in sorted(classes.items())
            ),
        )

    def growth(self) -> tuple[float, ...]:
        """Traffic growth to plan for besides today's, as fractions."""
        return tuple(parse_percent(text, "traffic.growth") for text in self.traffic.growth)

    def _replay(self, directory: Path) -> ReplayTraffic:
        spec = self.traffic
        assert spec.replay is not None
        if spec.lengths is not None:
            raise self._error("traffic.lengths", "are given by the replayed file already", spec.lengths)
        path, options = split_file_spec(str(directory / spec.replay))
        traffic = _recording(path, options, stamp_of(Path(path)))
        if traffic.recorded.is_closed_loop or traffic.recorded.span_s <= 0:
            raise self._error("traffic.replay", "has no arrival times to plan for", spec.replay)
        return traffic

    def _deployment(self, specs: tuple[str, ...]) -> Deployment:
        # A class may be the only one to give acceptance, so that none for all is not yet an error.
        return self.steps.apply(
            deploy(
                self.loaded_profile(), specs, required=False, extrapolate_rows=self.search.extrapolate_rows
            )
        )

    def _error(self, field: str, problem: str, value: object = None) -> BadInputError:
        return BadInputError(problem, source=self.name, field=field, value=value)


@lru_cache(maxsize=1)
def _recording(path: str, options: str, stamp: tuple[int, int]) -> ReplayTraffic:
    """Read a recording once, as a scenario is checked and then planned; stamp: changes with the file."""
    return parse_recording(path, options)
