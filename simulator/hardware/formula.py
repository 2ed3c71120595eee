"""Step costs from a formula, for hardware whose kernels nobody has published.

A textbook roofline, the larger of bytes over bandwidth and operations over peak, is far too fast. Here both
count together where they are close (a norm of power 3), at efficiencies fitted on one model and one GPU, with
a fixed time for each layer. docs/validation.md has its error on all other models and GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.hardware.memory import Layout
from simulator.hardware.models import WEIGHT_BYTES

POWER = 3.0
"""Of the norm that joins memory and matrix time: at equal times the sum is 1.26 of either."""

ELEMENT_BYTES = 2.0
"""Activations and keys and values in 16 bits."""

TILE_ROWS = 64
"""Rows to which a matrix product of one expert is padded: the smallest tile of common kernels. A choice."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What the formula was fitted to.

    bandwidth, matrices, matrices_fp8, cache, links: shares of the data sheet's rates that are reached by
    weights, matrix products in 16 and in fewer bits, keys and values, and the all-reduce. layer_s,
    attention_s: fixed time of a layer and of its attention, seconds. A share above 1 is no fault: the norm
    counts some time twice.
    """

    bandwidth: float
    matrices: float
    matrices_fp8: float
    cache: float
    links: float
    layer_s: float
    attention_s: float


FITTED = Coefficients(
    bandwidth=1.022, matrices=0.798, matrices_fp8=0.542, cache=0.895, links=0.516, layer_s=50.7e-6,
    attention_s=8.97e-6,
)  # fmt: skip
"""Fitted to Qwen3-8B on H200, 1 to 8 GPUs, bf16 and fp8: ``python -m tools.fit_formula``, 2026-11-25."""


BANDS = {"dense": 0.20, "experts": 0.45}
"""Share by which a pass may be off: nine in ten passes of such models lie within (docs/validation.md)."""


@dataclass(frozen=True, slots=True)
class FormulaTimes:
    """Pass times of a model on a layout, as ``curves.PassTimes``.

    Weights in a precision that the GPU has no matrix unit for are read so and multiplied in 16 bits.
    """

    layout: Layout
    fitted: Coefficients = FITTED

    @property
    def band(self) -> float:
        """Share by which a pass may be off, up or down."""
        return BANDS["dense" if self.layout.model.experts is None else "experts"]

    def operations_s(self, rows: int) -> float:
        """Seconds of everything but attention at so many rows."""
        model = self.layout.model
        met = float(rows) * model.dense_parameters
        if model.experts is not None:
            padded = rows * model.experts.per_token + model.experts.touched(rows) * TILE_ROWS / 2
            met += (model.layers - model.experts.dense_layers) * padded * model.expert_parameters
        products_s = 2.0 * met / self._matrix_rate
        layers = self._norm(self._weights(rows) / self._bandwidth, products_s) / self.layout.gpus
        return layers + model.layers * self.fitted.layer_s + self._all_reduce_s(rows) + self.table_s(rows)

    def table_s(self, rows: int) -> float:
        """Of the operations, the output matrix, in 16 bits."""
        weights = self.layout.model.head_parameters
        peak = self.fitted.matrices * self.layout.gpu.flop_per_s["bf16"]
        both = self._norm(ELEMENT_BYTES * weights / self._bandwidth, 2.0 * rows * weights / peak)
        return both / self.layout.gpus

    def attention_s(self, requests: int, context: int, each: int = 1) -> float:
        """Seconds of reading keys and values, each request's once, however many rows it has."""
        model = self.layout.model
        read = model.kv_bytes_read(ELEMENT_BYTES, shards=self.layout.gpus, context=max(context, 1))
        rate = self.fitted.cache * self.layout.gpu.bandwidth_bytes_per_s
        return requests * read / rate + model.layers * self.fitted.attention_s

    def prefill_s(self, tokens: int) -> float:
        """Seconds of a prompt: its rows, and attention of each row to those before it."""
        model = self.layout.model
        width = model.heads * model.head_width
        # Two products of width x tokens x tokens, of which the causal half is computed.
        products = 2.0 * model.layers * width * float(tokens) ** 2
        peak = self.fitted.matrices * self.layout.gpu.flop_per_s["bf16"]
        return self.operations_s(tokens) + products / peak / self.layout.gpus

    def _weights(self, rows: int) -> float:
        """Bytes of the layers' weights that so many rows meet."""
        model, each = self.layout.model, WEIGHT_BYTES[self.layout.precision]
        read = model.dense_parameters * WEIGHT_BYTES[model.dense_precision(self.layout.precision)]
        if model.experts is not None:
            read += model.routed_parameters * each * model.experts.touched(rows) / model.experts.count
        return read

    @property
    def _matrix_rate(self) -> float:
        rates = self.layout.gpu.flop_per_s
        if self.layout.precision == "bf16" or self.layout.precision not in rates:
            return self.fitted.matrices * rates["bf16"]
        return self.fitted.matrices_fp8 * rates[self.layout.precision]

    @property
    def _bandwidth(self) -> float:
        return self.fitted.bandwidth * self.layout.gpu.bandwidth_bytes_per_s

    def _all_reduce_s(self, rows: int) -> float:
        """Two all-reduces a layer, ring-wise: 2 (n - 1) / n of the rows' states cross each link."""
        gpus, model = self.layout.gpus, self.layout.model
        if gpus == 1:
            return 0.0
        moved = 2 * model.layers * ELEMENT_BYTES * rows * model.hidden
        rate = self.fitted.links * self.layout.gpu.link_bytes_per_s
        return moved * 2 * (gpus - 1) / gpus / rate

    @staticmethod
    def _norm(one: float, other: float) -> float:
        return float((one**POWER + other**POWER) ** (1 / POWER))
