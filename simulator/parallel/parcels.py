"""Cells on their way to workers: what is large in them travels once to each worker, known by its content.

A parcel is a pickled cell with a digest in the place of each large value: a recorded trace, a workload. All
cells of a worker get the same object for a digest, so what is kept by identity (``deployment.setup``) serves
them all.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import cloudpickle
import numpy as np

LARGE = 1024
"""Bytes of arrays from which on a value travels apart from its cell: a choice, so that cells stay small."""

KEPT = 2**28
"""Bytes of pickled values that a worker keeps from one cell to the next; the one in use is always kept. A
choice: ten traces of a million rows."""

_held: OrderedDict[str, tuple[int, Any]] = OrderedDict()
_holding = threading.Lock()  # a Dask worker runs cells in threads


@dataclass(frozen=True, slots=True)
class Parcel:
    """A pickled cell, and the digests of the large values that it lacks."""

    content: bytes
    digests: tuple[str, ...]

    def opened(self, fetch: Callable[[str], bytes]) -> Any:
        """Return the cell; ``fetch`` gives the pickled value of a digest that this process does not hold."""
        return _Unpickler(io.BytesIO(self.content), fetch).load()


@dataclass(slots=True)
class Packer:
    """Packs the cells of one sweep.

    send: called once for each large value, with its digest and the pickled value, before the first parcel
    that needs this value is returned.
    """

    send: Callable[[str, bytes], object]
    _known: dict[int, tuple[str, Any]] = field(default_factory=dict)  # alive, so that an id stays its own
    _sent: set[str] = field(default_factory=set)

    def pack(self, cell: Any) -> Parcel:
        """Pickle a cell without its large values."""
        stream, digests = io.BytesIO(), dict[str, None]()

        def digest_of(value: Any) -> str:
            if id(value) not in self._known:
                self._known[id(value)] = self._digest(value), value
            digest = self._known[id(value)][0]
            digests[digest] = None
            return digest

        _Pickler(stream, digest_of).dump(cell)
        return Parcel(stream.getvalue(), tuple(digests))

    def _digest(self, value: Any) -> str:
        pickled = cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        digest = hashlib.sha256(pickled).hexdigest()[:32]
        if digest not in self._sent:
            self._sent.add(digest)
            self.send(digest, pickled)
        return digest


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # the package has no types
    def __init__(self, stream: io.BytesIO, digest_of: Callable[[Any], str]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self._digest_of = digest_of

    def persistent_id(self, value: Any) -> str | None:
        return self._digest_of(value) if _bytes_in(value) >= LARGE else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, fetch: Callable[[str], bytes]) -> None:
        super().__init__(stream)
        self._fetch = fetch

    def persistent_load(self, digest: str) -> Any:
        with _holding:
            if digest not in _held:
                pickled = self._fetch(digest)
                _held[digest] = len(pickled), pickle.loads(pickled)
            _held.move_to_end(digest)
            while len(_held) > 1 and sum(size for size, _ in _held.values()) > KEPT:
                _held.popitem(last=False)
            return _held[digest][1]


def _bytes_in(value: Any) -> int:
    """Bytes of an array, or of the arrays that are fields of a dataclass."""
    if isinstance(value, np.ndarray):
        return 0 if value.dtype.hasobject else value.nbytes
    if not is_dataclass(value) or isinstance(value, type):
        return 0
    held = (getattr(value, name, None) for name in value.__dataclass_fields__)
    return sum(each.nbytes for each in held if isinstance(each, np.ndarray) and not each.dtype.hasobject)
