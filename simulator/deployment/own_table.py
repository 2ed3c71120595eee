"""A step cost that somebody brings along, mended where that takes no judgement, and every change said.

People measure tables by hand: sizes twice, unsorted, a larger batch half a percent faster than a smaller
one. ``load_profile`` refuses all of that, a complaint at a time. ``mended_profile`` mends it in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError, naming
from simulator.core.provenance import Kind
from simulator.core.reading import complain, is_file, read_json, strictly
from simulator.core.statistics import isotonic
from simulator.deployment.engine_files import Imported
from simulator.deployment.profile import Profile

NOISE = 0.02
"""Largest change of a step time that still counts as noise of a measurement. A choice."""

_SIZES = ("batch_tokens", "steps_per_s", "step_time_s")

_AXES = {"request_probes": "alpha_s", "token_probes": "theta_s"}
"""Axes of an additive cost and their values."""


def mended_profile(
    path: Path, *, kind: str | None = None, source: str | None = None, noise: float = NOISE
) -> Imported:
    """Read a profile or a table of sizes and mend its step cost; a note for each change.

    path: a profile as JSON, or CSV with batch_tokens and either steps_per_s or step_time_s. Sizes are sorted,
    those given twice become one with their mean step time, and a larger batch that is faster gets the least
    change that makes it no faster (isotonic regression of the logarithm). kind, source: of the provenance.

    Raises ``BadInputError`` where a point would change by more than ``noise``, where neither the file nor
    ``kind`` says where the numbers come from, and for whatever cannot be mended.
    """
    with naming(str(path)):
        if not 0 <= noise < 1:
            raise BadInputError("must be from 0 to below 1", field="noise", value=noise)
        raw = _read(path)
        step = raw.get("step")
        if not isinstance(step, dict):
            raise BadInputError("is missing", field="step", remedy="give batch_tokens and steps_per_s")
        notes: list[str] = []
        mended = raw | {
            "step": _mended_step(step, noise, notes),
            "provenance": _provenance(raw.get("provenance"), path, kind, source, notes),
            "name": raw.get("name", path.stem),
            "title": raw.get("title", path.stem),
        }
        try:
            profile = strictly(Profile, mended)
        except ValidationError as error:
            raise complain(error, str(path)) from error
        profile.target_cost()
        for drafter in profile.drafters or {}:
            profile.draft_cost(drafter)
    if profile.drafters is None:
        notes.append(FREE_DRAFTS)
    return Imported(profile, tuple(notes))


FREE_DRAFTS = (
    "no drafter has a price: if steps were measured without drafting, drafting is free here; add `drafters`, "
    "or name the model and the GPU to have it derived"
)


def _read(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise BadInputError("no such file", remedy="give a profile FILE.json or a table FILE.csv")
    if path.suffix == ".json":
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise BadInputError(
                "is not a mapping of keys",
                remedy="give a profile, or batch_tokens with steps_per_s or step_time_s",
            )
        return raw if "step" in raw or "batch_tokens" not in raw else {"step": raw}
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"is not a table: {error}", remedy="give CSV with a header") from error
    columns = {name: table[name].tolist() for name in _SIZES if name in table.columns}
    return {"step": columns}


def _mended_step(step: Mapping[str, Any], noise: float, notes: list[str]) -> dict[str, Any]:
    if step.get("type") == "additive":
        mended = dict(step)
        for axis, values in _AXES.items():
            if axis in step and values in step:
                mended[axis], mended[values] = _mended_part(step, axis, values, noise, notes)
        return mended
    at, time_s = _sizes(step)
    at, time_s = _merged(at, time_s, "batch_tokens", notes)
    time_s = _rising(at, time_s, "batch_tokens", noise, notes)
    kept = {name: value for name, value in step.items() if name != "step_time_s"}
    return kept | {
        "type": "throughput-curve", "batch_tokens": at.tolist(), "steps_per_s": (1.0 / time_s).tolist(),
    }  # fmt: skip


def _sizes(step: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Batch tokens and seconds of a step."""
    given = [name for name in ("steps_per_s", "step_time_s") if name in step]
    if "batch_tokens" not in step or len(given) != 1:
        raise BadInputError(
            "needs batch_tokens and either steps_per_s or step_time_s", field="step",
            value=", ".join(map(str, step)), remedy="name the columns so",
        )  # fmt: skip
    at, values = _numbers(step["batch_tokens"], "batch_tokens"), _numbers(step[given[0]], given[0])
    if len(at) != len(values):
        raise BadInputError(f"needs {len(at)} values, one per size", field=given[0], value=len(values))
    if np.any(values <= 0):
        raise BadInputError("must be positive", field=given[0], value=float(values.min()))
    return at, 1.0 / values if given[0] == "steps_per_s" else values


def _numbers(values: object, field: str) -> Floats:
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInputError("must be numbers", field=field, value=values) from error
    if found.ndim != 1 or not found.size or not np.all(np.isfinite(found)):
        raise BadInputError("must be a list of finite numbers", field=field, value=values)
    return found


def _merged(at: Floats, values: Floats, name: str, notes: list[str]) -> tuple[Floats, Floats]:
    """Sort the sizes, and take the mean of what was given for one of them twice."""
    if np.any(np.diff(at) < 0):
        notes.append(f"{name}: sorted")
    sizes, place, counts = np.unique(at, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=values) / counts
    for size in sizes[counts > 1]:
        same = values[at == size]
        apart = f"{np.ptp(same) / same.mean():.1%} apart"
        notes.append(f"{name} {size:g}: given {len(same)} times, {apart}; their mean is taken")
    return sizes, np.where(counts > 1, means, values[np.unique(at, return_index=True)[1]])


def _rising(at: Floats, time_s: Floats, name: str, noise: float, notes: list[str]) -> Floats:
    """Return step times that never fall as the batch grows; refuse a change beyond noise."""
    if not np.any(np.diff(time_s) < 0):
        return time_s
    logarithm = np.log(time_s)
    fitted = isotonic(logarithm)
    mended = np.maximum.accumulate(np.where(fitted == logarithm, time_s, np.exp(fitted)))
    change = np.abs(mended / time_s - 1)
    worst = int(change.argmax())
    if change[worst] > noise:
        raise BadInputError(
            f"step time would have to change by {change[worst]:.1%} so that a larger batch is no faster, and "
            f"up to {noise:.1%} is noise", field=f"{name} {at[worst]:g}", value=float(time_s[worst]),
            remedy="measure that size again, or allow more with `noise`",
        )  # fmt: skip
    changed = f"{int((change > 0).sum())} step times changed by up to {change[worst]:.2%}"
    notes.append(f"{name}: {changed}, so that a larger batch is no faster")
    return mended


def _mended_part(
    step: Mapping[str, Any], axis: str, name: str, noise: float, notes: list[str]
) -> tuple[list[float], list[float]]:
    """Mend one axis of an additive cost; noise is judged by the whole step, of which this is a part."""
    at, values = _numbers(step[axis], axis), _numbers(step[name], name)
    bias = _numbers([step.get("bias_s")], "bias_s")[0]
    if len(at) != len(values):
        raise BadInputError(f"needs {len(at)} values, one per probe", field=name, value=len(values))
    if np.any(values < 0) or bias <= 0:
        raise BadInputError("must not be negative, the bias positive", field=name, value=float(values.min()))
    at, values = _merged(at, values, axis, notes)
    whole = bias + values
    mended = _rising(at, whole, axis, noise, notes)
    return at.tolist(), np.where(mended == whole, values, mended - bias).tolist()


def _provenance(
    given: object, path: Path, kind: str | None, source: str | None, notes: list[str]
) -> dict[str, Any]:
    """Complete the provenance; what only its owner knows is asked for."""
    known = dict(given) if isinstance(given, dict) else {}
    if kind is not None:
        known["kind"] = kind
    if known.get("kind") not in get_args(Kind):
        raise BadInputError(
            "must say where the numbers come from", field="provenance.kind", value=known.get("kind"),
            remedy=f"say `kind` measured, or another of {', '.join(get_args(Kind))}",
        )  # fmt: skip
    if source is not None:
        known["source"] = source
    for field, default in (("source", path.name), ("date", "undated")):
        if field not in known:
            known[field] = default
            notes.append(f"provenance.{field}: missing; {default!r} is written")
    return known
