"""The app as a whole: every page opens, from here alone; the command serves and ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from simulator.core.errors import BadInputError
from simulator.ui.app import PAGES, Served
from tests.support.pages import opened, wait


@pytest.mark.parametrize("path", list(PAGES))
def test_every_page_opens_without_errors_and_from_here_alone(browser: Any, served: Served, path: str) -> None:
    opened(browser, served.address.rstrip("/") + path + "?policy=autoregressive&policy=mtp1")
    wait(browser, lambda b: b.find_elements("css selector", "nav a.here"))
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(name.startswith((served.address, "data:")) for name in loaded)
    assert browser.get_log("browser") == []


def test_other_hosts_are_refused_by_the_running_server(served: Served) -> None:
    for header, value in (("Host", "evil.example"), ("Origin", "http://evil.example")):
        with pytest.raises(HTTPError) as caught:
            urlopen(Request(served.address, headers={header: value}), timeout=60)
        assert caught.value.code == 403
        caught.value.close()


def test_the_command_serves_until_it_is_interrupted(served: Served) -> None:
    """On a free port, without a browser; a port that is taken is an error that says what to do."""
    words = [sys.executable, "-m", "simulator", "ui", "--no-browser", "--port"]

    def hear() -> None:
        """A shell's job in the background is started deaf to SIGINT."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True, preexec_fn=hear) as process:
        assert process.stderr is not None
        address = process.stderr.readline().removeprefix("serving ").strip()
        with urlopen(address, timeout=60) as answer:
            assert b"<title>DSpark simulator</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with pytest.raises(BadInputError, match=r"port: cannot be listened on.*0 takes a free one"):
        Served(served.port, served.jobs)
