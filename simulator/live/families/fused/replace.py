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
from simulator.live.families.fused import operators

_ROTATION = "apply_rotary_pos_emb"
"""What transformers calls the function in every kind's own source file."""

Replacement = tuple[Any, str, Callable[..., Any]]
"""An object, the name of one of its attributes, and what stands there while a pass runs."""


def replacements(decoder: nn.Module, asked: bool | None) -> list[Replacement]:
    """Return what to replace in a target's decoder. asked: None replaces on CUDA with Triton alone."""
    like = next(decoder.parameters())
    on_gpu = like.device.type == "cuda" and find_spec("triton") is not None
    if not (on_gpu if asked is None else asked):
        return []
    found, verdicts = list[Replacement](), dict[tuple[Any, ...], bool]()
    for module in decoder.modules():
        made = _replacement(module)
        if made is None:
            continue
        forward, width = made
        kind = type(module), width
        if kind not in verdicts:
            verdicts[kind] = _equal(module, forward, _drawn(like, 1, 3, width))
        if verdicts[kind]:
            found.append((module, "forward", forward))
    files = sorted({type(module).__module__ for module in decoder.modules()})
    turned = [
        (sys.modules[file], _rotation(getattr(sys.modules[file], _ROTATION, None), like)) for file in files
    ]
    return found + [(file, _ROTATION, fused) for file, fused in turned if fused is not None]


def _drawn(like: Tensor, *shape: int) -> Tensor:
    """Random numbers of the type and on the device of another tensor."""
    draw = torch.Generator(like.device).manual_seed(0)
    return torch.randn(shape, generator=draw, device=like.device, dtype=like.dtype)


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


def _rotation(own: Callable[..., Any] | None, like: Tensor) -> Callable[..., Any] | None:
    """Return a fused rotation that equals a source file's own on a trial, or None."""
    if own is None:
        return None

    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        if more or named or cos.shape[-1] != query.shape[-1] or query.shape[0] != 1:
            return own(query, key, cos, sin, *more, **named)
        return operators.rotate(query, cos, sin), operators.rotate(key, cos, sin)

    trial = [_drawn(like, *shape) for shape in ((1, 4, 3, 16), (1, 2, 3, 16), (1, 3, 16), (1, 3, 16))]
    try:
        ours, theirs = turned(*trial), own(*trial)
        synchronise(like.device)
    except Exception:  # as above
        return None
    unit = 4 * torch.finfo(like.dtype).eps
    same = all(torch.allclose(a, b, rtol=unit, atol=unit) for a, b in zip(ours, theirs, strict=True))
    return turned if same else None
