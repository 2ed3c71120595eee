"""No answer rests on rows that a scheduler chose far beyond those measured, whichever door is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import simulator as sim
from simulator.planning.plan import plan
from simulator.planning.scenario.reading import load_scenario

MEASURED = 4
"""Batch tokens of the last point. Rows cost next to nothing, so ``dspark-async`` verifies whole blocks: at 8
requests and blocks of 7, some 8 * 8 = 64 rows, 16 times those measured."""

PROFILE = {
    "schema": 1, "name": "line", "title": "line",
    "provenance": {"kind": "synthetic", "source": "test", "date": "2026-01-01"},
    "step": {"type": "throughput-curve", "batch_tokens": [1, MEASURED], "steps_per_s": [100, 99.9]},
}  # fmt: skip
SCENARIO = {
    "name": "far", "profile": "line.json", "policies": ["dspark-async"], "acceptance": ["rate:0.95@7"],
    "sla": ["ttft_p99<=5s"],
    "traffic": {"arrivals": "poisson:5/s", "lengths": "fixed:100/200", "growth": ["0%"]},
    "replica": {"concurrency": 8, "prefill": "chunked"},
    "search": {"requests": 200, "precision": "20%", "concurrency": [1, 2]},
}  # fmt: skip


def workbench(**options: bool) -> sim.Workbench:
    return sim.deployment("line.json", "rate:0.95@7", **options)


def planned(extrapolate_rows: bool) -> object:
    search = SCENARIO["search"] | {"extrapolate_rows": extrapolate_rows}  # type: ignore[operator]
    Path("s.yaml").write_text(json.dumps(SCENARIO | {"search": search}))
    return plan(load_scenario(Path("s.yaml")))


QUICK = {"lengths": "fixed:50/40"}
DOORS: dict[str, Callable[[bool], object]] = {
    "frontier": lambda far: workbench(extrapolate_rows=far).frontier(
        "dspark-async", 8, seeds=1, steps=80, **QUICK
    ),
    "simulate": lambda far: workbench(extrapolate_rows=far).simulate(
        "dspark-async", concurrency=8, steps=100, **QUICK
    ),
    "fleet": lambda far: workbench(extrapolate_rows=far).fleet(
        "dspark-async",
        replicas=1,
        traffic="poisson:40/s",
        sla="ttft_p99<=9s",
        concurrency=8,
        duration="20s",
        **QUICK,
    ),
    "regret": lambda far: workbench(extrapolate_rows=far).regret("dspark-async", "flat", 8, seeds=2, **QUICK),
    "plan": planned,
}


@pytest.mark.parametrize("door", DOORS)
def test_rows_that_a_scheduler_chose_are_judged_at_every_door(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("line.json").write_text(json.dumps(PROFILE))
    with pytest.raises(sim.BadInputError, match=r"dspark-async: verifies .* times those measured"):
        DOORS[door](False)
    DOORS[door](True)
