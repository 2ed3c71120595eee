"""Predict what the paper publishes about production from the DeepSeek-V4 profiles; print it as Markdown."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from simulator.deployment.deployment import deploy
from simulator.deployment.profile import load_profile
from simulator.paper.claims_check import check_against, draft_cost_budgets
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.frontier import sweep_frontier

LOADS = [2, 4, 7, 10, 14, 20, 28, 40, 55, 75, 100, 130, 165, 200, 250, 300]
POLICIES = ("mtp1", "fixed:3", "fixed:5", "dspark-async")


def markdown(row: Mapping[Hashable, Any]) -> str:
    """One compared quantity as a table row, in its own unit."""
    form, error = "{:,.0f}", f"{row['error']:.1%}"
    if "gain" in row["quantity"]:
        form, error = "{:+.0%}", f"{100 * row['error']:+.0f} points"
    elif "budget" in row["quantity"]:
        form, error = "{:.2f}", f"{row['error']:.2f}"
    published, predicted = form.format(row["published"]), form.format(row["predicted"])
    return f"| {row['quantity']} | {published} | {predicted} | {error} |"


def main() -> None:
    """Print the tables of both models as Markdown."""
    for name in (
        "deepseek-v4-flash",
        "deepseek-v4-flash-figure7",
        "deepseek-v4-pro",
        "deepseek-v4-pro-figure7",
    ):
        profile = load_profile(name)
        table = sweep_frontier(
            deploy(profile, extrapolate_rows=True),
            [parse_policy(text) for text in POLICIES],
            LOADS,
            seeds=3,
            workers=-1,
        )
        print(f"\n### {profile.title}\n\n| quantity | published | predicted | error |")
        print("| --- | ---: | ---: | ---: |")
        assert profile.published is not None
        for row in check_against(table, profile.published).to_dict("records"):
            print(markdown(row))
        wide = table.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")[
            list(POLICIES)
        ]
        print("\n| concurrent | " + " | ".join(POLICIES) + " |\n|" + " ---: |" * (len(POLICIES) + 1))
        for load in (10, 40, 100, 200, 300):
            row = wide.loc[[load]].to_numpy(dtype=float)[0]
            print(f"| {load} | " + " | ".join(f"{each:,.0f}" for each in row) + " |")


def draft_costs() -> None:
    """Print what a constant cost of drafting, which the curve does not contain, does to the budget."""
    print("\n| drafting, ms a step | budget at 20 concurrent |\n| ---: | ---: |")
    for extra_s, budget in draft_cost_budgets(20, (0.0, 0.001, 0.003)).items():
        print(f"| {1000 * extra_s:g} | {budget:.2f} |")


if __name__ == "__main__":
    main()
    draft_costs()
