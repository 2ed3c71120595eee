"""The parts of a profile file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from simulator.core.reading import Strict
from simulator.cost.curve import Beyond, Lookup
from simulator.cost.draft import DraftCost, Structure
from simulator.cost.models import AdditiveCost, ThroughputCurve, usual_beyond

_Quantity = Annotated[float, Field(ge=0)]

Curve = tuple[tuple[_Quantity, _Quantity], ...]

Gain = Annotated[float, Field(gt=-1)]  # a loss of all there is would be -1


class CurveSpec(Strict):
    """A throughput curve as written in a profile; see ``cost.models.ThroughputCurve``."""

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
        """Return the cost model it describes."""
        return ThroughputCurve(self.batch_tokens, self.steps_per_s, lookup=self.lookup, beyond=self.beyond)


class AdditiveSpec(Strict):
    """An additive model as written in a profile; see ``cost.models.AdditiveCost``. Times in seconds."""

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
        """Return the cost model it describes."""
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


class DraftSpec(Strict):
    """Draft cost of one drafter as written in a profile; see ``cost.draft.DraftCost``. Times in seconds."""

    structure: Structure
    block_size: int
    requests: tuple[float, ...]
    pass_s: tuple[float, ...]
    sequential_s: tuple[float, ...] | None = None
    context_s_per_token: float = 0.0

    def build(self) -> DraftCost:
        """Return the draft cost it describes."""
        return DraftCost(
            self.structure, self.block_size, self.requests, self.pass_s, self.sequential_s,
            self.context_s_per_token,
        )  # fmt: skip


class PublishedClaims(Strict):
    """Published results to set predictions beside; never read by the simulation.

    Curves are lists of (x, y): throughput in tokens/s/GPU and budget in tokens per request over
    concurrent requests per GPU; ``throughput_vs_tps`` over tokens/s/user. Gains are fractions.
    """

    source: str
    throughput: Mapping[str, Curve] = {}
    budget: Mapping[str, Curve] = {}
    throughput_vs_tps: Mapping[str, Curve] = {}
    throughput_gain_at_sla: Mapping[str, Gain] = {}
    tps_gain_at_matched_throughput: tuple[Gain, Gain] | None = None
