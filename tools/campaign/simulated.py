"""Sections of a campaign's page that simulate from what was measured: who wins, what wrong beliefs lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import Deployment
from simulator.report.frontier import plot_frontier, plot_load, plot_regret
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.bands import load_bands
from simulator.sweeps.frontier import sweep_frontier
from simulator.sweeps.regret import regret as sweep_regret
from simulator.traffic.lengths import parse_lengths
from tools.campaign.campaign import GAMMAS, OUTPUT_TOKENS, PROMPT_TOKENS, SIZES, SMALL
from tools.campaign.page import NotMeasuredError, Page, markdown, named_size, today

POLICIES = (
    "mtp1", "fixed:2", "fixed:3", "fixed:5", "fixed:7", "threshold:0.6", "dspark", "dspark-async",
)  # fmt: skip

CONFIDENT = ("dspark", "dspark-async")

LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

BELIEFS = ("coarse:4", "floor:4", "ceil:4", "flat", "no-context")

LENGTHS = "lognormal:1024,cv=1,max=4096/lognormal:512,cv=0.5,max=2048"
"""Of simulated requests: nothing is prefilled for them, so they may be as long as a conversation."""


def frontier(page: Page, size: str) -> str:
    """Show which policy wins at which load."""
    profile, acceptance = page.profile(size), page.acceptance(size)
    frontier = _simulated(page, size, Deployment(profile, acceptance), POLICIES)
    title = f"{named_size(size)} on {page.device}, simulated"
    gains = gains_of(frontier)
    return "\n\n".join(
        [
            f"Simulated by `{page.campaign.command('report')}` on {today()} from the profile of "
            f"{profile.provenance.date} and {', '.join(model.name for model in acceptance.values())}; "
            f"{_seeds(page)} seeds, closed loop, prompt and output lengths `{_lengths(page, size)}`. "
            "Where no acceptance of MTP-1 is named, the first position of DSpark's stands in. Memory is not "
            "limited.",
            *_frontier_figures(page, size, frontier, title),
            "Winning policy by concurrency. The margin is the smallest lead over the runner-up in the band; "
            "it is clear where it exceeds both confidence intervals everywhere.",
            markdown(_bands(frontier)),
            won_words(gains),
            markdown(_shown(gains, _shorter_block(page, size))),
        ]
    )  # fmt: skip


def _frontier_figures(page: Page, size: str, frontier: pd.DataFrame, title: str) -> Iterator[str]:
    speed, load = plot_frontier(frontier, title=title), plot_load(frontier, title=title)
    for axes in load.axes:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    for line in (line for axes in (*speed.axes, *load.axes) for line in axes.lines):
        if line.get_label() == "dspark":  # often level with dspark-async, which is drawn over it
            line.set_linewidth(5)
    yield page.figure(f"frontier-{size}", speed, f"frontier of {title}")
    yield page.figure(f"load-{size}", load, f"throughput and budget over load, {title}")


def _shorter_block(page: Page, size: str) -> pd.Series[float] | None:
    """Throughput of dspark-async with blocks of 5 by concurrency, None where that was not measured."""
    if 5 not in GAMMAS[size]:
        return None
    try:
        profile = page.profile(size, 5)
    except NotMeasuredError:
        return None
    acceptance = {name: model.truncated(5) for name, model in page.acceptance(size).items()}
    frontier = _simulated(page, size, Deployment(profile, acceptance), ("dspark-async",))
    return frontier.set_index("concurrency")["throughput_tok_per_s"]


def _simulated(page: Page, size: str, deployment: Deployment, policies: Sequence[str]) -> pd.DataFrame:
    tiny = page.campaign.tiny
    return sweep_frontier(
        deployment, [parse_policy(name) for name in policies], LOADS[:3] if tiny else LOADS,
        seeds=_seeds(page), lengths=parse_lengths(_lengths(page, size)), steps=60 if tiny else None,
        workers=page.campaign.workers,
    )  # fmt: skip


def _seeds(page: Page) -> int:
    return 2 if page.campaign.tiny else 3


def _lengths(page: Page, size: str) -> str:
    if page.campaign.tiny:
        return "fixed:8/fixed:24"
    return f"fixed:{PROMPT_TOKENS}/fixed:{OUTPUT_TOKENS}" if size == SMALL else LENGTHS


def gains_of(frontier: pd.DataFrame) -> pd.DataFrame:
    """By concurrency: mtp1, the best fixed length, the better confident policy, its gains, and their noise.

    A gain's ``noise`` is what the two intervals amount to, relative to the rival's throughput.
    """
    rows = []
    for load, group in frontier.groupby("concurrency"):
        by_policy = group.set_index("policy")
        throughput, half = by_policy["throughput_tok_per_s"], by_policy["throughput_ci95"].fillna(0.0)
        fixed = str(throughput[[name for name in throughput.index if name.startswith("fixed:")]].idxmax())
        best = str(throughput[list(CONFIDENT)].idxmax())
        row: dict[str, Any] = {"concurrency": load, "fixed": fixed, "confident": best}
        row |= {name: float(throughput[policy]) for name, policy in (("own", best), ("mtp1", "mtp1"))}
        for rival, policy in (("mtp1", "mtp1"), ("fixed", fixed)):
            row[f"over_{rival}"] = throughput[best] / throughput[policy] - 1
            row[f"noise_{rival}"] = (half[best] + half[policy]) / throughput[policy]
        rows.append(row)
    return pd.DataFrame(rows)


def won_words(gains: pd.DataFrame) -> str:
    """In words: at which loads confidence scheduling is ahead, behind, or level."""
    said = []
    for rival, name in (("mtp1", "MTP-1"), ("fixed", "the best fixed length")):
        gain, noise = gains[f"over_{rival}"], gains[f"noise_{rival}"]
        places = {"beats": gain > noise, "loses to": gain < -noise, "is level with": gain.abs() <= noise}
        for verb, where in places.items():
            if where.any():
                loads = ", ".join(str(load) for load in gains.loc[where, "concurrency"])
                ends = dict.fromkeys(f"{end:+.1%}" for end in (gain[where].min(), gain[where].max()))
                span = " to ".join(ends)
                said.append(f"Confidence scheduling {verb} {name} at {loads} concurrent ({span}).")
    return " ".join(said)


def _shown(gains: pd.DataFrame, shorter: pd.Series[float] | None) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "concurrent": gains["concurrency"],
            "mtp1, tokens/s": gains["mtp1"].map("{:,.0f}".format),
            "best fixed length": gains["fixed"],
            "better of dspark and dspark-async": gains["confident"],
            "its tokens/s": gains["own"].map("{:,.0f}".format),
            "over mtp1": gains["over_mtp1"].map("{:+.1%}".format),
            "over best fixed": gains["over_fixed"].map("{:+.1%}".format),
        }
    )
    if shorter is not None:
        table["dspark-async, blocks of 5, tokens/s"] = gains["concurrency"].map(shorter).map("{:,.0f}".format)
    return table


def _bands(frontier: pd.DataFrame) -> pd.DataFrame:
    bands = load_bands(frontier)
    return pd.DataFrame(
        {
            "concurrent": [
                f"{low:.0f} to {high:.0f}"
                for low, high in zip(bands["from_concurrency"], bands["to_concurrency"], strict=True)
            ],
            "winner": bands["policy"],
            "runner-up": bands["runner_up"],
            "margin": bands["margin"].map("{:+.1%}".format),
            "clear": np.where(bands["clear"], "yes", "no"),
        }
    )


def regret(page: Page, size: str) -> str:
    """Show what a scheduler loses that believes a wrong cost table."""
    deployment = Deployment(page.profile(size), page.acceptance(size))
    others = {f"profile of {named_size(other)}": other for other in SIZES if other != size}
    named = {belief: belief for belief in BELIEFS if belief != "no-context" or _sees_context(deployment)}
    missing = []
    for label, other in others.items():
        try:
            named[label] = str(page.campaign.profile_of(other, 7))
        except BadInputError:
            missing.append(f"Not measured yet: the {label}; run `scripts/gpu_campaign profile-{other}`.")
    tiny = page.campaign.tiny
    table = sweep_regret(
        deployment, parse_policy("dspark-async"), list(named.values()), LOADS[:2] if tiny else LOADS[3:],
        seeds=_seeds(page), lengths=parse_lengths(_lengths(page, size)), steps=60 if tiny else None,
        workers=page.campaign.workers,
    )  # fmt: skip
    table["belief"] = table["belief"].map({path: label for label, path in named.items()})
    picture = page.campaign.out / page.slug / f"regret-{size}.png"
    plot_regret(table, picture)
    wide = table.assign(
        shown=[
            f"{round(100 * loss, 1) + 0.0:.1f}" + ("" if clear else f" ± {100 * half:.1f}")
            for loss, half, clear in zip(
                table["regret"], table["regret_ci95"], table["significant"], strict=True
            )
        ]
    ).pivot(index="belief", columns="concurrency", values="shown")
    return "\n\n".join(
        [
            f"Throughput that `dspark-async` loses, in %, because it believes a wrong cost table while the "
            f"clock runs on the measured one; with ± where it is within the noise of {_seeds(page)} seeds. "
            f"Simulated by `{page.campaign.command('report')}` on {today()}.",
            markdown(wide.loc[list(named)].reset_index().rename(columns=str)),
            f"![regret of {named_size(size)}]({page.slug}/{picture.name})",
            *missing,
        ]
    )  # fmt: skip


def _sees_context(deployment: Deployment) -> bool:
    return getattr(deployment.profile.step, "context_s_per_token", None) is not None
