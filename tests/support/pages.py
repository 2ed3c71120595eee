"""Pages of the app in a browser: opened, read, changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECONDS = 240.0
"""Longest wait: on a quiet machine a page takes one, among many other jobs it takes minutes."""


def wait(browser: Any, what: Callable[[Any], Any]) -> Any:
    """Wait until something holds; returns it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SECONDS, poll_frequency=0.1).until(what)


def text(browser: Any, name: str) -> str:
    """Text of an element by its id, '' while it is being replaced or is not there."""
    script = "const e = document.getElementById(arguments[0]); return e ? e.innerText : ''"
    return str(browser.execute_script(script, name))


def shows(browser: Any, name: str, said: str) -> None:
    """Wait until an element says something."""
    wait(browser, lambda b: said in text(b, name))


def put(browser: Any, name: str, value: object) -> None:
    """Change a control as a hand does, so that React sees it, and leave it."""
    script = """const e = document.getElementById(arguments[0]);
      e.focus();
      Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), 'value').set.call(e, arguments[1]);
      e.dispatchEvent(new Event('input', {bubbles: true})); e.blur();"""
    browser.execute_script(script, name, str(value))


def click(browser: Any, name: str) -> None:
    """Click an element wherever it stands."""
    browser.execute_script("document.getElementById(arguments[0]).click()", name)


def choose(browser: Any, name: str, shown: str) -> None:
    """Open a list as a hand does, and choose the option whose text contains ``shown``."""
    browser.find_element("id", name).click()
    script = """return [...document.querySelectorAll('.dash-dropdown-option')]
      .find(e => e.innerText.includes(arguments[0]))"""
    wait(browser, lambda b: b.execute_script(script, shown)).click()


def session_of(browser: Any) -> str:
    """The session of the page, as its requests name it."""
    return str(browser.execute_script("return window.dash_component_api.getLayout('session').props.data"))


def opened(browser: Any, address: str) -> None:
    """Open a page, with an empty console."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(address)
    wait(browser, lambda b: b.find_elements("tag name", "main"))
