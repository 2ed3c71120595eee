"""The transformer block of the drafts (Qwen3's), and the cache of what a draft has seen.

Layouts: hidden states [..., d]; queries, keys and values [..., heads, head_dim] until they meet in
attention, which runs on [requests, kv_heads, tokens, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from simulator.core.errors import BadInputError
from simulator.live.models.checkpoints import Fields

# Rotary variants whose frequencies are fixed at load; "dynamic" and "longrope" change them with the length.
ROPE_TYPES = ("default", "linear", "yarn", "llama3")

KeysValues = tuple[Tensor, Tensor]

Reach = Callable[[Tensor, Tensor], KeysValues]
"""Turns own keys and values [R, Q, kv_heads, head_dim] into all that is seen, [R, kv_heads, K, head_dim]."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnContext:
    """In place of a mask: request r sees its first ``ends[r]`` entries, and nothing behind them is read.

    ends: int64 [R]. attend: ``live.engine.attention.split.attend``, given by whoever knows that it runs here.
    """

    ends: Tensor
    attend: Callable[..., Tensor]

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from queries [R, Q, heads, head_dim] to keys and values [R, kv_heads, K, head_dim]."""
        rows, head_dim = queries.shape[1], queries.shape[-1]
        counts = torch.full_like(self.ends, rows)
        mixed = self.attend(
            queries.flatten(0, 1), keys.transpose(1, 2), values.transpose(1, 2), counts.cumsum(0) - counts,
            counts, self.ends - counts, None, block=rows, scale=head_dim**-0.5, causal=False,
        )  # fmt: skip
        return mixed.view(queries.shape)


Mask = Tensor | OwnContext | None
"""Who sees what: True where attention is allowed; or each its own context; None allows all."""


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Shape of a stack of Qwen3 blocks, in the field names of a Hugging Face config.json.

    ``rope`` is the rotary dictionary: at least ``rope_type`` and ``rope_theta``.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})

    @classmethod
    def from_fields(cls, fields: Fields) -> BackboneConfig:
        """Read and check a config.json; raises ``BadInputError`` that names the field."""
        for name, supported in (
            ("model_type", "qwen3"),
            ("hidden_act", "silu"),
            ("use_sliding_window", False),
        ):
            fields.expect(name, supported)
        layers = fields.raw.get("layer_types") or []
        if not isinstance(layers, list) or any(each != "full_attention" for each in layers):
            raise fields.error("layer_types", "only full attention is supported")
        heads = fields.integer("num_attention_heads", minimum=1)
        config = cls(
            vocab_size=fields.integer("vocab_size", minimum=1),
            hidden_size=fields.integer("hidden_size", minimum=1),
            intermediate_size=fields.integer("intermediate_size", minimum=1),
            num_hidden_layers=fields.integer("num_hidden_layers", minimum=1),
            num_attention_heads=heads,
            num_key_value_heads=fields.integer("num_key_value_heads", heads, minimum=1),
            head_dim=fields.integer("head_dim", 128, minimum=2),  # transformers' default for Qwen3
            max_position_embeddings=fields.integer("max_position_embeddings", 32768, minimum=1),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attention_bias=fields.flag("attention_bias", False),
            rope=read_rope(fields),
        )
        if heads % config.num_key_value_heads:
            raise fields.error("num_key_value_heads", f"must divide the {heads} attention heads")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the same shape as a config.json that transformers and DeepSpec read, old and new."""
        rope = dict(self.rope)
        return {
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "layer_types": ["full_attention"] * self.num_hidden_layers,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "qwen3",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": None if rope["rope_type"] == "default" else rope,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }


def read_rope(fields: Fields, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rotary parameters in one form, from either spelling; ``also``: further kinds that the model has.

    transformers 5 writes ``rope_parameters`` (per layer type, for some models); before it there were a
    top-level ``rope_theta`` and a ``rope_scaling`` whose kind was ``type`` before it was ``rope_type``.
    """
    raw = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    inner = raw.get("full_attention", raw) if isinstance(raw, dict) else None
    if not isinstance(inner, dict):
        raise fields.error("rope_parameters", "must be an object of settings")
    rope = dict(inner)
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    rope.setdefault("rope_theta", fields.number("rope_theta", 10_000.0))
    if rope["rope_type"] not in ROPE_TYPES + also:
        raise fields.error("rope_parameters", f"rope_type must be one of {', '.join(ROPE_TYPES + also)}")
    theta = rope["rope_theta"]
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise fields.error("rope_parameters", "rope_theta must be a positive number")
    return rope


class Rotary(nn.Module):
    """Rotary position embedding in the rotate-half convention.

    Frequencies stay float32 whatever the model is cast to: positions above 256 are not even
    representable in bfloat16.
    """

    inverse_frequencies: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        # Built on the CPU even when the model is being built without storage (meta device).
        with torch.device("cpu"):
            frequencies, self.magnitude = _rotary_frequencies(config)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        device = fn(self.inverse_frequencies).device
        self.inverse_frequencies = self.inverse_frequencies.to(device)  # moved, never cast
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> KeysValues:
        """Positions [...] -> (cos, sin), each [..., 1, head_dim], to broadcast over heads."""
        angles = positions[..., None].float() * self.inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[..., None, :]
        return (angles.cos() * self.magnitude).to(dtype), (angles.sin() * self.magnitude).to(dtype)


def _rotary_frequencies(config: BackboneConfig) -> tuple[Tensor, float]:
    rope = config.rope
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    if rope["rope_type"] == "default":
        return float(rope["rope_theta"]) ** -exponents, 1.0
    if rope["rope_type"] == "proportional":  # Gemma 4: a share of the head turns, the rest stands still
        turning = torch.arange(len(exponents)) < int(rope.get("partial_rotary_factor", 1.0) * len(exponents))
        frequencies = float(rope["rope_theta"]) ** -exponents / float(rope.get("factor", 1.0))
        return torch.where(turning, frequencies, 0.0), 1.0
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # The older spelling: transformers 5 converts it, transformers 4 knows nothing else.
    described = AutoConfig.for_model(
        "qwen3",
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=rope["rope_theta"],
        rope_scaling=dict(rope),
    )
    try:
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](described, torch.device("cpu"))
    except (TypeError, ValueError, KeyError) as error:
        raise BadInputError(
            f"describes no rotary embedding: {error}", source="config.json", field="rope_parameters",
            value=rope, remedy="check that this is a draft's config.json",
        ) from error  # fmt: skip
    return frequencies.float(), float(magnitude)


def rotate(x: Tensor, rope: KeysValues) -> Tensor:
    """Turn [..., heads, head_dim] by the cosines and sines of ``Rotary``."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with per-head RMS norms on queries and keys (Qwen3)."""

    def __init__(self, config: BackboneConfig, width: int | None = None) -> None:
        super().__init__()
        d, head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        read = width or d  # Eagle3's attention reads more than the residual
        self.head_dim = head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(read, config.num_attention_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(read, config.num_key_value_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(read, config.num_key_value_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, d, bias=bias)
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)

    def keys_values(self, hidden: Tensor, rope: KeysValues) -> KeysValues:
        """[..., d] -> keys (normed and rotated) and values, each [..., kv_heads, head_dim]."""
        heads = (*hidden.shape[:-1], -1, self.head_dim)
        keys = self.k_norm(self.k_proj(hidden).view(heads))
        return rotate(keys, rope), self.v_proj(hidden).view(heads)

    def forward(self, hidden: Tensor, rope: KeysValues, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """Attend from ``hidden`` [R, Q, d] to ``keys`` and ``values`` [R, kv_heads, K, head_dim].

        A mask is [R, Q or 1, K]. The query heads that share a key head become extra query rows of it, so
        keys and values are never repeated and every attention kernel can be used.
        """
        queries = self.q_norm(self.q_proj(hidden).view(*hidden.shape[:-1], -1, self.head_dim))
        queries = rotate(queries, rope)
        if isinstance(mask, OwnContext):
            own: Tensor = self.o_proj(mask.mix(queries, keys, values).flatten(2))
            return own
        queries = torch.unflatten(queries, 2, (-1, self.groups)).permute(0, 2, 3, 1, 4)
        if mask is not None:
            mask = mask[:, None] if mask.shape[1] == 1 else mask[:, None].repeat(1, 1, self.groups, 1)
        mixed = scaled_dot_product_attention(queries.flatten(2, 3), keys, values, attn_mask=mask)
        mixed = torch.unflatten(mixed, 2, (self.groups, -1)).permute(0, 3, 1, 2, 4)
        projected: Tensor = self.o_proj(mixed.flatten(2))
        return projected


class MLP(nn.Module):
    """SiLU-gated feed-forward layer."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        projected: Tensor = self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return projected


class Block(nn.Module):
    """One pre-norm transformer block whose attention may reach beyond its own tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rope: KeysValues,
        reach: Reach,
        mask: Mask,
    ) -> Tensor:
        """[R, Q, d] -> [R, Q, d].

        ``reach`` turns this block's own keys and values [R, Q, kv_heads, head_dim] into everything it
        attends to, [R, kv_heads, K, head_dim]; ``mask`` [R, Q or 1, K] as in ``Attention``.
        """
        return self.run(hidden, self.input_layernorm(hidden), rope, reach, mask)

    def run(self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask) -> Tensor:
        """Run the block where attention reads ``inputs`` [R, Q, width], which need not be the residual."""
        keys, values = reach(*self.self_attn.keys_values(inputs, rope))
        hidden = residual + self.self_attn(inputs, rope, keys, values, mask)
        updated: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return updated


class DraftCache:
    """Keys and values of the committed context, one row per request, written in place.

    Rows have their own lengths, so a ragged batch of requests shares one cache. ``lengths`` lives on
    the CPU: whoever commits tokens knows them there already, and the GPU is never waited for.

    keys, values: [layers, R, kv_heads, capacity, head_dim].
    """

    def __init__(
        self, config: BackboneConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, not garbage: positions behind the mask still meet a weight of zero, and 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Number of requests."""
        return self.keys.shape[1]

    def claim(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Lengthen row r by ``counts[r]`` (CPU, [R]); gives each new entry's row and position, [N] each."""
        longest = int((self.lengths + counts).max())
        if longest > self.keys.shape[3]:
            raise ValueError(f"draft cache holds {self.keys.shape[3]} positions, {longest} are needed")
        rows = torch.repeat_interleave(torch.arange(self.rows), counts)
        first = torch.cumsum(counts, 0) - counts
        positions = self.lengths[rows] + torch.arange(len(rows)) - first[rows]
        self.lengths = self.lengths + counts
        return rows.to(self.keys.device), positions.to(self.keys.device)

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [..., kv_heads, head_dim] at (rows, positions), each [...]."""
        self.keys[layer][rows, :, positions] = keys
        self.values[layer][rows, :, positions] = values

    def read(self, layer: int, beyond: int = 0, window: int | None = None) -> KeysValues:
        """View the cache [R, kv_heads, longest + beyond, head_dim]: context and scratch entries.

        window: of each row only the last so many positions of its context, copied, and the scratch entries:
        [R, kv_heads, window + beyond, head_dim].
        """
        if window is not None:
            rows = torch.arange(self.rows, device=self.keys.device)[:, None]
            places = last_places(self.lengths.to(self.keys.device), window, beyond).clamp(min=0)
            return taken(self.keys[layer], rows, places), taken(self.values[layer], rows, places)
        end = int(self.lengths.max()) + beyond
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask(self, beyond: int = 0, window: int | None = None) -> Tensor | None:
        """Which of ``read``'s entries belong to each row: bool [R, 1, longest + beyond]; None if all do."""
        if window is not None:
            return last_places(self.lengths.to(self.keys.device), window, beyond)[:, None] >= 0
        longest = int(self.lengths.max())
        if int(self.lengths.min()) == longest:
            return None
        ends = (self.lengths + beyond).to(self.keys.device)
        return torch.arange(longest + beyond, device=self.keys.device) < ends[:, None, None]


def last_places(lengths: Tensor, window: int, beyond: int) -> Tensor:
    """Positions of each row's window and of what is behind it: [R, window + beyond], negative before 0."""
    return lengths[:, None] + torch.arange(-window, beyond, device=lengths.device)


def taken(cached: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Copy the places [R, K] of rows [R, 1]: [R, kv_heads, capacity, hd] -> [R, kv_heads, K, hd]."""
    return cached[rows, :, places].transpose(1, 2)
