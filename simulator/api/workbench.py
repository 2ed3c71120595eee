"""A deployment with verbs: what belongs to a profile is wired once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.acceptance.trace import AcceptanceModel
from simulator.api import texts
from simulator.api.frontier import Frontier
from simulator.api.launching import Engine, launch
from simulator.core.units import parse_duration_s
from simulator.cost.scaled import SlowPath
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import Profile
from simulator.engine.limits import Prefill
from simulator.engine.run import Run, enough_requests, require_steps, simulate
from simulator.fleet.fleet import FleetRun, simulate_fleet
from simulator.fleet.layout import Fleet, RouterName
from simulator.interop.launch.settings import Launch
from simulator.schedulers.parse import NamedPolicy
from simulator.schedulers.protocol import Scheduler
from simulator.sla.terms import Sla
from simulator.sweeps.comparison import Bound
from simulator.sweeps.frontier import sweep_frontier
from simulator.sweeps.regret import regret
from simulator.traffic.lengths import Lengths
from simulator.traffic.parse import draw_workload
from simulator.traffic.sources import Traffic

if TYPE_CHECKING:
    import pandas as pd

AnyPolicy = str | NamedPolicy | Scheduler

LOADS = (10, 20, 50, 100, 200)
"""Concurrent requests that are swept unless told otherwise."""

CLOSED_LOOP_STEPS = 2000
"""Least engine steps of a closed loop unless told otherwise: it has no end of its own. It goes on until
every slot has finished some requests; see ``enough_requests``."""

GENERATED_REQUESTS = 2000
"""Requests of an arrival process or a closed loop unless told otherwise; a recording is played whole."""

GENERATED_S = 600.0
"""Simulated seconds with arrivals at a fleet unless told otherwise; a recording is played whole."""


def deployment(
    profile: str | Path | Profile,
    acceptance: str | AcceptanceModel | Sequence[str] | Mapping[str, str | AcceptanceModel] = (),
    *,
    believed: str | Path | None = None,
    overhead_s: float = 0.0,
    extrapolate_rows: bool = False,
    slow_path: str | SlowPath | None = None,
    row_cost: str | float = 0.0,
) -> Workbench:
    """Return a deployment of a profile, with verbs.

    Parameters
    ----------
    profile
        A shipped name, a file, or one that is loaded.
    acceptance
        Of the drafters: a text, several (``"DRAFTER=MODEL"``), a model of DSpark's, or models by drafter.
        What the profile carries stands in where none is given.
    believed
        A profile whose step cost schedulers consult.
    overhead_s
        Fixed time added to each step, in s.
    extrapolate_rows
        Whether to answer also far beyond the rows measured.
    slow_path
        What steps without drafts take longer where speculation is enabled, as in ``"2=6.6%,189=21.6%"``.
    row_cost
        What each draft row beyond one a request takes on top of the profile, as in ``"4us"``, or in seconds.

    Returns
    -------
    Workbench
        Its methods simulate, sweep, compare and serve.

    Raises
    ------
    BadInputError
        If something cannot be read, or there is no acceptance at all.
    """
    given: dict[str, AcceptanceModel] = {}
    listed: Sequence[str] = ()
    if isinstance(acceptance, Mapping):
        given = {drafter: texts.acceptance(model) for drafter, model in acceptance.items()}
    elif isinstance(acceptance, str):
        listed = [acceptance]
    elif isinstance(acceptance, Sequence):
        listed = acceptance
    else:
        given = {"dspark": acceptance}
    made = deploy(
        profile, listed, believed=believed, required=not given, extrapolate_rows=extrapolate_rows
    )  # fmt: skip
    return Workbench(
        made.profile, {**made.acceptance, **given}, made.believed, overhead_s, made.notes, extrapolate_rows,
        SlowPath.parse(slow_path) if isinstance(slow_path, str) else slow_path,
        parse_duration_s(row_cost, field="row_cost") if isinstance(row_cost, str) else row_cost,
    )  # fmt: skip


class Workbench(Deployment):
    """A deployment with verbs; every argument takes text or the object."""

    __slots__ = ()

    def simulate(
        self,
        policy: AnyPolicy,
        *,
        concurrency: int,
        traffic: str | Path | Traffic = "closed",
        lengths: str | None = None,
        requests: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        **limits: Any,
    ) -> Run:
        """Run one engine under one policy on one traffic.

        Parameters
        ----------
        policy
            A text such as ``"dspark-async"``, or an object.
        concurrency
            Requests that run at once.
        traffic
            An arrival process such as ``"poisson:12/s"``, ``"closed"``, a recorded file, or an object.
        lengths
            Prompt and output tokens of a process, as in ``"fixed:1024/256"``; a recording has its own.
        requests
            The first so many requests.
        steps
            Steps of the engine; a closed loop has no other end.
        seed
            Of arrivals, lengths and outcomes.
        **limits
            kv_tokens, prefill, chunk_tokens and prefill_tokens_per_s of ``Deployment.limits``.

        Returns
        -------
        Run
            Requests and steps as tables, and metrics.

        Raises
        ------
        BadInputError
            If something cannot be read, or steps held rows far beyond those measured.
        """
        require_steps(steps)
        engine = self.limits(concurrency, **limits)
        setup = self.answerable(self.plan(policy), concurrency)
        workload = draw_workload(
            texts.traffic(traffic, lengths), seed, requests=requests, generated=GENERATED_REQUESTS
        )
        finish = 0
        if steps is None and workload.is_closed_loop:
            steps, finish = CLOSED_LOOP_STEPS, enough_requests(concurrency)
        run = simulate(
            workload, [setup.replay(seed)] * len(workload.classes), setup.scheduler, setup.cost, engine,
            believed=setup.believed, seed=seed, steps=steps, finish=finish,
        )  # fmt: skip
        self.judge_rows(setup, run.rows_mean, concurrency)
        return run

    def frontier(
        self,
        policies: AnyPolicy | Sequence[AnyPolicy],
        concurrency: int | Sequence[int] = LOADS,
        *,
        seeds: int = 3,
        lengths: str | Lengths | None = None,
        steps: int | None = None,
        slas: Sequence[Bound] = (),
        workers: int = 1,
        **how: Any,
    ) -> Frontier:
        """Sweep policies over concurrency in a closed loop; see ``sweep_frontier``.

        Parameters
        ----------
        policies
            One or several, as texts or objects.
        concurrency
            Loads: requests that run at once.
        seeds
            Runs of each cell.
        lengths
            Prompt and output tokens, as in ``"fixed:1024/256"``.
        steps
            Steps of a run; by default they follow from how long requests live.
        slas
            Speed SLAs, tokens/s per user, around whose answers loads are added.
        workers
            Processes that simulate.
        **how
            progress, backend, address and directory of ``sweep_frontier``.

        Returns
        -------
        Frontier
            Its ``table`` has a row per policy and load.

        Raises
        ------
        BadInputError
            If a policy or a load is given twice, or cannot be answered.
        """
        several = isinstance(policies, Sequence) and not isinstance(policies, str)
        table = sweep_frontier(
            self, list(policies) if several else [policies], concurrency,  # type: ignore[arg-type, list-item]
            seeds=seeds, lengths=lengths, steps=steps, slas=slas, workers=workers, **how,
        )  # fmt: skip
        return Frontier(table, self.profile)

    def regret(
        self,
        policy: AnyPolicy,
        beliefs: str | Sequence[str],
        concurrency: int | Sequence[int] = LOADS,
        *,
        seeds: int = 3,
        lengths: str | Lengths | None = None,
        workers: int = 1,
        **how: Any,
    ) -> pd.DataFrame:
        """Return what a policy loses where it believes wrong cost tables; see ``sweeps.regret.regret``.

        Parameters
        ----------
        policy
            A text such as ``"dspark-async"``, or an object.
        beliefs
            One or several: ``floor:4``, a profile, or an engine's file.
        concurrency
            Loads: requests that run at once.
        seeds
            Runs of each cell, at least 2.
        lengths
            Prompt and output tokens, as in ``"fixed:1024/256"``.
        workers
            Processes that simulate.
        **how
            steps, progress, backend, address and directory of ``sweeps.regret.regret``.

        Returns
        -------
        DataFrame
            A row per belief and load: throughput under the belief and under the truth (tokens/s), the share
            lost and its interval.

        Raises
        ------
        BadInputError
            If a belief or a load is given twice, or the rows chosen lie far beyond those measured.
        """
        return regret(
            self, policy, [beliefs] if isinstance(beliefs, str) else beliefs,
            [concurrency] if isinstance(concurrency, int) else concurrency,
            seeds=seeds, lengths=lengths, workers=workers, **how,
        )  # fmt: skip

    def launch(
        self,
        policy: str,
        engine: Engine,
        *,
        concurrency: int,
        gpus: int | None = None,
        context_tokens: float = 0.0,
        model: str | None = None,
        **limits: Any,
    ) -> Launch:
        """Say how an engine is started for a policy; see ``api.launching.launch``.

        Parameters
        ----------
        policy
            A text such as ``"dspark-async"``.
        engine
            ``vllm``, ``sglang`` or ``trtllm``.
        concurrency
            Requests that run at once.
        gpus
            GPUs of a replica; the profile's own by default, or 1.
        context_tokens
            Of a decoding request, for which a cost table holds.
        model
            The target's checkpoint.
        **limits
            kv_tokens, prefill, chunk_tokens and prefill_tokens_per_s of ``Deployment.limits``.

        Returns
        -------
        Launch
            Its ``write(folder)`` writes launch.sh and the files that it names.

        Raises
        ------
        BadInputError
            If the engine cannot run the policy or its drafter.
        """
        return launch(
            self, policy, engine, self.limits(concurrency, **limits), gpus=gpus,
            context_tokens=context_tokens, model=model,
        )  # fmt: skip

    def fleet(
        self,
        policy: AnyPolicy,
        *,
        replicas: int,
        traffic: str | Path | Traffic,
        sla: str | Sequence[str] | Sla,
        lengths: str | None = None,
        concurrency: int = 256,
        duration: str | None = None,
        router: RouterName = "round-robin",
        pods: int | None = None,
        prefix_cache_tokens: int | None = None,
        prefill_workers: int | None = None,
        kv_tokens: int | None = None,
        prefill: Prefill = "elsewhere",
        chunk_tokens: int | None = None,
        prefill_tokens_per_s: float | None = None,
        seed: int = 0,
        workers: int = 1,
        **how: Any,
    ) -> FleetRun:
        """Serve traffic on replicas behind a router, and judge it by an SLA.

        Parameters
        ----------
        policy
            A text such as ``"dspark-async"``, or an object.
        replicas
            Engines that decode.
        traffic
            An arrival process such as ``"poisson:12/s"``, a recorded file, or an object.
        sla
            One or several terms such as ``"ttft_p99<=2s"``.
        lengths
            Prompt and output tokens of a process; a recording has its own.
        concurrency
            Requests that run at once on a replica.
        duration
            Simulated time with arrivals, such as ``"10min"``.
        router
            How requests are spread over replicas.
        pods
            Groups of replicas that share nothing and are simulated apart; see ``Fleet``.
        prefix_cache_tokens
            Tokens of prompts that a replica keeps for others with the same start.
        prefill_workers
            Workers of one prefill pool that all replicas share; by default each replica has its own.
        kv_tokens, prefill, chunk_tokens, prefill_tokens_per_s
            See ``Deployment.limits``.
        seed
            Of arrivals, lengths and outcomes.
        workers
            Processes that simulate.
        **how
            Where pods run: backend, address, directory and progress of ``simulate_fleet``.

        Returns
        -------
        FleetRun
            Metrics, and what each term of the SLA came to.

        Raises
        ------
        BadInputError
            If something cannot be read, or steps held rows far beyond those measured.
        """
        limits = self.limits(
            concurrency, kv_tokens=kv_tokens, prefill=prefill, chunk_tokens=chunk_tokens,
            prefill_tokens_per_s=prefill_tokens_per_s,
        )  # fmt: skip
        layout = Fleet(replicas, limits, router, pods, prefix_cache_tokens, prefill_workers)
        setup = self.answerable(self.plan(policy), concurrency)
        seconds = None if duration is None else parse_duration_s(duration, field="duration")
        workload = draw_workload(
            texts.traffic(traffic, lengths), seed, duration_s=seconds, generated_s=GENERATED_S
        )
        run = simulate_fleet(
            workload, [setup] * len(workload.classes), layout, texts.sla(sla), seed=seed, workers=workers,
            **how,
        )  # fmt: skip
        self.judge_rows(setup, run.rows_mean, concurrency)
        return run
