"""Calls of a Dash app as its page makes them, several changes in one where they come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def call(client: Any, changed: Sequence[str], values: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
    """Call what takes all of ``changed``, as ``id.property``; values: of these and others, else None.

    Returns the properties that the answer sets, by id.
    """
    listed = client.get("/_dash-dependencies", headers=headers).get_json()
    (callback,) = (
        each for each in listed
        if set(changed) <= {f"{part['id']}.{part['property']}" for part in each["inputs"]}
        and each["clientside_function"] is None
    )  # fmt: skip

    def given(part: Mapping[str, str]) -> dict[str, Any]:
        return {**part, "value": values.get(f"{part['id']}.{part['property']}")}

    outputs = callback["output"].strip(".").split("...")
    body = {
        "output": callback["output"], "changedPropIds": list(changed),
        "outputs": [dict(zip(("id", "property"), each.rsplit(".", 1), strict=True)) for each in outputs],
        "inputs": [given(part) for part in callback["inputs"]],
        "state": [given(part) for part in callback["state"]],
    }  # fmt: skip
    answer = client.post("/_dash-update-component", headers=headers, json=body)
    assert answer.status_code in (200, 204), answer.data
    return answer.get_json()["response"] if answer.status_code == 200 else {}
