"""Kinds of attention: what their weights are, and what a request keeps and reads of its context."""

from __future__ import annotations

from pydantic import Field

from simulator.core.reading import Strict


class LatentAttention(Strict):
    """Ranks and head widths of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kv_rank: int = Field(gt=0)
    rope_width: int = Field(gt=0)
    nope_width: int = Field(gt=0)
    value_width: int = Field(gt=0)
    query_rank: int | None = Field(default=None, gt=0)

    def parameters(self, hidden: int, heads: int) -> int:
        """Weights of one layer's attention."""
        query = heads * (self.nope_width + self.rope_width)
        down = 0 if self.query_rank is None else hidden * self.query_rank
        queries = down + (self.query_rank or hidden) * query
        keys = hidden * (self.kv_rank + self.rope_width)
        values = self.kv_rank * heads * (self.nope_width + self.value_width)
        return queries + keys + values + heads * self.value_width * hidden


class CompressedAttention(Strict):
    """Attention of DeepSeek-V4: one vector of ``width`` is key and value, and most layers join tokens.

    ``sparse_layers`` keep one vector for ``sparse_ratio`` tokens, with an index key beside it, and read the
    ``top`` that their index chooses; ``heavy_layers`` keep one for ``heavy_ratio`` and read all. Every layer
    sees the last tokens of a window whole. query_rank, output_rank, output_groups: of the low-rank queries
    and outputs. Sizes are those of config.json; how weights and cache follow is checked against the published
    parameters and cache of a million tokens.
    """

    width: int = Field(gt=0)
    query_rank: int = Field(gt=0)
    output_rank: int = Field(gt=0)
    output_groups: int = Field(gt=0)
    sparse_layers: int = Field(ge=0)
    sparse_ratio: int = Field(default=4, gt=0)
    heavy_layers: int = Field(ge=0)
    heavy_ratio: int = Field(default=128, gt=0)
    index_heads: int = Field(gt=0)
    index_width: int = Field(gt=0)
    top: int = Field(gt=0)

    def parameters(self, hidden: int, heads: int) -> int:
        """Weights of one layer's attention, without what joins tokens."""
        queries = self.query_rank * (hidden + heads * self.width)
        outputs = self.output_rank * (heads * self.width + self.output_groups * hidden)
        return queries + hidden * self.width + outputs

    def joining_parameters(self, hidden: int) -> int:
        """Weights of all layers' compressors and indexes.

        A compressor has a value and a gate matrix, twice as wide where groups of tokens overlap (the sparse
        layers). An index has queries, a weight for each of its heads, and a compressor of its own.
        """
        compressor = 2 * hidden * self.width
        index = self.index_heads * (self.query_rank * self.index_width + hidden)
        sparse = 2 * compressor + index + 4 * hidden * self.index_width
        return self.sparse_layers * sparse + self.heavy_layers * compressor

    def kept(self, context: float, layers: int, window: int) -> float:
        """Elements that a request of so many tokens keeps, all layers."""
        sparse = self.sparse_layers * (self.width + self.index_width) * context / self.sparse_ratio
        heavy = self.heavy_layers * self.width * context / self.heavy_ratio
        return sparse + heavy + layers * self.width * min(context, window)

    def read(self, context: float, layers: int, window: int) -> float:
        """Elements that a step reads of them: of the sparse layers all index keys, and the chosen vectors."""
        joined = context / self.sparse_ratio
        sparse = self.sparse_layers * (self.index_width * joined + self.width * min(joined, self.top))
        heavy = self.heavy_layers * self.width * context / self.heavy_ratio
        return sparse + heavy + layers * self.width * min(context, window)
