"""The parts of a campaign: each measures one thing, checks its own results and leaves them in files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pandas as pd

from simulator.acceptance.trace_file import load_trace
from simulator.cli.measure.options import show_table
from simulator.core.errors import BadInputError, InfeasibleError, SimulatorError
from simulator.core.files import write_csv, write_json
from simulator.deployment.acceptance_text import parse_acceptances
from simulator.deployment.profile import load_profile
from simulator.live.device import now_s
from tools.campaign.campaign import GAMMAS, OUTPUT_TOKENS, PROMPT_TOKENS, SIZES, SMALL, Campaign, Part, origin

if TYPE_CHECKING:
    from simulator.live.profiling.grid import ProfileOptions

LENGTHS = "lognormal:160,cv=0.5,max=256/lognormal:160,cv=0.5,max=240"
"""Of requests served at Qwen3 sizes: 256 of them fit beside the weights of 14B on an 80 GB device, and
prompts, which are really prefilled, take little of the time."""

LIVE_POLICIES = "autoregressive mtp1 fixed:3 threshold:0.6 dspark dspark-async"
"""What runs live and simulated."""

AGREEMENT_BATCHES = 1_000_000


def gpu_tests(campaign: Campaign, *, selection: Sequence[str] = ("-m", "gpu", "tests/live")) -> None:
    """Run what ``scripts/gpu_tests`` runs; fails where a test failed, and where none ran."""
    root = Path(__file__).parents[2]
    results = (campaign.out / "gpu-tests.xml").resolve()
    results.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pytest", *selection, f"--junitxml={results}"], cwd=root, check=False
    )
    if not results.is_file():
        raise BadInputError(
            "could not be run", field="tests", remedy="install pytest, and run from a checkout of the project"
        )
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(results).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    write_json(campaign.out / "gpu-tests.json", counts | origin(campaign, "gpu-tests"))
    if counts["failures"] or counts["errors"]:
        raise InfeasibleError(
            f"{counts['failures'] + counts['errors']} of {counts['tests']} failed: {results}"
        )
    if counts["tests"] == counts["skipped"]:
        raise InfeasibleError(f"no test ran, {counts['skipped']} were skipped; they need a CUDA device")


def ceilings(campaign: Campaign) -> None:
    """Copy bandwidth and matmul rate of the device."""
    import torch

    from simulator.live.profiling.device_ceilings import measure_ceilings

    dtype = torch.float32 if campaign.device == "cpu" else torch.bfloat16
    sizes: dict[str, Any] = {"copy_bytes": 2**22, "matmul_size": 128} if campaign.tiny else {}
    measured = measure_ceilings(torch.device(campaign.device), dtype, **sizes)
    print(measured.line)
    write_json(campaign.out / "ceilings.json", asdict(measured) | origin(campaign, "ceilings"))


def profile(campaign: Campaign, *, size: str) -> None:
    """Step, draft, head, prefill and scheduling cost at each gamma of a size; a finished profile stays."""
    for gamma in GAMMAS[size]:
        grid: dict[str, Any] = {"drafts": (0, 1, 3, 5) if gamma == 5 else (0, 1, 3, 7)}
        if size == SMALL:
            # Its steps take about a millisecond, of which launches are a good part.
            grid |= {
                "context": (128, 256, 512),
                "prefill": (48, 192, 512),
                "confidence": 0.02,
                "repeats": 400,
            }
        _profile(campaign, f"profile-{size}", size, gamma, f"profiles-{size}-gamma{gamma}", grid)


def staircase(campaign: Campaign, *, size: str) -> None:
    """Step time at many batch tokens and one context: what tiles and graph sizes make of the curve."""
    grid: dict[str, Any] = {
        "requests": (1, 2, *range(4, 193, 4)), "drafts": (0, 1), "context": (512,), "prefill": (128,),
        "policies": (),
    }  # fmt: skip
    _profile(campaign, f"staircase-{size}", size, 7, f"staircase-{size}", grid)


def _profile(
    campaign: Campaign, part: str, size: str, gamma: int, folder: str, grid: Mapping[str, Any]
) -> None:
    from simulator.live.models.pairs import load_pair
    from simulator.live.profiling.run import measure_profile

    out = campaign.out / folder
    names, drafts = campaign.pair(size, gamma)
    if not list(out.rglob("*.json")):
        options = _options(campaign, part, grid)
        target, drafters = load_pair(names, drafts, campaign.device, None, 1)
        try:
            found = measure_profile(target, drafters, options, out, partial(print, flush=True))
        except InfeasibleError as error:
            raise InfeasibleError(f"{error}. Measured cells stay; delete {out} to measure anew") from error
        show_table(found.achieved, found.ceilings.line, ("of_copy_bandwidth", "of_matmul_rate"))
    (path,) = out.rglob("*.json")
    written = load_profile(path)
    _check_profile(written.provenance.device, campaign, path)
    if set(written.drafters or {}) != {text.partition("=")[0] for text in drafts}:
        raise SimulatorError(f"{path} lacks a drafter's cost; delete it and measure again")


def _options(campaign: Campaign, part: str, asked: Mapping[str, Any]) -> ProfileOptions:
    """How to measure: what a part asks for over the defaults; of a dry run, as little as there can be."""
    from simulator.live.profiling.cells import Repeats
    from simulator.live.profiling.grid import Grid, ProfileOptions

    options = dict(asked) | (_TINY if campaign.tiny else {})
    confidence, repeats = options.pop("confidence", 0.01), options.pop("repeats", 200)
    warmup = options.pop("warmup", 3)
    return ProfileOptions(
        repeats=Repeats(confidence, most=repeats, least=min(10, repeats), warmup=warmup),
        tolerance=options.pop("tolerance", 0.05), grid=Grid(**options), command=campaign.command(part),
    )  # fmt: skip


_TINY: dict[str, Any] = {
    "requests": (1, 16), "drafts": (0, 1), "context": (16,), "prefill": (8,),
    "confidence": 0.9, "repeats": 3, "warmup": 1, "tolerance": 50.0,
}  # fmt: skip


def _check_profile(device: str | None, campaign: Campaign, path: Path) -> None:
    here = origin(campaign, "")["device"]
    if device != here:
        raise SimulatorError(f"{path} was measured on {device}, this is {here}; delete it and measure again")


def validation(campaign: Campaign, *, size: str) -> None:
    """Each policy over concurrency, live and simulated.

    The small pair serves held-out code and decides for itself; at Qwen3's sizes acceptance is replayed
    from the fitted models while every pass is real.
    """
    from simulator.live.checks.asked import Asked, validation_case
    from simulator.live.checks.validation.validate import validate
    from simulator.live.device import device_name
    from simulator.live.models.pairs import load_pair
    from simulator.live.profiling.profile_fit import label
    from simulator.report.validation import write_validation

    part, out = f"validation-{size}", campaign.out / f"validation-{size}"
    asked = _asked(campaign, size)
    names, drafts = campaign.pair(size, 7)
    write_json(out / "origin.json", origin(campaign, part) | {"lengths": asked["lengths"]})
    target, drafters = load_pair(names, drafts, campaign.device, None, 1)
    case = validation_case(target, drafters, Asked(
        profile=str(campaign.profile_of(size, 7)), acceptance=campaign.acceptance_of(size), **asked
    ))  # fmt: skip
    result = validate(case, out, partial(print, flush=True))
    title = f"{label(target)} on {device_name(target.device)}"
    write_validation(result.errors, result.lengths, result.parity, title, out)
    show_table(result.summary().reset_index(), f"Absolute error, {title}", ("median", "max", "spread"))
    result.check({})


def _asked(campaign: Campaign, size: str) -> dict[str, Any]:
    """Say what a validation serves: the small pair its own drafts on code, Qwen3's sizes replayed ones."""
    if size == SMALL:
        asked: dict[str, Any] = {
            "own": True, "prompts": "code", "text": campaign.text, "steps": 400,
            "policies": f"{LIVE_POLICIES} fixed:3@dflash".split(),
            "concurrency": (1, 2, 4, 8, 16, 32, 64, 128, 256),
            "lengths": f"fixed:{PROMPT_TOKENS}/fixed:{OUTPUT_TOKENS}",
        }  # fmt: skip
    else:
        asked = {
            "policies": LIVE_POLICIES.split(), "concurrency": (1, 4, 16, 64, 256), "steps": 200,
            "lengths": LENGTHS,
        }  # fmt: skip
    if campaign.tiny:
        asked |= {"concurrency": (1, 3), "lengths": "fixed:8/fixed:24", "steps": 52}
    return asked


def train_small(campaign: Campaign) -> None:
    """Train the small target, its DSpark, DFlash and MTP-1 drafts; weights stay in the campaign's folder."""
    from simulator.live.training.log import read_log
    from simulator.live.training.optimisation import Progress
    from simulator.live.training.train import train
    from simulator.report.traces import write_losses

    def tell(progress: Progress) -> None:
        if progress.step % 100 == 0 or progress.step == progress.steps:
            print(
                f"{progress.stage} {progress.step}/{progress.steps} loss {progress.losses['loss']:.3f}",
                flush=True,
            )

    folder = campaign.out / SMALL
    preset = "nano" if campaign.tiny else "small"
    train(preset, campaign.text, folder, device=campaign.device, on_step=tell)
    write_losses(folder)
    for stage, log in read_log(folder).groupby("stage"):
        tenth = max(1, len(log) // 10)
        if not log["loss"].tail(tenth).mean() < log["loss"].head(tenth).mean():
            raise InfeasibleError(f"the loss of {stage} did not fall; delete {folder} and train again")


def trace_small(campaign: Campaign) -> None:
    """Record acceptance traces of the small pair, greedy and sampled, calibrated, with tables and figures."""
    from simulator.live.tracing.report import write_tables
    from simulator.live.tracing.run import Sampling, trace_run
    from simulator.report.traces import write_figures

    sampling = Sampling(64, PROMPT_TOKENS, OUTPUT_TOKENS)
    if campaign.tiny:
        sampling = Sampling(4, 16, 24)
    traced = trace_run(
        campaign.small, campaign.text, campaign.out / f"traces-{SMALL}", device=campaign.device,
        sampling=sampling, on_step=print,
    )  # fmt: skip
    report = campaign.out / f"trace-report-{SMALL}"
    write_tables(traced.recorded, traced.fits, report)
    write_figures(report)
    for path in traced.files:
        if "-dspark-" in path.name and load_trace(path).temperatures is None:
            raise SimulatorError(f"{path} is not calibrated; run trace-small again")


def schedulers(campaign: Campaign) -> None:
    """NumPy, torch on the CPU and torch on the device decide alike on a million random batches."""
    from simulator.live.checks.agreement import compare

    devices = tuple(dict.fromkeys(("cpu", campaign.device)))
    start_s = now_s()
    found = compare(
        seed=0, batches=1000 if campaign.tiny else AGREEMENT_BATCHES, devices=devices,
        workers=campaign.workers, directory=campaign.out / "agreement", tell=partial(print, flush=True),
    )  # fmt: skip
    print(found.line)
    described = asdict(found) | {"seconds": now_s() - start_s, "workers": campaign.workers}
    write_json(campaign.out / "agreement.json", described | origin(campaign, "schedulers"))
    found.check()


def speed(campaign: Campaign) -> None:
    """Rows on how fast the live path is at the size of Qwen3-8B; measurements that are done stay."""
    import torch

    from simulator.live.checks.speed.floor import bandwidth_floor
    from simulator.live.checks.speed.generate import against_generate
    from simulator.live.checks.speed.padding import ragged_against_padded
    from simulator.live.checks.speed.scale import SpeedScale
    from simulator.live.checks.speed.scheduling import visible_scheduling
    from simulator.live.models.pairs import new_dspark
    from simulator.live.models.targets import load_target

    torch.set_num_threads(1)  # on a CPU: as in every other part
    name, _ = campaign.pair("8b", 7)
    dtype = torch.float32 if campaign.device == "cpu" else torch.bfloat16
    target = load_target(name, dtype=dtype, device=campaign.device)
    draft = new_dspark(target, mask_token_id=0, block_size=7)
    (acceptance,) = parse_acceptances(campaign.acceptance_of("8b")).values()
    scale = SpeedScale(steps=60, repeats=3)
    if campaign.tiny:
        scale = SpeedScale(
            concurrency=(1, 2), batches=(1,), contexts=(16,), prompt_tokens=8, output_tokens=16, steps=4,
            repeats=2, copy_bytes=2**20,
        )  # fmt: skip
    pair = (target, draft, acceptance)
    for title, measure in (
        ("bandwidth_floor", partial(bandwidth_floor, target, draft)),
        ("visible_scheduling", partial(visible_scheduling, *pair)),
        ("ragged_against_padded", partial(ragged_against_padded, *pair)),
        ("against_generate", partial(against_generate, target)),
    ):
        _speed_table(campaign, title, partial(measure, scale, partial(print, flush=True)))


def _speed_table(campaign: Campaign, title: str, measure: Callable[[], pd.DataFrame]) -> None:
    """Measure one table unless it is there, and leave it with where it comes from beside it."""
    path = campaign.out / "speed" / f"{title}.csv"
    if path.is_file():
        return
    frame = measure()
    if frame.empty:
        raise InfeasibleError(f"{title} has no row: the device's memory sufficed for none")
    write_json(path.with_suffix(".json"), origin(campaign, "speed"))
    write_csv(path, frame)


def report(campaign: Campaign) -> None:
    """Everything the campaign has measured, and what follows from it, as one page with figures."""
    from tools.campaign.report import write_report

    print(write_report(campaign))


PARTS: Mapping[str, Part] = {
    "gpu-tests": gpu_tests,
    "ceilings": ceilings,
    "schedulers": schedulers,
    "train-small": train_small,
    "trace-small": trace_small,
    "profile-small": partial(profile, size=SMALL),
    "validation-small": partial(validation, size=SMALL),
    **{f"profile-{size}": partial(profile, size=size) for size in SIZES},
    **{f"staircase-{size}": partial(staircase, size=size) for size in SIZES},
    **{f"validation-{size}": partial(validation, size=size) for size in SIZES},
    "speed": speed,
    "report": report,
}
"""Every part, in an order in which each finds what it needs."""
