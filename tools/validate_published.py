"""Predict what the paper publishes about production from the DeepSeek-V4 profiles; print it as Markdown."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.paper.claims_check import check_against, draft_cost_budgets
from simulator.paper.held_out import held_out_gains
from simulator.paper.readings import Reading, readings
from simulator.sweeps.frontier import sweep_frontier

LOADS = [2, 4, 7, 10, 14, 20, 28, 40, 55, 75, 100, 130, 165, 200, 250, 300]
POLICIES = ("mtp1", "mtp3", "fixed:3", "fixed:5", "dspark-async")
SHOWN = (10, 40, 100, 200, 300)

GAINS = {
    "deepseek-v4-flash": ("80", "120"),
    "deepseek-v4-pro": ("35", "50"),
}
"""Speeds in tokens/s/user at which the paper claims a gain."""


def markdown(row: Mapping[Hashable, Any]) -> str:
    """One compared quantity as a table row, in its own unit."""
    form, error = "{:,.0f}", f"{row['error']:.1%}"
    if "gain" in row["quantity"]:
        form, error = "{:+.0%}", f"{100 * row['error']:+.0f} points"
    elif "budget" in row["quantity"]:
        form, error = "{:.2f}", f"{row['error']:.2f}"
    published, predicted = form.format(row["published"]), form.format(row["predicted"])
    return f"| {row['quantity']} | {published} | {predicted} | {error} |"


def tables() -> None:
    """Print what each shipped profile predicts, and every policy by load."""
    for name in (
        "deepseek-v4-flash",
        "deepseek-v4-flash-figure7",
        "deepseek-v4-pro",
        "deepseek-v4-pro-figure7",
    ):
        profile = load_profile(name)
        table = sweep_frontier(
            deploy(profile, extrapolate_rows=True), list(POLICIES), LOADS, seeds=3, workers=-1
        )
        print(f"\n### {profile.title}\n\n| quantity | published | predicted | error |")
        print("| --- | ---: | ---: | ---: |")
        assert profile.published is not None
        for row in check_against(table, profile.published).to_dict("records"):
            print(markdown(row))
        wide = table.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")
        heads = [f"{each}@dspark" if each.startswith("fixed") else each for each in POLICIES]
        print("\n| concurrent | " + " | ".join(heads) + " |\n|" + " ---: |" * (len(POLICIES) + 1))
        for load in SHOWN:
            row = wide[list(POLICIES)].loc[[load]].to_numpy(dtype=float)[0]
            print(f"| {load} | " + " | ".join(f"{each:,.0f}" for each in row) + " |")


def other_readings() -> None:
    """Print what each reading of what is published predicts, with both baselines of every gain."""
    print("\n### Readings\n")
    print("Gains are predicted, in brackets as claimed / by the published lines over load.\n")
    print(
        "| reading | numbers fitted | Flash throughput | Flash budget | Flash at 80 | Flash at 120 "
        "| Pro at 35 | Pro at 50 |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for reading in readings():
        found = {name: reading.predicted(name).set_index("quantity") for name in GAINS}
        flash = found["deepseek-v4-flash"]
        throughput = flash.filter(like="dspark-async throughput", axis=0)["error"].iloc[0]
        budget = flash.filter(like="budget", axis=0)["error"].iloc[0]
        gains = [_gain(found[name], sla) for name, slas in GAINS.items() for sla in slas]
        print(
            f"| {reading.name} | {reading.fitted} | {throughput:.1%} | {budget:.2f} | "
            + " | ".join(gains)
            + " |"
        )


def _gain(found: pd.DataFrame, sla: str) -> str:
    what = f"throughput gain over mtp1 at {sla} tokens/s/user"
    rows = found[found.index.str.startswith(what)]
    if rows.empty:
        return "mtp1 misses it"
    published = " / ".join(f"{each:+.0%}" for each in rows["published"])
    return f"{rows['predicted'].iloc[0]:+.0%} ({published})"


def mtp3() -> None:
    """Print what production's MTP-3 brings over MTP-1 by load, on traffic with and without thinking."""
    print("\n### MTP-3 over MTP-1\n")
    print(
        "| model, traffic | accepted length | "
        + " | ".join(f"{load}" for load in (50, 100, 150, 200, 300))
        + " |"
    )
    print("| --- |" + " ---: |" * 6)
    for name in GAINS:
        for traffic in ("thinking", "no-thinking"):
            deployment = Reading(name, traffic=traffic).deployment(load_profile(name))
            table = sweep_frontier(
                deployment, ["mtp1", "mtp3"], [50, 100, 150, 200, 300], seeds=3, workers=-1
            )
            wide = table.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")
            gains = " | ".join(f"{each:+.0%}" for each in wide["mtp3"] / wide["mtp1"] - 1)
            length = table[table["policy"] == "mtp3"]["accepted_length_mean"].mean()
            print(f"| {load_profile(name).title}, {traffic} | {length:.2f} | {gains} |")


def held_out() -> None:
    """Print measured gains of chain drafters that nothing here was fitted to, beside what curves predict."""
    print("\n### Held out\n")
    print("| target, GPU, engine | drafter | requests | drafts | accepted | measured | predicted | error |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in held_out_gains().itertuples(index=False):
        print(
            f"| {row.where} | {row.drafter} | {row.requests} | {row.drafts} | {row.accepted_length:.2f} "
            f"| {row.measured:.2f} | {row.predicted:.2f} | {row.error:+.0%} |"
        )


def draft_costs() -> None:
    """Print what a constant cost of drafting, on top of what the profile knows, does to the budget."""
    print("\n| drafting, ms a step | budget at 20 concurrent |\n| ---: | ---: |")
    for extra_s, budget in draft_cost_budgets(20, (0.0, 0.001, 0.003)).items():
        print(f"| {1000 * extra_s:g} | {budget:.2f} |")


if __name__ == "__main__":
    other_readings()
    mtp3()
    held_out()
    tables()
    draft_costs()
