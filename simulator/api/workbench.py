"""A deployment with verbs: what belongs to a profile is wired once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

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

    profile: a shipped name, a file, or one that is loaded. acceptance: of the drafters; a text, several
    (``"DRAFTER=MODEL"``), a model of DSpark's, or models by drafter; what the profile carries stands in
    where none is given. believed: a profile whose step cost schedulers consult. overhead_s: fixed time added
    to each step. extrapolate_rows: answer also far beyond the rows measured. slow_path: what steps
    without drafts take longer where speculation is enabled, as in ``"2=6.6%,189=21.6%"``. row_cost: what
    each draft row beyond one a request takes on top of the profile, as in ``"4us"``, or in seconds.
    Raises ``BadInputError`` for whatever cannot be read, and where there is no acceptance at all.
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
        """Run one engine under one policy on one traffic; returns requests, steps and metrics.

        concurrency: requests running at once. lengths: of a process; a recording has its own. requests: the
        first so many. steps: of the engine; a closed loop has no other end. limits: kv_tokens, prefill,
        chunk_tokens and prefill_tokens_per_s of ``Deployment.limits``. Raises ``BadInputError``.
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
        """Sweep policies over concurrency in a closed loop; see ``sweep_frontier``."""
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
        """Return what the policy loses where it believes wrong cost tables; see ``sweeps.regret.regret``."""
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
        """Return how an engine is started for a policy; ``write(folder)`` writes it.

        engine: vllm, sglang or trtllm. concurrency: requests at once. limits: as of ``simulate``. The
        others: see ``api.launching.launch``.
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

        duration: simulated time with arrivals, such as ``"10min"``. kv_tokens to prefill_tokens_per_s: see
        ``Deployment.limits``; the others: see ``Fleet``. how: where pods run; see ``simulate_fleet``.
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
