"""Ragged rows: which row belongs to which request, and where in its context it stands."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
