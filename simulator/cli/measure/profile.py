"""``dspark-sim profile``: measure a pair on this device; ``fit``, ``derive``, ``repair``: without one.

Importing this module does not import torch; measuring does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from simulator.cli.groups import Answer, grouped
from simulator.cli.measure.options import Pair, command_line, show_table, sizes
from simulator.cli.options import OnHardware


class MeasuringUnlessTold(TyperGroup):
    """``dspark-sim profile --target ...`` is ``dspark-sim profile measure --target ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where options come first."""
        options_first = bool(args) and args[0].startswith("-") and args[0] != "--help"
        return super().parse_args(ctx, ["measure", *args] if options_first else args)


profile_app = typer.Typer(
    cls=MeasuringUnlessTold, no_args_is_help=True,
    help="Measure what a target and its drafts cost on this device (options alone), or fit, derive, repair.",
)  # fmt: skip


@profile_app.command("measure")
@grouped
def measure(
    pair: Pair,
    out: Annotated[
        Path, typer.Option(help="Folder; the profile goes to FOLDER/<device>/<target>--<drafts>.json.")
    ],
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
    temperature: Annotated[
        float, typer.Option(min=0, help="Of drafts and verification; 0 is greedy, above it tokens are drawn.")
    ] = 0.0,
) -> Answer:
    """Measure what a target and its drafters cost on this device; an interrupted measurement is continued."""
    from simulator.core.files import check_writable_directory

    check_writable_directory(out)
    from simulator.live.profiling.cells import Repeats
    from simulator.live.profiling.grid import Grid, ProfileOptions
    from simulator.live.profiling.run import measure_profile

    grid = Grid(
        sizes(requests, "requests"), sizes(drafts, "drafts"), sizes(context, "context"),
        sizes(prefill, "prefill"), () if policies == "none" else tuple(policies.split(",")),
    )  # fmt: skip
    options = ProfileOptions(
        grid=grid, repeats=Repeats(confidence, most=repeats, least=min(10, repeats)), tolerance=tolerance,
        rounds=rounds, attention=pair.attention, graphs=pair.graphs, fuse=pair.fuse,
        temperature=temperature,
        command=command_line(),
    )  # fmt: skip
    model, drafters = pair.load()  # last, so that what cannot be read is said at once
    console = Console(stderr=True)
    found = measure_profile(model, drafters, options, out, console.print)
    fit, drift = found.profiled.fit, found.profiled.drift
    device = found.profiled.profile.provenance.device
    title = f"{model.name} on {device}: {found.ceilings.line}"
    show_table(found.achieved, title, ("of_copy_bandwidth", "of_matmul_rate"))
    Console().print(
        f"additive fit: held-out error median {fit.held_out.median:.1%}, p90 {fit.held_out.p90:.1%}, "
        f"max {fit.held_out.max:.1%}; first cell moved {drift:.1%}; {found.path}",
        soft_wrap=True,
    )
    for warning in fit.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    return {
        "profile": found.profiled.profile.name, "held_out_error": fit.held_out._asdict(), "drift": drift,
        "warnings": fit.warnings, "tables": {"achieved": found.achieved}, "files": [found.path],
    }  # fmt: skip


@profile_app.command("fit")
def fit(
    cells: Annotated[
        Path,
        typer.Argument(
            help="Measured steps: CSV or parquet with requests, batch_tokens, step_time_s, and where it is "
            "known context_tokens (of the whole batch) and prefill_tokens."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Profile FILE.json to write.")],
    device: Annotated[str | None, typer.Option(help="GPU that it was measured on.")] = None,
    model: Annotated[str | None, typer.Option(help="Target model.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of the measured engine, for costs.")] = None,
) -> Answer:
    """Fit a step cost to steps that you have measured; prints its error on steps it has not seen."""
    from simulator.core.files import check_writable_file
    from simulator.deployment.measured_steps import fitted_profile

    check_writable_file(out)
    found = fitted_profile(cells, name=out.stem, device=device, model=model, replica_gpus=gpus)
    found.profile.save(out)
    for note in found.notes:
        typer.echo(note, err=True)
    typer.echo(f"wrote {out}; now: dspark-sim compare --profile {out} --acceptance MODEL --sla 50 --out DIR")
    return {"profile": found.profile.name, "notes": found.notes, "files": [out]}


@profile_app.command("derive")
@grouped
def derive(
    on: OnHardware,
    out: Annotated[
        Path | None, typer.Option(help="Profile FILE.json to write; named after the layout by default.")
    ] = None,
) -> Answer:
    """Compose the curve of a model on a GPU from measured kernels; needs the extra `silicon`.

    The file says which tables, of which version and engine, what their gates gave, and the error band.
    """
    from simulator.core.files import check_writable_file, slug
    from simulator.hardware.choose import derive as compose
    from simulator.hardware.choose import kernel_name

    named = on.named()
    out = out or Path(f"{slug(kernel_name(named.layout()))}.json")
    check_writable_file(out)
    made = compose(named, command=command_line())
    made.profile.save(out)
    for note in (*made.notes[:2], f"gates: {made.profile.provenance.notes}"):
        typer.echo(note, err=True)
    typer.echo(f"wrote {out}; now: dspark-sim compare --profile {out} --acceptance MODEL --sla 50 --out DIR")
    return {"profile": made.profile.name, "notes": made.notes, "files": [out]}


@profile_app.command("repair")
def repair(
    table: Annotated[
        Path,
        typer.Argument(
            help="Profile JSON, or CSV with batch_tokens and steps_per_s or step_time_s, as it was measured."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Profile FILE.json to write.")],
    kind: Annotated[
        str | None, typer.Option(help="Where the numbers come from, if the file does not say: measured ...")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Who measured them, on what.")] = None,
    noise: Annotated[str, typer.Option(help="Largest change of a step time that counts as noise.")] = "2%",
) -> Answer:
    """Mend a table of your own: sizes out of order or twice, noise; each change is said."""
    from simulator.core.files import check_writable_file
    from simulator.core.units import parse_percent
    from simulator.deployment.own_table import mended_profile

    check_writable_file(out)
    made = mended_profile(table, kind=kind, source=source, noise=parse_percent(noise, "noise"))
    made.profile.save(out)
    for note in made.notes:
        typer.echo(note, err=True)
    typer.echo(f"wrote {out}")
    return {"profile": made.profile.name, "notes": made.notes, "files": [out]}
