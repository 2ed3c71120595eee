"""What a run ran on, for its provenance."""

from __future__ import annotations

import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers


def software() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU ({platform.machine()})"


@contextmanager
def long_lived_objects_set_aside() -> Iterator[None]:
    """For a while the collector passes over what is alive now: models and libraries, far too much to walk
    in the middle of a step."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
