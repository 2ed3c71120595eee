"""A profile for a model on a GPU: composed from measured kernels, or from a formula; always labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from simulator.core.files import slug
from simulator.core.provenance import Provenance
from simulator.cost.fit import AdditiveFit, Term, fit_additive
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.hardware.drafters import SEQUENTIAL_TURN_S, Drafter
from simulator.hardware.memory import Layout
from simulator.hardware.steps.formula import FormulaTimes
from simulator.hardware.steps.kernel_modes import Engine, Setting
from simulator.hardware.steps.kernels import Gate, KernelTables, band, chosen, tables_version

if TYPE_CHECKING:
    pass

REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

ROWS_EACH = (1, 2, 3, 4, 6, 8)

CONTEXTS = (1024, 4096, 16384)

CHUNKS = (512, 1024, 2048, 4096, 8192)
"""Rows of a step with prompts in it."""

PROMPTS = (512, 1024, 2048, 4096, 8192)

TOKEN_PROBES = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)


MOST_APART = 0.99
"""Widest band: beyond it a pass could take no time."""

END_TO_END = 0.08
"""Least band, between the median errors of TPOT over published end-to-end runs: 5.8% with what engines add
fitted to the same models, 11.5% to others (docs/validation.md). Engines may agree on kernels and still be off
by as much together."""


class PassTimes(Protocol):
    """What a pass takes: measured kernels, or a formula."""

    def operations_s(self, rows: int) -> float:
        """Seconds of everything but attention at so many rows."""

    def attention_s(self, requests: int, context: int, each: int = 1) -> float:
        """Seconds of attention over requests of such a context, ``each`` rows of every one."""

    def table_s(self, rows: int) -> float:
        """Of the operations, the output matrix."""

    def prefill_s(self, tokens: int) -> float:
        """Seconds in which one prompt is prefilled alone."""


class _OfEngine:
    """Measured kernels of one engine; each size is looked up once."""

    def __init__(self, tables: KernelTables, engine: Engine) -> None:
        self.operations_s = cache(partial(tables.operations_s, engine))
        self.table_s = cache(partial(tables.table_s, engine))
        self.prefill_s = cache(partial(tables.prefill_s, engine))
        self._attention_s = cache(partial(tables.attention_s, engine))
        self._latent = tables.model.latent is not None

    def attention_s(self, requests: int, context: int, each: int = 1) -> float:
        return self._attention_s(requests, context, each if self._latent else 1)


def kernel_profile(
    layout: Layout,
    drafters: Sequence[Drafter] = (),
    *,
    engine: Engine | None = None,
    setting: Setting | None = None,
) -> Profile:
    """Compose a profile from measured kernels; its provenance names tables, version, engine, gates and band.

    Raises ``BadInputError`` as ``KernelTables`` does and where no engine's table passes the gates.
    """
    served = setting or Setting(attention_over=layout.dp, experts_over=layout.ep)
    tables = KernelTables(layout.model, layout.gpu, layout.gpus, layout.precision, served)
    gates = tables.gates()
    used = chosen(gates, engine)
    other = "" if engine in (None, used) else f"{engine} was asked for, {used} stands in"
    return composed(layout, tables, gates, used, drafters, more=other)


def composed(
    layout: Layout,
    tables: KernelTables,
    gates: Sequence[Gate],
    used: Engine,
    drafters: Sequence[Drafter] = (),
    *,
    more: str = "",
) -> Profile:
    """Compose a profile from the tables of one engine, whatever its gate says. more: to be noted."""
    width = min(max(band(tables, gates), END_TO_END), MOST_APART)
    missing = [f"{name} has none ({why})" for name, why in tables.missing.items()]
    said = "; ".join(
        [*(gate.line for gate in gates), *missing, *tables.stands_in(used), *filter(None, [more])]
    )
    source = (
        f"aiconfigurator-core {tables_version()} (Apache-2.0), tables of {used} on {layout.gpu.kernel_tables}"
    )
    made = _profile(layout, drafters, _OfEngine(tables, used), "kernels", source, said, width, used)
    if tables.setting.caches_small(used, layout.precision):
        return made.model_copy(update={"kv_tokens": 2 * layout.kv_tokens})
    return made


def formula_profile(layout: Layout, drafters: Sequence[Drafter] = ()) -> Profile:
    """Make a profile from the formula."""
    times = FormulaTimes(layout)
    said = f"nine in ten passes lie within {times.band:.0%} of measured kernels (docs/validation.md)"
    source = "formula fitted to the kernels of Qwen3-8B on H200"
    return _profile(layout, drafters, times, "modelled", source, said, times.band, "any engine")


def _profile(
    layout: Layout,
    drafters: Sequence[Drafter],
    times: PassTimes,
    kind: Literal["kernels", "modelled"],
    source: str,
    said: str,
    width: float,
    engine: str,
) -> Profile:
    model, gpu = layout.model, layout.gpu
    fit = fit_cells(times, latent=model.latent is not None, groups=layout.dp)
    error = fit.held_out
    shown = f"held-out error: median {error.median:.1%}, p90 {error.p90:.1%}, max {error.max:.1%}"
    prefill = prefill_s_per_token(times, fit, layout.dp)
    step = rounded(AdditiveSpec.of(fit.cost).model_copy(update={"prefill_s_per_token": prefill}))
    priced = {each.name: rounded(draft_spec(times, model.layers, each, layout.dp)) for each in drafters}
    short = slug(model.name.split("/")[-1])
    return Profile(
        name=f"{kind}/{gpu.name}/{short}-{layout.label}-{layout.precision}",
        title=f"{model.name} in {layout.precision} on {layout.gpus} x {gpu.title}, "
        f"{_widths(layout)}{engine}",
        provenance=Provenance(
            kind=kind, source=source, date="2026-11-25",
            device=gpu.title, model=model.name,
            draft="+".join(drafter.name for drafter in drafters) or None, notes=f"{said}; {shown}",
        ),
        step=step,
        replica_gpus=layout.gpus,
        drafters=priced or None,
        kv_tokens=layout.kv_tokens,
        prefill_tokens_per_s=round(max(tokens / times.prefill_s(tokens) for tokens in PROMPTS), 1),
        step_time_band=round(width, 4),
        contexts_to=CONTEXTS[-1],
    )  # fmt: skip


def _widths(layout: Layout) -> str:
    return f"{layout.label}, " if layout.dp * layout.ep > 1 else ""


_Spec = TypeVar("_Spec", AdditiveSpec, DraftSpec)


def rounded(spec: _Spec) -> _Spec:
    """Round every number to six digits: more would only fill the file."""

    def short(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(short(each) for each in value)
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return spec.model_copy(update={name: short(value) for name, value in spec})


def cells(times: PassTimes, groups: int = 1) -> Iterator[tuple[int, int, int, int, float]]:
    """Yield requests, rows, context tokens of the batch, rows of prompts and seconds, for every size.

    groups: with attention of their own; every size is one of each, as fewer requests take as long.
    """
    for requests in (groups * each for each in REQUESTS):
        for context in CONTEXTS:
            for each in ROWS_EACH:
                rows, attention = requests * each, times.attention_s(requests, context, each)
                yield requests, rows, requests * context, 0, times.operations_s(rows) + attention
    for requests in (groups, 16 * groups):
        for rows in (groups * each for each in CHUNKS):
            seconds = prompt_rows_s(times, rows, groups) + times.attention_s(requests, CONTEXTS[0])
            yield requests, rows, requests * CONTEXTS[0], rows - requests, seconds


def prompt_rows_s(times: PassTimes, rows: int, groups: int = 1) -> float:
    """Seconds of rows of prompts, without attention to what was cached before.

    Operations at so many rows; no more than prompts of that length take, one in each group, attention
    included. A latent is expanded to keys and values for prompts and absorbed into queries for decoding,
    which is dearer by row.
    """
    return min(times.operations_s(rows), groups * times.prefill_s(rows // groups))


_COLUMNS = ["requests", "batch_tokens", "context_tokens", "prefill_tokens", "step_time_s"]


def fit_cells(times: PassTimes, *, latent: bool = False, groups: int = 1) -> AdditiveFit:
    """Fit the additive cost to passes of every size; with latent attention rows multiply contexts."""
    terms: tuple[Term, ...] = ("context", "row_context") if latent else ("context",)
    import pandas as pd

    table = pd.DataFrame(list(cells(times, groups)), columns=_COLUMNS)
    requests, tokens = (groups * np.array(probes) for probes in (REQUESTS, TOKEN_PROBES))
    return fit_additive(table, request_probes=requests, token_probes=tokens, terms=terms)


def prefill_s_per_token(times: PassTimes, fit: AdditiveFit, groups: int = 1) -> float:
    """Return what a prompt's token costs beyond its row: attention within the prompt, mean of ``PROMPTS``."""
    beyond = []
    for tokens in PROMPTS:
        rows = groups * tokens
        priced_s = fit.cost.step_time_s(groups, rows, rows, rows)
        beyond.append((groups * times.prefill_s(tokens) - priced_s) / rows)
    return max(float(np.mean(beyond)), 0.0)


def draft_spec(times: PassTimes, layers: int, drafter: Drafter, groups: int = 1) -> DraftSpec:
    """Price a drafter: its share of the target's layers over its rows, and the output matrix once.

    Attention to a window costs what the target's costs at contexts of that length, whatever the context.
    """
    share, sizes = drafter.layers / layers, [groups * requests for requests in REQUESTS]
    contexts = np.array(CONTEXTS, dtype=np.float64)
    attention = np.array([times.attention_s(sizes[-1], context) for context in CONTEXTS])
    slope = float(np.polyfit(contexts * sizes[-1], attention, 1)[0]) * share
    slope = slope if drafter.window is None else 0.0
    nearest = min(CONTEXTS[0], drafter.window or CONTEXTS[0])

    def pass_s(requests: int) -> float:
        rows = requests * drafter.rows
        table = times.table_s(rows)
        shortest = share * times.attention_s(requests, nearest) - slope * requests * nearest
        return share * (times.operations_s(rows) - table) + table + max(shortest, 0.0)

    passes = np.maximum.accumulate([pass_s(requests) for requests in sizes])
    semi = drafter.structure == "semi-autoregressive"
    return DraftSpec(
        structure=drafter.structure, block_size=drafter.block,
        requests=tuple(float(requests) for requests in sizes), pass_s=tuple(passes.tolist()),
        sequential_s=(SEQUENTIAL_TURN_S,) * len(sizes) if semi else None,
        context_s_per_token=max(slope, 0.0),
    )  # fmt: skip
