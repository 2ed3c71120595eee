"""``dspark-sim import`` and ``export``: a serving engine's files in, its cost tables out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simulator.cli.groups import Answer, grouped
from simulator.cli.options import Deployed, Limits, Policy, Tables, completing
from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    from simulator.deployment.engine_files import Imported

ProfileOut = Annotated[Path, typer.Option(help="Profile FILE.json to write.")]


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a cost table is taken."""

    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that the measured engine ran on; a plan needs it for costs."),
    ] = None
    allow_flat: Annotated[
        bool, typer.Option("--allow-flat", help="Take a table in which draft tokens cost nothing, too.")
    ] = False


@grouped
def import_sglang_table(
    file: Annotated[Path, typer.Argument(help="SGLang's cost table, diagonal or additive.")],
    out: ProfileOut,
    table: Table,
) -> Answer:
    """Make a profile of SGLang's cost table."""
    return _import_table(file, "sglang", out, table)


@grouped
def import_trtllm(
    file: Annotated[Path, typer.Argument(help="TensorRT-LLM's cost table, version 1.")],
    out: ProfileOut,
    table: Table,
) -> Answer:
    """Make a profile of TensorRT-LLM's cost table."""
    return _import_table(file, "trtllm", out, table)


@grouped
def import_sglang_rounds(
    file: Annotated[Path, typer.Argument(help="X.rounds.jsonl of SGLang's profiler.")],
    out: ProfileOut,
    table: Table,
    gamma: Annotated[
        int | None, typer.Option(min=1, help="Block size, where no round verifies every draft.")
    ] = None,
) -> Answer:
    """Fit a profile to the rounds of SGLang's profiler."""
    from simulator.core.files import check_writable_file
    from simulator.deployment.engine_files import profile_of_rounds

    check_writable_file(out)
    found = profile_of_rounds(
        file, name=out.stem, gamma=gamma, replica_gpus=table.gpus, allow_flat=table.allow_flat
    )
    return _save(found, out)


def import_sglang_dump(
    file: Annotated[Path, typer.Argument(help="A saved /server_info answer, or one record out of it.")],
    out: Annotated[
        Path,
        typer.Option(help="FILE.json for acceptance by position, FILE.parquet for a trace with confidences."),
    ],
) -> Answer:
    """Read acceptance out of SGLang's record of decode steps."""
    from simulator.acceptance.trace_file import save_trace
    from simulator.core.files import check_writable_file
    from simulator.deployment.engine_files import trace_of_dump
    from simulator.interop.sglang_dump import load_step_dump

    check_writable_file(out)
    if out.suffix == ".parquet":
        trace = trace_of_dump(load_step_dump(file))
        save_trace(trace, out)
        requests = len(trace.sequence_start) - 1
        _say([f"read {trace.rows} rounds of {requests} requests, blocks of {trace.gamma}"])
        _say([trace.provenance.notes or ""])
        typer.echo(f"wrote {out}; now: --acceptance {out}")
        return {"rounds": trace.rows, "requests": requests, "block": trace.gamma, "files": [out]}
    return _import_rates(file, out, None)


def replay(
    file: Annotated[
        Path, typer.Argument(help="A saved /server_info answer of SGLang, or one record out of it.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy, repeatable; the first stands for the engine. Default: sglang.",
            autocompletion=completing("policies"),
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Cost table that schedulers read, repeatable: SGLang's or TensorRT-LLM's FILE.json, or a "
            "profile. The first is the engine's own, and the clock. Default: the times that the dump holds."
        ),
    ] = None,
    tables: Tables = "csv",
) -> Answer:
    """Decide each step of SGLang's record again: what differs and why, and what others would have given."""
    from simulator.api.replaying import replay as decide_again
    from simulator.core.files import check_writable_directory
    from simulator.dumps.outcomes import write_replay

    check_writable_directory(out)
    found = decide_again(file, policy or "sglang", table or ())
    write_replay(found, out, tables)
    typer.echo(found.summary())
    typer.echo(f"wrote {out}")
    shown = {"policies": found.policies, "reasons": found.reasons()}
    return {"mode": found.mode, "differing_share": found.differing, "tables": shown, "directory": out}


def import_vllm_log(
    file: Annotated[Path, typer.Argument(help="Log with vLLM's SpecDecoding metrics.")],
    out: Annotated[Path, typer.Option(help="FILE.json to write: acceptance by position.")],
    block: Annotated[int | None, typer.Option(min=1, help="Cut blocks to so many drafts.")] = None,
) -> Answer:
    """Read acceptance out of vLLM's log."""
    return _import_rates(file, out, block)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What of a profile an engine's table holds."""

    profile: Annotated[
        str,
        typer.Argument(help="Shipped profile or FILE.json.", autocompletion=completing("profiles")),
    ]
    out: Annotated[Path, typer.Option(help="Table FILE.json to write.")]
    drafter: Annotated[
        str | None, typer.Option(help="Drafter whose block is part of a step, where the profile has several.")
    ] = None
    context: Annotated[
        float, typer.Option(min=0, help="Tokens of context of a request for which the table holds.")
    ] = 0.0


@grouped
def export_sglang(asked: Exported) -> Answer:
    """Write a profile as SGLang's cost table."""
    return _export(asked, "sglang")


@grouped
def export_trtllm(asked: Exported) -> Answer:
    """Write a profile as TensorRT-LLM's cost table."""
    return _export(asked, "trtllm")


@grouped
def export_launch(
    serving: Annotated[
        Literal["vllm", "sglang", "trtllm"], typer.Argument(help="Engine that serves.", metavar="ENGINE")
    ],
    deployed: Deployed,
    policy: Policy,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests running at once.")],
    out: Annotated[Path, typer.Option(help="Directory to write launch.sh and its files to.")],
    limits: Limits,
    context: Annotated[
        float, typer.Option(min=0, help="Tokens of context of a request, for which a cost table holds.")
    ] = 0.0,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a replica. Default: the profile's.")
    ] = None,
) -> Answer:
    """Write how an engine is started for a policy: launch.sh, and the files that its scheduler reads."""
    from simulator.api.launching import launch
    from simulator.core.files import check_writable_directory

    check_writable_directory(out)
    bench = deployed.workbench()
    made = launch(
        bench, policy, serving, bench.limits(concurrency, **limits.asked()), gpus=gpus, context_tokens=context
    )
    made.write(out)
    _say([f"for {made.engine} {made.checked}", *made.notes])
    typer.echo(f"wrote {out / 'launch.sh'}")
    files = [out / name for name in ("launch.sh", *made.files)]
    return {"engine": made.engine, "checked": made.checked, "notes": made.notes, "files": files}


def _import_table(file: Path, engine: str, out: Path, table: Table) -> Answer:
    from simulator.core.files import check_writable_file
    from simulator.deployment.engine_files import profile_of_table

    check_writable_file(out)
    found = profile_of_table(
        file, "sglang" if engine == "sglang" else "trtllm", name=out.stem, replica_gpus=table.gpus,
        allow_flat=table.allow_flat,
    )  # fmt: skip
    return _save(found, out)


def _import_rates(file: Path, out: Path, block: int | None) -> Answer:
    from simulator.acceptance.rates import Rates
    from simulator.core.files import check_writable_file
    from simulator.deployment.engine_files import save_rates
    from simulator.interop.acceptance_files import load_acceptance

    check_writable_file(out)
    rates = load_acceptance(file, block)
    if not isinstance(rates, Rates):
        raise BadInputError(
            "is a trace already", source=str(file), remedy=f"use it as it is: --acceptance {file}"
        )
    save_rates(rates, out)
    shown = ", ".join(f"{rate:.3f}" for rate in rates.conditional)
    _say([rates.provenance.source, f"P(draft k accepted | those before it): {shown}",
          f"accepted length {rates.accepted_length:.3f}, bonus included"])  # fmt: skip
    typer.echo(f"wrote {out}; now: --acceptance {out}")
    return {
        "conditional": list(rates.conditional), "accepted_length": rates.accepted_length,
        "source": rates.provenance.source, "notes": rates.provenance.notes, "files": [out],
    }  # fmt: skip


def _export(asked: Exported, engine: str) -> Answer:
    from simulator.core.files import check_writable_file
    from simulator.deployment.engine_files import export_table
    from simulator.deployment.profile import load_profile

    check_writable_file(asked.out)
    said = export_table(
        load_profile(asked.profile), "sglang" if engine == "sglang" else "trtllm", asked.out,
        drafter=asked.drafter, context_tokens=asked.context,
    )  # fmt: skip
    _say(said)
    typer.echo(f"wrote {asked.out}")
    return {"notes": said, "files": [asked.out]}


def _save(found: Imported, out: Path) -> Answer:
    found.profile.save(out)
    _say(found.notes)
    typer.echo(f"wrote {out}; now: dspark-sim compare --profile {out} --acceptance MODEL --sla 50 --out DIR")
    return {"profile": found.profile.name, "notes": found.notes, "files": [out]}


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        if line:
            typer.echo(line, err=True)
