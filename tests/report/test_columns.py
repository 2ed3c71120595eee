"""Every column of every table is defined, and every definition is of a column."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from simulator.core.units import UNITS_OF_COLUMNS, unit_of
from simulator.report.columns import COLUMNS, FAMILIES, TABLES, definition
from tests.dumps.test_redecide import written_dump
from tests.support.command_line import run
from tests.support.plans import rough_plans
from tools.column_reference import page

FLASH = ("--profile", "deepseek-v4-flash")
SCENARIO = {
    "name": "small", "profile": "deepseek-v4-flash", "policies": ["mtp1", "dspark-async"],
    "sla": ["tps_p10>=20"], "replica": {"concurrency": 16},
    "acceptance": ["conditional:0.8,0.7,0.6,0.5,0.4"],  # a fitted model takes seconds to be made worse
    "traffic": {"arrivals": "poisson:4/s", "lengths": "fixed:100/30", "growth": ["0%"]},
    "search": {"requests": 200, "precision": "30%", "concurrency": [10, 30]},
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Columns of every table that the commands write, by the table's name."""
    out = tmp_path_factory.mktemp("tables")
    (out / "scenario.yaml").write_text(json.dumps(SCENARIO))
    short = ("--seeds", "2", "--workers", "1", "--concurrency", "60,120")
    load = ("--traffic", "poisson:4/s", "--lengths", "fixed:100/30")
    commands: tuple[tuple[object, ...], ...] = (
        ("compare", *FLASH, *short, "--steps", "80", "--sla", "80", "--out", out / "compare"),
        ("simulate", *FLASH, "--policy", "mtp1", "--concurrency", "4", *load, "--requests", "60", "--out",
         out / "one"),
        ("regret", *FLASH, *short, "--believed", "flat", "--out", out / "regret.csv"),
        ("fleet", *FLASH, *load, "--replicas", "1", "--duration", "60s", "--sla", "ttft_p99<=9s", "--workers",
         "1", "--out", out / "fleet"),
        ("acceptance", "show", "qwen3-4b-chat", "--out", out / "thresholds.csv"),
        ("replay", written_dump(out / "dump.json"), "--table", "deepseek-v4-flash", "--out", out / "again"),
        ("plan", out / "scenario.yaml", "--workers", "1", "--out", out / "plan"),
        ("plan", "--model", "qwen3-8b", "--gpu", "h100", "--acceptance", "length:3@7", *load, "--sla",
         "tps_p10>=20", "--workers", "1", "--out", out / "hardware"),
    )  # fmt: skip
    with rough_plans() as patch:
        patch.setattr("simulator.api.hardware_plan.MOST_CONCURRENT", 16)
        patch.setattr("simulator.planning.plan.GRID", (0.4, 1.0, 1.25))
        for words in commands:
            assert run(*words) == 0
    found: dict[str, set[str]] = {}
    for path in [*out.rglob("*.csv"), *out.rglob("*.parquet")]:
        if "cells" not in path.parts:
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
            found.setdefault(path.name, set()).update(map(str, table.columns))
    return found


def test_every_table_is_listed(written: dict[str, set[str]]) -> None:
    assert set(written) == set(TABLES)


def test_every_column_is_defined_and_every_definition_used(written: dict[str, set[str]]) -> None:
    columns = set().union(*written.values())
    assert {each for each in columns if definition(each) is None} == set()
    unused = {each for each in COLUMNS if each not in columns and f"{each}_at_peak" not in columns}
    assert unused == set()
    assert all(any(fnmatch(each, family) for each in columns) for family in FAMILIES)


def test_the_page_has_them_all() -> None:
    text = page()
    assert all(f"| `{each}` |" in text for each in [*COLUMNS, *TABLES, *FAMILIES])
    assert definition("not a column") is None


NAMES = {
    "drafter", "policy", "seed", "seeds", "replications", "added", "sla", "baseline", "leading",
    "lower_bound", "runner_up", "clear", "quantity", "belief", "significant", "request",
    "traffic_class", "pod", "replica", "feasible", "binding", "tied", "gpu", "recommended", "curve",
    "load", "term", "metric", "statistic", "comparison", "holds", "shown", "met", "saturated", "run",
    "variant", "rank", "differs", "why", "table",
}  # fmt: skip
"""Columns of words, flags and numbers that only name or count repetitions: they have no unit."""


def test_every_column_has_one_unit_or_is_a_name() -> None:
    listed = [column for columns in UNITS_OF_COLUMNS.values() for column in columns.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) <= COLUMNS.keys()
    assert {column for column in COLUMNS if unit_of(column) is None} == NAMES
    assert all(unit_of(family.replace("*", "mtp1")) for family in FAMILIES if family.endswith("*"))


@pytest.mark.parametrize(
    ("ending", "unit"),
    [
        ("_per_s", ("requests/s", "tokens/s")),
        ("_tokens", ("tokens", "currency/1e6 tokens")),
        ("_share", ("1",)),
        ("_gpus", ("GPUs",)),
    ],
)
def test_units_agree_with_the_endings_of_names(ending: str, unit: tuple[str, ...]) -> None:
    assert all(unit_of(column) in unit for column in COLUMNS if column.endswith(ending))


def test_seconds_end_so() -> None:
    timed = [column for column in COLUMNS if column.endswith("_s") and not column.endswith("_per_s")]
    assert {column: unit_of(column) for column in timed if unit_of(column) != "s"} == {
        "decoding_s": "requests*s", "handover_s": "requests*s"
    }  # fmt: skip


def test_tables_in_parquet_say_their_units(tmp_path: Path) -> None:
    short = ("--seeds", "2", "--workers", "1", "--concurrency", "4,60", "--steps", "60", "--policy", "mtp1")
    for form in ("csv", "parquet"):
        out = tmp_path / f"frontier.{form}"
        assert run("frontier", *FLASH, *short, "--out", out) == 0
        words = ("--sla", "60", "--tables", form, "--out", tmp_path / form)
        assert run("compare", *FLASH, *short, *words) == 0
    schema = pq.read_schema(tmp_path / "frontier.parquet")
    assert schema.field("tps_p10").metadata == {b"unit": b"tokens/s"}
    assert schema.field("step_time_mean_s").metadata == {b"unit": b"s"}
    assert schema.field("policy").metadata is None
    text, binary = pd.read_csv(tmp_path / "frontier.csv"), pd.read_parquet(tmp_path / "frontier.parquet")
    pd.testing.assert_frame_equal(text, binary, check_dtype=False, rtol=1e-7)  # the text has 8 digits
    tables = {path.stem: path.suffix for path in (tmp_path / "parquet").iterdir() if path.suffix != ".png"}
    assert tables == dict.fromkeys(("frontier", "sla", "load_bands", "published"), ".parquet")


def test_a_column_that_means_another_thing_in_steps_has_another_unit(tmp_path: Path) -> None:
    load = ("--concurrency", "2", "--traffic", "poisson:4/s", "--lengths", "fixed:20/9", "--requests", "20")
    assert run("simulate", *FLASH, "--policy", "mtp1", *load, "--out", tmp_path) == 0
    units = {
        name: pq.read_schema(tmp_path / f"{name}.parquet").field("queued_s").metadata[b"unit"]
        for name in ("requests", "steps")
    }
    assert units == {"requests": b"s", "steps": b"requests*s"}
