"""Step costs composed from public tables of measured kernels (aiconfigurator, Apache-2.0).

A verification pass of R requests with q rows each runs every operation but attention at R*q rows, and
attention once per request: the rows of a request share its keys and values as the heads of a group do. The
tables' own answer for speculation reads the cache once per row, which is up to 6.7 times too dear at long
contexts. With latent attention the rows share the read too, but the products with it are what takes the time
where there are many heads: q rows of h heads are looked up as q*h heads.

Tables of three engines describe the same hardware. One that stands apart from the others, falls as rows are
added, or lies below what memory allows is refused, and named.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.hardware.gpus import Gpu
from simulator.hardware.models import WEIGHT_BYTES, ModelShape, Precision
from simulator.hardware.steps.kernel_modes import (
    ENGINES,
    PACKAGE,
    Engine,
    Setting,
    described,
    modes,
    rows_stand_in,
)

GATE_ROWS = tuple(2**power for power in range(12))
"""Rows at which engines are compared: 1 to 2,048."""

APART = 0.25
"""An engine whose operations deviate by more than this share from the engines' median is refused."""

FALLS = 0.10
"""An engine whose operations take so much less time with more rows is refused."""

READS = 5.0
"""An engine whose attention takes longer than so many reads of the cache is refused. A choice: good kernels
take 1.1 to 3.2 of them, SGLang's on Hopper with a latent in 8 bits 16."""

LOADED = (64, 16384)
"""Requests and context at which attention is held against the bandwidth: both fill a GPU."""

SHORT = 128
"""Tokens of context at which operations are asked for: attention hardly counts there."""

_KEPT: dict[tuple[str | None, Engine], Any] = {}
"""The last handle of each GPU and engine. The library drops a GPU's tables, 20 to 100 MB, with the last
handle on them, and reads them anew for the next model, which takes 1 to 5 s."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One engine's table against the others. deviation, fall: the largest over rows, as shares.

    floor: smallest ratio of its time to the time that reading the weights takes. refused: why, or None.
    reads: attention at ``LOADED`` in reads of the cache at the peak bandwidth.
    """

    engine: Engine
    deviation: float
    fall: float
    floor: float
    refused: str | None
    reads: float = 1.0

    @property
    def only_apart(self) -> bool:
        """Whether nothing is held against it but that others differ."""
        return self.fall <= FALLS and self.floor >= 1 and self.reads <= READS

    @property
    def line(self) -> str:
        """Both the numbers and the verdict."""
        verdict = "used" if self.refused is None else f"refused, {self.refused}"
        return f"{self.engine} {self.deviation:+.0%} of the median at most, {verdict}"


class KernelTables:
    """Kernel times of one model on one layout, by engine; a table that is missing is left out.

    gpus: of a replica. Raises ``BadInputError`` where the extra is not installed, where the GPU has no
    tables or no unit for the precision, and where no engine has tables for the model.
    """

    def __init__(
        self, model: ModelShape, gpu: Gpu, gpus: int, precision: Precision, setting: Setting | None = None
    ) -> None:
        self.model, self.gpu, self.gpus, self.precision = model, gpu, gpus, precision
        self.setting = setting or Setting()
        if gpu.kernel_tables is None:
            raise BadInputError("has no tables of measured kernels", source="gpu", value=gpu.name)
        if precision == "fp4" and model.native != "fp4" and "fp4" not in gpu.flop_per_s:
            raise BadInputError(
                "has no matrix unit for fp4", source="gpu", value=gpu.name, remedy="bf16 or fp8"
            )
        self.handles: dict[Engine, Any] = {}
        self.missing: dict[Engine, str] = {}
        self._of_more_heads: dict[tuple[Engine, int], Any] = {}
        for engine in ENGINES:
            found = self._compiled(engine, gpus // self.setting.attention_over)
            if isinstance(found, str):
                self.missing[engine] = found
            else:
                self.handles[engine] = found
        if not self.handles:
            raise BadInputError(
                f"has no measured kernels on {gpu.title}: {next(iter(self.missing.values()))}",
                source="model", value=model.name,
            )  # fmt: skip

    def _compiled(self, engine: Engine, tensor: int) -> Any:
        """Return a handle whose attention is split over so many GPUs, or why there is none."""
        asked = modes(self.model, self.gpu, self.gpus, engine, self.precision, self.setting)
        if tensor != asked["tp_size"]:  # asked for its attention alone
            asked |= {"tp_size": tensor}
            if self.model.experts is not None:
                asked |= {"attention_dp_size": self.gpus // tensor}
        compile_handle = _library()
        with TemporaryDirectory(prefix="dspark-model-") as folder:
            name = described(self.model, self.precision, Path(folder))
            try:
                handle = compile_handle(name, self.gpu.kernel_tables, engine, **asked)
                handle.decode_step_per_op(1, SHORT, 2)
            except Exception as error:  # the tables' own errors have no common base
                return str(error).split("{")[0].strip()[:120]
        _KEPT[self.gpu.kernel_tables, engine] = handle
        return handle

    def operations_s(self, engine: Engine, rows: int) -> float:
        """Seconds of everything but attention at so many rows; the projections of a latent included."""
        latent = self.model.latent is not None
        return sum(
            ms for name, ms in self._decode(engine, self._each(rows), SHORT)
            if latent or not _is_attention(name)
        ) / 1e3  # fmt: skip

    def table_s(self, engine: Engine, rows: int) -> float:
        """Of that, the output matrix: what a drafter of any depth runs too."""
        return sum(ms for name, ms in self._decode(engine, self._each(rows), SHORT) if "logits" in name) / 1e3

    def attention_s(self, engine: Engine, requests: int, context: int, each: int = 1) -> float:
        """Seconds of attention over so many requests of such a context, ``each`` rows of every one."""
        asked = self._each(requests)
        if self.model.latent is not None:
            return self._latent_s(engine, asked, context, each)
        return _attention_s(self.handles[engine], asked, context)

    def _latent_s(self, engine: Engine, requests: int, context: int, each: int) -> float:
        """Seconds that a context adds to blocks whose projections are counted as operations.

        The tables know up to all heads of the model on one GPU; beyond, their last slope goes on.
        """
        split = self.gpus // self.setting.attention_over
        heads = self.model.heads / split
        at, took = [heads], [self._added_s(self.handles[engine], requests, context)]
        while split > 1 and at[-1] < heads * each:
            split //= 2
            handle = self._with_heads(engine, split)
            if isinstance(handle, str):
                break
            at.append(self.model.heads / split)
            took.append(max(self._added_s(handle, requests, context), took[-1]))
        if heads * each <= at[-1]:
            return float(np.interp(heads * each, at, took))
        slope = (took[-1] - took[-2]) / (at[-1] - at[-2]) if len(at) > 1 else took[-1] / at[-1]
        return float(took[-1] + slope * (heads * each - at[-1]))

    def _with_heads(self, engine: Engine, split: int) -> Any:
        key = (engine, split)
        if key not in self._of_more_heads:
            self._of_more_heads[key] = self._compiled(engine, split)
        return self._of_more_heads[key]

    @staticmethod
    def _added_s(handle: Any, requests: int, context: int) -> float:
        whole, least = (_attention_s(handle, requests, tokens) for tokens in (max(context, SHORT), SHORT))
        return max(whole - least, 0.0)

    def prefill_s(self, engine: Engine, tokens: int) -> float:
        """Seconds in which one prompt is prefilled, by each group of GPUs that has attention of its own."""
        try:
            took_ms = self.handles[engine].predict_prefill_latency(1, tokens)
        except Exception as error:  # the tables' own errors have no common base
            raise BadInputError(
                f"has no kernels of {engine} for prompts: {str(error)[:120]}", source="model",
                value=self.model.name,
            ) from error  # fmt: skip
        lender = self._lender(engine)
        if lender is not None:
            took_ms += self._experts_ms(lender, tokens) - self._experts_ms(engine, tokens)
        return float(took_ms) / 1e3 / self.setting.attention_over

    def _each(self, many: int) -> int:
        """Of so many rows or requests, those of a group of GPUs that has attention of its own."""
        return -(-many // self.setting.attention_over)

    def _decode(self, engine: Engine, rows: int, context: int) -> list[tuple[str, float]]:
        found = [(each[0], each[1]) for each in self.handles[engine].decode_step_per_op(rows, context, 2)]
        lender = self._lender(engine)
        if lender is None:
            return found
        lent_ms = self._experts_ms(lender, rows)
        return [(name, lent_ms if name in _EXPERTS else ms) for name, ms in found]

    def _lender(self, engine: Engine) -> Engine | None:
        """Whose experts stand in for an engine's own on Blackwell; None where its own table has them.

        vLLM's with MXFP4 are TensorRT-LLM's, rows in 8 bits: vLLM's recipe for gpt-oss and InferenceX's
        launch script set ``VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8``; vLLM's own table has rows in 16 bits.
        TensorRT-LLM's beside latent attention are SGLang's: InferenceX's launch scripts of DeepSeek set
        ``moe_config.backend: TRTLLM`` unless attention is data-parallel, and FlashInfer carries those kernels
        (``sglang_flashinfer_trtllm_moe``); TensorRT-LLM's table has DeepGEMM's in 8 bits and CUTLASS's in 4
        beyond small batches.
        """
        if "fp4" not in self.gpu.flop_per_s:
            return None
        if engine == "vllm" and self.model.native == "fp4" and "trtllm" in self.handles:
            return "trtllm"
        quantised = self.model.latent is not None and self.precision != "bf16"
        if engine == "trtllm" and quantised and self.setting.attention_over == 1 and "sglang" in self.handles:
            return "sglang"
        return None

    def stands_in(self, engine: Engine) -> list[str]:
        """Say what of an engine's times is another's, or another mode's."""
        said = []
        if rows_stand_in(self.model, engine, self.precision, self.setting.scales):
            said.append(f"products scaled by rows stand in for {engine}'s block-scaled ones")
        lender = self._lender(engine)
        if lender is not None:
            said.append(f"{lender}'s experts stand in for {engine}'s, which runs such kernels on Blackwell")
        return said

    def _experts_ms(self, engine: Engine, rows: int) -> float:
        found = self.handles[engine].decode_step_per_op(rows, SHORT, 2)
        return sum(float(each[1]) for each in found if each[0] in _EXPERTS)

    def gates(self) -> tuple[Gate, ...]:
        """Compare the engines over ``GATE_ROWS``, and each with the time that reading its weights takes."""
        times = {
            engine: np.array([self.operations_s(engine, rows) for rows in GATE_ROWS])
            for engine in self.handles
        }
        median = np.median(np.stack(list(times.values())), axis=0)
        floor = np.array([self.floor_s(rows) for rows in GATE_ROWS])
        return tuple(gate(engine, each, median, floor, self.reads(engine)) for engine, each in times.items())

    def reads(self, engine: Engine) -> float:
        """Attention at ``LOADED`` over the time of reading its keys and values once at the peak bandwidth."""
        requests, context = LOADED
        small = self.setting.caches_small(engine, self.precision)
        shards = self.gpus // self.setting.attention_over
        kept = self.model.kv_bytes_per_token(1.0 if small else 2.0, shards=shards, context=context)
        once = self._each(requests) * context * kept / self.gpu.bandwidth_bytes_per_s
        return self.attention_s(engine, requests, context) / once

    def floor_s(self, rows: int) -> float:
        """Seconds in which the weights that so many rows meet are read once, at the peak bandwidth."""
        model, each = self.model, WEIGHT_BYTES[self.precision]
        dense = WEIGHT_BYTES["bf16"] if self.precision == "fp4" and model.experts else each
        read = model.dense_parameters * dense * self.setting.attention_over
        if model.experts is not None:
            share = model.experts.touched(rows) / model.experts.count
            read += model.routed_parameters * each * share
        return read / self.gpus / self.gpu.bandwidth_bytes_per_s


def chosen(gates: Sequence[Gate], asked: Engine | None) -> Engine:
    """Choose the engine asked for where it passes, else the passing one nearest to the median.

    Where none passes because all stand apart from each other, nobody can say which of them is wrong: the
    same choice is then made among them, and ``band`` is as wide as they are apart. Raises ``BadInputError``
    with every gate where nothing is left.
    """
    usable = [gate for gate in gates if gate.refused is None] or [gate for gate in gates if gate.only_apart]
    if not usable:
        said = "; ".join(gate.line for gate in gates)
        raise BadInputError(f"fails the gates of every engine: {said}", source="kernel tables")
    if asked is not None and any(gate.engine == asked for gate in usable):
        return asked
    return min(usable, key=lambda gate: abs(gate.deviation)).engine


def band(tables: KernelTables, gates: Sequence[Gate]) -> float:
    """By how much passing engines differ: half the spread of their operations over the median, mean of rows.

    With one engine alone nothing is known; then it is ``APART``, what a gate would let pass. Where none
    passes it is the largest deviation of those that stand apart, or of all where more is held against each.
    """
    passing = [gate.engine for gate in gates if gate.refused is None]
    if not passing:
        apart = [gate for gate in gates if gate.only_apart] or gates
        return max(abs(gate.deviation) for gate in apart)
    if len(passing) < 2:
        return APART
    times = np.array([[tables.operations_s(engine, rows) for rows in GATE_ROWS] for engine in passing])
    spread = (times.max(axis=0) - times.min(axis=0)) / np.median(times, axis=0)
    return float(spread.mean() / 2)


def gate(engine: Engine, times: Floats, median: Floats, floor: Floats, reads: float = 1.0) -> Gate:
    """Judge one engine: its times, the engines' median and the time of reading the weights, by rows.

    reads: its attention in reads of the cache.
    """
    ratio = times / median - 1
    deviation = float(ratio[np.abs(ratio).argmax()])
    highest = np.maximum.accumulate(times)
    fall = float((1 - times / highest).max())
    lowest = float((times / floor).min())
    refused = None
    if reads > READS:
        refused = f"its attention takes {reads:.0f} reads of the cache"
    elif abs(deviation) > APART:
        refused = f"it stands apart by more than {APART:.0%}"
    elif fall > FALLS:
        refused = f"it falls by {fall:.0%} as rows are added"
    elif lowest < 1:
        refused = f"it takes {lowest:.2f} of the time that reading the weights takes"
    return Gate(engine, deviation, fall, lowest, refused, reads)


_EXPERTS = ("generation_moe", "generation_moe_overlap")
"""What the tables call the products of experts; the latter with what runs beside them."""

_ATTENTION = ("attention", "mla_block", "generation_mla")
"""How the tables' names of attention end."""


def _is_attention(name: str) -> bool:
    return name.endswith(_ATTENTION)


def _attention_s(handle: Any, requests: int, context: int) -> float:
    found = handle.decode_step_per_op(requests, context, 2)
    return sum(float(each[1]) for each in found if _is_attention(each[0])) / 1e3


def tables_version() -> str:
    """Version of the tables."""
    return version("aiconfigurator-core")


def _library() -> Any:
    try:
        handle = import_module(f"{PACKAGE}.sdk.engine").EngineHandle
    except ModuleNotFoundError as error:
        raise BadInputError(
            "needs the tables of measured kernels", source="kernels", value=error.name,
            remedy="pip install 'dspark-simulator[silicon]', or take a curve that is shipped",
        ) from error  # fmt: skip
    logging.getLogger(PACKAGE).setLevel(logging.CRITICAL)  # it tells of each table it falls back to
    return handle.compile
