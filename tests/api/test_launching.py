"""From deployments to launches: what goes into the files beside the script."""

from __future__ import annotations

import json

import numpy as np
import pytest

import simulator as sim
from simulator.acceptance.trace import AcceptanceTrace
from simulator.api.launching import calibration_of
from simulator.core.provenance import Provenance

MEASURED = Provenance(kind="measured", source="a test", date="2026-11-30")


def trace(scale: float, temperatures: tuple[float, ...] | None = None) -> AcceptanceTrace:
    """Blocks of one draft, accepted with probability sigmoid(z); the head says ``scale`` times z."""
    stream = np.random.default_rng(7)
    z = stream.normal(0.5, 1.5, size=20_000)
    return AcceptanceTrace(
        name="overconfident",
        confidence_logits=(scale * z[:, None]).astype(np.float32),
        sequence_start=np.arange(0, z.size + 1, 100),
        provenance=MEASURED,
        accepted=(stream.random(z.size) < 1 / (1 + np.exp(-z))).astype(np.uint8),
        temperatures=None if temperatures is None else np.array(temperatures),
    )


def test_a_head_that_exaggerates_twofold_gets_a_temperature_of_two() -> None:
    found = calibration_of(trace(2.0))
    assert found is not None
    # SGLang's grid: 41 temperatures from 0.1 to 10 on a log scale, each 1.122 times the one before.
    assert found.temperatures[0] == pytest.approx(2.0, rel=0.125)
    assert found.num_samples == 20_000
    assert found.ece_before is not None
    assert found.ece_after is not None
    assert found.ece_after[0] < 0.02 < found.ece_before[0]


def test_a_trace_keeps_its_own_temperatures_and_models_have_none() -> None:
    found = calibration_of(trace(1.0, (1.7,)))
    assert found is not None
    assert found.temperatures == (1.7,)
    assert calibration_of(sim.acceptance("length:3@5")) is None
    assert calibration_of(sim.acceptance("qwen3-4b/dspark/chat")) is None
    assert calibration_of(None) is None


def test_a_measured_trace_brings_its_calibration_to_the_engine() -> None:
    bench = sim.deployment("deepseek-v4-flash", {"dspark": trace(2.0)})
    made = bench.launch("dspark-async@dspark", "sglang", concurrency=16)
    assert json.loads(made.files["calibration.json"])["temperatures"][0] == pytest.approx(2.0, rel=0.125)
    assert "--speculative-dspark-confidence-sts-path" in made.arguments
    assert not any("No calibration" in note for note in made.notes)
    assert "calibration.json" not in bench.launch("fixed:1", "sglang", concurrency=16).files
    assert bench.launch("dspark-async@dspark", "vllm", concurrency=16).files == {}
