"""Residual sums of a layer: one runs with the norm behind it, the other with the product before it.

Where a layer is not ``x + attention(norm(x))`` and then ``y + feed_forward(norm(y))``, a trial shows it: the
layer runs beside its replacement with a stand-in for attention, which also tells what it hands to attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.families.fused import operators

Install = Callable[[Any, str, Callable[..., Any]], AbstractContextManager[None]]
"""Put a function in place of an attribute while a block runs."""

_UNHEARD_OF = "an_argument_nobody_has_heard_of"


@dataclass(frozen=True, slots=True)
class Handed:
    """What a layer hands to attention: arguments by name with their defaults, and others if ``open_``."""

    defaults: Mapping[str, Any]
    named: frozenset[str]
    open_: bool

    def of(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return attention's arguments where the layer got these."""
        known = {name: given.get(name, default) for name, default in self.defaults.items()}
        return known | {name: given[name] for name in given if self.open_ and name not in self.named}


def is_gated(mlp: Any) -> bool:
    """Whether a feed-forward layer has a gate, and an output matrix alone at its end."""
    parts = [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return all(isinstance(part, nn.Linear) for part in parts) and mlp.down_proj.bias is None


def added(mlp: Any, normed: Tensor, total: Tensor, *, in_place: bool) -> Tensor:
    """Add the feed-forward of ``normed`` to ``total``; in_place: within the product of its output matrix."""
    if not in_place:
        output = mlp(normed)
        fed: Tensor = output[0] if isinstance(output, tuple) else output
        return total + fed
    product = operators.gated(mlp.gate_proj(normed), mlp.up_proj(normed))
    total.view(-1, total.shape[-1]).addmm_(product.flatten(0, -2), mlp.down_proj.weight.t())
    return total


def fused_layer(layer: Any, trial: Tensor, install: Install) -> Callable[..., Any] | None:
    """Return a forward pass that equals the one of a target's layer on a trial [1, rows, d], or None."""
    handed, own = _observed(layer, trial, install)
    for in_place in (True, False) if is_gated(layer.mlp) else (False,):
        forward = _forward(layer, handed, in_place, isinstance(own, tuple))
        with install(layer.self_attn, "forward", lambda hidden_states, **_: (_stand_in(hidden_states), None)):
            if _close(forward(trial), own):
                return forward
    return None


def fused_block(block: Any, trial: Tensor) -> Callable[..., Tensor] | None:
    """Return the same of a draft's block, whose ``run`` takes what attention reads beside the residual."""
    for in_place in (True, False) if is_gated(block.mlp) else (False,):
        run = _run(block, in_place)
        if _close(_tried(block, run, trial), _tried(block, block.run, trial)):
            return run
    return None


def _observed(layer: Any, trial: Tensor, install: Install) -> tuple[Handed, Any]:
    """Run a layer with a stand-in for attention; ``ValueError`` where it hands on what it was not given."""
    parameters = list(inspect.signature(layer.forward).parameters.values())[1:]
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    given: dict[str, Any] = {each.name: object() for each in named}
    given |= {name: False for name in given if name.startswith(("output_", "use_"))}
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        given[_UNHEARD_OF] = object()
    seen: dict[str, Any] = {}

    def attention(hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        seen.update(arguments)
        return _stand_in(hidden_states), None

    with install(layer.self_attn, "forward", attention):
        own = layer.forward(trial, **given)
    if any(given.get(name, layer) is not value for name, value in seen.items()):
        raise ValueError("attention gets what its layer did not")
    defaults = {each.name: each.default for each in named if each.name in seen}
    return Handed(defaults, frozenset(each.name for each in named), _UNHEARD_OF in seen), own


def _stand_in(hidden: Tensor) -> Tensor:
    return torch.flip(hidden, (-1,))


def _forward(layer: Any, handed: Handed, in_place: bool, as_tuple: bool) -> Callable[..., Any]:
    norm = layer.post_attention_layernorm

    def forward(hidden_states: Tensor, **given: Any) -> Any:
        inputs = layer.input_layernorm(hidden_states)
        attended = layer.self_attn(hidden_states=inputs, **handed.of(given))[0]
        normed, total = operators.sum_norm(attended, hidden_states, norm.weight, norm.variance_epsilon)
        output = added(layer.mlp, normed, total, in_place=in_place)
        return (output,) if as_tuple else output

    return forward


def _run(block: Any, in_place: bool) -> Callable[..., Tensor]:
    norm = block.post_attention_layernorm

    def run(residual: Tensor, inputs: Tensor, rope: Any, reach: Callable[..., Any], mask: Any) -> Tensor:
        keys, values = reach(*block.self_attn.keys_values(inputs, rope))
        attended = block.self_attn(inputs, rope, keys, values, mask)
        normed, total = operators.sum_norm(attended, residual, norm.weight, norm.eps)
        return added(block.mlp, normed, total, in_place=in_place)

    return run


class _StandIn(nn.Module):
    """In place of a block's attention, in a trial."""

    def keys_values(self, hidden: Tensor, rope: None) -> tuple[Tensor, Tensor]:
        return hidden, hidden

    def forward(self, hidden: Tensor, rope: None, keys: Tensor, values: Tensor, mask: None) -> Tensor:
        return _stand_in(hidden)


def _tried(block: Any, run: Callable[..., Tensor], trial: Tensor) -> Tensor:
    own = block.self_attn
    try:
        block.self_attn = _StandIn()
        return run(trial, block.input_layernorm(trial), None, lambda *both: both, None)
    finally:
        block.self_attn = own


def _close(ours: Any, own: Any) -> bool:
    """Whether outputs agree to four units of rounding of the largest."""
    first, second = (each[0] if isinstance(each, tuple) else each for each in (ours, own))
    unit = 4 * torch.finfo(second.dtype).eps
    return torch.allclose(first, second, rtol=unit, atol=unit * float(second.abs().max()))
