"""Print the columns of every table as Markdown: ``python -m tools.column_reference``."""

from __future__ import annotations

from simulator.report.columns import COLUMNS, FAMILIES, TABLES

HEAD = """# Tables and their columns

Units stand in the names: `_s` seconds, `_per_s` a second, `_tokens` tokens, `_ci95` the half-width of a 95%
interval. Shares lie in 0..1. A column means the same in every table.
"""


def page() -> str:
    """Return the page."""
    tables = [f"| `{name}` | {meaning} |" for name, meaning in TABLES.items()]
    columns = [f"| `{name}` | {meaning} |" for name, meaning in sorted(COLUMNS.items())]
    families = [f"| `{name}` | {meaning} |" for name, meaning in FAMILIES.items()]
    parts = [HEAD, "| table | rows |", "| --- | --- |", *tables, "", "| column | meaning |", "| --- | --- |"]
    return "\n".join([*parts, *columns, *families]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
