"""A policy's colour: of its name alone, legible on both papers, the same in every kind of output."""

from __future__ import annotations

import random
from itertools import combinations

import pandas as pd
import pytest

from simulator.report.drawing.colours import CONTRASTS, PAPER, Colours, luminance, policy_colour
from simulator.report.frontier import plot_frontier, plot_load
from simulator.report.validation import plot_frontiers
from simulator.ui.figures import bars_figure, day_figure, line_figure

USUAL = ("mtp1", "fixed:3", "dspark-async", "oracle", "dspark", "tiered:0,2,4", "sglang", "autoregressive")
OWN = ("rising-bar", "rising-bar:0.3", "fixed:4@mtp1", "slo:12ms,extend")


def contrast(one: float, other: float) -> float:
    """By WCAG 2.2, of two luminances."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize(
    ("colour", "known"),
    [("#000000", 0.0), ("#ffffff", 1.0), ("#ff0000", 0.2126), ("#767676", 1.05 / 4.54 - 0.05)],
)
def test_luminance(colour: str, known: float) -> None:
    """The ends, a pure channel, and the grey that WCAG names as 4.54 on white."""
    assert luminance(colour) == pytest.approx(known, abs=5e-4)


@pytest.mark.parametrize("policy", [*USUAL, *OWN])
def test_colours_are_seen_on_both_papers(policy: str) -> None:
    for colour, paper in zip(policy_colour(policy), PAPER, strict=True):
        assert contrast(luminance(colour), luminance(paper)) >= 3


@pytest.mark.parametrize("policy", OWN)
def test_colours_that_are_worked_out_have_a_contrast_of_choice(policy: str) -> None:
    for colour, paper in zip(policy_colour(policy), PAPER, strict=True):
        found = contrast(luminance(colour), luminance(paper))
        assert min(abs(found / each - 1) for each in CONTRASTS) < 0.03  # a step of 1/255 in lightness


def test_usual_policies_differ() -> None:
    for scheme in Colours._fields:
        shown = {policy: getattr(policy_colour(policy), scheme) for policy in USUAL}
        for one, other in combinations(USUAL, 2):
            parts = (range(1, 7, 2), shown[one], shown[other])
            apart = [int(parts[1][k : k + 2], 16) - int(parts[2][k : k + 2], 16) for k in parts[0]]
            assert sum(map(abs, apart)) > 60, (one, other)
    assert len({policy_colour(policy) for policy in OWN}) == len(OWN)


def frontier_of(policies: list[str]) -> pd.DataFrame:
    """Two loads of each policy, with every column that a figure reads."""
    return pd.DataFrame(
        {
            "policy": policy, "concurrency": load, "tps_mean": 100.0 / load, "tps_p10": 90.0 / load,
            "throughput_tok_per_s": 100.0 * load, "throughput_ci95": 1.0, "verification_budget_mean": 2.0,
            "gpu": "h100",
        }
        for policy in policies
        for load in (1, 2)
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_every_output_draws_a_policy_in_its_colour(seed: int) -> None:
    """Whatever stands beside it: PNG files, and the app's lines, bars and steps in both schemes."""
    policies = random.Random(seed).sample([*USUAL, *OWN], 7)
    table = frontier_of(policies)
    light, dark = ({policy: policy_colour(policy)[place] for policy in policies} for place in (0, 1))
    for figure in (plot_frontier(table), plot_load(table)):
        lines = [line for line in figure.axes[0].lines if line.get_label() in policies]
        assert {str(line.get_label()): line.get_color() for line in lines} == light
    axes = ("speed", "throughput")
    day = pd.DataFrame({"start_s": [0.0], "end_s": [3600.0]} | {f"replicas {each}": [1] for each in policies})
    plans = pd.DataFrame({"policy": policies})
    for scheme, expected in (("light", light), ("dark", dark)):
        lines = line_figure(table, "tps_mean", "throughput_tok_per_s", axes, scheme)["data"]  # type: ignore[arg-type]
        assert {each["name"]: each["line"]["color"] for each in lines} == expected
        assert {each["name"]: each["marker"]["color"] for each in lines} == expected
        bars = bars_figure(table, "gpu", "tps_mean", "tokens/s", scheme)["data"]  # type: ignore[arg-type]
        assert {each["name"]: each["marker"]["color"] for each in bars} == expected
        steps = day_figure(day, plans, scheme)["data"]  # type: ignore[arg-type]
        assert {each["name"]: each["line"]["color"] for each in steps} == expected


def test_validations_draw_it_so_too() -> None:
    rows = [
        {"policy": policy, "concurrency": 1, "metric": metric, "measured": 1.0, "predicted": 1.0}
        for policy in ("fixed:3", "mtp1")
        for metric in ("tps_p50", "throughput_tok_per_s")
    ]
    lines = plot_frontiers(pd.DataFrame(rows)).axes[0].lines
    drawn = {str(line.get_label()): line.get_color() for line in lines}
    assert {policy: drawn[policy] for policy in ("fixed:3", "mtp1")} == {
        policy: policy_colour(policy).light for policy in ("fixed:3", "mtp1")
    }
