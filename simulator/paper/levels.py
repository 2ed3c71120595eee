"""The level of each draft position at which conditional acceptance is as published."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

from simulator.acceptance.fitted import Chances, expected_walk
from simulator.core.arrays import Floats


def solve_levels(text: Chances, conditional: Sequence[float], *, rounds: int = 5) -> Floats:
    """Log-odds to add per position so that conditional acceptance under full verification is as given.

    text: log-odds at level 0, [sequences, rows, gamma]. Positions are solved left to right, because the
    survivors of earlier drafts are easier than the rest; and again with the visits that result, because
    acceptance decides where steps begin.
    """
    levels: Floats = np.asarray(logit(conditional), dtype=np.float64)
    visits = np.ones(text.shape[:2])
    for _ in range(rounds):
        weight = visits
        for k, wanted in enumerate(conditional):
            levels[k] = _solve_position(text[:, :, k], weight, wanted, levels[k])
            weight = weight * expit(text[:, :, k] + levels[k])
        visits, _ = expected_walk(expit(text + levels.astype(np.float32)))
    return levels


def _solve_position(text: Chances, weight: Floats, wanted: float, level: float) -> float:
    """Newton's method for the level at which the weighted mean chance is ``wanted``."""
    total = weight.sum()
    for _ in range(20):
        chance = expit(text + np.float32(level))
        excess = (weight * chance).sum() / total - wanted
        slope = (weight * chance * (1 - chance)).sum() / total
        level -= float(np.clip(excess / slope, -1, 1))
        if abs(excess) < 1e-6:
            break
    return level
