"""Profiles: what a device, a target and its drafts cost, read from files and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simulator.acceptance import AcceptanceModel, Shiftable, parse_acceptance
from simulator.cost import (
    AdditiveCost,
    Beyond,
    CostModel,
    DraftCost,
    Lookup,
    Structure,
    ThroughputCurve,
    usual_beyond,
)
from simulator.errors import BadInputError
from simulator.files import data_directory, read_json, write_json
from simulator.provenance import Provenance, complain


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CurveSpec(_Strict):
    """A throughput curve as written in a profile; see ``cost.ThroughputCurve``."""

    type: Literal["throughput-curve"] = "throughput-curve"
    batch_tokens: tuple[float, ...]
    steps_per_s: tuple[float, ...]
    lookup: Lookup = "linear"
    beyond: Beyond | None = None

    @model_validator(mode="after")
    def _say_what_lies_beyond(self) -> CurveSpec:
        if self.beyond is None:
            object.__setattr__(self, "beyond", usual_beyond(self.lookup, len(self.batch_tokens)))
        return self

    @classmethod
    def of(cls, curve: ThroughputCurve) -> CurveSpec:
        """How a curve is written; ``build`` gives the same step times everywhere."""
        return cls(
            batch_tokens=tuple(curve.batch_tokens.tolist()),
            steps_per_s=tuple(curve.steps_per_s.tolist()),
            lookup=curve.lookup,
            beyond=curve.beyond,
        )

    def build(self) -> ThroughputCurve:
        """The cost model it describes."""
        return ThroughputCurve(self.batch_tokens, self.steps_per_s, lookup=self.lookup, beyond=self.beyond)


class AdditiveSpec(_Strict):
    """An additive model as written in a profile; see ``cost.AdditiveCost``. Times in seconds."""

    type: Literal["additive"] = "additive"
    bias_s: float
    request_probes: tuple[float, ...]
    alpha_s: tuple[float, ...]
    token_probes: tuple[float, ...]
    theta_s: tuple[float, ...]
    context_s_per_token: float = 0.0
    row_context_s_per_token: float = 0.0
    prefill_s_per_token: float = 0.0
    beyond: Beyond = "last-slope"

    @classmethod
    def of(cls, cost: AdditiveCost) -> AdditiveSpec:
        """How a model is written; ``build`` gives the same step times everywhere."""
        return cls(
            bias_s=cost.bias_s,
            request_probes=tuple(cost.alpha.at.tolist()),
            alpha_s=tuple(cost.alpha.value.tolist()),
            token_probes=tuple(cost.theta.at.tolist()),
            theta_s=tuple(cost.theta.value.tolist()),
            context_s_per_token=cost.context_s_per_token,
            row_context_s_per_token=cost.row_context_s_per_token,
            prefill_s_per_token=cost.prefill_s_per_token,
            beyond=cost.beyond,
        )

    def build(self) -> AdditiveCost:
        """The cost model it describes."""
        return AdditiveCost(
            self.bias_s,
            self.request_probes,
            self.alpha_s,
            self.token_probes,
            self.theta_s,
            context_s_per_token=self.context_s_per_token,
            row_context_s_per_token=self.row_context_s_per_token,
            prefill_s_per_token=self.prefill_s_per_token,
            beyond=self.beyond,
        )


class DraftSpec(_Strict):
    """Draft cost of one drafter as written in a profile; see ``cost.DraftCost``. Times in seconds."""

    structure: Structure
    block_size: int
    requests: tuple[float, ...]
    pass_s: tuple[float, ...]
    sequential_s: tuple[float, ...] | None = None
    context_s_per_token: float = 0.0

    def build(self) -> DraftCost:
        """The draft cost it describes."""
        return DraftCost(
            self.structure, self.block_size, self.requests, self.pass_s, self.sequential_s,
            self.context_s_per_token,
        )  # fmt: skip


class AcceptanceSpec(_Strict):
    """An acceptance model that belongs to a profile: a spec, cut to a block size, moved to a level."""

    model: str
    block_size: int | None = None
    level: float = 0.0
    provenance: Provenance

    def build(self) -> AcceptanceModel:
        """The acceptance model it describes."""
        model = parse_acceptance(self.model)
        if self.level:
            if not isinstance(model, Shiftable):
                raise BadInputError(
                    "has no level to move", field="model", value=self.model, remedy="leave level out"
                )
            model = model.shifted(self.level)
        return model.truncated(self.block_size) if self.block_size else model


class PublishedClaims(_Strict):
    """Published results to set predictions beside; never read by the simulation.

    Curves are lists of (x, y): throughput in tokens/s/GPU and budget in tokens per request over
    concurrent requests per GPU; ``throughput_vs_tps`` over tokens/s/user. Gains are fractions.
    """

    source: str
    throughput: Mapping[str, tuple[tuple[float, float], ...]] = {}
    budget: Mapping[str, tuple[tuple[float, float], ...]] = {}
    throughput_vs_tps: Mapping[str, tuple[tuple[float, float], ...]] = {}
    throughput_gain_at_sla: Mapping[str, float] = {}
    tps_gain_at_matched_throughput: tuple[float, float] | None = None


class Profile(_Strict):
    """One device, one target, its drafters: the cost side of a simulation.

    drafters: cost of each drafter's block; None says that drafting is inside ``step``, as when the
    curve was derived from whole engine steps. acceptance: models that belong to this deployment,
    by drafter, used where the user names none. jitter: how single steps of one size scatter, as equally
    likely multiples of their mean. replica_gpus: GPUs that the curve stands for, None where nobody said.
    prefill_tokens_per_s: prompt tokens that such a replica prefills alone, for a pool of them.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    title: str
    provenance: Provenance
    step: Annotated[CurveSpec | AdditiveSpec, Field(discriminator="type")]
    replica_gpus: int | None = Field(default=None, gt=0)
    drafters: Mapping[str, DraftSpec] | None = None
    acceptance: Mapping[str, AcceptanceSpec] = {}
    jitter: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=1)
    kv_tokens: int | None = Field(default=None, gt=0)
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    published: PublishedClaims | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    def target_cost(self) -> CostModel:
        """Step cost of the target."""
        return self.step.build()

    def draft_cost(self, drafter: str) -> DraftCost | None:
        """Cost of a drafter's block, None where it is inside the step or nothing is drafted."""
        if drafter == "none" or self.drafters is None:
            return None
        if drafter not in self.drafters:
            raise BadInputError(
                f"has no draft cost for {drafter!r}", source=self.name, field="drafters",
                remedy=f"it has {', '.join(self.drafters) or 'none'}; profile that drafter too",
            )  # fmt: skip
        return self.drafters[drafter].build()

    def acceptance_models(self) -> dict[str, AcceptanceModel]:
        """The acceptance models that belong to this deployment, by drafter."""
        return {drafter: spec.build() for drafter, spec in self.acceptance.items()}

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically."""
        write_json(path, self.model_dump(mode="json", by_alias=True, exclude_none=True))


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by name (``deepseek-v4-flash``, ``h200/qwen3-8b--dspark``) or any profile file.

    Raises ``BadInputError`` naming the file, the field, the value and the remedy.
    """
    path = _find(str(name_or_path))
    try:
        profile = Profile.model_validate(read_json(path))
        profile.target_cost()
        for drafter in profile.drafters or {}:
            profile.draft_cost(drafter)
    except ValidationError as error:
        raise complain(error, str(path)) from error
    except BadInputError as error:
        if error.source is not None:
            raise
        raise BadInputError(
            error.problem, source=str(path), field=error.field, value=error.value, remedy=error.remedy
        ) from error
    return profile


def shipped_profiles() -> dict[str, Path]:
    """Name to file of every profile that comes with the package."""
    root = data_directory("profiles")
    files = sorted(path for path in root.rglob("*.json") if "sources" not in path.parts)
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def _find(name: str) -> Path:
    shipped = shipped_profiles()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        return path
    raise BadInputError(
        "is not a profile", source="profile", value=name,
        remedy=f"name one of {', '.join(shipped)}, or give a .json file",
    )  # fmt: skip
