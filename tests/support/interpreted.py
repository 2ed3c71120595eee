"""Triton kernels run on a CPU by Triton's interpreter, where Triton is there at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@contextmanager
def kernels(module: str) -> Iterator[ModuleType]:
    """Give a module of kernels, interpreted where there is no CUDA device; skips where there is no Triton."""
    pytest.importorskip("triton", reason="needs Triton, which runs on Linux only")
    if torch.cuda.is_available():
        yield import_module(module)
        return
    # Triton decides when a function is decorated, its own library's functions included: import it once more.
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_decided(name, module)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        interpreter: Any = import_module("triton.runtime.interpreter")
        interpreter._patch_lang_tensor = _patched(interpreter._patch_lang_tensor)
        interpreter.InterpreterBuilder.create_dot = _dot(interpreter)
        try:
            yield import_module(module)
        finally:
            for name in [name for name in sys.modules if _is_decided(name, module)]:
                del sys.modules[name]
            sys.modules.update(before)


def _is_decided(name: str, module: str) -> bool:
    return name == module or (name.partition(".")[0] == "triton" and not name.startswith("triton._C"))


def _patched(patch_tensor: Any) -> Any:
    """Let loops have bounds: Triton makes numbers of arrays of one for them, which NumPy 2.4 refuses.

    scope: remembers what to undo, since Triton 3.6; before it the patches stay, in modules that we drop.
    """

    def patched(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        set_attr = scope[0].set_attr if scope else setattr
        set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


def _dot(interpreter: Any) -> Any:
    """Products of bfloat16, which the interpreter holds as 16 bits and would multiply as whole numbers.

    float32 holds each bfloat16 exactly, and sums in float32 are what a device computes.
    """
    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != interpreter.tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def create_dot(builder: Any, left: Any, right: Any, *others: Any) -> Any:
        return multiply(builder, widened(left), widened(right), *others)

    return create_dot
