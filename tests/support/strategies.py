"""Hypothesis strategies shared by the tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.provenance import Provenance
from simulator.cost.models import AdditiveCost, CostModel, ThroughputCurve

SYNTHETIC = Provenance(kind="synthetic", source="hypothesis", date="2026-01-01")


def gammas(largest: int = 7) -> st.SearchStrategy[int]:
    """Block sizes."""
    return st.integers(1, largest)


def confidence_logits(rows: int, gamma: int) -> st.SearchStrategy[NDArray[np.float32]]:
    """Raw confidence logits, float32 [rows, gamma], from certain rejection to certain acceptance."""
    return arrays.arrays(np.float32, (rows, gamma), elements=st.floats(-20, 20, width=32))


def probabilities(shape: tuple[int, ...]) -> st.SearchStrategy[NDArray[np.float32]]:
    """Float32 values within 0..1, both ends included."""
    return arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32))


@st.composite
def survivals(draw: st.DrawFn, requests: int, gamma: int) -> NDArray[np.float32]:
    """Survival rows, float32 [requests, gamma]: cumulative products of confidences, so never rising."""
    return np.cumprod(draw(probabilities((requests, gamma))), axis=1, dtype=np.float32)


@st.composite
def acceptance_traces(draw: st.DrawFn) -> AcceptanceTrace:
    """Traces of either kind, of one to four sequences, with and without the optional parts."""
    gamma = draw(gammas())
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    rows = sum(lengths)
    sampled = draw(st.booleans())
    has_head = draw(st.booleans())
    counts = arrays.arrays(np.uint8, rows, elements=st.integers(0, gamma))
    tokens = arrays.arrays(np.int64, rows, elements=st.integers(0, 10**6))
    scales = arrays.arrays(np.float64, gamma, elements=st.floats(0.1, 10))
    return AcceptanceTrace(
        name=draw(st.text(min_size=1, max_size=8)),
        confidence_logits=draw(confidence_logits(rows, gamma)) if has_head else None,
        sequence_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        provenance=SYNTHETIC,
        acceptance_probability=draw(probabilities((rows, gamma))) if sampled else None,
        accepted=None if sampled else draw(counts),
        effective_length=draw(st.none() | counts),
        target_tokens=draw(st.none() | tokens),
        temperatures=draw(st.none() | scales) if has_head else None,
        block_size=gamma,
    )


@st.composite
def throughput_curves(draw: st.DrawFn) -> ThroughputCurve:
    """Monotone throughput curves of one to six points, every lookup and behaviour beyond the end."""
    tokens = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=6)))
    rising_times = np.cumsum(draw(arrays.arrays(np.float64, len(tokens), elements=st.floats(0, 0.01))))
    lookup = draw(st.sampled_from(["linear", "floor", "ceil"]))
    may_extrapolate = lookup == "linear" and len(tokens) > 1
    beyond = draw(st.sampled_from(["clamp", "last-slope"] if may_extrapolate else ["clamp"]))
    return ThroughputCurve(tokens, 1 / (0.002 + rising_times), lookup=lookup, beyond=beyond)


@st.composite
def additive_costs(draw: st.DrawFn) -> AdditiveCost:
    """Additive models with one to four probes on each axis, with and without the optional terms."""
    probes = [sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=4))) for _ in range(2)]
    seconds = st.floats(0, 0.01)
    alpha, theta = (
        np.cumsum(draw(arrays.arrays(np.float64, len(axis), elements=seconds))) for axis in probes
    )
    per_token = st.sampled_from([0.0, 1e-6])
    return AdditiveCost(
        draw(st.floats(1e-4, 0.02)), probes[0], alpha, probes[1], theta,
        context_s_per_token=draw(per_token),
        row_context_s_per_token=draw(per_token),
        prefill_s_per_token=draw(per_token),
        beyond=draw(st.sampled_from(["clamp", "last-slope"])),
    )  # fmt: skip


def cost_models() -> st.SearchStrategy[CostModel]:
    """Throughput curves and additive models."""
    return st.one_of(throughput_curves(), additive_costs())
