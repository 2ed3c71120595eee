"""What the page Check shows: misses first, and what an engine's file says."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import dcc, html

from simulator.core.units import decimals_of, in_digits
from simulator.dumps.outcomes import Replayed
from simulator.ui import widgets
from simulator.ui.check.work import ACCEPTANCE, HELD_OUT, Read
from simulator.ui.exports import Page
from simulator.ui.figures import Figure, Scheme, empty_figure, misses_figure, numbered, steps_figure

MISSES, STEPS = "Predicted against published", "Drafts of each step"
REASONS, OTHERS = "What explains the differences", "What others would have given"

MOST_ROWS = 60
"""Rows of a table that are shown: the largest misses. The CSV has all."""


def compared(table: pd.DataFrame, subject: str) -> tuple[str, Any]:
    """Say how far predictions are off, and tabulate them with the largest miss first."""
    columns = _COLUMNS.get(subject, _CLAIMS)
    return _misses(table, columns, f"{len(table)} published numbers")


_CLAIMS = {
    "quantity": "quantity", "published": "published", "predicted": "predicted", "off": "off by",
}  # fmt: skip

_COLUMNS = {
    ACCEPTANCE: {
        "source": "source", "model": "model", "quantity": "quantity", "fitted": "fitted to it",
        "published": "published", "predicted": "predicted", "off": "off by",
    },
    HELD_OUT: {
        "where": "target, GPU, engine", "drafter": "drafter", "requests": "requests", "drafts": "drafts",
        "accepted_length": "accepted length", "published": "measured gain", "predicted": "predicted",
        "off": "off by",
    },
}  # fmt: skip


def measured(table: pd.DataFrame) -> Any:
    """Tabulate shipped live validations, the largest miss first."""
    columns = {
        "validation": "validation", "policy": "policy", "concurrency": "requests", "metric": "metric",
        "measured": "measured", "predicted": "predicted", "off": "off by",
    }  # fmt: skip
    return list(_misses(table, columns, f"{len(table)} measured numbers"))


def _misses(table: pd.DataFrame, columns: dict[str, str], what: str) -> tuple[str, html.Div]:
    shown = table.head(MOST_ROWS)
    shown = shown.assign(off=[f"{miss:.1%}" for miss in shown["miss"]])
    known = "published" if "published" in table else "measured"
    # A row has one quantity, and a column many: digits go by row.
    for name, texts in _pairs(shown, known).items():
        shown[name] = texts
    more = f" The {MOST_ROWS} largest misses are shown; the CSV has all." if len(table) > MOST_ROWS else ""
    first = next(iter(columns))
    shown[first] = [numbered(place, name) for place, name in enumerate(shown[first], 1)]
    listed = widgets.table(what, columns, widgets.records(shown), meanings=_MEANINGS)
    return _sentence(table, what) + more, listed


_MEANINGS = {
    "off": "Predicted over what is known, less 1, without its sign.",
    "fitted": "Whether the model was fitted to this number: it is then no check.",
    "published": "The number as published or measured elsewhere.",
    "measured": "The number as measured here.",
    "predicted": "What this program says.",
    "quantity": "What is compared; the number in front is the place by the size of the miss.",
    "source": "Where it is published; the number in front is the place by the size of the miss.",
    "where": "Target, GPU and engine; the number in front is the place by the size of the miss.",
    "validation": "The live run; the number in front is the place by the size of the miss.",
    "drafts": "Draft tokens of each request and step.",
    "metric": "What was measured and predicted.",
    "model": "Target model.",
}


def _pairs(table: pd.DataFrame, known: str) -> dict[str, list[str]]:
    pairs = list(table[[known, "predicted"]].itertuples(index=False, name=None))
    decimals = [decimals_of(pair) for pair in pairs]
    return {
        name: [in_digits(pair[place], count) for pair, count in zip(pairs, decimals, strict=True)]
        for place, name in enumerate((known, "predicted"))
    }


def _sentence(table: pd.DataFrame, what: str) -> str:
    median, worst = table["miss"].median(), table["miss"].max()
    return f"{what}: half of the predictions are within {median:.1%}, the worst is off by {worst:.0%}."


def misses(table: pd.DataFrame | None, scheme: Scheme) -> Figure:
    """Draw by how much predictions are off."""
    if table is None:
        return empty_figure("being compared", scheme)
    return misses_figure(
        table["name"].tolist(), table["published"].tolist(), table["predicted"].tolist(), scheme
    )


def file_of(table: pd.DataFrame, subject: str) -> Page:
    """Return the comparison as one file."""
    said = _sentence(table, f"{len(table)} published numbers")
    return Page(f"{MISSES}: {subject}", [said], {"All": table}, {MISSES: misses(table, "light")})


def file_of_replay(found: Replayed) -> Page:
    """Return what was decided again as one file."""
    tables = {REASONS: found.reasons(), OTHERS: found.policies}
    sentences = [f"{line.strip()}." for line in found.summary().splitlines()]
    return Page(
        "An engine's steps, decided again", sentences, tables, {STEPS: steps_figure(found.steps, "light")}
    )


def explained(found: Replayed | Read, scheme: Scheme) -> tuple[Any, list[Any]]:
    """Say what a dropped file tells."""
    return _replayed(found, scheme) if isinstance(found, Replayed) else _read(found)


def _replayed(found: Replayed, scheme: Scheme) -> tuple[Any, list[Any]]:
    first, *others = found.summary().splitlines()
    policies = found.policies.assign(table=found.policies["table"].replace("", "-"))
    heads = {
        "policy": "policy", "table": "table", "differing_share": "differs",
        "verification_budget_mean": "rows a request", "throughput_least_tok_per_s": "tokens/s, at least",
        "throughput_most_tok_per_s": "at most", "gain_least": "gain, at least", "gain_most": "at most",
    }  # fmt: skip
    for name in ("differing_share", "gain_least", "gain_most"):
        policies[name] = [f"{value:.1%}" for value in policies[name]]
    graph = widgets.figure(
        "d-steps", STEPS, "Where one line is seen, both agree.", steps_figure(found.steps, scheme)
    )
    return html.Strong(f"{first}."), [
        html.P(f"{others[0].strip()}."),
        html.H3(REASONS),
        widgets.table(REASONS, {"why": "why", "steps": "steps"}, widgets.records(found.reasons())),
        html.H3(OTHERS), widgets.table(OTHERS, heads, widgets.records(policies)),
        graph,
    ]  # fmt: skip


_BY_POSITION = {
    "position": "Place of a draft in its block, 1 for the first.",
    "rate": "Share of the drafts at this place that are accepted, where all before it were.",
}


def _read(found: Read) -> tuple[Any, list[Any]]:
    rows = [{"position": k, "rate": rate} for k, rate in enumerate(found.rates, 1)]
    text = "conditional:" + ",".join(f"{rate:g}" for rate in found.rates)
    heads = {"position": "position", "rate": "P(accepted, given those before)"}
    return [html.Strong(found.model.name), f": {found.model.provenance.line()}"], [
        html.P(found.model.provenance.notes or ""),
        widgets.table("Acceptance by position", heads, rows, meanings=_BY_POSITION),
        html.P(["As acceptance elsewhere: ", html.Code(text), ". ",
                dcc.Link("Explore with it", href=f"/?acceptance={text}")]),
    ]  # fmt: skip
