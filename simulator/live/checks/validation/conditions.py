"""Whether a profile was measured under the conditions of a live run."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.core.errors import BadInputError
from simulator.deployment.profile import Profile
from simulator.live.device import device_name
from simulator.live.models.targets import Target
from simulator.live.profiling.conditions import DRAFT, UNSAID

_SETTABLE = ("attention", "graphs", "threads", "dtype")
"""Conditions that an option of the same name changes; the others are changed by profiling again alone."""


def check_profile(profile: Profile, target: Target, conditions: Mapping[str, str]) -> None:
    """Refuse a profile of another device or target, or measured otherwise, naming what differs.

    conditions: of the live runs, from ``conditions_of``, and their drafters from ``digests_of``. Target and
    drafters are known by their content, so that another spelling of a path is accepted and other weights
    under the same path are not.
    """
    software = UNSAID | dict(profile.provenance.software)
    here = device_name(target.device)
    pairs = {"device": (profile.provenance.device, here)} | {
        name: (software.get(name), ours) for name, ours in conditions.items()
    }
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not different:
        return
    if "dtype" in different and software.get("dtype"):
        # The same weights have other bytes in another dtype.
        different = {name: pair for name, pair in different.items() if not _is_digest(name)}
    options = [
        f"`{name}` {theirs}" for name, (theirs, _) in different.items() if theirs and name in _SETTABLE
    ]
    again = f"profile {target.name} here again, with the options and drafts of this run"
    raise BadInputError(
        f"was measured under other conditions: {'; '.join(map(_differing, different.items()))}",
        source=profile.name, field=", ".join(different),
        remedy=f"run with {', '.join(options)}, or {again}" if len(options) == len(different) else again,
    )  # fmt: skip


def _is_digest(name: str) -> bool:
    return name == "weights" or name.startswith(DRAFT)


def _differing(item: tuple[str, tuple[str | None, str]]) -> str:
    name, (theirs, ours) = item
    if _is_digest(name):  # the beginnings of digests tell them apart
        theirs, ours = theirs and theirs[:12], ours[:12]
        whose = "the target" if name == "weights" else f"drafter {name.removeprefix(DRAFT)!r}"
        name = f"config or weights of {whose}"
    return f"{name} {repr(theirs) if theirs else 'not recorded'} there, {ours!r} here"
