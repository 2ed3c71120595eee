"""The target's forward pass over ragged rows: every request sends as many tokens as are to be verified.

All rows of all requests lie side by side in one dimension; projections and feed-forward layers, which
are nearly all of the work, see exactly B = R + K of them. Only attention needs to know whose row is
whose, so only attention is replaced: transformers' own model runs through its attention interface
with one of ``attention.kernels``. That keeps every architecture's norms, rotary variants and scalings as
their authors wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from simulator.core.errors import BadInputError
from simulator.live.device import synchronise
from simulator.live.engine.attention.kernels import (
    KERNELS,
    SELECTABLE,
    Kernel,
    explicit,
    has_paged_varlen,
    plain,
    split,
    varlen,
)
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.families.fused import replace
from simulator.live.families.latent import absorbed, expanded, latents_of
from simulator.live.models.kv_cache import PAGE, KVCache
from simulator.live.models.targets import Target, TargetOutput

_INTERFACE = "dspark_ragged"

_WITH_SINKS = frozenset({"gpt_oss"})

_HARMLESS = frozenset(
    {"dropout", "position_ids", "use_cache", "output_router_logits", "output_attentions",
     "output_hidden_states", "is_causal"}
)  # fmt: skip
"""Attention arguments without a meaning here: nothing is trained, positions and masks are the rows' own, and
nobody asks for the softmax itself or for all states."""


class RaggedTarget:
    """A target whose forward pass takes ragged rows and a ``KVCache``.

    fuse: whether norms, rotation and gates run as one kernel each where that is equal (``fused.replace``);
    None: on CUDA.
    """

    def __init__(self, target: Target, kernel: str = "auto", *, fuse: bool | None = None) -> None:
        text = target.config.get_text_config()
        self.target, self.shapes = target, target.layer_shapes
        self.kv_heads, self.head_dim = self.shapes[0].kv_heads, self.shapes[0].head_dim
        self.heads: int = text.num_attention_heads
        self.cap: float | None = getattr(text, "attn_logit_softcapping", None)
        explicitly = self.cap is not None or text.model_type in _WITH_SINKS
        self.kernel_name = self._choose_explicit(kernel) if explicitly else self._choose(kernel)
        self.kernel: Kernel = KERNELS[self.kernel_name]
        if explicitly:
            self.kernel = partial(explicit if self.kernel_name == "explicit" else split, cap=self.cap)
        self.draft_attend = self._choose_for_drafts(kernel)
        self.replaced = replace.replacements(target.model.get_decoder(), fuse)

    @property
    def draft_kernel_name(self) -> str:
        """The kernel with which drafts read their contexts."""
        return "sdpa" if self.draft_attend is None else "split"

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """Return an empty cache for ``rows`` requests of up to ``capacity`` positions."""
        target = self.target
        return KVCache(self.shapes, rows, capacity, dtype=target.dtype, device=target.device)

    def forward(
        self,
        tokens: Tensor,
        parts: Sequence[RaggedRows],
        cache: KVCache,
        *,
        layer_ids: Sequence[int] = (),
        logits_at: Tensor | None = None,
    ) -> TargetOutput:
        """Run tokens [N], the rows of all ``parts`` one after the other; their keys enter the cache.

        Everything but attention sees one dimension of N rows; attention runs part by part, so that a
        long prompt chunk does not set the block size of short drafts. Requests' contexts before
        ``starts`` must be in the cache; what lies behind is overwritten. Logits [N, V], or [n, V] of the
        rows ``logits_at`` [n]; features [N, width].
        """
        rows = torch.cat([part.cache_rows(cache.trash) for part in parts])
        positions = torch.cat([part.positions for part in parts])
        with (
            torch.no_grad(), self._attention(), replace.installed(self.replaced),
            self.target.capture(layer_ids) as states,
            latents_of(self.target.layers, self.shapes) as latents,
        ):  # fmt: skip
            step = _Pass(tuple(parts), cache, rows, positions, self.kernel, latents)
            output = self.target.model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=0 if logits_at is None else logits_at,
                ragged=step,
            )
        features = [states[layer][0] for layer in layer_ids]
        nothing = output.logits.new_empty((len(tokens), 0))
        return TargetOutput(output.logits[0], torch.cat(features, dim=-1) if features else nothing)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Route the model's attention through ``_attend`` for a while; ``Target.forward`` stays as it was."""
        config = self.target.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = _INTERFACE
        try:
            yield
        finally:
            config._attn_implementation = before

    def _choose(self, kernel: str) -> str:
        if kernel == "auto":
            on_gpu = self.target.device.type == "cuda" and not self._has_odd_shapes
            return "varlen" if self._varlen_works() else "split" if on_gpu and self._split_works() else "sdpa"
        if kernel not in SELECTABLE:
            raise BadInputError(
                "is not known", field="attention", value=kernel, remedy="auto, " + ", ".join(SELECTABLE)
            )
        self._require(kernel)
        return kernel

    def _require(self, kernel: str) -> None:
        if kernel in ("varlen", "split") and self._has_odd_shapes:
            raise BadInputError(
                "is refused for keys of two widths and latent ones", source=self.target.name,
                field="attention", value=kernel, remedy="auto",
            )  # fmt: skip
        if kernel == "split" and not self._split_works():
            raise BadInputError(
                f"does not run here, or not at the shapes of {self.target.name}: it needs a CUDA device and "
                "Triton", field="attention", value=kernel, remedy="auto",
            )  # fmt: skip

    def _choose_for_drafts(self, kernel: str) -> Callable[..., Tensor] | None:
        """Return the split kernel where it was asked for or is to be chosen, and runs."""
        if self.shapes[0].latent is not None:  # its MTP module has latents too, of which the kernel is not
            return None
        wanted = kernel == "split" or (kernel == "auto" and self.target.device.type == "cuda")
        if not wanted or not (self.kernel_name == "split" or self._split_works()):
            return None
        from simulator.live.engine.attention.split import attend  # needs Triton

        return attend

    def _choose_explicit(self, kernel: str) -> str:
        if kernel == "split":
            self._require(kernel)
            return kernel
        if kernel == "auto" and self.target.device.type == "cuda" and self._split_works():
            return "split"
        if kernel not in ("auto", "explicit"):
            needed = "attention sinks" if self.cap is None else "capped attention logits"
            raise BadInputError(
                f"does not compute {needed} as {self.target.name} needs", field="attention", value=kernel,
                remedy="auto",
            )  # fmt: skip
        return "explicit"

    @property
    def _has_odd_shapes(self) -> bool:
        """Whether layers differ in their heads, or keys are wider than values."""
        return len(set(self.shapes)) > 1 or self.shapes[0].latent is not None

    def _varlen_works(self) -> bool:
        """Whether this PyTorch's paged flash attention runs here and agrees with the plain softmax."""
        device, dtype = self.target.device, self.target.dtype
        if self._has_odd_shapes:
            return False
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not has_paged_varlen():
            return False
        return self._agrees(varlen)

    def _split_works(self) -> bool:
        """Whether our split kernels compile and run here, and agree with the plain softmax."""
        return find_spec("triton") is not None and self._agrees(split)

    def _agrees(self, kernel: Kernel) -> bool:
        """Whether a kernel runs on a small batch of this target's shapes as the definition does."""
        device, dtype = self.target.device, self.target.dtype
        generator = torch.Generator(device).manual_seed(0)
        shapes = (4, self.heads), (2, PAGE, self.kv_heads), (2, PAGE, self.kv_heads)
        query, keys, values = (
            torch.randn((*shape, self.head_dim), generator=generator, dtype=dtype, device=device)
            for shape in shapes
        )
        counts, starts = torch.tensor([3, 1], device=device), torch.tensor([5, 130], device=device)
        rows = RaggedRows.of(counts, starts, 4, block=3, context=PAGE)
        scale = self.head_dim**-0.5
        try:
            ours = kernel(query, keys, values, rows, scale, None)
            synchronise(device)
        except Exception:  # compilers and drivers fail in types of their own; any says that it does not run
            return False
        return torch.allclose(ours, plain(query, keys, values, rows, scale, None), atol=2e-2, rtol=2e-2)


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """What attention needs to know of one forward pass; travels through the model as a keyword."""

    parts: tuple[RaggedRows, ...]
    cache: KVCache
    cache_rows: Tensor
    positions: Tensor
    kernel: Kernel
    latents: dict[int, Tensor]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    ragged: _Pass,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface: [1, heads, N, head_dim] each -> [1, N, heads, head_dim].

    s_aux: attention sinks, one logit per head. softcap: bound of the logits. Raises ``BadInputError`` for an
    argument that this pass would leave out.
    """
    layer, cache = module.layer_idx, ragged.cache
    kernel = _checked_kernel(module, ragged, s_aux, softcap, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    is_latent = cache.shapes[layer].latent is not None
    if is_latent:
        rows, key = absorbed(module, rows, key, ragged.latents[layer])
    cache.write(layer, ragged.cache_rows, ragged.positions, key, value)
    keys, values = cache.layer(layer)
    queries = torch.split(rows, [len(part.request) for part in ragged.parts])
    mixed = torch.cat(
        [
            kernel(of_part, keys, values, part, scale, sliding_window)
            for of_part, part in zip(queries, ragged.parts, strict=True)
        ]
    )
    return (expanded(module, mixed) if is_latent else mixed)[None], None


def _checked_kernel(
    module: Any, ragged: _Pass, sinks: Tensor | None, cap: float | None, others: Mapping[str, Any]
) -> Kernel:
    """Bind the pass's kernel to a layer's sinks; raises where the layer asks for more than it computes."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    if unknown:
        raise BadInputError(
            f"attention takes {', '.join(unknown)}, which the verification pass does not compute",
            source=type(module).__name__, remedy="choose another target",
        )  # fmt: skip
    if sinks is None and cap is None:
        return ragged.kernel
    kernel = ragged.kernel
    if not (
        isinstance(kernel, partial) and kernel.func in (explicit, split) and kernel.keywords["cap"] == cap
    ):
        raise BadInputError(
            "attention has sinks or a cap that its config does not state", source=type(module).__name__,
            remedy="choose another target",
        )  # fmt: skip
    return partial(kernel, sinks=sinks)


ALL_ATTENTION_FUNCTIONS[_INTERFACE] = _attend
