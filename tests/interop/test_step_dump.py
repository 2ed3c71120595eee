"""SGLang step dumps: counts against hand-worked rounds, and the estimator against known acceptance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.interop.acceptance_files import load_acceptance
from simulator.interop.sglang_dump import StepDump, load_step_dump

Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: object) -> Path:
        path = tmp_path / "server_info.json"
        path.write_text(json.dumps(content))
        return path

    return write_file


def request(verify_len: int, correct: int, cap_trim: int = 0, **optional: Any) -> dict[str, Any]:
    return {
        "req_pool_index": 1,
        "prefix_len": 100,
        "verify_len": verify_len,
        "acc_len": correct + 1,
        "correct_drafts": correct,
        "cap_trim": cap_trim,
        "bonus_token": 7,
        "draft_tokens": [1, 2, 3],
        **optional,
    }


def dump_of(mode: str, *requests: dict[str, Any], gamma: int = 3) -> dict[str, Any]:
    step = {"forward_ct": 9, "bs": len(requests), "mode": mode, "reqs": list(requests)}
    return {
        "mode": mode,
        "gamma": gamma,
        "verify_num_draft_tokens": gamma + 1,
        "components": ["core", "reqs"],
        "records": [{"forward_ct": 8}, step],
    }


def server_info(*dumps: dict[str, Any]) -> dict[str, Any]:
    return {"version": "0.9", "internal_states": [{"dspark_info_record": dump} for dump in dumps]}


def test_compact_mode_counts_each_draft_where_it_was_verified(write: Write) -> None:
    path = write(
        server_info(
            dump_of(
                "compact",
                request(4, 3),  # whole block verified and accepted: not censored
                request(4, 1),  # rejected at draft 2
                request(2, 1),  # accepted to the cut: censored at draft 2
                request(3, 0),  # rejected at draft 1
                request(1, 0),  # nothing verified: tells nothing
            )
        )
    )
    acceptance = load_step_dump(path).acceptance()
    assert acceptance.at_risk.tolist() == [4, 2, 1]
    assert acceptance.accepted.tolist() == [3, 1, 1]
    assert acceptance.conditional.tolist() == [0.75, 0.5, 1.0]
    assert acceptance.survival.tolist() == [0.75, 0.375, 0.375]
    assert acceptance.accepted_length == 2.5
    assert (acceptance.rounds, acceptance.censored_rounds) == (5, 2)
    assert acceptance.is_censored
    assert acceptance.indexed_by == "round"
    # Greenwood, second position: 0.375 * sqrt(1 / (4 * 3) + 1 / (2 * 1)).
    assert acceptance.survival_standard_error[1] == pytest.approx(0.375 * np.sqrt(1 / 12 + 1 / 2))


def test_cap_accept_mode_is_not_censored(write: Write) -> None:
    path = write(
        server_info(
            dump_of("cap-accept", request(2, 1, cap_trim=2), request(3, 1), request(1, 0, cap_trim=1))
        )
    )
    dump = load_step_dump(path)
    assert dump.verified.tolist() == [3, 3, 3]
    assert dump.accepted.tolist() == [3, 1, 1]
    assert not dump.acceptance().is_censored
    assert dump.acceptance().conditional.tolist() == [1.0, pytest.approx(1 / 3), 1.0]


def test_optional_fields_and_several_ranks(write: Write) -> None:
    confident = request(4, 2, rid="a", confidence=[0.9, 0.8, 0.7], survival=[0.9, 0.72, 0.504])
    dump = load_step_dump(
        write(server_info(dump_of("compact", confident), dump_of("compact", request(4, 0))))
    )
    assert dump.request == ("a", None)
    assert dump.forward_ct.tolist() == [9, 9]
    assert dump.confidence[0].tolist() == [0.9, 0.8, 0.7]
    assert np.isnan(dump.confidence[1]).all()


@pytest.mark.parametrize(
    ("settings", "dumps", "said"),
    [
        ({}, 1, None),
        ({"dp_size": 1, "enable_dp_attention": False}, 1, None),
        (
            {"dp_size": 2, "enable_dp_attention": True},
            2,
            "2 of 2 data-parallel ranks, with data-parallel att",
        ),
        (
            {"dp_size": 8, "enable_dp_attention": True},
            1,
            "1 of 8 data-parallel ranks, with data-parallel att",
        ),
        (
            {"dp_size": 2, "enable_dp_attention": False},
            2,
            "2 of 2 data-parallel ranks, each with steps of its",
        ),
        ({}, 2, "2 of 2 data-parallel ranks, the file does not say"),
    ],
)
def test_data_parallel_ranks_are_said(
    write: Write, settings: dict[str, object], dumps: int, said: str | None
) -> None:
    """Rates are counted over all ranks alike; that ranks wait for each other is not in them."""
    path = write(server_info(*[dump_of("compact", request(4, 3))] * dumps) | settings)
    acceptance = load_step_dump(path).acceptance()
    assert acceptance.at_risk.tolist() == [dumps] * 3
    read = load_acceptance(path).provenance.line()
    for line in (acceptance.rates().provenance.notes or "", read):
        assert (said is None and "data-parallel" not in line) or (said is not None and said in line)
        assert ("wait for the slowest" in line) == (said is not None and "steps of its" not in said)


def test_a_setting_of_data_parallel_attention_that_is_no_flag_is_refused(write: Write) -> None:
    info = server_info(*[dump_of("compact", request(4, 3))] * 2) | {"enable_dp_attention": "maybe"}
    with pytest.raises(BadInputError, match="enable_dp_attention: must be true or false"):
        load_step_dump(write(info))


def test_a_record_alone_reads_like_the_whole_answer(write: Write) -> None:
    alone = load_step_dump(write(dump_of("static", request(4, 2))))
    assert alone.acceptance().at_risk.tolist() == [1, 1, 1]
    assert not alone.acceptance().is_censored


def simulated(conditional: NDArray[np.float64], verified: NDArray[np.int64], seed: int) -> StepDump:
    """Rounds with independent acceptances, cut at lengths that do not depend on them."""
    rounds, gamma = verified.size, conditional.size
    draws = np.random.default_rng(seed).random((rounds, gamma)) < conditional
    full = np.cumprod(draws, axis=1).sum(axis=1)
    return StepDump(
        "simulated",
        "compact",
        gamma,
        verified,
        np.minimum(full, verified),
        np.full((rounds, gamma), np.nan),
        (None,) * rounds,
        np.arange(rounds),
    )


def test_the_estimate_sees_through_censoring_where_plain_counting_does_not() -> None:
    true = np.array([0.9, 0.8, 0.7, 0.6])
    verified = np.random.default_rng(1).integers(0, 5, 40_000)
    acceptance = simulated(true, verified, seed=2).acceptance()
    spread = np.sqrt(true * (1 - true) / acceptance.at_risk)
    assert (np.abs(acceptance.conditional - true) < 4 * spread).all()
    # Greenwood's error is the size of the actual one.
    errors = np.abs(acceptance.survival - np.cumprod(true)) / acceptance.survival_standard_error
    assert (errors < 4).all()
    # The mean of what was accepted is far below the accepted length of the drafts.
    assert acceptance.accepted_length == pytest.approx(1 + np.cumprod(true).sum(), abs=0.05)
    assert 1 + simulated(true, verified, seed=2).accepted.mean() < acceptance.accepted_length - 0.8


def test_standard_error_covers_the_truth_across_replications() -> None:
    true = np.array([0.8, 0.6])
    verified = np.tile([1, 2], 500)
    replications = [simulated(true, verified, seed).acceptance() for seed in range(300)]
    scores = [(each.survival[1] - 0.48) / each.survival_standard_error[1] for each in replications]
    assert np.std(scores) == pytest.approx(1.0, abs=4 / np.sqrt(2 * len(scores)))


def test_rates_feed_the_simulator_and_say_where_they_are_from() -> None:
    rates = simulated(np.array([0.8, 0.6]), np.full(1000, 2), seed=3).acceptance().rates()
    assert rates.gamma == 2
    assert rates.conditional == pytest.approx((0.8, 0.6), abs=0.08)
    assert rates.provenance.kind == "measured"
    assert rates.provenance.notes == "counted over 1000 rounds, 0 of them censored"


def test_positions_never_verified_are_unknown_not_zero() -> None:
    acceptance = simulated(np.array([0.9, 0.9, 0.9]), np.full(100, 1), seed=4).acceptance()
    assert np.isnan(acceptance.survival).tolist() == [False, True, True]
    assert np.isnan(acceptance.accepted_length)
    with pytest.raises(BadInputError, match="tells nothing of draft 2"):
        acceptance.rates()


def test_positions_behind_certain_rejection_are_zero_not_unknown() -> None:
    acceptance = simulated(np.array([1.0, 0.0, 0.9]), np.full(100, 3), seed=5).acceptance()
    assert acceptance.survival.tolist() == [1.0, 0.0, 0.0]
    assert acceptance.survival_standard_error.tolist() == [0.0, 0.0, 0.0]
    assert acceptance.accepted_length == 2.0
    assert acceptance.rates().accepted_length == 2.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "internal_states: is missing"),
        ({"internal_states": [{}]}, "hold no dspark_info_record"),
        (dump_of("compact"), "record the component reqs"),
        (dump_of("draft-only", request(4, 1)), r"mode: is not known \(got 'draft-only'\)"),
        (server_info(dump_of("compact", request(4, 1)), dump_of("cap-accept", request(4, 1))), "first rank"),
        (dump_of("compact", request(0, 0)), r"verify_len: must lie in 1\.\.4, the anchor included \(got 0\)"),
        (dump_of("compact", request(5, 0)), "verify_len: must lie in"),
        (
            dump_of("compact", request(3, 3)),
            r"correct_drafts: must lie in 0\.\.2, what was verified \(got 3\)",
        ),
        (dump_of("cap-accept", request(2, 2, cap_trim=2)), r"must lie in 0\.\.3"),
        (dump_of("compact", {"verify_len": 3}), "correct_drafts: is missing"),
        (dump_of("compact", request(4, 1, confidence=[0.5])), "confidence: must be 3 values"),
        (dump_of("compact", request(4, 1, confidence=[0.5, 0.5, 1.5])), "within 0..1"),
        (dump_of("compact", request(4, 1), gamma=2.0), "gamma: must be an integer"),  # type: ignore[arg-type]
    ],
)
def test_dumps_that_make_no_sense(write: Write, content: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_step_dump(write(content))
