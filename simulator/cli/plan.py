"""Commands of the planner: ``plan``, ``regret`` and ``fleet``. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simulator.cli.groups import Answer, grouped
from simulator.cli.options import (
    ClosedLengths,
    Concurrency,
    Deployed,
    KeptWorkers,
    Limits,
    OnHardware,
    Policies,
    Policy,
    ProcessLengths,
    Seed,
    Tables,
    Workers,
    completing,
    say_contexts,
    say_how_read,
)
from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.units import numbers, share_within

if TYPE_CHECKING:
    from simulator.fleet.pod import ReplicaRun
    from simulator.sla.verdict import Assessment


DEFAULT_LENGTHS = "azure-2023-conversation"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of a model on GPUs, where no scenario says it."""

    traffic: Annotated[
        str | None, typer.Option(help="Without a scenario, with --model and --gpu: poisson:50/s, ...")
    ] = None
    lengths: Annotated[str, typer.Option(help="Lengths of that traffic.")] = DEFAULT_LENGTHS
    sla: Annotated[list[str] | None, typer.Option(help="Term, repeatable: tps_p10>=60, ttft_p99<=2s.")] = None
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL or DRAFTER=MODEL, repeatable; `dspark-sim list`.",
            autocompletion=completing("acceptance"),
        ),
    ] = None
    policy: Policies = None
    all_layouts: Annotated[
        bool,
        typer.Option(
            "--all-layouts", help="Without a scenario: plan every tensor-parallel layout of a node that fits."
        ),
    ] = False


@grouped
def plan(
    where: Workers,
    on: OnHardware,
    demand: Demand,
    scenario: Annotated[Path | None, typer.Argument(help="Scenario YAML; --init writes one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write; an interrupted plan resumes. With --model, plan-MODEL by default."
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Write a commented scenario to this file and stop.")
    ] = None,
    tables: Tables = "csv",
) -> Answer:
    """From an SLA and traffic to GPUs and cost: report.html, CSV, PNG. Exit 1: the SLA cannot be kept.

    Where no plan keeps the SLA, report.html and infeasible.json say what binds and what is nearest.

    Either a scenario file, or --model and --gpu (several with commas) with --traffic and --sla.
    """
    if init is not None:
        _write_example(init)
        return {"files": [init]}
    if on.model is not None or on.gpu is not None:
        if scenario is not None:
            raise _incomplete()
        return _plan_hardware(on, where, demand, out, tables)
    if scenario is None or out is None:
        raise BadInputError(
            "needs a scenario and --out DIR", source="plan", remedy="`dspark-sim plan --init scenario.yaml`"
        )
    _refuse_beside_scenario(demand, on)
    from simulator.api.handover import write_handover
    from simulator.core.files import check_writable_directory
    from simulator.core.interruption import noting
    from simulator.planning.checks import checked_scenario
    from simulator.planning.plan import plan as make_plan
    from simulator.planning.plan import summary, write_tables
    from simulator.report.page import INFEASIBLE, check_library, write_infeasible, write_report
    from simulator.report.plan.figures import write_figures
    from simulator.report.terminal import print_plan

    loaded = checked_scenario(scenario)
    check_writable_directory(out)
    check_library()
    sweeping = where.sweeping(out / "cells")
    try:
        with noting(lambda: f"finished rate searches are kept in {out / 'cells'}: the same command resumes"):
            result = make_plan(loaded, base=scenario.parent, sweeping=sweeping)
    except InfeasibleError as why:
        typer.echo(f"wrote {write_infeasible(loaded, why, out)} and {INFEASIBLE} beside it", err=True)
        raise
    write_tables(result, out, tables)
    write_figures(result, out)
    write_report(result, out / "report.html")
    write_handover(result, out / "cluster", tables)
    (out / INFEASIBLE).unlink(missing_ok=True)
    print_plan(result)
    typer.echo(f"wrote {out / 'report.html'} and the tables beside it")
    return {**summary(result), "tables": result.tables(), "directory": out}


def _refuse_beside_scenario(*groups: Demand | OnHardware) -> None:
    """Refuse options that a scenario would silently win over."""
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                raise BadInputError(
                    "is for --model and --gpu, and has no effect beside a scenario",
                    source=field.name.replace("_", "-"),
                    value=", ".join(value) if isinstance(value, list) else value,
                    remedy="write it into the scenario",
                )


def _incomplete() -> BadInputError:
    return BadInputError(
        "needs --model, --gpu, --traffic and --sla, or a scenario alone", source="plan",
        remedy="as in --model qwen3-8b --gpu h100,h200 --traffic poisson:50/s --sla 'tps_p10>=60'",
    )  # fmt: skip


def _plan_hardware(on: OnHardware, where: Workers, demand: Demand, out: Path | None, form: str) -> Answer:
    """Plan the same traffic on each GPU, and compare."""
    from simulator.api.hardware_plan import POLICIES, comparison, plan_hardware, write_scenarios
    from simulator.core.files import check_writable_directory, slug, write_table
    from simulator.report.page import INFEASIBLE, check_library, write_infeasible
    from simulator.report.terminal import print_hardware

    if on.model is None or on.gpu is None or demand.traffic is None:
        raise _incomplete()
    out = out or Path(f"plan-{slug(Path(on.model).name)}")
    check_writable_directory(out)
    check_library()
    answers = []
    for answer in plan_hardware(
        on.hardware(on.gpu), on.gpu.split(","), traffic=demand.traffic, lengths=demand.lengths,
        sla=demand.sla or [], acceptance=demand.acceptance or [], policies=demand.policy or POLICIES,
        all_layouts=demand.all_layouts, workers=where.workers, directory=out,
    ):  # fmt: skip
        answers.append(answer)
        for note in answer.notes:
            typer.echo(note, err=True)
        if answer.plan is not None:
            for warning in answer.plan.warnings:
                typer.echo(f"warning: {answer.name}: {warning}", err=True)
            answer.plan.report(out / answer.name, form)
            (out / answer.name / INFEASIBLE).unlink(missing_ok=True)
        elif answer.why is not None:
            page = write_infeasible(answer.asked, answer.why, out / answer.name)
            typer.echo(f"wrote {page} and {INFEASIBLE} beside it", err=True)
    table = comparison(answers)
    if not table.empty:
        write_table(out / f"hardware.{form}", table)
    refused = {each.name: each.why_not for each in answers if each.why_not}
    print_hardware(table, refused)
    written = write_scenarios(answers, out)
    if written:
        typer.echo(f"wrote {', '.join(map(str, written))} to refine, and a report for each")
    if table.empty:
        raise InfeasibleError("no GPU named holds the model and keeps the SLA")
    return {"tables": {"hardware": table}, "refused": refused, "scenarios": written, "directory": out}


@grouped
def regret(
    deployed: Deployed,
    believed: Annotated[
        list[str],
        typer.Option(
            help="What the scheduler believes, repeatable: coarse:N, floor:N, ceil:N, flat, scaled:F, "
            "no-context, or a table FILE.json (profile, SGLang, TensorRT-LLM)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="CSV or FILE.parquet to write, with a PNG of the same name beside it; - for standard output."
        ),
    ],
    kept: KeptWorkers,
    policy: Policy = "dspark-async",
    concurrency: Concurrency = "10,20,50,100,200",
    seeds: Annotated[int, typer.Option(min=2, help="Replications; intervals are over them.")] = 3,
    lengths: ClosedLengths = "default",
) -> Answer:
    """Show what a scheduler loses when the cost table it believes is not the true one."""
    from simulator.core.files import beside, check_writable_file, is_standard_output, write_table
    from simulator.report.frontier import plot_regret
    from simulator.report.terminal import print_regret
    from simulator.sweeps.regret import belief_warnings
    from simulator.traffic.lengths import as_lengths, longest_request

    figure = beside(out, ".png")
    check_writable_file(*(path for path in (out, figure) if path is not None))
    drawn = as_lengths(lengths)
    bench = deployed.workbench(sum(longest_request(drawn)))
    say_contexts(bench, drawn)
    for warning in belief_warnings(believed):
        typer.echo(f"warning: {warning}", err=True)
    table = bench.regret(
        policy, believed, numbers(concurrency, int, "concurrency"), seeds=seeds, lengths=drawn,
        progress=True, **kept.how(),
    )  # fmt: skip
    write_table(out, table)
    if figure is not None:
        plot_regret(table, figure, f"{policy} on {bench.profile.title}, 95% intervals")
        print_regret(table)
    typer.echo(f"wrote {out}" + (f" and {figure}" if figure else ""), err=is_standard_output(out))
    return {"tables": {"regret": table}, "files": [path for path in (out, figure) if path is not None]}


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas there are, how requests reach them, and what each one holds."""

    replicas: Annotated[int, typer.Option(min=1, help="Replicas in the fleet.")]
    router: Annotated[
        Literal["round-robin", "least-loaded", "power-of-two", "prefix-aware"],
        typer.Option(help="How requests reach replicas."),
    ] = "round-robin"
    pods: Annotated[int | None, typer.Option(help="Groups with a router each; they run in parallel.")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Requests running at once on a replica.")] = 256
    prefix_cache_tokens: Annotated[
        int | None, typer.Option(help="Tokens of common prefixes each replica keeps.")
    ] = None
    prefill_workers: Annotated[
        int | None,
        typer.Option(help="Workers of one prefill pool for the whole fleet. Default: one for each replica."),
    ] = None


@grouped
def fleet(
    deployed: Deployed,
    traffic: Annotated[
        str,
        typer.Option(help="poisson:4000/s, gamma:...,cv=3 or a trace FILE or FILE@OPTIONS, for the fleet."),
    ],
    sla: Annotated[list[str], typer.Option(help="Term, repeatable: tps_p10>=60, ttft_p99<=2s.")],
    behind: Replicas,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    limits: Limits,
    kept: KeptWorkers,
    duration: Annotated[
        str | None,
        typer.Option(help="Simulated time with arrivals. Default: 10min of a process, all of a trace file."),
    ] = None,
    lengths: ProcessLengths = None,
    policy: Policy = "dspark-async",
    seed: Seed = 0,
    tables: Tables = "csv",
) -> Answer:
    """Simulate a fleet behind a router, judge it by an SLA, write verdict.json. Exit 1: a term fails."""
    from simulator.core.files import check_writable_directory, without_nan, write_json, write_table
    from simulator.sla.terms import parse_sla
    from simulator.traffic.parse import parse_traffic
    from simulator.traffic.sources import longest_in

    terms, source = parse_sla(sla), parse_traffic(traffic, lengths)
    bench = deployed.workbench(sum(longest_in(source)))
    check_writable_directory(out)
    for term in terms.terms:
        if term.weakness:
            typer.echo(f"warning: {term.weakness}", err=True)
    say_how_read(source)
    say_contexts(bench, source)
    run = bench.fleet(
        policy, traffic=source, sla=terms, duration=duration, seed=seed, progress=True,
        **vars(behind), **limits.asked(), **kept.how(),
    )  # fmt: skip
    write_table(out / f"replicas.{tables}", run.replicas)
    asked = {
        "profile": bench.profile.name, "policy": policy, "traffic": traffic, "rate_per_s": run.rate_per_s,
        "requests": run.requests, "seed": seed, "fleet": asdict(run.fleet),
    }  # fmt: skip
    judged = asked | run.assessment.verdict()
    write_json(out / "verdict.json", without_nan({"schema": 1} | judged))
    _warn_of_replicas(policy, run.parts)
    _say_verdict(run.assessment, sum(each.steps for each in run.parts))
    return {**judged, "tables": {"replicas": run.replicas}, "directory": out}


def _warn_of_replicas(policy: str, replicas: Sequence[ReplicaRun]) -> None:
    """Say what the early stop loses and how many steps the profile did not measure, at the worst replica."""
    from simulator.schedulers.early_stop import early_stop_note

    if note := early_stop_note(policy, max(each.early_stop_loss for each in replicas), "on a replica"):
        typer.echo(f"warning: {note}", err=True)
    outside = max(each.steps_outside_fraction for each in replicas)
    if outside > 0:
        typer.echo(
            f"warning: up to {outside:.1%} of a replica's steps ran beyond the batch sizes of the profile, "
            "where step time is clamped or extrapolated; measure larger batches, or lower --concurrency",
            err=True,
        )


def _say_verdict(judged: Assessment, steps: int) -> None:
    """Print each term and the whole; ``InfeasibleError`` where a term fails."""
    if judged.saturated:
        raise InfeasibleError("the fleet is saturated: the queue grows without bound, so it has no latency")
    for each in judged.terms:
        typer.echo(f"{'met   ' if each.met else 'MISSED'} {each.term.text}: {each.shown()}")
    kept = ""
    if judged.promises_each:
        kept = f", attainment {share_within(judged.attainment, judged.attainment_ci95, 2)}"
    typer.echo(
        f"{judged.requests:,} requests judged{kept}, goodput {judged.goodput_per_s:.4g} requests/s; "
        f"{steps:,} engine steps"
    )
    if not judged.met:
        raise InfeasibleError(
            f"the fleet misses {', '.join(term.text for term in judged.failing)}",
            binds=[term.text for term in judged.failing],
            attained=[each.verdict() for each in judged.terms],
        )


def _write_example(path: Path) -> None:
    from simulator.core.files import is_standard_output, write_text
    from simulator.planning.scenario.example import EXAMPLE

    if path.exists():
        raise BadInputError("exists already", source=str(path), remedy="choose another name")
    write_text(path, EXAMPLE)
    if not is_standard_output(path):
        typer.echo(f"wrote {path}; now: dspark-sim plan {path} --out plan")
