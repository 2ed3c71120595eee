"""Prompts on their way into a live engine's batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from simulator.core.errors import BadInputError
from simulator.engine.executor import Chunk, PromptRows
from simulator.live.engine.passes import Passes
from simulator.live.engine.prompt_rows import PrefilledPrompt, PromptPiece, prompt_slices
from simulator.live.engine.prompts import Prompts
from simulator.traffic.workload import Workload


class PromptRunner:
    """Prompts under way: the cache rows they use until they get a batch row, and those that are complete.

    rows: cache rows beyond the batch, one for each prompt that may be under way.
    """

    def __init__(self, passes: Passes, prompts: Prompts, workload: Workload, rows: Sequence[int]) -> None:
        self.passes, self.prompts, self.workload = passes, prompts, workload
        self._free = list(rows)
        self._begun: dict[int, tuple[int, Tensor]] = {}  # their cache rows, and their tokens
        self._ready: dict[int, PrefilledPrompt] = {}

    def prefill(self, prompts: PromptRows) -> None:
        """Prefill prompts, one after the other, and keep what they leave until they get a row."""
        for chunk in prompts.chunks:
            for piece in self.pieces(chunk):
                self.finish(piece, *self.passes.prompt(piece))

    def take(self, row: int, request: int, positions: int) -> PrefilledPrompt:
        """Return a prefilled prompt of so many positions; one that is not ready is prefilled in ``row``."""
        ready = self._ready.pop(request, None)
        if ready is None or ready.positions != positions:
            ready = self._prefill_row(row, request, positions)
        return ready

    def _prefill_row(self, row: int, request: int, positions: int) -> PrefilledPrompt:
        """Run a prompt through the target into a cache row, and all but its last position into the draft."""
        prompt = self.passes.to_device(self.prompts(request, positions))
        for piece in prompt_slices(row, prompt, Chunk(request, 0, positions, True)):
            logits, features = self.passes.prompt(piece)
            self.passes.see(piece, features)
        return self._prefilled(positions, logits, features)

    def pieces(self, chunk: Chunk) -> list[PromptPiece]:
        """Return a chunk in the cache row that its prompt has until it is complete."""
        if chunk.request not in self._begun:
            self._begun[chunk.request] = self._begin(chunk)
        return prompt_slices(*self._begun[chunk.request], chunk)

    def _begin(self, chunk: Chunk) -> tuple[int, Tensor]:
        """Return a cache row for a prompt of which this is the first chunk, and its tokens on the device."""
        if chunk.start:
            raise BadInputError(
                "begins behind a cached prefix, which the live engine does not keep", field="prompt",
                value=chunk.request, remedy="run live without a prefix cache",
            )  # fmt: skip
        if not self._free:
            raise BadInputError(
                "are all in use", field="prompt_rows", value=len(self._begun),
                remedy="give as many as prompts may share a step: prompt_rows_for(workload, limits)",
            )  # fmt: skip
        positions = int(self.workload.prompt_tokens[chunk.request])
        return self._free.pop(), self.passes.to_device(self.prompts(chunk.request, positions))

    def finish(self, piece: PromptPiece, logits: Tensor, features: Tensor) -> None:
        """Finish prompt rows that the target has processed."""
        self.passes.see(piece, features)
        if piece.end == piece.positions:
            row, _ = self._begun.pop(piece.request)
            self._ready[piece.request] = self._stash(row, self._prefilled(piece.end, logits, features))
            self._free.append(row)

    def _prefilled(self, positions: int, logits: Tensor, features: Tensor) -> PrefilledPrompt:
        return PrefilledPrompt(positions, self.passes.first_token(logits), features[-1])

    def _stash(self, row: int, ready: PrefilledPrompt) -> PrefilledPrompt:
        """Return the same with copies of the cache row, so that the next prompt can use it."""
        used = ready.positions
        content = [
            (cache, 1, cache[:, row, :used].clone())
            for cache in (self.passes.cache.keys, self.passes.cache.values)
        ]
        if self.passes.draft_cache is not None:
            both = (self.passes.draft_cache.keys, self.passes.draft_cache.values)
            content += [(cache, 2, cache[:, row, :, :used].clone()) for cache in both]
        return PrefilledPrompt(used, ready.anchor, ready.last_features, tuple(content))
