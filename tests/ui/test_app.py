"""The app in real browsers: drawn without errors, numbers that follow, errors in place, runs that end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from simulator.core.errors import BadInputError
from simulator.sweeps.comparison import at_slas
from simulator.ui.app import PAGES, Served
from simulator.ui.explore.asked import from_query
from simulator.ui.explore.view import view_of
from simulator.ui.jobs import Jobs
from tests.support.browsers import chromium

CHEAP = "policy=autoregressive&policy=mtp1"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0, Jobs())
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.close()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = chromium(tmp_path_factory.mktemp("chromium"))
    yield session
    session.quit()


def wait(browser: Any, what: Callable[[Any], Any], seconds: float = 240.0) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(what)


def text(browser: Any, name: str) -> str:
    """Text of an element by its id, '' while it is being replaced or is not there."""
    script = "const e = document.getElementById(arguments[0]); return e ? e.innerText : ''"
    return str(browser.execute_script(script, name))


def open_page(browser: Any, served: Served, query: str, path: str = "") -> None:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(f"{served.address}{path}?{query}")


def explored(browser: Any, served: Served, query: str) -> None:
    """Open Explore and wait for its first answer."""
    open_page(browser, served, query)
    wait(browser, lambda b: "carries" in text(b, "e-answer"))


def put(browser: Any, name: str, value: object) -> None:
    """Change a control as a hand does, so that React sees it."""
    script = """const e = document.getElementById(arguments[0]);
      Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), 'value').set.call(e, arguments[1]);
      e.dispatchEvent(new Event('input', {bubbles: true}));"""
    browser.execute_script(script, name, str(value))


def session_of(browser: Any) -> str:
    """The page's session, found in what its next request says."""
    return str(browser.execute_script("return window.dash_component_api.getLayout('session').props.data"))


@pytest.mark.parametrize("path", [path.lstrip("/") for path in PAGES])
def test_every_page_opens_without_errors_and_from_here_alone(browser: Any, served: Served, path: str) -> None:
    open_page(browser, served, CHEAP, path)
    wait(browser, lambda b: b.find_elements("tag name", "main"))
    wait(browser, lambda b: b.find_elements("css selector", "nav a.here"))
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(name.startswith((served.address, "data:")) for name in loaded)
    assert browser.get_log("browser") == []


def test_first_lines_are_drawn_and_the_slider_moves_the_numbers(browser: Any, served: Served) -> None:
    explored(browser, served, CHEAP)
    figures = """return [...document.querySelectorAll('.js-plotly-plot')]
      .map(e => e.querySelectorAll('.trace').length)"""
    wait(browser, lambda b: [count >= 2 for count in b.execute_script(figures)] == [True] * 4)
    before = text(browser, "e-table")
    put(browser, "e-sla", 110)
    wait(browser, lambda b: text(b, "e-answer").startswith("At least 110 tokens/s per user on average"))
    after = text(browser, "e-table")
    assert before != after
    line = browser.execute_script(
        "return document.querySelector('#e-speed .js-plotly-plot').layout.shapes[0].x0"
    )
    assert line == 110
    shown = {row.split()[0]: row.split()[1] for row in after.splitlines()[1:]}
    seen = view_of(served.jobs, session_of(browser), from_query(CHEAP))
    for row in at_slas(seen.table, ["tps_mean>=110"]).to_dict("records"):
        assert seen.done == seen.total or shown  # either stage is the library's own table
        known = row["throughput_tok_per_s"]
        assert shown[row["policy"]] == ("cannot" if known != known else f"{known:,.0f}")
    assert browser.get_log("browser") == []


def test_a_reload_shows_the_same_state(browser: Any, served: Served) -> None:
    explored(browser, served, CHEAP)
    put(browser, "e-sla", 95)
    browser.find_element("css selector", "#e-statistic input[value=p10]").click()
    wait(browser, lambda b: "sla=95" in b.current_url and "statistic=p10" in b.current_url)
    browser.refresh()
    wait(browser, lambda b: text(b, "e-answer").startswith("At least 95 tokens/s for 90% of the users"))
    assert "--sla 'tps_p10>=95'" in text(browser, "e-command")
    assert "--policy autoregressive --policy mtp1" in text(browser, "e-command")


def test_an_error_shows_at_its_field(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    explored(browser, served, CHEAP)
    own = browser.find_element("id", "e-own")
    own.send_keys("fixed:x", Keys.ENTER)
    wait(browser, lambda b: "needs a number after the colon" in text(b, "e-own-error"))
    described = wait(browser, lambda b: own.get_attribute("aria-describedby"))
    assert described == "e-own-error"
    own.send_keys(Keys.CONTROL, "a")
    own.send_keys("fixed:9", Keys.ENTER)  # can be read, but not with this profile's drafts
    wait(browser, lambda b: "its drafter's block has 5" in text(b, "e-policy-error"))
    assert text(browser, "e-own-error") == ""
    assert "carries" in text(browser, "e-answer")  # the others are still answered


def test_a_model_on_a_gpu_needs_acceptance_and_then_shows_its_band(browser: Any, served: Served) -> None:
    open_page(browser, served, f"profile=&model=Qwen/Qwen3-32B&gpu=h100&{CHEAP}")
    wait(browser, lambda b: "cannot be derived from a model's shape" in text(b, "e-acceptance-error"))
    explored(
        browser, served, f"profile=&model=Qwen/Qwen3-32B&gpu=h100&acceptance=qwen3-4b-chat&sla=20&{CHEAP}"
    )
    assert text(browser, "e-curve").startswith("kernels, step times within")
    assert "Qwen/Qwen3-32B in bf16 on 1 x NVIDIA H100" in text(browser, "e-curve").replace("\n", " ")


def test_an_address_that_makes_no_sense_is_said(browser: Any, served: Served) -> None:
    open_page(browser, served, "profile=/etc/passwd")
    alert = wait(browser, lambda b: b.find_elements("css selector", "#page > div > .error"))[0]
    assert "is not a shipped profile" in alert.text


def test_a_long_run_is_cancelled(browser: Any, served: Served) -> None:
    explored(browser, served, f"effort=full&{CHEAP}&policy=dspark&policy=balanced")
    assert served.jobs.look(session_of(browser), []).running is False  # of no task
    count = len(served.jobs.processes())
    browser.find_element("id", "e-cancel").click()
    wait(browser, lambda b: text(b, "e-progress").startswith("Stopped after"))
    assert len(served.jobs.processes()) == count - 1
    assert "carries" in text(browser, "e-answer")  # what was found stays
    assert browser.find_element("id", "e-again").is_displayed()


def test_two_browsers_work_at_once(
    browser: Any, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = chromium(tmp_path_factory.mktemp("other"))
    try:
        open_page(browser, served, "policy=fixed:2&policy=mtp1&sla=60")
        open_page(other, served, "policy=autoregressive&policy=fixed:1&sla=70")
        wait(browser, lambda b: "carries" in text(b, "e-answer"))
        wait(other, lambda b: "carries" in text(b, "e-answer"))
        assert text(browser, "e-answer").startswith("At least 60")
        assert text(other, "e-answer").startswith("At least 70")
        assert "fixed:2" in text(browser, "e-table")
        assert "fixed:2" not in text(other, "e-table")
        assert session_of(browser) != session_of(other)
    finally:
        other.quit()


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_no_wider_than_the_screen_and_legible(browser: Any, served: Served, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    contrast = """
      const luminance = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const paper = luminance(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('h1, h2, p, td, th, label, figcaption span, .answer')].map(e => {
        const ink = luminance(getComputedStyle(e).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })"""
    try:
        explored(browser, served, CHEAP)
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        wait(browser, lambda b: b.execute_script(overflow) <= 0)
        papers: set[str] = set()
        drawn_on = "return document.querySelector('#e-speed .js-plotly-plot').layout.paper_bgcolor"
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            assert min(browser.execute_script(contrast)) >= 4.5
            wait(browser, lambda b: b.execute_script(drawn_on) not in papers)
            papers.add(browser.execute_script(drawn_on))  # figures follow the scheme
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_keyboard_reaches_every_control_by_a_name(browser: Any, served: Served) -> None:
    explored(browser, served, CHEAP)
    script = """const names = [];
      for (const e of document.querySelectorAll('a, button, input, textarea, summary, select')) {
        if (e.tabIndex < 0 || e.closest('[hidden]') || !e.getClientRects().length) continue;
        const label = e.labels && e.labels[0] ? e.labels[0].innerText : '';
        const name = e.getAttribute('aria-label') || label || e.innerText || e.title;
        names.push(name || 'NONE ' + e.outerHTML); }
      return names"""
    wait(browser, lambda b: not [n for n in b.execute_script(script) if n.startswith("NONE")])
    names = " | ".join(browser.execute_script(script))
    for expected in ("Profile: deepseek-v4-flash", "Acceptance: ", "Side by side: ", "Add a policy", "CSV"):
        assert expected in names


def test_other_hosts_are_refused_by_the_running_server(served: Served) -> None:
    from urllib.error import HTTPError

    for header, value in (("Host", "evil.example"), ("Origin", "http://evil.example")):
        with pytest.raises(HTTPError) as caught:
            urlopen(Request(served.address, headers={header: value}), timeout=60)
        assert caught.value.code == 403
        caught.value.close()


def test_the_command_serves_until_it_is_interrupted(served: Served) -> None:
    """On a free port, without a browser; a port that is taken is an error that says what to do."""
    words = [sys.executable, "-m", "simulator", "ui", "--no-browser", "--port"]
    with subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().removeprefix("serving ").strip()
        with urlopen(address, timeout=60) as answer:
            assert b"<title>DSpark simulator</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with pytest.raises(BadInputError, match=r"port: cannot be listened on.*0 takes a free one"):
        Served(served.port, served.jobs)
