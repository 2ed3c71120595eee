"""Random streams derived from a seed and a name."""

from __future__ import annotations

import hashlib

import numpy as np

from simulator.core.errors import BadInputError

MAX_SEED = 2**63 - 1
"""Largest seed that every generator used here takes."""


def random_stream(seed: int, name: str) -> np.random.Generator:
    """Return an independent generator for a (seed, name); equal pairs give equal numbers on every machine.

    name: the role of the numbers, never a quantity that a study may vary. Variants that differ in such a
        quantity then use the same random numbers, and noise does not add to their difference.

    Raises ``BadInputError`` for a seed outside 0..``MAX_SEED``.
    """
    if not 0 <= seed <= MAX_SEED:
        raise BadInputError(
            "must be a whole number from 0 to 2^63 - 1", field="seed", value=seed, remedy="as in 0, 1, 2"
        )
    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, *words])))
