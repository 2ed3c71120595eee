"""Cost tables and calibration: what engines accept and reject, and that what is written reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.acceptance.calibration import SGLANG, TemperatureFit
from simulator.core.errors import BadInputError
from simulator.cost.believed import table_warnings
from simulator.cost.models import AdditiveCost, ThroughputCurve
from simulator.interop import sglang_tables as sglang
from simulator.interop import tensorrt_llm
from simulator.schedulers.search import admit, global_maximum, on_grid, throughput_of_budget

Write = Callable[[object], Path]

DIAGONAL = {
    "sample_batch_tokens": [8, 16, 32],
    "sample_steps_per_sec": [10.28, 7.81, 5.42],
    "max_batch_tokens": 32,
}
ADDITIVE = {
    "bias_seconds": 0.012,
    "bs_probes": [1, 64],
    "alpha_seconds": [0.0, 0.006],
    "m_probes": [0, 64, 512],
    "theta_seconds": [0.0, 0.001, 0.011],
}
TENSORRT = {
    "token_counts": [0, 128, 256],
    "step_time_ms": [2.0, 2.1, 4.0],
    "fixed_overhead_ms": 0.0,
    "batch_sizes": [1, 16],
    "batch_overhead_ms": [3.0, 5.0],
    "_meta": {"encoding": "decomposed", "engine": {"tp": 8}},
}

same_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: object) -> Path:
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def probes(smallest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(smallest, 4096), min_size=2, max_size=8, unique=True).map(sorted)


def rising_times(count: int) -> st.SearchStrategy[list[float]]:
    increments = st.lists(st.floats(0, 0.01), min_size=count, max_size=count)
    return increments.map(lambda steps: np.cumsum(steps).tolist())


@st.composite
def throughput_curves(draw: st.DrawFn) -> ThroughputCurve:
    tokens = draw(probes(1))
    step_time_s = 1e-3 + np.array(draw(rising_times(len(tokens))))
    return ThroughputCurve(tokens, 1 / step_time_s, lookup="floor")


@st.composite
def additive_costs(draw: st.DrawFn) -> AdditiveCost:
    requests, tokens = draw(probes(1)), draw(probes(0))
    bias_s = draw(st.floats(1e-4, 1.0))
    return AdditiveCost(
        bias_s, requests, draw(rising_times(len(requests))), tokens, draw(rising_times(len(tokens))),
        beyond="clamp",  # all that an engine's table can say
    )  # fmt: skip


# --- SGLang -------------------------------------------------------------------------------------------------


@same_folder
@given(throughput_curves(), st.integers(0, 100))
def test_diagonal_tables_read_back_bit_for_bit(tmp_path: Path, curve: ThroughputCurve, room: int) -> None:
    path = tmp_path / "table.json"
    sglang.save_table(path, curve, max_batch_tokens=int(curve.batch_tokens[-1]) + room)
    loaded = sglang.load_table(path, allow_flat=True)
    assert isinstance(loaded, ThroughputCurve)
    assert loaded.lookup == "floor"
    assert loaded.batch_tokens.tolist() == curve.batch_tokens.tolist()
    assert loaded.steps_per_s.tolist() == curve.steps_per_s.tolist()
    # The engine tells the kinds apart by this text, so it must not occur here.
    assert '"bias_seconds"' not in path.read_text()


@same_folder
@given(additive_costs())
def test_additive_tables_read_back_bit_for_bit(tmp_path: Path, cost: AdditiveCost) -> None:
    path = tmp_path / "table.json"
    sglang.save_table(path, cost)
    loaded = sglang.load_table(path, allow_flat=True)
    assert isinstance(loaded, AdditiveCost)
    assert loaded.bias_s == cost.bias_s
    for part, expected in ((loaded.alpha, cost.alpha), (loaded.theta, cost.theta)):
        assert part.at.tolist() == expected.at.tolist()
        assert part.value.tolist() == expected.value.tolist()


def test_diagonal_lookup_is_floor_and_clamped(write: Write) -> None:
    table = sglang.load_table(write(DIAGONAL))
    rates = [1 / table.step_time_s(1, tokens) for tokens in (1, 8, 15, 16, 31, 32, 1000)]
    assert rates == pytest.approx([10.28, 10.28, 10.28, 7.81, 7.81, 5.42, 5.42])


def test_additive_lookup_is_linear_and_clamped(write: Write) -> None:
    table = sglang.load_table(write(ADDITIVE))
    assert table.step_time_s(1, 0) == pytest.approx(0.012)
    assert table.step_time_s(1, 288) == pytest.approx(0.012 + 0.006)
    assert table.step_time_s(64, 512) == pytest.approx(0.012 + 0.006 + 0.011)
    assert table.step_time_s(1000, 10_000) == table.step_time_s(64, 512)


def test_flat_tables_are_read_only_when_asked_for(write: Write) -> None:
    """1% over all batch tokens; alpha may vary as it will, it is drafts that must cost something."""
    flat = write({**DIAGONAL, "sample_steps_per_sec": [10.0, 9.95, 9.9]})
    with pytest.raises(BadInputError, match=r"sample_steps_per_sec: varies by 1.0%.*never trim") as caught:
        sglang.load_table(flat)
    assert caught.value.source == str(flat)
    assert sglang.load_table(flat, allow_flat=True).step_time_s(1, 8) == pytest.approx(0.1)
    additive = write({**ADDITIVE, "theta_seconds": [0.0, 0.0, 0.0001]})
    with pytest.raises(BadInputError, match=r"theta_seconds: varies by 0\.6%"):
        sglang.load_table(additive)
    with pytest.raises(BadInputError, match=r"step_time_ms: varies by 0\.1%"):  # 0.01 of 2.01 + 5 ms
        tensorrt_llm.load_table(write({**TENSORRT, "step_time_ms": [2.0, 2.01, 2.01]}))


def test_believed_tables_are_looked_up_as_the_engine_does_right_or_wrong(write: Write) -> None:
    """A rate that rises from 60 to 80 and a negative alpha: floor there, linear and clamped here."""
    falling = {
        "sample_batch_tokens": [8, 32, 64], "sample_steps_per_sec": [100, 60, 80], "max_batch_tokens": 64,
    }  # fmt: skip
    with pytest.raises(BadInputError, match="rises from 60 to 80"):
        sglang.load_table(write(falling))
    table = sglang.load_believed(write(falling))
    expected = [1 / 100, *([1 / 60] * 32), 1 / 80, 1 / 80]
    assert table.step_time_s(3, range(31, 66)).tolist() == pytest.approx(expected)
    assert [1 / table.step_time_s(3, size) for size in (1, 63, 64, 999)] == pytest.approx([100, 60, 80, 80])
    assert "more work takes less time at 64 batch tokens (16.67 ms, then 12.5 ms)" in table_warnings(table)[0]
    negative = {**ADDITIVE, "bs_probes": [1, 3], "alpha_seconds": [0.0, -0.002]}
    with pytest.raises(BadInputError, match="alpha_s"):
        sglang.load_table(write(negative))
    # 12 ms, less half of 2 ms at two requests, and 1 ms at the second probe of batch tokens.
    assert sglang.load_believed(write(negative)).step_time_s(2, 64) == pytest.approx(0.012 - 0.001 + 0.001)
    with pytest.raises(BadInputError, match="positive time everywhere"):
        sglang.load_believed(write({**negative, "alpha_seconds": [0.0, -0.02]}))
    with pytest.raises(BadInputError, match="max_batch_tokens: must be at least the last probe, 64"):
        sglang.load_believed(write({**falling, "max_batch_tokens": 63}))
    dip = {**TENSORRT, "step_time_ms": [2.0, 4.0, 3.0]}
    assert tensorrt_llm.load_believed(write(dip)).step_time_s(1, 192) == pytest.approx(0.0035 + 0.003)


def test_unknown_keys_are_ignored(write: Write) -> None:
    assert isinstance(sglang.load_table(write({**DIAGONAL, "host": "node7"})), ThroughputCurve)
    assert isinstance(sglang.load_table(write({**ADDITIVE, "host": "node7"})), AdditiveCost)


@pytest.mark.parametrize("extra", [{"fitted_by": {"bias_seconds": 0.1}}, {"note": "bias_seconds"}])
def test_the_kind_is_decided_by_text_anywhere_as_in_the_engine(write: Write, extra: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="bs_probes: is missing"):
        sglang.load_table(write({**DIAGONAL, **extra}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_batch_tokens": [8.0, 16, 32]}, r"sample_batch_tokens\[0\]: must be an integer \(got 8.0\)"),
        ({"sample_batch_tokens": [True, 16, 32]}, "must be an integer"),
        ({"sample_batch_tokens": [8, 8, 32]}, r"sample_batch_tokens\[1\]: must be strictly increasing"),
        ({"sample_batch_tokens": [16, 8, 32]}, "must be strictly increasing"),
        ({"sample_batch_tokens": [8, 16]}, "sample_steps_per_sec: needs 2 values"),
        ({"sample_batch_tokens": "8"}, "must be a list"),
        ({"sample_batch_tokens": [], "sample_steps_per_sec": []}, "at least one number"),
        ({"sample_steps_per_sec": [10.28, "7.81", 5.42]}, r"sample_steps_per_sec\[1\]: must be a number"),
        ({"sample_steps_per_sec": [10.28, -7.81, -8.0]}, "must not be negative"),
        ({"sample_steps_per_sec": [10.28, 7.81, 0.0]}, "must be positive"),
        ({"sample_steps_per_sec": [10.28, 7.81, 10**400]}, "is not a finite number"),
        ({"sample_steps_per_sec": [10.28, 5.42, 7.81]}, "a larger batch cannot step faster"),
        ({"max_batch_tokens": 31}, r"max_batch_tokens: must be at least the last probe, 32 \(got 31\)"),
        ({"max_batch_tokens": 32.0}, "must be an integer"),
        ({"sample_batch_tokens": [8], "sample_steps_per_sec": [10.28]}, "not yet measured"),
    ],
)
def test_diagonal_tables_that_are_rejected(write: Write, change: dict[str, Any], message: str) -> None:
    path = write({**DIAGONAL, **change})
    with pytest.raises(BadInputError, match=message) as caught:
        sglang.load_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias_seconds": 0}, "bias_seconds: must be positive"),
        ({"bias_seconds": True}, "must be a number"),
        ({"bs_probes": [1.0, 64]}, "must be an integer"),
        ({"m_probes": [0, 64, 64]}, r"m_probes\[2\]: must be strictly increasing"),
        ({"alpha_seconds": [0.0]}, "alpha_seconds: needs 2 values"),
        ({"theta_seconds": [0.0, -0.001, 0.011]}, "must not be negative"),
        ({"theta_seconds": [0.0, 0.012, 0.011]}, "more work cannot take less time"),
    ],
)
def test_additive_tables_that_are_rejected(write: Write, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        sglang.load_table(write({**ADDITIVE, **change}))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sample_batch_tokens": [8, NaN]}', '{"a": Infinity}'])
def test_files_that_are_no_json_object(write: Write, text: str) -> None:
    with pytest.raises(BadInputError, match=r"JSON"):
        sglang.load_table(write(text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        sglang.load_table(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        (ThroughputCurve([8.5, 16], [2.0, 1.0]), {}, r"batch_tokens\[0\]: must be a whole number"),
        (ThroughputCurve([8], [2.0]), {}, "not yet measured"),
        (ThroughputCurve([8, 16], [2.0, 1.0]), {"max_batch_tokens": 8}, "must be at least 16"),
        (AdditiveCost(0.1, [1], [0], [1], [0]), {"max_batch_tokens": 8}, "diagonal table only"),
        (AdditiveCost(0.1, [1], [0], [1], [0], context_s_per_token=1e-9), {}, "has no place in SGLang"),
    ],
)
def test_costs_that_no_sglang_table_can_hold(
    tmp_path: Path, cost: Any, options: dict[str, int], message: str
) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(BadInputError, match=message):
        sglang.save_table(path, cost, **options)
    assert not path.exists()


# --- TensorRT-LLM -------------------------------------------------------------------------------------------


def test_tensorrt_times_add_up_in_seconds(write: Write) -> None:
    cost = tensorrt_llm.load_table(write({**TENSORRT, "fixed_overhead_ms": 1.0})).cost
    assert cost.step_time_s(1, 0) == pytest.approx(6.0e-3)
    assert cost.step_time_s(1, 64) == pytest.approx(6.05e-3)
    assert cost.step_time_s(16, 256) == pytest.approx(10.0e-3)
    assert cost.step_time_s(99, 9999) == cost.step_time_s(16, 256)  # clamped on both axes


@same_folder
@given(additive_costs(), st.integers(1, 5000), st.integers(0, 5000))
def test_tensorrt_tables_read_back_as_the_same_function(
    tmp_path: Path, cost: AdditiveCost, requests: int, tokens: int
) -> None:
    path = tmp_path / "table.json"
    tensorrt_llm.save_table(path, cost, engine={"tp": 8})
    table = tensorrt_llm.load_table(path, allow_flat=True)
    expected = cost.step_time_s(requests, tokens)
    assert table.cost.step_time_s(requests, tokens) == pytest.approx(expected, rel=1e-9)
    assert table.engine == {"tp": 8}


def test_engine_description_is_compared_key_by_key(write: Write) -> None:
    table = tensorrt_llm.load_table(
        write({**TENSORRT, "_meta": {"engine": {"tp": 8, "dtype": "fp8", "graphs": True}}})
    )
    assert table.mismatches({"tp": 8, "dtype": "fp8", "graphs": True, "host": "node7"}) == ()
    assert table.mismatches({"tp": 4, "dtype": "fp8"}) == (
        tensorrt_llm.Mismatch("tp", 8, 4),
        tensorrt_llm.Mismatch("graphs", True, None),
    )


def test_a_table_without_meta_matches_any_engine(write: Write) -> None:
    bare = {key: value for key, value in TENSORRT.items() if key != "_meta"}
    assert tensorrt_llm.load_table(write(bare)).mismatches({"tp": 1}) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_counts": [0, 256, 128]}, r"token_counts\[2\]: must be strictly increasing"),
        ({"batch_sizes": [1, 1]}, r"batch_sizes\[1\]: must be strictly increasing"),
        ({"step_time_ms": [0.0, 2.1, 4.0]}, "step_time_ms: must be positive"),
        ({"step_time_ms": [2.0, 1e999, 4.0]}, "Infinity|finite"),
        ({"fixed_overhead_ms": -1.0}, "fixed_overhead_ms: must not be negative"),
        ({"batch_overhead_ms": [-3.0, 5.0]}, "batch_overhead_ms: must not be negative"),
        ({"batch_overhead_ms": [3.0]}, "needs 2 values"),
        ({"_meta": {"encoding": "grid"}}, "encoding: must be 'decomposed'"),
        ({"_meta": {"engine": "tp8"}}, "engine: must be an object"),
        ({"_meta": [1]}, "_meta: must be an object"),
    ],
)
def test_tensorrt_tables_that_are_rejected(write: Write, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        tensorrt_llm.load_table(write({**TENSORRT, **change}))


# --- the engines decide as recorded -------------------------------------------------------------------------

SURVIVAL = np.array(
    [
        [0.95, 0.87, 0.79, 0.69, 0.59, 0.47, 0.35],
        [0.60, 0.18, 0.02, 0, 0, 0, 0],
        [0.90, 0.81, 0.73, 0.66, 0.59, 0.53, 0.48],
        [0.70, 0.49, 0.34, 0.24, 0.17, 0.12, 0.08],
    ]
)
STEP_TIME_MS = [2.0, 2.2, 2.6, 9.0]


def decide(cost: Any) -> tuple[int, list[int], float]:
    """Draft budget, lengths and tokens per second of a global search, for four requests of block size 7."""
    grid = on_grid(SURVIVAL)
    theta = throughput_of_budget(grid, 4, cost.step_time_s(4, range(4, 4 + 28 + 1)))
    budget = global_maximum(theta)
    return budget, admit(grid, budget).tolist(), float(theta[budget]) / 2**30


def test_golden_decision_of_the_floor_table(write: Write) -> None:
    table = sglang.load_table(
        write(
            {
                "sample_batch_tokens": [0, 8, 16, 32],
                "sample_steps_per_sec": [1000 / time for time in STEP_TIME_MS],
                "max_batch_tokens": 32,
            }
        )
    )
    # Tokens look free up to the riser at 32, so every draft that anyone might accept is bought.
    assert decide(table)[:2] == (24, [7, 3, 7, 7])


def test_golden_decision_of_the_linear_table(write: Write) -> None:
    table = tensorrt_llm.load_table(
        write(
            {
                "token_counts": [0, 8, 16, 32],
                "step_time_ms": STEP_TIME_MS,
                "fixed_overhead_ms": 0.0,
                "batch_sizes": [1],
                "batch_overhead_ms": [0.0],
            }
        )
    )
    budget, lengths, throughput = decide(table.cost)
    assert (budget, lengths) == (12, [5, 1, 5, 1])
    assert throughput == pytest.approx(4954, abs=1)


# --- calibration --------------------------------------------------------------------------------------------

temperatures = st.lists(st.floats(0.05, 20), min_size=1, max_size=8)
READABLE = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
"""Text that a strict reader takes back: a zero byte is none."""


@same_folder
@given(temperatures, st.none() | READABLE, st.none() | st.integers(0, 10**9), st.booleans())
def test_calibrations_read_back(
    tmp_path: Path, scales: list[float], dataset: str | None, samples: int | None, has_errors: bool
) -> None:
    errors = tuple(0.01 * scale for scale in scales) if has_errors else None
    calibration = sglang.Calibration(tuple(scales), dataset, samples, errors, errors)
    sglang.save_calibration(tmp_path / "sts.json", calibration)
    assert sglang.load_calibration(tmp_path / "sts.json") == calibration
    assert tensorrt_llm.load_calibration(tmp_path / "sts.json") == calibration


def test_the_example_calibration(write: Write) -> None:
    example = {
        "temperatures": [1.0, 1.26],
        "dataset": "x",
        "num_samples": 19074,
        "ece_before": [0.02, 0.04],
        "ece_after": [0.02, 0.04],
    }
    loaded = sglang.load_calibration(write(example))
    fit = TemperatureFit(SGLANG, (1.0, 1.26), (0.02, 0.04), (0.02, 0.04))
    assert loaded == sglang.Calibration.of_fit(fit, dataset="x", num_samples=19074)


def test_tensorrt_reads_its_own_key_which_sglang_does_not_know(write: Write) -> None:
    path = write({"sts_temperatures": [0.75, 1.25]})
    assert tensorrt_llm.load_calibration(path).temperatures == (0.75, 1.25)
    with pytest.raises(BadInputError, match="temperatures: is missing"):
        sglang.load_calibration(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "temperatures: is missing"),
        ({"temperatures": []}, "at least one"),
        ({"temperatures": [1.0, 0.0]}, r"temperatures\[1\]: must be positive"),
        ({"temperatures": [-1]}, "must be positive"),
        ({"temperatures": [1.0], "ece_after": [0.1, 0.2]}, "ece_after: needs one value per temperature"),
        ({"temperatures": [1.0], "num_samples": 3.5}, "num_samples: must be an integer"),
        ({"temperatures": [1.0], "dataset": 3}, "dataset: must be a string"),
    ],
)
def test_calibrations_that_are_rejected(write: Write, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        sglang.load_calibration(write(fields))
