"""Keyboard and screen reader reach all of every page, and its text is seen in both schemes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from simulator.ui.app import Served
from tests.support.pages import opened, shows, text, wait

ADDRESSES = {
    "explore": ("?policy=autoregressive&policy=mtp1", "e-answer", "carries"),
    "plan": ("plan", "p-answer", "press Plan"),
    "check": ("check?subject=deepseek-v4-flash", "c-subject-field", "Of"),
}

NAMED = {
    "button", "checkbox", "combobox", "figure", "image", "img", "link", "listbox", "radio", "slider",
    "spinbutton", "textbox", "table",
}  # fmt: skip
"""Roles whose elements a screen reader announces by name; a figure is named by its caption."""

REACHABLE = """const folded = e => e.tagName !== 'SUMMARY' && e.closest('details:not([open])');
  return [...document.querySelectorAll('a[href], button, input, textarea, summary, select, [tabindex]')]
  .filter(e => e.tabIndex >= 0 && !e.disabled && e.getClientRects().length && e.offsetParent !== null
    && !folded(e) && !(e.type === 'radio' && !e.checked) && e.type !== 'file')
  .map((e, place) => { e.dataset.place = place; return e.outerHTML.slice(0, 120); })"""

CONTRAST = """
  const parts = c => (c.match(/[0-9.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = v => { const [r, g, b] = v.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = e => { for (; e; e = e.parentElement) {
      const v = parts(getComputedStyle(e).backgroundColor);
      if (v.length < 4 || v[3] > 0) return v; }
    return [255, 255, 255]; };
  const low = [];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('[disabled], script, style, .skip')) continue;
    const style = getComputedStyle(e), ink = parts(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(paper(e))];
    const found = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (found < 4.5) low.push(found.toFixed(2) + ' ' + e.textContent.trim().slice(0, 40)); }
  return low"""


@pytest.fixture(scope="module", params=list(ADDRESSES))
def page(request: pytest.FixtureRequest, browser: Any, served: Served) -> Iterator[Any]:
    path, name, said = ADDRESSES[request.param]
    opened(browser, served.address + path)
    shows(browser, name, said)
    wait(browser, lambda b: b.find_elements("css selector", ".js-plotly-plot"))
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_what_is_announced_has_a_name(page: Any) -> None:
    """By the browser's own accessibility tree, which screen readers are given."""

    def unnamed(browser: Any) -> list[str]:
        nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            str(node)[:300]
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in NAMED - {"figure"}
            and not node.get("name", {}).get("value", "").strip()
        ]  # fmt: skip

    wait(page, lambda b: not unnamed(b))  # names of Dash's lists are given a moment after they are drawn
    figures = page.find_elements("css selector", "figure")
    assert figures
    for figure in figures:
        (image,) = figure.find_elements("css selector", "[role=img]")
        assert image.get_attribute("aria-label").startswith(
            figure.find_element("css selector", "strong").text
        )


NAMELESS = """const nameless = [];
  for (const field of document.querySelectorAll('.field')) {
    const label = field.querySelector('label').textContent, name = field.id.replace(/-field$/, '');
    for (const control of field.querySelectorAll('button.dash-dropdown, .dash-dropdown-focus-target')) {
      const by = (control.getAttribute('aria-labelledby') || '').split(' ');
      const said = by[0] ? by.map(each => (document.getElementById(each) || {}).textContent).join(' ')
        : control.getAttribute('aria-label') || '';
      if (!said.startsWith(label)) nameless.push(said); }
    for (const control of field.querySelectorAll('input, textarea, button.dash-dropdown')) {
      const described = control.getAttribute('aria-describedby') || '';
      if (!described.includes(name + '-error')) nameless.push(control.outerHTML);
      const hinted = !field.querySelector('.hint') || described.includes(name + '-hint');
      if (!hinted) nameless.push(control.outerHTML); } }
  return nameless"""


def test_lists_say_what_they_are_of_and_fields_their_hint_and_error(page: Any) -> None:
    """As a screen reader was heard to speak them: a list by its value alone says nothing."""
    wait(page, lambda b: b.execute_script(NAMELESS) == [])
    path = page.execute_script("return window.location.pathname")
    here = {"/": "Explore", "/plan": "Plan", "/check": "Check"}[path]
    wait(page, lambda b: b.title == f"{here} · DSpark simulator")


def test_an_error_is_spoken_and_marks_its_field(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    path, name, said = ADDRESSES["explore"]
    opened(browser, served.address + path)
    shows(browser, name, said)
    marked = "return document.getElementById('e-own').getAttribute('aria-invalid')"
    wait(browser, lambda b: b.execute_script(marked) == "false")
    browser.find_element("id", "e-own").send_keys("fixed:x", Keys.ENTER)
    shows(browser, "e-own-error", "needs a number")
    wait(browser, lambda b: b.execute_script(marked) == "true")
    spoken = "return document.getElementById('e-own-error').getAttribute('role')"
    assert browser.execute_script(spoken) == "alert"


def test_answers_are_spoken_whole_and_tables_are_not(page: Any) -> None:
    """A sentence that changes is a live region of its own; the numbers below it are read when asked for."""
    if page.execute_script("return window.location.pathname") == "/":
        wait(page, lambda b: text(b, "e-said") == text(b, "e-answer") != "")
    regions = """return [...document.querySelectorAll('[aria-live=polite]')]
      .map(e => [e.id, e.getAttribute('aria-atomic'), e.querySelectorAll('table').length])"""
    for name, atomic, tables in page.execute_script(regions):
        assert (name, atomic, tables) == (name, "true", 0)
    ids = {name for name, _, _ in page.execute_script(regions)}
    assert ids & {"e-said", "p-said", "c-said"}
    assert all(e.get_attribute("aria-live") == "off" for e in page.find_elements("css selector", "div.table"))


def test_tab_reaches_all_that_can_be_used(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    wait(page, lambda b: b.find_elements("css selector", "nav a.here"))
    listed = page.execute_script(REACHABLE)
    page.execute_script(
        "document.activeElement.blur(); window.reached = [];"
        "document.addEventListener('focusin', e => window.reached.push(e.target.dataset.place))"
    )
    tabs = ActionChains(page)
    for _ in range(len(listed) + 3):
        tabs.send_keys(Keys.TAB)
    tabs.perform()
    reached = [int(each) for each in page.execute_script("return window.reached") if each is not None]
    missing = [text for place, text in enumerate(listed) if place not in reached]
    assert missing == []
    once = list(dict.fromkeys(reached))
    assert once == sorted(once)  # in the order in which the page is read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Any, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    wait(page, lambda b: b.execute_script(CONTRAST) == [])
