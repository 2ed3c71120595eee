"""What a run ran on, for its provenance."""

from __future__ import annotations

import platform

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
