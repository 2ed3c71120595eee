"""A swept frontier and the questions asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from simulator.deployment.profile import Profile
from simulator.sweeps.bands import load_bands
from simulator.sweeps.comparison import Bound, at_slas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Policies over concurrency: ``table`` has a row for each, with the columns of ``sweep_frontier``."""

    table: pd.DataFrame
    profile: Profile

    def at_sla(self, *slas: Bound) -> pd.DataFrame:
        """Return each policy's best throughput under speed SLAs (80, ``"p10>=80"``); see ``at_slas``.

        Raises ``InfeasibleError`` that names the nearest feasible value where no policy meets one.
        """
        return at_slas(self.table, slas)

    def bands(self) -> pd.DataFrame:
        """Return which policy wins at which load, with its lead; see ``load_bands``."""
        return load_bands(self.table)

    def plot(self, *, slas: Sequence[Bound] = (), published: bool = False) -> Figure:
        """Draw throughput over speed, with what was published as marks where ``published`` is true."""
        from simulator.report.frontier import plot_frontier

        claims = self.profile.published if published else None
        return plot_frontier(self.table, slas=slas, published=claims, title=self.profile.title)
