"""Predictions beside published results, misses included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.deployment.profile_parts import PublishedClaims
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.comparison import at_slas, speed_gain_range
from simulator.sweeps.frontier import sweep_frontier
from simulator.sweeps.lines import lines

LOAD_RANGE = (10.0, 200.0)
"""Concurrent requests per GPU over which curves are compared: below, the paper's own figures disagree."""

HEADLINE = "dspark-async"
"""The policy that the paper's production results are about."""


def check_against(frontier: pd.DataFrame, published: PublishedClaims) -> pd.DataFrame:
    """One row per published quantity: ``quantity, published, predicted, error``.

    Curves give mean absolute errors over the simulated loads inside ``LOAD_RANGE``: relative for
    throughput, in tokens for the budget. Gains are fractions; their error is predicted - published.
    """
    rows = [
        _curve_row(frontier, policy, points, "throughput_tok_per_s")
        for policy, points in published.throughput.items()
    ]
    rows += [
        _curve_row(frontier, policy, points, "verification_budget_mean")
        for policy, points in published.budget.items()
    ]
    known = set(frontier["policy"])
    if {"mtp1", HEADLINE} <= known:
        rows += _gain_rows(frontier, published)
    return pd.DataFrame([row for row in rows if row], columns=["quantity", "published", "predicted", "error"])


def draft_cost_budgets(
    concurrency: int, draft_s: Sequence[float], *, profile: str = "deepseek-v4-flash", seeds: int = 3
) -> dict[float, float]:
    """Mean verification budget of the headline policy where each step takes so much longer, s, for drafting.

    The scheduler knows. What a constant adds to a step makes each further row cheaper in proportion, so
    more is admitted, not less.
    """
    loaded, policy = load_profile(profile), parse_policy(HEADLINE)
    budgets = {}
    for extra_s in draft_s:
        deployment = replace(deploy(loaded), overhead_s=extra_s)
        table = sweep_frontier(deployment, [policy], [concurrency], seeds=seeds)
        budgets[extra_s] = float(table["verification_budget_mean"].iloc[0])
    return budgets


def _curve_row(
    frontier: pd.DataFrame, policy: str, points: tuple[tuple[float, float], ...], column: str
) -> dict[str, object] | None:
    x, y = np.array(points).T
    mine = frontier[frontier["policy"] == policy]
    load = mine["concurrency"].to_numpy(dtype=np.float64)
    inside = (load >= max(LOAD_RANGE[0], x[0])) & (load <= min(LOAD_RANGE[1], x[-1]))
    if not inside.any():
        return None
    predicted, expected = mine[column].to_numpy()[inside], np.interp(load[inside], x, y)
    relative = column == "throughput_tok_per_s"
    error = np.abs(predicted / expected - 1) if relative else np.abs(predicted - expected)
    what = "throughput" if relative else "verification budget"
    span = f"{load[inside][0]:g} to {load[inside][-1]:g} requests"
    return {
        "quantity": f"{policy} {what}, mean from {span}",
        "published": float(expected.mean()),
        "predicted": float(predicted.mean()),
        "error": float(error.mean()),
    }


def _gain_rows(frontier: pd.DataFrame, published: PublishedClaims) -> list[dict[str, object]]:
    rows = []
    base, best = lines(frontier)["mtp1"], lines(frontier)[HEADLINE]
    for text, gain in published.throughput_gain_at_sla.items():
        sla = float(text)
        if min(base.tps.max(), best.tps.max()) < sla:
            continue  # a policy that misses the SLA has no throughput to compare
        table = at_slas(frontier[frontier["policy"].isin(["mtp1", HEADLINE])], [sla]).set_index("policy")
        predicted = float(table.loc[HEADLINE, "gain"])  # type: ignore[arg-type]
        what = f"throughput gain over mtp1 at {sla:g} tokens/s/user"
        rows.append(_row(f"{what}, as claimed", gain, predicted))
        over_load = gain_over_load(published, sla)
        if over_load is not None:
            rows.append(_row(f"{what}, by the published lines over load", over_load, predicted))
        if published.tps_gain_at_matched_throughput:
            low, high = published.tps_gain_at_matched_throughput
            speed = float(table.loc[HEADLINE, "speed_gain"])  # type: ignore[arg-type]
            if not np.isnan(speed):  # the other policy's sweep may end below that throughput
                nearest = float(np.clip(speed, low, high))
                what = f"speed gain at mtp1's throughput there (published range {low:.0%} to {high:.0%})"
                rows.append(_row(what, nearest, speed))
    if published.tps_gain_at_matched_throughput:
        measured = speed_gain_range(frontier, HEADLINE)
        for name, claim, found in zip(
            ("smallest", "largest"), published.tps_gain_at_matched_throughput, measured, strict=True
        ):
            rows.append(_row(f"{name} speed gain at matched throughput, all loads", claim, found))
    return rows


def gain_over_load(published: PublishedClaims, sla: float) -> float | None:
    """Return the published gain at a speed where MTP-1 is read off its line over load (figure 8), a fraction.

    Speed is throughput / load. The claims rest on the lines over speed (figure 7), whose MTP-1 is another: on
    Pro at 50 tokens/s/user less than half as fast. Where no line of the headline policy over load was
    published, its throughput is what the claim and MTP-1's line over speed make it. None where MTP-1's line
    over load does not reach the speed.
    """
    if "mtp1" not in published.throughput:
        return None
    base = _at_speed(published.throughput["mtp1"], sla)
    if HEADLINE in published.throughput:
        best = _at_speed(published.throughput[HEADLINE], sla)
    elif "mtp1" in published.throughput_vs_tps and f"{sla:g}" in published.throughput_gain_at_sla:
        speed, throughput = np.array(sorted(published.throughput_vs_tps["mtp1"])).T
        claimed = 1 + published.throughput_gain_at_sla[f"{sla:g}"]
        best = claimed * float(np.interp(sla, speed, throughput, left=np.nan, right=np.nan))
    else:
        return None
    return None if np.isnan(base) or np.isnan(best) else best / base - 1


def _at_speed(points: tuple[tuple[float, float], ...], sla: float) -> float:
    """Throughput where a line over load gives each request ``sla`` tokens/s; NaN where it does not."""
    load, throughput = np.array(points).T
    speed = throughput / load
    order = np.argsort(speed)
    return float(np.interp(sla, speed[order], throughput[order], left=np.nan, right=np.nan))


def _row(quantity: str, published: float, predicted: float) -> dict[str, object]:
    return {
        "quantity": quantity,
        "published": published,
        "predicted": predicted,
        "error": predicted - published,
    }
