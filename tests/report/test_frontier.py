"""Figures: what they show, and that they are written whole."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator.core.errors import BadInputError, UnwritableError
from simulator.deployment.profile_parts import PublishedClaims
from simulator.report.drawing import style
from simulator.report.drawing.style import save
from simulator.report.frontier import plot_frontier, plot_load, plot_regret

POLICIES = ("mtp1", "fixed:5", "dspark-async", "oracle")
CLAIMS = PublishedClaims(
    source="hand-made",
    throughput={"mtp1": ((10, 1100), (20, 1900))},
    budget={"dspark-async": ((10, 5.5), (20, 5.0), (40, 4.5))},
    throughput_vs_tps={"mtp1": ((110, 1100), (95, 1900)), "absent": ((1, 1), (2, 2))},
)


@pytest.fixture
def frontier() -> pd.DataFrame:
    rows = []
    for rank, policy in enumerate(POLICIES, start=1):
        for load in (10, 20, 40):
            rate = rank * 1000.0 + 50 * load
            rows.append((policy, load, rate, 25.0, rate / load, rank + 1.0))
    columns = [
        "policy", "concurrency", "throughput_tok_per_s", "throughput_ci95", "tps_mean",
        "verification_budget_mean",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).assign(replica_gpus=1)


def test_labels_of_near_slas_stand_below_each_other(frontier: pd.DataFrame) -> None:
    (axes,) = plot_frontier(frontier, slas=(30, 31)).axes
    first, second = axes.texts
    assert first.get_text() == "SLA 30 on average"
    assert second.xyann[1] <= first.xyann[1] - 10


def by_label(axes):  # type: ignore[no-untyped-def]
    return {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def test_the_frontier_has_a_line_per_policy_and_a_mark_per_sla(frontier: pd.DataFrame) -> None:
    (axes,) = plot_frontier(frontier, slas=[80, 120], title="a title").axes
    drawn = by_label(axes)
    assert tuple(drawn) == POLICIES
    for policy, line in drawn.items():
        mine = frontier[frontier["policy"] == policy]
        assert line.get_xdata().tolist() == mine["tps_mean"].tolist()
        assert line.get_ydata().tolist() == mine["throughput_tok_per_s"].tolist()
    assert [text.get_text() for text in axes.texts] == [
        "SLA 80 on average", "SLA 120 on average"
    ]  # fmt: skip
    assert "tokens/s/user" in axes.get_xlabel()
    assert "tokens/s/GPU" in axes.get_ylabel()
    assert axes.figure.get_suptitle() == "a title"
    assert len({line.get_color() for line in drawn.values()}) == len(POLICIES)


@pytest.mark.parametrize(
    ("gpus", "speed", "load"),
    [
        (1, "output tokens/s/GPU", "per GPU"),
        (4, "output tokens/s per replica of 4 GPUs", "per replica of 4 GPUs"),
        (float("nan"), "output tokens/s per replica", "per replica"),
    ],
)
def test_axes_say_how_many_gpus_they_are_of(
    gpus: float, speed: str, load: str, frontier: pd.DataFrame
) -> None:
    mine = frontier.assign(replica_gpus=gpus)
    (axes,) = plot_frontier(mine).axes
    left, right = plot_load(mine).axes
    for each in (axes, left):
        assert each.get_ylabel() == f"throughput, {speed}"
    for each in (left, right):
        assert each.get_xlabel() == f"concurrent requests {load}"
    assert plot_frontier(mine.drop(columns="replica_gpus")).axes[0].get_ylabel().endswith("per replica")


def test_published_points_are_diamonds_in_the_colour_of_their_policy(frontier: pd.DataFrame) -> None:
    (axes,) = plot_frontier(frontier, published=CLAIMS).axes
    diamonds = [line for line in axes.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert [list(zip(d.get_xdata(), d.get_ydata(), strict=True)) for d in diamonds] == [
        [(110, 1100), (95, 1900)]
    ]
    assert diamonds[0].get_color() == by_label(axes)["mtp1"].get_color()
    assert "published" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_load_shows_throughput_with_its_interval_and_the_budget(frontier: pd.DataFrame) -> None:
    left, right = plot_load(frontier, published=CLAIMS).axes
    assert set(POLICIES) <= set(by_label(left))
    assert tuple(by_label(right)) == POLICIES
    assert by_label(right)["oracle"].get_ydata().tolist() == [5, 5, 5]
    assert len(left.collections) == len(POLICIES)
    low = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (low.min(), low.max()) == (1475, 3025)  # 1500 - 25 to 3000 + 25
    assert "concurrent requests" in left.get_xlabel()
    assert "budget" in right.get_ylabel()
    for axes in (left, right):
        assert axes.get_ylim()[0] == 0
        assert sum(line.get_marker() == "D" and len(line.get_xdata()) > 0 for line in axes.lines) == 1


def test_nothing_published_leaves_no_key_for_it(frontier: pd.DataFrame) -> None:
    for figure in (plot_frontier(frontier), plot_load(frontier)):
        assert "published" not in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("suffix", style.FORMATS)
def test_equal_figures_are_equal_bytes(frontier: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        save(plot_frontier(frontier, slas=[80], published=CLAIMS), tmp_path / f"{name}{suffix}")
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one) > 2000


def test_a_failed_save_leaves_the_old_picture_and_no_litter(
    frontier: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure = plot_frontier(frontier)

    def half(target: Path, **_: object) -> None:
        Path(target).write_bytes(b"hal")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(UnwritableError, match="cannot be written: disk full"):
        save(figure, path)
    assert [each.name for each in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"old"


def test_a_name_that_is_no_picture_is_refused(frontier: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"figure\.txt.*\.png, \.svg, \.pdf"):
        save(plot_frontier(frontier), tmp_path / "figure.txt")
    assert not list(tmp_path.iterdir())


def test_regrets_axis_names_the_loads_that_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    table = pd.DataFrame({"belief": "flat", "concurrency": [10, 50, 200], "regret": 0.1, "regret_ci95": 0.01})
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    plot_regret(table, tmp_path / "regret.png", "dspark-async on a profile")
    (axes,) = drawn[0].axes
    assert axes.get_title() == "dspark-async on a profile"
    low, high = axes.get_xlim()
    named = [
        text.get_text()
        for text in axes.get_xticklabels(which="both")
        if low <= text.get_position()[0] <= high
    ]
    assert [name for name in named if name] == ["10", "50", "200"]
