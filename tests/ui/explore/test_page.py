"""The page Explore in real browsers: numbers that follow, errors in place, runs that end."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.sweeps.comparison import at_slas
from simulator.ui.app import Served
from simulator.ui.explore.asked import from_query
from simulator.ui.explore.view import view_of
from tests.support.browsers import chromium
from tests.support.pages import choose, click, opened, put, session_of, shows, text, wait

CHEAP = "policy=autoregressive&policy=mtp1"

CONTRAST = """
  const luminance = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('h1, h2, p, td, th, label, figcaption span, .answer')].map(e => {
    const ink = luminance(getComputedStyle(e).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })"""

NAMES = """const names = [];
  for (const e of document.querySelectorAll('a, button, input, textarea, summary, select')) {
    if (e.tabIndex < 0 || e.closest('[hidden]') || !e.getClientRects().length) continue;
    const label = e.labels && e.labels[0] ? e.labels[0].innerText : '';
    const name = e.getAttribute('aria-label') || label || e.innerText || e.title;
    names.push(name || 'NONE ' + e.outerHTML); }
  return names"""


def test_the_slider_moves_the_numbers_and_a_reload_keeps_them(browser: Any, served: Served) -> None:
    opened(browser, f"{served.address}?{CHEAP}")
    shows(browser, "e-answer", "carries")
    figures = """return [...document.querySelectorAll('.js-plotly-plot')]
      .map(e => e.querySelectorAll('.trace').length)"""
    wait(browser, lambda b: [count >= 2 for count in b.execute_script(figures)] == [True] * 4)
    before = text(browser, "e-table")
    put(browser, "e-sla", 110)
    shows(browser, "e-answer", "At least 110 tokens/s per user on average")
    after = text(browser, "e-table")
    assert before != after
    line = "return document.querySelector('#e-speed .js-plotly-plot').layout.shapes[0].x0"
    wait(browser, lambda b: b.execute_script(line) == 110)
    shown = {row.split()[0]: row.split()[1] for row in after.splitlines()[1:]}
    seen = view_of(served.jobs, session_of(browser), from_query(CHEAP))
    for row in at_slas(seen.table, ["tps_mean>=110"]).to_dict("records"):
        known = row["throughput_tok_per_s"]
        assert shown[row["policy"]] == ("cannot" if known != known else f"{known:,.0f}")
    put(browser, "e-sla-number", 95)
    browser.find_element("css selector", "#e-statistic input[value=p10]").click()
    wait(browser, lambda b: "sla=95" in b.current_url and "statistic=p10" in b.current_url)
    browser.refresh()
    shows(browser, "e-answer", "At least 95 tokens/s for 90% of the users")
    assert "--sla 'tps_p10>=95'" in text(browser, "e-command")
    assert "--policy autoregressive --policy mtp1" in text(browser, "e-command")
    assert browser.get_log("browser") == []


def test_an_error_shows_at_its_field_and_controls_have_names(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, f"{served.address}?{CHEAP}")
    shows(browser, "e-answer", "carries")
    own = browser.find_element("id", "e-own")
    own.send_keys("fixed:x", Keys.ENTER)
    shows(browser, "e-own-error", "needs a number after the colon")
    assert wait(browser, lambda b: own.get_attribute("aria-describedby")) == "e-own-hint e-own-error"
    wait(browser, lambda b: not [each for each in b.execute_script(NAMES) if each.startswith("NONE")])
    names = " | ".join(browser.execute_script(NAMES))
    for expected in ("Profile: deepseek-v4-flash", "Acceptance: ", "Side by side: ", "Add a policy", "CSV"):
        assert expected in names
    own.send_keys(Keys.CONTROL, "a")
    own.send_keys("fixed:9", Keys.ENTER)  # can be read, but not with this profile's drafts
    shows(browser, "e-policy-error", "its drafter's block has 5")
    assert text(browser, "e-own-error") == ""
    assert "carries" in text(browser, "e-answer")  # the others are still answered


def test_a_model_on_a_gpu_needs_acceptance_and_shows_its_band(browser: Any, served: Served) -> None:
    hardware = f"profile=&model=Qwen/Qwen3-32B&gpu=h100&{CHEAP}"
    opened(browser, f"{served.address}?{hardware}")
    shows(browser, "e-acceptance-error", "cannot be derived from a model's shape")
    opened(browser, f"{served.address}?{hardware}&acceptance=qwen3-4b-chat")
    # Weights take 61 of 80 GiB: the longest requests do not fit beside them on one GPU.
    shows(browser, "e-curve", "Qwen/Qwen3-32B in bf16 on 2 x NVIDIA H100")
    assert text(browser, "e-curve").startswith("kernels, step times within")
    choose(browser, "e-layout", "4 (tp4), ")
    shows(browser, "e-curve", "on 4 x NVIDIA H100")
    wait(browser, lambda b: "layout=tp4" in b.current_url)
    served.jobs.cancel(session_of(browser))


def test_an_address_that_makes_no_sense_is_said(browser: Any, served: Served) -> None:
    opened(browser, f"{served.address}?profile=/etc/passwd&{CHEAP}")
    alert = wait(browser, lambda b: b.find_elements("css selector", "#page > div > .error"))[0]
    assert "is not a shipped profile" in alert.text
    served.jobs.cancel(session_of(browser))


def test_a_long_run_is_cancelled(browser: Any, served: Served) -> None:
    opened(browser, f"{served.address}?effort=full&{CHEAP}&policy=balanced&policy=fixed:2&policy=fixed:4")
    shows(browser, "e-answer", "carries")
    shows(browser, "e-progress", "parts; now")
    count = len(served.jobs.processes())
    click(browser, "e-cancel")
    shows(browser, "e-progress", "Stopped after")
    assert len(served.jobs.processes()) == count - 1
    assert "carries" in text(browser, "e-answer")  # what was found stays
    assert browser.find_element("id", "e-again").is_displayed()


def test_two_browsers_work_at_once(
    browser: Any, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = chromium(tmp_path_factory.mktemp("other"))
    try:
        opened(browser, f"{served.address}?policy=fixed:2&sla=60")
        opened(other, f"{served.address}?policy=fixed:1&sla=70")
        shows(browser, "e-answer", "At least 60 tokens/s per user on average: fixed:2 carries")
        shows(other, "e-answer", "At least 70 tokens/s per user on average: fixed:1 carries")
        sessions = [session_of(each) for each in (browser, other)]
        assert sessions[0] != sessions[1]
        for session in sessions:
            served.jobs.cancel(session)
    finally:
        other.quit()


def test_both_widths_and_both_schemes_are_legible(browser: Any, served: Served) -> None:
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    drawn_on = "return document.querySelector('#e-speed .js-plotly-plot').layout.paper_bgcolor"
    try:
        opened(browser, f"{served.address}?{CHEAP}")
        shows(browser, "e-answer", "carries")
        for width in (390, 1400):
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            wait(browser, lambda b: b.execute_script(overflow) <= 0)
        papers: set[str] = set()
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            assert min(browser.execute_script(CONTRAST)) >= 4.5
            wait(browser, lambda b: b.execute_script(drawn_on) not in papers)
            papers.add(browser.execute_script(drawn_on))  # figures follow the scheme
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
