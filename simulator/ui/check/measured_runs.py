"""Published end-to-end runs beside what curves of kernels predict, where the shipped data have them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd
from dash import html

from simulator.core.files import data_directory
from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import SYMBOLS
from simulator.ui import widgets
from simulator.ui.exports import Page
from simulator.ui.figures import THEMES, Figure, Scheme, layout

EVERYWHERE = "all models and GPUs"

TITLE = "Time per output token, predicted over measured"

BY_GROUP, BY_RUN = "By model and GPU", "Run by run"

MOST_ROWS = 40
"""Runs of a table that are shown: the largest misses. The CSV has all."""

OFF = 0.2
"""Where the dotted lines of the figure lie, off by this share: the aim for nine runs in ten."""


@cache
def runs() -> pd.DataFrame:
    """Return the rows of ``scripts/validate_silicon`` that are shipped, the largest miss first.

    Columns as the tool writes them, and: where (model and GPU), half (``held out``, or ``fitted``: of these
    the engine's host time is known), miss (of TPOT, a share). Rows whose kernels fail the gates are left
    out. Empty where no such file is shipped.
    """
    path = data_directory("traces") / "validation" / "silicon" / "rows.csv"
    if not path.is_file():
        return pd.DataFrame({"where": [], "miss": []})
    table = pd.read_csv(path)
    table = table[table["gate"] == "passes"]
    return table.assign(
        where=table["model"] + " on " + table["gpu"],
        half=table["reported"].map({True: "held out", False: "fitted"}),
        miss=table["tpot_error"].abs(),
    ).sort_values("miss", ascending=False, ignore_index=True)


def places() -> list[str]:
    """Return what can be chosen: all, or one model on one GPU."""
    return [EVERYWHERE, *sorted(set(runs()["where"]))]


def of(where: str) -> pd.DataFrame:
    """Return the runs of a place."""
    table = runs()
    return table if where == EVERYWHERE else table[table["where"] == where]


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """Sum up runs that nothing was fitted to by model, GPU, engine and precision, the worst first.

    Columns: those four, rows, and of TPOT and TTFT the median error, the error of nine in ten, and the bias
    (the median of the signed error), shares.
    """
    held = table[table["half"] == "held out"]
    rows = []
    for key, mine in held.groupby(["model", "gpu", "engine", "precision"]):
        row: dict[str, Any] = dict(zip(("model", "gpu", "engine", "precision"), key, strict=True))
        row["rows"] = len(mine)
        for name in ("tpot", "ttft"):
            error = mine[f"{name}_error"].dropna()
            row |= {f"{name}_median": error.abs().median(), f"{name}_p90": error.abs().quantile(0.9)}
            row[f"{name}_bias"] = error.median()
        rows.append(row)
    columns = ["tpot_median", *(rows[0] if rows else ())]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns))).sort_values(
        "tpot_median", ascending=False, ignore_index=True
    )


def said(where: str) -> tuple[str, list[Any]]:
    """Say how far predictions are off, by group and run by run, misses first."""
    table = of(where)
    return _sentence(table), [
        html.H3(BY_GROUP), widgets.table(BY_GROUP, _GROUPS, _shares(groups(table)), meanings=_MEANINGS),
        html.H3(BY_RUN), widgets.table(BY_RUN, _RUNS, _runs(table.head(MOST_ROWS)), meanings=_MEANINGS),
    ]  # fmt: skip


def file_of(where: str) -> Page:
    """Return the runs of a place as one file."""
    table = of(where)
    tables = {BY_GROUP: groups(table), BY_RUN: table}
    return Page(f"{TITLE}: {where}", [_sentence(table)], tables, {TITLE: figure(where, "light")})


def _sentence(table: pd.DataFrame) -> str:
    held = table[table["half"] == "held out"]
    if held.empty:
        return "0 published runs that nothing was fitted to: no time is known of them."
    size = held["tpot_error"].abs()
    return (
        f"{len(held)} published runs that nothing was fitted to: time per output token is off by "
        f"{size.median():.1%} in the median and within {size.quantile(0.9):.0%} in nine of ten; time to "
        f"the first token by {held['ttft_error'].abs().median():.0%} in the median."
    )


_OFF_BY = "Predicted over measured, less 1; in groups the median of its size."

_MEANINGS = {
    "tpot": _OFF_BY, "ttft": _OFF_BY, "tpot_median": _OFF_BY, "ttft_median": _OFF_BY,
    "tpot_p90": "What the size of the error stays below in nine of ten runs.",
    "ttft_p90": "What the size of the error stays below in nine of ten runs.",
    "tpot_bias": "Median of the signed error: above 0 predictions are too slow.",
    "ttft_bias": "Median of the signed error: above 0 predictions are too slow.",
    "model": "Target model.", "where": "Target model and GPU.", "engine": "Engine that served the runs.",
    "precision": "Precision of the weights.", "concurrency": "Requests that ran at once.",
    "rows": "Published runs of the group that nothing was fitted to.",
    "half": "Whether the engine's host time was fitted to runs like this one, or it was held out.",
    "served": "Engine, precision of the weights, and GPUs of a replica.",
    "lengths": "Tokens of the prompt and of the output.",
    "tpot_ms": "Time per output token that was measured, ms.", "predicted_tpot_ms": "The same, predicted.",
    "ttft_ms": "Time to the first token that was measured, ms.", "predicted_ttft_ms": "The same, predicted.",
}  # fmt: skip


_GROUPS = {
    "model": "model", "gpu": "GPU", "engine": "engine", "precision": "precision", "rows": "runs",
    "tpot_median": "TPOT off by", "tpot_p90": "9 in 10 within", "tpot_bias": "bias",
    "ttft_median": "TTFT off by", "ttft_p90": "9 in 10 within", "ttft_bias": "bias",
}  # fmt: skip

_RUNS = {
    "where": "model, GPU", "served": "served by", "lengths": "prompt/output", "concurrency": "requests",
    "tpot_ms": "TPOT, ms", "predicted_tpot_ms": "predicted", "tpot": "off by",
    "ttft_ms": "TTFT, ms", "predicted_ttft_ms": "predicted", "ttft": "off by", "half": "half",
}  # fmt: skip


def _shares(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    shown: dict[str, list[str]] = {}
    for name in map(str, table.columns):
        if name.endswith(("median", "p90", "bias")):
            form = "{:+.1%}" if name.endswith("bias") else "{:.1%}"
            shown[name] = [form.format(value) for value in table[name]]
    return list(widgets.records(table.assign(**shown)))


def _runs(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    off = {name: [f"{value:+.0%}" for value in table[f"{name}_error"]] for name in ("tpot", "ttft")}
    gpus = table["gpus"].astype(str) + " GPU" + table["gpus"].map(lambda count: "s" if count > 1 else "")
    served = table["engine"] + ", " + table["precision"] + ", " + gpus
    lengths = table["prompt_tokens"].astype(str) + "/" + table["output_tokens"].astype(str)
    return list(widgets.records(table.assign(**off, served=served, lengths=lengths)))


def figure(where: str, scheme: Scheme) -> Figure:
    """Draw each run's TPOT, predicted over measured, in its engine's colour; dotted: off by ``OFF``."""
    theme, table = THEMES[scheme], of(where)
    shown = layout(("measured TPOT, ms", "predicted TPOT, ms"), theme)
    traces: list[dict[str, Any]] = []
    for place, (engine, mine) in enumerate(table.groupby("engine")):
        colours = policy_colour(str(engine))
        colour = colours.dark if scheme == "dark" else colours.light
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": str(engine), "x": mine["tpot_ms"].tolist(),
                "y": mine["predicted_tpot_ms"].tolist(), "text": mine["where"].tolist(),
                "marker": {"size": 6, "color": colour, "symbol": SYMBOLS[place % len(SYMBOLS)]},
                "hovertemplate": "%{text}: %{y:.3g} predicted, %{x:.3g} measured",
            }
        )  # fmt: skip
    low, high = 0.8 * float(table["tpot_ms"].min()), 1.2 * float(table["tpot_ms"].max())
    for factor, dash in ((1.0, "solid"), (1 + OFF, "dot"), (1 / (1 + OFF), "dot")):
        line = {"color": theme.soft, "width": 1, "dash": dash}
        traces.append(
            {"type": "scatter", "mode": "lines", "x": [low, high], "y": [factor * low, factor * high],
             "line": line, "hoverinfo": "skip", "showlegend": False}
        )  # fmt: skip
    for axis in ("xaxis", "yaxis"):
        shown[axis] |= {"type": "log", "rangemode": "normal"}
    return {"data": traces, "layout": shown}
