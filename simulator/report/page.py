"""The report of a plan: one HTML file that needs no network, and its figures as PNG.

The page is ``page.html`` beside this module with three things put in: the plan as JSON, Plotly's library,
compressed, and a Content-Security-Policy. All text of the plan reaches the page as text, so nothing in it can
become markup; the policy names the page's two scripts by their hashes, so that no other could run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.files import without_nan, write_json, write_text
from simulator.core.units import readable_column
from simulator.planning.plan import CapacityPlan
from simulator.planning.scenario.scenario import Scenario
from simulator.report.drawing.colours import policy_colour
from simulator.report.drawing.style import SYMBOLS
from simulator.report.plan.decision import decision
from simulator.report.plan.figures import lane_floor, with_unit
from simulator.report.plan.tables import Head, at_sla_heads, cost_head, plan_tables
from simulator.sweeps.lines import SPEEDS

INFEASIBLE = "infeasible.json"
"""What a plan that cannot be made leaves in place of ``plan.json``."""


def write_report(result: CapacityPlan, path: Path) -> None:
    """Write ``report.html`` atomically. Raises ``BadInputError`` where Plotly is not installed."""
    page = files("simulator.report").joinpath("page.html").read_text(encoding="utf-8")
    library = _library()
    page = page.replace("__POLICY__", security_policy(page, library))
    # The plan's text comes last: it must not be searched for a placeholder.
    head, rest = page.split("__DATA__")
    middle, tail = rest.split("__PLOTLY__")
    packed = base64.b64encode(gzip.compress(library.encode(), compresslevel=9, mtime=0)).decode("ascii")
    write_text(path, head + _embedded(page_data(result)) + middle + packed + tail)


def write_infeasible(scenario: Scenario, why: InfeasibleError, out: Path) -> Path:
    """Write ``infeasible.json`` and a short ``report.html`` for a plan that cannot be made; return the page.

    ``plan.json`` of an earlier plan in this directory is removed: its answer is not that of the scenario.
    """
    answer = {
        "schema": 1, "scenario": scenario.model_dump(mode="json"), "answer": str(why),
        "binds": why.binds, "nearest_sla": why.nearest or None, "changes": why.changes,
        "attained": why.attained,
    }  # fmt: skip
    write_json(out / INFEASIBLE, without_nan(answer))
    write_text(out / "report.html", _infeasible_page(scenario, why))
    (out / "plan.json").unlink(missing_ok=True)
    return out / "report.html"


_ATTAINED_HEADS = (
    Head.of("Policy", "policy", is_text=True),
    Head.of("Term", "term", is_text=True),
    Head.of("Attained", "shown", is_text=True),
    Head.of("Kept", "holds", is_text=True),
    Head.of("Requests/s per replica", "rate_per_s"),
)


def _infeasible_page(scenario: Scenario, why: InfeasibleError) -> str:
    """One page without a script, in the style of the plan's; every text is escaped."""
    page = files("simulator.report").joinpath("page.html").read_text(encoding="utf-8")
    style = page[page.index("<style>") : page.index("</style>") + len("</style>")]
    rates = readable_column([each["rate_per_s"] for each in why.attained])
    rows = "".join(
        f"<tr><td>{escape(each['policy'])}</td><td class=text>{escape(each['term'])}</td>"
        f"<td class=text>{escape('queue grows without bound' if each['saturated'] else each['shown'])}</td>"
        f"<td class=text>{'yes' if each['holds'] else 'no'}</td><td>{rate}</td></tr>"
        for each, rate in zip(why.attained, rates, strict=True)
    )
    heads = "".join(
        f"<th scope=col{' class=text' if head.is_text else ''}>"
        f'<abbr class=defined tabindex=0 title="{escape(head.definition)}">{head.text}</abbr></th>'
        for head in _ATTAINED_HEADS
    )
    table = f"<div class=table><table><tr>{heads}</tr>{rows}</table></div>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(scenario.name)}: infeasible</title>\n"
        f'<link rel="icon" href="data:,">\n{style}\n</head>\n<body>\n'
        f"<h1>{escape(scenario.name)}: infeasible</h1>\n"
        f'<p class="soft">SLA: {escape(", ".join(scenario.sla))}</p>\n'
        f'<p class="answer">{escape(str(why))}</p>\n'
        + _listed("What binds", why.binds)
        + _listed("Nearest feasible SLA", why.nearest)
        + _listed("What would change it", why.changes)
        + (f"<h2>Attained at the lightest load</h2>\n{table}\n" if rows else "")
        + "</body>\n</html>\n"
    )


def _listed(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"<h2>{title}</h2>\n<ul>{''.join(f'<li>{escape(each)}</li>' for each in items)}</ul>\n"


def security_policy(page: str, library: str) -> str:
    """Allow the page's own script and Plotly's, and nothing from elsewhere.

    Styles are inline without hashes: Plotly sets the attribute ``style`` of what it draws, which no hash can
    name. Images are the page's own (``data:``): the empty icon, and what Plotly draws off screen.
    """
    own = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (*own, library))
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def page_data(result: CapacityPlan) -> dict[str, Any]:
    """Return what the page shows, as JSON values."""
    scenario = result.scenario
    speeds = {
        term.statistic: term.bound
        for term in result.sla.terms
        if term.key in SPEEDS and term.key in result.frontier
    }
    statistic = next(iter(speeds), "mean")
    costed = result.sla.terms[0]  # the one that ``tables.cost_table`` moves
    tables = {name: table.to_dict(orient="records") for name, table in result.tables().items()}
    return tables | {
        "name": scenario.name,
        "sla": list(scenario.sla),
        "speeds": speeds,
        "statistic": statistic,
        "costed": {"axis": with_unit(costed), "bound": costed.bound},
        "lane_floor": lane_floor(result.trials),
        "recommended": result.recommended,
        "colours": {policy: policy_colour(policy)._asdict() for policy in result.plans["policy"]},
        "symbols": list(SYMBOLS),
        "decision": {question: list(lines) for question, lines in decision(result).items()},
        "shown": {name: table.plain() for name, table in plan_tables(result).items()},
        "at_sla_heads": [asdict(head) for head in at_sla_heads(result)],
        "cost_head": cost_head(result).text,
        "currency": scenario.price.currency,
        "money": dict(result.money),
        "assumptions": [list(pair) for pair in result.assumptions],
        "warnings": list(result.warnings),
    }


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element: without ``<``, no text can end it."""
    return json.dumps(without_nan(value), allow_nan=False).replace("<", "\\u003c")


def check_library() -> None:
    """Refuse to begin a plan whose report could not be written."""
    if find_spec("plotly") is None:
        raise BadInputError(
            "needs the package plotly", source="report.html", remedy="pip install dspark-simulator[report]"
        )


def _library() -> str:
    check_library()
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
