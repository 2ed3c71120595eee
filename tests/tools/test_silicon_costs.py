"""What engines add to kernels: the fit by hand, and what a run is taken apart into."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulator.deployment.profile import load_profile
from simulator.hardware.steps.kernel_modes import Setting
from tools.silicon_costs import Added, fitted, from_other_models, least_errors, outside_ms, with_added
from tools.silicon_rows import Row
from tools.silicon_runs import sent_by, simulated

NOTHING = {f"{name}_{each}": 0.0 for name in ("ttft", "tpot") for each in ("steps", "requests", "prompts_ms")}


def rows(*each: dict[str, object]) -> pd.DataFrame:
    shared = {"host": "vllm", "kind": "16 bits", "model": "a", "ttft_ms": 50.0, "kernels_ttft_ms": 40.0}
    return pd.DataFrame([shared | NOTHING | one for one in each])


def test_the_least_sum_of_relative_errors_is_found() -> None:
    """Lacking 1, 2 and 3 ms of 2, 12 and 20: 1 ms leaves 1/12 + 2/20, 2 ms 1/2 + 1/20."""
    found = least_errors(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), np.array([2.0, 12.0, 20.0]))
    assert found == pytest.approx([1.0])
    assert least_errors(np.ones((2, 1)), np.array([-1.0, -2.0]), np.array([5.0, 5.0])) == pytest.approx([0.0])


def test_three_costs_come_out_as_they_were_put_in() -> None:
    """0.5 ms a step, 10 us a request, prompts a quarter dearer: exact, so that no error is left."""
    seen = [(1.0, 8.0, 0.0), (1.0, 64.0, 2.0), (1.0, 256.0, 9.0), (1.3, 16.0, 1.0)]
    table = rows(*(
        {"kernels_tpot_ms": 10.0, "tpot_ms": 10 + 0.5 * steps + 0.01 * requests + 0.25 * prompts,
         "tpot_steps": steps, "tpot_requests": requests, "tpot_prompts_ms": prompts}
        for steps, requests, prompts in seen
    ))  # fmt: skip
    added = fitted(table)
    assert added["vllm", "16 bits"] == pytest.approx(Added(0.5, 0.01, 0.25))
    assert with_added(table, added)["tpot_error"].abs().max() == pytest.approx(0, abs=1e-9)


def test_nothing_is_added_where_nothing_was_fitted() -> None:
    table = rows({"tpot_ms": 10.0, "kernels_tpot_ms": 9.0, "kind": "latent", "tpot_steps": 1.0})
    done = with_added(table, {("vllm", "16 bits"): Added(5.0, 0.0, 0.0)})
    assert done["predicted_tpot_ms"].tolist() == [9.0]
    assert done["tpot_error"].tolist() == pytest.approx([-0.1])


def test_time_outside_steps_is_what_first_tokens_lack_beyond_their_steps() -> None:
    """Two steps of 1 ms; 50 ms measured, 40 by kernels: 8 ms are left."""
    table = rows({"tpot_ms": 10.0, "kernels_tpot_ms": 9.0, "ttft_steps": 2.0})
    added = {("vllm", "16 bits"): Added(1.0, 0.0, 0.0)}
    outside = outside_ms(table, added)
    assert outside == pytest.approx({"vllm": 8.0})
    assert with_added(table, added, outside)["ttft_error"].tolist() == pytest.approx([0.0])


def test_other_models_alone_say_what_is_added() -> None:
    """A step of the model looked at took 3 ms more, of the other one 1 ms."""
    table = rows(
        {"model": "a", "reported": False, "tpot_ms": 13.0, "kernels_tpot_ms": 10.0, "tpot_steps": 1.0},
        {"model": "b", "reported": False, "tpot_ms": 11.0, "kernels_tpot_ms": 10.0, "tpot_steps": 1.0},
        {"model": "a", "reported": True, "tpot_ms": 13.0, "kernels_tpot_ms": 10.0, "tpot_steps": 1.0},
    )
    assert from_other_models(table)["predicted_tpot_ms"].tolist() == pytest.approx([11.0])


def test_a_client_sends_when_its_last_request_ends() -> None:
    """Two clients: two requests at once, the next when the first of them ends (3 s), then at 5 s."""
    admitted, finished = np.array([0.0, 0.5, 4.0, 5.0]), np.array([5.0, 3.0, 8.0, 9.0])
    assert sent_by(admitted, finished, clients=2).tolist() == [0.0, 0.0, 3.0, 5.0]


def test_what_a_request_sees_is_what_its_steps_hold() -> None:
    """One client, 1,024 and 33 tokens: a step of its prompt, then its own; prompts elsewhere are not seen."""
    profile = load_profile("kernels/h100/qwen3-8b-tp1-bf16")
    row = Row(
        "x", "Qwen/Qwen3-8B", "h100", "vllm", "bf16", 1, Setting(), 1024, 33, 1, False, 50.0, 10.0, "vllm"
    )
    before, after = simulated(row, profile)
    cost = profile.target_cost()
    assert (before.steps, before.requests) == (1.0, 0.0)
    assert (after.steps, after.requests, after.prompts_ms) == (1.0, 1.0, 0.0)
    decode_ms = [1e3 * cost.step_time_s(1, 1, context) for context in range(1024, 1060)]
    assert min(decode_ms) <= after.time_ms <= max(decode_ms)
    assert before.time_ms == pytest.approx(1e3 * cost.step_time_s(0, 1024, 0.0, 1024), rel=0.02)
    apart = Row(
        "x",
        "Qwen/Qwen3-8B",
        "h100",
        "vllm",
        "bf16",
        1,
        Setting(),
        1024,
        64,
        2,
        False,
        50.0,
        10.0,
        "vllm",
        True,
    )
    first, decoding = simulated(apart, profile)
    assert np.isnan(first.time_ms)
    assert (decoding.steps, decoding.requests) == (1.0, 2.0)
