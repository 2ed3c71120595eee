"""Reading a frontier: what each policy gives under an SLA, by how much, and who wins at which load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd

from simulator.cost import Floats
from simulator.errors import InfeasibleError

BASELINE = "mtp1"


@dataclass(frozen=True, slots=True)
class Line:
    """One policy's frontier: throughput and mean TPS over concurrency, increasing and decreasing."""

    policy: str
    concurrency: Floats
    throughput: Floats
    tps: Floats

    def at_sla(self, tps: float) -> tuple[float, float, bool]:
        """Best throughput with at least ``tps`` tokens/s/user, its concurrency, and whether that is only a
        lower bound because the sweep ends before the SLA binds. (nan, nan, False) where it cannot be met.

        Between simulated loads a user's time per token is taken as linear in concurrency, and so
        throughput as linear in TPS: the straight line of the frontier's plot, exact for a linear step time.
        """
        meets = self.tps >= tps
        if not meets.any():
            return np.nan, np.nan, False
        last = int(np.flatnonzero(meets)[-1])
        if last + 1 == len(self.tps):
            return float(self.throughput[last]), float(self.concurrency[last]), True
        ends = slice(last + 1, last - 1 if last else None, -1)  # slower end first, as interp wants it
        throughput = float(np.interp(tps, self.tps[ends], self.throughput[ends]))
        load = float(np.interp(1 / tps, 1 / self.tps[last : last + 2], self.concurrency[last : last + 2]))
        return throughput, load, False

    def tps_at_throughput(self, throughput: float) -> float:
        """Speed per user at the lowest load that gives that throughput; NaN outside its range."""
        reach, first = np.unique(np.maximum.accumulate(self.throughput), return_index=True)
        if not reach[0] <= throughput <= reach[-1]:
            return float("nan")
        return float(np.interp(throughput, reach, self.tps[first]))


def lines(frontier: pd.DataFrame) -> dict[str, Line]:
    """A frontier table as one line per policy, in the order of the table."""
    result = {}
    for policy, group in frontier.groupby("policy", sort=False):
        ordered = group.sort_values("concurrency")
        columns = (
            ordered[name].to_numpy(dtype=np.float64)
            for name in ("concurrency", "throughput_tok_per_s", "tps_mean")
        )
        result[str(policy)] = Line(str(policy), *columns)
    return result


def at_slas(frontier: pd.DataFrame, slas: Sequence[float]) -> pd.DataFrame:
    """Each policy's best throughput under each SLA (minimum mean generation speed, tokens/s/user).

    gain: over the baseline at the same SLA. speed_gain: TPS over the SLA at the baseline's throughput
    there ("at matched throughput"). lower_bound: the sweep ended before the SLA was reached.
    Raises ``InfeasibleError`` naming the nearest feasible value if no policy can meet an SLA.
    """
    by_policy = lines(frontier)
    rows = []
    for sla in slas:
        _refuse_if_nobody_can(by_policy, sla)
        base = by_policy[BASELINE].at_sla(sla)[0] if BASELINE in by_policy else float("nan")
        for policy, line in by_policy.items():
            throughput, load, bound = line.at_sla(sla)
            rows.append(
                {
                    "sla_tok_per_s": sla,
                    "policy": policy,
                    "throughput_tok_per_s": throughput,
                    "concurrency": load,
                    "gain": throughput / base - 1,
                    "speed_gain": line.tps_at_throughput(base) / sla - 1,
                    "lower_bound": bound,
                }
            )
    return pd.DataFrame(rows)


def speed_gain_range(frontier: pd.DataFrame, policy: str) -> tuple[float, float]:
    """Smallest and largest TPS gain of a policy over the baseline at equal throughput, where both reach."""
    by_policy = lines(frontier)
    base, line = by_policy[BASELINE], by_policy[policy]
    levels = np.linspace(
        max(base.throughput[0], line.throughput[0]), min(base.throughput[-1], line.throughput[-1]), 200
    )
    gains = [line.tps_at_throughput(level) / base.tps_at_throughput(level) - 1 for level in levels]
    return float(np.nanmin(gains)), float(np.nanmax(gains))


def load_bands(frontier: pd.DataFrame, exclude: Sequence[str] = ("oracle",)) -> pd.DataFrame:
    """The winning policy per band of concurrency, with the switch points between them.

    At equal concurrency more throughput is also more speed per user, so there is one winner.
    ``margin`` is its smallest lead over the runner-up in the band (below zero where a rival was ahead
    by less than noise); ``clear`` says whether the lead exceeds the two intervals everywhere in it.
    """
    field = frontier[~frontier["policy"].isin(exclude)]
    if field.empty:
        return pd.DataFrame(columns=[each.name for each in fields(Band)])
    table = field.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s").sort_index()
    half = (
        field.pivot(index="concurrency", columns="policy", values="throughput_ci95").fillna(0.0).sort_index()
    )
    usual = str(table.idxmax(axis=1).mode().iloc[0])
    bands: list[Band] = []
    for position, load in enumerate(table.index):
        # A lead within noise is no reason to switch: stay with the policy of the band so far.
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
        """This band up to where ``other`` lies, with the smaller lead of the two."""
        closest = other if other.margin < self.margin else self
        return replace(
            self,
            to_concurrency=other.to_concurrency,
            margin=closest.margin,
            runner_up=closest.runner_up,
            clear=self.clear and other.clear,
        )


def _lead(throughput: pd.Series[float], half: pd.Series[float], load: float, incumbent: str) -> Band:
    """The winner at one load; the incumbent keeps its place unless it is clearly beaten."""
    order = throughput.sort_values(ascending=False)
    first = str(order.index[0])
    if order.iloc[0] - order[incumbent] <= half[first] + half[incumbent]:
        first = incumbent
    others = order.drop(first)
    if others.empty:
        return Band(load, load, first, None, float("nan"), True)
    second = str(others.index[0])
    lead = float(order[first] - others.iloc[0])
    return Band(load, load, first, second, lead / float(others.iloc[0]), lead > half[first] + half[second])


def _crossing(table: pd.DataFrame, before: str, after: str, position: int) -> float:
    """Concurrency at which ``after`` overtakes ``before``, linear between the two simulated loads."""
    left, right = table.iloc[position - 1], table.iloc[position]
    lead, behind = left[before] - left[after], right[after] - right[before]
    low, high = float(table.index[position - 1]), float(table.index[position])
    return low + (high - low) * float(lead / (lead + behind)) if lead + behind > 0 else high


def _refuse_if_nobody_can(by_policy: dict[str, Line], sla: float) -> None:
    best = {policy: float(line.tps.max()) for policy, line in by_policy.items() if policy != "oracle"}
    if best and max(best.values()) < sla:
        name = max(best, key=lambda policy: best[policy])
        raise InfeasibleError(
            f"no policy reaches {sla:g} tokens/s/user at any simulated load; the nearest feasible SLA is "
            f"{best[name]:.4g} ({name} at the lowest concurrency)"
        )
