"""A view as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from simulator.core.files import without_nan
from simulator.ui.figures import Figure

_STYLE = """
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; font: 15px/1.5 system-ui, sans-serif;
  color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } .plot { height: 380px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d0d7de; text-align: right; }
pre { white-space: pre-wrap; background: #f6f8fa; padding: .6rem; }
"""

_DRAW = """
for (const [name, figure] of Object.entries(JSON.parse(document.getElementById("figures").textContent)))
  Plotly.newPlot(name, figure.data, figure.layout, {displayModeBar: false, responsive: true});
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What a view says: sentences, tables and figures by their titles, and how to get the same again."""

    title: str
    sentences: Sequence[str]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    commands: Sequence[str] = ()


def one_file(page: Page) -> str:
    """Return the page as HTML: every text is escaped, and no script but its own two may run."""
    from plotly.offline import get_plotlyjs

    library = str(get_plotlyjs())
    names = {title: f"figure-{index}" for index, title in enumerate(page.figures)}
    drawn = {names[title]: figure for title, figure in page.figures.items()}
    data = json.dumps(without_nan(drawn), allow_nan=False).replace("<", "\\u003c")
    scripts = f"script-src {_hash(library)} {_hash(_DRAW)}"
    policy = f"default-src 'none'; {scripts}; style-src 'unsafe-inline'; img-src data:"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        f"<title>{escape(page.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(page.title)}</h1>",
        *(f"<p>{escape(each)}</p>" for each in page.sentences),
        *(_figure(title, name) for title, name in names.items()),
        *(_table(title, table) for title, table in page.tables.items()),
        *(f"<pre>{escape(each)}</pre>" for each in page.commands),
        f'<script type="application/json" id="figures">{data}</script>',
        f"<script>{library}</script><script>{_DRAW}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _figure(title: str, name: str) -> str:
    title = escape(title)
    return f'<h2>{title}</h2><div class="plot" id="{name}" role="img" aria-label="{title}"></div>'


def _table(title: str, table: pd.DataFrame) -> str:
    shown = table.to_html(index=False, border=0, na_rep="-", float_format=lambda value: f"{value:,.4g}")
    return f'<h2>{escape(title)}</h2><div class="table">{shown}</div>'


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"
