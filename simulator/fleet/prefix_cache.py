"""The prefix cache of one replica."""

from __future__ import annotations

from collections import OrderedDict

from simulator.traffic.workload import Workload


class PrefixCache:
    """Blocks of prompts that one replica keeps; the least recently used block is dropped first."""

    def __init__(self, workload: Workload, blocks: int, holders: dict[int, set[int]], index: int) -> None:
        assert workload.prefix is not None
        self.prefix, self.prompt_tokens = workload.prefix, workload.prompt_tokens
        self.blocks, self.holders, self.index = blocks, holders, index
        self.hit_tokens = self.asked_tokens = 0
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def hit_share(self) -> float:
        """Share of all prompt tokens that the cache held."""
        return self.hit_tokens / self.asked_tokens if self.asked_tokens else 0.0

    def take(self, request: int) -> int:
        """Return the prompt tokens that the cache holds, and add all blocks of the prompt.

        The blocks are present from now on, although their prefill comes later; a request that follows within
        that time is served too early. At least one token is always left to prefill.
        """
        row = self.prefix.row(request).tolist()
        found = next((k for k, block in enumerate(row) if block not in self._kept), len(row))
        for block in row:
            self._kept[block] = None
            self._kept.move_to_end(block)
            self.holders.setdefault(block, set()).add(self.index)
        while len(self._kept) > self.blocks:
            dropped, _ = self._kept.popitem(last=False)
            self.holders[dropped].discard(self.index)
        prompt = int(self.prompt_tokens[request])
        hit = min(found * self.prefix.block_tokens, prompt - 1)
        self.hit_tokens += hit
        self.asked_tokens += prompt
        return hit
