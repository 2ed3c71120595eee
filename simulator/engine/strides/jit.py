"""How functions of the step loop are compiled, and where the compiled code is kept.

Numba compiles a function once more for every constant that it is called with, and for every variable that
begins as one: ``zero`` stands where this would happen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

from simulator.engine import batch
from simulator.schedulers import search

_Function = TypeVar("_Function", bound=Callable[..., object])

_OPTIONS = {"error_model": "numpy", "_nrt": False}


def compiled(function: _Function) -> _Function:
    """Compile a function on its first call, without reassociating floats; keep the code on disk.

    Nothing allocates, and the engine holds every array, so nothing counts references: counting those of all
    arrays took most of a small step.

    Numba notices a change of the function's own file only. The folder is named after all files of this
    package, so a change of a function that another one calls is noticed as well.
    """
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE)
    try:
        made: _Function = numba.njit(cache=KEPT, **_OPTIONS)(function)
        return made
    finally:
        numba.config.CACHE_DIR = previous


def inner(function: _Function) -> _Function:
    """Compile what only compiled functions call: without a wrapper for Python, and not kept alone."""
    made: _Function = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return made


def record(fields: Sequence[tuple[str, type[np.generic]]]) -> np.dtype[Any]:
    """Return the type of a structure whose fields are attributes, in compiled code and in Python.

    So the same functions run uncompiled under ``NUMBA_DISABLE_JIT=1``: for a debugger, and for coverage.
    """
    return np.dtype((np.record, np.dtype(list(fields), align=True)))


def direct(function: _Function) -> _Function:
    """Call a compiled function without comparing types, which takes 4 us for the arrays of an engine.

    All further calls need arguments of the types of the first one: nothing would notice others.
    """
    entry: Callable[..., object] | None = None

    def call(*arguments: object) -> object:
        nonlocal entry
        if entry is not None:
            return entry(*arguments)
        result = function(*arguments)
        for made in getattr(function, "overloads", {}).values():  # none where it runs in Python
            entry = made.entry_point
        return result

    return cast(_Function, call)


@inner
def zero() -> int:
    """Return 0, which is no constant to the compiler."""
    return int(np.int64(0))


def _cache() -> Path:
    """Folder of the compiled code: of the user, or the one that ``NUMBA_CACHE_DIR`` names."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    constants = [Path(str(module.__file__)) for module in (batch, search)]  # compiled in as well
    sources = [*sorted(Path(__file__).parent.glob("*.py")), *constants]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    return (Path(named) if named else home / "dspark-simulator") / f"strides-{digest}"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


CACHE = _cache()
KEPT = _writable(CACHE)
"""Whether compiled code can be kept there."""
