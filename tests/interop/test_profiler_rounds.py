"""SGLang profiler rounds: the batch-token rule, steadiness, repeats, ranks, and the curve they give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.core.errors import BadInputError
from simulator.cost.fit import fit_additive
from simulator.interop.sglang_profiler import load_rounds

GAMMA = 5
Write = Callable[..., Path]


def round_of(requests: int, step_time_s: float, frac: float | None = None, **changes: Any) -> dict[str, Any]:
    drafts = requests * GAMMA if frac is None else int(frac * requests * GAMMA)
    return {
        "repeat": 0,
        "batch_size": 2 * requests,
        "batch_size_per_rank": requests,
        "frac": frac,
        "batch_tokens": requests + drafts,
        "steps_per_sec": 1 / step_time_s,
        "num_steady_steps": 500,
        "match_fraction": 1.0,
        "per_rank_median_step_time": [0.98 * step_time_s, 1.02 * step_time_s],
        "load_info": {
            "num_requests": 2 * requests,
            "max_new_tokens": 572,
            "wall_seconds": 14.2,
            "reached_target": True,
        },
        **changes,
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(*rounds: dict[str, Any] | str) -> Path:
        path = tmp_path / "table.rounds.jsonl"
        lines = [each if isinstance(each, str) else json.dumps(each) for each in rounds]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write_file


def test_curve_is_the_median_of_repeats_at_tokens_with_anchors(write: Write) -> None:
    path = write(round_of(1, 0.010), round_of(8, 0.020), round_of(8, 0.030), round_of(8, 0.022))
    rounds = load_rounds(path)
    curve = rounds.curve()
    assert rounds.gamma == GAMMA
    assert curve.batch_tokens.tolist() == [6, 48]
    assert curve.steps_per_s.tolist() == pytest.approx([100, 1 / 0.022])
    assert curve.lookup == "floor"
    assert rounds.curve(lookup="linear").step_time_s(1, 27) == pytest.approx(0.016)


def test_pinned_rounds_give_cells_and_stay_off_the_diagonal(write: Write) -> None:
    path = write(round_of(8, 0.020), round_of(8, 0.015, frac=0.3), round_of(16, 0.03))
    rounds = load_rounds(path)
    assert rounds.curve().batch_tokens.tolist() == [48, 96]
    cells = rounds.cells()
    assert cells.columns.tolist() == ["requests", "batch_tokens", "step_time_s"]
    assert cells.to_numpy().tolist() == [
        pytest.approx([8, 48, 0.020]),
        pytest.approx([8, 8 + 12, 0.015]),
        pytest.approx([16, 96, 0.03]),
    ]


def test_only_pinned_rounds_make_no_curve_and_do_not_show_the_block_size(write: Write) -> None:
    path = write(round_of(8, 0.015, frac=0.3), round_of(8, 0.016, frac=0.6))
    with pytest.raises(BadInputError, match="pass gamma"):
        load_rounds(path)
    rounds = load_rounds(path, gamma=GAMMA)
    assert len(rounds.cells()) == 2
    with pytest.raises(BadInputError, match=r"fit the additive model to cells\(\)"):
        rounds.curve()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_steady_steps": 31}, "has only 31 steady steps"),
        ({"match_fraction": 0.75}, "held its batch size in only 75% of its steps"),
        ({"per_rank_median_step_time": [0.030, 0.032]}, "reports 0.02 s a step, its ranks 0.03 to 0.032 s"),
        ({"load_info": {"wall_seconds": 300, "reached_target": False}}, "timed out before its target"),
    ],
)  # fmt: skip
def test_unsteady_rounds_are_set_aside_with_the_reason(
    write: Write, changes: dict[str, Any], reason: str
) -> None:
    unsteady = round_of(8, 0.020, **changes)
    rounds = load_rounds(write(round_of(1, 0.010), unsteady))
    assert [(each.line, each.reason) for each in rounds.rejected] == [(2, reason)]
    assert rounds.curve().batch_tokens.tolist() == [6]
    with pytest.raises(BadInputError, match="has no steady round: line 1"):
        load_rounds(write(unsteady))


def test_thresholds_are_the_callers(write: Write) -> None:
    path = write(round_of(8, 0.020, match_fraction=0.6, num_steady_steps=10))
    assert len(load_rounds(path, min_match_fraction=0.5, min_steady_steps=10).usable) == 1


def test_imbalance_between_ranks_is_visible(write: Write) -> None:
    (only,) = load_rounds(write(round_of(8, 0.020, per_rank_median_step_time=[0.016, 0.024]))).usable
    assert only.rank_imbalance == pytest.approx(1.5)


def test_ranks_that_share_a_step_are_said(write: Write) -> None:
    shared = write(round_of(8, 0.020, per_rank_median_step_time=[0.016, 0.024]))
    assert "2 data-parallel ranks share a step" in load_rounds(shared).warnings[0]
    assert "1.50 times" in load_rounds(shared).warnings[0]
    assert load_rounds(write(round_of(8, 0.020, per_rank_median_step_time=[0.020]))).warnings == ()


def test_a_file_without_sizes_per_rank_has_one_rank(write: Write) -> None:
    bare = round_of(8, 0.020, batch_size=8, per_rank_median_step_time=[0.020])
    del bare["batch_size_per_rank"]
    assert load_rounds(write(bare)).usable[0].requests == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 47}, r"line 2: batch_tokens: must be 48: 8 anchors and all drafts of block size 5"),
        ({"frac": 0.3, "batch_tokens": 48}, "must be 20: 8 anchors and 0.3 of all drafts"),
        ({"frac": 1.5}, r"frac: is out of range \(got 1.5\)"),
        ({"batch_tokens": 48.0}, "batch_tokens: must be an integer"),
        ({"batch_size_per_rank": 0}, "batch_size_per_rank: is out of range"),
        ({"steps_per_sec": 0}, "steps_per_sec: is out of range"),
        ({"steps_per_sec": float("nan")}, r"line \d+: .*is not a finite number .*NaN"),
        ({"match_fraction": 1.2}, "match_fraction: is out of range"),
        ({"per_rank_median_step_time": []}, "per_rank_median_step_time: is out of range"),
        ({"load_info": {}}, "load_info: reached_target: is missing"),
        ({"load_info": {"reached_target": 1}}, "must be true or false"),
    ],
)
def test_rounds_that_contradict_the_format(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_rounds(write(round_of(1, 0.010), round_of(8, 0.020, **changes)))


def test_files_that_hold_no_rounds(write: Write, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has no rounds"):
        load_rounds(write(""))
    with pytest.raises(BadInputError, match="line 2: is not JSON"):
        load_rounds(write(round_of(1, 0.010), '{"repeat": 0, "batch'))
    with pytest.raises(BadInputError, match="line 1: must be a JSON object"):
        load_rounds(write("[1]"))
    with pytest.raises(BadInputError, match="no such file"):
        load_rounds(tmp_path / "missing.jsonl")


def test_a_larger_batch_that_steps_faster_is_refused_as_a_curve(write: Write) -> None:
    rounds = load_rounds(write(round_of(1, 0.010), round_of(8, 0.009)))
    assert len(rounds.cells()) == 2
    with pytest.raises(BadInputError, match="monotone"):
        rounds.curve()


def test_pinned_budgets_that_change_nothing_are_refused_unless_asked_for(write: Write) -> None:
    """Full width whatever was pinned: 20 ms and 20.2 ms at 8 requests, 30 and 30.3 at 16; alpha moves."""
    ignored = [round_of(8, 0.0200, frac=0.0), round_of(8, 0.0202)]
    ignored += [round_of(16, 0.030, frac=0.5), round_of(16, 0.0303)]
    path = write(*ignored)
    with pytest.raises(BadInputError, match=r"rounds.jsonl: frac: changes .* at most 1.0% .*never trim"):
        load_rounds(path)
    rounds = load_rounds(path, allow_flat=True)
    assert len(rounds.cells()) == 4
    honoured = write(*ignored[:3], round_of(16, 0.040))
    assert len(load_rounds(honoured).usable) == 4


def test_a_fit_to_ignored_pins_says_that_it_can_never_trim(write: Write) -> None:
    pins = [(size, frac) for size in (4, 8, 16) for frac in (0.0, 0.5, 1.0)]
    path = write(*(round_of(size, 0.01 + size / 1000, frac=frac) for size, frac in pins))
    cells = load_rounds(path, gamma=GAMMA, allow_flat=True).cells()
    fit = fit_additive(cells, token_probes=[4, 24, 96], folds=3)
    assert fit.in_sample.max < 0.01
    assert any("never trim" in warning for warning in fit.warnings)
