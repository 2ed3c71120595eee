"""The target's forward pass over ragged rows: every request sends as many tokens as are to be verified.

All rows of all requests lie side by side in one dimension; projections and feed-forward layers, which
are nearly all of the work, see exactly B = R + K of them. Only attention needs to know whose row is
whose, so only attention is replaced: transformers' own model runs through its attention interface
with one of the kernels below. That keeps every architecture's norms, rotary variants and scalings as
their authors wrote them.

Kernels, all with the same arguments:

- ``sdpa``: rows of a request are gathered into a block [R, L], attention runs over the block with the
  keys read in place. Padding exists in the queries of attention alone, where it costs next to nothing as
  long as reading the keys dominates. Runs anywhere.
- ``varlen``: PyTorch's variable-length flash attention over paged keys, which splits long contexts over
  the whole device. CUDA, 16-bit weights, recent PyTorch (2.11 lacks what it needs).
- ``split``: Triton kernels of our own (``engine.split``) that let each request read its own context and no
  more, for targets and drafts. CUDA with Triton, any PyTorch that we support; sinks and caps too.
- ``explicit``: as ``sdpa`` with the softmax spelled out, for targets that cap attention logits or have
  attention sinks, which no fused kernel here computes.
- ``plain``: one softmax per row in float32, for tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from simulator.core.errors import BadInputError
from simulator.live.device import synchronise
from simulator.live.families.latent import absorbed, expanded, latents_of
from simulator.live.models.kv_cache import PAGE, KVCache
from simulator.live.models.targets import Target, TargetOutput

_INTERFACE = "dspark_ragged"

_WITH_SINKS = frozenset({"gpt_oss"})

_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "output_router_logits", "is_causal"})
"""Attention arguments without a meaning here: nothing is trained, positions and masks are the rows' own."""

Kernel = Callable[[Tensor, Tensor, Tensor, "RaggedRows", float, int | None], Tensor]
"""(query [N, heads, head_dim], keys and values [rows, capacity, kv_heads, head_dim], rows, scale, window)
-> [N, heads, head_dim]."""


@dataclass(frozen=True, slots=True, eq=False)
class RaggedRows:
    """Which row belongs to which request, and where in its context it stands.

    counts: int64 [R], rows of each request; 0 for one that pads the batch.
    starts: int64 [R], position of each request's first row in its context.
    request, offset: int64 [N], the request a row belongs to and its rank among that request's rows.
    valid: bool [N], False for rows that pad the pass to its tier.
    first_cache_row: request r's keys lie in cache row first_cache_row + r.
    block: at least the largest count. context: at least the largest start + count.
    """

    counts: Tensor
    starts: Tensor
    request: Tensor
    offset: Tensor
    valid: Tensor
    first_cache_row: int
    block: int
    context: int
    _made: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        counts: Tensor,
        starts: Tensor,
        rows: int,
        *,
        block: int,
        context: int,
        first_cache_row: int = 0,
    ) -> RaggedRows:
        """Lay ``counts`` rows of each request side by side, padded to ``rows``; nothing leaves the device."""
        request, offset, valid = side_by_side(counts, rows)
        return cls(
            counts, starts, request, offset.clamp(0, block - 1), valid, first_cache_row, block, context
        )

    @property
    def positions(self) -> Tensor:
        """Position of each row in its context, int64 [N]; 0 for padding."""
        return torch.where(self.valid, self.starts[self.request] + self.offset, 0)

    @property
    def first_rows(self) -> Tensor:
        """Index of each request's first row, int64 [R]."""
        return self.counts.cumsum(0) - self.counts

    def cache_rows(self, trash: int) -> Tensor:
        """Cache row that each row's keys go to, int64 [N]."""
        return torch.where(self.valid, self.request + self.first_cache_row, trash)

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return what every layer's attention needs of these rows: made by the first, kept for the others."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def blocks(self) -> Tensor:
        """Rows of each request as a block, int64 [R, block]; beyond a request's count, its last row again."""
        inside = torch.arange(self.block, device=self.counts.device)
        inside = torch.minimum(inside, (self.counts - 1).clamp(min=0)[:, None])
        return (self.first_rows[:, None] + inside).clamp(max=len(self.request) - 1)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [R, block, context]: a row sees positions up to its own, the last ``window`` of them.

        Rows of a block beyond a request's count see what its last does.
        """
        device = self.counts.device
        own = (self.starts[:, None] + torch.arange(self.block, device=device))[..., None]
        key = torch.arange(self.context, device=device)
        seen = (key <= own) if window is None else (key <= own) & (key > own - window)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def side_by_side(counts: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Owner, rank within the owner, and validity of each of ``rows`` slots: [rows] each, from counts [R]."""
    ends = counts.cumsum(0)
    slot = torch.arange(rows, device=counts.device)
    owner = torch.searchsorted(ends, slot, right=True).clamp(max=len(counts) - 1)
    return owner, slot - (ends - counts)[owner], slot < ends[-1]


class RaggedTarget:
    """A target whose forward pass takes ragged rows and a ``KVCache``."""

    def __init__(self, target: Target, kernel: str = "auto") -> None:
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
            torch.no_grad(), self._attention(), self.target.capture(layer_ids) as states,
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
        if kernel not in _SELECTABLE:
            raise BadInputError(
                "is not known", field="attention", value=kernel, remedy="auto, " + ", ".join(_SELECTABLE)
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
        wanted = kernel == "split" or (kernel == "auto" and self.target.device.type == "cuda")
        if not wanted or not (self.kernel_name == "split" or self._split_works()):
            return None
        from simulator.live.engine.split import attend  # needs Triton

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
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or not _has_paged_varlen():
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


def sdpa(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. Query heads that share a key head become extra query rows of it."""
    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    grouped, mask = _grouped(query, keys.shape[2], rows), _mask(query, keys.shape[2], rows, window)
    mixed = scaled_dot_product_attention(
        grouped,
        keys[mine, : rows.context].transpose(1, 2),
        values[mine, : rows.context].transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return _ungrouped(mixed, rows)


def explicit(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: RaggedRows,
    scale: float,
    window: int | None,
    *,
    cap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``sdpa`` with the softmax spelled out.

    cap: attention logits x become cap * tanh(x / cap), as in Gemma 2. sinks [heads]: one more logit per query
    head that takes part in the softmax and has no value, as in gpt-oss.
    """
    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    kv_heads = keys.shape[2]
    grouped, mask = _grouped(query, kv_heads, rows), _mask(query, kv_heads, rows, window)
    logits = grouped @ keys[mine, : rows.context].permute(0, 2, 3, 1) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logits = (logits + mask).float()
    if sinks is not None:
        # Row g * block + i of a group is query head g of that key head.
        sink = sinks.float().view(1, kv_heads, -1, 1).repeat_interleave(rows.block, dim=2)
        logits = torch.cat((logits, sink.expand(len(logits), -1, -1, -1)), dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : rows.context].to(query.dtype)
    return _ungrouped(weights @ values[mine, : rows.context].transpose(1, 2), rows)


def _grouped(query: Tensor, kv_heads: int, rows: RaggedRows) -> Tensor:
    """Group queries [N, heads, head_dim] by request and key head: [R, kv_heads, group * block, head_dim]."""
    block = query[rows.once("blocks", rows.blocks)]  # [R, block, heads, head_dim]
    return torch.unflatten(block, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _mask(query: Tensor, kv_heads: int, rows: RaggedRows, window: int | None) -> Tensor:
    """Return the mask of grouped queries, [R, 1, group * block, context]."""
    groups = query.shape[1] // kv_heads
    return rows.once(
        ("mask", window, query.dtype, groups),
        lambda: rows.mask(window, query.dtype)[:, None].repeat(1, 1, groups, 1),
    )


def _ungrouped(mixed: Tensor, rows: RaggedRows) -> Tensor:
    """Back from ``_grouped`` to one row each, [N, heads, head_dim]."""
    mixed = torch.unflatten(mixed, 2, (-1, rows.block)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    return mixed[rows.request, rows.offset]


def varlen(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. A cache row is a run of pages; flash attention's causal mask ends at the last key."""
    from torch.nn.attention.varlen import varlen_attn  # not in every PyTorch that we support

    requests, pages = len(rows.counts), keys.shape[1] // PAGE
    device, first = query.device, rows.first_cache_row * pages
    paged = keys.shape[0] * pages, PAGE, *keys.shape[2:]
    table = rows.once(
        ("pages", pages),
        lambda: (
            first + torch.arange(requests * pages, dtype=torch.int32, device=device).view(requests, pages)
        ),
    )
    ends = rows.once("ends", lambda: torch.nn.functional.pad(rows.counts.cumsum(0), (1, 0)).to(torch.int32))
    used = rows.once("used", lambda: (rows.starts + rows.counts).to(torch.int32))
    attend: Any = varlen_attn
    mixed: Tensor = attend(
        query.contiguous(), keys.view(paged), values.view(paged), ends, None, rows.block, rows.context,
        scale=scale, window_size=(-1 if window is None else window - 1, 0), enable_gqa=True,
        seqused_k=used, block_table=table,
    )  # fmt: skip
    return mixed


def split(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: RaggedRows,
    scale: float,
    window: int | None,
    *,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``Kernel`` and ``engine.split``; cap, sinks: as of ``explicit``."""
    from simulator.live.engine.split import attend  # needs Triton

    mine = slice(rows.first_cache_row, rows.first_cache_row + len(rows.counts))
    return attend(
        query, keys[mine], values[mine], rows.once("first", lambda: rows.first_rows), rows.counts,
        rows.starts, rows.valid, block=rows.block, scale=scale, causal=True, window=window, cap=cap,
        sinks=sinks,
    )  # fmt: skip


def plain(
    query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, scale: float, window: int | None
) -> Tensor:
    """See ``Kernel``. The definition, row by row."""
    mixed = query.new_zeros((*query.shape[:2], values.shape[-1]))
    group = query.shape[1] // keys.shape[2]
    for row in torch.nonzero(rows.valid)[:, 0].tolist():
        request, end = int(rows.request[row]), int(rows.positions[row]) + 1
        first = 0 if window is None else max(0, end - window)
        mine = rows.first_cache_row + request
        key = keys[mine, first:end].repeat_interleave(group, dim=1).float()  # [seen, heads, head_dim]
        value = values[mine, first:end].repeat_interleave(group, dim=1).float()
        weights = torch.softmax(torch.einsum("hd,khd->hk", query[row].float(), key) * scale, dim=-1)
        mixed[row] = torch.einsum("hk,khd->hd", weights, value).to(query.dtype)
    return mixed


_SELECTABLE: dict[str, Kernel] = {"sdpa": sdpa, "varlen": varlen, "split": split, "plain": plain}

KERNELS: dict[str, Kernel] = _SELECTABLE | {"explicit": partial(explicit, cap=None)}


def _has_paged_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"seqused_k", "block_table", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
