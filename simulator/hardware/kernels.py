"""Step costs composed from public tables of measured kernels (aiconfigurator, Apache-2.0).

A verification pass of R requests with q rows each runs every operation but attention at R*q rows, and
attention once per request: the rows of a request share its keys and values as the heads of a group do. The
tables' own answer for speculation reads the cache once per row, which is up to 6.7 times too dear at long
contexts.

Tables of three engines describe the same hardware. One that stands apart from the others, falls as rows are
added, or lies below what memory allows is refused, and named.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.files import write_json
from simulator.hardware.gpus import Gpu
from simulator.hardware.models import WEIGHT_BYTES, ModelShape, Precision

Engine = Literal["vllm", "sglang", "trtllm"]

ENGINES: tuple[Engine, ...] = ("vllm", "sglang", "trtllm")

GATE_ROWS = tuple(2**power for power in range(12))
"""Rows at which engines are compared: 1 to 2,048."""

APART = 0.25
"""An engine whose operations deviate by more than this share from the engines' median is refused."""

FALLS = 0.10
"""An engine whose operations take so much less time with more rows is refused."""

_PACKAGE = "aiconfigurator_core"

_MODES: Mapping[Precision, str | None] = {"bf16": "bfloat16", "fp8": "fp8", "fp4": None}
"""Quantisation of matrix products as the tables call it; None leaves it to the published checkpoint."""

_NAMES = {"meta-llama/Llama-3.1": "meta-llama/Meta-Llama-3.1"}
"""Models that the tables know by another name: how ours begins, and theirs."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One engine's table against the others. deviation, fall: the largest over rows, as shares.

    floor: smallest ratio of its time to the time that reading the weights takes. refused: why, or None.
    """

    engine: Engine
    deviation: float
    fall: float
    floor: float
    refused: str | None

    @property
    def line(self) -> str:
        """Both the numbers and the verdict."""
        verdict = "used" if self.refused is None else f"refused, {self.refused}"
        return f"{self.engine} {self.deviation:+.0%} of the median at most, {verdict}"


class KernelTables:
    """Kernel times of one model on one layout, by engine; a table that is missing is left out.

    Raises ``BadInputError`` where the extra is not installed, where the GPU has no tables, where the model's
    attention is not composed here, and where no engine has tables for it.
    """

    def __init__(self, model: ModelShape, gpu: Gpu, tp: int, precision: Precision) -> None:
        self.model, self.gpu, self.tp, self.precision = model, gpu, tp, precision
        if gpu.kernel_tables is None:
            raise BadInputError("has no tables of measured kernels", source="gpu", value=gpu.name)
        if model.latent is not None:
            raise BadInputError(
                "has latent attention, whose rows do not share one read of the cache on every GPU: its "
                "kernels are not composed", source="model", value=model.name,
            )  # fmt: skip
        if precision == "fp4" and model.native != "fp4":
            raise BadInputError(
                f"has no published checkpoint in fp4 ({model.native} is native)", source="model",
                value=model.name, remedy="bf16 or fp8",
            )  # fmt: skip
        compile_handle = _library()
        with TemporaryDirectory(prefix="dspark-model-") as folder:
            self._compile(compile_handle, _described(model, Path(folder)))
        if not self.handles:
            raise BadInputError(
                f"has no measured kernels on {gpu.title}: {next(iter(self.missing.values()))}",
                source="model", value=model.name,
            )  # fmt: skip

    def _compile(self, compile_handle: Any, described: str) -> None:
        self.handles: dict[Engine, Any] = {}
        self.missing: dict[Engine, str] = {}
        for engine in ENGINES:
            try:
                handle = compile_handle(described, self.gpu.kernel_tables, engine, **self._modes(engine))
                handle.decode_step_per_op(1, 128, 2)
                self.handles[engine] = handle
            except Exception as error:  # the tables' own errors have no common base
                self.missing[engine] = str(error).split("{")[0].strip()[:120]

    def _modes(self, engine: Engine) -> dict[str, Any]:
        mode = _MODES[self.precision]
        modes: dict[str, Any] = {"tp_size": self.tp}
        if mode is not None:
            modes["gemm_quant_mode"] = mode
        if small_cache(engine, self.precision):
            modes["kvcache_quant_mode"] = "fp8"
        if self.model.experts is not None:
            modes |= {"moe_tp_size": self.tp, "moe_ep_size": 1}
            if mode is not None:
                modes["moe_quant_mode"] = mode
        return modes

    def operations_s(self, engine: Engine, rows: int) -> float:
        """Seconds of everything but attention at so many rows."""
        return sum(ms for name, ms in self._decode(engine, rows, 128) if not _is_attention(name)) / 1e3

    def table_s(self, engine: Engine, rows: int) -> float:
        """Of that, the output matrix: what a drafter of any depth runs too."""
        return sum(ms for name, ms in self._decode(engine, rows, 128) if "logits" in name) / 1e3

    def attention_s(self, engine: Engine, requests: int, context: int) -> float:
        """Seconds of attention over so many requests of such a context, one row each."""
        return sum(ms for name, ms in self._decode(engine, requests, context) if _is_attention(name)) / 1e3

    def prefill_s(self, engine: Engine, tokens: int) -> float:
        """Seconds in which one prompt is prefilled."""
        return float(self.handles[engine].predict_prefill_latency(1, tokens)) / 1e3

    def _decode(self, engine: Engine, rows: int, context: int) -> list[tuple[str, float]]:
        return [(each[0], each[1]) for each in self.handles[engine].decode_step_per_op(rows, context, 2)]

    def gates(self) -> tuple[Gate, ...]:
        """Compare the engines over ``GATE_ROWS``, and each with the time that reading its weights takes."""
        times = {
            engine: np.array([self.operations_s(engine, rows) for rows in GATE_ROWS])
            for engine in self.handles
        }
        median = np.median(np.stack(list(times.values())), axis=0)
        floor = np.array([self.floor_s(rows) for rows in GATE_ROWS])
        return tuple(gate(engine, each, median, floor) for engine, each in times.items())

    def floor_s(self, rows: int) -> float:
        """Seconds in which the weights that so many rows meet are read once, at the peak bandwidth."""
        model, each = self.model, WEIGHT_BYTES[self.precision]
        dense = WEIGHT_BYTES["bf16"] if self.precision == "fp4" else each
        read = model.dense_parameters * dense
        if model.experts is not None:
            share = model.experts.touched(rows) / model.experts.count
            read += model.routed_parameters * each * share
        return read / self.tp / self.gpu.bandwidth_bytes_per_s


def small_cache(engine: Engine, precision: Precision) -> bool:
    """Whether keys and values take 8 bits: TensorRT-LLM's fp8 checkpoints bring such a cache along."""
    return engine == "trtllm" and precision == "fp8"


def chosen(gates: Sequence[Gate], asked: Engine | None) -> Engine:
    """Choose the engine asked for where it passes, else the passing one nearest to the median.

    Raises ``BadInputError`` with every gate where none passes.
    """
    passing = [gate for gate in gates if gate.refused is None]
    if not passing:
        said = "; ".join(gate.line for gate in gates)
        raise BadInputError(f"fails the gates of every engine: {said}", source="kernel tables")
    if asked is not None and any(gate.engine == asked for gate in passing):
        return asked
    return min(passing, key=lambda gate: abs(gate.deviation)).engine


def band(tables: KernelTables, gates: Sequence[Gate]) -> float:
    """By how much passing engines differ: half the spread of their operations over the median, mean of rows.

    With one engine alone nothing is known; then it is ``APART``, what a gate would let pass.
    """
    passing = [gate.engine for gate in gates if gate.refused is None]
    if len(passing) < 2:
        return APART
    times = np.array([[tables.operations_s(engine, rows) for rows in GATE_ROWS] for engine in passing])
    spread = (times.max(axis=0) - times.min(axis=0)) / np.median(times, axis=0)
    return float(spread.mean() / 2)


def gate(engine: Engine, times: Floats, median: Floats, floor: Floats) -> Gate:
    """Judge one engine: its times, the engines' median and the time of reading the weights, by rows."""
    ratio = times / median - 1
    deviation = float(ratio[np.abs(ratio).argmax()])
    highest = np.maximum.accumulate(times)
    fall = float((1 - times / highest).max())
    lowest = float((times / floor).min())
    refused = None
    if abs(deviation) > APART:
        refused = f"it stands apart by more than {APART:.0%}"
    elif fall > FALLS:
        refused = f"it falls by {fall:.0%} as rows are added"
    elif lowest < 1:
        refused = f"it takes {lowest:.2f} of the time that reading the weights takes"
    return Gate(engine, deviation, fall, lowest, refused)


def _is_attention(name: str) -> bool:
    return name.endswith("attention")


def _described(model: ModelShape, folder: Path) -> str:
    """Name the model as the tables do, or write its shape where they read it: nothing is fetched.

    Raises ``BadInputError`` for a shape that the tables do not know and that is no plain transformer's.
    """
    name = model.name
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    known = Path(str(import_module(_PACKAGE).__file__)).parent / "model_configs"
    if (known / f"{name.replace('/', '--')}_config.json").is_file():
        return name
    experts = model.experts
    if model.windowed_layers or (experts is not None and (experts.shared or experts.dense_layers)):
        raise BadInputError(
            "is not among the models of the tables, and has layers of several kinds", source="model",
            value=model.name,
        )  # fmt: skip
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": model.hidden,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads, "head_dim": model.head_width,
        "intermediate_size": model.intermediate, "vocab_size": model.vocabulary,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": model.tied,
        "hidden_act": "silu", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    if experts is not None:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
            "num_experts": experts.count, "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.intermediate,
        }  # fmt: skip
    write_json(folder / "config.json", config)
    return str(folder)


def tables_version() -> str:
    """Version of the tables."""
    return version("aiconfigurator-core")


def _library() -> Any:
    try:
        handle = import_module(f"{_PACKAGE}.sdk.engine").EngineHandle
    except ModuleNotFoundError as error:
        raise BadInputError(
            "needs the tables of measured kernels", source="kernels", value=error.name,
            remedy="pip install 'dspark-simulator[silicon]', or take a curve that is shipped",
        ) from error  # fmt: skip
    logging.getLogger(_PACKAGE).setLevel(logging.CRITICAL)  # it tells of each table it falls back to
    return handle.compile
