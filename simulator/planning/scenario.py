"""A planning scenario: one YAML file that says what is run, for whom, under which promises, at what price."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.core.errors import BadInputError
from simulator.core.reading import complain, is_there, read_yaml, strictly
from simulator.core.units import parse_duration_s, parse_percent, percent_meant
from simulator.cost.scaled import SlowPath
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile, load_profile
from simulator.engine.limits import EngineLimits, Prefill
from simulator.fleet.layout import RouterName
from simulator.hardware.choose import DRAFTERS, Hardware, profile_for
from simulator.schedulers.parse import NamedPolicy, parse_policy
from simulator.sla.terms import Sla, parse_sla, parse_term
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.parse import parse_arrivals, parse_recording, split_file_spec
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassSpec(_Strict):
    """One class of requests: its lengths, its share of the traffic, the acceptance of its text."""

    lengths: str = "default"
    share: float = Field(default=1.0, gt=0)
    acceptance: tuple[str, ...] = ()


class TrafficSpec(_Strict):
    """Either ``arrivals`` (a process with a rate) with classes or lengths, or ``replay`` of a file."""

    arrivals: str | None = None
    lengths: str | None = None
    classes: Mapping[str, ClassSpec] = {}
    replay: str | None = None
    growth: tuple[str, ...] = ("0%", "25%", "50%", "100%")


class KvMemory(_Strict):
    """KV-cache capacity of a replica from its memory and the model's shape.

    A replica of G GPUs has ``data_parallel`` groups. A group splits its layers over ``pipeline_parallel``
    stages and attention over the tensor-parallel ranks, G / (data_parallel * pipeline_parallel). On one GPU
    a token takes

        layers of a stage * 2 * KV heads of a rank * head_dim * bytes_per_value   (keys and values), or
        layers of a stage * latent_dim * bytes_per_value                          (latent attention).

    Tensor parallelism divides KV heads, so a rank holds ceil(kv_heads / ranks): at least one, which is
    then the same on several ranks. A latent vector has no heads to divide: every rank holds it whole. So

        tokens = data_parallel * (gpu_memory_gib * usable - weights_gib / G) * 2**30 / bytes on one GPU.

    weights_gib: of the whole replica, spread evenly (with data-parallel attention count its copies too).
    usable: leaves room for activations and graphs. data_parallel: groups that hold the caches of
    different requests (data-parallel attention); their sum is the capacity, as if they were equally full.
    """

    gpu_memory_gib: float = Field(gt=0)
    weights_gib: float = Field(ge=0)
    layers: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    latent_dim: int | None = Field(default=None, gt=0)
    bytes_per_value: float = Field(default=2.0, gt=0)
    usable: float = Field(default=0.9, gt=0, le=1)
    data_parallel: int = Field(default=1, gt=0)
    pipeline_parallel: int = Field(default=1, gt=0)

    def bytes_per_token(self, gpus: int) -> float:
        """Bytes that one token takes on the fullest GPU of a replica."""
        ranks = self._ranks(gpus)
        layers = -(-self.layers // self.pipeline_parallel)
        if self.latent_dim is not None and self.kv_heads is None and self.head_dim is None:
            return layers * self.latent_dim * self.bytes_per_value
        if self.latent_dim is None and self.kv_heads is not None and self.head_dim is not None:
            return layers * 2 * -(-self.kv_heads // ranks) * self.head_dim * self.bytes_per_value
        raise BadInputError(
            "needs either kv_heads and head_dim, or latent_dim", source="scenario", field="replica.kv_memory",
            remedy="give the shape of one attention layer",
        )  # fmt: skip

    def tokens(self, gpus: int) -> int:
        """Tokens that fit; ``BadInputError`` where the weights alone do not."""
        per_token = self.bytes_per_token(gpus)
        free_gib = gpus * self.gpu_memory_gib * self.usable - self.weights_gib
        if free_gib <= 0:
            raise BadInputError(
                f"leaves no memory for the KV cache: {self.weights_gib:g} GiB of weights in "
                f"{gpus * self.gpu_memory_gib * self.usable:g} usable",
                source="scenario", field="replica.kv_memory", remedy="use more GPUs per replica",
            )  # fmt: skip
        return int(self.data_parallel * (free_gib / gpus) * 2**30 / per_token)

    def _ranks(self, gpus: int) -> int:
        """Tensor-parallel ranks over which one group splits attention."""
        ranks, rest = divmod(gpus, self.data_parallel * self.pipeline_parallel)
        if rest or not ranks:
            raise BadInputError(
                f"data_parallel * pipeline_parallel must divide the replica's {gpus} GPUs",
                source="scenario", field="replica.kv_memory.data_parallel",
                value=self.data_parallel * self.pipeline_parallel,
                remedy="give replica.gpus the GPUs of the whole replica",
            )  # fmt: skip
        return ranks


class ReplicaSpec(_Strict):
    """One replica: its GPUs, what it admits, and how it prefills.

    gpus: None takes what the profile says one replica is, or 1 where it does not say. chunk_tokens: None
    takes what the profile's engine sets, or 2,048.
    prefill_tokens_per_s: speed of one worker of the prefill pool. prefill_gpus: GPUs of such a worker; None
    takes as many as a replica has.
    """

    gpus: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=256, gt=0, le=1_000_000)
    kv_tokens: int | None = Field(default=None, gt=0)
    kv_memory: KvMemory | None = None
    prefill: Prefill = "elsewhere"
    chunk_tokens: int | None = Field(default=None, gt=0)
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    prefill_gpus: int | None = Field(default=None, gt=0)

    def gpus_of(self, profile: Profile) -> int:
        """GPUs of one replica; refuses a number that contradicts the profile's."""
        stated = profile.replica_gpus
        if self.gpus is None or stated is None or self.gpus == stated:
            return self.gpus or stated or 1
        raise BadInputError(
            f"contradicts profile {profile.name!r}, whose curve stands for a replica of {stated}",
            source="scenario", field="replica.gpus", value=self.gpus,
            remedy=f"write gpus: {stated}, or use a profile measured on a replica of {self.gpus}",
        )  # fmt: skip

    def limits(self, deployment: Deployment) -> EngineLimits:
        """Return what the serving model admits; the profile's own figures stand in where none are given."""
        if self.kv_tokens is not None and self.kv_memory is not None:
            raise BadInputError(
                "is given twice, by kv_tokens and by kv_memory", source="scenario", field="replica"
            )
        gpus = self.gpus_of(deployment.profile)
        capacity = self.kv_memory.tokens(gpus) if self.kv_memory else self.kv_tokens
        return deployment.limits(
            self.concurrency, kv_tokens=capacity, prefill=self.prefill, chunk_tokens=self.chunk_tokens,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
        )  # fmt: skip


class FleetSpec(_Strict):
    """How replicas are arranged: the router in front, and room beyond the peak."""

    router: RouterName = "round-robin"
    headroom: str = "20%"
    max_replicas: int = Field(default=100_000, gt=0)
    prefix_cache_tokens: int | None = Field(default=None, gt=0)


class PriceSpec(_Strict):
    """What a GPU costs per hour."""

    gpu_hour: float = Field(default=2.0, gt=0)
    currency: str = "USD"


class SearchSpec(_Strict):
    """How carefully to search: relative precision of rates, requests per trial, random seed.

    extrapolate_rows: plan also with rows far beyond those that the profile was measured with.
    """

    precision: str = "2%"
    requests: int = Field(default=2000, ge=200)
    seed: int = Field(default=0, ge=0)
    concurrency: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 150, 200)
    extrapolate_rows: bool = False


class StepsSpec(_Strict):
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


class HardwareSpec(_Strict):
    """A model on a GPU in place of a profile; see ``hardware.choose.Hardware``."""

    model: str
    gpu: str
    tp: int | None = Field(default=None, gt=0)
    engine: str | None = None
    precision: str | None = None
    drafters: tuple[str, ...] = DRAFTERS
    host_time: str | None = None

    def profile(self) -> Profile:
        """Return the profile that answers for it, the same object each time."""
        return _profile_of(self)


@cache
def _profile_of(spec: HardwareSpec) -> Profile:
    return profile_for(Hardware(**spec.model_dump())).profile


class Scenario(_Strict):
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
        traffic = parse_recording(*split_file_spec(str(directory / spec.replay)))
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


def load_scenario(path: Path | str) -> Scenario:
    """Read a scenario; errors name the file, the key, and for an unknown key the nearest known one."""
    path = Path(path)
    if not is_there(path):
        raise BadInputError(
            "no such file", source=str(path), remedy="`dspark-sim plan --init FILE` writes one"
        )
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise BadInputError(
            "is not a mapping of keys", source=str(path), remedy="see `dspark-sim plan --init`"
        )
    try:
        scenario = strictly(Scenario, raw)
    except ValidationError as error:
        raise _explain(error, str(path)) from error
    _check_texts(scenario, str(path))
    return scenario


def _check_texts(scenario: Scenario, path: str) -> None:
    """Parse each text that stands for a number, a policy or a promise: errors name the file and the key."""
    search, traffic = scenario.search, scenario.traffic
    if scenario.profile is None and scenario.hardware is None:
        raise BadInputError(
            "is missing", source=path, field="profile",
            remedy="name a profile, or hardware: {model: ..., gpu: ...} (`dspark-sim list`)",
        )  # fmt: skip
    with _naming(path, "fleet.headroom"):
        parse_percent(scenario.fleet.headroom, "fleet.headroom")
    with _naming(path, "search.precision"):
        parse_percent(search.precision, "search.precision")
    with _naming(path, "steps.slow_path"):
        scenario.steps.parsed_slow_path()
    with _naming(path, "steps.row_cost"):
        scenario.steps.row_cost_s()
    for index, text in enumerate(traffic.growth):
        with _naming(path, f"traffic.growth.{index}"):
            parse_percent(text, "traffic.growth")
    for index, text in enumerate(scenario.sla):
        with _naming(path, f"sla.{index}"):
            parse_term(text)
    for index, text in enumerate(scenario.policies):
        with _naming(path, f"policies.{index}"):
            parse_policy(text)
    with _naming(path, "sla"):
        sla = scenario.parsed_sla()
        if traffic.arrivals is not None:
            sla.check_classes(sorted(traffic.classes) or ["default"])
    with _naming(path, "traffic.arrivals"):
        if traffic.arrivals is not None:
            parse_arrivals(traffic.arrivals)


@contextmanager
def _naming(path: str, field: str) -> Iterator[None]:
    """Name the file and the key in whatever complaint a parser raises."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(
            error.problem, source=path, field=field, value=error.value, remedy=error.remedy
        ) from error


def _explain(error: ValidationError, path: str) -> BadInputError:
    """One error for what the schema refuses, in the words of a scenario."""
    first = next((each for each in error.errors() if each["type"] == "extra_forbidden"), error.errors()[0])
    place, value = first["loc"], first.get("input")
    field = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return BadInputError("unknown key", source=path, field=field, remedy=remedy)
    if first["type"] != "missing" and value is None:
        return BadInputError("is empty", source=path, field=field, remedy=_how_to_fill(place))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if {"headroom", "growth", "precision"} & set(place) and number:
        return BadInputError(
            "needs a percent sign", source=path, field=field, value=value, remedy=percent_meant(value)
        )
    if first["type"] == "tuple_type":
        remedy = f"write [{value}]" if isinstance(value, str) or number else _how_to_fill(place)
        if place[-1] == "sla" and not isinstance(value, str):
            remedy = _how_to_fill(place)
        return BadInputError("is not a list", source=path, field=field, value=value, remedy=remedy)
    if first["type"] == "string_type":
        return BadInputError(
            "is not text", source=path, field=field, value=value, remedy=_as_text(place, value)
        )
    return complain(error, path)


_EXAMPLES = {
    "sla": "as in sla: [tps_mean>=80, ttft_p99<=2s]",
    "policies": "as in policies: [mtp1, dspark]",
}


def _how_to_fill(place: tuple[int | str, ...]) -> str:
    return _EXAMPLES.get(str(place[-1]), "give it a value or leave the key out")


def _as_text(place: tuple[int | str, ...], value: object) -> str:
    """Say how to write as text what YAML took for a number, a list or a mapping."""
    if place[0] == "sla":
        return _EXAMPLES["sla"]
    if isinstance(value, list):
        return "write it without brackets" if len(value) == 1 else "write one text"
    if isinstance(value, dict) and len(value) == 1:
        ((key, inner),) = value.items()
        joint = "=" if "acceptance" in place else ":"
        return f'write "{key}{joint}{inner}", in quotes and without the blank'
    return f'write "{value}", in quotes' if isinstance(value, int | float) else "write one text"


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    """Keys that the scenario's schema knows at a place such as ('traffic', 'classes', 'chat')."""
    schema = Scenario.model_json_schema()
    node = schema
    for part in place:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties", {})
        for option in node.get("anyOf", [node]):
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rpartition("/")[2]]
    return list(node.get("properties", {}))


EXAMPLE = """\
# What is planned: which GPU and model, for which traffic, under which promises, at what price.
# `dspark-sim plan THIS_FILE --out DIR` answers; docs/planning.md says how.
name: Chat on DeepSeek-V4-Flash

# Cost of a step: a shipped profile (`dspark-sim list`) or a profile file.
profile: deepseek-v4-flash
# Or a model on a GPU (`dspark-sim list --models --gpus`), whose cost is composed from measured kernels:
# hardware: {model: Qwen/Qwen3-32B, gpu: h100}     # also tp, engine, precision, drafters

# Verification policies to compare; the first is the baseline of every gain.
policies: [mtp1, "fixed:3", dspark, dspark-async]

# What drafts are worth, as [DRAFTER=]MODEL. Empty: the profile's own. Classes may have their own.
acceptance: []

traffic:
  # poisson:12/s, gamma:12/s,cv=3 or diurnal:12/s,peak=2 (mean rate, peak over mean, once per 24h) ...
  arrivals: diurnal:120/s,peak=1.6
  # ... with classes of requests; or lengths alone. Rates and times need units.
  classes:
    chat: {lengths: azure-2023-conversation, share: 0.8}
    code: {lengths: "lognormal:2000,cv=1,max=16000/300,cv=1", share: 0.2}
  # Instead of all this, replay a recorded file (Mooncake, Azure, BurstGPT, CSV): trace.jsonl, trace.csv@2x
  # replay: trace.jsonl
  growth: ["0%", "25%", "50%", "100%"]

# All must hold. tps, ttft, itl, tpot, e2e with _mean or _p1.._p99.9; a class in front narrows it.
sla:
  - tps_mean>=80
  - tps_p10>=60
  - chat:ttft_p99<=2s

replica:
  # gpus: 1                 # the profile says what one replica is; give it where the profile does not
  concurrency: 256
  # KV-cache capacity: kv_tokens, or from memory and model; left out, it does not limit.
  # kv_memory: {gpu_memory_gib: 80, weights_gib: 40, layers: 43, latent_dim: 576, bytes_per_value: 1}
  # Where prompts are prefilled: elsewhere (a pool of workers of its own, sized and paid for beside the decode
  # replicas), chunked (in decode steps) or whole (between them).
  prefill: elsewhere
  # Prompt tokens per second of one worker. Without it no cost is stated. A measured profile knows it; this
  # one does not. ASSUMED here: 52,300 per node of 8 H100 for DeepSeek-V3 (SGLang, lmsys.org, 2025-05-05),
  # about 6,500 per GPU. V4-Flash activates fewer parameters and is probably faster: measure yours.
  prefill_tokens_per_s: 6500
  # prefill_gpus: 1         # GPUs of one worker; left out, as many as a replica has

fleet:
  router: round-robin        # or least-loaded, power-of-two, prefix-aware
  headroom: 20%              # room beyond the peak

price: {gpu_hour: 2.0, currency: USD}

# What steps take beyond the profile, where you have measured it:
# steps: {slow_path: "2=6.6%,189=21.6%", row_cost: 4us}

search:
  precision: 2%              # of the highest sustainable rate
  requests: 2000             # per trial; more narrows the intervals
  seed: 0
"""
