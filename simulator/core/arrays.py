"""Names of array types that all packages share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Array = Any  # an array of any array-API namespace: NumPy or torch

Rows = NDArray[np.int64]
