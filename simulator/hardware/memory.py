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

DEFAULT_REQUEST = 16384
"""Tokens of a request that a layout holds where nobody names one. A choice: the longest of the default
lengths has 15,050 and a block."""

WIDTHS = (1, 2, 4, 8, 16)
"""Tensor-parallel widths that engines are run at."""

MOST_GPUS = 64
"""Of a replica whose attention is data-parallel: wider ones are not in the tables of kernels."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A model split over ``gpus`` GPUs, and what is left for keys and values.

    weight_bytes: on each GPU. kv_tokens: tokens whose keys and values fit, all requests together. dp: groups
    of GPUs that each hold the attention of their own requests (data-parallel attention); each is
    tensor-parallel. ep: GPUs over which whole experts are dealt (expert parallelism).
    """

    model: ModelShape
    gpu: Gpu
    gpus: int
    precision: Precision
    kv_bytes_per_token: float
    weight_bytes: float
    kv_tokens: int
    dp: int = 1
    ep: int = 1

    @property
    def tp(self) -> int:
        """GPUs over which the attention of a request is split."""
        return self.gpus // self.dp

    @property
    def label(self) -> str:
        """Widths, as names of files and answers have them: ``tp8``, or ``tp1-dp16-ep16``."""
        wider = [f"{name}{size}" for name, size in (("dp", self.dp), ("ep", self.ep)) if size > 1]
        return "-".join([f"tp{self.tp}", *wider])

    @property
    def fits(self) -> bool:
        """Whether weights leave room for keys and values of ``LEAST_TOKENS``."""
        return self.kv_tokens >= LEAST_TOKENS

    def holds(self, tokens: int) -> bool:
        """Whether weights leave room for a request of so many tokens, which lies within one group."""
        return self.kv_tokens // self.dp >= tokens


def layout(
    model: ModelShape,
    gpu: Gpu,
    gpus: int,
    precision: Precision,
    *,
    dp: int = 1,
    ep: int = 1,
    drafter_bytes: float = 0.0,
    kv_element_bytes: float = 2.0,
) -> Layout:
    """Split a model over GPUs.

    gpus: of the replica. dp, ep: as in ``Layout``. Whatever is no routed expert is whole in each group and
    split over its GPUs; routed experts are split or dealt over all. drafter_bytes: weights of a draft model,
    kept as the former.

    Raises ``BadInputError`` for a width that is no power of two or does not divide the attention heads, and
    for groups or dealt experts that the model has no use for.
    """
    _refuse_widths(model, gpus, dp, ep)
    tensor = gpus // dp
    routed = model.routed_parameters * WEIGHT_BYTES[precision]
    weights = ((model.weight_bytes(precision) - routed + drafter_bytes) * dp + routed) / gpus
    per_token = model.kv_bytes_per_token(kv_element_bytes, shards=tensor)
    room = USABLE * gpu.memory_bytes - RESERVED_BYTES - weights
    held = dp * max(int(room / per_token), 0)
    return Layout(model, gpu, gpus, precision, per_token, weights, held, dp, ep)


def _refuse_widths(model: ModelShape, gpus: int, dp: int, ep: int) -> None:
    most = max(WIDTHS) if dp == 1 else MOST_GPUS
    if dp < 1 or gpus < 1 or gpus % dp or gpus & (gpus - 1) or gpus > most or gpus // dp > max(WIDTHS):
        raise BadInputError(
            f"must be a power of two up to 16, and times dp up to {MOST_GPUS}", field="tp",
            value=gpus // max(dp, 1), remedy="1, 2, 4, 8 or 16",
        )  # fmt: skip
    if model.heads % (gpus // dp):
        raise BadInputError(
            f"does not divide the {model.heads} attention heads of {model.name}", field="tp", value=gpus // dp
        )
    if dp > 1 and model.experts is None:
        raise BadInputError(
            "is for mixtures of experts: groups of a dense model are replicas", field="dp", value=dp,
            remedy="leave it out: the planner counts replicas",
        )  # fmt: skip
    if ep != 1 and (model.experts is None or ep < 1 or gpus % ep or model.experts.count % ep):
        raise BadInputError(
            f"must divide the {gpus} GPUs and the experts of {model.name}", field="ep", value=ep,
            remedy="leave it out",
        )  # fmt: skip


def layouts(
    model: ModelShape, gpu: Gpu, precision: Precision, *, longest: int = DEFAULT_REQUEST,
    drafter_bytes: float = 0.0,
) -> tuple[Layout, ...]:  # fmt: skip
    """Every layout that holds a request of ``longest`` tokens, smallest first; may be empty."""
    split = [
        layout(model, gpu, gpus, precision, drafter_bytes=drafter_bytes)
        for gpus in WIDTHS
        if model.heads % gpus == 0
    ]
    return tuple(each for each in split if each.holds(longest))


def smallest_layout(
    model: ModelShape, gpu: Gpu, precision: Precision, *, longest: int = DEFAULT_REQUEST,
    drafter_bytes: float = 0.0,
) -> Layout:  # fmt: skip
    """Return the fewest GPUs that hold the model and a request; ``InfeasibleError`` where 16 do not."""
    fitting = layouts(model, gpu, precision, longest=longest, drafter_bytes=drafter_bytes)
    if not fitting:
        needed = model.weight_bytes(precision) / 2**30
        would = what_holds(model, gpu, precision, longest)
        raise InfeasibleError(
            f"{model.name} in {precision} has {needed:,.0f} GiB of weights and does not fit on "
            f"{WIDTHS[-1]} x {gpu.title} with a request of {longest:,} tokens; "
            f"{', or '.join(would) if would else 'nothing in the catalogue'} would hold it",
            changes=would,
        )
    return fitting[0]


def _possible(model: ModelShape, dp: int, ep: int | None) -> list[int]:
    """Widths of a group that divide the heads, with groups that share out experts as asked."""
    split = [width for width in WIDTHS if model.heads % width == 0 and width * dp <= MOST_GPUS]
    return [width for width in split if width * dp % (ep or 1) == 0] or split[-1:] or [max(WIDTHS)]


def what_holds(
    model: ModelShape, gpu: Gpu, precision: Precision, longest: int = DEFAULT_REQUEST
) -> list[str]:
    """List what would hold a model that does not fit: fewer bits here, then the fewest of other GPUs."""
    fewer = [each for each in WEIGHT_BYTES if WEIGHT_BYTES[each] < WEIGHT_BYTES[precision]]
    found = [_held(model, gpu, each, longest, f" in {each}") for each in fewer]
    others = [_held(model, each, precision, longest, "") for each in catalogue().values() if each != gpu]
    ordered = sorted(filter(None, others), key=lambda held: held[0])
    return [text for _, text in [*filter(None, found), *ordered[:3]]]


def _held(
    model: ModelShape, gpu: Gpu, precision: Precision, longest: int, more: str
) -> tuple[int, str] | None:
    fitting = layouts(model, gpu, precision, longest=longest)
    return (fitting[0].gpus, f"{fitting[0].gpus} x {gpu.name}{more}") if fitting else None


def required_layout(
    model: ModelShape,
    gpu: Gpu,
    tp: int | None,
    precision: Precision,
    *,
    dp: int = 1,
    ep: int | None = None,
    longest: int = DEFAULT_REQUEST,
    drafter_bytes: float = 0.0,
) -> Layout:
    """Return the layout asked for, or the smallest; ``InfeasibleError`` names what would hold the weights.

    tp: GPUs of a group; by default the fewest that hold a request of ``longest`` tokens. ep: all GPUs by
    default where attention is data-parallel, and 1 where it is not.
    """
    if tp is None and dp == 1 and ep is None:
        return smallest_layout(model, gpu, precision, longest=longest, drafter_bytes=drafter_bytes)
    for width in [tp] if tp is not None else _possible(model, dp, ep):
        dealt = ep or (width * dp if dp > 1 else 1)
        asked = layout(model, gpu, width * dp, precision, dp=dp, ep=dealt, drafter_bytes=drafter_bytes)
        if asked.holds(longest) if tp is None else asked.fits:
            return asked
    smallest = smallest_layout(model, gpu, precision, longest=longest, drafter_bytes=drafter_bytes)
    raise InfeasibleError(
        f"{model.name} in {precision} needs {asked.weight_bytes / 2**30:,.0f} GiB on each of {asked.gpus} x "
        f"{gpu.title} ({asked.label}) and does not fit; {smallest.gpus} of them hold it "
        f"(`tp` {smallest.gpus})"
    )
