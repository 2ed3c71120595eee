"""Prompt rows that ride along in a verification pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simulator.engine.executor import Chunk
from simulator.engine.limits import EngineLimits
from simulator.live.engine.attention.rows import RaggedRows
from simulator.traffic.workload import Workload

PREFILL_ROWS = 2048
"""Prompt rows of one forward pass; more would only keep more activations alive."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefilledPrompt:
    """A prompt that has been processed: where decoding starts.

    anchor: [], the first output token. last_features: [width], of the last position, which the draft has
    not seen. content: (cache, its position axis within a row, the row's content) where it must be copied.
    """

    positions: int
    anchor: Tensor
    last_features: Tensor
    content: tuple[tuple[Tensor, int, Tensor], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PromptPiece:
    """Prompt rows of one request that go through the target at once: positions start .. end - 1.

    tokens: int64 [end - start]. following: the tokens behind them as far as the prompt goes.
    """

    request: int
    row: int
    start: int
    end: int
    positions: int
    tokens: Tensor
    following: Tensor
    rows: RaggedRows

    @classmethod
    def of(cls, request: int, row: int, prompt: Tensor, start: int, end: int) -> PromptPiece:
        """Positions ``start`` to ``end`` of a prompt [positions], in this cache row."""
        rows = RaggedRows.of(
            prompt.new_tensor([end - start]), prompt.new_tensor([start]), end - start,
            block=end - start, context=end, first_cache_row=row,
        )  # fmt: skip
        following = prompt[start + 1 : end + 1]
        return cls(request, row, start, end, len(prompt), prompt[start:end], following, rows)


def prompt_slices(row: int, prompt: Tensor, chunk: Chunk) -> list[PromptPiece]:
    """Cut a chunk of a prompt [positions] in this cache row into slices of ``PREFILL_ROWS``."""
    end = chunk.start + chunk.tokens
    starts = range(chunk.start, end, PREFILL_ROWS)
    return [
        PromptPiece.of(chunk.request, row, prompt, start, min(start + PREFILL_ROWS, end)) for start in starts
    ]


def prompt_rows_for(workload: Workload, limits: EngineLimits) -> int:
    """Prompts that may share a step: as many as fit into a chunk, and one cut at either end."""
    if limits.prefill != "chunked":
        return 1
    return min(limits.concurrency, limits.chunk_tokens // int(workload.prompt_tokens.min()) + 2)
