"""From a policy on a deployment to how an engine is started for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from simulator.acceptance.calibration import SGLANG, fit_temperatures, verdicts
from simulator.acceptance.trace import AcceptanceModel, AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.files import json_text
from simulator.deployment.deployment import Deployment
from simulator.deployment.engine_files import EngineTable, engine_table
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.interop.launch import sglang, tensorrt_llm, vllm
from simulator.interop.launch.settings import (
    CALIBRATION,
    TABLE,
    ByBatch,
    Confidence,
    Fixed,
    Launch,
    Settings,
)
from simulator.interop.sglang_tables import Calibration, calibration_fields
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.policies import Fixed as FixedLength
from simulator.schedulers.protocol import Scheduler

Engine = Literal["vllm", "sglang", "trtllm"]

ENGINES: tuple[Engine, ...] = get_args(Engine)


def launch(
    deployment: Deployment,
    policy: str,
    engine: Engine,
    limits: EngineLimits,
    *,
    gpus: int | None = None,
    context_tokens: float = 0.0,
    memory_share: float | None = None,
    model: str | None = None,
) -> Launch:
    """Return how an engine is started for a policy, with the files that its scheduler reads.

    gpus: of a replica; None takes the profile's, or 1. context_tokens: of a decoding request, for which a
    cost table holds. memory_share: of GPU memory, for weights and KV cache. model: the target's checkpoint.
    Raises ``BadInputError`` for a policy, an engine or a drafter that cannot be launched.
    """
    if engine not in ENGINES:
        raise BadInputError(
            "is no engine that is launched", source="engine", value=engine, remedy=f"use {', '.join(ENGINES)}"
        )
    setup = deployment.plan(policy)
    block = 0 if setup.acceptance is None else setup.acceptance.gamma
    how = _verification(setup.scheduler)
    table = _table(deployment, setup, engine, context_tokens) if isinstance(how, Confidence) else None
    calibration = calibration_of(setup.acceptance) if isinstance(how, Confidence) else None
    settings = Settings(
        policy=setup.policy.name, verification=how, drafter=setup.drafter if block else None, block=block,
        gpus=gpus or deployment.profile.replica_gpus or 1, concurrency=limits.concurrency,
        prefill=limits.prefill, chunk_tokens=limits.chunk_tokens, kv_tokens=limits.kv_tokens,
        memory_share=memory_share, model=model, table=isinstance(table, EngineTable),
        calibration=calibration is not None,
    )  # fmt: skip
    made = {"vllm": vllm.launch, "sglang": sglang.launch, "trtllm": tensorrt_llm.launch}[engine](settings)
    return made if engine == "vllm" else _with_files(made, table, calibration)


def calibration_of(acceptance: AcceptanceModel | None) -> Calibration | None:
    """Return the temperatures of a recorded trace, or those fitted to it as SGLang does; None elsewhere.

    Confidences of fitted models and of rates are calibrated as they stand: nothing raw is known of them.
    """
    if not isinstance(acceptance, AcceptanceTrace) or acceptance.confidence_logits is None:
        return None
    if acceptance.temperatures is not None:
        return Calibration(tuple(acceptance.temperatures.tolist()), acceptance.name, acceptance.rows)
    accepted = acceptance.replay(0).accepted
    observed, weight = verdicts(accepted, acceptance.gamma, acceptance.effective_length)
    fit = fit_temperatures(acceptance.confidence_logits, observed, weight=weight, convention=SGLANG)
    return Calibration.of_fit(fit, dataset=acceptance.name, num_samples=acceptance.rows)


def _verification(scheduler: Scheduler) -> Fixed | ByBatch | Confidence:
    if isinstance(scheduler, FixedLength):
        return Fixed(scheduler.length)
    if isinstance(scheduler, BatchTable):
        lengths = scheduler.lengths
        return ByBatch(tuple(zip(lengths.first, lengths.length, strict=True)))
    return Confidence()


def _table(
    deployment: Deployment, setup: Setup, engine: Engine, context_tokens: float
) -> EngineTable | str | None:
    """Return the cost table of an engine that reads one, or why there is none."""
    if engine == "vllm":
        return None
    priced = setup.drafter if setup.drafter in (deployment.profile.drafters or {}) else None
    try:
        return engine_table(deployment.profile, engine, drafter=priced, context_tokens=context_tokens)
    except BadInputError as error:
        return f"No cost table: {error}"


def _with_files(made: Launch, table: EngineTable | str | None, calibration: Calibration | None) -> Launch:
    """Add the files that an engine's scheduler reads, and what there is to say of them."""
    files, notes = dict(made.files), list(made.notes)
    if isinstance(table, EngineTable):
        files[TABLE] = json_text(table.fields)
        notes += [f"{TABLE}: {note}." for note in table.notes]
    elif table is not None:
        notes.append(table)
    if calibration is not None:
        files[CALIBRATION] = json_text(calibration_fields(calibration))
    return replace(made, files=files, notes=tuple(notes))
