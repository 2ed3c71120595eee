"""Random streams derived from a seed and a name."""

from __future__ import annotations

import hashlib

import numpy as np


def random_stream(seed: int, name: str) -> np.random.Generator:
    """Return an independent generator for each (seed, name), the same on every machine and worker.

    name: the role of what is drawn, never a quantity that a study may vary. Variants that differ in such a
    quantity then meet the same uniforms, and their difference is not noise.
    """
    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, *words])))
