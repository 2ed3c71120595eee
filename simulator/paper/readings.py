"""Other readings of what is published, beside the one that ships: each predicts Flash and Pro again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile, load_profile
from simulator.deployment.profile_parts import CurveSpec, PublishedClaims
from simulator.paper.claims_check import HEADLINE, check_against
from simulator.paper.production import sources, step_curve
from simulator.sweeps.frontier import sweep_frontier

LOADS = (10, 14, 20, 28, 40, 55, 75, 100, 130, 165, 200, 250)
"""Concurrent requests of a reading's sweep."""

FITTED_AT = 100
"""The one load of Flash at which a level, or a row's cost, is fitted where a reading fits one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading. fitted: how many numbers were fitted to Flash's DSpark lines.

    level: of DSpark's acceptance in log-odds, None as the traffic's published lengths say. traffic: whose
    lengths those are. by_layers: whether drafters are priced by their layers, or all at MTP-1's price.
    row_cost_s: ``cost.scaled.RowCost``.
    """

    name: str
    fitted: int = 0
    level: float | None = None
    traffic: str = "thinking"
    by_layers: bool = True
    row_cost_s: float = 0.0

    def deployment(self, profile: Profile) -> Deployment:
        """Return a V4 profile as this reading has it."""
        known = production_acceptance()
        spec = known[f"deepseek-v4/dspark/{self.traffic}"]
        if self.level is not None:
            spec = spec.model_copy(update={"level": self.level})
        changed = {"dspark": spec, "mtp": known[f"deepseek-v4/mtp/{self.traffic}"]}
        profile = profile.model_copy(update={"acceptance": {**profile.acceptance, **changed}})
        if not self.by_layers:
            profile = profile.model_copy(update={"step": _whole_steps(profile.name), "drafters": None})
        return replace(deploy(profile, extrapolate_rows=True), row_cost_s=self.row_cost_s)

    def predicted(self, name: str, *, seeds: int = 3, workers: int = -1) -> pd.DataFrame:
        """Return ``check_against`` of one model, ``deepseek-v4-flash`` or ``deepseek-v4-pro``."""
        profile = load_profile(name)
        frontier = sweep_frontier(
            self.deployment(profile), ["mtp1", HEADLINE], LOADS, seeds=seeds, workers=workers
        )
        assert profile.published is not None
        return check_against(frontier, profile.published)


SHIPPED = Reading("as shipped: published acceptance (thinking), drafts by layers")


def readings(*, seeds: int = 3, workers: int = -1) -> tuple[Reading, ...]:
    """Return the shipped reading and the others, those with a fitted number solved for it on Flash."""

    def at(value: float) -> float:
        return round(value, 2)

    level = at(_solve(lambda x: replace(SHIPPED, level=x), _throughput, (-1.0, 1.0), seeds, workers))
    cheap = replace(SHIPPED, by_layers=False)
    cheap_level = at(_solve(lambda x: replace(cheap, level=x), _throughput, (-1.5, 0.5), seeds, workers))
    row_us = at(_solve(lambda x: replace(SHIPPED, row_cost_s=x / 1e6), _budget, (0.0, 40.0), seeds, workers))
    return (
        SHIPPED,
        replace(SHIPPED, name="published acceptance (no thinking), drafts by layers", traffic="no-thinking"),
        replace(cheap, name="published acceptance (thinking), drafts at MTP-1's price"),
        replace(SHIPPED, name=f"drafts by layers, level {level:+.2f} fitted to Flash", fitted=1, level=level),
        replace(cheap, name=f"drafts at MTP-1's price, level {cheap_level:+.2f} fitted to Flash", fitted=1,
                level=cheap_level),
        replace(SHIPPED, name=f"as shipped, a row cost of {row_us:g} us fitted to Flash's budget", fitted=1,
                row_cost_s=row_us / 1e6),
    )  # fmt: skip


def _whole_steps(name: str) -> CurveSpec:
    """Return MTP-1's steps with its module inside, as they were before they were taken apart."""
    figures, _ = sources()
    key = "_".join(name.split("-")[1:3])
    curve = step_curve(figures[key], name.endswith("figure7"))
    return CurveSpec(batch_tokens=tuple(curve.batch_tokens), steps_per_s=tuple(curve.steps_per_s))


Excess = Callable[[Mapping[str, float], PublishedClaims], float]


def _throughput(row: Mapping[str, float], claims: PublishedClaims) -> float:
    published = np.interp(FITTED_AT, *np.array(claims.throughput[HEADLINE]).T)
    return float(row["throughput_tok_per_s"] / published - 1)


def _budget(row: Mapping[str, float], claims: PublishedClaims) -> float:
    published = np.interp(FITTED_AT, *np.array(claims.budget[HEADLINE]).T)
    return float(row["verification_budget_mean"] - published)


def _solve(
    reading: Callable[[float], Reading],
    excess: Excess,
    between: tuple[float, float],
    seeds: int,
    workers: int,
) -> float:
    flash = load_profile("deepseek-v4-flash")
    assert flash.published is not None
    claims = flash.published

    def misfit(value: float) -> float:
        table = sweep_frontier(
            reading(value).deployment(flash), HEADLINE, FITTED_AT, seeds=seeds, workers=workers
        )
        row = {str(name): each for name, each in table.iloc[0].items()}
        return excess(row, claims)

    return float(brentq(misfit, *between, xtol=0.005 * (between[1] - between[0])))
