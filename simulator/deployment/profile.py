"""Profiles: what a device, a target and its drafts cost, read from files and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict, Field, ValidationError

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory, stamp_of, write_json
from simulator.core.provenance import Kind, Provenance
from simulator.core.reading import Strict, complain, is_there, read_json, strictly
from simulator.cost.draft import DraftCost
from simulator.cost.models import CostModel
from simulator.deployment.acceptance_text import AcceptanceSpec
from simulator.deployment.profile_parts import (
    AdditiveSpec,
    CurveSpec,
    DraftSpec,
    PublishedClaims,
)

KEPT_PROFILES = 8
"""Profiles that a process keeps once they are read: those that a study compares. A choice."""


class Profile(Strict):
    """One device, one target, its drafters: the cost side of a simulation.

    drafters: cost of each drafter's block; None says that drafting is inside ``step``, as when the
    curve was derived from whole engine steps. acceptance: models that belong to this deployment,
    by drafter, used where the user names none. jitter: how single steps of one size scatter, as equally
    likely multiples of their mean. replica_gpus: GPUs that the curve stands for, None where nobody said.
    prefill_tokens_per_s: prompt tokens that such a replica prefills alone, for a pool of them.
    step_time_band: by which share step times may be off, up or down; None where nobody knows.
    chunk_tokens: prompt tokens that the engine puts into a step at most; None where nobody said.
    contexts_to: tokens of the longest context that step times were measured or composed at; None likewise.
    """

    schema_version: int = Field(default=1, ge=1, le=1, alias="schema")  # a Literal would take true for 1
    name: str
    title: str
    provenance: Provenance
    step: Annotated[CurveSpec | AdditiveSpec, Field(discriminator="type")]
    replica_gpus: int | None = Field(default=None, gt=0)
    drafters: Mapping[str, DraftSpec] | None = None
    acceptance: Mapping[str, AcceptanceSpec] = {}
    jitter: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=1)
    kv_tokens: int | None = Field(default=None, gt=0)
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    step_time_band: float | None = Field(default=None, gt=0, lt=1)
    chunk_tokens: int | None = Field(default=None, gt=0)
    contexts_to: int | None = Field(default=None, gt=0)
    published: PublishedClaims | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    def target_cost(self) -> CostModel:
        """Build the step cost of the target.

        Returns
        -------
        CostModel
            Seconds of a step by requests, rows and context.

        Raises
        ------
        BadInputError
            If the profile's curve is not valid.
        """
        return self.step.build()

    def draft_cost(self, drafter: str) -> DraftCost | None:
        """Build the cost of a drafter's block.

        Parameters
        ----------
        drafter
            One of ``drafters``, or ``none``.

        Returns
        -------
        DraftCost or None
            None where the cost is inside the step or nothing is drafted.

        Raises
        ------
        BadInputError
            If the profile prices drafters, and this one is not among them.
        """
        if drafter == "none" or self.drafters is None:
            return None
        if drafter not in self.drafters:
            raise BadInputError(
                f"has no draft cost for {drafter!r}", source=self.name, field="drafters",
                remedy=f"it has {', '.join(self.drafters) or 'none'}; profile that drafter too",
            )  # fmt: skip
        return self.drafters[drafter].build()

    def acceptance_models(self) -> dict[str, AcceptanceModel]:
        """Build the acceptance models that belong to this deployment.

        Returns
        -------
        dict of str to AcceptanceModel
            Models by drafter; empty where the profile brings none.
        """
        return {drafter: spec.build() for drafter, spec in self.acceptance.items()}

    def save(self, path: Path) -> None:
        """Write the profile as JSON, atomically.

        Parameters
        ----------
        path
            File; one that exists is replaced only by a whole new one.
        """
        write_json(path, self.model_dump(mode="json", by_alias=True, exclude_none=True))


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile.

    Parameters
    ----------
    name_or_path
        A shipped name (``deepseek-v4-flash``, ``h200/qwen3-8b--dspark``) or a file.

    Returns
    -------
    Profile
        The profile, checked; its costs can be built.

    Raises
    ------
    BadInputError
        If there is no such profile, or it is not valid; it names the file, the field, the value and the
        remedy.
    """
    path = _find(str(name_or_path))
    return _read(path, stamp_of(path))


@lru_cache(maxsize=KEPT_PROFILES)
def _read(path: Path, stamp: tuple[int, int]) -> Profile:
    """Read and check a profile once, as a plan asks for its own some twenty times; stamp: of the file."""
    try:
        profile = strictly(Profile, read_json(path))
        profile.target_cost()
        for drafter in profile.drafters or {}:
            profile.draft_cost(drafter)
    except ValidationError as error:
        raise _with_remedy(complain(error, str(path))) from error
    except BadInputError as error:
        if error.source is not None:
            raise
        raise BadInputError(
            error.problem, source=str(path), field=error.field, value=error.value, remedy=error.remedy
        ) from error
    return profile


def _with_remedy(error: BadInputError) -> BadInputError:
    """Say of a provenance what is asked for: people who bring their own table meet this first."""
    if error.field not in ("provenance", "provenance.kind"):
        return error
    kinds = ", ".join(get_args(Kind))
    return BadInputError(
        error.problem, source=error.source, field=error.field, value=error.value,
        remedy=f"say where the numbers come from: one of {kinds}, with source and date; "
        "`dspark-sim profile repair FILE --kind measured` adds all three",
    )  # fmt: skip


def shipped_profiles() -> dict[str, Path]:
    """Find every profile that comes with the package.

    Returns
    -------
    dict of str to Path
        Files by name.
    """
    root = data_directory("profiles")
    files = sorted(path for path in root.rglob("*.json") if not {"sources", "catalogue"} & set(path.parts))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


_shipped = cache(shipped_profiles)
"""What comes with the package stays as it is while a process runs."""


def _first(names: Iterable[str]) -> list[str]:
    """Leave out the many curves that ``model`` and ``gpu`` name."""
    return [name for name in names if not name.startswith("kernels/")]


def _find(name: str) -> Path:
    shipped = _shipped()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix == ".json" or is_there(path):
        return path
    raise BadInputError(
        "is not a profile", source="profile", value=name,
        remedy=f"name one of {', '.join(_first(shipped))}, or give a .json file; or say `model` and `gpu`",
    )  # fmt: skip


def stands_for(replica_gpus: float | None) -> str:
    """Say what throughput and load of a curve are of; None or NaN where nobody said how many GPUs."""
    if replica_gpus is None or math.isnan(replica_gpus):
        return "replica"
    return "GPU" if replica_gpus == 1 else f"replica of {replica_gpus:.0f} GPUs"


def beyond_contexts(profile: Profile, prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> str | None:
    """Say how many requests end longer than ``contexts_to`` of a profile, and what follows.

    Parameters
    ----------
    profile
        The profile; one that states no longest context says nothing.
    prompt_tokens, output_tokens
        Of each request, shape [requests].

    Returns
    -------
    str or None
        A warning, or None where every request stays within.
    """
    longest = np.asarray(prompt_tokens, dtype=np.int64) + np.asarray(output_tokens, dtype=np.int64)
    if profile.contexts_to is None or not longest.size:
        return None
    many = int(np.count_nonzero(longest > profile.contexts_to))
    if not many:
        return None
    return (
        f"{many:,} of {longest.size:,} requests ({many / longest.size:.1%}) grow beyond the contexts of "
        f"{profile.contexts_to:,} tokens that the step times are of, to {int(longest.max()):,} at most: "
        "attention is extrapolated in proportion to the context"
    )
