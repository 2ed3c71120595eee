"""DeepSeek-V4's production serving: what its published lines say a step, a draft and an accepted block are.

The step-time curve comes from the MTP-1 baseline alone. MTP-1 verifies two rows per request, so a step over
B = 2R rows takes S = tau * R / throughput(R), with tau the accepted length of MTP-1. Such a step contains the
pass of MTP-1's own module. What the target takes alone, and what other drafters take, follows by layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from simulator.acceptance.fitted import Chances, FittedModel, expected_walk
from simulator.acceptance.rates import Mix
from simulator.core.arrays import Floats
from simulator.core.files import data_directory
from simulator.core.reading import read_json
from simulator.cost.models import ThroughputCurve
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.profile_parts import CurveSpec, DraftSpec
from simulator.hardware.drafters import SEQUENTIAL_TURN_S

MTP1_ACCEPTED_LENGTH = 1.85
"""Accepted length of MTP-1 in DeepSeek's production, near 1.85; DeepSeek-V3's report gives 85 to 90%
acceptance of the second token. It scales the step time."""

TEXT = "0.333333*qwen3-4b-math+0.333333*qwen3-4b-code+0.333334*qwen3-4b-chat"
"""Shape of DSpark's acceptance: math, code and chat in equal parts; its level is another matter."""

_HALVINGS = 12
"""Terms of the series of ``target_times``; each is at most 1/15 of the one before."""


@cache
def sources() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the paper's figures 7 and 8, and the published accepted lengths and shapes."""
    root = data_directory("profiles") / "sources"
    figures: Any = read_json(root / "dspark-paper-figures-7-8.json")
    acceptance: Any = read_json(root / "deepseek-v4-acceptance.json")
    return figures, acceptance


# ---------------------------------------------------------------- steps


class StepCurve(NamedTuple):
    """Whole engine steps of MTP-1: batch tokens B = 2R [n], rising, and steps per second [n]."""

    batch_tokens: Floats
    steps_per_s: Floats


def step_curve(published: Mapping[str, Any], figure_7_alone: bool = False) -> StepCurve:
    """Return steps from the MTP-1 lines of figures 7 and 8, or of figure 7 alone.

    Figure 8 gives throughput over R; figure 7 gives it over tokens/s/user, of which R = throughput / TPS, and
    reaches to lower load. Below the load where the two first agree the curve follows figure 7, above it
    figure 8. The two disagree in between, on Pro by up to a fifth.
    """
    tps, throughput = np.array(published["throughput_vs_tps"]["mtp1"]).T
    load7, time7 = throughput / tps, MTP1_ACCEPTED_LENGTH / tps
    order = np.argsort(load7)
    load7, time7 = load7[order], time7[order]
    if figure_7_alone:
        return StepCurve(2 * load7, 1 / np.maximum.accumulate(time7))
    load8, throughput8 = np.array(published["load"]["mtp1_throughput"]).T
    time8 = MTP1_ACCEPTED_LENGTH * load8 / throughput8
    common = np.geomspace(max(load7[0], load8[0]), min(load7[-1], load8[-1]), 2000)
    gap = np.interp(common, load7, time7) - np.interp(common, load8, time8)
    signs = np.flatnonzero(np.diff(np.sign(gap)))
    meet = common[signs[0]] if signs.size else common[0]
    below, above = load7 < meet, load8 >= meet
    load = np.concatenate([load7[below], load8[above]])
    time = np.maximum.accumulate(np.concatenate([time7[below], time8[above]]))
    return StepCurve(2 * load, 1 / time)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as far as the share of a layer in a pass depends on it."""

    layers: int
    hidden: int
    vocabulary: int
    active_parameters: float

    @property
    def head_in_layers(self) -> float:
        """The output head's parameters over those that are active in a layer."""
        head = self.hidden * self.vocabulary
        return head * self.layers / (self.active_parameters - head)

    def share(self, layers: int) -> float:
        """Share that so many layers and the output head have in a pass of the target over the same rows.

        In proportion to active parameters; the head counts on both sides, as each drafter ends in it.
        """
        return (layers + self.head_in_layers) / (self.layers + self.head_in_layers)


def target_times(step_s: Callable[[Floats], Floats], mtp_share: float, tokens: Floats) -> Floats:
    """Seconds of the target's pass alone over ``tokens`` rows [n], where a step holds MTP-1's pass too.

    A step over B rows is the target's pass over B and its module's, a share of the target's, over B/2:
    S(B) = T(B) + s T(B/2). Hence T(B) = S(B) - s S(B/2) + s^2 S(B/4) - ...
    step_s: S, in seconds, for an array of rows.
    """
    terms = [(-mtp_share) ** k * step_s(tokens / 2**k) for k in range(_HALVINGS)]
    times: Floats = np.maximum.accumulate(np.sum(terms, axis=0))
    return times


class Parts(NamedTuple):
    """A step taken apart: the target's curve, and its drafters' blocks."""

    step: CurveSpec
    drafters: Mapping[str, DraftSpec]


def parts_of(curve: StepCurve, shape: Shape, dspark_layers: int, block: int, mtp_block: int) -> Parts:
    """Take MTP-1's layer out of its steps, and price drafters by their layers.

    MTP's module runs once for each draft over one row a request. DSpark's layers run once over ``block`` rows
    a request, and its sequential head takes a turn for each draft. All attend to a window or to little, so
    that the target's share is an upper bound where its own attention reads long contexts.
    """
    whole = ThroughputCurve(curve.batch_tokens, curve.steps_per_s)

    def step_s(tokens: Floats) -> Floats:
        return np.array([whole.step_time_s(1, float(each)) for each in tokens])  # type: ignore[call-overload]

    def alone(tokens: Floats) -> Floats:
        return target_times(step_s, shape.share(1), tokens)

    requests = np.unique(np.round(np.concatenate([curve.batch_tokens / block, curve.batch_tokens / 2]), 3))
    module = _seconds(shape.share(1) * alone(requests))
    layers = _seconds(shape.share(dspark_layers) * alone(block * requests))
    at = tuple(requests.tolist())
    turn = (SEQUENTIAL_TURN_S,) * len(at)
    return Parts(
        CurveSpec(
            batch_tokens=tuple(round(float(x), 3) for x in curve.batch_tokens),
            steps_per_s=tuple(float(f"{1 / x:.6g}") for x in alone(curve.batch_tokens)),
        ),
        {
            "mtp1": DraftSpec(structure="autoregressive", block_size=1, requests=at, pass_s=module),
            "mtp": DraftSpec(structure="autoregressive", block_size=mtp_block, requests=at, pass_s=module),
            "dspark": DraftSpec(
                structure="semi-autoregressive",
                block_size=block,
                requests=at,
                pass_s=layers,
                sequential_s=turn,
            ),
        },
    )


def _seconds(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in np.maximum.accumulate(values))


# ---------------------------------------------------------------- acceptance


def falling_rates(first: float, accepted_length: float, block: int) -> tuple[float, ...]:
    """Conditional acceptance [block] that starts at ``first`` and gives an accepted length, bonus included.

    Each rate is the same multiple of the one before. One published length cannot tell how the fall is spread;
    a fixed length sees its sum alone.

    >>> [round(rate, 3) for rate in falling_rates(0.8, 1 + 0.8 + 0.32 + 0.064, 3)]
    [0.8, 0.4, 0.2]
    """

    def rates(factor: float) -> Floats:
        chances: Floats = np.minimum(first * factor ** np.arange(block), 1.0)
        return chances

    def excess(factor: float) -> float:
        return 1.0 + float(np.cumprod(rates(factor)).sum()) - accepted_length

    return tuple(round(rate, 4) for rate in rates(float(brentq(excess, 0.0, 1 / first, xtol=1e-12))).tolist())


def accepted_length_at(model: Mix, level: float, block: int) -> float:
    """Return the expected accepted length of fitted models at a level, with blocks cut to ``block``."""
    visits = tokens = 0.0
    for logits, weight in _pools(model):
        seen, prefix = expected_walk(_chances(logits[..., :block], level))
        visits += weight * float(seen.sum())
        tokens += weight * float((seen[..., None] * prefix).sum())
    return 1.0 + tokens / visits


def level_for(model: Mix, accepted_length: float, block: int) -> float:
    """Level, to two decimals, at which full verification commits ``accepted_length``, bonus included."""
    found = brentq(lambda x: accepted_length_at(model, x, block) - accepted_length, -3.0, 3.0, xtol=1e-3)
    return round(float(found), 2)


def text() -> Mix:
    """Return the model whose shape stands in for DSpark's in production."""
    model = parse_acceptance(TEXT)
    assert isinstance(model, Mix)
    return model


@cache
def _pools(model: Mix) -> tuple[tuple[Chances, float], ...]:
    parts = zip(model.components, model.weights, strict=True)
    return tuple((each.log_odds(), weight) for each, weight in parts if isinstance(each, FittedModel))


def _chances(logits: Chances, level: float) -> Chances:
    chances: Chances = 1 / (1 + np.exp(-(logits + np.float32(level))))
    return chances
