"""Reading a frontier: what each policy gives under an SLA, by how much, and who wins at which load."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd

from simulator.cost import Floats
from simulator.errors import BadInputError, InfeasibleError
from simulator.sla import Term, parse_term

BASELINE = "mtp1"
"""The policy that gains are over where it is among those compared; otherwise the first one is."""

SPEEDS = ("tps_mean", "tps_p10", "tps_p50")
"""Columns of a frontier that an SLA can bound. The paper's speed is the mean: throughput / requests."""

Bound = float | str | Term
"""A speed SLA as callers give it: ``80`` (on average), ``p10>=80``, ``tps_p10>=80``, or the term itself."""


def parse_speed(bound: Bound) -> Term:
    """A speed SLA. A bare number bounds the mean; ``p10>=80`` is a promise to 90% of the requests."""
    if isinstance(bound, Term):
        term = bound
    else:
        text = str(bound).strip()
        try:
            number = float(text)
        except ValueError:
            term = parse_term(f"tps_{text}" if re.match(r"(mean|p\d)", text) else text)
        else:
            if not 0 < number < math.inf:
                raise BadInputError("must be positive", source="--sla", value=text, remedy="in tokens/s/user")
            term = parse_term(f"tps_mean>={repr(number).removesuffix('.0')}")
    if term.key not in SPEEDS or term.comparison != ">=":
        raise BadInputError(
            "is not a speed that is compared", source="--sla", value=term.text,
            remedy="write 80 or tps_mean>=80 for the mean, p10>=80 or p50>=80 for a share of the users",
        )  # fmt: skip
    return term


def promise(term: Term) -> str:
    """A speed SLA in words."""
    if term.quantile is None:
        return f"at least {term.bound:g} tokens/s per user on average"
    share = f"{1 - term.quantile:.0%} of the users (p{100 * term.quantile:g})"
    return f"at least {term.bound:g} tokens/s for {share}"


@dataclass(frozen=True, slots=True)
class AtSla:
    """What a policy gives at a bound: its best throughput there, the load, and the speeds at that load.

    lower_bound: the sweep ended before the SLA was reached. All NaN where it cannot be met.
    """

    throughput: float = math.nan
    concurrency: float = math.nan
    tps_mean: float = math.nan
    tps_p10: float = math.nan
    lower_bound: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One policy's frontier over concurrency, increasing: throughput and speeds per user, decreasing.

    Between simulated loads the time per token, of a slot and of a user, is taken as linear in concurrency:
    the straight line of the frontier's plot, exact for a linear step time.
    """

    policy: str
    concurrency: Floats
    throughput: Floats
    speeds: dict[str, Floats]

    @property
    def tps(self) -> Floats:
        """Mean speed per user."""
        return self.speeds["tps_mean"]

    def bracket(self, term: Term) -> tuple[int, int] | None:
        """Indices of the last load that keeps a term and of the one after it; None where none keeps it.

        Both are the same where the last load of all keeps it.
        """
        meets = self.speeds[term.key] >= term.bound
        if not meets.any():
            return None
        last = int(np.flatnonzero(meets)[-1])
        return last, min(last + 1, len(meets) - 1)

    def at_sla(self, term: Term) -> AtSla:
        """Best throughput that keeps a term."""
        ends = self.bracket(term)
        if ends is None:
            return AtSla()
        last, after = ends
        load = float(self.concurrency[last])
        if after != last:
            slowness = 1 / self.speeds[term.key][[last, after]]
            load = float(np.interp(1 / term.bound, slowness, self.concurrency[[last, after]]))
        mean, p10 = (self._between(self.speeds[name], load) for name in ("tps_mean", "tps_p10"))
        if after != last and term.key == "tps_mean":
            mean = term.bound  # rounding apart, what was interpolated
        slot = self._between(self.throughput / self.concurrency, load)
        return AtSla(load * slot, load, mean, p10, last + 1 == len(self.concurrency))

    def tps_at_throughput(self, throughput: float) -> float:
        """Mean speed per user at the lowest load that gives that throughput; NaN outside its range."""
        reach, first = np.unique(np.maximum.accumulate(self.throughput), return_index=True)
        if not reach[0] <= throughput <= reach[-1]:
            return float("nan")
        return float(np.interp(throughput, reach, self.tps[first]))

    def _between(self, rate: Floats, load: float) -> float:
        """A rate between simulated loads, its inverse linear; NaN where a neighbour's is unknown."""
        with np.errstate(divide="ignore"):
            return float(1 / np.interp(load, self.concurrency, 1 / rate))


def lines(frontier: pd.DataFrame) -> dict[str, Line]:
    """A frontier table as one line per policy, in the order of the table."""
    result = {}
    for policy, group in frontier.groupby("policy", sort=False):
        ordered = group.sort_values("concurrency")

        def column(name: str, rows: pd.DataFrame = ordered) -> Floats:
            return rows[name].to_numpy(dtype=np.float64) if name in rows else np.full(len(rows), np.nan)

        speeds = {name: column(name) for name in SPEEDS}
        line = Line(str(policy), column("concurrency"), column("throughput_tok_per_s"), speeds)
        result[str(policy)] = line
    return result


def baseline_of(frontier: pd.DataFrame) -> str:
    """The policy that gains are over: MTP-1 where it is compared, otherwise the first."""
    policies = list(dict.fromkeys(frontier["policy"]))
    return BASELINE if BASELINE in policies else str(policies[0])


def at_slas(frontier: pd.DataFrame, slas: Sequence[Bound]) -> pd.DataFrame:
    """Each policy's best throughput under each SLA on generation speed; see ``parse_speed``.

    gain: over the baseline (``baseline_of``) at the same SLA. speed_gain: mean speed over the baseline's at
    the baseline's throughput there ("at matched throughput"). tps_mean, tps_p10: the speeds at that load.
    lower_bound: the sweep ended before the SLA was reached.
    Raises ``InfeasibleError`` naming the nearest feasible value if no policy can meet an SLA.
    """
    by_policy, base = lines(frontier), baseline_of(frontier)
    rows = []
    for term in map(parse_speed, slas):
        _refuse_if_nobody_can(by_policy, term)
        reference = by_policy[base].at_sla(term)
        for policy, line in by_policy.items():
            found = line.at_sla(term)
            matched = line.tps_at_throughput(reference.throughput)
            rows.append(
                {
                    "sla": term.text,
                    "sla_tok_per_s": term.bound,
                    "policy": policy,
                    "throughput_tok_per_s": found.throughput,
                    "concurrency": found.concurrency,
                    "tps_mean": found.tps_mean,
                    "tps_p10": found.tps_p10,
                    "baseline": base,
                    "gain": found.throughput / reference.throughput - 1,
                    "speed_gain": matched / reference.tps_mean - 1,
                    "lower_bound": found.lower_bound,
                }
            )
    return pd.DataFrame(rows)


def speed_gain_range(frontier: pd.DataFrame, policy: str, baseline: str | None = None) -> tuple[float, float]:
    """Smallest and largest gain in mean speed of a policy over the baseline at equal throughput."""
    by_policy = lines(frontier)
    base, line = by_policy[baseline or baseline_of(frontier)], by_policy[policy]
    levels = np.linspace(
        max(base.throughput[0], line.throughput[0]), min(base.throughput[-1], line.throughput[-1]), 200
    )
    gains = [line.tps_at_throughput(level) / base.tps_at_throughput(level) - 1 for level in levels]
    return float(np.nanmin(gains)), float(np.nanmax(gains))


# --- where to look closer ----------------------------------------------------------------------------------

SHARE = 0.01
"""Answers are refined until the loads on both sides are this near, as a share of the load, or neighbours."""


def loads_to_add(
    frontier: pd.DataFrame, slas: Sequence[Bound], *, halve: bool = False
) -> list[tuple[str, int]]:
    """Policies and loads to simulate so that answers do not rest on far interpolation; empty: none.

    Looked for is each policy's load at each SLA, and its load at the baseline's throughput there. A load
    that keeps the SLA and the next that does not must be neighbours, or within twice ``SHARE`` of the answer
    or twice the interval of its throughput. A policy that fails at the lowest load is tried at one.
    halve: take the middle rather than the interpolated load, which creeps along a curve with risers.
    """
    by_policy, base = lines(frontier), baseline_of(frontier)
    noise = _noise(frontier)
    wanted: dict[tuple[str, int], None] = {}
    for term in map(parse_speed, slas):
        level = by_policy[base].at_sla(term).throughput
        for policy, line in by_policy.items():
            share = max(SHARE, noise[policy])
            for load in (_at_term(line, term, share, halve), _at_throughput(line, level, share, halve)):
                if load is not None and load not in line.concurrency:
                    wanted[policy, load] = None
    return list(wanted)


def _noise(frontier: pd.DataFrame) -> dict[str, float]:
    """Relative half-width of each policy's throughput, the median over its loads; 0 where unknown."""
    relative = frontier["throughput_ci95"] / frontier["throughput_tok_per_s"]
    median = relative.groupby(frontier["policy"], sort=False).median().fillna(0.0)
    return {str(policy): float(value) for policy, value in median.items()}


def _at_term(line: Line, term: Term, share: float, halve: bool) -> int | None:
    ends = line.bracket(term)
    if ends is None:
        return 1  # perhaps a request alone is fast enough
    last, after = ends
    if last == after:
        return None  # the sweep ends before the SLA binds, and the answer says so
    low, high = line.concurrency[last], line.concurrency[after]
    return _inside(low, high, line.at_sla(term).concurrency, share, halve)


def _at_throughput(line: Line, level: float, share: float, halve: bool) -> int | None:
    """Where the line first reaches a throughput; None where it never does, or needs no closer look."""
    reached = np.flatnonzero(line.throughput >= level)
    if not reached.size:
        return None
    first = int(reached[0])
    if first == 0:
        return 1
    before = float(line.concurrency[first - 1])
    guess = level / line.tps_at_throughput(level) if line.throughput[first - 1] <= level else before
    return _inside(before, line.concurrency[first], guess, share, halve)


def _inside(low: float, high: float, guess: float, share: float, halve: bool) -> int | None:
    """A load between two to simulate next; None where they are near enough.

    The guess, or where that is next to an end a load just beyond: so that the answer is closed in from both
    sides even where a curve has risers between them.
    """
    margin = max(1, int(share * guess))
    if high - low <= 2 * margin:
        return None if high - low <= 1 or margin > 1 else int(low) + 1
    return int(np.clip(round((low + high) / 2 if halve else guess), low + margin, high - margin))


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
    table = table.dropna()  # loads added where one policy's answer lies say nothing of the others
    half = field.pivot(index="concurrency", columns="policy", values="throughput_ci95").fillna(0.0)
    half = half.loc[table.index]
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


def _refuse_if_nobody_can(by_policy: dict[str, Line], term: Term) -> None:
    best = {
        policy: float(np.nanmax(line.speeds[term.key], initial=0.0))
        for policy, line in by_policy.items()
        if policy != "oracle"
    }
    if best and max(best.values()) < term.bound:
        name = max(best, key=lambda policy: best[policy])
        how = "on average" if term.quantile is None else f"for {1 - term.quantile:.0%} of the users"
        raise InfeasibleError(
            f"no policy reaches {term.bound:g} tokens/s/user {how} at any simulated load; the nearest "
            f"feasible SLA is {best[name]:.4g} ({name} at the lowest concurrency)"
        )
