"""Fit the latent acceptance model to the paper's figures.

Four stages, each with the earlier ones fixed:

1. How predictability spreads and how the head reports it, from figure 6 (one least-squares problem);
   inside it and after it, the level of each draft position so that figure 2 holds exactly.
2. How much wider difficulty spreads in math, in code and in MT-Bench, from the ends of figure 5.
3. Levels per drafter and kind of text, from figure 2, and sequential temperatures for DSpark.
4. One shift per target, drafter and dataset, from table 1.

Everything is an expectation over one fixed pool of text, weighted by how often a request that verifies
whole blocks has its anchor there: no outcome is drawn, so the fit is smooth and repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from simulator.acceptance.calibration import (
    TemperatureFit,
    expected_calibration_error,
    fit_temperatures,
    prefix_survival,
    reliability,
    roc_auc,
)
from simulator.acceptance.fitted import (
    LOGIT_LIMIT,
    PLAIN_TEXT,
    SOLVING_SEQUENCES,
    Chances,
    Parameters,
    Predictability,
    Text,
    expected_walk,
    solve_level,
)
from simulator.acceptance.trace import SEQUENCES
from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.paper.figures import Domain, PositionReliability, Published
from simulator.paper.levels import solve_levels
from simulator.paper.texts import TextFit

Floats = NDArray[np.float64]

REQUEST_SHARE, CORRELATION = 0.3, 0.9
"""Assumed, as nothing published bears on them: part of the shared variance that lasts a whole request, and
correlation of the rest between neighbouring tokens (a memory of about ten tokens)."""

_THINNING = 4
"""In stage 1, statistics use every fourth anchor: neighbours are nearly alike and cost as much."""

_TOLERANCE = {"auc": 0.005, "ece_before": 0.002, "ece_after": 0.004, "histogram": 0.06, "reliability": 0.015}
"""How far from the published value counts as one unit of misfit."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedSteps:
    """What an experimenter would record of steps under full verification, in expectation.

    logits: true log-odds [N, gamma]; prefix: P(drafts 1..k accepted) [N, gamma]; visits: weight [N].
    """

    logits: Chances
    prefix: Floats
    visits: Floats

    @classmethod
    def of(cls, logits: Chances, thinning: int = 1) -> ExpectedSteps:
        """Walk requests over log-odds [sequences, rows, gamma]."""
        visits, prefix = expected_walk(expit(logits))
        gamma = logits.shape[2]
        return cls(
            logits=logits[:, ::thinning].reshape(-1, gamma),
            prefix=prefix[:, ::thinning].reshape(-1, gamma),
            visits=visits[:, ::thinning].ravel(),
        )

    @property
    def conditional_acceptance(self) -> Floats:
        """P(draft k accepted | those before it), [gamma]."""
        survival = self.visits @ self.prefix / self.visits.sum()
        rates: Floats = survival / np.concatenate([[1.0], survival[:-1]])
        return rates

    def temperatures(self, raw: Chances) -> TemperatureFit:
        """Sequential temperatures for raw confidence logits [N, gamma], reference convention."""
        weight = np.broadcast_to(self.visits[:, None], raw.shape)
        return fit_temperatures(raw, self.prefix, weight=weight)


@dataclass(frozen=True, slots=True)
class Confidence:
    """The unknowns of stage 1."""

    skew: float
    passage_scale: tuple[float, float]
    token_scale: tuple[float, float]
    stretch: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def unpacked(cls, vector: Sequence[float] | Floats) -> Confidence:
        """Invert flattening, for an optimiser."""
        skew, p0, p1, t0, t1, *head = map(float, vector)
        half = len(head) // 2
        return cls(skew, (p0, p1), (t0, t1), tuple(head[:half]), tuple(head[half:]))

    def predictability(self, gamma: int) -> Predictability:
        """Scales run evenly from the first draft position to the last."""
        return Predictability(
            skew=self.skew,
            request_share=REQUEST_SHARE,
            correlation=CORRELATION,
            passage_scale=tuple(np.linspace(*self.passage_scale, gamma).tolist()),
            token_scale=tuple(np.linspace(*self.token_scale, gamma).tolist()),
        )

    def head(self, positions: Sequence[int], gamma: int) -> tuple[Floats, Floats]:
        """``(stretch, offset)`` at every draft, interpolated between the published positions."""
        drafts = np.arange(1, gamma + 1)
        return np.interp(drafts, positions, self.stretch), np.interp(drafts, positions, self.offset)


def confidence_misfit(
    vector: Sequence[float] | Floats, /, figures: Published, sequences: int = SEQUENCES
) -> Floats:
    """Residuals of stage 1 against figure 6, in units of ``_TOLERANCE``."""
    conditional = figures.conditional_acceptance.values["chat"]["dspark"]
    confidence = Confidence.unpacked(vector)
    text = confidence.predictability(len(conditional)).draw(random_stream(0, "fit confidence"), sequences)
    logits = _levelled(text, solve_levels(text, conditional, rounds=3))
    observed = ExpectedSteps.of(logits, _THINNING)
    positions = figures.reliability.positions
    stretch, offset = confidence.head(sorted(positions), len(conditional))
    raw = (observed.logits * stretch + offset).astype(np.float32)
    after = observed.temperatures(raw).ece_after
    predicted = prefix_survival(raw)
    return np.concatenate(
        [
            _position_misfit(
                predicted[:, k - 1], observed.prefix[:, k - 1], observed.visits, after[k - 1], target
            )
            for k, target in positions.items()
        ]
    )


def _position_misfit(
    predicted: Floats, accepted: Floats, weight: Floats, ece_after: float, target: PositionReliability
) -> Floats:
    bins = len(target.histogram)
    found = reliability(predicted, accepted, bins=bins, weight=weight)
    histogram, observed = np.zeros(bins), np.asarray(target.before)[:, 1].copy()
    histogram[found.bin] = found.weight / found.weight.sum()
    observed[found.bin] = found.observed
    published = np.asarray(target.histogram)
    ece_before = expected_calibration_error(predicted, accepted, bins=bins, weight=weight)
    misfit = {
        "auc": [roc_auc(predicted, accepted, weight=weight, histogram_bins=1000) - target.roc_auc],
        "ece_before": [ece_before - target.ece_before],
        "ece_after": [ece_after - target.ece_after],
        "histogram": np.cumsum(histogram - published),
        "reliability": (observed - np.asarray(target.before)[:, 1]) * np.sqrt(published),
    }
    return np.concatenate([np.asarray(value) / _TOLERANCE[name] for name, value in misfit.items()])


def fit_confidence(figures: Published, *, sequences: int = SEQUENCES, evaluations: int = 25) -> Confidence:
    """Stage 1. ``evaluations`` counts steps of the optimiser, each of which costs 14 model runs."""
    places = len(figures.reliability.positions)
    start = [0.9, 1.5, 1.0, 1.2, 1.2] + [1.2] * places + [0.2] * places
    low = [0.05] + [0.05] * 4 + [0.5] * places + [-2.0] * places
    high = [1.5] + [4.0] * 4 + [2.5] * places + [2.0] * places
    found = least_squares(
        confidence_misfit,
        start,
        bounds=(low, high),
        diff_step=[1e-2] * len(start),  # the binned statistics are not smooth below this
        max_nfev=evaluations,
        args=(figures, sequences),
    )
    return Confidence.unpacked(np.round(found.x, 4).tolist())


def fit_parameters(
    figures: Published,
    confidence: Confidence,
    *,
    command: str,
    sequences: int = SOLVING_SEQUENCES,
    text_sequences: int = SEQUENCES,
    progress: Callable[[str], None] = print,
) -> Parameters:
    """Stages 2 to 4: kinds of text, levels and temperatures, and one shift per cell of table 1.

    sequences, text_sequences: of the pools for levels and shifts, and for kinds of text.
    """
    gamma = figures.accepted_length.gamma
    predictability = confidence.predictability(gamma)
    stretch, offset = confidence.head(sorted(figures.reliability.positions), gamma)
    fits = {
        name: TextFit(figures, domain, predictability, stretch, offset, text_sequences)
        for name, domain in _MEASURED
    }
    texts = _texts(fits, progress)
    pools = {
        name: predictability.of(texts.get(name, PLAIN_TEXT)).draw(random_stream(0, "solving pool"), sequences)
        for name in _DOMAIN_OF
    }
    shapes: dict[str, dict[str, Any]] = {}
    for name, domain in _DOMAIN_OF.items():
        head = offset + texts.get(name, PLAIN_TEXT).offset
        for drafter, conditional in figures.conditional_acceptance.values[domain].items():
            progress(f"levels of {drafter} on {name}")
            levels = solve_levels(pools[name], conditional)
            temperatures = None
            if drafter == figures.reliability.drafter:
                observed = ExpectedSteps.of(_levelled(pools[name], levels), _THINNING)
                temperatures = observed.temperatures(
                    (observed.logits * stretch + head).astype(np.float32)
                ).temperatures
            shapes[f"{drafter}/{name}"] = {"levels": _rounded(levels), "temperatures": temperatures}
    return Parameters.model_validate(
        {
            "schema": "dspark-simulator/fitted-acceptance",
            "version": 1,
            "provenance": _provenance(figures, command),
            "predictability": predictability,
            "stretch": _rounded(stretch),
            "offset": _rounded(offset),
            "texts": texts,
            "shapes": shapes,
            "models": _domain_models(figures) | _cells(figures, pools, shapes, progress),
        }
    )


_DOMAIN_OF: Mapping[str, Domain] = {"math": "math", "code": "code", "chat": "chat", "mt-bench": "chat"}
"""Kinds of text, and the domain whose curves of figure 2 are theirs. Chat at large is figure 6's Alpaca;
MT-Bench, chat too, has ends of its own in figure 5."""


_MEASURED: tuple[tuple[str, Domain], ...] = (("math", "math"), ("code", "code"), ("mt-bench", "chat"))
"""Kinds of text with a panel in figure 5: math and code at large are as its one dataset."""


def _texts(fits: Mapping[str, TextFit], progress: Callable[[str], None]) -> dict[str, Text]:
    """Fit a kind of text to each panel of figure 5."""
    texts = {}
    for name, fit in fits.items():
        texts[name] = fit.solve()
        progress(f"text of {name}: spread x{texts[name].spread:g}, head {texts[name].offset:+g}")
    return texts


def _domain_models(figures: Published) -> dict[str, dict[str, Any]]:
    """Figure 2 itself: its target on each domain, beside the mean of table 1's datasets."""
    target = figures.conditional_acceptance.target
    return {
        f"{target}/{drafter}/{domain}": {
            "shape": f"{drafter}/{domain}",
            "shift": 0.0,
            "published_accepted_length": round(
                figures.accepted_length.domain_mean(target, drafter, domain), 3
            ),
        }
        for domain, drafters in figures.conditional_acceptance.values.items()
        for drafter in drafters
    }


def _cells(
    figures: Published,
    pools: Mapping[str, Chances],
    shapes: Mapping[str, dict[str, Any]],
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    cells = {}
    for target, drafter, dataset, domain, length in figures.accepted_length.cells():
        text = dataset if dataset in _DOMAIN_OF else domain
        name, shape = f"{target}/{drafter}/{dataset}", f"{drafter}/{text}"
        shift = solve_level(_levelled(pools[text], shapes[shape]["levels"]), length)
        progress(f"{name}: shift {shift:+.3f}")
        cells[name] = {"shape": shape, "shift": round(shift, 4), "published_accepted_length": length}
    return cells


def _levelled(text: Chances, levels: Sequence[float] | Floats) -> Chances:
    logits: Chances = np.clip(text + np.asarray(levels, dtype=np.float32), -LOGIT_LIMIT, LOGIT_LIMIT)
    return logits


def _rounded(values: Floats) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _provenance(figures: Published, command: str) -> Provenance:
    return Provenance(
        kind="fitted",
        source=figures.provenance.source,
        date=figures.provenance.date,
        command=command,
        notes=(
            "Confidence and its spread: figure 6 (Qwen3-4B, DSpark, Alpaca). On math, code and MT-Bench the "
            "spread is wider and the head shifted, so that figure 5 is met at both of its published ends. "
            "Shape over draft positions: figure 2 (Qwen3-4B), by drafter and domain. "
            "Level: table 1, one shift per cell. "
            f"Assumed: request share {REQUEST_SHARE}, correlation {CORRELATION}."
        ),
    )
