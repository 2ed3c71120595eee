"""Predictions beside results with the misses first; what a dropped file says."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pandas as pd
import pytest

from simulator.core.errors import BadInputError
from simulator.deployment.profile import load_profile
from simulator.dumps.outcomes import Replayed
from simulator.paper.claims_check import check_against
from simulator.report.columns import COLUMNS
from simulator.ui.check import work
from simulator.ui.check.view import _CLAIMS, _COLUMNS, _MEANINGS, compared, file_of_replay
from simulator.ui.check.work import FileTask, Read, Uploads, claims, measured, subjects
from simulator.ui.explore.work import Line
from simulator.ui.exports import one_file
from simulator.ui.figures import misses_figure
from tests.dumps.test_redecide import written_dump
from tests.support.dash_text import words


def test_subjects_have_something_published() -> None:
    assert subjects()[0] == "deepseek-v4-flash"
    assert subjects()[-2:] == [work.ACCEPTANCE, work.HELD_OUT]
    assert all(load_profile(name).published for name in subjects()[:-2])


def test_held_out_gains_come_misses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = pd.DataFrame(
        {"where": "here", "drafter": "EAGLE-3", "drafts": [2, 3], "measured": [2.0, 1.0], "predicted": 1.5}
    )
    monkeypatch.setattr(work, "held_out_gains", lambda seeds: gains)
    found = work.HeldOutTask().run(str)
    assert found["miss"].tolist() == [0.5, 0.25]
    assert found["name"].tolist() == ["EAGLE-3 with 3 drafts, here", "EAGLE-3 with 2 drafts, here"]


def test_the_largest_miss_comes_first() -> None:
    """Lines that are the published points scaled: mtp1 right, dspark-async's throughput 20% too high."""
    published = load_profile("deepseek-v4-flash").published
    assert published is not None
    lines = []
    for policy, factor in (("mtp1", 1.0), ("dspark-async", 1.2)):
        line = published.throughput[policy]
        points = [(load, value * factor) for load, value in line if 10 <= load <= 200]
        budget = dict(published.budget).get(policy, points)
        table = pd.DataFrame(points, columns=["concurrency", "throughput_tok_per_s"])
        table = table.assign(
            policy=policy, tps_mean=table["throughput_tok_per_s"] / table["concurrency"],
            tps_p10=1.0, tps_p50=1.0, throughput_ci95=0.0,
            verification_budget_mean=float(budget[0][1]),
        )  # fmt: skip
        lines.append(Line(table, ()))
    found = claims("deepseek-v4-flash", lines)
    assert list(found["miss"]) == sorted(found["miss"], reverse=True)
    by_quantity = found.set_index("quantity")["miss"]
    throughput = {
        str(name).split()[0]: miss for name, miss in by_quantity.items() if "throughput, mean" in str(name)
    }
    assert throughput == pytest.approx({"mtp1": 0.0, "dspark-async": 0.2}, abs=1e-9)
    both = check_against(pd.concat([line.table for line in lines]), published)
    assert set(both["quantity"]) == set(found["quantity"])


def test_shipped_validations_are_read_misses_first() -> None:
    table = measured()
    assert {"validation", "policy", "metric", "measured", "predicted"} <= set(table)
    assert list(table["miss"]) == sorted(table["miss"], reverse=True)


def test_recorded_steps_are_replayed_and_explained(tmp_path: Path) -> None:
    path = written_dump(tmp_path / "dump.json")
    found = FileTask(str(path), "my dump.json", ("sglang", "fixed:2")).run(str)
    assert isinstance(found, Replayed)
    content = one_file(file_of_replay(found))
    assert all(escape(line.strip()) in content for line in found.summary().splitlines())
    assert content.count("<table") == 2
    assert found.differing == 0  # the recorder follows sglang's own rule
    assert list(found.policies["policy"]) == ["as recorded", "sglang", "fixed:2"]


def test_a_log_tells_its_acceptance(tmp_path: Path) -> None:
    """Conditional rates 0.8 and 0.6: marginals 0.8 and 0.48."""
    log = (
        "INFO 11-02 10:00:00 [metrics.py:100] SpecDecoding metrics: Mean acceptance length: "
        "2.28, Accepted throughput: 12.80 tokens/s, Drafted throughput: 20.00 tokens/s, "
        "Accepted: 1280 tokens, Drafted: 2000 tokens, Per-position acceptance rate: 0.800, 0.480, "
        "Avg Draft acceptance rate: 64.0%"
    )
    path = tmp_path / "kept.json"
    path.write_text(log)
    found = FileTask(str(path), "engine.log", ("sglang",)).run(str)
    assert isinstance(found, Read)
    assert found.rates == pytest.approx((0.8, 0.6), abs=0.02)


@pytest.mark.parametrize(
    "content", [b"no log at all", b"\x00\x01", b"[1, 2]", b'{"records": 1, "mode": "x"}', b"{"]
)
def test_a_bad_file_is_refused_by_the_users_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        FileTask(str(path), "mine.json", ("sglang",)).run(str)
    assert str(caught.value).startswith("mine.json: ")
    assert str(tmp_path) not in str(caught.value)


def test_uploads_are_known_by_content_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MOST_UPLOADS", 2)
    uploads = Uploads()
    digests = [uploads.keep(json.dumps(number).encode()) for number in (1, 2, 1, 3)]
    assert digests[0] == digests[2]
    first = uploads.task(f"dump={digests[0]}&name=a.json&policy=sglang&policy=fixed:1")
    assert Path(first.path).read_bytes() == b"1"
    assert (first.name, first.policies) == ("a.json", ("sglang", "fixed:1"))
    for gone in (digests[1], "../../etc/passwd", ""):
        with pytest.raises(BadInputError, match="drop it again"):
            uploads.task(f"dump={gone}")
    uploads.close()
    assert not Path(first.path).exists()


def test_places_in_the_figure_are_those_of_the_table() -> None:
    """Names in the figure are cut, so that places have to tell rows apart."""
    names, values = (
        ("a name that is longer than the room beside its bar, b", "y"),
        ((10.0, 11.0), (10.0, 5.0)),
    )
    published, predicted = zip(*values, strict=True)
    axis = misses_figure(names, published, predicted, "light")["layout"]["yaxis"]
    assert axis["ticktext"] == ["2. a name that is longer th…", "1. y"]  # the largest miss is on top
    rows = {"quantity": names[::-1], "published": 10.0, "predicted": (5.0, 11.0), "miss": (0.5, 0.1)}
    table = pd.DataFrame(rows)
    shown = words(compared(table, "deepseek-v4-flash")[1])
    assert "1. y" in shown
    assert f"2. {names[0]}" in shown


def test_every_column_says_what_it_means() -> None:
    for columns in (_CLAIMS, *_COLUMNS.values()):
        assert [name for name in columns if not (_MEANINGS.get(name) or COLUMNS.get(name))] == []
