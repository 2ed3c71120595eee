"""From a serving engine's files to profiles, traces and rates, and from a profile to an engine's table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import logit

from simulator.acceptance.rates import Rates
from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.files import write_json
from simulator.core.provenance import Provenance
from simulator.cost.believed import table_warnings
from simulator.cost.fit import fit_additive, monotone, spread_token_probes
from simulator.cost.models import AdditiveCost, CostModel, ThroughputCurve
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, CurveSpec
from simulator.interop import sglang_tables, tensorrt_llm
from simulator.interop.sglang_dump import UNCENSORED_MODES, StepDump
from simulator.interop.sglang_profiler import ProfilerRounds, load_rounds

if TYPE_CHECKING:
    from simulator.cost.fit import AdditiveFit

Engine = Literal["sglang", "trtllm"]

WHOLE_STEPS = "the engine's steps were measured whole: drafting is inside them and has no price of its own"

REPAIRABLE = 0.05
"""Largest relative change that makes a curve monotone and still counts as measurement noise. A choice."""

_CERTAIN = 1e-6
"""A confidence of 0 or 1 has no finite logit: it is kept this far from them. A choice."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A profile made of an engine's file. notes: what was read, left out and assumed, a line each."""

    profile: Profile
    notes: tuple[str, ...]


def profile_of_table(
    path: Path, engine: Engine, *, name: str, replica_gpus: int | None = None, allow_flat: bool = False
) -> Imported:
    """Make a profile of a cost table, looked up as the engine looks it up.

    Raises ``BadInputError`` for what the engine itself rejects, and for a flat table unless ``allow_flat``.
    """
    cost: ThroughputCurve | AdditiveCost
    if engine == "sglang":
        cost = sglang_tables.load_table(path, allow_flat=allow_flat)
        notes = [f"read {_extent(cost)}, as SGLang looks it up"]
    else:
        table = tensorrt_llm.load_table(path, allow_flat=allow_flat)
        cost = table.cost
        notes = [f"read {_extent(cost)}, as TensorRT-LLM looks it up"]
        if table.engine:
            notes.append("measured on " + ", ".join(f"{key}={value}" for key, value in table.engine.items()))
    notes += [WHOLE_STEPS, *table_warnings(cost)]
    return _imported(path, cost, name, f"a cost table of {_TITLES[engine]}", notes, replica_gpus)


def profile_of_rounds(
    path: Path,
    *,
    name: str,
    gamma: int | None = None,
    replica_gpus: int | None = None,
    allow_flat: bool = False,
) -> Imported:
    """Make a profile of the rounds of SGLang's profiler.

    An additive cost is fitted where rounds of several sizes at equal requests tell its parts apart; else the
    curve through the rounds that verify everything is taken. Raises ``BadInputError`` where neither can be
    had, or where the curve rises by more than ``REPAIRABLE``.
    """
    rounds = load_rounds(path, gamma=gamma, allow_flat=allow_flat)
    notes = [f"read {len(rounds.usable)} steady rounds, blocks of {rounds.gamma}"]
    notes += [f"left out: line {each.line} {each.reason}" for each in rounds.rejected]
    cost: ThroughputCurve | AdditiveCost
    try:
        cells = rounds.cells()
        fit = fit_additive(cells, token_probes=spread_token_probes(cells), folds=_folds(rounds))
        cost = fit.cost
        notes += fit_notes(fit)
    except BadInputError as error:
        cost, said = _diagonal(rounds, path)
        notes += [f"no additive fit ({error.problem}): the curve of rounds that verify everything", *said]
        notes += table_warnings(cost)
    notes += [*rounds.warnings, WHOLE_STEPS]
    return _imported(path, cost, name, "rounds of SGLang's profiler", notes, replica_gpus)


def fit_notes(fit: AdditiveFit) -> list[str]:
    """Say how far to trust a fit, and what a scheduler that reads it would do badly."""
    error = fit.held_out
    shown = f"median {error.median:.1%}, p90 {error.p90:.1%}, max {error.max:.1%}"
    return [f"additive fit, held-out error: {shown}", *fit.warnings]


def trace_of_dump(dump: StepDump) -> AcceptanceTrace:
    """Make a trace of the rounds of a step dump, one row a round, one sequence a request.

    A replay that commits n tokens moves on by n rows, as in a trace of positions; here the next rows are
    later rounds of the same request. The distribution of rounds is kept, their order in time is thinned.
    Raises ``BadInputError`` where outcomes are censored or a round has no confidence.
    """
    if dump.mode not in UNCENSORED_MODES:
        raise BadInputError(
            f"was recorded in mode {dump.mode}, which cuts off what was not verified", source=dump.source,
            field="mode", remedy="write rates to a .json file, or record in cap-accept mode",
        )  # fmt: skip
    if np.isnan(dump.confidence).any():
        raise BadInputError(
            "has rounds without confidence", source=dump.source, field="confidence",
            remedy="record it, or write rates to a .json file",
        )  # fmt: skip
    names = [rid or "" for rid in dump.request]
    order = np.lexsort((dump.forward_ct, np.unique(names, return_inverse=True)[1]))
    lengths = np.unique(names, return_counts=True)[1]
    confidence = np.clip(dump.confidence[order], _CERTAIN, 1 - _CERTAIN)
    notes = "; ".join(("a row is a round, not a position", "confidences as calibrated there", *dump.notes))
    return AcceptanceTrace(
        name=Path(dump.source).stem,
        confidence_logits=logit(confidence).astype(np.float32),
        sequence_start=np.concatenate([[0], np.cumsum(lengths)]),
        provenance=Provenance(
            kind="measured", source=f"{dump.source}, a step dump of SGLang", date="undated", notes=notes
        ),
        accepted=dump.accepted[order].astype(np.uint8),
        block_size=dump.gamma,
    )


def save_rates(rates: Rates, path: Path) -> None:
    """Write rates by position as a file that ``--acceptance`` reads."""
    write_json(path, {
        "conditional_accept_rates": [float(rate) for rate in rates.conditional],
        "accepted_length": 1 + float(np.cumprod(rates.conditional).sum()),
        "read_from": rates.provenance.source,
        "notes": rates.provenance.notes,
    })  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineTable:
    """A step cost as an engine's table. fields: of its JSON. notes: what it does not carry, a line each."""

    fields: dict[str, object]
    notes: tuple[str, ...]


def export_table(
    profile: Profile,
    engine: Engine,
    path: Path,
    *,
    drafter: str | None = None,
    context_tokens: float = 0.0,
) -> tuple[str, ...]:
    """Write a profile's step cost as an engine's table (``engine_table``); returns its notes."""
    table = engine_table(profile, engine, drafter=drafter, context_tokens=context_tokens)
    write_json(path, table.fields)
    return table.notes


def engine_table(
    profile: Profile, engine: Engine, *, drafter: str | None = None, context_tokens: float = 0.0
) -> EngineTable:
    """Return a profile's step cost as an engine's table.

    drafter: the one whose block is part of a step; needed where the profile prices several.
    context_tokens: context of a request for which the table holds; an engine's table has no such axis.
    """
    name = _drafter(profile, drafter)
    target = profile.target_cost()
    if isinstance(target, ThroughputCurve) and name is None and engine == "sglang":
        tokens = _whole(target.batch_tokens)
        times = [target.step_time_s(1, size) for size in tokens]
        curve = ThroughputCurve(tokens, [1 / time for time in times], lookup="floor")
        said = f"{len(tokens)} sizes; the engine looks them up by floor, this profile {target.lookup}"
        return EngineTable(sglang_tables.table_fields(curve), (said,))
    cost = _additive(profile, target, name, context_tokens)
    fields = (sglang_tables if engine == "sglang" else tensorrt_llm).table_fields(cost)
    at = f"; it holds at {context_tokens:g} tokens of context a request" if _has_context(target) else ""
    drafts = "" if name is None else f"; {name}'s block is inside"
    said = f"{len(cost.theta.at)} batch sizes and {len(cost.alpha.at)} request counts{drafts}{at}"
    return EngineTable(fields, (said,))


_TITLES = {"sglang": "SGLang", "trtllm": "TensorRT-LLM"}


def _extent(cost: ThroughputCurve | AdditiveCost) -> str:
    if isinstance(cost, ThroughputCurve):
        return f"a curve of {len(cost.batch_tokens)} sizes up to {cost.batch_tokens[-1]:g} batch tokens"
    return (
        f"an additive cost of {len(cost.alpha.at)} request counts up to {cost.alpha.at[-1]:g} and "
        f"{len(cost.theta.at)} sizes up to {cost.theta.at[-1]:g} batch tokens"
    )


def _folds(rounds: ProfilerRounds) -> int:
    sizes = {(each.requests, each.batch_tokens) for each in rounds.usable}
    return max(2, min(5, len(sizes)))


def _diagonal(rounds: ProfilerRounds, path: Path) -> tuple[ThroughputCurve, list[str]]:
    """Curve through the rounds that verify everything, repaired where noise makes it rise."""
    curve, change = monotone(*rounds.points(), lookup="floor")
    if change > REPAIRABLE:
        raise BadInputError(
            f"a larger batch is faster by {change:.1%}: too much for noise", source=str(path),
            field="steps_per_sec", remedy="measure those sizes again",
        )  # fmt: skip
    return curve, [f"made monotone: points moved by at most {change:.1%}"] if change else []


def _imported(
    path: Path,
    cost: ThroughputCurve | AdditiveCost,
    name: str,
    what: str,
    notes: list[str],
    replica_gpus: int | None,
) -> Imported:
    step = CurveSpec.of(cost) if isinstance(cost, ThroughputCurve) else AdditiveSpec.of(cost)
    provenance = Provenance(kind="measured", source=f"{path}, {what}", date="undated", notes="; ".join(notes))
    profile = Profile(
        name=name, title=f"{name}, from {what}", provenance=provenance, step=step, replica_gpus=replica_gpus
    )
    return Imported(profile, tuple(notes))


def _drafter(profile: Profile, asked: str | None) -> str | None:
    """Drafter whose block is added to the step, None where it is inside already."""
    priced = list(profile.drafters or {})
    if asked is None and len(priced) > 1:
        raise BadInputError(
            "prices several drafters", source=profile.name, field="drafters", value=", ".join(priced),
            remedy="name the one that the engine runs: `drafter`",
        )  # fmt: skip
    if asked is not None and asked not in priced:
        raise BadInputError(
            "is not priced by this profile", source=profile.name, field="drafter", value=asked,
            remedy=f"name one of {', '.join(priced)}" if priced else "leave it out: drafting is in the step",
        )  # fmt: skip
    return asked or (priced[0] if priced else None)


def _has_context(cost: CostModel) -> bool:
    return isinstance(cost, AdditiveCost) and bool(cost.context_s_per_token or cost.row_context_s_per_token)


def _additive(
    profile: Profile, target: CostModel, drafter: str | None, context_tokens: float
) -> AdditiveCost:
    """Sum the target and the drafter into the additive form that both engines know.

    What depends on requests alone goes to alpha, the row's share of context to theta: both are exact at the
    probes and linear between them.
    """
    if _has_context(target) and context_tokens <= 0:
        raise BadInputError(
            "has a cost of context, for which an engine's table has no place", source=profile.name,
            field="context_s_per_token", remedy="say at which context the table holds: `context`",
        )  # fmt: skip
    draft = None if drafter is None else profile.draft_cost(drafter)
    axes = [] if draft is None else [draft.pass_time.at, draft.sequential_time.at]
    if isinstance(target, AdditiveCost):
        tokens, axes = _whole(target.theta.at), [*axes, target.alpha.at]
        bias_s = target.bias_s
    elif isinstance(target, ThroughputCurve):
        tokens, bias_s = _whole(target.batch_tokens), 1.0 / float(target.steps_per_s[0])
    else:
        raise BadInputError("has a step cost without probes", source=profile.name, field="step")
    requests = _whole(np.concatenate([[1.0], *axes]))

    def at_requests(count: int) -> float:
        drafting = 0.0 if draft is None else draft.time_s(count, context_tokens=count * context_tokens)
        if not isinstance(target, AdditiveCost):
            return drafting
        alpha_s = float(target.alpha(count)) + target.context_s_per_token * context_tokens * count
        return drafting + alpha_s

    def at_tokens(size: int) -> float:
        if isinstance(target, AdditiveCost):
            return float(target.theta(size)) + target.row_context_s_per_token * context_tokens * size
        return float(target.step_time_s(1, size)) - bias_s

    alpha_s = [at_requests(count) for count in requests]
    return AdditiveCost(
        bias_s + alpha_s[0], requests, [each - alpha_s[0] for each in alpha_s],
        tokens, [max(at_tokens(size), 0.0) for size in tokens], beyond="clamp",
    )  # fmt: skip


def _whole(points: np.ndarray) -> list[int]:
    """Probes as whole numbers of at least 1, each once."""
    return sorted({max(1, round(float(point))) for point in points})
