"""Traces, their files and their replay; plain rates, mixes and the spec strings that name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from simulator.acceptance.fitted import fitted_model
from simulator.acceptance.rates import Mix, Rates, conditional_rates, marginal_rates, mean_length
from simulator.acceptance.trace import AcceptanceModel, AcceptanceTrace, Replay, draw_accepted
from simulator.acceptance.trace_file import load_trace, save_trace
from simulator.core.errors import BadInputError, UnwritableError
from simulator.core.random import random_stream
from simulator.deployment.acceptance_text import parse_acceptance
from tests.support.strategies import SYNTHETIC, acceptance_traces

FIELDS = (
    "confidence_logits",
    "sequence_start",
    "accepted",
    "acceptance_probability",
    "effective_length",
    "target_tokens",
    "temperatures",
)


def small_trace(**changes: object) -> AcceptanceTrace:
    """Two sequences of three and two rows, block size 2, greedy."""
    fields: dict[str, object] = {
        "name": "small",
        "confidence_logits": np.zeros((5, 2), np.float32),
        "sequence_start": np.array([0, 3, 5]),
        "provenance": SYNTHETIC,
        "accepted": np.array([2, 0, 1, 2, 0], np.uint8),
    }
    return AcceptanceTrace(**(fields | changes))  # type: ignore[arg-type]


def walk(replay: Replay, lengths: list[int], positions: int) -> list[int]:
    """Rows whose tokens a request commits, step by step, verifying ``lengths`` in turn."""
    committed: list[int] = []
    row = step = 0
    while len(committed) < positions:
        verified = lengths[step % len(lengths)] % (replay.gamma + 1)
        gain = min(int(replay.accepted[row]), verified) + 1
        committed.extend((row + i) % replay.rows for i in range(1, gain + 1))
        row, step = (row + gain) % replay.rows, step + 1
    return committed[:positions]


@given(acceptance_traces(), st.lists(st.integers(0, 7), min_size=1), st.lists(st.integers(0, 7), min_size=1))
def test_any_two_policies_commit_the_same_tokens_in_the_same_order(
    trace: AcceptanceTrace, one: list[int], other: list[int]
) -> None:
    replay = trace.replay(seed=3)
    tokens = np.arange(trace.rows) if trace.target_tokens is None else trace.target_tokens
    horizon = 2 * trace.rows + 3
    first, second = walk(replay, one, horizon), walk(replay, other, horizon)
    assert_array_equal(tokens[first], tokens[second])
    assert first == [(i + 1) % trace.rows for i in range(horizon)]


@given(acceptance_traces(), st.integers(0, 2**32))
def test_a_replay_is_well_formed_and_repeatable(trace: AcceptanceTrace, seed: int) -> None:
    replay, again = trace.replay(seed), trace.replay(seed)
    assert replay.survival.dtype == np.float32
    assert replay.survival.shape == (trace.rows, trace.gamma)
    assert np.all((replay.survival >= 0) & (replay.survival <= 1))
    assert np.all(np.diff(replay.survival, axis=1) <= 0)
    assert replay.accepted.dtype == np.uint8
    assert replay.accepted.max() <= trace.gamma
    assert replay.survival.tobytes() == again.survival.tobytes()
    assert replay.accepted.tobytes() == again.accepted.tobytes()


@given(acceptance_traces(), st.data())
def test_a_shorter_block_keeps_its_outcomes_and_confidences(
    trace: AcceptanceTrace, data: st.DataObject
) -> None:
    gamma = data.draw(st.integers(1, trace.gamma))
    whole, cut = trace.replay(1), trace.truncated(gamma).replay(1)
    assert_array_equal(cut.accepted, np.minimum(whole.accepted, gamma))
    assert_array_equal(cut.survival, whole.survival[:, :gamma])


@given(acceptance_traces())
@settings(max_examples=40)
def test_a_saved_trace_loads_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, trace: AcceptanceTrace
) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.parquet"
    save_trace(trace, path)
    loaded = load_trace(path)
    assert (loaded.name, loaded.gamma, loaded.kind) == (trace.name, trace.gamma, trace.kind)
    assert loaded.provenance == trace.provenance
    for field in FIELDS:
        was, now = getattr(trace, field), getattr(loaded, field)
        assert (was is None) == (now is None)
        if was is not None:
            assert was.dtype == now.dtype
            assert_array_equal(was, now)


def test_survival_is_calibrated_unless_raw_is_asked_for() -> None:
    trace = small_trace(confidence_logits=np.full((5, 2), 2.0), temperatures=np.array([2.0, 4.0]))
    calibrated, raw = trace.replay(0).survival[0], trace.replay(0, raw=True).survival[0]
    sigmoid = 1 / (1 + np.exp(-np.array([1.0, 0.5, 2.0])))
    assert_allclose(calibrated, [sigmoid[0], sigmoid[0] * sigmoid[1]], rtol=1e-6)
    assert_allclose(raw, [sigmoid[2], sigmoid[2] ** 2], rtol=1e-6)


def test_without_a_head_survival_is_the_mean() -> None:
    trace = small_trace(confidence_logits=None, block_size=2)
    assert not trace.has_confidence
    assert_allclose(trace.replay(0).survival, np.tile([3 / 5, 2 / 5], (5, 1)))


def test_drafts_beyond_a_sequence_end_are_rejected_and_not_counted() -> None:
    trace = small_trace(confidence_logits=None, block_size=2, effective_length=np.array([2, 2, 1, 1, 0]))
    replay = trace.replay(0)
    assert_array_equal(replay.accepted, [2, 0, 1, 1, 0])
    assert_allclose(replay.survival[0], [3 / 4, 1 / 2])


def test_outcomes_follow_their_probabilities_independently() -> None:
    probability = np.tile(np.float32([0.9, 0.5, 0.25]), (200_000, 1))
    accepted = draw_accepted(probability, random_stream(5, "x"))
    marginal = [(accepted >= k).mean() for k in (1, 2, 3)]
    assert_allclose(marginal, np.cumprod([0.9, 0.5, 0.25]), atol=0.005)
    assert abs(np.corrcoef(accepted[1:], accepted[:-1])[0, 1]) < 0.01


def test_streams_differ_by_seed_and_by_name() -> None:
    draws = {random_stream(*key).random() for key in [(0, "a"), (1, "a"), (0, "b"), (1, "b")]}
    assert len(draws) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"confidence_logits": np.full((5, 2), np.nan)},
            r"confidence_logits: must be finite.*nan at \[0, 0\]",
        ),
        ({"confidence_logits": np.zeros((4, 2))}, r"confidence_logits: must have shape \[5, 2\]"),
        ({"confidence_logits": np.zeros(5)}, r"confidence_logits: must have two axes"),
        ({"accepted": np.array([3, 0, 0, 0, 0])}, r"accepted: must be within 0..2 \(got '3 at \[0\]'"),
        ({"accepted": np.array([-1, 0, 0, 0, 0])}, "accepted: must be within"),
        ({"accepted": np.zeros(4)}, r"accepted: must have shape \[5\]"),
        ({"accepted": None}, "exactly one of"),
        ({"acceptance_probability": np.zeros((5, 2))}, "exactly one of"),
        (
            {"accepted": None, "acceptance_probability": np.full((5, 2), 1.5)},
            "acceptance_probability: must be",
        ),
        ({"sequence_start": np.array([0, 3, 3, 5])}, "sequence_start: must start at 0"),
        ({"sequence_start": np.array([1, 5])}, "sequence_start: must start at 0"),
        ({"temperatures": np.array([1.0, 0.0])}, "temperatures: must be at least"),
        ({"temperatures": np.ones(3)}, r"temperatures: must have shape \[2\]"),
        ({"confidence_logits": None}, "block_size: is missing"),
        ({"confidence_logits": None, "block_size": 300}, "block_size: must be 1 to 255"),
        (
            {"confidence_logits": None, "block_size": 2, "temperatures": np.ones(2)},
            "no confidences to calibrate",
        ),
        ({"target_tokens": np.array(["a"] * 5)}, "target_tokens: must be finite numbers"),
    ],
)
def test_a_trace_refuses_what_it_cannot_mean(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        small_trace(**changes)


def test_a_block_cannot_be_lengthened() -> None:
    for model in (small_trace(), conditional_rates([0.5, 0.5])):
        for gamma in (0, 3):
            with pytest.raises(BadInputError, match="gamma: block size must be 1 to 2"):
                model.truncated(gamma)


def rewritten(path: Path, **changes: pa.Array | None) -> Path:
    """Replace or drop columns of a saved trace, keeping its metadata."""
    table = pq.read_table(path)
    for name, values in changes.items():
        at = table.column_names.index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, values)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accepted": pa.array(np.full(5, 9, np.uint8))}, "accepted: must be within 0..2"),
        ({"accepted": pa.array(np.zeros(5))}, "accepted: must be uint8, for gamma 2 .*double"),
        ({"accepted": None}, "exactly one of"),
        ({"accepted": pa.array([0, None, 0, 0, 0], pa.uint8())}, "accepted: must have no nulls .*1 nulls"),
        ({"sequence": pa.array([0, 0, 2, 2, 2])}, "sequence: must count up"),
        ({"sequence": None}, "sequence: is missing"),
        (
            {"confidence_logit": pa.FixedSizeListArray.from_arrays(np.zeros(15, np.float32), 3)},
            r"confidence_logit: must be fixed_size_list.*\[2\]",
        ),
        (
            {"confidence_logit": pa.FixedSizeListArray.from_arrays(np.full(10, np.nan, np.float32), 2)},
            "confidence_logit.*finite.*nan",
        ),
    ],
)
def test_a_faulty_file_is_refused_by_file_field_value(
    tmp_path: Path, changes: dict[str, pa.Array | None], message: str
) -> None:
    path = tmp_path / "trace.parquet"
    save_trace(small_trace(), path)
    with pytest.raises(BadInputError, match=f"trace.parquet.*{message}.*; mend or record") as caught:
        load_trace(rewritten(path, **changes))
    assert caught.value.source == str(path)


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    save_trace(small_trace(), whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-40])
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    newer = tmp_path / "newer.parquet"
    table = pq.read_table(whole)
    header = table.schema.metadata[b"dspark_trace"].replace(b'"version":1', b'"version":2')
    pq.write_table(table.replace_schema_metadata({b"dspark_trace": header}), newer)
    odd = tmp_path / "odd.parquet"
    header = table.schema.metadata[b"dspark_trace"].replace(b'"gamma":2', b'"gamma":"two"')
    pq.write_table(table.replace_schema_metadata({b"dspark_trace": header}), odd)
    for path, message in (
        (cut, "is not a whole parquet file"),
        (other, "not an acceptance trace"),
        (newer, "schema: must be .* version 1"),
        (odd, "gamma"),
        (tmp_path / "none.parquet", "no such file"),
    ):
        with pytest.raises(BadInputError, match=message) as caught:
            load_trace(path)
        assert caught.value.source == str(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.parquet"
    save_trace(small_trace(), path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(UnwritableError, match=r"trace\.parquet: cannot be written: disk full"):
        save_trace(replace(small_trace(), name="other"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rates_are_realised_as_given() -> None:
    model = conditional_rates([0.9, 0.5, 0.25])
    replay = model.replay(seed=8)
    assert_allclose(replay.survival[0], [0.9, 0.45, 0.1125], rtol=1e-6)
    marginal = [(replay.accepted >= k).mean() for k in (1, 2, 3)]
    assert_allclose(marginal, [0.9, 0.45, 0.1125], atol=0.006)
    assert replay.sequence_start[-1] == replay.rows == 131_072


def test_three_ways_to_say_the_same_rates() -> None:
    conditional = conditional_rates([0.8, 0.8, 0.8])
    marginal = marginal_rates([0.8, 0.64, 0.512])
    length = mean_length(1 + 0.8 + 0.64 + 0.512, 3)
    for model in (marginal, length):
        assert_allclose(model.conditional, conditional.conditional, atol=1e-9)
    assert conditional.accepted_length == pytest.approx(2.952)


@given(st.integers(1, 12), st.floats(0, 1))
def test_a_mean_length_is_met_at_any_block_size(gamma: int, share: float) -> None:
    wanted = 1 + share * gamma
    assert mean_length(wanted, gamma).accepted_length == pytest.approx(wanted, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7).map(lambda rates: sorted(rates, reverse=True)))
def test_marginal_rates_survive_the_round_trip(rates: list[float]) -> None:
    assert_allclose(np.cumprod(marginal_rates(rates).conditional), rates, atol=1e-12)


def test_a_mix_draws_requests_in_the_given_shares() -> None:
    always, never = conditional_rates([1.0, 1.0]), conditional_rates([0.0, 0.0])
    replay = Mix((always, never), (0.75, 0.25)).replay(seed=2)
    of_sequence = replay.accepted[replay.sequence_start[:-1]]
    assert (of_sequence == 2).mean() == 0.75
    assert np.any(np.diff(of_sequence.astype(int)[:20]))  # shuffled, not one block after the other
    for start, end in zip(replay.sequence_start[:-1], replay.sequence_start[1:], strict=True):
        assert len(np.unique(replay.accepted[start:end])) == 1
    assert_array_equal(replay.survival[:, 1] * 2, replay.accepted)


def test_a_component_given_twice_is_as_much_text_again() -> None:
    rates = conditional_rates([0.5, 0.5, 0.5, 0.5])
    replay = Mix((rates, rates), (0.5, 0.5)).replay(seed=3)
    sequences = {replay.accepted[start : start + 512].tobytes() for start in replay.sequence_start[:-1]}
    assert len(sequences) == 256


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (conditional_rates([0.7, 0.7]), conditional_rates([0.701, 0.7])),
        (fitted_model("qwen3-4b-chat"), fitted_model("qwen3-4b-chat").shifted(0.002)),
        (Mix((conditional_rates([0.7]),), (1.0,)), Mix((conditional_rates([0.701]),), (1.0,))),
        (mean_length(3.0, 5), mean_length(3.003, 5)),
    ],
    ids=["rates", "fitted", "mix", "mean length"],
)
def test_a_parameter_that_moves_a_little_moves_few_outcomes(
    one: AcceptanceModel, other: AcceptanceModel
) -> None:
    """Common random numbers: at one uniform per draft, a chance raised by e turns a share e of the drafts."""
    before, after = one.replay(4).accepted.astype(int), other.replay(4).accepted.astype(int)
    assert np.all(after >= before)
    assert 0 < np.mean(after != before) < 0.004


def test_a_mix_of_unlike_models_is_headless_and_reuses_short_traces() -> None:
    headless = small_trace(confidence_logits=None, block_size=2)
    mix = Mix((headless, conditional_rates([0.5, 0.5])), (0.5, 0.5))
    assert not mix.has_confidence
    assert mix.truncated(1).gamma == 1
    lengths = np.diff(mix.replay(0).sequence_start)
    assert (lengths < 10).sum() == (lengths > 10).sum() == 128
    assert mix.provenance.kind == "mixed"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "has no default.*qwen3-4b-chat"),
        ("  ", "has no default"),
        ("conditional:0.9,1.1", r"within 0..1 \(got 1.1\)"),
        ("conditional:nan", "within 0..1"),
        ("conditional:", "is not a number"),
        ("marginal:0.5,0.6", r"never rise \(got 0.6\)"),
        ("length:3.5", "length:MEAN@GAMMA"),
        ("length:7@5", r"must be 1 to 6.*\(got 7.0\)"),
        ("length:nan@5", "must be 1 to 6"),
        ("length:1@0", "block size must be"),
        ("0.5*length:3@5+0.6*length:2@5", "must sum to 1"),
        ("0.5*length:3@5+0.5*length:2@4", "block sizes differ"),
        ("x*length:3@5", "is not a number"),
        ("qwen3-4b-chat+0.4*qwen3-4b-code", r"every term of a mix is WEIGHT\*MODEL \(got 'qwen3-4b-chat'\)"),
        ("0.5*length:3@5+length:2@5", "block size|MEAN@GAMMA"),
    ],
)
def test_a_spec_that_means_nothing_is_refused_with_the_remedy(spec: str | None, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_acceptance(spec)


def test_specs_name_what_they_say(tmp_path: Path) -> None:
    rates = parse_acceptance("conditional:0.9, 0.8")
    assert isinstance(rates, Rates)
    assert rates.conditional == (0.9, 0.8)
    assert parse_acceptance("marginal:0.9,0.72").gamma == 2
    assert parse_acceptance("length:3.5@5").gamma == 5
    save_trace(small_trace(), tmp_path / "t.parquet")
    assert parse_acceptance(str(tmp_path / "t.parquet")).name == "small"
    assert parse_acceptance(f"{tmp_path}/t.parquet@1").gamma == 1
    mix = parse_acceptance("0.25*conditional:0.9,0.8 + 0.75*length:2@2")
    assert isinstance(mix, Mix)
    assert mix.weights == (0.25, 0.75)
    assert [component.gamma for component in mix.components] == [2, 2]


@pytest.mark.parametrize("spec", ["conditional:0.9,0.8", "length:3.5@5", "0.5*length:3@5+0.5*length:2@5"])
def test_a_models_name_parses_to_the_same_model(spec: str) -> None:
    model = parse_acceptance(spec)
    again = parse_acceptance(model.name)
    assert again.name == model.name
    assert again.replay(4).accepted.tobytes() == model.replay(4).accepted.tobytes()
