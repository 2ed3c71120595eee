"""A table that somebody brings along: what is mended, what is said of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import deploy
from simulator.deployment.own_table import FREE_DRAFTS, mended_profile
from simulator.deployment.profile import Profile, load_profile

TIMES_S = (0.010, 0.011, 0.012)


def written(path: Path, step: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"step": step} | more), encoding="utf-8")
    return path


def times(profile: Profile, *sizes: int) -> list[float]:
    return [profile.target_cost().step_time_s(size, size) for size in sizes]


def test_four_faults_of_one_table_are_mended_at_once(tmp_path: Path) -> None:
    """Unsorted, a size twice, 0.5% of noise, no provenance: load_profile would reject it four times."""
    file = tmp_path / "mine.csv"
    file.write_text("batch_tokens,step_time_s\n64,0.0120\n1,0.010\n1,0.0102\n32,0.01206\n", encoding="utf-8")
    made = mended_profile(file, kind="measured")
    made.profile.save(tmp_path / "mine.json")
    profile = load_profile(tmp_path / "mine.json")
    pooled = (0.0120 * 0.01206) ** 0.5  # two step times out of order pool to their geometric mean
    assert times(profile, 1, 32, 64) == pytest.approx([0.0101, pooled, pooled], rel=1e-9)
    assert profile.provenance.kind == "measured"
    said = "\n".join(made.notes)
    assert "batch_tokens: sorted" in said
    assert "given 2 times, 2.0% apart" in said
    assert "changed by up to 0.25%" in said
    assert FREE_DRAFTS in made.notes


def test_a_table_in_order_keeps_its_numbers(tmp_path: Path) -> None:
    step = {"batch_tokens": [1, 32, 64], "steps_per_s": [100.0, 90.0, 80.0]}
    made = mended_profile(written(tmp_path / "t.json", step), kind="measured", source="my bench")
    assert made.profile.step.model_dump()["steps_per_s"] == pytest.approx((100.0, 90.0, 80.0), rel=1e-15)
    assert made.profile.provenance.source == "my bench"
    assert [note for note in made.notes if "batch_tokens" in note] == []


def test_a_rise_beyond_noise_is_refused_with_its_size(tmp_path: Path) -> None:
    file = written(tmp_path / "t.json", {"batch_tokens": [1, 64], "steps_per_s": [100.0, 110.0]})
    with pytest.raises(BadInputError, match=r"t\.json: batch_tokens .*4\.\d%.*2\.0% is noise"):
        mended_profile(file, kind="measured")
    assert mended_profile(file, kind="measured", noise=0.05).profile.name == "t"


def test_who_brings_numbers_must_say_where_they_come_from(tmp_path: Path) -> None:
    file = written(tmp_path / "t.json", {"batch_tokens": [1, 64], "steps_per_s": [100.0, 90.0]})
    with pytest.raises(BadInputError, match=r"provenance\.kind.*`kind` measured"):
        mended_profile(file)


def test_an_additive_cost_is_mended_as_part_of_a_step(tmp_path: Path) -> None:
    step = {
        "type": "additive", "bias_s": 0.01, "request_probes": [1, 64], "alpha_s": [0.0, 0.001],
        "token_probes": [1, 32, 32, 64], "theta_s": [0.0, 0.001, 0.003, 0.00199],
    }  # fmt: skip
    made = mended_profile(written(tmp_path / "t.json", step), kind="measured")
    mended = made.profile.step.model_dump()
    assert mended["token_probes"] == (1, 32, 64)
    # The mean of 1 and 3 ms is 10 us above the next: the two pool within a step of 12 ms.
    assert mended["theta_s"][1] == pytest.approx(0.001995, abs=1e-8)
    assert mended["theta_s"][1] == mended["theta_s"][2]
    assert mended["alpha_s"] == (0.0, 0.001)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("batch_tokens,speed\n1,2\n", "needs batch_tokens and either"),
        ("batch_tokens,steps_per_s\n1,0\n", "must be positive"),
        ("batch_tokens,steps_per_s\n1,x\n", "must be numbers"),
        ("batch_tokens,steps_per_s\n", "list of finite numbers"),
        ("", "is not a table"),
    ],
)
def test_what_cannot_be_mended_names_the_file(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(BadInputError, match=rf"bad\.csv.*{problem}"):
        mended_profile(file, kind="measured")


def test_a_measured_profile_without_drafters_warns_that_drafting_is_free(tmp_path: Path) -> None:
    file = written(tmp_path / "t.json", {"batch_tokens": [1, 64], "steps_per_s": [100.0, 90.0]})
    free = deploy(mended_profile(file, kind="measured").profile, ["length:3.5@5"])
    assert any("prices no drafter: drafting is free" in note for note in free.notes)
    assert not any("free" in note for note in deploy("deepseek-v4-flash").notes)


def test_a_provenance_without_kind_says_what_is_asked_for(tmp_path: Path) -> None:
    step = {"type": "throughput-curve", "batch_tokens": [1, 64], "steps_per_s": [100.0, 90.0]}
    provenance = {"source": "me", "date": "2026-11-25"}
    file = written(tmp_path / "t.json", step, name="t", title="T", provenance=provenance)
    with pytest.raises(BadInputError, match=r"provenance.kind: is missing; .*measured.*profile repair"):
        load_profile(file)
