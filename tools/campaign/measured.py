"""Sections of a campaign's page that show what a device measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from simulator.cost.models import CostModel, StepCost
from simulator.deployment.profile import Profile, load_profile
from simulator.live.checks.validation.results import summarise_errors
from simulator.live.profiling.cells import CellLog
from simulator.report.validation import plot_frontiers
from tools.campaign.campaign import GAMMAS, SMALL
from tools.campaign.figures import plot_steps
from tools.campaign.page import NotMeasuredError, Page, markdown, measured_by, named_size, number


def ceilings(page: Page) -> str:
    """Say what memory and matrix products reach on the device."""
    found = page.json("ceilings.json", "ceilings")
    return (
        f"Large copies reach {found['bytes_per_s'] / 1e9:,.1f} GB/s (bytes read and written), "
        f"{found['dtype']} matrix products {found['flop_per_s'] / 1e12:,.3f} TFLOP/s. {measured_by(found)}"
    )


def curves(page: Page, size: str) -> str:
    """Show how long steps take by batch tokens, for each block that was profiled."""
    text = []
    for gamma in GAMMAS[size]:
        profile = page.profile(size, gamma)
        steps, cost = _steps(profile, page.campaign.profile_of(size, gamma))
        title = f"{named_size(size)}, blocks of {gamma}"
        shown = plot_steps(steps, cost, title)
        text.append(
            f"Blocks of {gamma}: {len(steps)} cells. {_ends(steps)} Of the fit: {profile.provenance.notes}. "
            f"{measured_by(profile.provenance.model_dump())}"
        )
        text += [page.figure(f"curve-{size}-gamma{gamma}", shown, f"step time and rate of {title}")]
        text += [markdown(_drafting(profile))]
    return "\n\n".join(text)


def _steps(profile: Profile, path: Path) -> tuple[pd.DataFrame, CostModel]:
    """Measured whole steps with the profile's first drafter, and what the profile says they cost.

    A step and its draft are cells of their own, so their times are added.
    """
    log, drafter = CellLog.read(path.with_suffix(".cells.jsonl")), next(iter(profile.drafters or {}))
    size = ["requests", "context_tokens"]
    steps, drafts = log.of("step"), log.of("draft", drafter).set_index(size)["seconds"].rename("draft_s")
    whole = steps.join(drafts, on=size, how="inner")
    whole["seconds"] += whole["draft_s"]
    return whole, StepCost(profile.target_cost(), profile.draft_cost(drafter))


def _ends(steps: pd.DataFrame) -> str:
    """Describe the smallest and the largest batch of some cells, in words."""
    ordered = steps.sort_values(["batch_tokens", "context_tokens"])
    said = [
        f"{1e3 * cell['seconds']:.2f} ms at {cell['batch_tokens']:,.0f} batch tokens and a context of "
        f"{cell['context_tokens'] / cell['requests']:,.0f} tokens a request"
        for cell in (ordered.iloc[0], ordered.iloc[-1])
    ]
    return f"A step, drafting included, takes from {said[0]} to {said[1]}."


def _drafting(profile: Profile) -> pd.DataFrame:
    """Milliseconds that a block takes, by drafter and requests."""
    rows = []
    for name, spec in (profile.drafters or {}).items():
        cost = spec.build()
        times = {f"{int(r)}": f"{1e3 * cost.time_s(int(r)):.2f}" for r in spec.requests}
        rows.append({"drafting a block, ms, at requests": f"{name} ({spec.block_size})"} | times)
    return pd.DataFrame(rows)


def stairs(page: Page, size: str) -> str:
    """Show step times in fine steps, and where they rise most."""
    found = sorted((page.campaign.out / f"staircase-{size}").rglob("*.json"))
    if not found:
        raise NotMeasuredError(f"staircase-{size}")
    profile = load_profile(found[0])
    steps, cost = _steps(profile, found[0])
    plain = steps[steps["batch_tokens"] == steps["requests"]].sort_values("batch_tokens")
    rise = plain["seconds"].pct_change().to_numpy()
    steepest = int(np.nanargmax(rise))
    shown = plot_steps(steps, cost, named_size(size), logarithmic=False)
    return (
        f"{len(steps)} cells. {_ends(steps)} Without drafts the largest rise between neighbours is "
        f"{rise[steepest]:+.1%}, at {plain['batch_tokens'].iloc[steepest]} batch tokens. "
        f"{measured_by(profile.provenance.model_dump())}\n\n"
        + page.figure(f"staircase-{size}", shown, f"step time of {named_size(size)} in fine steps")
    )


def training(page: Page) -> str:
    """Say what the small pair learned."""
    log = page.csv(f"{SMALL}/losses.csv", "train-small")
    run = page.json(f"{SMALL}/run.json", "train-small")
    last = log.groupby("stage", sort=False).tail(100).groupby("stage", sort=False)
    table = pd.DataFrame(
        {
            "model": list(last.groups),
            "steps": log.groupby("stage", sort=False)["step"].max().to_list(),
            "loss": last["loss"].mean().map("{:.3f}".format).to_list(),
            "cross-entropy": last["cross_entropy"].mean().map("{:.3f}".format).to_list(),
            "accepted length in training": last["accepted_length"].mean().map("{:.2f}".format).to_list(),
        }
    ).replace("nan", "")
    command = page.campaign.command("train-small")
    return (
        f"Preset `{run['preset']}`, text: {run['corpus']}; means over the last 100 steps. "
        f"{measured_by(run | {'command': command})}\n\n{markdown(table)}"
    )


def acceptance(page: Page) -> str:
    """Say how much of the drafts was accepted, and how well confidence is calibrated."""
    table = page.csv(f"trace-report-{SMALL}/accepted_length.csv", "trace-small")
    calibration = page.csv(f"trace-report-{SMALL}/calibration.csv", "trace-small")
    found = page.json("parts/trace-small.json", "trace-small")
    table["said"] = [
        f"{a:.2f} ± {h:.2f}" for a, h in zip(table["accepted_length"], table["half_width"], strict=True)
    ]
    wide = table.pivot(index=["kind", "domain"], columns="draft", values="said").reset_index()
    ours = calibration[calibration["convention"] == "reference"]
    errors = 100 * ours.groupby("kind", sort=False)[["ece_before", "ece_after"]].mean()
    said = "; ".join(
        f"{kind}: {row['ece_before']:.1f}% raw, {row['ece_after']:.1f}% calibrated"
        for kind, row in errors.iterrows()
    )
    return (
        "Tokens per round under full verification, bonus included, with 95% half-widths. "
        f"{measured_by(found)}\n\n{markdown(wide)}\n\n"
        f"Mean calibration error over positions and domains: {said}."
    )


def validation(page: Page, size: str) -> str:
    """Hold live runs against their simulation."""
    part, folder = f"validation-{size}", f"validation-{size}"
    found = page.json(f"{folder}/origin.json", part)
    errors = page.csv(f"{folder}/errors.csv", part)
    parity = page.csv(f"{folder}/parity.csv", part)
    summary = summarise_errors(errors)
    table = pd.DataFrame(
        {
            "metric": list(summary.index),
            "median error": [f"{value:.1%}" for value in summary["median"]],
            "largest error": [f"{value:.1%}" for value in summary["max"]],
            "median spread of live runs": [f"{value:.1%}" for value in summary["spread"]],
        }
    )
    runs = errors[["policy", "concurrency"]].drop_duplicates()
    how = "own acceptance, prompts of held-out code" if size == SMALL else "replayed acceptance"
    return "\n\n".join(
        [
            f"{len(runs)} live runs ({how}, lengths `{found['lengths']}`) against their simulation. "
            f"{parity['differing'].sum():,.0f} of {parity['decisions'].sum():,.0f} decisions differ. Visible "
            f"scheduling takes {parity['visible_schedule_share'].min():.1%} to "
            f"{parity['visible_schedule_share'].max():.1%} of a step. {measured_by(found)}",
            markdown(table),
            "Throughput, predicted over measured, by concurrency:",
            markdown(_throughput_errors(errors)),
            page.figure(
                f"validation-{size}", plot_frontiers(errors, f"{named_size(size)} on {page.device}"),
                f"live and simulated frontier of {named_size(size)}",
            ),
        ]
    )  # fmt: skip


def _throughput_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Signed relative error of throughput: a row per policy, a column per concurrency."""
    rows = errors[errors["metric"] == "throughput_tok_per_s"]
    wide = rows.pivot(index="policy", columns="concurrency", values="error")
    wide = wide.loc[rows["policy"].unique()].map("{:+.1%}".format)
    return wide.reset_index().rename(columns=str)


_SPEED = {
    "bandwidth_floor": "A step of one request against the time that reading weights, keys and values takes.",
    "visible_scheduling": "The share of a step in which the device waits for the scheduler.",
    "ragged_against_padded": "Verifying ragged rows against padding every request to its whole block.",
    "against_generate": "Autoregressive decoding against transformers' `generate` over a static cache.",
}


def speed(page: Page) -> str:
    """Show the speed of the live path against its limits and its rivals."""
    text = []
    for name, said in _SPEED.items():
        found, table = page.json(f"speed/{name}.json", "speed"), page.csv(f"speed/{name}.csv", "speed")
        text += [f"### {name}", f"{said} {measured_by(found)}", markdown(table.map(number))]
    return "\n\n".join(text)


def agreement(page: Page) -> str:
    """Say how many decisions of NumPy and torch differ."""
    found = page.json("agreement.json", "schedulers")
    differing = {device: len(indices) for device, indices in found["differing"].items()}
    where = ", ".join(f"torch on {device}: {count:,} differ" for device, count in differing.items())
    return f"{found['batches']:,} random batches against NumPy. {where}. {measured_by(found)}"


def tests(page: Page) -> str:
    """Say how the tests went on the device."""
    found = page.json("gpu-tests.json", "gpu-tests")
    failed = found["failures"] + found["errors"]
    ran = found["tests"] - found["skipped"]
    return f"{ran} tests ran, {failed} failed, {found['skipped']} were skipped. {measured_by(found)}"
