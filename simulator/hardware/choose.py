"""A model, a GPU and an engine named in words, and the profile that answers for them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.util import find_spec
from typing import cast

from simulator.acceptance.fitted import catalogue as acceptance_catalogue
from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.files import slug
from simulator.deployment.acceptance_text import production_acceptance
from simulator.deployment.profile import Profile, load_profile, shipped_profiles
from simulator.hardware.curves import formula_profile, kernel_profile
from simulator.hardware.drafters import Drafter, parse_drafter
from simulator.hardware.engines import (
    FORMULA_ENGINE,
    HOSTS,
    Host,
    Kind,
    as_served,
    kind_of,
    parse_host,
    runs_on,
)
from simulator.hardware.gpus import Gpu, load_gpu
from simulator.hardware.memory import DEFAULT_REQUEST, WIDTHS, Layout, required_layout
from simulator.hardware.models import WEIGHT_BYTES, ModelShape, Precision, load_model
from simulator.hardware.steps.kernel_modes import ENGINES, Engine
from simulator.hardware.steps.kernels import tables_version

TABLES = "aiconfigurator_core"
"""Package of the kernel tables: the extra ``silicon``."""

_WITHOUT_TABLES = (
    "the shipped curve answers: choosing an engine ({}) or drafters needs the tables of measured kernels; "
    "pip install 'dspark-simulator[silicon]'"
)

DRAFTERS = ("dspark:5l", "mtp1")
"""Drafters that a profile prices where nobody names any: the paper's Qwen3 draft, and one-token MTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What runs on what, in words.

    model: a name of the catalogue or a config.json. gpu: a name of the catalogue. tp: GPUs over which
    attention is split, by default the fewest that hold the weights and the longest request. dp: groups with
    attention of their own, of ``tp`` GPUs each. ep: GPUs that experts are dealt over; all of them by default
    where there are such groups. precision: the model's own by default, in 16 bits where the GPU lacks it.
    drafters: as ``drafters.parse_drafter`` reads them. host_time: of a step, and of a drafter's pass after a
    comma, as ``engines.parse_host`` reads it; what the engine adds by default. longest: tokens of the longest
    request, at least ``DEFAULT_REQUEST``, for the default of ``tp``.
    """

    model: str
    gpu: str
    tp: int | None = None
    dp: int = 1
    ep: int | None = None
    engine: str | None = None
    precision: str | None = None
    drafters: Sequence[str] = field(default=DRAFTERS)
    host_time: str | None = None
    longest: int = 0

    def layout(self) -> Layout:
        """How it is laid out; ``InfeasibleError`` where it does not fit."""
        model, gpu, drafters = load_model(self.model), load_gpu(self.gpu), self.parsed_drafters()
        heaviest = max((each.weight_bytes(model) for each in drafters), default=0.0)
        longest = max(DEFAULT_REQUEST, self.longest) + max((each.block for each in drafters), default=0)
        found = required_layout(
            model, gpu, self.tp, self._precision(model, gpu), dp=self.dp, ep=self.ep, longest=longest,
            drafter_bytes=heaviest,
        )  # fmt: skip
        if self.longest and found.dp > 1 and not found.holds(longest):
            raise BadInputError(
                f"{self.dp} groups hold {found.kv_tokens // found.dp:,} tokens each, and a request of "
                f"{self.longest:,} lies within one", field="dp", value=self.dp,
                remedy="wider groups (`tp`), or shorter requests",
            )  # fmt: skip
        return found

    def layouts(self) -> tuple[Layout, ...]:
        """Every layout of a node that fits, smallest first; the smallest alone where no node holds the model.

        With latent attention each width is there twice: a latent is kept whole by every GPU of a group, so
        that groups with attention of their own hold as many times the tokens.
        Raises ``InfeasibleError`` where nothing does. ``tp``, ``dp`` and ``ep`` are not looked at.
        """
        plain = replace(self, tp=None, dp=1, ep=None)
        smallest = plain.layout()
        widths = [width for width in WIDTHS if smallest.gpus <= width <= smallest.gpu.gpus_per_node]
        divides = [width for width in widths if smallest.model.heads % width == 0] or [smallest.gpus]
        found = []
        for width in divides:
            found.append(replace(plain, tp=width).layout())
            if width > 1 and smallest.model.latent is not None and smallest.model.experts is not None:
                with suppress(InfeasibleError):
                    found.append(replace(plain, tp=1, dp=width).layout())
        return tuple(found)

    def parsed_drafters(self) -> list[Drafter]:
        """Parse the drafters; ``BadInputError`` for a name given twice."""
        parsed = [parse_drafter(text) for text in self.drafters]
        names = [each.name for each in parsed]
        for name in names:
            if names.count(name) > 1:
                raise BadInputError("is named twice", source="drafter", value=name, remedy="keep one")
        return parsed

    def _precision(self, model: ModelShape, gpu: Gpu) -> Precision:
        if self.precision is None:
            native = model.native
            return native if native in gpu.flop_per_s or native == "fp4" else "bf16"
        if self.precision not in WEIGHT_BYTES:
            raise BadInputError(
                "is not known", source="precision", value=self.precision, remedy=", ".join(WEIGHT_BYTES)
            )
        return cast(Precision, self.precision)

    def parsed_engine(self) -> Engine | None:
        """Return the engine asked for; ``BadInputError`` for one that is not known."""
        if self.engine is None:
            return None
        if self.engine not in ENGINES:
            raise BadInputError("is not known", source="engine", value=self.engine, remedy=", ".join(ENGINES))
        runs_on(self.engine, load_gpu(self.gpu))
        return self.engine

    def host(self, engine: Engine, kind: Kind) -> Host:
        """Return the host's time that is asked for, or what the engine adds to such models."""
        return HOSTS[engine][kind] if self.host_time is None else parse_host(self.host_time)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The profile that answers, and what to know of it, a line each."""

    profile: Profile
    layout: Layout
    notes: tuple[str, ...]


def profile_for(asked: Hardware) -> Chosen:
    """Return a shipped curve of measured kernels, else one composed now, else the formula's; always said.

    Raises ``BadInputError`` for words that are not known, ``InfeasibleError`` where the model does not fit.
    """
    layout, engine, drafters = asked.layout(), asked.parsed_engine(), asked.parsed_drafters()
    name = kernel_name(layout)
    shipped = name in shipped_profiles() and set(asked.drafters) <= set(DRAFTERS)
    if shipped and engine is None and tuple(asked.drafters) == DRAFTERS:
        return _chosen(asked, load_profile(name), layout)
    if shipped and find_spec(TABLES) is None:
        return _chosen(asked, load_profile(name), layout, _WITHOUT_TABLES.format(engine))
    try:
        return _chosen(asked, _kernels(layout, drafters, engine), layout)
    except BadInputError as error:
        profile = formula_profile(layout, drafters)
        return _chosen(
            asked, profile, layout, f"no curve of measured kernels: {error}; the formula stands in"
        )


def first_look(asked: Hardware) -> Chosen | None:
    """Return the formula's curve where ``profile_for`` composes one, which takes seconds; None elsewhere.

    Raises as ``profile_for`` does.
    """
    layout, engine, drafters = asked.layout(), asked.parsed_engine(), asked.parsed_drafters()
    shipped = kernel_name(layout) in shipped_profiles() and tuple(asked.drafters) == DRAFTERS
    composed = layout.gpu.kernel_tables is not None and layout.model.compressed is None
    if (shipped and engine is None) or not composed or find_spec(TABLES) is None:
        return None
    return _chosen(asked, formula_profile(layout, drafters), layout)


def derive(asked: Hardware, *, command: str | None = None) -> Chosen:
    """Compose a curve of measured kernels, whether one is shipped or not, and never the formula's.

    command: what made it, for its provenance. Raises as ``profile_for`` does, and ``BadInputError`` where
    the tables are not installed, do not cover the model, or fail their gates.
    """
    layout = asked.layout()
    try:
        made = _kernels(layout, asked.parsed_drafters(), asked.parsed_engine())
    except BadInputError as error:
        raise BadInputError(
            error.problem, source=error.source, value=error.value,
            remedy=error.remedy or "name `model` and `gpu` where a profile stands: the formula answers there",
        ) from error  # fmt: skip
    origin = made.provenance.model_copy(
        update={
            "date": date.today().isoformat(), "command": command,
            "software": {"aiconfigurator-core": tables_version()},
        }
    )  # fmt: skip
    return _chosen(asked, made.model_copy(update={"provenance": origin}), layout)


def _kernels(layout: Layout, drafters: Sequence[Drafter], engine: Engine | None) -> Profile:
    """Compose kernels, except for attention whose tables are of another shape."""
    if layout.model.compressed is not None:
        published = slug(layout.model.name.split("/")[-1])
        raise BadInputError(
            "has compressed attention, whose kernels are not composed", source="model",
            value=layout.model.name, remedy=f"profile {published} has its makers' published step times",
        )  # fmt: skip
    return kernel_profile(layout, drafters, engine=engine)


_OF_CONVERSATION = ("chat", "mt-bench", "thinking")
"""Data sets that stand for traffic of which nothing else is known."""

_MEASURED_ON = {"deepseek-v4": "deepseek-v4-pro"}
"""Model on which an acceptance model of a whole family was measured."""


def require_acceptance(model: str, given: Sequence[str]) -> None:
    """Ask for an acceptance model where none is given, naming the one whose target is nearest in size.

    Raises ``BadInputError``: how good drafts are cannot be derived from a model's shape.
    """
    if given:
        return
    size = load_model(model).parameters
    known: dict[str, float] = {}
    for name in [*(each.name for each in acceptance_catalogue()), *production_acceptance()]:
        target, drafter, dataset = name.split("/")
        if drafter == "dspark" and dataset in _OF_CONVERSATION:
            with suppress(BadInputError):
                known[name] = load_model(_MEASURED_ON.get(target, target)).parameters
    nearest = min(known, key=lambda name: abs(math.log(known[name] / size)))
    raise BadInputError(
        "how good drafts are cannot be derived from a model's shape", source="acceptance",
        remedy=f"the nearest published one is `acceptance` {nearest}; see `dspark-sim list`",
    )  # fmt: skip


def kernel_name(layout: Layout) -> str:
    """Name of the curve that is shipped for a layout, where one is."""
    short = slug(layout.model.name.split("/")[-1])
    return f"kernels/{layout.gpu.name}/{short}-{layout.label}-{layout.precision}"


def _chosen(asked: Hardware, kernels: Profile, layout: Layout, *more: str) -> Chosen:
    """Serve a curve of kernels, or of the formula, by its engine, and say what it rests on."""
    engine = _engine_of(kernels) or asked.parsed_engine() or FORMULA_ENGINE
    host = asked.host(engine, kind_of(layout.model, layout.precision))
    profile = as_served(kernels, engine, layout.gpu, host, groups=layout.dp)
    where = f"{layout.gpus} x {layout.gpu.title}" + (
        f" ({layout.label})" if layout.dp * layout.ep > 1 else ""
    )
    band = "" if profile.step_time_band is None else f", step times within {profile.step_time_band:.0%}"
    what = {"kernels": "composed from measured kernels", "modelled": "from a formula"}
    kind = what.get(profile.provenance.kind, profile.provenance.kind)
    lines = [
        f"{layout.model.name} in {layout.precision} on {where}: {kind}{band}; {profile.provenance.source}",
        f"weights {layout.weight_bytes / 2**30:,.1f} GiB on each GPU, keys and values of "
        f"{profile.kv_tokens:,} tokens fit, prompts in chunks of {profile.chunk_tokens:,}",
        f"{engine}: {host.line}",
        *_refusals(profile),
        *more,
    ]
    return Chosen(profile, layout, tuple(lines))


def _engine_of(kernels: Profile) -> Engine | None:
    """Whose kernels a curve is composed of; None for the formula."""
    found = re.search(r"tables of (\w+) on", kernels.provenance.source)
    return next((engine for engine in ENGINES if found and engine == found[1]), None)


def _refusals(profile: Profile) -> list[str]:
    """Tables that failed a gate, and by how much; whose kernels are used where another's were asked for."""
    if profile.provenance.kind != "kernels":
        return []
    said = (profile.provenance.notes or "").replace("asked for; ", "asked for, ").split("; ")
    telling = ("refused", "stands in", "stand in")
    return [f"kernel tables: {each}" for each in said if any(word in each for word in telling)]
