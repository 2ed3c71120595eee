"""Print the columns of every table as Markdown: ``python -m tools.column_reference``."""

from __future__ import annotations

from simulator.core.units import unit_of
from simulator.report.columns import COLUMNS, FAMILIES, TABLES

HEAD = """# Tables and their columns

Units stand in the names, too: `_s` seconds, `_per_s` a second, `_tokens` tokens, `_ci95` the half-width of a
95% interval. Shares have unit 1 and lie in 0..1. A column means the same in every table, but for `queued_s`
in steps. Tables in parquet (`--out FILE.parquet`, `--tables parquet`) have each column's unit in the metadata
of its field, under `unit`.
"""


def page() -> str:
    """Return the page."""
    tables = [f"| `{name}` | {meaning} |" for name, meaning in TABLES.items()]
    columns = [*sorted(COLUMNS.items()), *FAMILIES.items()]
    rows = [f"| `{name}` | {unit_of(name) or ''} | {meaning} |" for name, meaning in columns]
    parts = [HEAD, "| table | rows |", "| --- | --- |", *tables, ""]
    return "\n".join([*parts, "| column | unit | meaning |", "| --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
