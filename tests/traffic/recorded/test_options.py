"""Every command that takes traffic, lengths or a number of requests takes what its help documents."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.cli.test_app import FLASH
from tests.support.command_line import run

ROWS = 60
SMALL = ("--profile", FLASH, "--policy", "mtp1")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Sixty requests at 20/s: shorter than every documented default of what a process generates."""
    rows = "".join(f"{0.05 * index:.2f},50,{6 + index % 3}\n" for index in range(ROWS))
    path = tmp_path / "recording.csv"
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    return path


def simulated(out: Path, *options: object) -> pd.DataFrame:
    assert run("simulate", *SMALL, "--concurrency", 4, "--out", out, *options) == 0
    return pd.read_parquet(out / "requests.parquet")


def test_simulate_plays_a_recording_whole(tmp_path: Path, recording: Path) -> None:
    requests = simulated(tmp_path / "run", "--traffic", recording)
    assert len(requests) == ROWS
    assert sorted(requests["output_tokens"])[:1] + sorted(requests["output_tokens"])[-1:] == [6, 8]


def test_simulate_takes_as_many_requests_of_a_recording_as_asked_and_no_more_than_it_holds(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(simulated(tmp_path / "run", "--traffic", recording, "--requests", 25)) == 25
    asked = ("--traffic", recording, "--requests", ROWS + 1)
    assert run("simulate", *SMALL, "--concurrency", 4, "--out", tmp_path / "no", *asked) == 2
    assert "holds only 60 requests" in capsys.readouterr().err


def test_simulate_plays_a_recording_of_several_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("arrival_s,class,prompt_tokens,output_tokens\n0,a,9,60\n1,b,9,70\n2,a,9,60\n")
    requests = simulated(tmp_path / "run", "--traffic", path)
    assert dict(requests["traffic_class"].value_counts()) == {"a": 2, "b": 1}


def test_a_process_generates_what_the_help_says(tmp_path: Path) -> None:
    requests = simulated(tmp_path / "run", "--traffic", "poisson:500/s", "--lengths", "fixed:10/3")
    assert len(requests) == 2000


def test_lengths_beside_a_recording_are_refused_where_they_are_given(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--traffic", recording, "--lengths", "fixed:10/3")
    assert run("simulate", *SMALL, "--concurrency", 4, "--out", tmp_path / "no", *asked) == 2
    assert "lengths: is given by the file already" in capsys.readouterr().err


def test_fleet_plays_a_recording_whole_by_default(tmp_path: Path, recording: Path) -> None:
    what = ("--replicas", 2, "--traffic", recording, "--sla", "tps_mean>=1", "--workers", 1)
    assert run("fleet", *SMALL, *what, "--out", tmp_path / "fleet") == 0
    assert pd.read_csv(tmp_path / "fleet" / "replicas.csv")["requests"].sum() == ROWS
