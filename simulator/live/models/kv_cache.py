"""Caches by batch row: the target's keys and values, and a draft's as one step of a batch sees them.

A request's keys and values lie in the row that the serving model gave it, so that the batch is always the
first R rows and attention reads them in place. What that costs is a copy when a request moves to another
row, once or less in its life. One row more than asked for takes what padding writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simulator.live.families.architectures import LayerShape
from simulator.live.models.layers import DraftCache, KeysValues, Mask, OwnContext, last_places, taken

PAGE = 256
"""Capacities are whole pages: what paged attention kernels take as a block."""


class KVCache:
    """The target's keys and values.

    keys, values: [layers, rows + 1, capacity, width], as wide as the widest layer needs; the last row is the
    trash of padding. ``layer`` gives the heads of one layer.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shapes, self.trash = tuple(shapes), rows
        width, latent = max(shape.width for shape in shapes), shapes[0].latent
        # Zeros, not garbage: positions behind the mask still meet a weight of zero, and 0 * NaN is NaN.
        whole = (len(shapes), rows + 1, whole_pages(capacity), width)
        self.keys = torch.zeros(whole, dtype=dtype, device=device)
        shared = latent is not None
        self.values = self.keys[..., :latent] if shared else torch.zeros(whole, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        """Positions a row holds."""
        return self.keys.shape[2]

    def layer(self, index: int) -> KeysValues:
        """View one layer's keys and values, each [rows + 1, capacity, kv_heads, head_dim]."""
        shape = self.shapes[index]
        heads = shape.kv_heads, shape.head_dim
        keys = torch.unflatten(self.keys[index, ..., : shape.width], -1, heads)
        if shape.latent is not None:
            return keys, keys[..., : shape.latent]
        return keys, torch.unflatten(self.values[index, ..., : shape.width], -1, heads)

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [N, kv_heads, head_dim] at (rows, positions), each [N]."""
        mine, theirs = self.layer(layer)
        mine[rows, positions] = keys
        if self.shapes[layer].latent is None:
            theirs[rows, positions] = values


def whole_pages(positions: int) -> int:
    """Round up to whole pages."""
    return -(-positions // PAGE) * PAGE


def cache_bytes(shapes: Sequence[LayerShape], rows: int, capacity: int, item: int) -> int:
    """Bytes of keys and values of a cache, trash row included; ``item`` is the size of one number."""
    widest = max(shape.numbers for shape in shapes)
    return len(shapes) * (rows + 1) * whole_pages(capacity) * widest * item


class DraftStep:
    """One step's view of a ``DraftCache``: the first rows of the batch, lengths on the device.

    A draft's ``propose`` works on it as on the cache itself. What differs is that nothing depends on the
    host: entries to write and lengths are given as tensors and the context read is a given number of
    positions, so that the whole pass can be recorded in a CUDA graph.

    rows, positions: int64 [N], where the new context goes. lengths: int64 [R], context afterwards.
    Rows count from ``first_row`` of the cache. attend: lets each row read its own context and no more.
    """

    def __init__(
        self,
        cache: DraftCache,
        rows: Tensor,
        positions: Tensor,
        lengths: Tensor,
        *,
        context: int,
        first_row: int = 0,
        attend: Callable[..., Tensor] | None = None,
    ) -> None:
        self._attend = attend
        self._cache, self._entries, self._context, self._first = cache, (rows, positions), context, first_row
        self.lengths = lengths

    @property
    def rows(self) -> int:
        """Number of requests."""
        return self.lengths.shape[0]

    def claim(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Row and position of each new entry, decided by whoever made this view."""
        return self._entries

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """See ``DraftCache.write``."""
        self._cache.write(layer, rows + self._first, positions, keys, values)

    def read(self, layer: int, beyond: int = 0, window: int | None = None) -> KeysValues:
        """See ``DraftCache.read``; as far as ``_end`` whatever the lengths are."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if window is not None:
            rows = self._first + torch.arange(self.rows, device=keys.device)[:, None]
            places = last_places(self.lengths, window, beyond).clamp(min=0)
            return taken(keys, rows, places), taken(values, rows, places)
        mine, end = slice(self._first, self._first + self.rows), self._end(beyond)
        return keys[mine, :, :end], values[mine, :, :end]

    def mask(self, beyond: int = 0, window: int | None = None) -> Mask:
        """See ``DraftCache.mask``."""
        if window is not None:
            return last_places(self.lengths, window, beyond)[:, None] >= 0
        if self._attend is not None:
            return OwnContext(self.lengths + beyond, self._attend)
        position = torch.arange(self._end(beyond), device=self.lengths.device)
        return position < (self.lengths + beyond)[:, None, None]

    def _end(self, beyond: int) -> int:
        # Attention kernels want masks whose rows are aligned.
        return min(-(-(self._context + beyond) // 8) * 8, self._cache.keys.shape[3])


DraftContext = DraftCache | DraftStep
"""What a draft can propose from: the cache itself, or one step's view of it."""
