"""Tables as what product code takes them for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def columns(table: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of a table as arrays; texts are Python's."""
    return {str(name): table[name].to_numpy() for name in table.columns}
