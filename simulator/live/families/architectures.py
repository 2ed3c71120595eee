"""Which kinds of targets run here, and what each of their layers keeps in a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from packaging.version import Version
from torch import nn

from simulator.core.errors import BadInputError

LATENT = frozenset(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"))
"""Kinds whose keys and values are expanded from one latent vector a position (DeepSeek-V2, section 2.1)."""

GEMMA4 = frozenset(("gemma4_text", "gemma4_unified_text"))
"""Kinds whose full and sliding layers have heads of different number and width."""

SUPPORTED = LATENT | GEMMA4 | frozenset(
    (
        "cohere2", "ernie4_5", "exaone4", "gemma2", "gemma3_text", "glm4", "glm4_moe", "gpt_oss", "granite",
        "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
        "starcoder2",
    )
)  # fmt: skip
"""Model types whose ragged pass a test compares with the model's own forward pass, one by one. Others are
refused: a model that keeps a state or places its rows in a way of its own could run and be wrong."""

NEEDS = dict.fromkeys((*GEMMA4, "gemma4", "gemma4_unified"), "5.24")
"""Oldest transformers in which a kind is as it was tested here; before it, classes or fields were others."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer keeps of a position: keys and values [kv_heads, head_dim].

    latent: the values are the first so many numbers of the keys, which are one latent head that all query
    heads share; None for keys and values of their own.
    """

    kv_heads: int
    head_dim: int
    latent: int | None = None

    @property
    def width(self) -> int:
        """Numbers of the keys of one position."""
        return self.kv_heads * self.head_dim

    @property
    def numbers(self) -> int:
        """Numbers of one position that a decode step reads."""
        return self.width if self.latent is not None else 2 * self.width


def refuse_untested(config: Any, source: str) -> None:
    """Raise ``BadInputError`` for a kind of target that no test compares with the model's own output."""
    text = config.get_text_config()
    kind = getattr(text, "model_type", None)
    if kind not in SUPPORTED:
        raise BadInputError(
            "is a kind of target whose verification pass is not tested here; it could run and be wrong",
            source=source, field="model_type", value=kind,
            remedy=f"supported: {', '.join(sorted(SUPPORTED))}",
        )  # fmt: skip
    refuse_older(kind, source)
    if getattr(text, "use_bidirectional_attention", None) in ("all", True):
        raise BadInputError(
            "lets positions see those behind them, which no decoding step has", source=source,
            field="use_bidirectional_attention", value=text.use_bidirectional_attention,
            remedy="choose the decoder of this model",
        )  # fmt: skip


def refuse_older(kind: object, source: str) -> None:
    """Raise ``BadInputError`` where this transformers is older than the one that defines the kind."""
    needed = NEEDS.get(str(kind))
    if needed is not None and Version(transformers.__version__) < Version(needed):
        raise BadInputError(
            f"is tested with transformers {needed}, and this is {transformers.__version__}", source=source,
            field="model_type", value=kind, remedy=f"install transformers {needed} or newer",
        )  # fmt: skip


def layer_shapes(config: Any, layers: Sequence[nn.Module]) -> tuple[LayerShape, ...]:
    """Tell what each layer keeps of a position, from a target's config and its decoder layers."""
    text = config.get_text_config()
    if text.model_type in LATENT:
        latent = LayerShape(1, text.kv_lora_rank + text.qk_rope_head_dim, text.kv_lora_rank)
        return (latent,) * len(layers)
    heads: int = text.num_attention_heads
    if text.model_type in GEMMA4:
        attentions: list[Any] = [layer.self_attn for layer in layers]
        return tuple(LayerShape(heads // each.num_key_value_groups, each.head_dim) for each in attentions)
    kv_heads: int = getattr(text, "num_key_value_heads", None) or heads
    head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    return (LayerShape(kv_heads, head_dim),) * len(layers)


def mtp_prefixes(config: Any) -> tuple[str, ...]:
    """How the tensors of MTP modules begin, which checkpoints keep behind the decoder's layers."""
    text = config.get_text_config()
    modules = int(getattr(text, "num_nextn_predict_layers", None) or 0)
    return tuple(f"model.layers.{text.num_hidden_layers + each}." for each in range(modules))
