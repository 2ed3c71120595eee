"""How long the app takes to its first chart and for a change, and how much memory two browsers cost it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.browsers import chromium
from tests.support.pages import opened, put, text, wait

pytestmark = pytest.mark.benchmark

HARDWARE = "profile=&model=Qwen/Qwen3-8B&acceptance=qwen3-4b-chat&sla=40&gpu="

DRAWN = "return document.querySelectorAll('#e-speed .trace').length"


@pytest.fixture(scope="module")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    made = [chromium(tmp_path_factory.mktemp(name)) for name in ("one", "other")]
    yield made
    for each in made:
        each.quit()


def megabytes(pid: int) -> float:
    """Memory of a process and all below it; what several share is counted once."""
    server = psutil.Process(pid)
    return sum(each.memory_full_info().pss for each in (server, *server.children(recursive=True))) / 1e6


def test_first_chart_changes_and_memory(browsers: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds from the command to the first line of the default page, of changes, and the memory of both."""
    one, other = browsers
    found: dict[str, float] = {}
    start = time.monotonic()
    words = [sys.executable, "-m", "simulator", "ui", "--no-browser", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = process.stderr.readline().removeprefix("serving ").strip()
            found["command to served"] = time.monotonic() - start
            opened(one, address)
            wait(one, lambda b: b.execute_script(DRAWN) > 0)
            found["command to first line"] = time.monotonic() - start
            wait(one, lambda b: "dspark-async" in text(b, "e-table"))
            found["command to all lines, coarse"] = time.monotonic() - start
            wait(one, lambda b: "carries" in text(b, "e-answer") and not text(b, "e-progress"))
            found["command to all lines, refined"] = time.monotonic() - start
            found["another SLA"] = _changed(one, "e-sla", 60, "e-answer", "At least 60")
            found["another policy"] = _changed(one, "e-own", "fixed:2", "e-table", "fixed:2")
            opened(other, f"{address}?{HARDWARE}h100")
            wait(other, lambda b: "carries" in text(b, "e-answer") and not text(b, "e-progress"))
            for gpu in ("h200", "b200", "l40s", "h100"):  # of L40S no curve is shipped: it is composed
                found |= _on_another_gpu(other, gpu)
            found["memory with two browsers, MB"] = megabytes(process.pid)
        finally:
            process.terminate()
            process.wait(60)
    with capsys.disabled():
        print()
        for name, value in found.items():
            print(f"{name:32} {value:8.2f}")


def _on_another_gpu(browser: Any, gpu: str) -> dict[str, float]:
    """Choose another GPU of the list, as a hand does; seconds to its first line, and to all coarse ones."""
    title = gpu.upper()
    browser.execute_script("document.getElementById('e-gpu').click()")
    option = wait(browser, lambda b: [
        each for each in b.find_elements("css selector", "[role=option], .dash-dropdown-option")
        if title in each.text
    ])[0]  # fmt: skip
    start = time.monotonic()
    browser.execute_script("arguments[0].click()", option)
    wait(browser, lambda b: title in text(b, "e-curve") and "carries" in text(b, "e-answer"))
    first = time.monotonic() - start
    wait(browser, lambda b: all(policy in text(b, "e-table") for policy in ("mtp1", "dspark-async")))
    return {f"another GPU, {gpu}: first line": first, f"another GPU, {gpu}: all": time.monotonic() - start}


def _changed(browser: Any, control: str, value: object, at: str, said: str) -> float:
    start = time.monotonic()
    put(browser, control, value)
    wait(browser, lambda b: said in text(b, at))
    return time.monotonic() - start
