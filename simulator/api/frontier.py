"""A swept frontier and the questions asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.deployment.profile import Profile
from simulator.sweeps.bands import load_bands
from simulator.sweeps.comparison import Bound, at_slas

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Policies over concurrency: ``table`` has a row for each, with the columns of ``sweep_frontier``."""

    table: pd.DataFrame
    profile: Profile

    def at_sla(self, *slas: Bound) -> pd.DataFrame:
        """Find each policy's best throughput under speed SLAs.

        Parameters
        ----------
        *slas
            Speeds per user in tokens/s: a number bounds the mean, ``"p10>=80"`` the slowest tenth.

        Returns
        -------
        DataFrame
            A row per SLA and policy, with the columns of ``at_slas``.

        Raises
        ------
        InfeasibleError
            If no policy meets an SLA; it names the nearest feasible value.
        """
        return at_slas(self.table, slas)

    def bands(self) -> pd.DataFrame:
        """Find which policy wins at which load.

        Returns
        -------
        DataFrame
            A row per band of concurrency, with the columns of ``load_bands``.
        """
        return load_bands(self.table)

    def plot(self, *, slas: Sequence[Bound] = (), published: bool = False) -> Figure:
        """Draw throughput over speed per user.

        Parameters
        ----------
        slas
            Speed SLAs to mark, tokens/s.
        published
            Whether to mark what was published for the profile.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, not shown and not saved.
        """
        from simulator.report.frontier import plot_frontier

        claims = self.profile.published if published else None
        return plot_frontier(self.table, slas=slas, published=claims, title=self.profile.title)
