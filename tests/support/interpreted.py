"""Triton kernels run on a CPU by Triton's interpreter, where Triton is there at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch


@contextmanager
def kernels(module: str) -> Iterator[ModuleType]:
    """Give a module of kernels, interpreted where there is no CUDA device; skips where there is no Triton."""
    pytest.importorskip("triton", reason="needs Triton, which comes with CUDA builds of PyTorch")
    if torch.cuda.is_available():
        yield import_module(module)
        return
    # Triton decides when a function is decorated, its own library's functions included: import it once more.
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_decided(name, module)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        interpreter: Any = import_module("triton.runtime.interpreter")
        interpreter._patch_lang_tensor = _patched(interpreter._patch_lang_tensor)
        try:
            yield import_module(module)
        finally:
            for name in [name for name in sys.modules if _is_decided(name, module)]:
                del sys.modules[name]
            sys.modules.update(before)


def _is_decided(name: str, module: str) -> bool:
    return name == module or (name.partition(".")[0] == "triton" and not name.startswith("triton._C"))


def _patched(patch_tensor: Any) -> Any:
    """Let loops have bounds: Triton 3.6 makes numbers of arrays of one for them, which NumPy 2.4 refuses."""

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched
