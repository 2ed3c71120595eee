"""What the server refuses, asked as another page or program would ask."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from simulator.core.errors import BadInputError
from simulator.ui.app import build
from simulator.ui.check.work import Uploads
from simulator.ui.running.jobs import Jobs
from simulator.ui.security import (
    MOST_BODY_BYTES,
    MOST_UPLOAD_BYTES,
    check_acceptance,
    check_hardware,
    check_policies,
    check_profile,
    decoded_upload,
    protect,
)

OWN = {"Host": "127.0.0.1:8050"}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    jobs = Jobs()
    uploads = Uploads()
    app = build(jobs, uploads)
    server: Flask = app.server
    protect(server, 8050, app.csp_hashes())
    with server.test_client() as made:
        yield made
    jobs.close()
    uploads.close()


def test_the_page_is_given_to_this_machine_alone(client: Any) -> None:
    for host in ("127.0.0.1:8050", "localhost:8050"):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1", "127.0.0.1:8051", ""])
@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/assets/style.css"])
def test_foreign_hosts_are_refused(client: Any, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:8050", "http://127.0.0.1:80"]
)
def test_foreign_origins_are_refused(client: Any, origin: str) -> None:
    asked = client.post("/_dash-update-component", headers=OWN | {"Origin": origin}, json={})
    assert asked.status_code == 403
    own = OWN | {"Origin": "http://127.0.0.1:8050"}
    assert client.get("/_dash-dependencies", headers=own).status_code == 200


def test_a_large_request_is_refused_before_it_is_read(client: Any) -> None:
    headers = OWN | {"Content-Type": "application/json"}
    large = b" " * (MOST_BODY_BYTES + 1)
    assert client.post("/_dash-update-component", headers=headers, data=large).status_code == 413


@pytest.mark.parametrize(
    "path", ["/assets/../app.py", "/assets/%2e%2e/app.py", "/etc/passwd", "/profiles/README.md"]
)
def test_no_path_reaches_a_file(client: Any, path: str) -> None:
    answer = client.get(path, headers=OWN)
    text = answer.get_data(as_text=True)
    assert answer.status_code == 404 or "<title>DSpark simulator</title>" in text
    assert "import" not in text.partition("<footer>")[0]


def upload(content: bytes) -> str:
    return "data:application/json;base64," + base64.b64encode(content).decode()


def test_uploads_are_decoded_and_bounded() -> None:
    assert decoded_upload(upload(b"{}"), "dump.json") == b"{}"
    assert len(decoded_upload(upload(bytes(MOST_UPLOAD_BYTES)), "dump.json")) == MOST_UPLOAD_BYTES
    with pytest.raises(BadInputError, match=r"dump\.json: is larger than 8 MiB"):
        decoded_upload(upload(bytes(MOST_UPLOAD_BYTES + 1)), "dump.json")
    with pytest.raises(BadInputError, match="did not arrive whole"):
        decoded_upload("data:;base64,%%%", "dump.json")
    for empty in ("data:;base64,", "", "no data"):
        with pytest.raises(BadInputError):
            decoded_upload(empty, "dump.json")


def test_only_names_of_the_catalogues_are_taken() -> None:
    check_profile("deepseek-v4-flash")
    check_hardware("Qwen/Qwen3-32B", "h100")
    for text in ("", "qwen3-4b-chat", "conditional:0.9,0.8", "length:3.5@5", "deepseek-v4/dspark/thinking",
                 "mtp1=rate:0.8@1", "0.6*qwen3-4b-chat+0.4*qwen3-4b/dspark/math"):  # fmt: skip
        check_acceptance(text)
    check_policies(["mtp1", "fixed:4@dspark"])


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "../x.parquet", "a.json", "dspark=/etc/hosts", "0.5*/etc/a+0.5*b.log"]
)
def test_files_are_not_taken(text: str) -> None:
    with pytest.raises(BadInputError, match="is not"):
        check_profile(text)
    with pytest.raises(BadInputError, match="is not in the catalogue"):
        check_hardware(text, "h100")
    with pytest.raises(BadInputError, match="is not in the catalogue"):
        check_acceptance(text)


def test_no_policy_is_an_error_of_its_field() -> None:
    with pytest.raises(BadInputError) as caught:
        check_policies([])
    assert caught.value.source == "policy"
