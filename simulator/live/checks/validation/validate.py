"""Live against simulated: one scenario, run on the device and looked up in a profile measured beforehand.

Both runs meet the same requests, traces, seeds, policies and believed costs. In a closed loop with
replayed acceptance no decision depends on time, so both take the same steps and only their durations can
differ: what is validated is the cost model. With the pair's own acceptance the trace is on trial as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import BadInputError
from simulator.core.files import slug, write_json
from simulator.core.reading import checked, read_json
from simulator.engine.run import simulate, write_run
from simulator.live.checks.validation.case import PATHS, ValidationCase
from simulator.live.checks.validation.live_run import run_live
from simulator.live.checks.validation.results import (
    COMPARED,
    CellKey,
    MeasuredOutcome,
    Outcome,
    Validation,
    combined,
)
from simulator.parallel.hashing import content_hash
from simulator.schedulers.parse import NamedPolicy
from simulator.schedulers.protocol import Batch, Scheduler


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
    measured: list[list[MeasuredOutcome]] = [[] for _ in cells]
    for run in range(runs):
        for (policy, concurrency), theirs, mine in zip(cells, predicted, measured, strict=True):
            path = out / f"{slug(policy.name)}-{concurrency}-run{run + 1}.json"
            found = _measured(scenario, policy, concurrency, settings, path)
            mine.append(found)
            ours, rate = found.metrics[COMPARED[0]], theirs.metrics[COMPARED[0]]
            tell(
                f"{policy.name} at {concurrency}: {ours:.1f} tokens/s measured, {rate:.1f} predicted "
                f"({rate / ours - 1:+.1%}); {found.differing} of {found.decisions} decisions differ"
            )
    return combined([CellKey(policy.name, load) for policy, load in cells], measured, predicted)


def _measured(
    scenario: ValidationCase,
    policy: NamedPolicy,
    concurrency: int,
    settings: Mapping[str, object],
    path: Path,
) -> MeasuredOutcome:
    """Return what is compared of a live run: kept at ``path``, or run now, its files beside it."""
    plan = scenario.plan(policy)
    digest = content_hash(policy.scheduler, plan.drafter)
    if not path.exists():
        limits = scenario.deployment.limits(concurrency)
        live = run_live(scenario, policy, scenario.workload(concurrency), limits, steps=scenario.steps)
        about = {"kind": "live", **asdict(CellKey(policy.name, concurrency)), **settings}
        write_run(live.run, path.with_suffix(""), about)
        write_json(path, MeasuredOutcome.of(live, plan, digest).model_dump(mode="json"))
    found = checked(MeasuredOutcome, read_json(path), str(path))
    if found.policy_digest != digest:
        raise BadInputError(
            "is of another policy of this name", source=str(path), field="policy", value=policy.name,
            remedy="choose another directory",
        )  # fmt: skip
    return found


def _predicted(scenario: ValidationCase, policy: NamedPolicy, concurrency: int) -> Outcome:
    """Simulate the same run."""
    plan, workload = scenario.plan(policy), scenario.workload(concurrency)
    counted = _Counted(plan.scheduler)
    run = simulate(
        workload, [plan.replay(scenario.seed)], counted, plan.cost, scenario.deployment.limits(concurrency),
        believed=plan.believed, seed=scenario.seed, steps=scenario.steps,
    )  # fmt: skip
    return Outcome.predicted(run.metrics, counted.lengths, plan)


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


def _continue(path: Path, settings: Mapping[str, Any]) -> None:
    if not path.exists():
        write_json(path, dict(settings))
        return
    found: Any = read_json(path)
    compared = [name for name in settings if name not in PATHS]
    different = [name for name in compared if found.get(name) != settings[name]]
    if different:
        raise BadInputError(
            f"holds a validation with another {', '.join(different)}", source=str(path.parent),
            field=different[0], value=found.get(different[0]), remedy="choose another directory",
        )  # fmt: skip
