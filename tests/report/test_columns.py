"""Every column of every table is defined, and every definition is of a column."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pandas as pd
import pytest

from simulator.report.columns import COLUMNS, FAMILIES, TABLES, definition
from tests.dumps.test_redecide import written_dump
from tests.support.command_line import run
from tools.column_reference import page

FLASH = ("--profile", "deepseek-v4-flash")
SCENARIO = {
    "name": "small", "profile": "deepseek-v4-flash", "policies": ["mtp1", "dspark-async"],
    "sla": ["tps_p10>=20"], "replica": {"concurrency": 16},
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
    for words in (
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
    ):  # fmt: skip
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
