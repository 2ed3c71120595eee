"""Step costs from a formula, for hardware whose kernels nobody has published.

A textbook roofline, the larger of bytes over bandwidth and operations over peak, is far too fast. Here both
count together where they are close (a norm of power 3), at efficiencies fitted on one model and one GPU, with
a fixed time for each layer. docs/validation.md has its error on all other models and GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.hardware.memory import Layout
from simulator.hardware.models import WEIGHT_BYTES, Precision

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
    attention_s: fixed time of a layer and of its attention, seconds. grouped: share of the matrix products'
    rate that experts reach, whose products are many and small. A share above 1 is no fault: the norm counts
    some time twice.
    """

    bandwidth: float
    matrices: float
    matrices_fp8: float
    cache: float
    links: float
    layer_s: float
    attention_s: float
    grouped: float


FITTED = Coefficients(
    bandwidth=1.022, matrices=0.798, matrices_fp8=0.542, cache=0.895, links=0.516, layer_s=50.7e-6,
    attention_s=8.97e-6, grouped=0.326,
)  # fmt: skip
"""Fitted to Qwen3-8B on H200, 1 to 8 GPUs, bf16 and fp8: ``python -m tools.fit_formula``, 2026-11-25.
``grouped`` to Qwen3-30B-A3B on H200, the others held, 2026-11-30: a dense model says nothing of experts."""


LATENT_LAYER = 2.0
"""Fixed time of a layer with latent attention, in that of a plain one: low-rank projections both ways and
absorbed products are kernels of their own. At one row SGLang's table of DeepSeek-V3 on 8 B200 takes 60 us for
a block of attention and 51 us for its experts, of which reading weights is 10; a plain layer takes 51."""

BANDS = {"dense": 0.19, "experts": 0.42, "latent": 0.50, "compressed": 0.60}
"""Share by which a pass may be off: nine in ten passes of such models lie within (docs/validation.md); of
compressed attention no kernels are published, and the band is a choice."""


@dataclass(frozen=True, slots=True)
class FormulaTimes:
    """Pass times of a model on a layout, as ``curves.PassTimes``.

    Weights in a precision that the GPU has no matrix unit for are read so and multiplied in 16 bits.
    cache_bytes: of an element of keys and values.
    """

    layout: Layout
    fitted: Coefficients = FITTED
    cache_bytes: float = ELEMENT_BYTES

    @property
    def band(self) -> float:
        """Share by which a pass may be off, up or down."""
        model = self.layout.model
        if model.latent is not None or model.compressed is not None:
            return BANDS["latent" if model.compressed is None else "compressed"]
        return BANDS["dense" if model.experts is None else "experts"]

    def operations_s(self, rows: int) -> float:
        """Seconds of everything but attention at so many rows."""
        split = (self._dense_s(rows) + self._experts_s(rows)) / self.layout.gpus
        each = LATENT_LAYER if self.layout.model.latent is not None else 1.0
        fixed = self.layout.model.layers * each * self.fitted.layer_s
        linked = self._all_reduce_s(rows) + self._dispatch_s(rows)
        return split + fixed + self._visits_s(rows) + linked + self.table_s(rows)

    def table_s(self, rows: int) -> float:
        """Of the operations, the output matrix, in 16 bits; each group of GPUs reads it for its own rows."""
        weights = self.layout.model.head_parameters
        peak = self.fitted.matrices * self.layout.gpu.flop_per_s["bf16"]
        read_s = ELEMENT_BYTES * weights * self.layout.dp / self._bandwidth
        return self._norm(read_s, 2.0 * rows * weights / peak) / self.layout.gpus

    def attention_s(self, requests: int, context: int, each: int = 1) -> float:
        """Seconds of reading keys and values, each request's once, however many rows it has."""
        model = self.layout.model
        read = model.kv_bytes_read(self.cache_bytes, shards=self.layout.tp, context=max(context, 1))
        rate = self.fitted.cache * self.layout.gpu.bandwidth_bytes_per_s
        mine = -(-requests // self.layout.dp)
        return mine * read / rate + model.layers * self.fitted.attention_s

    def prefill_s(self, tokens: int) -> float:
        """Seconds of a prompt: its rows, and attention of each row to those before it; a group takes it."""
        model, groups = self.layout.model, self.layout.dp
        width = model.heads * model.head_width
        # Two products of width x tokens x tokens, of which the causal half is computed.
        products = 2.0 * model.layers * width * float(tokens) ** 2
        peak = self.fitted.matrices * self.layout.gpu.flop_per_s["bf16"]
        return self.operations_s(groups * tokens) / groups + products / peak / self.layout.gpus

    def _dense_s(self, rows: int) -> float:
        """Seconds of the weights that every row meets, on one GPU; each group reads them for its own rows."""
        model = self.layout.model
        kept = model.dense_precision(self.layout.precision)
        read_s = model.dense_parameters * WEIGHT_BYTES[kept] * self.layout.dp / self._bandwidth
        return self._norm(read_s, 2.0 * rows * model.dense_parameters / self._matrix_rate(kept))

    def _experts_s(self, rows: int) -> float:
        """Seconds of the experts that so many rows choose, on one GPU: each is read once, its rows padded."""
        model, experts, kept = self.layout.model, self.layout.model.experts, self.layout.precision
        if experts is None:
            return 0.0
        touched = experts.touched(rows)
        visits = rows * experts.per_token + touched * TILE_ROWS / 2
        products = 2.0 * visits * (model.layers - experts.dense_layers) * model.expert_parameters
        read = model.routed_parameters * WEIGHT_BYTES[kept] * touched / experts.count
        return self._norm(read / self._bandwidth, products / (self.fitted.grouped * self._matrix_rate(kept)))

    def _visits_s(self, rows: int) -> float:
        """Seconds in which states go to experts and back within a GPU: two writes and two reads.

        They are whole on each GPU where experts are split, and shared out where experts are dealt.
        """
        model, experts = self.layout.model, self.layout.model.experts
        if experts is None:
            return 0.0
        states = 4.0 * ELEMENT_BYTES * rows * experts.per_token * model.hidden / self.layout.ep
        return states * (model.layers - experts.dense_layers) / self._bandwidth

    def _dispatch_s(self, rows: int) -> float:
        """Seconds in which states cross links to experts and back, where groups have attention of their own.

        A row goes to as many GPUs as it has experts, once each way; balanced, each GPU sends for its share of
        rows.
        """
        model, experts, gpus = self.layout.model, self.layout.model.experts, self.layout.gpus
        if experts is None or self.layout.dp == 1:
            return 0.0
        visited = min(experts.per_token, gpus) * (gpus - 1) / gpus
        moved = 2.0 * ELEMENT_BYTES * rows / gpus * visited * model.hidden
        return moved * (model.layers - experts.dense_layers) / self._link_rate(gpus)

    def _matrix_rate(self, precision: Precision) -> float:
        """Operations per second that large products reach; in 16 bits without a unit for the precision.

        A checkpoint in MXFP4 keeps activations in more bits: its products run at the rate of 8 (of 8 and 16
        that which is nearer to gpt-oss on B200).
        """
        rates = self.layout.gpu.flop_per_s
        if precision == "fp4" and self.layout.model.native == "fp4":
            precision = "fp8"
        if precision == "bf16" or precision not in rates:
            return self.fitted.matrices * rates["bf16"]
        return self.fitted.matrices_fp8 * rates[precision]

    @property
    def _bandwidth(self) -> float:
        return self.fitted.bandwidth * self.layout.gpu.bandwidth_bytes_per_s

    def _all_reduce_s(self, rows: int) -> float:
        """Two all-reduces a layer, ring-wise: 2 (n - 1) / n of the rows' states cross each link.

        A group with attention of its own needs one, for its own rows: experts answer by ``_dispatch_s``.
        """
        tensor, model = self.layout.tp, self.layout.model
        if tensor == 1:
            return 0.0
        each = 2 if self.layout.dp == 1 else 1
        moved = each * model.layers * ELEMENT_BYTES * rows / self.layout.dp * model.hidden
        return moved * 2 * (tensor - 1) / tensor / self._link_rate(tensor)

    def _link_rate(self, gpus: int) -> float:
        """Bytes per second between so many GPUs; beyond a node the slowest link is the network."""
        gpu = self.layout.gpu
        beyond = gpus > gpu.gpus_per_node and gpu.network_bytes_per_s
        return self.fitted.links * (beyond or gpu.link_bytes_per_s)

    @staticmethod
    def _norm(one: float, other: float) -> float:
        return float((one**POWER + other**POWER) ** (1 / POWER))
