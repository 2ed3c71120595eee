"""The speed comparisons on a CPU: tables follow from their parts, and both sides do the same work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.live.checks.baseline import StaticGenerate
from simulator.live.checks.speed import floor
from simulator.live.checks.speed.generate import Greedy
from simulator.live.checks.speed.measure import measure_speed
from simulator.live.checks.speed.scale import SETTLED, SpeedScale, interleaved
from simulator.live.checks.speed.scheduling import visible_scheduling
from simulator.live.device import OutOfMemoryError, timed_by
from simulator.live.models.pairs import new_dspark
from tests.live.conftest import MakeTarget

GAMMA = 4
SCALE = SpeedScale(
    concurrency=(3,), batches=(3,), contexts=(16, 64), prompt_tokens=8, output_tokens=20, steps=6,
    repeats=2, copy_bytes=2**20,
)  # fmt: skip


@pytest.fixture(scope="module")
def target(make_target: MakeTarget) -> Any:
    return make_target(eos_token_id=7)  # an output that ended early would be shorter than the engine's


@pytest.fixture(scope="module")
def draft(target: Any) -> Any:
    return new_dspark(target, mask_token_id=5, block_size=GAMMA, num_layers=1, markov_rank=4)


@pytest.fixture(scope="module")
def acceptance() -> AcceptanceTrace:
    draw = np.random.default_rng(0)
    logits = draw.normal(1.0, 1.5, (400, GAMMA)).astype(np.float32)
    passed = draw.random((400, GAMMA)) < 1 / (1 + np.exp(-logits))
    return AcceptanceTrace(
        name="made up", confidence_logits=logits, sequence_start=np.arange(0, 401, 40),
        provenance=Provenance(kind="synthetic", source="test", date="2026-01-01"),
        accepted=np.cumprod(passed, axis=1).sum(axis=1).astype(np.uint8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def frames(target: Any, draft: Any, acceptance: Any, told: list[str]) -> dict[str, pd.DataFrame]:
    return measure_speed(target, draft, acceptance, SCALE, told.append)


def test_a_line_is_told_for_every_row(frames: dict[str, pd.DataFrame], told: list[str]) -> None:
    assert list(frames) == [
        "bandwidth_floor", "against_generate", "ragged_against_padded", "visible_scheduling",
    ]  # fmt: skip
    assert [len(frame) for frame in frames.values()] == [4, 1, 2, 2]
    assert len(told) == sum(len(frame) for frame in frames.values())
    assert all(frame.notna().all(axis=None) for frame in frames.values())


def test_the_floor_is_what_reading_takes(frames: dict[str, pd.DataFrame], target: Any) -> None:
    floor = frames["bandwidth_floor"]
    assert floor["kind"].tolist() == 2 * ["autoregressive", "verify"]
    assert floor["batch_tokens"].tolist() == 2 * [1, 1 + GAMMA]
    assert floor["over_floor"].to_numpy() == pytest.approx(floor["step_ms"] / floor["floor_ms"] - 1)
    assert floor["floor_ms"].to_numpy() == pytest.approx(floor["read_MB"] / floor["copy_GB_per_s"])
    one_layer_each_position = 2 * 2 * 16 * 4  # keys and values, heads, head size, bytes
    grown = 1e6 * (floor["read_MB"].iloc[-1] - floor["read_MB"].iloc[0])
    assert grown == pytest.approx((64 - 16) * target.num_layers * one_layer_each_position)
    assert (floor["step_spread"] >= 0).all()


def test_weights_that_a_step_reads(make_target: MakeTarget, target: Any) -> None:
    everything = sum(parameter.numel() for parameter in target.model.parameters())
    assert target.weights_read == everything - target.embedding.numel()
    tied = make_target(tie_word_embeddings=True)
    assert tied.weights_read == target.weights_read
    assert tied.bytes_read(0) == 4 * tied.weights_read


def test_generate_says_the_same(frames: dict[str, pd.DataFrame]) -> None:
    against = frames["against_generate"]
    assert (against["agreement"] == 1).all()
    assert not against["compiled"].any()
    parts = against["engine_tok_per_s"] / against["generate_tok_per_s"]
    assert against["ratio"].to_numpy() == pytest.approx(parts)


def test_both_sides_decode_the_same_tokens_while_the_clock_runs(target: Any) -> None:
    ours = Greedy(target, 2, SCALE)
    ours.decode_s(SETTLED)
    assert len(ours._executor.timings) == SCALE.output_tokens - 1
    engine = ours._serve(ours._executor, SETTLED - 2)
    assert 1 + len(ours._executor.timings) - (SCALE.output_tokens - 1) == SETTLED
    assert engine.completed == 0
    seen: list[int] = []
    theirs = StaticGenerate(target, ours.prompts, SCALE.output_tokens, print)
    theirs._generate(seen.append)
    assert seen == list(range(1, SCALE.output_tokens + 1))
    passes: list[object] = []
    hook = target.model.register_forward_hook(lambda *_: passes.append(None))
    with timed_by(lambda: float(len(passes))):  # a second for each pass
        assert theirs.decode_s(SETTLED) == SCALE.output_tokens - SETTLED
        assert theirs.decode_s(1) == SCALE.output_tokens - 1
    hook.remove()


def test_generate_goes_on_where_compilation_fails(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    working, told = target.model.generate, []

    def failing(*arguments: Any, **options: Any) -> Any:
        if not target.model.generation_config.disable_compile:
            raise RuntimeError("no C++ compiler")
        return working(*arguments, **options)

    monkeypatch.setattr(target.model, "generate", failing)
    before = target.model.generation_config
    generate = StaticGenerate(target, torch.ones((1, 4), dtype=torch.int64), 5, told.append, compiles=True)
    assert generate.tokens().shape == (1, 5)
    assert not generate.compiled
    assert "no C++ compiler" in told[0]
    assert target.model.generation_config is before


def test_ragged_and_padded_take_the_same_steps(frames: dict[str, pd.DataFrame]) -> None:
    padding = frames["ragged_against_padded"]
    assert (padding["differing"] == 0).all()
    assert (padding["decisions"] >= SCALE.steps).all()
    assert (padding["padded_rows"] == padding["concurrency"] * (1 + GAMMA)).all()
    assert (padding["ragged_rows"] == padding["verified_rows"]).all()
    assert (padding["verified_rows"] < padding["padded_rows"]).any()
    tokens = [padding[f"{kind}_tok_per_s"] * padding[f"{kind}_step_ms"] for kind in ("ragged", "padded")]
    assert tokens[0].to_numpy() == pytest.approx(tokens[1])
    ratio = padding["padded_step_ms"] / padding["ragged_step_ms"]
    assert padding["ratio"].to_numpy() == pytest.approx(ratio)
    assert (padding["ragged_verify_ms"] < padding["ragged_step_ms"]).all()


def test_visible_share_is_within_its_runs(frames: dict[str, pd.DataFrame]) -> None:
    visible = frames["visible_scheduling"]
    assert visible["policy"].tolist() == ["dspark", "dspark-async"]
    assert (visible["steps"] == SCALE.repeats * SCALE.steps).all()
    share = visible["visible_us"] / visible["step_ms"] / 1e3
    assert visible["visible_share"].to_numpy() == pytest.approx(share)
    assert (visible["lowest_share"] <= visible["visible_share"] + 1e-12).all()
    assert (visible["visible_share"] <= visible["highest_share"] + 1e-12).all()


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "ab"}
    assert interleaved(sides, 2) == {"a": [3, 5], "b": [4, 6]}
    assert calls == list("ababab")


def test_what_does_not_fit_is_left_out(target: Any, draft: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OutOfMemoryError("3 requests fit")

    monkeypatch.setattr(floor, "executor_for", full)
    told: list[str] = []
    assert floor.bandwidth_floor(target, draft, SCALE, told.append).empty
    assert told == [f"left out steps at context {context}: 3 requests fit" for context in SCALE.contexts]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"concurrency": ()}, "concurrency"),
        ({"batches": (2, 1)}, "batches"),
        ({"contexts": (0, 4)}, "contexts"),
        ({"output_tokens": 15}, "output_tokens"),
        ({"repeats": 1}, "repeats"),
        ({"policies": ("threshold",)}, "threshold"),
    ],
)
def test_scales_that_measure_nothing_are_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInputError, match=field):
        replace(SCALE, **wrong)


def test_acceptance_that_does_not_fit_the_draft_is_refused(target: Any, draft: Any, acceptance: Any) -> None:
    for wrong, says in (
        (acceptance.truncated(2), "block size than the draft's 4"),
        (replace(acceptance, confidence_logits=None, block_size=GAMMA), "no confidences"),
    ):
        with pytest.raises(BadInputError, match=says):
            visible_scheduling(target, draft, wrong, SCALE, print)
