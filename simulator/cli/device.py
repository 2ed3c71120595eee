"""The commands of ``dspark-sim`` that run on a device: profile, live, validate.

Importing this module does not import torch; running a command does.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simulator.core.errors import BadInputError
from simulator.core.files import check_writable_directory, write_csv
from simulator.core.interruption import noting

if TYPE_CHECKING:
    import pandas as pd

    from simulator.live.checks.validation import ValidationCase
    from simulator.live.models.draft import Draft
    from simulator.live.models.targets import Target
    from simulator.live.profiling.cells import CellLog

TargetName = Annotated[
    str, typer.Option(help="Folder or hub name, or qwen3-4b, qwen3-8b, qwen3-14b with random weights.")
]

Drafts = Annotated[
    list[str],
    typer.Option(
        "--draft",
        help="NAME=FOLDER, or an untrained one: dspark=new:GAMMA, mtp1=new. The first takes part in steps.",
    ),
]

Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")]

Dtype = Annotated[
    str | None, typer.Option(help="Of weights and caches; default float32 on a CPU, else bfloat16.")
]

Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]

Attention = Annotated[str, typer.Option(help="auto, sdpa, varlen or plain.")]

Graphs = Annotated[bool, typer.Option(help="Record CUDA graphs (on a GPU).")]

Acceptance = Annotated[
    list[str] | None,
    typer.Option("--acceptance", help="[DRAFTER=]MODEL or trace, as for simulate; see dspark-sim list."),
]

Own = Annotated[bool, typer.Option(help="The pair's own acceptance in the live run, not the trace's.")]

PromptsSpec = Annotated[
    str, typer.Option(help="random, or held-out text of a domain: code, prose, arithmetic, or one of --text.")
]

Text = Annotated[Path | None, typer.Option(help="Folder of text files in place of the default corpus.")]

Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of traffic, traces, prompts and sampling.")
]

LengthsSpec = Annotated[str, typer.Option(help="Prompt and output lengths, as for simulate.")]


def profile(
    target: TargetName,
    out: Annotated[
        Path, typer.Option(help="Folder; the profile goes to FOLDER/<device>/<target>--<drafts>.json.")
    ],
    draft: Drafts = ["dspark=new:7", "mtp1=new"],  # noqa: B006 - typer copies it
    requests: Annotated[str, typer.Option(help="Requests in a batch.")] = "1,2,4,8,16,32,64,128,256",
    drafts: Annotated[str, typer.Option(help="Draft tokens a request, spread evenly.")] = "0,1,3,7",
    context: Annotated[str, typer.Option(help="Context of each request, in tokens.")] = "512,2048,8192",
    prefill: Annotated[str, typer.Option(help="Prompt sizes.")] = "128,512,2048",
    policies: Annotated[
        str, typer.Option(help="Policies whose decision is timed; none for none.")
    ] = "dspark,dspark-async",
    confidence: Annotated[
        float, typer.Option(help="95% half-width of each cell's mean, relative to it.")
    ] = 0.01,
    repeats: Annotated[int, typer.Option(min=2, help="At most so many repeats a cell.")] = 200,
    tolerance: Annotated[
        float, typer.Option(help="By how much the first cell may have moved at the end.")
    ] = 0.05,
    rounds: Annotated[
        int, typer.Option(min=1, help="Measure everything so often and take the median of each cell.")
    ] = 1,
    device: Device = "cuda",
    dtype: Dtype = None,
    threads: Threads = 1,
    attention: Attention = "auto",
    graphs: Graphs = True,
) -> None:
    """Measure what a target and its drafts cost on this device; an interrupted measurement is continued."""
    check_writable_directory(out)
    console = Console(stderr=True)
    with console.status("loading torch and the models"):
        from simulator.core import files
        from simulator.live.models.pairs import load_pair
        from simulator.live.profiling import grid as grid_module
        from simulator.live.profiling import profile_fit, profiler
        from simulator.live.profiling.cells import CellLog, Repeats
        from simulator.live.profiling.device_ceilings import measure_ceilings

        model, drafters = load_pair(target, draft, device, dtype, threads)
    grid = grid_module.Grid(
        _sizes(requests), _sizes(drafts), _sizes(context), _sizes(prefill),
        () if policies == "none" else tuple(policies.split(",")),
    )  # fmt: skip
    options = grid_module.ProfileOptions(
        grid=grid, repeats=Repeats(confidence, most=repeats, least=min(10, repeats)), tolerance=tolerance,
        rounds=rounds, attention=attention, graphs=graphs, command=_command(),
    )  # fmt: skip
    settings = profile_fit.settings_of(model, drafters, options)
    folder = out / files.slug(settings["device"])
    name = f"{profile_fit.label(model)}--{'+'.join(drafters)}"
    log = CellLog(folder / f"{name}.cells.jsonl", settings)
    if log.resumed:
        console.print(f"continuing: {log.resumed} cells are measured already")
    with noting(lambda: f"{len(log.cells)} measured cells are kept in {log.path}: the same command resumes"):
        drift = profiler.Profiler(model, drafters, log, options, console.print).run()
    result = profile_fit.profile_from(log, model, drafters, options, drift)
    result.profile.save(folder / f"{name}.json")
    ceilings = measure_ceilings(model.device, model.dtype)
    achieved = profile_fit.efficiency(log, model, ceilings.bytes_per_s, ceilings.flop_per_s)
    screen = Console()
    _show(screen, achieved, f"{model.name} on {settings['device']}: {ceilings.line}")
    fit = result.fit
    screen.print(
        f"additive fit: held-out error median {fit.held_out.median:.1%}, p90 {fit.held_out.p90:.1%}, "
        f"max {fit.held_out.max:.1%}; first cell moved {drift:.1%}; {folder / (name + '.json')}"
    )
    for warning in fit.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def live(
    target: TargetName,
    policy: Annotated[str, typer.Option(help="Verification policy, as for simulate.")],
    profile: Annotated[str, typer.Option(help="Profile whose step cost the scheduler believes.")],
    concurrency: Annotated[int, typer.Option(min=1, help="Requests decoding at once.")],
    out: Annotated[Path, typer.Option(help="Run directory.")],
    draft: Drafts = ["dspark=new:7", "mtp1=new"],  # noqa: B006 - typer copies it
    acceptance: Acceptance = None,
    own: Own = False,
    prompts: PromptsSpec = "random",
    text: Text = None,
    traffic: Annotated[str, typer.Option(help="As for simulate.")] = "closed",
    lengths: LengthsSpec = "default",
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="The first N requests. Default: 256 of a process, all of a trace file."),
    ] = None,
    steps: Annotated[int, typer.Option(min=40, help="Steps of a closed loop.")] = 400,
    prefill: Annotated[str, typer.Option(help="elsewhere, chunked or whole.")] = "elsewhere",
    chunk: Annotated[int, typer.Option(min=1, help="Prompt rows of one step.")] = 2048,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Seed = 0,
    device: Device = "cuda",
    dtype: Dtype = None,
    threads: Threads = 1,
    attention: Attention = "auto",
    graphs: Graphs = True,
) -> None:
    """Serve traffic on a device and write the files of a simulated run, durations measured.

    A run that breaks off leaves the steps and requests it had, with the reason in unfinished.json.
    """
    from simulator.engine.engine import Engine
    from simulator.engine.run import SATURATED, write_run, write_unfinished
    from simulator.live.checks.validation import run_live
    from simulator.traffic.parse import draw_workload, names_process, parse_traffic

    check_writable_directory(out)
    from simulator.live.models.pairs import load_pair

    model, drafters = load_pair(target, draft, device, dtype, threads)
    asked = {"steps": steps, "seed": seed, "own": own, "temperature": temperature} | {
        "prompts": prompts, "text": text,
    }  # fmt: skip
    scenario = _scenario(
        model, drafters, profile, acceptance, [policy], [concurrency], lengths, asked, attention, graphs
    )
    # Lengths are those of random prompts too, so that they have a default; a recording brings its own.
    source = parse_traffic(traffic, lengths if names_process(traffic) else None)
    workload = draw_workload(source, seed, requests=requests, generated=256)
    chosen: Any = prefill
    limits = scenario.deployment.limits(concurrency, prefill=chosen, chunk_tokens=chunk)

    def salvage(engine: Engine, error: BaseException) -> None:
        write_unfinished(engine, out, str(error) or type(error).__name__)
        Console(stderr=True).print(f"broke off; {len(engine.steps)} steps are kept in {out}")

    result = run_live(
        scenario, scenario.policies[0], workload, limits,
        steps=steps if workload.is_closed_loop else None, salvage=salvage,
    )  # fmt: skip
    timings = result.timings
    description = {
        "kind": "live", "policy": policy, "concurrency": concurrency, "traffic": traffic,
        "command": _command(),
        "visible_schedule_share": float(timings["visible_schedule_s"].sum() / timings["duration_s"].sum()),
        "padding_share": float(1 - timings["batch_tokens"].sum() / timings["padded_tokens"].sum()),
        **scenario.settings(),
    }  # fmt: skip
    write_run(result.run, out, description, timings=timings)
    table = Table(title=f"{policy} live on {scenario.settings()['device']}", box=None, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.run.metrics.as_row().items():
        table.add_row(name, f"{value:,.4g}")
    table.add_row("visible_schedule_share", f"{description['visible_schedule_share']:.2%}")
    console = Console()
    console.print(table)
    if result.run.saturated:
        console.print(SATURATED)


def validate(
    target: TargetName,
    profile: Annotated[str, typer.Option(help="Profile measured on this device beforehand.")],
    out: Annotated[
        Path, typer.Option(help="Directory of results; an interrupted validation in it continues.")
    ],
    draft: Drafts = ["dspark=new:7", "mtp1=new"],  # noqa: B006 - typer copies it
    acceptance: Acceptance = None,
    own: Own = False,
    prompts: PromptsSpec = "random",
    text: Text = None,
    policies: Annotated[
        str, typer.Option(help="Policies, separated by spaces.")
    ] = "autoregressive mtp1 dspark dspark-async",
    concurrency: Annotated[str, typer.Option(help="Concurrent requests.")] = "1,4,16,64,256",
    lengths: LengthsSpec = "default",
    steps: Annotated[int, typer.Option(min=40, help="Steps of each run.")] = 400,
    runs: Annotated[
        int, typer.Option(min=1, help="Live runs of each cell; the median of each metric counts.")
    ] = 1,
    tolerance: Annotated[
        list[str] | None,
        typer.Option("--tolerance", help="METRIC=SHARE: exit with 1 when its median error is larger."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cuda",
    dtype: Dtype = None,
    threads: Threads = 1,
    attention: Attention = "auto",
    graphs: Graphs = True,
) -> None:
    """Run live and simulated from one scenario and report where they differ."""
    from simulator.live.checks.validation import validate as run
    from simulator.live.profiling.profile_fit import label
    from simulator.report.style import save
    from simulator.report.validation import plot_frontiers, plot_lengths

    check_writable_directory(out)
    tolerances = _tolerances(tolerance)
    from simulator.live.models.pairs import load_pair

    model, drafters = load_pair(target, draft, device, dtype, threads)
    asked = {"steps": steps, "seed": seed, "own": own, "temperature": 0.0} | {
        "prompts": prompts, "text": text,
    }  # fmt: skip
    scenario = _scenario(
        model, drafters, profile, acceptance, policies.split(), _sizes(concurrency), lengths, asked,
        attention, graphs,
    )  # fmt: skip
    console = Console(stderr=True)
    with noting(lambda: f"finished runs are kept in {out}: the same command resumes"):
        result = run(scenario, out, console.print, runs=runs)
    for name, frame in (("errors", result.errors), ("lengths", result.lengths), ("parity", result.parity)):
        write_csv(out / f"{name}.csv", frame)
    title = f"{label(model)} on {scenario.settings()['device']}"
    save(plot_frontiers(result.errors, title), out / "frontiers.png")
    save(plot_lengths(result.lengths, title), out / "lengths.png")
    screen = Console()
    _show(screen, result.summary().reset_index(), f"Absolute error, {title}")
    _show(screen, result.parity, "Decisions")
    result.check(tolerances)


def _scenario(
    model: Target,
    drafters: dict[str, Draft],
    profile: str,
    acceptance: list[str] | None,
    policies: list[str],
    concurrency: tuple[int, ...] | list[int],
    lengths: str,
    asked: Mapping[str, Any],
    attention: str,
    graphs: bool,
) -> ValidationCase:
    from simulator.deployment.deployment import deploy
    from simulator.live.checks.validation import ValidationCase
    from simulator.live.engine.graphs import Tiers
    from simulator.live.engine.passes import LiveOptions
    from simulator.live.engine.prompts import RANDOM, text_prompts
    from simulator.live.profiling.profile_fit import schedule_s
    from simulator.schedulers.parse import parse_policy
    from simulator.traffic.lengths import parse_lengths

    deployment = deploy(profile, acceptance or (), required=False)
    log = _cells_beside(profile)
    tiers = Tiers()
    if model.device.type == "cuda":
        gamma = max((draft.gamma for draft in drafters.values()), default=0)
        tiers = Tiers.for_cuda(max(concurrency) * (1 + gamma), max(concurrency), 16384)
    said, seed = asked["prompts"], asked["seed"]
    return ValidationCase(
        target=model, drafters=drafters, deployment=deployment,
        policies=[parse_policy(text) for text in policies], concurrency=concurrency,
        lengths=parse_lengths(lengths), steps=asked["steps"], seed=seed, replayed=not asked["own"],
        schedule_s=(lambda policy: schedule_s(log, policy)) if log else lambda policy: 0.0,
        prompts=None if said == RANDOM else text_prompts(Path(model.name), said, seed, text=asked["text"]),
        prompts_name=said,
        options=LiveOptions(
            temperature=asked["temperature"], tiers=tiers, attention=attention, graphs=graphs, seed=seed
        ),
    )  # fmt: skip


def _cells_beside(profile: str) -> CellLog | None:
    """Find the cells that a profile was made from beside it: they know what decisions cost."""
    from simulator.deployment.profile import shipped_profiles
    from simulator.live.profiling.cells import CellLog

    path = shipped_profiles().get(profile, Path(profile)).with_suffix(".cells.jsonl")
    return CellLog.read(path) if path.is_file() else None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInputError("is not a list of sizes", value=text, remedy="as in 1,2,4,8") from error


def _tolerances(texts: list[str] | None) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts or []]
    try:
        return {metric: float(share) for metric, _, share in pairs}
    except ValueError as error:
        raise BadInputError(
            "is not a tolerance", field="--tolerance", value=texts, remedy="as in throughput_tok_per_s=0.03"
        ) from error


def _command() -> str:
    return shlex.join(["dspark-sim", *sys.argv[1:]])


def _show(console: Console, frame: pd.DataFrame, title: str) -> None:
    table = Table(title=title, box=None, title_justify="left")
    for name in frame.columns:
        table.add_column(str(name), justify="right")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)
