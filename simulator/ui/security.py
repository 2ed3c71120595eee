"""What the server refuses: other hosts, other origins, large bodies, names that would reach files."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from simulator.acceptance.fitted import is_fitted
from simulator.core.errors import BadInputError
from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.profile import shipped_profiles
from simulator.hardware import gpus, models
from simulator.schedulers.parse import parse_policy

if TYPE_CHECKING:
    from flask import Flask
    from flask.typing import ResponseReturnValue
    from flask.wrappers import Response

HOST = "127.0.0.1"

MOST_UPLOAD_BYTES = 8 * 2**20
"""Size of an uploaded file at most (8 MiB): a recorded step takes 1 to 20 kB, so thousands of steps fit."""

MOST_BODY_BYTES = 12 * 2**20
"""Size of a request at most (12 MiB): an upload grows by a third in base64, and the page adds some kB."""

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Styles are inline, as Plotly sets the attribute of what it draws."""

_PLAIN_RATES = re.compile(r"(conditional|marginal|length|rate):[0-9.,@ ]+")


def protect(server: Flask, port: int, scripts: Iterable[str]) -> None:
    """Refuse requests for another host or from another origin, and let pages load from here alone.

    A page of another site cannot read what is here even where its name is made to point at this machine:
    its requests name its own host. scripts: hashes of the page's own inline scripts.
    """
    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
    origins = {f"http://{host}" for host in hosts}
    server.config["MAX_CONTENT_LENGTH"] = MOST_BODY_BYTES
    policy = f"script-src 'self' {' '.join(scripts)}; {_POLICY}"

    @server.before_request
    def refuse() -> ResponseReturnValue | None:
        from flask import request

        origin = request.headers.get("Origin")
        if request.host not in hosts or (origin is not None and origin not in origins):
            return "only pages of this machine's own app may ask here\n", 403
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method != "GET":
            return "only pages of this machine's own app may ask here\n", 403
        if request.content_length is not None and request.content_length > MOST_BODY_BYTES:
            return f"a request is limited to {MOST_BODY_BYTES >> 20} MiB\n", 413
        return None

    @server.after_request
    def restrict(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response


def decoded_upload(contents: str, name: str) -> bytes:
    """Return the bytes of a file that was dropped into a page; errors name it.

    contents: as the page sends it, ``data:...;base64,...``.
    """
    _, comma, packed = contents.partition(";base64,")
    try:
        content = base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise BadInputError("did not arrive whole", source=name, remedy="drop it again") from error
    if len(content) > MOST_UPLOAD_BYTES:
        raise BadInputError(
            f"is larger than {MOST_UPLOAD_BYTES >> 20} MiB", source=name,
            remedy="record fewer steps, or read it with `dspark-sim replay`",
        )  # fmt: skip
    if not comma or not content:
        raise BadInputError("is empty", source=name, remedy="drop the file itself")
    return content


def check_profile(name: str) -> None:
    """Refuse a profile that is not shipped: no word of a page may reach a file."""
    if name not in shipped_profiles():
        raise BadInputError("is not a shipped profile", source="profile", value=name)


def check_hardware(model: str, gpu: str) -> None:
    """Refuse a model or a GPU that is not in the catalogue."""
    for field, name, known in (("model", model, models.catalogue()), ("gpu", gpu, gpus.catalogue())):
        if name not in known:
            problem = "is not in the catalogue" if name else "is missing"
            raise BadInputError(problem, source=field, value=name or None, remedy="choose one of the list")


def check_acceptance(text: str) -> None:
    """Refuse an acceptance model that is neither a name of the catalogue, nor rates, nor a mix of those."""
    words = text.partition("=")[2] or text
    for part in re.split(r"\+(?=\s*[\d.]+\s*\*)", words) if "*" in words else [words]:
        model = part.partition("*")[2].strip() if "*" in part else part.strip()
        name = model.rpartition("@")[0] or model
        known = is_fitted(name) or name.lower() in production_acceptance()
        if model and not known and not _PLAIN_RATES.fullmatch(model):
            raise BadInputError(
                "is not in the catalogue", source="acceptance", value=model,
                remedy="choose one of the list, or edit rates by position",
            )  # fmt: skip


def check_policies(policies: Iterable[str]) -> None:
    """Refuse policies that cannot be read, and a list without any."""
    listed = list(policies)
    if not listed:
        raise BadInputError("names none", source="policy", remedy="choose one or more")
    for text in listed:
        parse_policy(text)
