"""What fits: weights and keys and values of a model on so many GPUs, and the layouts that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.hardware.gpus import Gpu, catalogue
from simulator.hardware.models import WEIGHT_BYTES, ModelShape, Precision

USABLE = 0.9
"""Share of a GPU's memory that an engine takes: the default of vLLM's ``--gpu-memory-utilization``."""

RESERVED_BYTES = 3.5 * 2**30
"""Activations, graphs and libraries on each GPU; what aiconfigurator 0.12 sets aside (``other_mem``)."""

LEAST_TOKENS = 8192
"""Of keys and values: a layout that holds fewer serves nobody. A choice."""

WIDTHS = (1, 2, 4, 8, 16)
"""Tensor-parallel widths that engines are run at."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A model split over ``gpus`` GPUs by tensor parallelism, and what is left for keys and values.

    weight_bytes: on each GPU. kv_tokens: tokens whose keys and values fit, all requests together.
    """

    model: ModelShape
    gpu: Gpu
    gpus: int
    precision: Precision
    kv_bytes_per_token: float
    weight_bytes: float
    kv_tokens: int

    @property
    def label(self) -> str:
        """Widths, as names of files and answers have them: ``tp8``."""
        return f"tp{self.gpus}"

    @property
    def fits(self) -> bool:
        """Whether weights leave room for keys and values of ``LEAST_TOKENS``."""
        return self.kv_tokens >= LEAST_TOKENS


def layout(
    model: ModelShape,
    gpu: Gpu,
    gpus: int,
    precision: Precision,
    *,
    drafter_bytes: float = 0.0,
    kv_element_bytes: float = 2.0,
) -> Layout:
    """Split a model over GPUs. drafter_bytes: weights of a draft model, split likewise.

    Raises ``BadInputError`` for a width that is no power of two or does not divide the attention heads.
    """
    if gpus not in WIDTHS:
        raise BadInputError(
            "must be a power of two up to 16", field="tp", value=gpus, remedy="1, 2, 4, 8 or 16"
        )
    if model.heads % gpus:
        raise BadInputError(
            f"does not divide the {model.heads} attention heads of {model.name}", field="tp", value=gpus
        )
    weights = (model.weight_bytes(precision) + drafter_bytes) / gpus
    per_token = model.kv_bytes_per_token(kv_element_bytes, shards=gpus)
    room = USABLE * gpu.memory_bytes - RESERVED_BYTES - weights
    return Layout(model, gpu, gpus, precision, per_token, weights, max(int(room / per_token), 0))


def layouts(
    model: ModelShape, gpu: Gpu, precision: Precision, *, drafter_bytes: float = 0.0
) -> tuple[Layout, ...]:
    """Every layout that fits, smallest first; may be empty."""
    split = [
        layout(model, gpu, gpus, precision, drafter_bytes=drafter_bytes)
        for gpus in WIDTHS
        if model.heads % gpus == 0
    ]
    return tuple(each for each in split if each.fits)


def smallest_layout(
    model: ModelShape, gpu: Gpu, precision: Precision, *, drafter_bytes: float = 0.0
) -> Layout:
    """Return the fewest GPUs that hold the model; ``InfeasibleError`` where 16 do not."""
    fitting = layouts(model, gpu, precision, drafter_bytes=drafter_bytes)
    if not fitting:
        needed = model.weight_bytes(precision) / 2**30
        would = what_holds(model, gpu, precision)
        raise InfeasibleError(
            f"{model.name} in {precision} has {needed:,.0f} GiB of weights and does not fit on "
            f"{WIDTHS[-1]} x {gpu.title}; {', or '.join(would) if would else 'nothing in the catalogue'} "
            "would hold it",
            changes=would,
        )
    return fitting[0]


def what_holds(model: ModelShape, gpu: Gpu, precision: Precision) -> list[str]:
    """List what would hold a model that does not fit: fewer bits here, then the fewest of other GPUs."""
    fewer = [each for each in WEIGHT_BYTES if WEIGHT_BYTES[each] < WEIGHT_BYTES[precision]]
    found = [_held(model, gpu, each, f" in {each}") for each in fewer]
    others = [_held(model, each, precision, "") for each in catalogue().values() if each != gpu]
    ordered = sorted(filter(None, others), key=lambda held: held[0])
    return [text for _, text in [*filter(None, found), *ordered[:3]]]


def _held(model: ModelShape, gpu: Gpu, precision: Precision, more: str) -> tuple[int, str] | None:
    fitting = layouts(model, gpu, precision)
    return (fitting[0].gpus, f"{fitting[0].gpus} x {gpu.name}{more}") if fitting else None


def required_layout(
    model: ModelShape, gpu: Gpu, gpus: int | None, precision: Precision, *, drafter_bytes: float = 0.0
) -> Layout:
    """Return the layout asked for, or the smallest; ``InfeasibleError`` names what would hold the weights."""
    if gpus is None:
        return smallest_layout(model, gpu, precision, drafter_bytes=drafter_bytes)
    asked = layout(model, gpu, gpus, precision, drafter_bytes=drafter_bytes)
    if not asked.fits:
        smallest = smallest_layout(model, gpu, precision, drafter_bytes=drafter_bytes)
        raise InfeasibleError(
            f"{model.name} in {precision} needs {asked.weight_bytes / 2**30:,.0f} GiB on each of {gpus} x "
            f"{gpu.title} and does not fit; {smallest.gpus} of them hold it (`tp` {smallest.gpus})"
        )
    return asked
