"""Which small operations of a target or a draft run fused: those whose replacement a trial shows to be equal.

Layers run as they are written; only four pieces are replaced while a pass runs: norms, the gate of a
feed-forward layer, the rotation of queries and keys, and residual sums. A piece stays as it is where the
replacement differs on random numbers, as for Gemma's norms, or does not run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from simulator.live.device import synchronise
from simulator.live.families.fused import operators, residual

_ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the function in every kind's own source file."""

_OURS = "rotate"
"""What our drafts call it."""

Replacement = tuple[Any, str, Callable[..., Any]]
"""An object, the name of one of its attributes, and what stands there while a pass runs."""


def replacements(model: nn.Module, asked: bool | None) -> list[Replacement]:
    """Return what to replace in a decoder or a draft. asked: None replaces on CUDA with Triton alone."""
    like = next(model.parameters())
    on_gpu = like.device.type == "cuda" and find_spec("triton") is not None
    if not (on_gpu if asked is None else asked):
        return []
    found, verdicts = list[Replacement](), dict[tuple[Any, ...], bool]()
    for module in model.modules():
        made = _replacement(module)
        if made is None:
            continue
        forward, width = made
        kind = type(module), width
        if kind not in verdicts:
            verdicts[kind] = _equal(module, forward, _drawn(like, 1, 3, width))
        if verdicts[kind]:
            found.append((module, "forward", forward))
    normed = {id(module) for module, _, _ in found}
    found += _layers(model, like, normed)
    return found + _rotations(model, like)


def _layers(model: nn.Module, like: Tensor, normed: set[int]) -> list[Replacement]:
    """Layers whose residual sums run fused: of those whose norm between them does."""
    found, unequal = list[Replacement](), set[tuple[Any, ...]]()
    for module in model.modules():
        layer: Any = module
        norm: Any = getattr(layer, "post_attention_layernorm", None)
        if id(norm) not in normed or not all(hasattr(layer, name) for name in ("self_attn", "mlp")):
            continue
        name = "run" if hasattr(layer, "run") else "forward"
        kind = type(layer), type(layer.mlp)
        fused = None if kind in unequal else _fused(layer, name, _drawn(like, 1, 3, norm.weight.shape[0]))
        if fused is None:
            unequal.add(kind)
        else:
            found.append((layer, name, fused))
    return found


def _fused(layer: Any, name: str, trial: Tensor) -> Callable[..., Any] | None:
    with torch.no_grad():
        try:
            if name == "run":
                return residual.fused_block(layer, trial)
            return residual.fused_layer(layer, trial, lambda *one: installed([one]))
        except Exception:  # layers of another form fail in their own ways; so does what does not run
            return None


def _rotations(model: nn.Module, like: Tensor) -> list[Replacement]:
    """Replace the rotation of each source file, under either name."""
    found = list[Replacement]()
    for file in sorted({type(module).__module__ for module in model.modules()}):
        for name, fused in ((_ROTATION, _pair_turned), (_OURS, _turned)):
            own = getattr(sys.modules[file], name, None)
            replaced = None if own is None else _tried(own, fused(own), like, pair=name == _ROTATION)
            if replaced is not None:
                found.append((sys.modules[file], name, replaced))
    return found


def _drawn(like: Tensor, *shape: int) -> Tensor:
    """Random numbers of the type and on the device of another tensor."""
    draw = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=draw, device=like.device, dtype=like.dtype)


def names(replaced: list[Replacement]) -> str:
    """Say what is fused, for a profile's conditions."""
    kinds = {
        "rotation"
        if name in (_ROTATION, _OURS)
        else "residual"
        if hasattr(owner, "self_attn")
        else "gate"
        if hasattr(owner, "gate_proj")
        else "norm"
        for owner, name, _ in replaced
    }
    return ", ".join(sorted(kinds)) or "nothing"


@contextmanager
def installed(replaced: list[Replacement]) -> Iterator[None]:
    """Inside, the pieces run fused; afterwards the target is as it was."""
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in replaced]
    try:
        for owner, name, new in replaced:
            setattr(owner, name, new)
        yield
    finally:
        for owner, name, old in before:
            if old is None:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


def _replacement(module: Any) -> tuple[Callable[[Tensor], Tensor], int] | None:
    """Return a fused forward pass of a norm or a gated layer, and the width of its input."""
    eps = getattr(module, "eps" if isinstance(module, nn.RMSNorm) else "variance_epsilon", None)
    if type(module).__name__.endswith("RMSNorm") and eps is not None:
        return lambda x: operators.rms_norm(x, module.weight, eps), int(module.weight.shape[0])
    parts: list[Any] = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if all(isinstance(part, nn.Linear) for part in parts):
        gate, up, down = parts
        return lambda x: down(operators.gated(gate(x), up(x))), int(module.gate_proj.in_features)
    return None


def _equal(module: Any, forward: Callable[[Tensor], Tensor], trial: Tensor) -> bool:
    """Whether both passes agree to four units of rounding of the largest output."""
    with torch.no_grad():
        try:
            ours, own = forward(trial), module(trial)
            synchronise(trial.device)
        except Exception:  # compilers and drivers fail in types of their own; any says that it does not run
            return False
    unit = 4 * torch.finfo(trial.dtype).eps
    return torch.allclose(ours, own, rtol=unit, atol=unit * float(own.abs().max()))


def _pair_turned(own: Callable[..., Any]) -> Callable[..., Any]:
    """Rotation of queries and keys [1, heads, N, head_dim] together, as transformers has it."""

    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or cos.shape[-1] != query.shape[-1] or query.shape[0] != 1:
            return own(query, key, cos, sin, *more, **named)
        return operators.rotate(query, cos, sin), operators.rotate(key, cos, sin)

    return turned


def _turned(own: Callable[..., Any]) -> Callable[..., Any]:
    """Rotation of heads [..., heads, head_dim] by cos and sin [..., 1, head_dim], as our drafts have it."""

    def turned(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (each.expand(*x.shape[:-2], 1, -1).reshape(1, -1, each.shape[-1]) for each in rope)
        if cos.shape[-1] != x.shape[-1]:
            return own(x, rope)  # type: ignore[no-any-return]
        heads: Tensor = operators.rotate(x.reshape(-1, *x.shape[-2:]).transpose(0, 1)[None], cos, sin)
        return heads[0].transpose(0, 1).reshape(x.shape)

    return turned


def _tried(
    own: Callable[..., Any], fused: Callable[..., Any], like: Tensor, *, pair: bool
) -> Callable[..., Any] | None:
    """Return the fused rotation if it equals a source file's own on a trial."""
    if pair:
        trial: list[Any] = [
            _drawn(like, *shape) for shape in ((1, 4, 3, 16), (1, 2, 3, 16), (1, 3, 16), (1, 3, 16))
        ]
    else:
        trial = [_drawn(like, 2, 3, 4, 16), (_drawn(like, 2, 3, 1, 16), _drawn(like, 2, 3, 1, 16))]
    try:
        ours, theirs = fused(*trial), own(*trial)
        synchronise(like.device)
    except Exception:  # as above
        return None
    unit = 4 * torch.finfo(like.dtype).eps
    ours, theirs = (ours, theirs) if pair else ((ours,), (theirs,))
    same = all(torch.allclose(a, b, rtol=unit, atol=unit) for a, b in zip(ours, theirs, strict=True))
    return fused if same else None
