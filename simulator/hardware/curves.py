"""A profile for a model on a GPU: composed from measured kernels, or from a formula; always labelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from simulator.core.files import slug
from simulator.core.provenance import Provenance
from simulator.cost.fit import AdditiveFit, fit_additive
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.hardware.drafters import SEQUENTIAL_TURN_S, Drafter
from simulator.hardware.formula import FormulaTimes
from simulator.hardware.kernels import Engine, KernelTables, band, chosen, small_cache, tables_version
from simulator.hardware.memory import Layout

REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

ROWS_EACH = (1, 2, 3, 4, 6, 8)

CONTEXTS = (1024, 4096, 16384)

CHUNKS = (512, 1024, 2048, 4096, 8192)
"""Rows of a step with prompts in it."""

PROMPTS = (512, 1024, 2048, 4096, 8192)

TOKEN_PROBES = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)


END_TO_END = 0.11
"""Median error of TPOT over published end-to-end runs (docs/validation.md): engines
may agree on kernels and still be off by as much together."""


class PassTimes(Protocol):
    """What a pass takes: measured kernels, or a formula."""

    def operations_s(self, rows: int) -> float:
        """Seconds of everything but attention at so many rows."""

    def attention_s(self, requests: int, context: int) -> float:
        """Seconds of attention over requests of such a context, the rows of each together."""

    def table_s(self, rows: int) -> float:
        """Of the operations, the output matrix."""

    def prefill_s(self, tokens: int) -> float:
        """Seconds in which one prompt is prefilled alone."""


class _OfEngine:
    """Measured kernels of one engine."""

    def __init__(self, tables: KernelTables, engine: Engine) -> None:
        self.tables, self.engine = tables, engine

    def operations_s(self, rows: int) -> float:
        return self.tables.operations_s(self.engine, rows)

    def attention_s(self, requests: int, context: int) -> float:
        return self.tables.attention_s(self.engine, requests, context)

    def table_s(self, rows: int) -> float:
        return self.tables.table_s(self.engine, rows)

    def prefill_s(self, tokens: int) -> float:
        return self.tables.prefill_s(self.engine, tokens)


def kernel_profile(
    layout: Layout, drafters: Sequence[Drafter] = (), *, engine: Engine | None = None
) -> Profile:
    """Compose a profile from measured kernels; its provenance names tables, version, engine, gates and band.

    Raises ``BadInputError`` as ``KernelTables`` does and where no engine's table passes the gates.
    """
    tables = KernelTables(layout.model, layout.gpu, layout.gpus, layout.precision)
    gates = tables.gates()
    used = chosen(gates, engine)
    width = max(band(tables, gates), END_TO_END)
    missing = [f"{name} has none ({why})" for name, why in tables.missing.items()]
    other = "" if engine in (None, used) else f"{engine} was asked for; {used} stands in"
    said = "; ".join(filter(None, [*(gate.line for gate in gates), *missing, other]))
    source = (
        f"aiconfigurator-core {tables_version()} (Apache-2.0), tables of {used} on {layout.gpu.kernel_tables}"
    )
    made = _profile(layout, drafters, _OfEngine(tables, used), "kernels", source, said, width, used)
    if small_cache(used, layout.precision):
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
    fit = fit_cells(times)
    error = fit.held_out
    shown = f"held-out error: median {error.median:.1%}, p90 {error.p90:.1%}, max {error.max:.1%}"
    prefill = prefill_s_per_token(times, fit)
    step = rounded(AdditiveSpec.of(fit.cost).model_copy(update={"prefill_s_per_token": prefill}))
    short = slug(model.name.split("/")[-1])
    return Profile(
        name=f"{kind}/{gpu.name}/{short}-tp{layout.gpus}-{layout.precision}",
        title=f"{model.name} in {layout.precision} on {layout.gpus} x {gpu.title}, {engine}",
        provenance=Provenance(
            kind=kind, source=source, date="2026-11-25",
            device=gpu.title, model=model.name,
            draft="+".join(drafter.name for drafter in drafters) or None, notes=f"{said}; {shown}",
        ),
        step=step,
        replica_gpus=layout.gpus,
        drafters={each.name: rounded(draft_spec(times, model.layers, each)) for each in drafters} or None,
        kv_tokens=layout.kv_tokens,
        prefill_tokens_per_s=round(max(tokens / times.prefill_s(tokens) for tokens in PROMPTS), 1),
        step_time_band=round(width, 4),
    )  # fmt: skip


_Spec = TypeVar("_Spec", AdditiveSpec, DraftSpec)


def rounded(spec: _Spec) -> _Spec:
    """Round every number to six digits: more would only fill the file."""

    def short(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(short(each) for each in value)
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return spec.model_copy(update={name: short(value) for name, value in spec})


def cells(times: PassTimes) -> Iterator[tuple[int, int, int, float]]:
    """Yield requests, rows, context tokens of the batch and seconds of passes of every size."""
    for requests in REQUESTS:
        for context in CONTEXTS:
            attention = times.attention_s(requests, context)
            for each in ROWS_EACH:
                rows = requests * each
                yield requests, rows, requests * context, times.operations_s(rows) + attention
    for requests in (1, 16):
        for rows in CHUNKS:
            attention = times.attention_s(requests, CONTEXTS[0])
            yield requests, rows, requests * CONTEXTS[0], times.operations_s(rows) + attention


def fit_cells(times: PassTimes) -> AdditiveFit:
    """Fit the additive cost to passes of every size."""
    table = pd.DataFrame(
        list(cells(times)), columns=["requests", "batch_tokens", "context_tokens", "step_time_s"]
    )
    return fit_additive(table, request_probes=REQUESTS, token_probes=TOKEN_PROBES, terms=("context",))


def prefill_s_per_token(times: PassTimes, fit: AdditiveFit) -> float:
    """Return what a prompt's token costs beyond its row: attention within the prompt, mean of ``PROMPTS``."""
    beyond = [
        (times.prefill_s(tokens) - fit.cost.step_time_s(1, tokens, tokens)) / tokens for tokens in PROMPTS
    ]
    return max(float(np.mean(beyond)), 0.0)


def draft_spec(times: PassTimes, layers: int, drafter: Drafter) -> DraftSpec:
    """Price a drafter: its share of the target's layers over its rows, and the output matrix once."""
    share = drafter.layers / layers
    contexts = np.array(CONTEXTS, dtype=np.float64)
    attention = np.array([times.attention_s(REQUESTS[-1], context) for context in CONTEXTS])
    slope = float(np.polyfit(contexts * REQUESTS[-1], attention, 1)[0]) * share

    def pass_s(requests: int) -> float:
        rows = requests * drafter.rows
        table = times.table_s(rows)
        shortest = share * times.attention_s(requests, CONTEXTS[0]) - slope * requests * CONTEXTS[0]
        return share * (times.operations_s(rows) - table) + table + max(shortest, 0.0)

    passes = np.maximum.accumulate([pass_s(requests) for requests in REQUESTS])
    semi = drafter.structure == "semi-autoregressive"
    return DraftSpec(
        structure=drafter.structure, block_size=drafter.block,
        requests=tuple(float(requests) for requests in REQUESTS), pass_s=tuple(passes.tolist()),
        sequential_s=(SEQUENTIAL_TURN_S,) * len(REQUESTS) if semi else None,
        context_s_per_token=max(slope, 0.0),
    )  # fmt: skip
