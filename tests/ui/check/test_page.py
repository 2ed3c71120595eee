"""The page Check in a real browser: a dump is explained, a bad or large file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.ui.app import Served
from simulator.ui.security import MOST_UPLOAD_BYTES
from tests.dumps.test_redecide import written_dump
from tests.support.pages import opened, shows, text, wait


def test_misses_come_first_and_a_dump_is_explained(browser: Any, served: Served, tmp_path: Path) -> None:
    opened(browser, f"{served.address}check")
    shows(browser, "c-answer", "published numbers: half of the predictions are within")
    rows = [row.split("\t")[-1] for row in text(browser, "c-answer").splitlines() if row.endswith("%")]
    misses = [float(row.rstrip("%")) for row in rows]
    assert misses == sorted(misses, reverse=True)
    assert len(misses) > 5
    chooser = wait(browser, lambda b: b.find_elements("css selector", "#d-upload input[type=file]"))[0]
    chooser.send_keys(str(written_dump(tmp_path / "dump.json")))
    shows(browser, "d-answer", "decided again")
    assert "What explains the differences" in text(browser, "d-answer")
    assert browser.get_log("browser") == []


def test_a_bad_file_is_refused_at_its_field(browser: Any, served: Served, tmp_path: Path) -> None:
    opened(browser, f"{served.address}check")
    chooser = wait(browser, lambda b: b.find_elements("css selector", "#d-upload input[type=file]"))[0]
    bad = tmp_path / "bad.json"
    bad.write_text('{"records": 1}')
    chooser.send_keys(str(bad))
    shows(browser, "d-answer", "bad.json: ")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MOST_UPLOAD_BYTES + 1000))
    chooser = browser.find_elements("css selector", "#d-upload input[type=file]")[0]
    chooser.send_keys(str(large))  # the page does not send it; the server's own bound: test_security
    shows(browser, "d-large", "is larger than 8 MiB")
    assert browser.get_log("browser") == []
