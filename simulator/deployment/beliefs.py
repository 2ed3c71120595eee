"""Wrong cost tables that a scheduler may believe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from simulator.core.errors import BadInputError
from simulator.core.reading import read_json
from simulator.core.units import require_ascii_digits
from simulator.cost.curve import Lookup
from simulator.cost.models import AdditiveCost, CostModel, StepCost, ThroughputCurve
from simulator.deployment.profile_parts import AdditiveSpec
from simulator.deployment.setup import Setup

BELIEFS = {
    "coarse:N": "N probes of full batches, interpolated linearly",
    "floor:N": "the same probes, the last one at or below: tokens look free before a riser",
    "ceil:N": "the same probes, the first one at or above: a batch padded to the captured size",
    "flat": "every step takes as long as one of a single request: verify everything",
    "scaled:F": "every step believed F times as long; changes nothing, as only ratios count",
    "no-context": "the table without its terms in context tokens",
    "FILE.json": "a profile, an SGLang or a TensorRT-LLM table: another engine's",
}
"""Ways in which a table can be wrong, as written on a command line."""


def believe(text: str, plan: Setup, most_requests: int) -> CostModel:
    """Return the step cost that a belief stands for, drafting and overhead included as in the true one."""
    kind, _, argument = text.partition(":")
    target = plan.cost.target if isinstance(plan.cost, StepCost) else plan.cost
    gamma = plan.acceptance.gamma if plan.acceptance is not None else 0
    wrong: CostModel
    if kind in ("coarse", "floor", "ceil"):
        lookup: Lookup = "linear" if kind == "coarse" else "floor" if kind == "floor" else "ceil"
        wrong = probed(target, _count(argument, text), gamma, most_requests, lookup)
    elif text == "flat":
        wrong = ThroughputCurve([1.0], [1.0 / target.step_time_s(1, 1)], lookup="floor")
    elif kind == "scaled":
        from simulator.cost.scaled import ScaledCost

        wrong = ScaledCost(target, _positive(argument, text))
    elif text == "no-context":
        wrong = _without_context(target, text)
    elif text.endswith(".json"):
        wrong = load_table(Path(text))
    else:
        raise BadInputError(
            "is not a belief", source="believed", value=text, remedy=f"one of {', '.join(BELIEFS)}"
        )
    return replace(plan.cost, target=wrong) if isinstance(plan.cost, StepCost) else wrong


def probed(target: CostModel, probes: int, gamma: int, most_requests: int, lookup: Lookup) -> ThroughputCurve:
    """Probe as a profiler that runs whole blocks only.

    ``probes`` batches from one request to the most, spread geometrically, each of requests * (gamma + 1)
    tokens.
    """
    requests = np.unique(np.geomspace(1, max(most_requests, 2), probes).round().astype(int))
    tokens = requests * (gamma + 1)
    times = [target.step_time_s(int(r), int(b)) for r, b in zip(requests, tokens, strict=True)]
    return ThroughputCurve(tokens, 1 / np.maximum.accumulate(times), lookup=lookup)


def load_table(path: Path) -> CostModel:
    """Load a profile's, SGLang's or TensorRT-LLM's table as its engine looks it up, right or wrong."""
    from simulator.deployment.profile import load_profile
    from simulator.interop import sglang_tables as sglang
    from simulator.interop import tensorrt_llm

    content = read_json(path)
    keys = set(content) if isinstance(content, dict) else set()
    if "provenance" in keys:
        return load_profile(path).target_cost()
    if "token_counts" in keys:
        return tensorrt_llm.load_believed(path)
    if keys & {"sample_batch_tokens", "bias_seconds"}:
        return sglang.load_believed(path)
    raise BadInputError(
        "is no cost table",
        source=str(path),
        field="believed",
        remedy="give a profile, an SGLang or a TensorRT-LLM table",
    )


def table_of(text: str) -> CostModel:
    """Return the table in a file as its engine looks it up, or the target's steps of a shipped profile."""
    from simulator.deployment.profile import load_profile

    return load_table(Path(text)) if text.endswith(".json") else load_profile(text).target_cost()


def _without_context(target: CostModel, text: str) -> CostModel:
    if not isinstance(target, AdditiveCost):
        raise BadInputError(
            "changes nothing: the true cost has no context axis", source="believed", value=text,
            remedy="use a profile with an additive cost",
        )  # fmt: skip
    blind = {"context_s_per_token": 0.0, "row_context_s_per_token": 0.0}
    return AdditiveSpec.of(target).model_copy(update=blind).build()


def _count(argument: str, text: str) -> int:
    require_ascii_digits(argument, source="believed")
    if not argument.isdigit() or int(argument) < 2:
        raise BadInputError("needs at least 2 probes", source="believed", value=text, remedy="as in floor:4")
    return int(argument)


def _positive(argument: str, text: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not (np.isfinite(value) and value > 0):
        raise BadInputError("needs a positive factor", source="believed", value=text, remedy="scaled:1.2")
    return value
