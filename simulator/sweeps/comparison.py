"""Answers read from a frontier: throughput of each policy under an SLA, gains, and winners by load."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.sla.terms import Term, parse_term
from simulator.sweeps.leads import lead_of_means
from simulator.sweeps.lines import SPEEDS, AtSla, Line, lines

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "mtp1"
"""Baseline of gains where it is compared; otherwise the first policy is the baseline. A choice."""

Bound = float | str | Term
"""A speed SLA: ``80`` (on average), ``p10>=80``, ``tps_p10>=80``, or the term itself."""


def parse_speed(bound: Bound) -> Term:
    """Parse a speed SLA. A bare number bounds the mean; ``p10>=80`` promises 80 to 90% of the requests."""
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
                raise BadInputError("must be positive", source="sla", value=text, remedy="in tokens/s/user")
            term = parse_term(f"tps_mean>={repr(number).removesuffix('.0')}")
    if term.key not in SPEEDS or term.comparison != ">=":
        raise BadInputError(
            "is not a speed that is compared", source="sla", value=term.text,
            remedy="write 80 or tps_mean>=80 for the mean, p10>=80 or p50>=80 for a share of the users",
        )  # fmt: skip
    return term


def promise(term: Term) -> str:
    """Describe a speed SLA in words."""
    if term.quantile is None:
        return f"at least {term.bound:g} tokens/s per user on average"
    share = f"{1 - term.quantile:.0%} of the users (p{100 * term.quantile:g})"
    return f"at least {term.bound:g} tokens/s for {share}"


def baseline_of(frontier: pd.DataFrame) -> str:
    """Return the baseline of gains: MTP-1 where it is compared, otherwise the first policy."""
    policies = list(dict.fromkeys(frontier["policy"]))
    return BASELINE if BASELINE in policies else str(policies[0])


def require_known(by_policy: Mapping[str, Line], term: Term) -> None:
    """Refuse a speed SLA where no request of a load finished: the speed is then unknown, and not low."""
    for policy, line in by_policy.items():
        unknown = line.concurrency[np.isnan(line.speeds[term.key])]
        if unknown.size:
            raise BadInputError(
                f"cannot be judged: {policy} at {unknown[0]:g} requests finished no request while measured",
                source="sla", value=term.text,
                remedy="give more `steps` or leave `steps` out, or bound the mean instead, as in 80",
            )  # fmt: skip


def at_slas(frontier: pd.DataFrame, slas: Sequence[Bound]) -> pd.DataFrame:
    """Find each policy's best throughput under SLAs on generation speed; see ``parse_speed``.

    Parameters
    ----------
    frontier
        Rows of ``sweep_frontier``.
    slas
        Speeds per user in tokens/s: a number bounds the mean, ``"p10>=80"`` the slowest tenth.

    Returns
    -------
    DataFrame
        A row per SLA and policy. gain: over the baseline (``baseline_of``) at the same SLA. speed_gain: mean
        speed over the baseline's at the baseline's throughput there ("at matched throughput"). tps_mean,
        tps_p10: the speeds at that load. drafter: whose drafts the policy verifies. lower_bound: the sweep
        ended before the SLA was reached. throughput_ci95: half-width of the throughput's interval. leading:
        no policy but the oracle is ahead of it for sure (``leads.lead_of_means``).

    Raises
    ------
    InfeasibleError
        If no policy can meet an SLA; it names the nearest feasible value.
    BadInputError
        If the speed that an SLA bounds is unknown at a load.
    """
    import pandas as pd

    by_policy, base = lines(frontier), baseline_of(frontier)
    named = frontier.get("drafter", pd.Series("", index=frontier.index))
    drafters = dict(zip(frontier["policy"], named, strict=True))
    rows = []
    for term in map(parse_speed, slas):
        require_known(by_policy, term)
        _refuse_if_nobody_can(by_policy, term)
        reference = by_policy[base].at_sla(term)
        answers = {policy: line.at_sla(term) for policy, line in by_policy.items()}
        halves = {policy: line.throughput_ci95_at(term) for policy, line in by_policy.items()}
        for policy, line in by_policy.items():
            found = answers[policy]
            # Of itself it is ahead by nothing, also where its throughput falls again at the highest loads.
            matched = reference.tps_mean if policy == base else line.tps_at_throughput(reference.throughput)
            rows.append(
                {
                    "sla": term.text,
                    "sla_tok_per_s": term.bound,
                    "policy": policy,
                    "drafter": drafters[policy],
                    "throughput_tok_per_s": found.throughput,
                    "concurrency": found.concurrency,
                    "tps_mean": found.tps_mean,
                    "tps_p10": found.tps_p10,
                    "baseline": base,
                    "gain": found.throughput / reference.throughput - 1,
                    "speed_gain": matched / reference.tps_mean - 1,
                    "lower_bound": found.lower_bound,
                    "throughput_ci95": halves[policy],
                    "leading": _is_leading(policy, answers, halves),
                }
            )
    return pd.DataFrame(rows)


def _is_leading(policy: str, answers: Mapping[str, AtSla], halves: Mapping[str, float]) -> bool:
    """Whether no other deployable policy serves more under the SLA by more than chance."""
    mine = answers[policy].throughput
    if policy == "oracle" or math.isnan(mine):
        return False
    return not any(
        lead_of_means(found.throughput, halves[other], mine, halves[policy]).sure
        for other, found in answers.items()
        if other not in (policy, "oracle") and not math.isnan(found.throughput)
    )


def speed_gain_range(frontier: pd.DataFrame, policy: str, baseline: str | None = None) -> tuple[float, float]:
    """Return the least and largest gain in mean speed over the baseline at equal throughput."""
    by_policy = lines(frontier)
    base, line = by_policy[baseline or baseline_of(frontier)], by_policy[policy]
    levels = np.linspace(
        max(base.throughput[0], line.throughput[0]), min(base.throughput[-1], line.throughput[-1]), 200
    )
    gains = [line.tps_at_throughput(level) / base.tps_at_throughput(level) - 1 for level in levels]
    return float(np.nanmin(gains)), float(np.nanmax(gains))


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
