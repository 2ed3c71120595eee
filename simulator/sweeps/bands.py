"""Which policy wins at which load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from simulator.sweeps.leads import Lead, lead_of_means, winner

if TYPE_CHECKING:
    import pandas as pd


def load_bands(frontier: pd.DataFrame, exclude: Sequence[str] = ("oracle",)) -> pd.DataFrame:
    """Find the winning policy of each band of concurrency, and the points between the bands.

    At equal concurrency more throughput is also more speed per user, so each load has one winner.

    Parameters
    ----------
    frontier
        Rows of ``sweep_frontier``.
    exclude
        Policies that cannot win, because nobody can run them.

    Returns
    -------
    DataFrame
        A row per band. margin: the winner's smallest lead over the runner-up in the band, negative where a
        rival is ahead by less than noise. clear: whether the lead exceeds both intervals everywhere in the
        band.
    """
    import pandas as pd

    field = frontier[~frontier["policy"].isin(exclude)]
    if field.empty:
        return pd.DataFrame(columns=[each.name for each in fields(Band)])
    table = field.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s").sort_index()
    table = table.dropna()  # a load added for one policy's answer has no row of the others
    half = field.pivot(index="concurrency", columns="policy", values="throughput_ci95").fillna(0.0)
    half = half.loc[table.index]
    usual = str(table.idxmax(axis=1).mode().iloc[0])
    bands: list[Band] = []
    for position, load in enumerate(table.index):
        # A lead within noise is no reason to switch policies.
        incumbent = bands[-1].policy if bands else usual
        here = _lead(table.iloc[position], half.iloc[position], float(load), incumbent)
        if bands and bands[-1].policy == here.policy:
            bands[-1] = bands[-1].extended(here)
            continue
        if bands:
            switch = _crossing(table, bands[-1].policy, here.policy, position)
            bands[-1] = replace(bands[-1], to_concurrency=switch)
            here = replace(here, from_concurrency=switch)
        bands.append(here)
    return pd.DataFrame([asdict(band) for band in bands])


@dataclass(frozen=True, slots=True)
class Band:
    """A range of concurrency that one policy wins."""

    from_concurrency: float
    to_concurrency: float
    policy: str
    runner_up: str | None
    margin: float
    clear: bool

    def extended(self, other: Band) -> Band:
        """Return this band extended to the loads of ``other``, with the smaller lead of the two."""
        closest = other if other.margin < self.margin else self
        return replace(
            self,
            to_concurrency=other.to_concurrency,
            margin=closest.margin,
            runner_up=closest.runner_up,
            clear=self.clear and other.clear,
        )


def _lead(throughput: pd.Series[float], half: pd.Series[float], load: float, incumbent: str) -> Band:
    """Choose the winner at one load (``leads.winner``)."""

    def lead_over(one: str, other: str) -> Lead:
        return lead_of_means(throughput[one], half[one], throughput[other], half[other])

    order = throughput.sort_values(ascending=False)
    first = winner(map(str, order.index), incumbent, lead_over)
    others = order.drop(first)
    if others.empty:
        return Band(load, load, first, None, float("nan"), True)
    second = str(others.index[0])
    found = lead_over(first, second)
    return Band(load, load, first, second, float(found.share), bool(found.sure))


def _crossing(table: pd.DataFrame, before: str, after: str, position: int) -> float:
    """Concurrency at which ``after`` overtakes ``before``, linear between the two simulated loads."""
    left, right = table.iloc[position - 1], table.iloc[position]
    lead, behind = left[before] - left[after], right[after] - right[before]
    low, high = float(table.index[position - 1]), float(table.index[position])
    return low + (high - low) * float(lead / (lead + behind)) if lead + behind > 0 else high
