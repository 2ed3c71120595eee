"""What a step consists of, counted rather than timed: operations, and the experts that its rows reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simulator.live.models.targets import Target

_ROUTERS = ("gate", "router")
"""What transformers calls the module that chooses experts, in every kind that we support."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one step: operations of the target's pass and of the draft's, and distinct experts reached.

    experts: mean over the layers that have any; None for a target without.
    """

    batch_tokens: int
    target_operations: int
    draft_operations: int
    experts: float | None


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that PyTorch dispatches inside; views and bare allocations are none.

    On a GPU each is a launch at least. What runs fused (``families.fused``) is one operation; the two
    launches of split attention are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See ``TorchDispatchMode``."""
        self.count += not (_is_view(operation) or "empty" in operation.__name__)
        return operation(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> int:
    """Count the operations of ``work``."""
    seen = Operations()
    with seen:
        work()
    return seen.count


def _is_view(operation: Any) -> bool:
    """Whether all that an operation returns is its input seen otherwise."""
    if operation.__name__.startswith("_unsafe_view"):  # how a product of more than two dimensions ends
        return True
    returned = [value.alias_info for value in operation._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def experts_of(target: Target) -> int | None:
    """Return how many routed experts a layer has, or None."""
    config = target.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    counts = [getattr(config, name, None) for name in names]
    return next((int(count) for count in counts if count), None)


@contextmanager
def routing_of(target: Target) -> Iterator[list[Tensor]]:
    """Inside, every pass of the target leaves which experts each router chose: int64 [rows, k] each."""
    chosen: list[Tensor] = []
    k = int(getattr(target.config.get_text_config(), "num_experts_per_tok", None) or 1)

    def keep(module: Any, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        indices = [each for each in tensors if each.dtype == torch.int64]
        chosen.append(indices[0] if indices else tensors[0].topk(k, dim=-1).indices)

    hooks = []
    if experts_of(target) is not None:
        routers = [it for name, it in target.model.named_modules() if name.rpartition(".")[2] in _ROUTERS]
        hooks = [router.register_forward_hook(keep) for router in routers]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def reached(chosen: list[Tensor]) -> float | None:
    """Distinct experts, mean over routers; None without any."""
    counts = [len(set(indices.flatten().tolist())) for indices in chosen]
    return sum(counts) / len(counts) if counts else None
