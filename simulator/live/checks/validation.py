"""Live against simulated: one scenario, run on the device and looked up in a profile measured beforehand.

Both runs meet the same requests, traces, seeds, policies and believed costs. In a closed loop with
replayed acceptance no decision depends on time, so both take the same steps and only their durations can
differ: what is validated is the cost model. With the pair's own acceptance the trace is on trial as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import simpy
from numpy.typing import NDArray

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError, InfeasibleError
from simulator.core.files import slug, write_json
from simulator.core.reading import read_json
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile
from simulator.deployment.setup import Setup
from simulator.engine.engine import Engine
from simulator.engine.limits import EngineLimits
from simulator.engine.measures.metrics import Metrics
from simulator.engine.run import Run, advance, simulate, summarise, write_run
from simulator.live.device import device_name, long_lived_objects_set_aside
from simulator.live.engine.executor import LiveExecutor
from simulator.live.engine.observed import Decision
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompt_rows import prompt_rows_for
from simulator.live.engine.prompts import RANDOM, Prompts, random_prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.conditions import DRAFT, UNSAID, conditions_of, digests_of
from simulator.parallel.hashing import content_hash
from simulator.schedulers.parse import NamedPolicy
from simulator.schedulers.protocol import Batch, Scheduler
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import Lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from simulator.traffic.workload import Workload

COMPARED = (
    "throughput_tok_per_s", "tps_p10", "tps_p50", "itl_p50_s", "itl_p99_s", "accepted_length_mean",
    "verification_budget_mean", "step_time_mean_s",
)  # fmt: skip


_PATHS = ("target", "draft_folders")
"""Settings that say where models lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationCase:
    """What both runs share.

    deployment: the profile and the acceptance of its drafters. replayed: the live run takes acceptance from
    it as well; otherwise its pair decides for itself, confidences calibrated with the temperatures that its
    trace carries. schedule_s: what a policy's decision adds to a step, as profiled. prompts: what the live
    run's requests say, called ``prompts_name``; random tokens where None.
    """

    target: Target
    drafters: Mapping[str, Draft]
    deployment: Deployment
    policies: Sequence[NamedPolicy]
    concurrency: Sequence[int]
    lengths: Lengths
    steps: int
    seed: int = 0
    replayed: bool = True
    schedule_s: Callable[[str], float] = lambda policy: 0.0
    prompts: Prompts | None = None
    prompts_name: str = RANDOM
    options: LiveOptions

    def plan(self, policy: NamedPolicy) -> Setup:
        """How a policy runs, the overhead of deciding included."""
        return replace(self.deployment, overhead_s=self.schedule_s(policy.name)).plan(policy)

    def workload(self, concurrency: int) -> Workload:
        """Closed-loop requests, more than slots, so that cycling through them shows no pattern."""
        traffic = SyntheticTraffic(ClosedLoop(), (TrafficClass("default", self.lengths),))
        return traffic.workload(self.seed, requests=max(256, 8 * concurrency))

    def conditions(self) -> dict[str, str]:
        """Return what the live runs' times depend on, as a profile's provenance says it."""
        options = self.options
        return conditions_of(
            self.target, attention=options.attention, graphs=options.graphs, temperature=options.temperature
        )

    def drafters_used(self) -> dict[str, str]:
        """Return the digests of the drafters that a policy runs with, as a profile's provenance says it."""
        used = {self.plan(policy).drafter for policy in self.policies}
        return digests_of({name: draft for name, draft in self.drafters.items() if name in used})

    def settings(self) -> dict[str, Any]:
        """Return what results depend on: a directory of other settings is not continued.

        ``_PATHS`` are there for a reader and not compared: models are known by digests of their content.
        Reads all weights of the drafts each time.
        """
        profile, acceptance = self.deployment.profile, self.deployment.acceptance
        return {
            "target": self.target.name,
            "draft_folders": {name: draft.source or "untrained" for name, draft in self.drafters.items()},
            **self.conditions(),
            "drafters": {name: draft.digest for name, draft in self.drafters.items()},
            "profile": profile.name,
            "profile_digest": hashlib.sha256(profile.model_dump_json().encode()).hexdigest(),
            "acceptance": {name: model.name for name, model in acceptance.items()},
            "acceptance_digest": {name: content_hash(model) for name, model in acceptance.items()},
            "lengths": repr(self.lengths),
            "steps": self.steps,
            "seed": self.seed,
            "replayed": self.replayed,
            "temperature": self.options.temperature,
            "prompts": self.prompts_name,
            "prompt_digest": self._prompt_digest(),
            "device": device_name(self.target.device),
        }

    def check_profile(self) -> None:
        """Refuse a profile that was measured under other conditions than those of this case's live runs."""
        check_profile(self.deployment.profile, self.target, self.conditions() | self.drafters_used())

    def _prompt_digest(self) -> str | None:
        """Digest of all that requests say, prompts and what stands for output before a run begins."""
        if self.prompts is None:
            return None
        load = self.workload(max(self.concurrency))
        longest = load.prompt_tokens + load.output_tokens
        return content_hash([self.prompts(request, int(n)) for request, n in enumerate(longest)])


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Live runs beside simulated ones, as tables.

    errors: policy, concurrency, metric, measured (median of the live runs), predicted, error (relative,
    signed), spread (largest minus smallest of the live runs over their median: what no prediction can beat).

    lengths: policy, concurrency, length, measured, predicted (shares of request-steps).
    parity: policy, concurrency, decisions checked, how many of them differed, and visible scheduling time.
    """

    errors: pd.DataFrame
    lengths: pd.DataFrame
    parity: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """See ``summarise_errors``."""
        return summarise_errors(self.errors)

    def check(self, tolerances: Mapping[str, float]) -> None:
        """Raise ``InfeasibleError`` for a decision that differed or a median error above its tolerance."""
        differing = int(self.parity["differing"].sum())
        if differing:
            raise InfeasibleError(f"{differing} decisions of the live run are not the simulator's")
        summary = self.summary()
        for metric, tolerance in tolerances.items():
            if metric not in summary.index:
                raise BadInputError(
                    "is not compared", field="tolerance", value=metric, remedy=", ".join(summary.index)
                )
            median = float(summary["median"][metric])
            if not median <= tolerance:
                raise InfeasibleError(f"{metric}: median error {median:.1%} exceeds {tolerance:.1%}")


def summarise_errors(errors: pd.DataFrame) -> pd.DataFrame:
    """Median and largest absolute error of each metric, and the median spread of the live runs."""
    by_metric = errors.assign(error=errors["error"].abs()).groupby("metric", sort=False)
    return by_metric["error"].agg(["median", "max"]).assign(spread=by_metric["spread"].median())


_SETTABLE = ("attention", "graphs", "threads", "dtype")
"""Conditions that an option of the same name changes; the others are changed by profiling again alone."""


def check_profile(profile: Profile, target: Target, conditions: Mapping[str, str]) -> None:
    """Refuse a profile of another device or target, or measured otherwise, naming what differs.

    conditions: of the live runs, from ``conditions_of``, and their drafters from ``digests_of``. Target and
    drafters are known by their content, so that another spelling of a path is accepted and other weights
    under the same path are not.
    """
    software = UNSAID | dict(profile.provenance.software)
    here = device_name(target.device)
    pairs = {"device": (profile.provenance.device, here)} | {
        name: (software.get(name), ours) for name, ours in conditions.items()
    }
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not different:
        return
    if "dtype" in different and software.get("dtype"):
        # The same weights have other bytes in another dtype.
        different = {name: pair for name, pair in different.items() if not _is_digest(name)}
    options = [
        f"`{name}` {theirs}" for name, (theirs, _) in different.items() if theirs and name in _SETTABLE
    ]
    again = f"profile {target.name} here again, with the options and drafts of this run"
    raise BadInputError(
        f"was measured under other conditions: {'; '.join(map(_differing, different.items()))}",
        source=profile.name, field=", ".join(different),
        remedy=f"run with {', '.join(options)}, or {again}" if len(options) == len(different) else again,
    )  # fmt: skip


def _is_digest(name: str) -> bool:
    return name == "weights" or name.startswith(DRAFT)


def _differing(item: tuple[str, tuple[str | None, str]]) -> str:
    name, (theirs, ours) = item
    if _is_digest(name):  # the beginnings of digests tell them apart
        theirs, ours = theirs and theirs[:12], ours[:12]
        whose = "the target" if name == "weights" else f"drafter {name.removeprefix(DRAFT)!r}"
        name = f"config or weights of {whose}"
    return f"{name} {repr(theirs) if theirs else 'not recorded'} there, {ours!r} here"


def validate(
    scenario: ValidationCase, out: Path, tell: Callable[[str], None], *, runs: int = 1
) -> Validation:
    """Run every policy at every concurrency, live and simulated; live runs finished in ``out`` stay.

    runs: of each live cell. All cells are run once before any is run again, so that whatever slows the
    machine for a while spoils one run of several cells rather than all of one.
    """
    scenario.check_profile()
    settings = scenario.settings()
    _continue(out / "settings.json", settings)
    cells = [(policy, concurrency) for policy in scenario.policies for concurrency in scenario.concurrency]
    predicted = [_predicted(scenario, *cell) for cell in cells]
    measured: list[list[dict[str, Any]]] = [[] for _ in cells]
    for run in range(runs):
        for (policy, concurrency), theirs, mine in zip(cells, predicted, measured, strict=True):
            path = out / f"{slug(policy.name)}-{concurrency}-run{run + 1}.json"
            digest = content_hash(policy.scheduler, scenario.plan(policy).drafter)
            if not path.exists():
                ran = _measured(scenario, policy, concurrency, settings, path.with_suffix(""))
                write_json(path, ran | {"policy_digest": digest})
            found: Any = read_json(path)
            if found.get("policy_digest") != digest:
                raise BadInputError(
                    "is of another policy of this name", source=str(path), field="policy", value=policy.name,
                    remedy="choose another directory",
                )  # fmt: skip
            mine.append(found)
            ours, rate = found["metrics"][COMPARED[0]], theirs["metrics"][COMPARED[0]]
            tell(
                f"{policy.name} at {concurrency}: {ours:.1f} tokens/s measured, {rate:.1f} predicted "
                f"({rate / ours - 1:+.1%}); {found['differing']} of {found['decisions']} decisions differ"
            )
    return _combined(cells, measured, predicted)


@dataclass(frozen=True, slots=True, eq=False)
class LiveRun:
    """A live run: its frames and metrics, what its scheduler met, and where each step's time went.

    Steps in which a CUDA graph was recorded are not among the timings.
    """

    run: Run
    records: list[Decision]
    timings: pd.DataFrame


def run_live(
    scenario: ValidationCase,
    policy: NamedPolicy,
    workload: Workload,
    limits: EngineLimits,
    *,
    steps: int | None,
    salvage: Callable[[Engine, BaseException], None] = lambda engine, error: None,
) -> LiveRun:
    """Serve a workload on the device under one policy; ``salvage`` is told of a run that breaks off."""
    plan = scenario.plan(policy)
    draft = None if plan.drafter == "none" else _drafter(scenario, plan)
    replayed = scenario.replayed and draft is not None
    replays = [plan.replay(scenario.seed)] * len(workload.classes) if replayed else None
    executor = LiveExecutor(
        scenario.target, draft, workload, concurrency=limits.concurrency,
        prompts=scenario.prompts or random_prompts(scenario.target.vocab_size, scenario.seed),
        replays=replays, prompt_rows=prompt_rows_for(workload, limits), calibration=_calibration(plan),
        options=scenario.options,
    )  # fmt: skip
    scheduler = executor.observe(plan.scheduler, keep_records=True)
    engine = Engine(
        simpy.Environment(), workload, executor, scheduler, plan.believed, limits, seed=scenario.seed
    )
    try:
        with long_lived_objects_set_aside():
            advance(engine, steps)
    except BaseException as error:
        salvage(engine, error)
        raise
    timings = pd.DataFrame(executor.timings)
    return LiveRun(
        summarise(engine), scheduler.records, timings[timings["capture_s"] == 0].drop(columns="capture_s")
    )


def write_live(live: LiveRun, case: ValidationCase, words: Mapping[str, object], out: Path) -> dict[str, Any]:
    """Write the files of a live run and return its description, ``run.json``.

    words: what was asked for. visible_schedule_share: of the time, seconds of scheduling that no pass hid;
    padding_share: of the rows that were computed, those that no token needed.
    """
    timings = live.timings
    described = {
        "kind": "live", **words,
        "visible_schedule_share": float(timings["visible_schedule_s"].sum() / timings["duration_s"].sum()),
        "padding_share": float(1 - timings["batch_tokens"].sum() / timings["padded_tokens"].sum()),
        **case.settings(),
    }  # fmt: skip
    write_run(live.run, out, described, timings=timings)
    return described


def _measured(
    scenario: ValidationCase, policy: NamedPolicy, concurrency: int, settings: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """One live run, its files and the settings written into ``folder``, and what is compared of it."""
    plan, workload = scenario.plan(policy), scenario.workload(concurrency)
    live = run_live(scenario, policy, workload, scenario.deployment.limits(concurrency), steps=scenario.steps)
    about = {"kind": "live", "policy": policy.name, "concurrency": concurrency, **settings}
    write_run(live.run, folder, about)
    timings = live.timings
    return {
        "metrics": _compared(live.run.metrics),
        "lengths": shares((record.lengths.cpu().numpy() for record in live.records), _gamma(plan)),
        "decisions": len(live.records),
        "differing": differing_decisions(live.records, plan),
        "visible_schedule_share": float(timings["visible_schedule_s"].sum() / timings["duration_s"].sum()),
        "padding_share": float(1 - timings["batch_tokens"].sum() / timings["padded_tokens"].sum()),
    }


def _predicted(scenario: ValidationCase, policy: NamedPolicy, concurrency: int) -> dict[str, Any]:
    """Simulate the same run, and compare."""
    plan, workload = scenario.plan(policy), scenario.workload(concurrency)
    counted = _Counted(plan.scheduler)
    run = simulate(
        workload, [plan.replay(scenario.seed)], counted, plan.cost, scenario.deployment.limits(concurrency),
        believed=plan.believed, seed=scenario.seed, steps=scenario.steps,
    )  # fmt: skip
    return {"metrics": _compared(run.metrics), "lengths": shares(counted.lengths, _gamma(plan))}


def _combined(
    cells: Sequence[tuple[NamedPolicy, int]],
    measured: Sequence[Sequence[Mapping[str, Any]]],
    predicted: Sequence[Mapping[str, Any]],
) -> Validation:
    """Tables over all cells, the median over each cell's live runs beside its prediction."""
    errors, lengths, parity = [], [], []
    for (policy, concurrency), runs, theirs in zip(cells, measured, predicted, strict=True):
        key = {"policy": policy.name, "concurrency": concurrency}
        errors += [key | row for row in compare([run["metrics"] for run in runs], theirs["metrics"])]
        mine = np.median([run["lengths"] for run in runs], axis=0)
        lengths += [
            key | {"length": length, "measured": float(ours), "predicted": float(share)}
            for length, (ours, share) in enumerate(zip(mine, theirs["lengths"], strict=True))
        ]
        counted = {name: sum(run[name] for run in runs) for name in ("decisions", "differing")}
        shown = {
            name: float(np.median([run[name] for run in runs]))
            for name in ("visible_schedule_share", "padding_share")
        }
        parity.append(key | counted | shown)
    return Validation(pd.DataFrame(errors), pd.DataFrame(lengths), pd.DataFrame(parity))


def compare(measured: Sequence[Mapping[str, float]], predicted: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per metric that every run could measure: the median over runs beside the prediction."""
    rows = []
    for name in COMPARED:
        runs = np.array([run.get(name, np.nan) for run in measured], dtype=float)
        theirs = predicted.get(name, np.nan)
        if not np.isfinite([*runs, theirs]).all():
            continue
        ours = float(np.median(runs))
        rows.append(
            {
                "metric": name,
                "measured": ours,
                "predicted": theirs,
                "error": theirs / ours - 1,
                "spread": float(np.ptp(runs)) / ours,
            }
        )
    return rows


def _compared(metrics: Metrics) -> dict[str, float]:
    row = metrics.as_row()
    return {name: row[name] for name in COMPARED if np.isfinite(row[name])}


def _calibration(plan: Setup) -> list[float] | None:
    model = plan.acceptance
    if not isinstance(model, AcceptanceTrace) or model.temperatures is None:
        return None
    temperatures: list[float] = model.temperatures.tolist()
    return temperatures


def _gamma(plan: Setup) -> int:
    return 0 if plan.acceptance is None else plan.acceptance.gamma


def differing_decisions(records: Sequence[Decision], plan: Setup) -> int:
    """How many recorded decisions the simulator's scheduler, on NumPy arrays, makes otherwise."""
    differing = 0
    for record in records:
        batch = Batch(plan.believed, record.context_tokens, record.prefill_tokens, record.lagged)
        lengths = plan.scheduler.schedule(record.survival.cpu().numpy(), batch)
        differing += not np.array_equal(lengths, record.lengths.cpu().numpy())
    return differing


def shares(lengths: Iterable[NDArray[np.int64]], gamma: int) -> list[float]:
    """Share of request-steps at each verification length, [gamma + 1]."""
    counts: NDArray[np.float64] = np.zeros(gamma + 1)
    for step in lengths:
        counts += np.bincount(step, minlength=gamma + 1)
    shared: list[float] = (counts / counts.sum()).tolist()
    return shared


class _Counted:
    """A scheduler that keeps the lengths it returned."""

    def __init__(self, inner: Scheduler) -> None:
        self.lag, self.lossless, self.reason = inner.lag, inner.lossless, inner.reason
        self.reads_outcome, self.draft_tokens = inner.reads_outcome, inner.draft_tokens
        self.inner, self.lengths = inner, list[NDArray[np.int64]]()

    def schedule(self, survival: Any, batch: Batch) -> Any:
        lengths = self.inner.schedule(survival, batch)
        self.lengths.append(lengths)
        return lengths


def _drafter(scenario: ValidationCase, plan: Setup) -> Draft:
    if plan.drafter not in scenario.drafters:
        raise BadInputError(
            f"runs with drafter {plan.drafter!r}, which was not given", source="policy",
            value=plan.policy.name,
            remedy=f"pass `draft` {plan.drafter}=FOLDER (given: {', '.join(scenario.drafters) or 'none'})",
        )  # fmt: skip
    return scenario.drafters[plan.drafter]


def _continue(path: Path, settings: Mapping[str, Any]) -> None:
    if not path.exists():
        write_json(path, dict(settings))
        return
    found: Any = read_json(path)
    compared = [name for name in settings if name not in _PATHS]
    different = [name for name in compared if found.get(name) != settings[name]]
    if different:
        raise BadInputError(
            f"holds a validation with another {', '.join(different)}", source=str(path.parent),
            field=different[0], value=found.get(different[0]), remedy="choose another directory",
        )  # fmt: skip
