"""The page that a campaign leaves: what was measured on a device, and what follows from it by simulation.

Every section says which command measured its numbers and when. One whose input is missing names the part
to run and shows no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.core.files import slug, write_text
from simulator.core.reading import read_json
from simulator.cost.models import CostModel, StepCost
from simulator.deployment.acceptance_text import parse_acceptances
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile, load_profile
from simulator.live.checks.validation.results import summarise_errors
from simulator.live.profiling.cells import CellLog
from simulator.report.drawing.style import save
from simulator.report.frontier import plot_frontier, plot_load, plot_regret
from simulator.report.validation import plot_frontiers
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.bands import load_bands
from simulator.sweeps.frontier import sweep_frontier
from simulator.sweeps.regret import regret
from simulator.traffic.lengths import parse_lengths
from tools.campaign.campaign import GAMMAS, OUTPUT_TOKENS, PROMPT_TOKENS, SIZES, SMALL, Campaign
from tools.campaign.figures import plot_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICIES = (
    "mtp1", "fixed:2", "fixed:3", "fixed:5", "fixed:7", "threshold:0.6", "dspark", "dspark-async",
)  # fmt: skip

CONFIDENT = ("dspark", "dspark-async")

LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

BELIEFS = ("coarse:4", "floor:4", "ceil:4", "flat", "no-context")

LENGTHS = "lognormal:1024,cv=1,max=4096/lognormal:512,cv=0.5,max=2048"
"""Of simulated requests: nothing is prefilled for them, so they may be as long as a conversation."""


def write_report(campaign: Campaign) -> Path:
    """Write ``OUT/DEVICE.md`` and its figures in ``OUT/DEVICE/``; returns the page's path.

    Raises ``BadInputError`` where nothing was measured at all.
    """
    begun = campaign.out / "campaign.json"
    if not begun.is_file():
        raise BadInputError("no part has been run", source=str(campaign.out), remedy="run ceilings first")
    found: Any = read_json(begun)
    page = _Page(campaign, found["device"])
    text = [f"# {page.device}", _preface(page)]
    for title, section in _SECTIONS:
        text += [f"## {title}", section(page)]
    path = campaign.out / f"{page.slug}.md"
    write_text(path, "\n\n".join(text) + "\n")
    return path


class _NotMeasuredError(Exception):
    """A section's input is missing; the argument is the part that makes it."""


@dataclass(frozen=True, slots=True)
class _Page:
    """What sections read from and leave figures in."""

    campaign: Campaign
    device: str

    @property
    def slug(self) -> str:
        """The device as a file's name."""
        return slug(self.device)

    def figure(self, name: str, figure: Figure, alt: str) -> str:
        """Save a figure; returns the line that shows it."""
        save(figure, self.campaign.out / self.slug / f"{name}.png")
        return f"![{alt}]({self.slug}/{name}.png)"

    def json(self, name: str, part: str) -> dict[str, Any]:
        """Return what a part left."""
        path = self.campaign.out / name
        if not path.is_file():
            raise _NotMeasuredError(part)
        found: Any = read_json(path)
        return dict(found)

    def csv(self, name: str, part: str) -> pd.DataFrame:
        """Return a table that a part left."""
        path = self.campaign.out / name
        if not path.is_file():
            raise _NotMeasuredError(part)
        return pd.read_csv(path)

    def profile(self, size: str, gamma: int = 7) -> Profile:
        """Return a measured profile."""
        try:
            return load_profile(self.campaign.profile_of(size, gamma))
        except BadInputError as error:
            raise _NotMeasuredError(f"profile-{size}") from error

    def acceptance(self, size: str) -> dict[str, AcceptanceModel]:
        """Return acceptance of a size's drafts."""
        try:
            return parse_acceptances(self.campaign.acceptance_of(size))
        except BadInputError as error:
            raise _NotMeasuredError(f"trace-{size}") from error


def _section(body: Callable[[_Page], str]) -> Callable[[_Page], str]:
    """Write a section that says what to run where its input is missing."""

    def said(page: _Page) -> str:
        try:
            return body(page)
        except _NotMeasuredError as missing:
            return f"Not measured yet: run `scripts/gpu_campaign {missing}`."

    return said


def _for_sizes(body: Callable[..., str], sizes: Sequence[str]) -> Callable[[_Page], str]:
    """Write a section with a part for each size, each of which may be missing."""

    def said(page: _Page) -> str:
        parts = []
        for size in sizes:
            parts += [f"### {_named(size)}", _section(partial(body, size=size))(page)]
        return "\n\n".join(parts)

    return said


def _named(size: str) -> str:
    return "The small pair" if size == SMALL else f"Qwen3-{size.upper()}"


# ----------------------------------------------------------------------------------------------- sections


def _preface(page: _Page) -> str:
    rows = []
    left = (page.campaign.out / "parts").glob("*.json")
    for path in sorted(left, key=lambda path: path.stat().st_mtime):
        found: Any = read_json(path)
        rows.append(
            {
                "part": found["part"],
                "result": f"{found['status']} {found['reason']}".strip(),
                "minutes": f"{found['seconds'] / 60:.1f}",
                "date": found["date"],
                "command": f"`{found['command']}`",
                "torch": found["software"]["torch"],
                "transformers": found["software"]["transformers"],
            }
        )
    scale = " **A tiny campaign: its models are stand-ins and say nothing of real ones.**"
    return (
        f"Written by `{page.campaign.command('report')}` on {_today()} from what the commands below measured."
        f"{scale if page.campaign.tiny else ''} Simulated numbers say so; all others are measured."
        f"\n\n{_markdown(pd.DataFrame(rows))}"
    )


def _ceilings(page: _Page) -> str:
    found = page.json("ceilings.json", "ceilings")
    return (
        f"Large copies reach {found['bytes_per_s'] / 1e9:,.1f} GB/s (bytes read and written), "
        f"{found['dtype']} matrix products {found['flop_per_s'] / 1e12:,.3f} TFLOP/s. {_by(found)}"
    )


def _curves(page: _Page, size: str) -> str:
    text = []
    for gamma in GAMMAS[size]:
        profile = page.profile(size, gamma)
        steps, cost = _steps(profile, page.campaign.profile_of(size, gamma))
        title = f"{_named(size)}, blocks of {gamma}"
        shown = plot_steps(steps, cost, title)
        text.append(
            f"Blocks of {gamma}: {len(steps)} cells. {_ends(steps)} Of the fit: {profile.provenance.notes}. "
            f"{_by(profile.provenance.model_dump())}"
        )
        text += [page.figure(f"curve-{size}-gamma{gamma}", shown, f"step time and rate of {title}")]
        text += [_markdown(_drafting(profile))]
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


def _stairs(page: _Page, size: str) -> str:
    found = sorted((page.campaign.out / f"staircase-{size}").rglob("*.json"))
    if not found:
        raise _NotMeasuredError(f"staircase-{size}")
    profile = load_profile(found[0])
    steps, cost = _steps(profile, found[0])
    plain = steps[steps["batch_tokens"] == steps["requests"]].sort_values("batch_tokens")
    rise = plain["seconds"].pct_change().to_numpy()
    steepest = int(np.nanargmax(rise))
    shown = plot_steps(steps, cost, _named(size), logarithmic=False)
    return (
        f"{len(steps)} cells. {_ends(steps)} Without drafts the largest rise between neighbours is "
        f"{rise[steepest]:+.1%}, at {plain['batch_tokens'].iloc[steepest]} batch tokens. "
        f"{_by(profile.provenance.model_dump())}\n\n"
        + page.figure(f"staircase-{size}", shown, f"step time of {_named(size)} in fine steps")
    )


def _frontier(page: _Page, size: str) -> str:
    profile, acceptance = page.profile(size), page.acceptance(size)
    frontier = _simulated(page, size, Deployment(profile, acceptance), POLICIES)
    title = f"{_named(size)} on {page.device}, simulated"
    gains = _gains(frontier)
    return "\n\n".join(
        [
            f"Simulated by `{page.campaign.command('report')}` on {_today()} from the profile of "
            f"{profile.provenance.date} and {', '.join(model.name for model in acceptance.values())}; "
            f"{_seeds(page)} seeds, closed loop, prompt and output lengths `{_lengths(page, size)}`. "
            "Where no acceptance of MTP-1 is named, the first position of DSpark's stands in. Memory is not "
            "limited.",
            *_frontier_figures(page, size, frontier, title),
            "Winning policy by concurrency. The margin is the smallest lead over the runner-up in the band; "
            "it is clear where it exceeds both confidence intervals everywhere.",
            _markdown(_bands(frontier)),
            _won(gains),
            _markdown(_shown(gains, _shorter_block(page, size))),
        ]
    )  # fmt: skip


def _frontier_figures(page: _Page, size: str, frontier: pd.DataFrame, title: str) -> Iterator[str]:
    speed, load = plot_frontier(frontier, title=title), plot_load(frontier, title=title)
    for axes in load.axes:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    for line in (line for axes in (*speed.axes, *load.axes) for line in axes.lines):
        if line.get_label() == "dspark":  # often level with dspark-async, which is drawn over it
            line.set_linewidth(5)
    yield page.figure(f"frontier-{size}", speed, f"frontier of {title}")
    yield page.figure(f"load-{size}", load, f"throughput and budget over load, {title}")


def _shorter_block(page: _Page, size: str) -> pd.Series[float] | None:
    """Throughput of dspark-async with blocks of 5 by concurrency, None where that was not measured."""
    if 5 not in GAMMAS[size]:
        return None
    try:
        profile = page.profile(size, 5)
    except _NotMeasuredError:
        return None
    acceptance = {name: model.truncated(5) for name, model in page.acceptance(size).items()}
    frontier = _simulated(page, size, Deployment(profile, acceptance), ("dspark-async",))
    return frontier.set_index("concurrency")["throughput_tok_per_s"]


def _simulated(page: _Page, size: str, deployment: Deployment, policies: Sequence[str]) -> pd.DataFrame:
    tiny = page.campaign.tiny
    return sweep_frontier(
        deployment, [parse_policy(name) for name in policies], LOADS[:3] if tiny else LOADS,
        seeds=_seeds(page), lengths=parse_lengths(_lengths(page, size)), steps=60 if tiny else None,
        workers=page.campaign.workers,
    )  # fmt: skip


def _seeds(page: _Page) -> int:
    return 2 if page.campaign.tiny else 3


def _lengths(page: _Page, size: str) -> str:
    if page.campaign.tiny:
        return "fixed:8/fixed:10"
    return f"fixed:{PROMPT_TOKENS}/fixed:{OUTPUT_TOKENS}" if size == SMALL else LENGTHS


def _gains(frontier: pd.DataFrame) -> pd.DataFrame:
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


def _won(gains: pd.DataFrame) -> str:
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


def _regret(page: _Page, size: str) -> str:
    deployment = Deployment(page.profile(size), page.acceptance(size))
    others = {f"profile of {_named(other)}": other for other in SIZES if other != size}
    named = {belief: belief for belief in BELIEFS if belief != "no-context" or _sees_context(deployment)}
    missing = []
    for label, other in others.items():
        try:
            named[label] = str(page.campaign.profile_of(other, 7))
        except BadInputError:
            missing.append(f"Not measured yet: the {label}; run `scripts/gpu_campaign profile-{other}`.")
    tiny = page.campaign.tiny
    table = regret(
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
            f"Simulated by `{page.campaign.command('report')}` on {_today()}.",
            _markdown(wide.loc[list(named)].reset_index().rename(columns=str)),
            f"![regret of {_named(size)}]({page.slug}/{picture.name})",
            *missing,
        ]
    )  # fmt: skip


def _sees_context(deployment: Deployment) -> bool:
    return getattr(deployment.profile.step, "context_s_per_token", None) is not None


def _validation(page: _Page, size: str) -> str:
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
            f"{parity['visible_schedule_share'].max():.1%} of a step. {_by(found)}",
            _markdown(table),
            "Throughput, predicted over measured, by concurrency:",
            _markdown(_throughput_errors(errors)),
            page.figure(
                f"validation-{size}", plot_frontiers(errors, f"{_named(size)} on {page.device}"),
                f"live and simulated frontier of {_named(size)}",
            ),
        ]
    )  # fmt: skip


def _throughput_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Signed relative error of throughput: a row per policy, a column per concurrency."""
    rows = errors[errors["metric"] == "throughput_tok_per_s"]
    wide = rows.pivot(index="policy", columns="concurrency", values="error")
    wide = wide.loc[rows["policy"].unique()].map("{:+.1%}".format)
    return wide.reset_index().rename(columns=str)


def _training(page: _Page) -> str:
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
        f"{_by(run | {'command': command})}\n\n{_markdown(table)}"
    )


def _acceptance(page: _Page) -> str:
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
        f"Tokens per round under full verification, bonus included, with 95% half-widths. {_by(found)}\n\n"
        f"{_markdown(wide)}\n\nMean calibration error over positions and domains: {said}."
    )


def _speed(page: _Page) -> str:
    text = []
    for name, said in _SPEED.items():
        found, table = page.json(f"speed/{name}.json", "speed"), page.csv(f"speed/{name}.csv", "speed")
        text += [f"### {name}", f"{said} {_by(found)}", _markdown(table.map(_number))]
    return "\n\n".join(text)


_SPEED = {
    "bandwidth_floor": "A step of one request against the time that reading weights, keys and values takes.",
    "visible_scheduling": "The share of a step in which the device waits for the scheduler.",
    "ragged_against_padded": "Verifying ragged rows against padding every request to its whole block.",
    "against_generate": "Autoregressive decoding against transformers' `generate` over a static cache.",
}


def _agreement(page: _Page) -> str:
    found = page.json("agreement.json", "schedulers")
    differing = {device: len(indices) for device, indices in found["differing"].items()}
    where = ", ".join(f"torch on {device}: {count:,} differ" for device, count in differing.items())
    return f"{found['batches']:,} random batches against NumPy. {where}. {_by(found)}"


def _tests(page: _Page) -> str:
    found = page.json("gpu-tests.json", "gpu-tests")
    failed = found["failures"] + found["errors"]
    ran = found["tests"] - found["skipped"]
    return f"{ran} tests ran, {failed} failed, {found['skipped']} were skipped. {_by(found)}"


# ----------------------------------------------------------------------------------------------- wording


def _by(found: Mapping[str, Any]) -> str:
    """Where numbers come from."""
    torch = found["software"].get("torch")
    return f"(`{found['command']}`, {found['date']}, {found['device']}, torch {torch})"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _number(value: object) -> str:
    """Four digits of a float; whole numbers, truths and text as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(frame: pd.DataFrame) -> str:
    """Format a table of strings and whole numbers."""
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_SECTIONS: tuple[tuple[str, Callable[[_Page], str]], ...] = (
    ("Ceilings", _section(_ceilings)),
    ("Throughput curves", _for_sizes(_curves, (SMALL, *SIZES))),
    ("Staircases", _for_sizes(_stairs, SIZES)),
    ("Which policy wins", _for_sizes(_frontier, (SMALL, *SIZES))),
    ("What a wrong cost table loses", _for_sizes(_regret, SIZES)),
    ("Live against simulated", _for_sizes(_validation, (SMALL, *SIZES))),
    ("Training the small pair", _section(_training)),
    ("Acceptance of the small pair", _section(_acceptance)),
    ("Speed", _section(_speed)),
    ("Scheduler agreement", _section(_agreement)),
    ("Tests on the device", _section(_tests)),
)
