"""How far apart easy and hard text lie in a domain: fitted to the two public ends of figure 5.

Figure 6 measures one dataset, Alpaca. Figure 5 verifies GSM8K, HumanEval and MT-Bench up to the first draft
whose raw confidence is below a threshold, and the paper states what that gives at thresholds 0 and 0.9. At 0
it is table 1 again. At 0.9 two numbers remain, accepted length and acceptance rate, and two unknowns meet
them: a factor on the spread of difficulty, and a shift of the confidence head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from simulator.acceptance.fitted import (
    LOGIT_LIMIT,
    Chances,
    Predictability,
    Text,
    expected_walk,
    solve_level,
)
from simulator.acceptance.trace import SEQUENCES
from simulator.core.arrays import Floats
from simulator.core.random import random_stream
from simulator.paper.figures import Domain, Published, SweepEnds
from simulator.paper.levels import solve_levels

_TOLERANCE = (0.01, 0.002)
"""What counts as one unit of misfit: the last digit of an accepted length, and two of a rate's."""

_START, _LOWEST, _HIGHEST = (1.0, 1.0), (0.4, -1.0), (2.5, 3.0)
"""Factor on the spread, and 1 + the shift: the optimiser's steps are relative, so that 0 would not move."""


class ThresholdEnd(NamedTuple):
    """Verification up to a static threshold, in expectation; the bonus token counts in both."""

    accepted_length: float
    acceptance_rate: float


def expected_threshold(
    logits: Chances, stretch: Sequence[float] | Floats, offset: Sequence[float] | Floats, threshold: float
) -> ThresholdEnd:
    """Verify up to a static threshold: ``sweeps.thresholds.threshold_sweep`` without drawing outcomes.

    logits: true log-odds [sequences, rows, gamma]. stretch, offset: [gamma], see ``acceptance.fitted.Head``.
    """
    raw = logits * np.asarray(stretch, np.float32) + np.asarray(offset, np.float32)
    kept = np.logical_and.accumulate(expit(raw) >= threshold, axis=2)
    visits, prefix = expected_walk((expit(logits) * kept).astype(np.float32))
    accepted = float((visits * (1 + prefix.sum(axis=2))).sum())
    verified = float((visits * (1 + kept.sum(axis=2))).sum())
    return ThresholdEnd(accepted / float(visits.sum()), accepted / verified)


class TextFit:
    """The misfit of figure 5's end of one domain, as a function of the two unknowns."""

    def __init__(
        self,
        figures: Published,
        domain: Domain,
        base: Predictability,
        stretch: Floats,
        offset: Floats,
        sequences: int = SEQUENCES,
    ) -> None:
        self.ends: SweepEnds = figures.threshold_sweep_ends.values[domain]
        drafter = figures.threshold_sweep_ends.drafter
        self.conditional = figures.conditional_acceptance.values[domain][drafter]
        self.base, self.stretch, self.offset, self.sequences = base, stretch, offset, sequences

    def found(self, text: Text) -> ThresholdEnd:
        """Return what the model gives at the last threshold, at the accepted length of threshold 0."""
        drawn = self.base.of(text).draw(random_stream(0, "solving pool"), self.sequences)
        logits = drawn + solve_levels(drawn, self.conditional, rounds=3).astype(np.float32)
        logits = logits + np.float32(solve_level(logits, self.ends.accepted_length[0]))
        logits = np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
        return expected_threshold(logits, self.stretch, self.offset + text.offset, self.ends.threshold[1])

    def misfit(self, vector: Floats) -> list[float]:
        """Residuals in units of ``_TOLERANCE``."""
        found = self.found(_text(vector))
        wanted = (self.ends.accepted_length[1], self.ends.acceptance_rate[1])
        return [(a - b) / unit for a, b, unit in zip(found, wanted, _TOLERANCE, strict=True)]

    def solve(self) -> Text:
        """Return the text for which both numbers are as published."""
        found = least_squares(
            self.misfit, _START, bounds=(_LOWEST, _HIGHEST), diff_step=[0.02, 0.05], max_nfev=12
        )
        return _text(np.round(found.x, 4))


def _text(vector: Floats) -> Text:
    return Text(spread=float(vector[0]), offset=round(float(vector[1]) - 1, 4))
