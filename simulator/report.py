"""The report of a plan: one HTML file that needs no network, and its figures as PNG.

The page is ``report.html`` beside this module with two things put in: the plan as JSON, and Plotly's
library, compressed. All text of the plan reaches the page as text, so nothing in it can become markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.errors import BadInputError
from simulator.files import atomic_path, write_text
from simulator.planner import CapacityPlan


def write_report(result: CapacityPlan, path: Path) -> None:
    """Write ``report.html`` atomically. Raises ``BadInputError`` where Plotly is not installed."""
    page = files("simulator").joinpath("report.html").read_text(encoding="utf-8")
    # The library first: the plan's text must not be searched for a placeholder.
    head, rest = page.split("__DATA__")
    middle, tail = rest.split("__PLOTLY__")
    write_text(path, head + _embedded(page_data(result)) + middle + _library() + tail)


def page_data(result: CapacityPlan) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    scenario = result.scenario
    speeds = [term.bound for term in scenario.parsed_sla().terms if term.metric == "tps"]
    tables = {name: table.to_dict(orient="records") for name, table in result.tables().items()}
    return tables | {
        "name": scenario.name,
        "sla": list(scenario.sla),
        "sla_tps": speeds[0] if speeds else None,
        "recommended": result.recommended,
        "tied": list(result.tied),
        "currency": scenario.price.currency,
        "money": dict(result.money),
        "confirmation": dict(result.confirmation),
        "assumptions": [list(pair) for pair in result.assumptions],
        "warnings": list(result.warnings),
    }


def write_figures(result: CapacityPlan, directory: Path) -> None:
    """The report's figures as PNG, for documents that cannot hold a page."""
    from matplotlib.figure import Figure

    drawings = {
        "frontier": (result.frontier, "tps_mean", "throughput_tok_per_s", "tokens/s per user", "tokens/s"),
        "budget": (
            result.frontier, "concurrency_mean", "verification_budget_mean", "requests running at once",
            "tokens per request and step",
        ),
        "attainment": (
            result.trials, "rate_per_s", "attainment", "requests/s per replica", "share within their terms",
        ),
        "cost": (
            result.cost, "bound", "cost_per_million_output_tokens", str(result.cost["term"].iloc[0]),
            f"{result.scenario.price.currency} per million output tokens",
        ),
    }  # fmt: skip
    for name, (table, x, y, x_label, y_label) in drawings.items():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for policy, marker in zip(result.plans["policy"], "osD^*pPX" * 8, strict=False):
            mine = table[(table["policy"] == policy) & table[y].notna()].sort_values(x)
            axes.plot(mine[x], mine[y], marker=marker, markersize=4, label=_plain(policy))
        axes.set(xlabel=_plain(x_label), ylabel=_plain(y_label))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_path(directory / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element: without ``<``, no text can end it."""
    return json.dumps(_clean(value), allow_nan=False).replace("<", "\\u003c")


def _clean(value: Any) -> Any:
    """JSON values: null for NaN and infinity, Python's numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def check_library() -> None:
    """Refuse to begin a plan whose report could not be written."""
    if find_spec("plotly") is None:
        raise BadInputError(
            "needs the package plotly", source="report.html", remedy="pip install dspark-simulator[report]"
        )


def _library() -> str:
    check_library()
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # or matplotlib takes it for mathematics
