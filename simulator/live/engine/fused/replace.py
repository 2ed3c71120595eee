"""Which small operations of a target run fused: those whose replacement a trial shows to be equal.

Layers run as transformers writes them; only three pieces are replaced while a pass runs: norms, the gate of a
feed-forward layer, and the rotation of queries and keys. A piece stays as it is where the replacement differs
on random numbers, as for Gemma's norms, or does not run.
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
from simulator.live.engine.fused import operators
from simulator.live.models.targets import Target

_ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the function in every kind's own source file."""

Replacement = tuple[Any, str, Callable[..., Any]]
"""An object, the name of one of its attributes, and what stands there while a pass runs."""


def replacements(target: Target, asked: bool | None) -> list[Replacement]:
    """Return what to replace in a target. asked: None replaces on CUDA with Triton alone."""
    on_gpu = target.device.type == "cuda" and find_spec("triton") is not None
    if not (on_gpu if asked is None else asked):
        return []
    found, verdicts = list[Replacement](), dict[tuple[Any, ...], bool]()
    draw = torch.Generator(target.device).manual_seed(0)
    for module in target.model.get_decoder().modules():
        made = _replacement(module)
        if made is None:
            continue
        forward, width = made
        kind = type(module), width
        if kind not in verdicts:
            trial = torch.randn((1, 3, width), generator=draw, device=target.device, dtype=target.dtype)
            verdicts[kind] = _equal(module, forward, trial)
        if verdicts[kind]:
            found.append((module, "forward", forward))
    return found + _rotations(target)


def names(replaced: list[Replacement]) -> str:
    """Say what is fused, for a profile's conditions."""
    kinds = {
        "rotation" if name == _ROTATION else "gate" if hasattr(owner, "gate_proj") else "norm"
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
    eps = getattr(module, "variance_epsilon", None)
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


def _rotations(target: Target) -> list[Replacement]:
    """Return the rotation of each source file that a layer's attention comes from."""
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in target.layers]
    files = {type(each).__module__ for each in attentions if each is not None}
    return [
        (file, _ROTATION, fused)
        for file in (sys.modules[name] for name in sorted(files))
        if hasattr(file, _ROTATION) and (fused := _rotation(getattr(file, _ROTATION), target)) is not None
    ]


def _rotation(own: Callable[..., Any], target: Target) -> Callable[..., Any] | None:
    """Return a fused rotation that equals a file's own on a trial, or None."""

    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or cos.shape[-1] != query.shape[-1] or query.shape[0] != 1:
            return own(query, key, cos, sin, *more, **named)
        return operators.rotate(query, cos, sin), operators.rotate(key, cos, sin)

    draw = torch.Generator(target.device).manual_seed(0)
    shapes = (1, 4, 3, 16), (1, 2, 3, 16), (1, 3, 16), (1, 3, 16)
    trial = [torch.randn(shape, generator=draw, device=target.device, dtype=target.dtype) for shape in shapes]
    try:
        ours, theirs = turned(*trial), own(*trial)
        synchronise(target.device)
    except Exception:  # as above
        return None
    unit = 4 * torch.finfo(target.dtype).eps
    same = all(torch.allclose(a, b, rtol=unit, atol=unit) for a, b in zip(ours, theirs, strict=True))
    return turned if same else None
