"""Latent attention (DeepSeek-V2, section 2.1) over a cache of latents.

A layer compresses each position into one latent c and one rotated key r that all heads share; head h has
the key [K_h c, r] and the value V_h c. With q = [q_n, q_r], the product q . [K_h c, r] is that of
[K_h^T q_n, q_r] and [c, r]: the keys of all heads are one head [c, r], the values its first part c, and V_h
comes after the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.families.architectures import LayerShape


@contextmanager
def latents_of(layers: Sequence[nn.Module], shapes: Sequence[LayerShape]) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass leaves the normed latents [N, rank] of latent layers in the dictionary."""
    latents: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
            if shape.latent is not None:
                hooks.callback(_hook(layer, index, latents).remove)
        yield latents


def _hook(layer: Any, index: int, latents: dict[int, Tensor]) -> torch.utils.hooks.RemovableHandle:
    def keep(module: nn.Module, arguments: object, normed: Tensor) -> None:
        latents[index] = normed[0]

    norm: nn.Module = layer.self_attn.kv_a_layernorm
    return norm.register_forward_hook(keep)


def absorbed(module: Any, query: Tensor, key: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the model's queries and keys of every head into those of the one latent head.

    query, key: [N, heads, nope + rope]; latent: [N, rank]. Returns queries [N, heads, rank + rope] and keys
    [N, 1, rank + rope].
    """
    # The rotated part is the same in every head.
    keys = torch.cat((latent, key[:, 0, module.qk_nope_head_dim :]), dim=-1)
    return absorbed_queries(module, query), keys[:, None]


def absorbed_queries(module: Any, query: Tensor) -> Tensor:
    """Turn queries [..., heads, nope + rope] into queries of the one key, [..., heads, rank + rope]."""
    nope: int = module.qk_nope_head_dim
    into_keys, _ = _expansion(module)
    absorbed_query = torch.einsum("...hd,hdr->...hr", query[..., :nope], into_keys)
    return torch.cat((absorbed_query, query[..., nope:]), dim=-1)


def expanded(module: Any, mixed: Tensor) -> Tensor:
    """Mixtures of latents [..., heads, rank] -> mixtures of values [..., heads, value_dim]."""
    _, into_values = _expansion(module)
    return torch.einsum("...hr,hdr->...hd", mixed, into_values)


def _expansion(module: Any) -> tuple[Tensor, Tensor]:
    """K and V of each head, [heads, nope, rank] and [heads, value_dim, rank]."""
    sizes: list[int] = [module.qk_nope_head_dim, module.v_head_dim]
    weight = torch.unflatten(module.kv_b_proj.weight, 0, (-1, sum(sizes)))
    into_keys, into_values = torch.split(weight, sizes, dim=1)
    return into_keys, into_values
