"""Groups of options that several commands share, each written once; see ``cli.groups``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simulator.core.errors import BadInputError

if TYPE_CHECKING:
    from simulator.api.workbench import Workbench
    from simulator.deployment.profile import Profile
    from simulator.hardware.choose import Hardware
    from simulator.parallel.cells import Sweeping
    from simulator.traffic.lengths import Lengths
    from simulator.traffic.sources import Traffic

Completed = Callable[[str], list[tuple[str, str]]]


def completing(what: str) -> Completed:
    """Return what completes a value in a shell: the last name of several, with a line about each."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        from simulator.cli.listing import choices

        start = 1 + max(incomplete.rfind(mark) for mark in ",=")
        found = choices(what)
        return [
            (incomplete[:start] + name, text)
            for name, text in found.items()
            if name.startswith(incomplete[start:])
        ]

    return complete


Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random stream.")]

Policy = Annotated[
    str,
    typer.Option(
        help="POLICY or POLICY@DRAFTER; `dspark-sim list` shows them.", autocompletion=completing("policies")
    ),
]

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="POLICY or POLICY@DRAFTER, repeatable; `dspark-sim list` shows them.",
        autocompletion=completing("policies"),
    ),
]

Concurrency = Annotated[str, typer.Option(help="Concurrent requests of a replica, comma-separated.")]

ClosedLengths = Annotated[
    str,
    typer.Option(help="Prompt/output lengths: default, fixed:1024/256, lognormal:1500,cv=1/300,cv=0.8, ..."),
]

ProcessLengths = Annotated[
    str | None,
    typer.Option(
        help="Prompt/output lengths of a process: fixed:1024/256, lognormal:1500,cv=1/300,cv=0.8, ... "
        "A trace file has its own. Default: azure-2023-conversation."
    ),
]

Prefill = Annotated[
    Literal["elsewhere", "chunked", "whole"], typer.Option(help="Where prompts are prefilled.")
]


Tables = Annotated[
    Literal["csv", "parquet"], typer.Option(help="Form of the tables; parquet has each column's unit.")
]


@dataclass(frozen=True, kw_only=True)
class OnHardware:
    """A model on a GPU."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Instead of a profile: a model (`dspark-sim list --models`) or its config.json.",
            autocompletion=completing("models"),
        ),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="What the model runs on (`dspark-sim list --gpus`).", autocompletion=completing("gpus")
        ),
    ] = None
    tp: Annotated[
        int | None, typer.Option(help="GPUs of a replica, tensor parallel. Default: the fewest that fit.")
    ] = None
    dp: Annotated[
        int,
        typer.Option(
            help="Groups of --tp GPUs that each hold the attention of their own requests (data-parallel "
            "attention), for mixtures of experts."
        ),
    ] = 1
    ep: Annotated[
        int | None,
        typer.Option(
            help="GPUs over which whole experts are dealt (expert parallelism). Default: all with --dp, "
            "else 1."
        ),
    ] = None
    engine: Annotated[
        Literal["vllm", "sglang", "trtllm"] | None,
        typer.Option(help="Whose kernels. Default: the engine nearest to the median of three."),
    ] = None
    precision: Annotated[
        Literal["bf16", "fp8", "fp4"] | None, typer.Option(help="Of weights. Default: the model's own.")
    ] = None
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            help="Drafter whose cost is derived, repeatable: dspark:LAYERSl@BLOCK, dspark:v4, dflash:5l, "
            "eagle3, mtp1, mtp:K. Default: dspark:5l and mtp1."
        ),
    ] = None
    host_time: Annotated[
        str | None,
        typer.Option(
            help="Time of a step that the GPU waits for its host, and of a drafter's pass after a comma: "
            "1.2ms,0.3ms. Default: the engine's own (docs/howto/any_model.md)."
        ),
    ] = None

    def named(self) -> Hardware:
        """Return it where both are named; ``BadInputError`` otherwise."""
        if self.model is None or self.gpu is None:
            missing = "model" if self.model is None else "gpu"
            raise BadInputError(
                "is missing",
                source=missing,
                remedy="name `model` and `gpu` (`dspark-sim list --models --gpus`)",
            )
        return self.hardware(self.gpu)

    def hardware(self, gpu: str, longest: int = 0) -> Hardware:
        """Return it as the library reads it. longest: tokens of a request that it must hold."""
        from simulator.hardware.choose import DRAFTERS, Hardware

        return Hardware(
            model=str(self.model), gpu=gpu, tp=self.tp, dp=self.dp, ep=self.ep, engine=self.engine,
            precision=self.precision, drafters=self.drafter or DRAFTERS, host_time=self.host_time,
            longest=longest,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Deployed(OnHardware):
    """What is deployed: a profile, or a model on a GPU, and how good its drafts are."""

    profile: Annotated[
        str | None,
        typer.Option(
            help="Shipped profile (see `dspark-sim list`) or a profile FILE.json.",
            autocompletion=completing("profiles"),
        ),
    ] = None
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL or DRAFTER=MODEL, repeatable: a name from `dspark-sim list`, a trace FILE.parquet, "
            "an engine's log FILE or FILE@BLOCK (docs/howto/engine_files.md), conditional:0.9,0.88, "
            "marginal:0.9,0.8, length:3.5@5, rate:0.34@7, or a mix 0.6*A+0.4*B. "
            "Default: what the profile carries.",
            autocompletion=completing("acceptance"),
        ),
    ] = None
    extrapolate_rows: Annotated[
        bool,
        typer.Option(
            "--extrapolate-rows",
            help="Answer also for batches whose rows lie far beyond those that were measured.",
        ),
    ] = False
    slow_path: Annotated[
        str | None,
        typer.Option(
            help="What a step without drafts takes longer where speculation is enabled, by requests: "
            "2=6.6%,189=21.6% was measured in vLLM. Default: nothing."
        ),
    ] = None
    row_cost: Annotated[
        str | None,
        typer.Option(
            help="What each draft row beyond one a request takes on top of the profile, as in 4us. "
            "Default: nothing."
        ),
    ] = None

    def workbench(self, longest: int = 0, *, believed: str | None = None) -> Workbench:
        """Load it, and say on standard error what to know of it. longest: see ``hardware``."""
        from simulator.api.workbench import deployment

        made = deployment(
            self.loaded_profile(longest), self.acceptance or (), believed=believed,
            extrapolate_rows=self.extrapolate_rows, slow_path=self.slow_path, row_cost=self.row_cost or 0.0,
        )  # fmt: skip
        for note in made.notes:
            typer.echo(note, err=True)
        return made

    def loaded_profile(self, longest: int = 0) -> Profile | str:
        """Return the profile, or what is chosen for a model on a GPU, and say what it rests on."""
        if self.model is None and self.gpu is None:
            if self.profile is None:
                raise BadInputError(
                    "is missing", source="profile", remedy="name a profile, or `model` and `gpu`"
                )
            return self.profile
        if self.profile is not None or self.model is None or self.gpu is None:
            raise BadInputError(
                "takes a profile, or `model` and `gpu` together", source="profile", value=self.profile,
                remedy="leave one out" if self.profile else "name both",
            )  # fmt: skip
        from simulator.hardware.choose import profile_for, require_acceptance

        require_acceptance(self.model, self.acceptance or ())
        chosen = profile_for(self.hardware(self.gpu, longest))
        for note in chosen.notes:
            typer.echo(note, err=True)
        return chosen.profile


@dataclass(frozen=True, kw_only=True)
class Believing(Deployed):
    """A deployment whose scheduler may believe another step cost."""

    believed: Annotated[
        str | None,
        typer.Option(
            help="Profile whose step cost the scheduler believes, where it is not the true one.",
            autocompletion=completing("profiles"),
        ),
    ] = None

    def workbench(self, longest: int = 0, *, believed: str | None = None) -> Workbench:
        """See ``Deployed.workbench``."""
        return super().workbench(longest, believed=believed or self.believed)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where cells run."""

    workers: Annotated[
        int, typer.Option(help="Processes; -1 uses every core. Results do not depend on it.")
    ] = -1
    backend: Annotated[
        Literal["loky", "dask", "ray"], typer.Option(help="Where cells run: here, or on a cluster.")
    ] = "loky"
    address: Annotated[
        str | None, typer.Option(help="Cluster to use; a local one is started where none is given.")
    ] = None

    def sweeping(self, directory: Path) -> Sweeping:
        """Keep finished cells in a directory, with a bar."""
        from simulator.parallel.cells import Sweeping

        return Sweeping(directory, self.workers, self.backend, self.address, progress=True)


@dataclass(frozen=True, kw_only=True)
class KeptWorkers(Workers):
    """Where cells run, and where finished ones are kept."""

    cells: Annotated[
        Path | None,
        typer.Option(help="Directory that keeps finished cells, so that the same sweep resumes."),
    ] = None

    def how(self) -> dict[str, Any]:
        """Return it as the keyword arguments of a sweep."""
        return {
            "workers": self.workers, "backend": self.backend, "address": self.address, "directory": self.cells
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replications:
    """How often and how long each load runs."""

    seeds: Annotated[
        int, typer.Option(help="Independent replications; the confidence intervals are over them.")
    ] = 3
    steps: Annotated[
        int | None, typer.Option(help="Engine steps per run. Default: by concurrency, equal precision.")
    ] = None
    lengths: ClosedLengths = "default"

    def drawn(self) -> Lengths:
        """Return the lengths of requests."""
        from simulator.traffic.lengths import as_lengths

        return as_lengths(self.lengths)

    def longest(self) -> int:
        """Return the tokens of a request that a replica must hold."""
        from simulator.traffic.lengths import longest_request

        return sum(longest_request(self.drawn()))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one engine holds, and where its prompts are prefilled."""

    kv_tokens: Annotated[
        int | None, typer.Option(help="KV-cache capacity of an engine in tokens. Default: the profile's.")
    ] = None
    prefill: Prefill = "elsewhere"
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            help="Prompt tokens of a step at most, with prefill chunked or whole. Default: the engine's own "
            "where the profile knows it, else 2048."
        ),
    ] = None
    prefill_tokens_per_s: Annotated[
        float | None,
        typer.Option(help="Prompt tokens/s of one worker of the prefill pool. Default: the profile's."),
    ] = None

    def __post_init__(self) -> None:
        if self.prefill != "elsewhere" and self.prefill_tokens_per_s is not None:
            raise BadInputError(
                f"there is no prefill pool with --prefill {self.prefill}", source="--prefill-tokens-per-s",
                value=self.prefill_tokens_per_s, remedy="leave it out",
            )  # fmt: skip

    def asked(self) -> dict[str, Any]:
        """Return it as keyword arguments of ``Workbench.simulate`` and ``fleet``."""
        return {
            "kv_tokens": self.kv_tokens, "prefill": self.prefill, "chunk_tokens": self.chunk_tokens,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
        }  # fmt: skip


def say_contexts(bench: Workbench, lengths: Lengths | Traffic) -> None:
    """One line on standard error where requests outgrow the contexts that the step times are of."""
    from simulator.deployment.profile import beyond_contexts
    from simulator.traffic.sources import judged_lengths

    if note := beyond_contexts(bench.profile, *judged_lengths(lengths)):
        typer.echo(f"warning: {note}", err=True)


def say_how_read(traffic: object) -> None:
    """One line on standard error about a recording: its layout, unit and rows that were left out."""
    report = getattr(traffic, "report", None)
    if report is not None:
        typer.echo(report.summary(), err=True)
