"""The page Plan in a real browser: form and text follow each other, the plan is shown, two are compared."""

from __future__ import annotations

import io
from typing import Any
from zipfile import ZipFile

from dash import Dash, dcc, html

from simulator.ui.app import Served
from simulator.ui.plan import page, view
from simulator.ui.plan.asked import Planned, form_of, mapping_of, to_query, written
from simulator.ui.plan.work import PlanTask
from simulator.ui.running.jobs import Jobs
from tests.support.dash_calls import call
from tests.support.pages import click, opened, put, shows, text, wait
from tests.ui.plan.conftest import SCENARIO, Known


def yaml_of(browser: Any) -> str:
    return str(browser.execute_script("return document.getElementById('p-yaml').value"))


def test_form_and_text_follow_each_other_and_errors_show_at_their_field(
    browser: Any, served: Served, known: Known
) -> None:
    opened(browser, f"{served.address}plan?{known.query}")
    shows(browser, "p-answer", known.answer.plan.recommended)
    put(browser, "p-sla", "tps_p10>=70, ttft_p99<=2s")
    wait(browser, lambda b: "- ttft_p99<=2s" in yaml_of(b))
    put(browser, "p-sla", "tps_p10=70")
    wait(browser, lambda b: text(b, "p-sla-error"))
    put(browser, "p-sla", "tps_p10>=60")
    wait(browser, lambda b: not text(b, "p-sla-error"))
    browser.execute_script("document.getElementById('p-yaml').closest('details').open = true")
    put(browser, "p-yaml", yaml_of(browser).replace("60/s", "50/s"))
    wait(
        browser,
        lambda b: b.find_element("id", "p-arrivals").get_attribute("value") == "diurnal:50/s,peak=1.5",
    )
    put(browser, "p-yaml", "colour: red\n")
    shows(browser, "p-yaml-error", "unknown key")
    click(browser, "p-go")  # which asks nothing, and says so again
    shows(browser, "p-yaml-error", "unknown key")
    # An empty number is NaN to the browser, which warns; errors there are none.
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []


def test_changes_that_come_together_are_all_written() -> None:
    """Two fields in one call, beside the answer to an earlier click: none is lost."""
    app, jobs = Dash(), Jobs()
    app.layout = html.Div([dcc.Store(id="session"), page.layout("")])
    page.register(app, jobs)
    values = {f"p-{name}.value": value for name, value in form_of(SCENARIO).items()}
    values |= {"p-yaml.value": written(SCENARIO), "p-problem.data": None}
    values |= {"p-sla.value": "tps_p10>=70", "p-arrivals.value": "poisson:30/s"}
    for beside in ([], ["p-problem.data"]):
        changed = [*beside, "p-sla.value", "p-arrivals.value"]
        shown = call(app.server.test_client(), changed, values, {})
        scenario = mapping_of(shown["p-yaml"]["value"])
        assert scenario["sla"] == ["tps_p10>=70"]
        assert scenario["traffic"]["arrivals"] == "poisson:30/s"
    jobs.close()


def test_a_known_plan_is_shown_at_once_and_beside_another(browser: Any, served: Served, known: Known) -> None:
    text_of_other = written({**SCENARIO, "name": "Other"})
    served.jobs.keep(PlanTask(text_of_other, "", "first"), known.answer)
    opened(browser, f"{served.address}plan?{to_query(Planned(text_of_other, kept=known.query))}")
    plan = known.answer.plan
    shows(browser, "p-answer", plan.confirmation.sentence)
    figures = "return [...document.querySelectorAll('.js-plotly-plot')].map(e => e._fullData.length)"
    wait(browser, lambda b: all(b.execute_script(figures)) and len(b.execute_script(figures)) == 4)
    for policy in SCENARIO["policies"]:
        assert policy in text(browser, "p-tables")
    shows(browser, "p-beside", "kept: Small")
    assert "+0%" in text(browser, "p-beside")  # the same plan under another name
    click(browser, "p-drop")
    wait(browser, lambda b: not text(b, "p-beside"))
    wait(browser, lambda b: "kept=" not in b.current_url)
    assert browser.get_log("browser") == []


def test_exports_are_what_the_command_writes(known: Known) -> None:
    plan = known.answer.plan
    report = view.report_of(plan)
    assert report.startswith("<!doctype html>")
    assert plan.recommended in report
    with ZipFile(io.BytesIO(view.tables_file(plan))) as archive:
        assert {"plan.json", "plans.csv", "day.csv"} <= set(archive.namelist())
        assert archive.read("plans.csv").decode() == plan.plans.to_csv(index=False)


def test_an_infeasible_plan_says_what_binds(browser: Any, served: Served) -> None:
    """Planned by a worker: a promise that no policy can keep."""
    state = Planned(written({**SCENARIO, "sla": ["tps_p10>=5000"]}))
    opened(browser, f"{served.address}plan?{to_query(state)}")
    shows(browser, "p-answer", "press Plan")
    click(browser, "p-go")
    shows(browser, "p-answer", "What binds")
    assert "tps_p10>=5000" in text(browser, "p-answer")
    assert "Nearest feasible SLA" in text(browser, "p-answer")
    assert f"scenario={to_query(state).removeprefix('scenario=')}" in browser.current_url
