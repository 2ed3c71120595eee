"""The training loop: AdamW, warm-up and cosine decay, and checkpoints that a run continues from exactly.

A checkpoint is one safetensors file with the trainable weights, the optimiser's moments and, in its
metadata, the state as JSON: written in one move, so weights and step number cannot disagree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from simulator.core.errors import BadInputError
from simulator.core.files import atomic_path

Losses = Mapping[str, float]

LossOfStep = Callable[[int], tuple[Tensor, Losses]]
"""Step number -> the loss to minimise and what to log of it; a function of the step alone."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")

_WARM_UP_SHARE = 0.04

_LARGEST_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast one model is trained; the rate warms up over 4% and falls to 0 as a cosine."""

    steps: int
    learning_rate: float
    checkpoint_every: int = 100

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        warm_up = max(1, round(_WARM_UP_SHARE * self.steps))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, slots=True)
class Progress:
    """One finished step: which model, how many of how many steps, and its losses."""

    stage: str
    step: int
    steps: int
    losses: Losses


@dataclass(slots=True)
class _State:
    step: int
    log: list[dict[str, float]]


def optimise(
    name: str,
    module: nn.Module,
    loss_of_step: LossOfStep,
    schedule: Schedule,
    checkpoint: Path,
    on_step: Callable[[Progress], None],
) -> list[dict[str, float]]:
    """Train a module's parameters in place; returns the losses of every step, interrupted ones included.

    Continues from ``checkpoint`` where there is one. Stopping at any moment and calling again gives the
    weights of an uninterrupted run, bit for bit on one device.
    """
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=schedule.learning_rate, weight_decay=0.0)
    state = _restore(checkpoint, trained, optimiser) if checkpoint.is_file() else _State(0, [])
    module.train()
    while state.step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(state.step)
        loss, losses = loss_of_step(state.step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), _LARGEST_GRADIENT_NORM)
        optimiser.step()
        state.step += 1
        state.log.append(dict(losses))
        if state.step % schedule.checkpoint_every == 0 or state.step == schedule.steps:
            _save(checkpoint, trained, optimiser, state)
        on_step(Progress(name, state.step, schedule.steps, losses))
    module.eval()
    return state.log


def _save(
    path: Path, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, state: _State
) -> None:
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
    for name, weight in trained.items():
        for moment in _MOMENTS:
            tensors[f"{name}/{moment}"] = optimiser.state[weight][moment].cpu().contiguous()
    metadata = {"state": json.dumps({"step": state.step, "log": state.log})}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _restore(path: Path, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> _State:
    try:
        with safe_open(path, "pt") as opened, torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(opened.get_tensor(name))
                moments = {moment: opened.get_tensor(f"{name}/{moment}") for moment in _MOMENTS}
                # The step count stays on the CPU, where AdamW keeps it.
                optimiser.state[weight] = {
                    moment: value if moment == "step" else value.to(weight.device)
                    for moment, value in moments.items()
                }
            state = json.loads(opened.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInputError(
            f"is not a checkpoint of this model: {error}",
            source=str(path),
            remedy="delete it to train this model anew",
        ) from error
    return _State(state["step"], state["log"])
